import { describe, expect, it } from "vitest";
import { Failure } from "../../../src/failure/failure.ts";
import type { FileSystem } from "../../../src/files/file-system.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import type { FaultSource, FaultyOperation } from "../../../src/objects/faulty.ts";
import { CallCancelled } from "../../../src/sqlite/executor.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { until } from "../../support/until.ts";
import { statement } from "../fixtures.ts";
import { failureOf } from "../support.ts";
import { openStages, type StagesScene } from "./stages.ts";

const newFolder = temporaryFolders();

/** The machine's files, on a disk that is full at one of the calls that change something. */
class FullDisk {
  /** Calls until it is full, and then for one call; undefined: never. */
  failAt: number | undefined;
  calls = 0;
  failed: string | undefined;
  readonly fileSystem: FileSystem;

  constructor() {
    const before = <T>(name: string, run: () => Promise<T>): Promise<T> => {
      if (this.failAt === undefined) return run();
      if (++this.calls !== this.failAt) return run();
      this.failed = name;
      return Promise.reject(Object.assign(new Error(`ENOSPC: ${name}`), { code: "ENOSPC" }));
    };
    this.fileSystem = {
      ...nodeFileSystem,
      makeFolder: (path) => before(`makeFolder ${path}`, () => nodeFileSystem.makeFolder(path)),
      writeFlushed: (path, bytes) => before(`writeFlushed ${path}`, () => nodeFileSystem.writeFlushed(path, bytes)),
      rename: (from, to) => before(`rename ${to}`, () => nodeFileSystem.rename(from, to)),
      openFile: async (path, mode) => {
        if (mode === "read") return nodeFileSystem.openFile(path, mode);
        const file = await before(`open ${path}`, () => nodeFileSystem.openFile(path, mode));
        return {
          sizeBytes: () => file.sizeBytes(),
          read: (offset, count) => file.read(offset, count),
          truncate: (size) => before(`truncate ${path}`, () => file.truncate(size)),
          write: (offset, bytes) => before(`write ${path}`, () => file.write(offset, bytes)),
          flush: () => before(`flush ${path}`, () => file.flush()),
          close: () => file.close(),
        };
      },
    };
  }

  arm(failAt: number): void {
    this.calls = 0;
    this.failed = undefined;
    this.failAt = failAt;
  }

  disarm(): void {
    this.failAt = undefined;
  }
}

async function filled(scene: StagesScene, id: string): Promise<void> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (x INTEGER PRIMARY KEY, y)");
  await scene.run(id, "INSERT INTO t VALUES (0, 'zero')");
}

describe("a disk that is full at any step", () => {
  const moves = [
    ["to memory", "promote", "memory", "local"],
    ["back from memory", "demote", "local", "memory"],
    ["to the remote stage", "demote", "remote", "local"],
    ["in from the remote stage", "promote", "local", "remote"],
  ] as const;

  it.each(moves)("of a move %s loses nothing, clears up, and lets it succeed later", async (_, kind, target, from) => {
    const folder = newFolder();
    const disk = new FullDisk();
    const scene = await openStages({ folder, fileSystem: disk.fileSystem, intervalMs: 60_000 });
    await filled(scene, "a");
    const begin = async () => {
      if (from === "memory" && (await scene.stageOf("a")) !== "memory") await scene.move("promote", "a", "memory");
      if (from === "remote" && (await scene.placesOf("a"))[0] !== "remote") {
        await scene.move("promote", "a", "local");
        await scene.move("demote", "a", "remote");
      }
      if (from === "local" && (await scene.stageOf("a")) !== "local") {
        await scene.move((await scene.stageOf("a")) === "memory" ? "demote" : "promote", "a", "local");
      }
    };
    const failures: string[] = [];
    let rows = 1;
    for (let failAt = 1, isThrough = false; !isThrough; failAt++) {
      await begin();
      if (from !== "remote") {
        await scene.run("a", `INSERT INTO t VALUES (${rows}, 'more')`);
        rows++;
      }
      disk.arm(failAt);
      let failure: unknown;
      try {
        await scene.move(kind, "a", target);
      } catch (error) {
        failure = error;
      }
      isThrough = disk.failed === undefined;
      disk.disarm();
      if (failure === undefined) {
        // What was full was nothing that the move needs.
        expect(await scene.stageOf("a")).toBe(target);
      } else {
        failures.push(disk.failed ?? "");
        expect(failure).toBeInstanceOf(Failure);
        expect((failure as Failure).reason).toBe("STAGE_FULL");
        expect(await scene.stageOf("a")).toBe(from);
      }
      expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[rows]]);
      if ((await scene.stageOf("a")) === "local") {
        await until("memory is clear", () => scene.memoryFiles().length === 0);
      }
      expect(failAt).toBeLessThan(200);
    }
    expect(failures.length).toBeGreaterThan(0);
    expect(await scene.rows("a", "PRAGMA integrity_check")).toEqual([["ok"]]);
    expect(scene.localFiles("").filter((name) => name.startsWith("."))).toEqual([]);
    await scene.close();
  });
});

