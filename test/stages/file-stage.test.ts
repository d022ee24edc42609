import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { type FileSystem, nodeFileSystem, type OpenFile } from "../../src/files/file-system.ts";
import { FileStage } from "../../src/stages/file-stage.ts";
import type { Batch } from "../../src/stages/stage.ts";
import { call } from "../objects/helpers.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { reasonOf } from "./contract.ts";
import { type History, makeHistory, snapshotOf } from "./support.ts";

const temporaryFolder = temporaryFolders();
let history: History;
beforeAll(async () => {
  history = await makeHistory(temporaryFolder());
});
const batch = (txid: number) => history.batches[txid - 1] as Batch;
const state = (txid: number) => history.states[txid - 1] as Buffer;

/** Files whose calls are told by `events`, and fail where `fails` says so. */
function watched(events: string[], fails: (event: string) => boolean = () => false): FileSystem {
  const tell = (event: string) => {
    events.push(event);
    if (fails(event)) throw Object.assign(new Error(`ENOSPC: ${event}`), { code: "ENOSPC" });
  };
  return {
    ...nodeFileSystem,
    async openFile(path, mode) {
      const file = await nodeFileSystem.openFile(path, mode);
      const wrapped: OpenFile = {
        sizeBytes: () => file.sizeBytes(),
        read: (offsetBytes, byteCount) => file.read(offsetBytes, byteCount),
        async write(offsetBytes, bytes) {
          tell("write");
          await file.write(offsetBytes, bytes);
        },
        async truncate(sizeBytes) {
          tell("truncate");
          await file.truncate(sizeBytes);
        },
        async flush() {
          tell("flush");
          await file.flush();
        },
        async close() {
          tell("close");
          await file.close();
        },
      };
      return wrapped;
    },
    async rename(from, to) {
      tell("rename");
      await nodeFileSystem.rename(from, to);
    },
    async flushFolder(path) {
      tell("flush folder");
      await nodeFileSystem.flushFolder(path);
    },
  };
}

function stageOn(fileSystem: FileSystem, name: "memory" | "local" = "local", directoryPath = temporaryFolder()) {
  return new FileStage({ name, displayName: name, directoryPath, fileSystem, clock: systemClock });
}

describe("the local stage", () => {
  it("gives a file its name when it is on the disk", async () => {
    const events: string[] = [];
    const stage = stageOn(watched(events));
    const replica = stage.replica(stage.filePath("notes"), 0n);
    await replica.putSnapshot(snapshotOf(state(2), 4096, 2n), call());
    expect(events.indexOf("flush")).toBeGreaterThan(events.lastIndexOf("write"));
    expect(events.slice(-4)).toEqual(["flush", "close", "rename", "flush folder"]);
    expect(readFileSync(replica.name).equals(state(2))).toBe(true);
  });

  it("has a batch on the disk before it counts", async () => {
    const events: string[] = [];
    const stage = stageOn(watched(events));
    const replica = stage.replica(stage.filePath("notes"), 0n);
    await replica.append(batch(1), call());
    events.length = 0;
    await replica.append(batch(2), call());
    expect(events.at(-2)).toBe("flush");
    expect(replica.txid).toBe(2n);
  });

  it.each(["write", "truncate", "flush"])("loses nothing when a %s fails in the middle of a batch", async (what) => {
    let isFull = false;
    const stage = stageOn(watched([], (event) => isFull && event === what));
    const replica = stage.replica(stage.filePath("notes"), 0n);
    for (const txid of [1, 2, 3]) await replica.append(batch(txid), call());
    isFull = true;
    // The one that shrinks, then the one that grows: applied in part, and again from the noted position on.
    await expect(replica.append(batch(4), call())).rejects.toThrow("ENOSPC");
    expect(replica.txid).toBe(3n);
    isFull = false;
    await replica.append(batch(4), call());
    isFull = true;
    await expect(replica.append(batch(5), call())).rejects.toThrow("ENOSPC");
    isFull = false;
    const again = stage.replica(replica.name, 3n);
    for (const txid of [4, 5]) await again.append(batch(txid), call());
    expect(readFileSync(replica.name).equals(state(5))).toBe(true);
  });

  it("keeps what it has when a snapshot does not fit", async () => {
    let isFull = false;
    const stage = stageOn(watched([], (event) => isFull && event === "write"));
    const replica = stage.replica(stage.filePath("notes"), 0n);
    await replica.append(batch(1), call());
    isFull = true;
    await expect(replica.putSnapshot(snapshotOf(state(5), 4096, 5n), call())).rejects.toThrow("ENOSPC");
    expect(replica.txid).toBe(1n);
    expect(readFileSync(replica.name).equals(state(1))).toBe(true);
    expect(existsSync(`${replica.name}.new`)).toBe(false);
  });

  it("leaves no WAL of another database beside a new file", async () => {
    const stage = stageOn(nodeFileSystem);
    const replica = stage.replica(stage.filePath("notes"), 0n);
    await replica.append(batch(1), call());
    for (const ending of ["-wal", "-shm"]) writeFileSync(`${replica.name}${ending}`, "old");
    await replica.putSnapshot(snapshotOf(state(3), 4096, 3n), call());
    for (const ending of ["-wal", "-shm"]) expect(existsSync(`${replica.name}${ending}`)).toBe(false);
  });

  it.each([
    ["cut", (path: string) => truncateSync(path, 8192)],
    ["emptied", (path: string) => truncateSync(path, 0)],
    ["something else", (path: string) => writeFileSync(path, "not a database".repeat(1000))],
  ])("tells a file that was %s", async (_, harm) => {
    const stage = stageOn(nodeFileSystem);
    const replica = stage.replica(stage.filePath("notes"), 0n);
    for (const txid of [1, 2]) await replica.append(batch(txid), call());
    harm(replica.name);
    expect((await replica.verify(call())).isWhole).toBe(false);
    expect(await reasonOf(replica.restore({ path: join(temporaryFolder(), "copy"), flush: false }, call()))).toBe(
      "DATA_CORRUPT",
    );
  });

  it("says what room it has", async () => {
    const { totalBytes, freeBytes } = await stageOn(nodeFileSystem).space();
    expect(totalBytes).toBeGreaterThan(freeBytes);
    expect(freeBytes).toBeGreaterThan(0);
  });
});

describe("the memory stage", () => {
  it("flushes nothing", async () => {
    const events: string[] = [];
    const stage = stageOn(watched(events), "memory");
    const replica = stage.replica(stage.filePath("notes"), 0n);
    await replica.putSnapshot(snapshotOf(state(1), 4096, 1n), call());
    await replica.append(batch(2), call());
    expect(events.filter((event) => event.startsWith("flush"))).toEqual([]);
    expect(readFileSync(replica.name).equals(state(2))).toBe(true);
  });

  it("is none where there is no tmpfs", async () => {
    const on = (isMemory: boolean): FileSystem => ({
      ...nodeFileSystem,
      space: async (path) => ({ ...(await nodeFileSystem.space(path)), isMemory }),
    });
    await stageOn(on(true), "memory").probe(call());
    expect(await reasonOf(stageOn(on(false), "memory").probe(call()))).toBe("STAGE_NOT_CONFIGURED");
    await stageOn(on(false), "local").probe(call());
  });
});
