/** Calls on databases: positions, durability, checkpoints, what is kept open, and the end. */
import { mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { Catalog } from "../../src/engine/catalog.ts";
import { Failure } from "../../src/failure/failure.ts";
import { type FileSystem, nodeFileSystem } from "../../src/files/file-system.ts";
import { CallCancelled, type Cancel, type ExecutorDatabase, PartlyDone } from "../../src/sqlite/executor.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { statement } from "./fixtures.ts";
import { openScene, replaced, rowsOf } from "./scene.ts";
import { failureOf, testRow, until } from "./support.ts";

const newFolder = temporaryFolders();
const walPath = (directoryPath: string, id: string) => join(directoryPath, "databases", id, "db.sqlite-wal");

/** A cancel that a test fires. */
function manualCancel(): Cancel & { fire(): void } {
  let listener: (() => void) | undefined;
  let cancelled = false;
  return {
    get cancelled() {
      return cancelled;
    },
    onCancel(given) {
      listener = given;
      return () => {
        listener = undefined;
      };
    },
    fire() {
      cancelled = true;
      listener?.();
    },
  };
}

describe("positions", () => {
  it("name the batch that will hold a commit; versions differ with every call that commits, and with no other", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    expect((await scene.create("a")).position.sequence).toBe(0n);
    expect((await scene.run("a", "SELECT 1")).position.sequence).toBe(0n);
    const versions = [];
    for (const sql of [
      "CREATE TABLE t (x)",
      "INSERT INTO t VALUES (1)",
      "SELECT 1",
      "UPDATE t SET x = 2 WHERE x = 5",
      "DELETE FROM t",
    ]) {
      expect((await scene.run("a", sql)).position.sequence).toBe(1n);
      versions.push(scene.engine.version("a"));
    }
    const [first, second, third, fourth, fifth] = versions;
    expect([second, third, fourth]).toEqual([second, second, second]);
    expect(new Set([first, second, fifth]).size).toBe(3);
    await failureOf(scene.run("a", "INSERT INTO missing VALUES (1)"), "SQL_INVALID");
    const read = await scene.engine.read("a", statement("SELECT 1"), undefined, scene.options());
    expect(read.position.sequence).toBe(1n);
    expect(scene.engine.position("a")).toEqual(read.position);
    await scene.close();
  });

  it("of an answered write let a read see it, under load", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    await scene.create("a");
    let { position } = await scene.run("a", "CREATE TABLE t (x)");
    let answered = 0;
    await Promise.all([
      (async () => {
        for (let write = 0; write < 200; write++) {
          position = (await scene.run("a", "INSERT INTO t VALUES (1)")).position;
          answered++;
        }
      })(),
      (async () => {
        for (let read = 0; read < 200; read++) {
          const written = answered;
          const answer = await scene.engine.read("a", statement("SELECT count(*) FROM t"), position, scene.options());
          expect(answer.position.sequence).toBe(1n);
          expect(Number(rowsOf(answer.body)[0]?.[0])).toBeGreaterThanOrEqual(written);
        }
      })(),
    ]);
    await scene.close();
  });

  it("never go back: not when the handle is dropped, not over a clean end, not over a lost catalog", async () => {
    const directoryPath = newFolder();
    let scene = await openScene({ directoryPath, limits: { openDatabaseCountMax: 1 } });
    await scene.create("a");
    await scene.create("b");
    let { position } = await scene.run("a", "CREATE TABLE t (x)");
    for (let round = 0; round < 5; round++) {
      await scene.run("b", "CREATE TABLE IF NOT EXISTS t (x)");
      expect(scene.engine.position("a")).toEqual(position);
      const next = (await scene.run("a", "INSERT INTO t VALUES (1)")).position;
      expect(next.sequence).toBeGreaterThanOrEqual(position.sequence);
      position = next;
    }
    await scene.close();
    scene = await openScene({ directoryPath });
    expect(scene.engine.position("a")).toEqual(position);
    expect((await scene.run("a", "INSERT INTO t VALUES (1)")).position.sequence).toBe(position.sequence);
    position = scene.engine.position("a");
    await scene.close();
    for (const name of readdirSync(directoryPath)) if (name.startsWith("catalog")) rmSync(join(directoryPath, name));
    scene = await openScene({ directoryPath });
    const found = scene.engine.position("a");
    expect(found.lineage).toBe(position.lineage);
    expect(found.sequence).toBeGreaterThanOrEqual(position.sequence);
    expect((await scene.run("a", "INSERT INTO t VALUES (1)")).position.sequence).toBeGreaterThanOrEqual(found.sequence);
    await scene.close();
  });

  it("that are not reached yet are waited for", async () => {
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath: newFolder(), clock });
    const { lineage } = (await scene.create("a")).position;
    const read = scene.engine.read(
      "a",
      statement("SELECT count(*) FROM sqlite_schema WHERE name = 't'"),
      { lineage, sequence: 1n },
      scene.options(),
    );
    await scene.run("a", "CREATE TABLE t (x)");
    expect(rowsOf((await read).body)).toEqual([[1]]);
    const wish = { lineage, sequence: 10n };
    const late = failureOf(
      scene.engine.read("a", statement("SELECT 1"), wish, scene.options()),
      "POSITION_NOT_REACHED",
    );
    const clipped = failureOf(
      scene.engine.query("a", statement("SELECT 1"), wish, {
        ...scene.options({ ms: 10 }),
        chunkRowsMax: 1,
        chunkBytesMax: 1,
      }),
      "POSITION_NOT_REACHED",
    );
    clock.advance(10);
    expect((await clipped).facts).toEqual({ database: "a", sequence: "10", current: "1" });
    clock.advance(4990);
    expect((await late).retryAfterMs).toBeGreaterThan(0);
    await scene.close();
  });

  it("are waited for by so many at most, and no longer than the caller is there", async () => {
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath: newFolder(), clock, limits: { positionWaitCountMax: 1 } });
    const { lineage } = (await scene.create("a")).position;
    const wish = { lineage, sequence: 2n ** 63n };
    const cancel = manualCancel();
    const waiting = scene.engine.read("a", statement("SELECT 1"), wish, scene.options({ cancel }));
    await failureOf(scene.engine.read("a", statement("SELECT 1"), wish, scene.options()), "DATABASE_BUSY");
    cancel.fire();
    await expect(waiting).rejects.toBeInstanceOf(CallCancelled);
    await scene.close();
  });

  it("of another lineage are refused", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const { position } = await scene.create("a");
    const other = { lineage: "0".repeat(16), sequence: 0n };
    const failure = await failureOf(
      scene.engine.read("a", statement("SELECT 1"), other, scene.options()),
      "LINEAGE_CHANGED",
    );
    expect(failure.facts["lineage"]).toBe(position.lineage);
    await failureOf(scene.engine.begin("a", false, 0, other, scene.options()), "LINEAGE_CHANGED");
    await scene.close();
  });
});

