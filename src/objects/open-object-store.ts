/** The object store that the settings name: a bucket behind the S3 API, or a folder. */
import type { Clock } from "../clock.ts";
import { openDirectoryStore } from "./directory.ts";
import type { ObjectStore } from "./object-store.ts";
import type { S3Limits } from "./s3-connection.ts";

export interface ObjectStorePlace {
  /** A bucket is chosen by an endpoint or an access key. */
  readonly endpoint?: string | undefined;
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly bucket: string;
  readonly region: string;
  /** The folder, where no bucket is chosen. */
  readonly directoryPath: string;
}

export interface ObjectStoreOptions {
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  readonly limits?: Partial<S3Limits> | undefined;
  readonly onProblem?: ((message: string, error: unknown) => void) | undefined;
}

export interface OpenedObjectStore {
  readonly store: ObjectStore;
  /** How Litestream lays out replicas in it. */
  readonly layout: "bucket" | "folder";
}

/** True when a bucket is chosen. */
export function isBucket({ endpoint, accessKeyId }: ObjectStorePlace): boolean {
  return endpoint !== undefined || accessKeyId !== undefined;
}

/** Makes the folder, or a client to the bucket, which asks nothing yet. The client's library is loaded only for a bucket. */
export async function openObjectStore(
  place: ObjectStorePlace,
  options: ObjectStoreOptions,
): Promise<OpenedObjectStore> {
  if (isBucket(place)) {
    const { openS3Store } = await import("./s3.ts");
    const { directoryPath: _, ...bucket } = place;
    return { store: await openS3Store({ ...bucket, ...options }), layout: "bucket" };
  }
  const { clock, random, onProblem } = options;
  const store = await openDirectoryStore({ path: place.directoryPath, clock, random, onProblem });
  return { store, layout: "folder" };
}
