/** LOCAL writes of many databases at one time share one flush, and a loss of power loses none of them. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type FileSystem, nodeFileSystem } from "../../../src/files/file-system.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { openScene, type Scene } from "../scene.ts";
import { until } from "../support.ts";

const newFolder = temporaryFolders();
const ids = Array.from({ length: 8 }, (_, number) => `d${number}`);
const walOf = (directoryPath: string, id: string) => join(directoryPath, "databases", id, "db.sqlite-wal");

/** Files that remember what each WAL had on the disk, as if nothing got there by itself. */
function rememberingFiles() {
  const flushed = new Map<string, Buffer>();
  const remember = (descriptor: number) => {
    const path = readlinkSync(`/proc/self/fd/${descriptor}`);
    return { path, bytes: readFileSync(path) };
  };
  const fileSystem: FileSystem = {
    ...nodeFileSystem,
    async flush(descriptor) {
      const { path, bytes } = remember(descriptor);
      await nodeFileSystem.flush(descriptor);
      flushed.set(path, bytes);
    },
  };
  return { fileSystem, flushed };
}

/** Begins the redo log: it is made when several databases are flushed at one time. */
async function begin(scene: Scene, directoryPath: string): Promise<void> {
  for (const id of ids) await scene.create(id);
  await Promise.all(ids.map((id) => scene.run(id, "CREATE TABLE t (x)", "local")));
  await until(() => existsSync(join(directoryPath, "redo", "redo-1")));
  for (let before = -1; before !== scene.engine.stats().flushes; ) {
    before = scene.engine.stats().flushes;
    await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (0)", "local")));
  }
  for (const id of ids) await scene.run(id, "DELETE FROM t");
}

/** What the folder would be if the machine died now: of each WAL only what was flushed itself. */
function afterPowerCut(directoryPath: string, flushed: ReadonlyMap<string, Buffer>): string {
  const copy = newFolder();
  cpSync(directoryPath, copy, { recursive: true });
  for (const id of ids) {
    rmSync(walOf(copy, id).replace("-wal", "-shm"), { force: true });
    const now = readFileSync(walOf(directoryPath, id));
    const before = flushed.get(walOf(directoryPath, id)) ?? Buffer.alloc(0);
    // SQLite itself flushes the header of a WAL that starts over, before its first frame.
    writeFileSync(walOf(copy, id), Buffer.concat([now.subarray(0, 32), before.subarray(32)]));
  }
  for (const name of readdirSync(copy)) if (name.startsWith("catalog")) rmSync(join(copy, name));
  return copy;
}

async function counts(directoryPath: string): Promise<number[]> {
  const scene = await openScene({ directoryPath });
  const found = [];
  for (const id of ids) found.push(Number((await scene.rows(id, "SELECT count(*) FROM t"))[0]?.[0]));
  await scene.close();
  return found;
}

describe("the redo log", () => {
  it("keeps what was answered LOCAL over a loss of power, with one flush for all", async () => {
    const directoryPath = newFolder();
    const { fileSystem, flushed } = rememberingFiles();
    const scene = await openScene({ directoryPath, fileSystem });
    await begin(scene, directoryPath);
    const before = scene.engine.stats().flushes;
    for (let round = 0; round < 20; round++) {
      await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (1)", "local")));
    }
    expect(scene.engine.stats().flushes - before).toBeLessThan(20);
    const withRedo = afterPowerCut(directoryPath, flushed);
    const without = afterPowerCut(directoryPath, flushed);
    rmSync(join(without, "redo"), { recursive: true });
    await scene.close();
    expect(await counts(withRedo)).toEqual(ids.map(() => 20));
    // It is the redo log that has kept them.
    expect((await counts(without)).some((count) => count < 20)).toBe(true);
  });

  it("puts nothing old beside a database that was checkpointed since", async () => {
    const directoryPath = newFolder();
    const { fileSystem, flushed } = rememberingFiles();
    const limits = { checkpointFrames: 20, checkpointPauseFrames: 40, checkpointPauseMsMax: 1000 };
    const scene = await openScene({ directoryPath, fileSystem, limits });
    await begin(scene, directoryPath);
    const committed = ids.map(() => 0);
    for (let round = 0; round < 60; round++) {
      await Promise.all(
        ids.map(async (id, index) => {
          await scene.run(id, "INSERT INTO t VALUES (randomblob(3000))", round % 3 === 0 ? "local" : "committed");
          committed[index] = round + 1;
        }),
      );
    }
    await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (1)", "local")));
    await until(() => scene.engine.stats().checkpoints > 8);
    const copy = afterPowerCut(directoryPath, flushed);
    await scene.close();
    const again = await openScene({ directoryPath: copy });
    for (const id of ids) {
      expect(await again.rows(id, "SELECT count(*) FROM t")).toEqual([[61]]);
      expect(await again.rows(id, "PRAGMA integrity_check")).toEqual([["ok"]]);
    }
    await again.close();
  });

  it("is replayed before the first call, once, and a clean end leaves nothing to replay", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    await begin(scene, directoryPath);
    await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (1)", "local")));
    await scene.close();
    const again = await openScene({ directoryPath });
    expect(again.lines.filter((line) => line.message.includes("redo"))).toEqual([]);
    for (const id of ids) expect(await again.rows(id, "SELECT count(*) FROM t")).toEqual([[1]]);
    await again.close();
  });

  it("whose making was cut off is no log, and one that cannot be made costs nobody a call", async () => {
    const directoryPath = newFolder();
    const files: FileSystem = {
      ...nodeFileSystem,
      async openFile(path, mode) {
        const file = await nodeFileSystem.openFile(path, mode);
        if (!path.endsWith("redo-1")) return file;
        return Object.assign(Object.create(file) as typeof file, {
          sizeBytes: () => file.sizeBytes(),
          close: () => file.close(),
          write: () => Promise.reject(Object.assign(new Error("ENOSPC"), { code: "ENOSPC" })),
        });
      },
    };
    const scene = await openScene({ directoryPath, fileSystem: files });
    for (const id of ids) await scene.create(id);
    await Promise.all(ids.map((id) => scene.run(id, "CREATE TABLE t (x)", "local")));
    await until(() => scene.lines.some((line) => line.message.includes("could not be made")));
    await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (1)", "local")));
    await until(() => !existsSync(join(directoryPath, "redo")));
    await scene.close();
    mkdirSync(join(directoryPath, "redo"));
    writeFileSync(join(directoryPath, "redo", "redo-0"), Buffer.alloc(100_000));
    expect(await counts(directoryPath)).toEqual(ids.map(() => 1));
    expect(existsSync(join(directoryPath, "redo"))).toBe(false);
  });

  it("is not made by a server whose databases are flushed one at a time", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    for (const id of ids) {
      await scene.create(id);
      await scene.run(id, "CREATE TABLE t (x)", "local");
    }
    expect(existsSync(join(directoryPath, "redo"))).toBe(false);
    await scene.close();
  });
});