describe("durability", () => {
  /** Flushes wait until they are let go, or made to fail. */
  function heldFlushes() {
    const held: PromiseWithResolvers<void>[] = [];
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async flush(descriptor) {
        const hold = Promise.withResolvers<void>();
        held.push(hold);
        await hold.promise;
        await nodeFileSystem.flush(descriptor);
      },
    };
    return { held, fileSystem };
  }

  it("LOCAL answers after the flush that began after its commit; COMMITTED does not wait", async () => {
    const { held, fileSystem } = heldFlushes();
    const scene = await openScene({ directoryPath: newFolder(), fileSystem });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "committed");
    expect(held).toHaveLength(0);
    const seen: string[] = [];
    const write = (name: string) => scene.run("a", "INSERT INTO t VALUES (1)", "local").then(() => seen.push(name));
    const first = write("first");
    await until(() => held.length === 1);
    const version = scene.engine.version("a");
    const second = write("second");
    await until(() => scene.engine.version("a") !== version);
    expect(seen).toEqual([]);
    held[0]?.resolve();
    await first;
    await until(() => held.length === 2);
    expect(seen).toEqual(["first"]);
    // Reads see what is committed, flushed or not.
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[2]]);
    held[1]?.resolve();
    await second;
    expect(scene.engine.stats().flushes).toBe(2);
    // Nothing was committed, and all that it has seen is flushed.
    await scene.run("a", "SELECT count(*) FROM t", "local");
    expect(held).toHaveLength(2);
    // Nothing was committed, but what it has seen is less durable than was asked.
    await scene.run("a", "INSERT INTO t VALUES (1)", "committed");
    const seenOnly = scene.run("a", "SELECT count(*) FROM t", "local");
    await until(() => held.length === 3);
    // Another one that sees the same waits as well, though a flush is under way.
    const another = scene.run("a", "SELECT count(*) FROM t", "local").then(() => seen.push("another"));
    held[2]?.resolve();
    await seenOnly;
    await until(() => held.length === 4);
    expect(seen).toEqual(["first", "second"]);
    held[3]?.resolve();
    await another;
    const closed = scene.close();
    await until(() => held.length === 5);
    held[4]?.resolve();
    await closed;
  });

  it("LOCAL of a repeated request is flushed too, though it commits nothing", async () => {
    const { held, fileSystem } = heldFlushes();
    const scene = await openScene({ directoryPath: newFolder(), fileSystem });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const record = { id: "ab".repeat(16), method: "Execute", hash: "h" };
    const write = (durability: "committed" | "local") => scene.run("a", "INSERT INTO t VALUES (1)", durability, record);
    const first = await write("committed");
    const repeat = write("local");
    await until(() => held.length === 1);
    held[0]?.resolve();
    expect((await repeat).body).toEqual(first.body);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[1]]);
    for (const hold of held) hold.resolve();
    const closed = scene.close();
    await until(() => held.length === 2);
    held[1]?.resolve();
    await closed;
  });

  it("REMOTE is refused before anything runs", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    await scene.create("a");
    const failure = await failureOf(scene.run("a", "CREATE TABLE t (x)", "remote"), "STAGE_NOT_CONFIGURED");
    expect(failure.facts).toEqual({ stage: "remote" });
    expect(await scene.rows("a", "SELECT count(*) FROM sqlite_schema WHERE name = 't'")).toEqual([[0]]);
    await scene.close();
  });

  it("a flush that fails stops the database for good, and only that one", async () => {
    const directoryPath = newFolder();
    const { held, fileSystem } = heldFlushes();
    let scene = await openScene({ directoryPath, fileSystem });
    await scene.create("a");
    await scene.create("b");
    const first = failureOf(scene.run("a", "CREATE TABLE t (x)", "local"), "DATABASE_FAULTED");
    await until(() => held.length === 1);
    const version = scene.engine.version("a");
    const second = failureOf(scene.run("a", "CREATE TABLE u (x)", "local"), "DATABASE_FAULTED");
    await until(() => scene.engine.version("a") !== version);
    held[0]?.reject(Object.assign(new Error("EIO"), { code: "EIO" }));
    expect((await first).facts["database"]).toBe("a");
    await second;
    await failureOf(scene.run("a", "SELECT 1"), "DATABASE_FAULTED");
    await failureOf(scene.rows("a", "SELECT 1"), "DATABASE_FAULTED");
    await failureOf(scene.engine.begin("a", true, 0, undefined, scene.options()), "DATABASE_FAULTED");
    expect(held).toHaveLength(1);
    expect((await scene.engine.getDatabase("a")).state).toBe("faulted");
    expect((await scene.list({ filter: "state = DATABASE_STATE_FAULTED" })).databases.map((each) => each.id)).toEqual([
      "a",
    ]);
    expect(scene.lines.filter((line) => line.level === "error").map((line) => line.facts["database"])).toEqual(["a"]);
    const other = scene.run("b", "CREATE TABLE t (x)", "local");
    await until(() => held.length === 2);
    held[1]?.resolve();
    await other;
    const closed = scene.close();
    await until(() => held.length === 3);
    held[2]?.resolve();
    await closed;
    scene = await openScene({ directoryPath });
    expect((await scene.engine.getDatabase("a")).state).toBe("ready");
    await scene.close();
  });

  it("a stopped database stays so when its handle is dropped", async () => {
    const { held, fileSystem } = heldFlushes();
    const scene = await openScene({ directoryPath: newFolder(), fileSystem, limits: { openDatabaseCountMax: 1 } });
    for (const id of ["a", "b", "c"]) await scene.create(id);
    const write = failureOf(scene.run("a", "CREATE TABLE t (x)", "local"), "DATABASE_FAULTED");
    await until(() => held.length === 1);
    held[0]?.reject(new Error("EIO"));
    await write;
    for (const id of ["b", "c", "b", "c"]) await scene.rows(id, "SELECT 1");
    expect(scene.engine.stats().openDatabases).toBeLessThanOrEqual(2);
    await failureOf(scene.run("a", "SELECT 1"), "DATABASE_FAULTED");
    await scene.close();
  });

  it("a log that cannot be read refuses the write before it runs", async () => {
    const directoryPath = newFolder();
    let scene = await openScene({ directoryPath });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.close();
    let broken = true;
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async list(path) {
        if (broken && path.endsWith("log")) throw Object.assign(new Error("EIO"), { code: "EIO" });
        return nodeFileSystem.list(path);
      },
    };
    scene = await openScene({ directoryPath, fileSystem });
    await failureOf(scene.run("a", "INSERT INTO t VALUES (1)"), "STAGE_UNAVAILABLE");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    broken = false;
    await scene.run("a", "INSERT INTO t VALUES (1)");
    await scene.close();
  });
});

