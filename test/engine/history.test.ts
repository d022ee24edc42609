import { randomBytes } from "node:crypto";
import { join } from "node:path";
import Database from "better-sqlite3";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { type Clock, systemClock } from "../../src/clock.ts";
import { Catalog, type CatalogRow } from "../../src/engine/catalog.ts";
import type { HistoryTarget, OperationInfo } from "../../src/engine/engine.ts";
import { writeFirstBatch } from "../../src/engine/first-batch.ts";
import { Folder } from "../../src/engine/folder.ts";
import { History, type HistoryHost, type NewHistory } from "../../src/engine/history.ts";
import { Operations } from "../../src/engine/operations.ts";
import { type FailPoint, failPoints } from "../../src/fail-points.ts";
import { Failure } from "../../src/failure/failure.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import { encodeLtx } from "../../src/ltx/encoder.ts";
import { type Fault, FaultyStore } from "../../src/objects/faulty.ts";
import { openRemoteStage } from "../../src/stages/open-remote-stage.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { type MemoryBucket, MemoryObjectStore } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testLimits } from "./fixtures.ts";
import { failureOf, testRow } from "./support.ts";

const newFolder = temporaryFolders();
const pageSize = 1024;
const hourMs = 3_600_000;
const wait = { waitMs: 60_000, cancel: undefined };

/** Pauses before something is tried again pass ten times as fast. */
const fastClock: Clock = {
  now: () => systemClock.now() * 10,
  wallMs: () => systemClock.wallMs(),
  after: (ms, run) => systemClock.after(ms / 10, run),
  every: (ms, run) => systemClock.every(ms / 10, run),
};

/**
 * History on a real remote stage and a real registry; of the engine there is what a database without a head needs. Each
 * batch of a database `d` sets the one row of its table to the number of the batch.
 */
class Bench {
  readonly folder = newFolder();
  readonly bucket: MemoryBucket = new Map();
  readonly rows = new Map<string, CatalogRow>();
  readonly switched: NewHistory[] = [];
  switchFailures = 0;
  readonly retired: string[] = [];
  readonly lines: string[] = [];
  readonly reached: FailPoint[] = [];
  faults: (operation: string, key: string) => readonly Fault[] = () => [];
  onReach: (point: FailPoint) => void = () => undefined;
  remote!: RemoteStage;
  operations!: Operations;
  history!: History;
  #catalog: Catalog | undefined;

