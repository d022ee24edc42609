/** Syncing of real databases: SQLite files, executors in this process, a store in memory or in a folder. */
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, onTestFinished } from "vitest";
import { systemClock } from "../../../src/clock.ts";
import type { EngineOptions } from "../../../src/engine/options.ts";
import type { SyncLimits } from "../../../src/engine/sync/sync.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import { openDirectoryStore } from "../../../src/objects/directory.ts";
import { type FaultSource, FaultyStore } from "../../../src/objects/faulty.ts";
import type { ObjectStore } from "../../../src/objects/object-store.ts";
import { openRemoteStage } from "../../../src/stages/open-remote-stage.ts";
import { type MemoryBucket, MemoryObjectStore } from "../../support/memory-object-store.ts";
import { until } from "../../support/until.ts";
import { openScene, type Scene } from "../scene.ts";
import { failureOf } from "../support.ts";
import { testSyncLimits } from "./scene.ts";

/** A server's local folder, and the store that servers share. */
class Machine {
  readonly folder = newFolder();
  readonly bucket: MemoryBucket;
  readonly #store: ((folder: string) => Promise<ObjectStore>) | undefined;
  faults: FaultSource = () => [];
  readonly calls: string[] = [];

  constructor(bucket: MemoryBucket = new Map(), store?: (folder: string) => Promise<ObjectStore>) {
    this.bucket = bucket;
    this.#store = store;
  }

  get puts(): string[] {
    return this.calls.filter((call) => call.startsWith("put "));
  }

  async start(limits: Partial<SyncLimits> = {}, { isAutomatic = true, isCarrying = true } = {}): Promise<Scene> {
    const store = new FaultyStore({
      store: (await this.#store?.(this.folder)) ?? new MemoryObjectStore(systemClock, this.bucket),
      clock: systemClock,
      faults: (operation, key) => {
        this.calls.push(`${operation} ${key}`);
        return this.faults(operation, key);
      },
    });
    const remote = await openRemoteStage({
      store,
      layout: "bucket",
      displayName: "remote",
      fileSystem: nodeFileSystem,
      spoolDirectoryPath: join(this.folder, "spool"),
      clock: systemClock,
      random: randomBytes,
    });
    const stages: Pick<EngineOptions, "remote" | "sync"> = {
      remote,
      sync: isCarrying
        ? {
            isAutomatic,
            closeGraceMs: 5_000,
            limits: { ...testSyncLimits, intervalMs: 50, backOff: { startMs: 10, maxMs: 50 }, ...limits },
          }
        : undefined,
    };
    const scene = await openScene({ directoryPath: join(this.folder, "local"), stages });
    scenes.push(scene);
    return scene;
  }

  /** The local disk is lost. */
  loseDisk(): void {
    rmSync(join(this.folder, "local"), { recursive: true, force: true });
  }
}

const scenes: Scene[] = [];

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "sync-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function durable(scene: Scene, id: string): Promise<bigint> {
  return (await scene.engine.getDatabase(id)).durablePosition?.sequence ?? 0n;
}

afterEach(async () => {
  for (const scene of scenes.splice(0)) await scene.close();
});