describe("checkpoints", () => {
  it.each([
    ["this process", false],
    ["processes", true],
  ])(
    "bound the WAL under writes without pause, with executors in %s, and nothing is lost by them",
    async (_, processes) => {
      const directoryPath = newFolder();
      const limits = { checkpointFrames: 100, checkpointPauseFrames: 400, checkpointPauseMsMax: 500 };
      const scene = await openScene({ directoryPath, limits, processes });
      await scene.create("a");
      await scene.run("a", "CREATE TABLE t (x, y)");
      let walBytesMax = 0;
      const endAtMs = systemClock.now() + 10_000;
      let rows = 0;
      await Promise.all(
        Array.from({ length: 8 }, async () => {
          while (rows < 4000 && systemClock.now() < endAtMs) {
            rows++;
            await scene.run("a", "INSERT INTO t VALUES (1, randomblob(3000))");
            walBytesMax = Math.max(walBytesMax, statSync(walPath(directoryPath, "a")).size);
          }
        }),
      );
      expect(rows).toBeGreaterThan(300);
      // Every row takes two frames or more: without checkpoints it would be twice this and more.
      expect(walBytesMax).toBeLessThan(Math.max(1000, rows) * 4120);
      expect(scene.engine.stats().checkpoints).toBeGreaterThan(3);
      expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[rows]]);
      await scene.close();
    },
  );

  it("empty a large WAL only when the database is idle for a while", async () => {
    const directoryPath = newFolder();
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath, clock, limits: { checkpointFrames: 10 } });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    for (let write = 0; write < 30; write++) await scene.run("a", "INSERT INTO t VALUES (randomblob(5000))");
    const size = () => statSync(walPath(directoryPath, "a")).size;
    clock.advance(4000);
    await scene.run("a", "INSERT INTO t VALUES (1)");
    await until(() => scene.engine.stats().checkpoints > 0);
    expect(size()).toBeGreaterThan(0);
    clock.advance(5000);
    await until(() => scene.engine.stats().walBytes === 0);
    expect(size()).toBe(0);
    await scene.run("a", "INSERT INTO t VALUES (1)", "local");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[32]]);
    await scene.close();
  });

  it("end a query that keeps the WAL from starting over, with a clear error, and say so", async () => {
    const directoryPath = newFolder();
    const limits = { checkpointFrames: 10, checkpointPauseFrames: 20, readFramesMax: 60 };
    const scene = await openScene({ directoryPath, limits });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", `INSERT INTO t SELECT value FROM json_each('[${Array(1000).fill(1)}]')`);
    const { cursor } = await scene.engine.query("a", statement("SELECT x FROM t"), undefined, {
      ...scene.options(),
      chunkRowsMax: 1,
      chunkBytesMax: 65_536,
    });
    const transaction = await scene.engine.begin("a", false, 0, undefined, scene.options());
    await transaction.execute(statement("SELECT x FROM t"), scene.options());
    const isSaid = () => scene.lines.find((line) => line.message.startsWith("reads that kept"));
    for (let write = 0; write < 1000 && isSaid() === undefined; write++) {
      await scene.run("a", "INSERT INTO t VALUES (randomblob(9000))");
    }
    expect(isSaid()?.facts).toMatchObject({ database: "a", reads: 2 });
    const drain = async () => {
      while ((await cursor.next()) !== undefined);
    };
    const failure = await failureOf(drain(), "SNAPSHOT_TOO_OLD");
    expect(failure.facts).toMatchObject({ database: "a" });
    await failureOf(transaction.execute(statement("SELECT 1"), scene.options()), "SNAPSHOT_TOO_OLD");
    const size = () => statSync(walPath(directoryPath, "a")).size;
    for (let write = 0; write < 100; write++) await scene.run("a", "INSERT INTO t VALUES (randomblob(9000))");
    const before = size();
    for (let write = 0; write < 200; write++) await scene.run("a", "INSERT INTO t VALUES (randomblob(9000))");
    expect(size()).toBe(before);
    await scene.close();
  });

  it("cannot help while a long read goes on: then writes are refused before the WAL grows without end", async () => {
    const scene = await openScene({
      directoryPath: newFolder(),
      limits: { checkpointFrames: 10, checkpointPauseFrames: 20, walFramesMax: 60 },
    });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", `INSERT INTO t SELECT value FROM json_each('[${Array(1000).fill(1)}]')`);
    const { cursor } = await scene.engine.query("a", statement("SELECT x FROM t"), undefined, {
      ...scene.options(),
      chunkRowsMax: 1,
      chunkBytesMax: 65_536,
    });
    let refused: unknown;
    for (let write = 0; write < 1000 && refused === undefined; write++) {
      await scene.run("a", "INSERT INTO t VALUES (randomblob(9000))").catch((error: unknown) => {
        refused = error;
      });
    }
    expect(refused).toMatchObject({ reason: "DATABASE_BUSY", retryAfterMs: expect.any(Number) });
    await scene.rows("a", "SELECT 1");
    cursor.close();
    let wrote = false;
    await until(() => {
      scene.run("a", "INSERT INTO t VALUES (1)").then(
        () => (wrote = true),
        () => undefined,
      );
      return wrote;
    });
    await scene.close();
  });
});