  async open({ isCarrying = true } = {}): Promise<void> {
    this.#catalog?.close();
    this.#catalog = Catalog.open(this.folder);
    const store = new FaultyStore({
      store: new MemoryObjectStore(fastClock, this.bucket),
      clock: fastClock,
      faults: (operation, key) => this.faults(operation, key),
    });
    this.remote = await openRemoteStage({
      store,
      layout: "bucket",
      displayName: "Remote",
      fileSystem: nodeFileSystem,
      spoolDirectoryPath: join(this.folder, "spool"),
      clock: fastClock,
      random: (byteCount) => randomBytes(byteCount),
    });
    this.operations = new Operations({
      store: this.#catalog.operations,
      clock: fastClock,
      limits: testLimits,
      log: (_, message) => this.lines.push(message),
      random: (byteCount) => randomBytes(byteCount),
      pageSecret: Buffer.alloc(32),
    });
    const folder = new Folder(this.folder, nodeFileSystem, () => randomBytes(8).toString("hex"));
    await folder.open(() => undefined);
    this.history = new History(this.#host(folder, isCarrying), {
      retentionMs: 24 * hourMs,
      drainMsMax: 100,
      concurrencyMax: 1,
    });
  }

  close(): void {
    this.#catalog?.close();
    this.#catalog = undefined;
  }

  #host(folder: Folder, isCarrying: boolean): HistoryHost {
    return {
      clock: fastClock,
      log: (_, message) => this.lines.push(message),
      failPoints: {
        reach: (point) => {
          this.reached.push(point);
          this.onReach(point);
        },
      },
      fileSystem: nodeFileSystem,
      folder,
      operations: this.operations,
      remote: isCarrying ? this.remote : undefined,
      sync: {
        uploadAll: () => Promise.reject(new Error("there is no head")),
        forget: async () => undefined,
        retired: (id) => this.retired.push(id),
      },
      newLineage: () => randomBytes(8).toString("hex"),
      find: async (id) => {
        const row = this.rows.get(id);
        if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
        return row;
      },
      get: async (id) => this.rows.get(id),
      etagOf: ({ lineage, etagVersion }) => `${lineage}-${etagVersion}`,
      exclusively: (_, work) => work(),
      open: async () => undefined,
      setSuccessor: async (id, successor) => this.change(id, { successor }),
      replaceHistory: async (id, next) => {
        if (this.switchFailures > 0) {
          this.switchFailures--;
          throw new Failure("STAGE_FULL", { stage: "local" });
        }
        this.switched.push(next);
        this.change(id, { ...next, successor: undefined, sequence: 1, durableSequence: 1 });
      },
      discard: async (id, lineage) => {
        const faults = this.faults;
        this.faults = () => [];
        await this.remote.replica(this.remote.prefixOf(id, lineage)).remove(this.call());
        this.faults = faults;
      },
      warm: async () => undefined,
      adopt: async ({ manifest, txid }) => {
        if (this.rows.has(manifest.id)) return false;
        const { id, lineage, prefix, labels, createRecord } = manifest;
        const sequence = Number(txid);
        const facts = { lineage, remotePrefix: prefix, labels, createRecord, sequence, durableSequence: sequence };
        this.rows.set(id, testRow(id, { head: "none", stage: "remote", ...facts }));
        return true;
      },
    };
  }

  change(id: string, change: Partial<CatalogRow>): void {
    this.rows.set(id, { ...this.row(id), ...change });
  }

  row(id: string): CatalogRow {
    const row = this.rows.get(id);
    if (row === undefined) throw new Error(`no row of ${id}`);
    return row;
  }

  /** A database that only the remote stage has: batch n was closed n minutes after `startMs`. */
  async make(id: string, batchCount: number, startMs: number): Promise<CatalogRow> {
    const lineage = randomBytes(8).toString("hex");
    const prefix = this.remote.prefixOf(id, lineage);
    const replica = this.remote.replica(prefix);
    const path = join(this.folder, `${id}.sqlite`);
    const database = new Database(path);
    database.pragma(`page_size = ${pageSize}`);
    database.exec("CREATE TABLE t (a); INSERT INTO t VALUES (0)");
    for (let txid = 1; txid <= batchCount; txid++) {
      database.prepare("UPDATE t SET a = ?").run(txid);
      await replica.append(await this.#batch(path, BigInt(txid), startMs + txid * 60_000), this.call());
    }
    database.close();
    await this.remote.manifests.create(
      {
        id,
        lineage,
        prefix,
        createTimeMs: startMs,
        labels: { of: id },
        foreignKeys: true,
        etagVersion: 1,
        pageBytes: pageSize,
        createRecord: undefined,
        retired: [],
      },
      this.call(),
    );
    const sequence = batchCount;
    const row = testRow(id, {
      head: "none",
      stage: "remote",
      lineage,
      remotePrefix: prefix,
      labels: { of: id },
      sequence,
      durableSequence: sequence,
    });
    this.rows.set(id, row);
    return row;
  }

  async #batch(path: string, txid: bigint, timestampMs: number) {
    const bytes = (await nodeFileSystem.read(path)) ?? Buffer.alloc(0);
    const commit = bytes.length / pageSize;
    const pages = Array.from({ length: commit }, (_, index) => ({
      number: index + 1,
      bytes: bytes.subarray(index * pageSize, (index + 1) * pageSize),
    }));
    const facts = { minTxid: txid, maxTxid: txid, pageSize, commit, timestampMs, walOffset: 32 };
    const chunks: Buffer[] = [];
    for await (const chunk of encodeLtx(facts, pages)) chunks.push(chunk);
    const batchPath = join(this.folder, `${txid}.ltx`);
    await nodeFileSystem.writeFlushed(batchPath, Buffer.concat(chunks));
    return { txid, path: batchPath, byteCount: Buffer.concat(chunks).length, pageSize, commit, timestampMs };
  }

  call() {
    return { deadlineAtMs: fastClock.now() + 100_000 };
  }

  /** What the row of the table says in the newest state that the bucket has of a database. */
  async value(id: string): Promise<unknown> {
    const stored = await this.remote.manifests.read(id, this.call());
    if (stored === undefined) return undefined;
    const path = join(this.folder, "looked-at.sqlite");
    await this.remote.replica(stored.manifest.prefix).restore({ path, flush: false }, this.call());
    const database = new Database(path);
    try {
      return database.prepare("SELECT a FROM t").pluck().get();
    } finally {
      database.close();
    }
  }

  /** Folders of a database in the bucket. */
  prefixes(id: string): string[] {
    const found = new Set<string>();
    for (const key of this.bucket.keys()) {
      const [database, lineage, ...rest] = key.split("/");
      if (database === id && rest.length > 0) found.add(`${database}/${lineage}`);
    }
    return [...found].sort();
  }

  restore(id: string, target: HistoryTarget, change: Partial<Parameters<History["restore"]>[0]> = {}) {
    return this.history.restore({ id, target, etag: undefined, request: undefined, wait, ...change });
  }

  fork(id: string, newId: string, source?: HistoryTarget, change: Partial<Parameters<History["fork"]>[0]> = {}) {
    return this.history.fork({ id, newId, source, request: undefined, wait, ...change });
  }
}

