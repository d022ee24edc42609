/** Where the stages are, by the settings. */
import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import type { Settings } from "./schema.ts";

/** All paths are absolute. */
export interface StoragePlaces {
  readonly localDirectoryPath: string;
  /** Of this local folder alone, unless the settings name one. Whether it is on a tmpfs is not known yet. */
  readonly memoryDirectoryPath: string;
  /** A bucket when it has an endpoint or an access key, else the folder. */
  readonly objectStore: {
    readonly endpoint: string | undefined;
    readonly accessKeyId: string | undefined;
    readonly secretAccessKey: string | undefined;
    readonly bucket: string;
    readonly region: string;
    readonly directoryPath: string;
  };
}

export function storagePlaces({ storage }: Pick<Settings, "storage">): StoragePlaces {
  const localDirectoryPath = resolve(storage.localDirectoryPath);
  const ownName = createHash("sha256").update(localDirectoryPath).digest("hex").slice(0, 16);
  return {
    localDirectoryPath,
    memoryDirectoryPath: resolve(storage.memoryDirectoryPath ?? join("/dev/shm", `persisto-${ownName}`)),
    objectStore: {
      endpoint: storage.remoteEndpoint,
      accessKeyId: storage.remoteAccessKeyId,
      secretAccessKey: storage.remoteSecretKey,
      bucket: storage.remoteBucketName,
      region: storage.remoteRegion,
      directoryPath: resolve(storage.remoteDirectoryPath ?? join(localDirectoryPath, "remote")),
    },
  };
}