describe("what executors report", () => {
  const failing = (failure: Failure) => () => Promise.reject(failure);

  it("a write of unknown outcome is covered by the position, one that surely failed is not", async () => {
    let change: Partial<ExecutorDatabase> = {};
    const scene = await openScene({
      directoryPath: newFolder(),
      between: (database) =>
        replaced(database, { execute: (...given) => (change.execute ?? database.execute.bind(database))(...given) }),
    });
    for (const id of ["a", "b"]) await scene.create(id);
    for (const [reason, sequence] of [
      ["EXECUTOR_LOST", 0n],
      ["OUTCOME_UNKNOWN", 1n],
    ] as const) {
      change = { execute: failing(new Failure(reason, { signal: "SIGKILL" })) };
      await failureOf(scene.run("a", "INSERT INTO t VALUES (1)"), reason);
      expect(scene.engine.position("a").sequence).toBe(sequence);
    }
    change = { execute: () => Promise.reject(new PartlyDone(new Failure("CONSTRAINT_VIOLATED"))) };
    expect(scene.engine.position("b").sequence).toBe(0n);
    await failureOf(scene.run("b", "INSERT OR FAIL INTO t VALUES (1)"), "CONSTRAINT_VIOLATED");
    expect(scene.engine.position("b").sequence).toBe(1n);
    await scene.close();
  });

  it("a flush that failed inside SQLite stops the database; other I/O errors do not", async () => {
    let change: Partial<ExecutorDatabase> = {};
    const scene = await openScene({
      directoryPath: newFolder(),
      between: (database) =>
        replaced(database, { execute: (...given) => (change.execute ?? database.execute.bind(database))(...given) }),
    });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const write = () => scene.run("a", "INSERT INTO t VALUES (1)");
    change = { execute: failing(new Failure("STAGE_UNAVAILABLE", { stage: "local", sqliteCode: "SQLITE_IOERR" })) };
    await failureOf(write(), "STAGE_UNAVAILABLE");
    change = {};
    await write();
    change = {
      execute: failing(new Failure("STAGE_UNAVAILABLE", { stage: "local", sqliteCode: "SQLITE_IOERR_FSYNC" })),
    };
    await failureOf(write(), "DATABASE_FAULTED");
    change = {};
    await failureOf(write(), "DATABASE_FAULTED");
    await scene.close();
  });

  it("a checkpoint that fails is tried again; one whose flush failed stops the database", async () => {
    let failure: Failure | undefined = new Failure("EXECUTOR_LOST", { signal: "SIGKILL" });
    let asked = 0;
    const scene = await openScene({
      directoryPath: newFolder(),
      limits: { checkpointFrames: 10 },
      between: (database) =>
        replaced(database, {
          checkpoint(mode) {
            asked++;
            return failure === undefined || mode === "truncate" ? database.checkpoint(mode) : Promise.reject(failure);
          },
        }),
    });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const write = () => scene.run("a", "INSERT INTO t VALUES (randomblob(9000))");
    while (asked < 3) await write();
    expect(scene.lines.map((line) => line.level)).toContain("warn");
    failure = undefined;
    while (scene.engine.stats().checkpoints === 0) await write();
    failure = new Failure("STAGE_UNAVAILABLE", { stage: "local", sqliteCode: "SQLITE_IOERR" });
    let stopped: unknown;
    for (let writes = 0; writes < 200 && stopped === undefined; writes++) {
      await write().catch((error: unknown) => {
        stopped = error;
      });
    }
    expect(stopped).toMatchObject({ reason: "DATABASE_FAULTED" });
    await scene.close();
  });

  it("an empty database that could not be made is made the next time", async () => {
    let failure: Failure | undefined = new Failure("EXECUTOR_LOST", { signal: "SIGKILL" });
    const directoryPath = newFolder();
    const scene = await openScene({
      directoryPath,
      between: (database) =>
        replaced(database, {
          create: (pageBytes) => (failure === undefined ? database.create(pageBytes) : Promise.reject(failure)),
        }),
    });
    await failureOf(scene.create("a"), "EXECUTOR_LOST");
    expect(readdirSync(join(directoryPath, "databases"))).toEqual([]);
    failure = undefined;
    await scene.create("a");
    await scene.close();
  });
});