describe("a remote stage that does not answer", () => {
  const unavailable =
    (operations: readonly FaultyOperation[]): FaultSource =>
    (operation) =>
      operations.includes(operation) ? [{ kind: "fail_before" }] : [];
  const slow =
    (ms: number): FaultSource =>
    (operation) =>
      operation === "get" ? [{ kind: "delay", ms }] : [];

  it("leaves a database that should move there where it is, and the move can be cancelled", async () => {
    const scene = await openStages({ folder: newFolder() });
    await filled(scene, "a");
    scene.faults = unavailable(["put", "get", "head", "list"]);
    const moving = scene.move("demote", "a", "remote");
    const cancelled = failureOf(moving, "OPERATION_CANCELLED");
    await until("the move runs", async () => (await scene.engine.getDatabaseStage("a")).operation !== undefined);
    await scene.run("a", "INSERT INTO t VALUES (1, 1)");
    const { operation } = await scene.engine.getDatabaseStage("a");
    await scene.engine.cancelOperation(operation ?? "");
    await cancelled;
    expect(await scene.stageOf("a")).toBe("local");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[2]]);
    scene.faults = () => [];
    await scene.move("demote", "a", "remote");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[2]]);
    await scene.close();
  });

  it("fails the calls that need it with STAGE_UNAVAILABLE, leaves nothing behind, and serves them later", async () => {
    const scene = await openStages({ folder: newFolder() });
    await filled(scene, "a");
    await scene.move("demote", "a", "remote");
    scene.faults = unavailable(["get", "list", "head"]);
    const calls = Array.from({ length: 5 }, () => scene.rows("a", "SELECT 1"));
    for (const call of calls) await failureOf(call, "STAGE_UNAVAILABLE");
    expect(scene.localFiles("a")).toEqual([]);
    scene.faults = () => [];
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[1]]);
    await scene.close();
  });

  it("holds each call up to its own deadline or cancellation, and the others are served", async () => {
    const scene = await openStages({ folder: newFolder() });
    await filled(scene, "a");
    await scene.move("demote", "a", "remote");
    scene.faults = slow(400);
    const late = scene.engine.read("a", statement("SELECT 1"), undefined, scene.options({ ms: 60 }));
    const listeners: (() => void)[] = [];
    const cancel = {
      cancelled: false,
      onCancel: (listener: () => void) => {
        listeners.push(listener);
        return () => undefined;
      },
    };
    const gone = scene.engine.read("a", statement("SELECT 1"), undefined, scene.options({ cancel }));
    const patient = scene.rows("a", "SELECT count(*) FROM t");
    const { facts } = await failureOf(late, "DATABASE_BUSY");
    expect(facts["problem"]).toMatch(/on its way/);
    for (const listener of listeners) listener();
    await expect(gone).rejects.toThrow(CallCancelled);
    expect(await patient).toEqual([[1]]);
    await scene.close();
  });

  it("is told from one that has lost data: the database is not served with less than was acknowledged", async () => {
    const scene = await openStages({ folder: newFolder() });
    await filled(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (1, 1)", "remote");
    await scene.move("demote", "a", "remote");
    const newest =
      [...scene.bucket.keys()]
        .filter((key) => key.includes("/0000/"))
        .sort()
        .at(-1) ?? "";
    const lost = scene.bucket.get(newest);
    scene.bucket.delete(newest);
    const refusal = await scene.rows("a", "SELECT 1").catch((error: unknown) => error);
    expect(["DATA_CORRUPT", "STAGE_UNAVAILABLE"]).toContain((refusal as Failure).reason);
    expect(scene.localFiles("a")).toEqual([]);
    if (lost !== undefined) scene.bucket.set(newest, lost);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[2]]);
    await scene.close();
  });
});

describe("a database that is deleted", () => {
  it("while it is brought from the remote stage is gone, and its callers are told", async () => {
    const scene = await openStages({ folder: newFolder() });
    await filled(scene, "a");
    await scene.move("demote", "a", "remote");
    scene.faults = (operation) => (operation === "get" ? [{ kind: "delay", ms: 200 }] : []);
    const call = scene.rows("a", "SELECT 1");
    const refused = failureOf(call, "DATABASE_NOT_FOUND");
    await scene.engine.deleteDatabase("a", undefined, false);
    await refused;
    expect(scene.localFiles("a")).toEqual([]);
    scene.faults = () => [];
    await until("the bucket is empty", () => scene.bucket.size === 0);
    await scene.close();
  });

  it("while it moves is gone, wherever it was", async () => {
    const scene = await openStages({ folder: newFolder() });
    for (const [kind, target] of [
      ["promote", "memory"],
      ["demote", "remote"],
    ] as const) {
      await filled(scene, "a");
      const moving = scene.move(kind, "a", target).catch((error: unknown) => error);
      await scene.engine.deleteDatabase("a", undefined, false);
      await moving;
      await failureOf(scene.engine.getDatabase("a"), "DATABASE_NOT_FOUND");
      await until("memory is clear", () => scene.memoryFiles().length === 0);
      expect(scene.localFiles("a")).toEqual([]);
    }
    await scene.close();
  });
});
