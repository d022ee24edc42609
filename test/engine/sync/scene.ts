/** Syncing on a clock that tests move and a store in memory, with databases that are nothing but a log. */
import { type CatalogRow, newRowColumns } from "../../../src/engine/catalog.ts";
import { RemoteSync } from "../../../src/engine/sync/remote-sync.ts";
import type { Discovered, SyncedDatabase, SyncHost, SyncLimits, SyncLog } from "../../../src/engine/sync/sync.ts";
import { noFailPoints } from "../../../src/fail-points.ts";
import type { Failure } from "../../../src/failure/failure.ts";
import { encodeLtx } from "../../../src/ltx/encoder.ts";
import { defaultLevelIntervalsMs, defaultRetention } from "../../../src/ltx/retention.ts";
import { type FaultSource, FaultyStore } from "../../../src/objects/faulty.ts";
import type { CallOptions } from "../../../src/sqlite/executor.ts";
import { openRemoteStage } from "../../../src/stages/open-remote-stage.ts";
import type { RemoteStage } from "../../../src/stages/remote.ts";
import type { Batch } from "../../../src/stages/stage.ts";
import { CountingClock, ManualClock } from "../../support/manual-clock.ts";
import { type MemoryBucket, MemoryObjectStore } from "../../support/memory-object-store.ts";
import { testRow } from "../support.ts";
import { MemoryFiles } from "./memory-files.ts";

const pageSize = 512;
const startMs = new ManualClock().wallMs();

export const testSyncLimits: SyncLimits = {
  intervalMs: 5_000,
  uploadConcurrencyMax: 4,
  compactionConcurrencyMax: 2,
  unsyncedBytesMax: 1024 * 1024,
  backOff: { startMs: 500, maxMs: 30_000 },
  storeCallMs: 10_000,
  upkeepJitterMs: 1_000,
  upkeep: { levelIntervalsMs: defaultLevelIntervalsMs, retention: defaultRetention, compactionFilesMax: 256 },
};

/** A log whose batches have two pages, which say who wrote them. */
export class TestLog implements SyncLog {
  openTxid = 1n;
  closedTxid = 0n;
  /** Highest number given out. */
  position = 0n;
  unsyncedBytes = 0;
  closes = 0;
  /** When a batch is made; a second after the one before unless told otherwise. */
  timeOf = (txid: bigint): number => startMs + 1_000 * Number(txid);
  #pending: Batch[] = [];
  readonly #files: MemoryFiles;
  readonly #writer: string;

  constructor(files: MemoryFiles, writer: string) {
    this.#files = files;
    this.#writer = writer;
  }

  get hasOpen(): boolean {
    return this.closedTxid === 0n || this.position > this.closedTxid;
  }

  commit(): bigint {
    this.position = this.openTxid;
    this.unsyncedBytes += pageSize;
    return this.position;
  }

  async close(): Promise<Batch | undefined> {
    if (!this.hasOpen) return undefined;
    const txid = this.openTxid++;
    this.closes++;
    const batch = await this.#write(txid);
    this.closedTxid = txid;
    this.#pending.push(batch);
    return batch;
  }

  pending(): readonly Batch[] {
    return this.#pending;
  }

  release(txid: bigint): void {
    this.#pending = this.#pending.filter((batch) => batch.txid > txid);
    if (this.#pending.length === 0 && !this.hasOpen) this.unsyncedBytes = 0;
  }

  async snapshot() {
    const txid = this.closedTxid;
    const page = this.#page(txid);
    return {
      txid,
      pageSize,
      pageCount: 2,
      timestampMs: 0,
      async *pages() {
        yield { number: 1, bytes: page };
        yield { number: 2, bytes: page };
      },
      release: () => undefined,
    };
  }

  /** Batches up to there are forgotten, as if an earlier process had released them. */
  startAt(closedTxid: bigint, position = closedTxid): void {
    this.closedTxid = closedTxid;
    this.openTxid = closedTxid + 1n;
    this.position = position;
  }

  async reclose(txid: bigint): Promise<void> {
    this.#pending.push(await this.#write(txid));
  }

  #page(txid: bigint): Buffer {
    const page = Buffer.alloc(pageSize);
    page.write(`${this.#writer} ${txid}`);
    return page;
  }

  async #write(txid: bigint): Promise<Batch> {
    const page = this.#page(txid);
    const facts = {
      pageSize,
      commit: 2,
      minTxid: txid,
      maxTxid: txid,
      timestampMs: this.timeOf(txid),
      walOffset: 32,
    };
    async function* pages() {
      yield { number: 1, bytes: page };
      yield { number: 2, bytes: page };
    }
    const chunks: Buffer[] = [];
    for await (const chunk of encodeLtx(facts, pages())) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    const path = `/log/${this.#writer}-${txid}.ltx`;
    this.#files.write(path, bytes);
    return { txid, path, byteCount: bytes.length, pageSize, commit: 2, timestampMs: facts.timestampMs };
  }
}

export class TestDatabase implements SyncedDatabase {
  readonly id: string;
  readonly lineage: string;
  readonly log: TestLog;
  durableTxid = 0n;
  fenced: Failure | undefined;

  constructor(row: CatalogRow, log: TestLog) {
    this.id = row.id;
    this.lineage = row.lineage;
    this.log = log;
  }

  uploaded(txid: bigint): void {
    if (txid <= this.durableTxid) throw new Error("a durable position went back");
    this.durableTxid = txid;
  }

  fence(failure: Failure): void {
    this.fenced = failure;
  }
}

export interface SyncSceneOptions {
  readonly bucket?: MemoryBucket;
  readonly clock?: ManualClock;
  readonly limits?: Partial<SyncLimits>;
  readonly isAutomatic?: boolean;
}