describe("handles", () => {
  it("are bounded, and far more databases than that can be used in turn", async () => {
    const scene = await openScene({ directoryPath: newFolder(), limits: { openDatabaseCountMax: 4 } });
    const ids = Array.from({ length: 20 }, (_, number) => `d${number}`);
    for (const id of ids) {
      await scene.create(id);
      await scene.run(id, "CREATE TABLE t (x)");
    }
    for (let round = 0; round < 3; round++) {
      for (const id of ids) await scene.run(id, "INSERT INTO t VALUES (1)");
      expect(scene.engine.stats().openDatabases).toBeLessThanOrEqual(4);
    }
    for (const id of ids) expect(await scene.rows(id, "SELECT count(*) FROM t")).toEqual([[3]]);
    await Promise.all(ids.map((id) => scene.run(id, "INSERT INTO t VALUES (1)", "local")));
    await scene.close();
  });

  it("are kept while the catalog cannot be written: only they know the position", async () => {
    const scene = await openScene({ directoryPath: newFolder(), limits: { openDatabaseCountMax: 1 } });
    for (const id of ["a", "b"]) await scene.create(id);
    const { position } = await scene.run("a", "CREATE TABLE t (x)");
    const touch = vi.spyOn(Catalog.prototype, "touch").mockImplementation(() => {
      throw new Error("no room");
    });
    for (let round = 0; round < 3; round++) await scene.run("b", "SELECT 1");
    expect((await scene.run("a", "INSERT INTO t VALUES (1)")).position.sequence).toBe(position.sequence);
    touch.mockRestore();
    await scene.close();
  });

  it("in use are never dropped", async () => {
    const scene = await openScene({ directoryPath: newFolder(), limits: { openDatabaseCountMax: 2 } });
    for (const id of ["a", "b", "c", "d"]) await scene.create(id);
    const transaction = await scene.engine.begin("a", true, 0, undefined, scene.options());
    await transaction.execute(statement("CREATE TABLE t (x)"), scene.options());
    for (let round = 0; round < 5; round++) for (const id of ["b", "c", "d"]) await scene.rows(id, "SELECT 1");
    expect(transaction.isOpen).toBe(true);
    await transaction.commit("local", scene.options());
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    await scene.close();
  });

  it("of databases that are only known cost nothing: 10,000 are ready within a second", async () => {
    const directoryPath = newFolder();
    await (await openScene({ directoryPath })).close();
    const catalog = Catalog.open(directoryPath);
    const ids = [...Array.from({ length: 10_000 }, (_, number) => `d${number}`), "seed"];
    for (const id of ids) mkdirSync(join(directoryPath, "databases", id));
    catalog.inTransaction(() => {
      for (const id of ids) catalog.put(testRow(id));
    });
    catalog.close();
    // Processor time: other tests may run on the same machine.
    const start = process.cpuUsage();
    const scene = await openScene({ directoryPath, limits: { listScanCountMax: 4000 } });
    const { user, system } = process.cpuUsage(start);
    expect((user + system) / 1000).toBeLessThan(1000);
    expect(scene.engine.stats()).toMatchObject({ databases: 10_001, openDatabases: 0 });
    // A filter that nothing meets looks at so many and goes on with a token.
    let pageToken = "";
    let pages = 0;
    const found: string[] = [];
    do {
      const page = await scene.list({ filter: "id = seed", pageToken });
      found.push(...page.databases.map((each) => each.id));
      pageToken = page.nextPageToken;
      pages++;
    } while (pageToken !== "");
    expect([pages, found]).toEqual([3, ["seed"]]);
    await scene.close();
  });
});