let bench: Bench;
let startMs: number;
beforeEach(async () => {
  bench = new Bench();
  onTestFinished(() => bench.close());
  await bench.open();
  startMs = systemClock.wallMs() - hourMs;
});

const at = ({ lineage }: CatalogRow, sequence: number): HistoryTarget => ({
  position: { lineage, sequence: BigInt(sequence) },
});

function expectDone(info: OperationInfo): void {
  expect({ done: info.done, error: info.error }).toEqual({ done: true, error: undefined });
}

describe("restore", () => {
  it("takes a database back to a position, under a new lineage and a new prefix", async () => {
    const before = await bench.make("d", 5, startMs);
    const info = await bench.restore("d", at(before, 3));
    expectDone(info);
    expect(info).toMatchObject({ database: "d", kind: "restore" });
    expect(info.bytesDone).toBeGreaterThan(0);
    expect(await bench.value("d")).toBe(3);
    const after = bench.row("d");
    expect(after.lineage).not.toBe(before.lineage);
    expect(after).toMatchObject({ sequence: 1, durableSequence: 1, successor: undefined });
    const stored = await bench.remote.manifests.read("d", bench.call());
    expect(stored?.manifest).toMatchObject({
      lineage: after.lineage,
      prefix: after.remotePrefix,
      labels: { of: "d" },
      retired: [{ lineage: before.lineage, prefix: before.remotePrefix }],
    });
    const [retired] = stored?.manifest.retired ?? [];
    // Two looks at the clock: the first may be the earlier one.
    expect((retired?.keepUntilMs ?? 0) - (retired?.retiredAtMs ?? 0)).toBeGreaterThanOrEqual(24 * hourMs - 1);
    expect(bench.retired).toEqual(["d"]);
  });

  it("to a time takes the last batch that was closed by then", async () => {
    await bench.make("d", 5, startMs);
    expectDone(await bench.restore("d", { timeMs: startMs + 2 * 60_000 + 59_999 }));
    expect(await bench.value("d")).toBe(2);
  });

  it("can be undone, by the old position and by the time before it", async () => {
    const before = await bench.make("d", 5, startMs);
    expectDone(await bench.restore("d", at(before, 1)));
    expect(await bench.value("d")).toBe(1);
    expectDone(await bench.restore("d", at(before, 5)));
    expect(await bench.value("d")).toBe(5);
    expectDone(await bench.restore("d", { timeMs: startMs + 4 * 60_000 }));
    expect(await bench.value("d")).toBe(4);
    const stored = await bench.remote.manifests.read("d", bench.call());
    expect(stored?.manifest.retired).toHaveLength(3);
    expect(bench.prefixes("d")).toHaveLength(4);
  });

  it("refuses points that there are none of, before anything is begun", async () => {
    const row = await bench.make("d", 5, startMs);
    const late = await failureOf(bench.restore("d", at(row, 6)), "HISTORY_OUT_OF_RANGE");
    expect(late.facts).toMatchObject({ problem: "the database is at position 5", latestSequence: "5" });
    const early = await failureOf(bench.restore("d", { timeMs: startMs }), "HISTORY_OUT_OF_RANGE");
    expect(early.facts).toMatchObject({
      earliestSequence: "1",
      earliestTime: new Date(startMs + 60_000).toISOString(),
    });
    const timeMs = systemClock.wallMs() + hourMs;
    const future = await failureOf(bench.restore("d", { timeMs }), "HISTORY_OUT_OF_RANGE");
    expect(future.facts).toMatchObject({ problem: "it lies in the future" });
    const foreign = bench.restore("d", { position: { lineage: "0".repeat(16), sequence: 1n } });
    expect((await failureOf(foreign, "LINEAGE_CHANGED")).facts).toEqual({ lineage: row.lineage });
    await failureOf(bench.restore("none", at(row, 1)), "DATABASE_NOT_FOUND");
    expect(bench.operations.list({ filter: "", pageSize: 0, pageToken: "" }).operations).toEqual([]);
    expect(bench.row("d")).toBe(row);
  });

  it("of a position that was merged with its neighbours names the nearest", async () => {
    const row = await bench.make("d", 6, startMs);
    const replica = bench.remote.replica(row.remotePrefix);
    await replica.load(bench.call());
    await replica.compact(1, bench.call());
    // Some time after the compaction its inputs go.
    expect(await replica.expire(systemClock.wallMs() + hourMs, bench.call())).toBe(5);
    const { facts } = await failureOf(bench.restore("d", at(row, 3)), "HISTORY_OUT_OF_RANGE");
    expect(facts).toMatchObject({ problem: "the history does not reach back that far", nearestAfter: "6" });
    expectDone(await bench.restore("d", at(row, 6)));
    expect(await bench.value("d")).toBe(6);
  });

  it("is guarded by the etag", async () => {
    const row = await bench.make("d", 2, startMs);
    await failureOf(bench.restore("d", at(row, 1), { etag: "other" }), "ETAG_MISMATCH");
    expectDone(await bench.restore("d", at(row, 1), { etag: `${row.lineage}-1` }));
    await failureOf(bench.restore("d", at(row, 1), { etag: `${row.lineage}-1` }), "ETAG_MISMATCH");
  });

  it("is done once for a request id, and joined by the same wish while it runs", async () => {
    const row = await bench.make("d", 3, startMs);
    const request = { id: "1".repeat(32), method: "RestoreDatabase", hash: "h" };
    const running = [bench.restore("d", at(row, 1), { request }), bench.restore("d", at(row, 1))];
    const [first, joined] = await Promise.all(running);
    expect(joined?.id).toBe(first?.id);
    expect((await bench.restore("d", at(row, 1), { request })).id).toBe(first?.id);
    expect(bench.switched).toHaveLength(1);
    const other = { ...request, hash: "other" };
    await failureOf(bench.restore("d", at(row, 1), { request: other }), "FIELD_INVALID");
  });

  it("keeps other operations off the database", async () => {
    const row = await bench.make("d", 3, startMs);
    const first = await bench.restore("d", at(row, 1), { wait: { waitMs: 0, cancel: undefined } });
    await failureOf(bench.restore("d", at(row, 2)), "OPERATION_CONFLICT");
    expectDone(await bench.operations.wait(first.id, wait));
  });

  it("without a remote stage says what to set", async () => {
    const row = await bench.make("d", 1, startMs);
    await bench.open({ isCarrying: false });
    const failure = await failureOf(bench.restore("d", at(row, 1)), "HISTORY_NOT_KEPT");
    expect(failure.message).toContain("SETTINGS_PERSISTENCE_STAGE");
    expect(failure.entry.code).toBe("FAILED_PRECONDITION");
  });

  it("that the store keeps from its end leaves the database, and nothing in the bucket", async () => {
    const row = await bench.make("d", 3, startMs);
    bench.faults = (operation, key) => (operation === "put" && key.includes("/0000/") ? [{ kind: "fail_before" }] : []);
    const info = await bench.restore("d", at(row, 1));
    expect(info.error?.reason).toBe("STAGE_UNAVAILABLE");
    expect(bench.row("d")).toMatchObject({ lineage: row.lineage, successor: undefined });
    expect(bench.prefixes("d")).toEqual([row.remotePrefix]);
    expect(await bench.value("d")).toBe(3);
    await failureOf(
      (async () => {
        bench.faults = (operation) => (operation === "get" ? [{ kind: "fail_before" }] : []);
        await bench.restore("d", at(row, 1));
      })(),
      "STAGE_UNAVAILABLE",
    );
  });

  it.each(["fail_before", "fail_after", "throttle"] as const)(
    "ends well when the one write that counts meets %s",
    async (kind) => {
      const row = await bench.make("d", 3, startMs);
      let left = 2;
      bench.faults = (operation, key) =>
        operation === "put" && key.endsWith("database.json") && left-- > 0 ? [{ kind }] : [];
      expectDone(await bench.restore("d", at(row, 2)));
      expect(left).toBeLessThan(2);
      expect(await bench.value("d")).toBe(2);
      const stored = await bench.remote.manifests.read("d", bench.call());
      expect(stored?.manifest.retired).toHaveLength(1);
    },
  );

  it("of a damaged history is DATA_CORRUPT, and changes nothing", async () => {
    const row = await bench.make("d", 2, startMs);
    bench.faults = (operation, key) =>
      operation === "get" && key.includes("/0000/") ? [{ kind: "flip_bit", at: 0.5 }] : [];
    const info = await bench.restore("d", at(row, 1));
    expect(info.error?.reason).toBe("DATA_CORRUPT");
    bench.faults = () => [];
    expect(bench.row("d")).toMatchObject({ lineage: row.lineage, successor: undefined });
  });

  it("that another server has made impossible is fenced", async () => {
    const row = await bench.make("d", 2, startMs);
    bench.onReach = (point) => {
      if (point !== "restore.stored") return;
      const key = [...bench.bucket.keys()].find((each) => each === "d/database.json") ?? "";
      const stored = bench.bucket.get(key);
      const text = Buffer.from(stored?.bytes ?? []).toString();
      const bytes = Buffer.from(text.replaceAll(row.lineage, "f".repeat(16)));
      if (stored !== undefined) bench.bucket.set(key, { info: { ...stored.info, etag: "other" }, bytes });
    };
    const info = await bench.restore("d", at(row, 1));
    expect(info.error?.reason).toBe("DATABASE_FENCED");
    expect(bench.row("d")).toMatchObject({ lineage: row.lineage, successor: undefined });
  });

  it("can be cancelled before its moment, and not after it", async () => {
    const row = await bench.make("d", 2, startMs);
    const id = () => bench.operations.lockedBy("d") ?? "";
    bench.onReach = (point) => {
      if (point === "restore.stored") bench.operations.cancel(id());
    };
    const cancelled = await bench.restore("d", at(row, 1));
    expect(cancelled.error?.reason).toBe("OPERATION_CANCELLED");
    expect(bench.row("d")).toMatchObject({ lineage: row.lineage, successor: undefined });
    expect(bench.prefixes("d")).toEqual([row.remotePrefix]);
    bench.onReach = (point) => {
      if (point === "restore.published") bench.operations.cancel(id());
    };
    expectDone(await bench.restore("d", at(row, 1)));
  });
});

