import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";
import { openS3Store } from "../../src/objects/s3.ts";
import { FileStage } from "../../src/stages/file-stage.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { call } from "../objects/helpers.ts";
import {
  accessKeyId,
  bucket as bucketName,
  installed,
  type S3Server,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { describeReplica } from "./contract.ts";
import { openStage } from "./support.ts";

const temporaryFolder = temporaryFolders();

for (const name of ["memory", "local"] as const) {
  const directoryPath = temporaryFolder();
  const stage = new FileStage({
    name,
    displayName: name,
    directoryPath,
    fileSystem: nodeFileSystem,
    clock: systemClock,
  });
  let count = 0;
  describeReplica(`in the ${name} stage`, {
    folder: temporaryFolder,
    make: async () => stage.replica(stage.filePath(`database-${++count}`), 0n),
    reopen: async (replica, txid) => stage.replica(replica.name, txid),
    damage: async ({ name: path }) => truncateSync(path, statSync(path).size - 4096),
  });
}

const bucket = new MemoryObjectStore(systemClock);
let inBucket: Promise<RemoteStage> | undefined;
let count = 0;
describeReplica("in a bucket", {
  folder: temporaryFolder,
  make: async () => {
    inBucket ??= openStage(bucket, temporaryFolder());
    return (await inBucket).replica(`database-${++count}/0123456789abcdef`);
  },
  reopen: async (replica) => {
    const reopened = (await openStage(bucket, temporaryFolder())).replica(prefixOf(replica.name));
    return reopened;
  },
  damage: async (replica) => {
    const key = `${prefixOf(replica.name)}/0000/0000000000000005-0000000000000005.ltx`;
    await flipBit(bucket, key);
  },
});

async function flipBit(store: ObjectStore, key: string): Promise<void> {
  const { bytes } = await store.get(key, { ...call(), bytesMax: 1e9 });
  const at = bytes.length >> 1;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await store.put(key, bytes, call());
}

function prefixOf(name: string): string {
  return name.slice(name.indexOf(": ") + 2);
}

const folder = temporaryFolder();
let inFolder: Promise<RemoteStage> | undefined;
describeReplica("in a folder of objects", {
  folder: temporaryFolder,
  make: async () => {
    inFolder ??= openDirectoryStore({ path: folder, clock: systemClock, random: randomBytes }).then((store) =>
      openStage(store, temporaryFolder(), { layout: "folder" }),
    );
    return (await inFolder).replica(`database-${++count}/0123456789abcdef`);
  },
  reopen: async (replica) => {
    const store = await openDirectoryStore({ path: folder, clock: systemClock, random: randomBytes });
    return (await openStage(store, temporaryFolder(), { layout: "folder" })).replica(prefixOf(replica.name));
  },
  damage: async (replica) => {
    const levelZero = join(folder, prefixOf(replica.name), "ltx", "0");
    const path = join(levelZero, readdirSync(levelZero).sort()[4] as string);
    const bytes = readFileSync(path);
    const at = bytes.length >> 1;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(path, bytes);
  },
});

for (const kind of s3ServerKinds.filter(({ program }) => program === "weed" || program === "versitygw")) {
  const isMissing = installed(kind) === undefined;
  describe.skipIf(isMissing)(`${kind.name}${isMissing ? " (skipped: it is not installed)" : ""}`, () => {
    let server: S3Server;
    let store: ObjectStore;
    let stage: RemoteStage;

    const open = () =>
      openS3Store({
        bucket: bucketName,
        endpoint: server.endpoint,
        region: "auto",
        accessKeyId,
        secretAccessKey,
        clock: systemClock,
        random: randomBytes,
      });
    beforeAll(async () => {
      server = await startS3Server(kind, temporaryFolder());
      store = await open();
      stage = await openStage(store, temporaryFolder());
    }, 40_000);
    afterAll(async () => {
      await store?.close();
      await server?.stop();
    });

    describeReplica("in a bucket of it", {
      folder: temporaryFolder,
      make: async () => stage.replica(`database-${++count}/0123456789abcdef`),
      reopen: async (replica) => (await openStage(store, temporaryFolder())).replica(prefixOf(replica.name)),
      damage: (replica) => flipBit(store, `${prefixOf(replica.name)}/0000/0000000000000005-0000000000000005.ltx`),
    });
  });
}