describe("close", () => {
  it("refuses new calls, lets those that run end, and leaves everything in order", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const running = Array.from({ length: 20 }, () => scene.run("a", "INSERT INTO t VALUES (1)", "local"));
    const closed = scene.engine.close();
    await failureOf(scene.run("a", "SELECT 1"), "SHUTTING_DOWN");
    await failureOf(scene.create("b"), "SHUTTING_DOWN");
    await failureOf(scene.list(), "SHUTTING_DOWN");
    await failureOf(scene.engine.getDatabase("a"), "SHUTTING_DOWN");
    await Promise.all(running);
    await closed;
    await scene.engine.close();
    await scene.executors.close(0);
    expect(statSync(walPath(directoryPath, "a")).size).toBe(0);
    const again = await openScene({ directoryPath });
    expect(again.lines).toEqual([]);
    expect(await again.rows("a", "SELECT count(*) FROM t")).toEqual([[20]]);
    expect(again.engine.position("a").sequence).toBe(1n);
    await again.close();
  });

  it("ends although the catalog cannot be written, and what was written is there", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    await scene.create("a");
    const { position } = await scene.run("a", "CREATE TABLE t (x)");
    const touch = vi.spyOn(Catalog.prototype, "touch").mockImplementation(() => {
      throw new Error("no room");
    });
    await scene.close();
    touch.mockRestore();
    expect(scene.lines).toContainEqual(expect.objectContaining({ level: "error" }));
    const next = await openScene({ directoryPath });
    const after = (await next.run("a", "INSERT INTO t VALUES (1)")).position;
    expect(after.sequence).toBeGreaterThanOrEqual(position.sequence);
    await next.close();
  });

  it("ends a transaction that does not end by itself, without its changes", async () => {
    const directoryPath = newFolder();
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath, clock });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const transaction = await scene.engine.begin("a", true, 0, undefined, scene.options());
    await transaction.execute(statement("INSERT INTO t VALUES (1)"), scene.options());
    const expired: unknown[] = [];
    transaction.onExpired((failure) => expired.push(failure));
    const closed = scene.close();
    clock.advance(1000);
    await closed;
    expect(expired).toMatchObject([{ reason: "SHUTTING_DOWN" }]);
    await failureOf(transaction.execute(statement("SELECT 1"), scene.options()), "SHUTTING_DOWN");
    const again = await openScene({ directoryPath });
    expect(await again.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    await again.close();
  });

  it("sets no timer but the one", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    expect(scene.timerCount()).toBe(1);
    for (const id of ["a", "b", "c"]) {
      await scene.create(id);
      await scene.run(id, "CREATE TABLE t (x)", "local");
    }
    expect(scene.timerCount()).toBe(1);
    await scene.close();
    expect(scene.timerCount()).toBe(0);
  });
});