describe("copies", () => {
  it("run one after another where one is allowed, and a cancelled one does not take the turn of the next", async () => {
    const row = await bench.make("d", 2, startMs);
    const other = await bench.make("e", 2, startMs);
    const gate = Promise.withResolvers<void>();
    const soon = { waitMs: 0, cancel: undefined };
    let isFirst = true;
    bench.faults = (operation, key) => {
      if (!isFirst || operation !== "put" || !key.startsWith("d/")) return [];
      isFirst = false;
      gate.resolve();
      return [{ kind: "delay", ms: 2_000 }];
    };
    const first = await bench.restore("d", at(row, 1), { wait: soon });
    await gate.promise;
    const second = await bench.restore("e", at(other, 1), { wait: soon });
    const third = await bench.fork("e", "f", at(other, 2), { wait: soon });
    // One that waits for its turn has changed nothing yet.
    expect(bench.row("e").successor).toBeUndefined();
    bench.operations.cancel(second.id);
    expectDone(await bench.operations.wait(first.id, wait));
    expect((await bench.operations.wait(second.id, wait)).error?.reason).toBe("OPERATION_CANCELLED");
    expectDone(await bench.operations.wait(third.id, wait));
    expect([await bench.value("d"), await bench.value("e"), await bench.value("f")]).toEqual([1, 2, 2]);
  });

  it("that are published are switched to, however often that fails", async () => {
    const row = await bench.make("d", 2, startMs);
    bench.switchFailures = 2;
    expectDone(await bench.restore("d", at(row, 1)));
    expect(bench.switchFailures).toBe(0);
    expect(bench.row("d")).toMatchObject({ sequence: 1, successor: undefined });
  });
});