interface Faulting {
  faults: FaultSource;
}

interface SceneParts {
  readonly clock: ManualClock;
  readonly bucket: MemoryBucket;
  readonly files: MemoryFiles;
  readonly remote: RemoteStage;
  readonly counting: CountingClock;
  readonly random: () => number;
  readonly limits: Partial<SyncLimits> | undefined;
  readonly isAutomatic: boolean;
  readonly calls: string[];
  readonly faulting: Faulting;
}

export class SyncScene {
  readonly clock: ManualClock;
  readonly bucket: MemoryBucket;
  readonly rows = new Map<string, CatalogRow>();
  readonly databases = new Map<string, TestDatabase>();
  readonly lines: { readonly level: string; readonly message: string; readonly facts: object }[] = [];
  readonly discovered: Discovered[] = [];
  /** Calls that have reached the store: operation and key. */
  readonly calls: string[];
  isComplete = false;
  held = 0;
  readonly sync: RemoteSync;
  readonly #counting: CountingClock;
  readonly #files: MemoryFiles;
  readonly #faulting: Faulting;

  private constructor(scene: SceneParts) {
    const { clock, bucket, files, remote, counting, random, limits, isAutomatic, calls, faulting } = scene;
    this.clock = clock;
    this.bucket = bucket;
    this.calls = calls;
    this.#faulting = faulting;
    this.#files = files;
    this.#counting = counting;
    const host: SyncHost = {
      clock: counting,
      random,
      log: (level, message, facts) => this.lines.push({ level, message, facts }),
      failPoints: noFailPoints,
      row: (id) => this.rows.get(id),
      hold: async (id) => {
        this.held++;
        return this.databases.get(id);
      },
      release: () => {
        this.held--;
      },
      discovered: async (found) => {
        this.discovered.push(found);
        const { id, lineage, prefix, etagVersion } = found.manifest;
        const sequence = Number(found.txid);
        const facts = { lineage, head: "none" as const, remotePrefix: prefix, sequence, durableSequence: sequence };
        this.rows.set(id, testRow(id, { ...newRowColumns, ...facts, manifestVersion: etagVersion, etagVersion }));
        return true;
      },
      complete: () => {
        this.isComplete = true;
      },
      save: (id, facts) => this.change(id, facts),
    };
    this.sync = new RemoteSync({ host, remote, limits: { ...testSyncLimits, ...limits }, isAutomatic });
  }

  static async open(options: SyncSceneOptions = {}): Promise<SyncScene> {
    const { bucket = new Map(), clock = new ManualClock(), limits, isAutomatic = true } = options;
    const files = new MemoryFiles();
    // What files are checked with is compiled outside of the turns that tests count: before, then.
    await new TestLog(files, "warm").close();
    const calls: string[] = [];
    const faulting: Faulting = { faults: () => [] };
    const store = new FaultyStore({
      store: new MemoryObjectStore(clock, bucket),
      clock,
      faults: (operation, key) => {
        calls.push(`${operation} ${key}`);
        return faulting.faults(operation, key);
      },
    });
    let seed = 1;
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647;
      return seed / 2_147_483_647;
    };
    const remote = await openRemoteStage({
      store,
      layout: "bucket",
      displayName: "remote",
      fileSystem: files.fileSystem,
      spoolDirectoryPath: "/spool",
      clock,
      random: (byteCount) => Uint8Array.from({ length: byteCount }, () => Math.floor(random() * 256)),
    });
    const counting = new CountingClock(clock);
    return new SyncScene({ clock, bucket, files, remote, counting, random, limits, isAutomatic, calls, faulting });
  }

  /** Faults of the calls to come. */
  set faults(faults: FaultSource) {
    this.#faulting.faults = faults;
  }

  /** Timers that syncing has set. */
  get timerCount(): number {
    return this.#counting.timerCount;
  }

  get puts(): string[] {
    return this.calls.filter((call) => call.startsWith("put "));
  }

  change(id: string, change: Partial<CatalogRow>): void {
    const row = this.rows.get(id);
    if (row !== undefined) this.rows.set(id, { ...row, ...change });
  }

  /** A database that nothing was committed to. */
  database(id: string, change: Partial<CatalogRow> = {}, writer = "we"): TestDatabase {
    const row = testRow(id, { ...newRowColumns, ...change });
    const database = new TestDatabase(row, new TestLog(this.#files, `${writer}-${id}`));
    this.rows.set(id, row);
    this.databases.set(id, database);
    // The catalog is told of what is durable, as the engine does it.
    const uploaded = database.uploaded.bind(database);
    database.uploaded = (txid) => {
      uploaded(txid);
      this.change(id, { durableSequence: Number(txid) });
    };
    return database;
  }

  commit(database: TestDatabase): bigint {
    const position = database.log.commit();
    this.sync.committed(database);
    return position;
  }

  wait(ms = 60_000): { deadlineAtMs: number; cancel: undefined } {
    return { deadlineAtMs: this.clock.now() + ms, cancel: undefined };
  }

  callOptions(ms = 60_000): CallOptions {
    return { columns: false, scope: 0, resultBytesMax: 1024, deadlineSource: "server", ...this.wait(ms) };
  }

  /** Lets everything go on that needs no time. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 40; turn++) await new Promise(setImmediate);
  }

  /** Moves the clock in steps, and lets things go on between them. */
  async pass(ms: number, stepMs = 1_000): Promise<void> {
    for (let passed = 0; passed < ms; passed += stepMs) {
      this.clock.advance(Math.min(stepMs, ms - passed));
      await this.settle();
    }
  }

  /** Every call fails, with nothing done. */
  storeIsAway(): void {
    this.faults = () => [{ kind: "fail_before" }];
  }

  storeIsBack(): void {
    this.faults = () => [];
  }
}