describe("a database", () => {
  it("is uploaded by itself; the position in its answers becomes durable", async () => {
    const scene = await new Machine().start();
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const { position } = await scene.run("a", "INSERT INTO t VALUES (1)");
    await until("the write is durable", async () => (await durable(scene, "a")) >= position.sequence);
    const read = await scene.run("a", "INSERT INTO t VALUES (2)");
    expect(read.durablePosition?.sequence).toBeGreaterThanOrEqual(position.sequence);
    await until("nothing is left", () => scene.engine.stats().sync.unsyncedDatabases === 0);
    expect(scene.engine.stats().sync.unsyncedBytes).toBe(0);
  });

  it("answers REMOTE writes when the store has them, and many writes share an upload", async () => {
    const machine = new Machine();
    const scene = await machine.start({ intervalMs: 60_000 });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "remote");
    machine.calls.length = 0;
    machine.faults = (operation) => (operation === "put" ? [{ kind: "delay", ms: 20 }] : []);
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, index) => scene.run("a", `INSERT INTO t VALUES (${index})`, "remote")),
    );
    for (const { position, durablePosition } of answers) {
      expect(durablePosition?.sequence).toBeGreaterThanOrEqual(position.sequence);
    }
    expect(machine.puts.length).toBeLessThan(10);
  });

  it("of an empty disk and a full bucket comes back with what was acknowledged REMOTE", async () => {
    const machine = new Machine();
    const scene = await machine.start({ intervalMs: 60_000 });
    await scene.create("a", { labels: { team: "red" } });
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", "INSERT INTO t VALUES (1), (2), (3)", "remote");
    const before = await scene.engine.getDatabase("a");
    machine.faults = () => [{ kind: "fail_before" }];
    await scene.run("a", "INSERT INTO t VALUES (4)");
    await scene.close();
    machine.faults = () => [];
    machine.loseDisk();
    const next = await machine.start();
    expect(await next.rows("a", "SELECT x FROM t ORDER BY x")).toEqual([[1], [2], [3]]);
    const after = await next.engine.getDatabase("a");
    expect(after).toMatchObject({ etag: before.etag, labels: { team: "red" } });
    expect(after.position.lineage).toBe(before.position.lineage);
    await next.run("a", "INSERT INTO t VALUES (5)", "remote");
    expect(await next.rows("a", "SELECT count(*) FROM t")).toEqual([[4]]);
  });

  it("that was only created comes back too, and ids that are unknown stay unknown", async () => {
    const machine = new Machine();
    const scene = await machine.start();
    await scene.create("a");
    await until("it is uploaded", async () => (await durable(scene, "a")) > 0n).catch(() =>
      console.log(scene.lines[0]?.facts["error"]),
    );
    await scene.close();
    machine.loseDisk();
    const next = await machine.start();
    await failureOf(next.rows("nobody", "SELECT 1"), "DATABASE_NOT_FOUND");
    await failureOf(next.create("a"), "DATABASE_EXISTS");
    await next.run("a", "CREATE TABLE t (x)", "remote");
  });

  it("is the same in a folder that serves as store", async () => {
    const bucketFolder = newFolder();
    const machine = new Machine(new Map(), () =>
      openDirectoryStore({ path: bucketFolder, clock: systemClock, random: randomBytes }),
    );
    const scene = await machine.start();
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", "INSERT INTO t VALUES (7)", "remote");
    await scene.close();
    machine.loseDisk();
    const next = await machine.start();
    expect(await next.rows("a", "SELECT x FROM t")).toEqual([[7]]);
  });
});

describe("the end of a server", () => {
  it("uploads what is left; the next start has nothing to do and asks for nothing", async () => {
    const machine = new Machine();
    const scene = await machine.start({ intervalMs: 60_000 });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.close();
    expect(machine.puts).toHaveLength(2);
    const next = await machine.start();
    await until("the bucket is looked through", () => machine.calls.some((call) => call.startsWith("list")));
    machine.calls.length = 0;
    expect(await durable(next, "a")).toBeGreaterThan(0n);
    await next.rows("a", "SELECT * FROM t");
    expect(machine.puts).toEqual([]);
  });

  it("leaves to the next start what the store did not take, which is carried without a call", async () => {
    const machine = new Machine();
    const scene = await machine.start({ intervalMs: 60_000 });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "remote");
    machine.faults = (operation) => (operation === "put" ? [{ kind: "fail_before" }] : []);
    const { position } = await scene.run("a", "INSERT INTO t VALUES (1)");
    await scene.close();
    machine.faults = () => [];
    const next = await machine.start();
    await until("it is carried", async () => (await durable(next, "a")) >= position.sequence);
  });
});

describe("where nothing is carried", () => {
  it("REMOTE is refused before anything runs, and nothing is uploaded", async () => {
    const machine = new Machine();
    const scene = await machine.start({}, { isCarrying: false });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await failureOf(scene.run("a", "INSERT INTO t VALUES (1)", "remote"), "STAGE_NOT_CONFIGURED");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    expect(await durable(scene, "a")).toBe(0n);
    expect(machine.puts).toEqual([]);
  });
});