describe("fork", () => {
  it("makes a database of a position, a time or the newest state, and leaves the source alone", async () => {
    const row = await bench.make("d", 5, startMs);
    const info = await bench.fork("d", "position", at(row, 2));
    expectDone(info);
    expect(info).toMatchObject({ database: "d", kind: "fork" });
    expectDone(await bench.fork("d", "time", { timeMs: startMs + 3 * 60_000 }));
    expectDone(await bench.fork("d", "newest"));
    expect(await bench.value("position")).toBe(2);
    expect(await bench.value("time")).toBe(3);
    expect(await bench.value("newest")).toBe(5);
    expect(bench.row("d")).toBe(row);
    expect(await bench.value("d")).toBe(5);
    const fork = bench.row("position");
    expect(fork).toMatchObject({ labels: { of: "d" }, stage: "remote", head: "none" });
    expect(fork.lineage).not.toBe(row.lineage);
    // It stands alone.
    for (const key of [...bench.bucket.keys()]) if (key.startsWith("d/")) bench.bucket.delete(key);
    expect(await bench.value("position")).toBe(2);
  });

  it("may be of a history that a restore has replaced", async () => {
    const row = await bench.make("d", 5, startMs);
    expectDone(await bench.restore("d", at(row, 1)));
    expectDone(await bench.fork("d", "f", at(row, 5)));
    expect([await bench.value("d"), await bench.value("f")]).toEqual([1, 5]);
  });

  it("refuses an id that is taken, here or in the bucket", async () => {
    const row = await bench.make("d", 1, startMs);
    await bench.make("other", 1, startMs);
    expect((await failureOf(bench.fork("d", "other"), "DATABASE_EXISTS")).facts).toEqual({ database: "other" });
    bench.rows.delete("other");
    const info = await bench.fork("d", "other");
    expect(info.error).toMatchObject({ reason: "DATABASE_EXISTS", facts: { database: "other" } });
    expect(bench.prefixes("other")).toHaveLength(1);
    expect(bench.row("d")).toBe(row);
  });

  it("is done once for a request id, also when its operation is forgotten", async () => {
    await bench.make("d", 1, startMs);
    const request = { id: "2".repeat(32), method: "ForkDatabase", hash: "h" };
    const first = await bench.fork("d", "f", undefined, { request });
    expectDone(first);
    expect((await bench.fork("d", "f", undefined, { request })).id).toBe(first.id);
    const other = { ...request, hash: "other" };
    await failureOf(bench.fork("d", "g", undefined, { request: other }), "FIELD_INVALID");
    bench.close();
    const lost = new Bench();
    onTestFinished(() => lost.close());
    await lost.open();
    for (const [key, object] of bench.bucket) lost.bucket.set(key, object);
    for (const [id, row] of bench.rows) lost.rows.set(id, row);
    expectDone(await lost.fork("d", "f", undefined, { request }));
    await failureOf(lost.fork("d", "f", undefined, { request: other }), "DATABASE_EXISTS");
  });

  it("without a remote stage says what to set", async () => {
    await bench.make("d", 1, startMs);
    await bench.open({ isCarrying: false });
    await failureOf(bench.fork("d", "f"), "HISTORY_NOT_KEPT");
  });

  it.each(["fail_before", "fail_after", "throttle"] as const)(
    "ends well when its one write that counts meets %s",
    async (kind) => {
      await bench.make("d", 3, startMs);
      let left = 1;
      bench.faults = (operation, key) =>
        operation === "put" && key === "f/database.json" && left-- > 0 ? [{ kind }] : [];
      expectDone(await bench.fork("d", "f"));
      expect(await bench.value("f")).toBe(3);
    },
  );
});