describe("facts", () => {
  it("that change are in the bucket soon", async () => {
    const machine = new Machine();
    const scene = await machine.start();
    await scene.create("a");
    await until("it is published", () => machine.bucket.has("a/database.json"));
    await scene.engine.updateDatabase({ id: "a", etag: undefined, labels: { team: "blue" }, foreignKeys: undefined });
    await until("the labels are there", () =>
      Buffer.from(machine.bucket.get("a/database.json")?.bytes ?? [])
        .toString()
        .includes("blue"),
    );
  });
});

describe("deleting", () => {
  it("empties the bucket, also when the store was away, over a restart; the id is free at once", async () => {
    const machine = new Machine();
    const scene = await machine.start();
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "remote");
    machine.faults = () => [{ kind: "fail_before" }];
    await scene.engine.deleteDatabase("a", undefined, false);
    await failureOf(scene.rows("a", "SELECT 1"), "DATABASE_NOT_FOUND");
    await scene.close();
    expect(machine.bucket.size).toBeGreaterThan(0);
    const next = await machine.start();
    await failureOf(next.rows("a", "SELECT 1"), "DATABASE_NOT_FOUND");
    machine.faults = () => [];
    await until("the bucket is empty", () => machine.bucket.size === 0);
    await next.create("a");
    await next.run("a", "CREATE TABLE u (x)", "remote");
    expect(await next.rows("a", "SELECT count(*) FROM sqlite_schema")).toEqual([[1]]);
  });
});

describe("another server", () => {
  it("that writes a database fences it here: writes are refused, reads go on, over a restart too", async () => {
    const machine = new Machine();
    const scene = await machine.start({ intervalMs: 60_000 });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "remote");
    const other = await new Machine(machine.bucket).start();
    await other.run("a", "INSERT INTO t VALUES ('theirs')", "remote");
    await failureOf(scene.run("a", "INSERT INTO t VALUES ('ours')", "remote"), "DATABASE_FENCED");
    await failureOf(scene.run("a", "INSERT INTO t VALUES ('again')"), "DATABASE_FENCED");
    expect((await scene.engine.getDatabase("a")).state).toBe("read_only");
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([["ours"]]);
    await scene.close();
    const next = await machine.start();
    await failureOf(next.run("a", "INSERT INTO t VALUES ('later')"), "DATABASE_FENCED");
    expect((await next.engine.getDatabase("a")).state).toBe("read_only");
    // Deleting it here takes nothing from the other one.
    await next.engine.deleteDatabase("a", undefined, false);
    await other.run("a", "INSERT INTO t VALUES ('theirs too')", "remote");
    expect(await other.rows("a", "SELECT count(*) FROM t")).toEqual([[2]]);
  });
});

describe("a large database", () => {
  it("is carried whole, and what follows is carried as what has changed", async () => {
    const machine = new Machine();
    const scene = await machine.start();
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run(
      "a",
      "INSERT INTO t SELECT randomblob(3000) FROM generate_series(1, 1)".replace(
        "generate_series(1, 1)",
        "(WITH RECURSIVE c(n) AS (VALUES(1) UNION ALL SELECT n+1 FROM c WHERE n < 2000) SELECT n FROM c)",
      ),
      "remote",
    );
    const large = [...machine.bucket.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
    expect(large).toBeGreaterThan(6_000_000);
    await scene.run("a", "UPDATE t SET x = 1 WHERE rowid = 1", "remote");
    const grown = [...machine.bucket.values()].reduce((sum, { bytes }) => sum + bytes.length, 0) - large;
    expect(grown).toBeLessThan(100_000);
    await scene.close();
    machine.loseDisk();
    const next = await machine.start();
    expect(await next.rows("a", "SELECT count(*), sum(length(x)) FROM t")).toEqual([[2000, 1999 * 3000 + 1]]);
  });
});