describe("a server that ends in the middle", () => {
  class Killed extends Error {}

  /** What is left when the process ends at a step: rows are what the disk has, and nothing of the rest goes on. */
  async function dieAt(point: FailPoint, run: () => Promise<unknown>): Promise<void> {
    const died = Promise.withResolvers<void>();
    bench.onReach = (reached) => {
      if (reached !== point) return;
      died.resolve();
      bench.faults = () => [{ kind: "lose_answer" }];
      throw new Killed();
    };
    const { rows } = bench;
    let atDeath = new Map<string, CatalogRow>();
    // The failure is that of a dead process: nobody hears of it.
    const over = run().catch(() => undefined);
    await Promise.race([died.promise.then(() => (atDeath = new Map(rows))), over]);
    const buried = bench;
    bench = new Bench();
    onTestFinished(() => bench.close());
    for (const [key, object] of buried.bucket) bench.bucket.set(key, object);
    for (const [id, row] of atDeath) bench.rows.set(id, row);
    buried.close();
    await bench.open();
  }

  const restorePoints = failPoints.filter((point) => point.startsWith("restore."));

  it.each(restorePoints)("at %s has restored a database or not, and nothing between", async (point) => {
    const row = await bench.make("d", 3, startMs);
    await dieAt(point, () => bench.restore("d", at(row, 1)));
    const { successor } = bench.row("d");
    if (successor !== undefined) {
      const info = bench.operations.start(bench.history.recovery("d", successor));
      const { done, error } = await bench.operations.wait(info.id, wait);
      expect(done).toBe(true);
      const isPublished = point === "restore.published";
      expect(error?.reason).toBe(isPublished ? undefined : "OPERATION_INTERRUPTED");
    }
    const isRestored = ["restore.published", "restore.dropped", "restore.end"].includes(point);
    expect(await bench.value("d")).toBe(isRestored ? 1 : 3);
    const stored = await bench.remote.manifests.read("d", bench.call());
    expect(bench.row("d")).toMatchObject({ lineage: stored?.manifest.lineage, successor: undefined });
    // Nothing lies in the bucket that the manifest does not name.
    const named = [stored?.manifest.prefix, ...(stored?.manifest.retired ?? []).map(({ prefix }) => prefix)].sort();
    expect(bench.prefixes("d")).toEqual(named);
    expectDone(await bench.restore("d", at(row, 2)));
    expect(await bench.value("d")).toBe(2);
  });

  const forkPoints = failPoints.filter((point) => point.startsWith("fork."));

  it.each(forkPoints)("at %s has forked a database or not, and nothing between", async (point) => {
    await bench.make("d", 3, startMs);
    const request = { id: "3".repeat(32), method: "ForkDatabase", hash: "h" };
    let input: Readonly<Record<string, unknown>> | undefined;
    await dieAt(point, async () => {
      const info = await bench.fork("d", "f", undefined, { request, wait: { waitMs: 0, cancel: undefined } });
      input = bench.operations.lockedBy("f") === undefined ? undefined : { id: info.id };
      await bench.operations.wait(info.id, wait);
    });
    const lineage = bench.prefixes("f")[0]?.split("/")[1];
    const task = bench.history.resume({
      id: "0",
      database: "d",
      kind: "fork",
      bytesDone: 0,
      bytesTotal: 0,
      createTimeMs: 0,
      endTimeMs: undefined,
      error: undefined,
      request,
      input: { newId: "f", lineage },
    });
    expect(input).toBeDefined();
    const info = bench.operations.start(task as NonNullable<typeof task>);
    const { error } = await bench.operations.wait(info.id, wait);
    const isForked = point !== "fork.stored";
    expect(error?.reason).toBe(isForked ? undefined : "OPERATION_INTERRUPTED");
    expect(await bench.value("f")).toBe(isForked ? 3 : undefined);
    expect(bench.prefixes("f")).toHaveLength(isForked ? 1 : 0);
    expect(bench.rows.has("f")).toBe(isForked);
    if (!isForked) expectDone(await bench.fork("d", "f"));
  });

  it("waits for the store before it says what became of a restore", async () => {
    const row = await bench.make("d", 3, startMs);
    await dieAt("restore.published", () => bench.restore("d", at(row, 1)));
    let left = 3;
    bench.faults = (operation) => (operation === "get" && left-- > 0 ? [{ kind: "fail_before" }] : []);
    const info = bench.operations.start(bench.history.recovery("d", bench.row("d").successor ?? ""));
    expectDone(await bench.operations.wait(info.id, wait));
    expect(left).toBeLessThan(0);
    expect(await bench.value("d")).toBe(1);
  });

  it("in good order stops a restore that has not come to its moment", async () => {
    const row = await bench.make("d", 3, startMs);
    let closed: Promise<void> | undefined;
    bench.onReach = (point) => {
      if (point === "restore.noted") closed = bench.operations.close(10_000);
    };
    const info = await bench.restore("d", at(row, 1));
    await closed;
    expect(info.done).toBe(false);
    expect(await bench.value("d")).toBe(3);
    expect(bench.row("d").successor).toBeUndefined();
  });
});

describe("the first batch", () => {
  it("is the same bytes for the same database", async () => {
    const folder = newFolder();
    const databasePath = join(folder, "a.sqlite");
    const database = new Database(databasePath);
    database.pragma("page_size = 512");
    database.exec("CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(3000000))");
    database.close();
    const pageCount = nodeFileSystem.sizeBytes(databasePath) / 512;
    const input = { databasePath, pageSize: 512, pageCount, timestampMs: 5, check: () => undefined };
    const first = await writeFirstBatch(nodeFileSystem, { ...input, path: join(folder, "1") });
    const second = await writeFirstBatch(nodeFileSystem, { ...input, path: join(folder, "2") });
    expect({ ...second, path: first.path }).toEqual(first);
    const [one, two] = await Promise.all([first, second].map(({ path }) => nodeFileSystem.read(path)));
    expect(one?.equals(two ?? Buffer.alloc(0))).toBe(true);
    expect(one?.length).toBe(first.byteCount);
    const short = writeFirstBatch(nodeFileSystem, { ...input, pageCount: pageCount + 1, path: join(folder, "3") });
    await expect(short).rejects.toThrow("ends before page");
  });
});
