/** Syncing to a remote stage: who is due, what is admitted, who waits. The work itself is in `carrier.ts` and `upkeeper.ts`. */
import { Failure } from "../../failure/failure.ts";
import type { CallOptions } from "../../sqlite/executor.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { CatalogRow } from "../catalog.ts";
import type { DurabilityLevel } from "../engine.ts";
import { Backlog } from "./backlog.ts";
import { Carrier } from "./carrier.ts";
import { Discovery } from "./discovery.ts";
import { SyncEntry } from "./entry.ts";
import { fencedFailure } from "./fenced.ts";
import { Lane } from "./lane.ts";
import { publish } from "./publish.ts";
import { Replicas } from "./replicas.ts";
import { type StoreContext, storeCall } from "./store-context.ts";
import { backOffMs, isStoreFailure, StoreHealth } from "./store-health.ts";
import type {
  FoundAtStart,
  RemoteHealth,
  Sync,
  SyncedDatabase,
  SyncHost,
  SyncLimits,
  SyncStats,
  SyncWait,
  Tombstone,
} from "./sync.ts";
import { Timetable } from "./timetable.ts";
import { Tombstones } from "./tombstones.ts";
import { Upkeeper } from "./upkeeper.ts";

/** Bytes of one database that are not worth waiting for the interval with. */
const uploadEarlyBytes = 16 * 1024 * 1024;

/** Part of the interval by which chance brings an upload forward. */
const intervalJitter = 0.2;

const upkeepSoonMs = 60_000;

/** After a start databases are looked at no faster than one in this time: calls go first. */
const startPaceMs = 5;

/** Failures in a row after which a database is left to the next start. */
const closeTryCountMax = 5;

/** Spread of uploads that have waited for the store, once it answers again. */
const comeBackMs = 1_000;

export interface RemoteSyncOptions {
  readonly host: SyncHost;
  readonly remote: RemoteStage;
  readonly limits: SyncLimits;
  /** False: only SyncDatabase, REMOTE writes, moves and the end carry anything. */
  readonly isAutomatic: boolean;
}

export class RemoteSync implements Sync {
  readonly isCarrying = true;
  readonly #host: SyncHost;
  readonly #limits: SyncLimits;
  readonly #isAutomatic: boolean;
  readonly #entries = new Map<string, SyncEntry>();
  readonly #replicas = new Replicas();
  readonly #context: StoreContext;
  /** Ends what callers publish by themselves. */
  readonly #publishing = new AbortController();
  readonly #timetable: Timetable;
  readonly #health: StoreHealth;
  readonly #backlog: Backlog;
  readonly #uploads: Lane;
  readonly #upkeeps: Lane;
  readonly #carrier: Carrier;
  readonly #upkeeper: Upkeeper;
  readonly #discovery: Discovery;
  readonly #tombstones: Tombstones;
  readonly #tryAgain = { dueAtMs: 0, place: -1, run: () => this.#pump() };
  #uploadFailures = 0;
  #isClosing = false;
  #closed: Promise<void> | undefined;

  constructor({ host, remote, limits, isAutomatic }: RemoteSyncOptions) {
    const { clock, random, log } = host;
    this.#host = host;
    this.#limits = limits;
    this.#isAutomatic = isAutomatic;
    this.#timetable = new Timetable(clock);
    this.#health = new StoreHealth(clock, random, limits.backOff, {
      away: (problem) => log("warn", "the remote stage does not answer; what is committed waits for it", { problem }),
      back: () => this.#storeIsBack(),
    });
    this.#backlog = new Backlog(clock, limits.unsyncedBytesMax, () => this.#expedite());
    const context = { host, remote, limits, health: this.#health, replicas: this.#replicas };
    this.#context = context;
    const lane = (countMax: number) =>
      new Lane({
        countMax,
        mayBegin: () => this.#mayBegin(),
        onProblem: (error) => log("error", "syncing met what it did not foresee", { error }),
      });
    this.#uploads = lane(limits.uploadConcurrencyMax);
    this.#upkeeps = lane(limits.compactionConcurrencyMax);
    this.#tombstones = new Tombstones(context, this.#timetable, this.#upkeeps, () => this.#settled());
    this.#carrier = new Carrier(context, {
      beforeFirst: (id, signal) => this.#tombstones.clear(id, signal),
      account: (entry) => this.#account(entry),
    });
    this.#upkeeper = new Upkeeper(context);
    this.#discovery = new Discovery(context, this.#timetable, {
      isDeleted: (id, lineage) => this.#tombstones.has(id, lineage),
      discovered: ({ id, retired }, upkeepAtMs) => {
        if (upkeepAtMs > 0) this.#startUpkeep(id, upkeepAtMs);
        for (const { keepUntilMs } of retired) this.retired(id, keepUntilMs);
      },
    });
  }

  get health(): RemoteHealth {
    const { problem } = this.#health;
    return { isHealthy: problem === undefined, problem };
  }

  committed(database: SyncedDatabase): void {
    const entry = this.#entryOf(database.id);
    const nowMs = this.#host.clock.now();
    entry.log = database.log;
    entry.unsyncedSinceMs ??= nowMs;
    const isFirst = entry.openSinceMs === undefined;
    entry.openSinceMs ??= nowMs;
    this.#account(entry);
    if (isFirst) {
      this.#schedule(entry);
    } else if (entry.bytes >= uploadEarlyBytes) {
      this.#requestEarly(entry);
    }
  }

  admit(durability: DurabilityLevel, options: CallOptions): Promise<void> | undefined {
    return this.#isAutomatic ? this.#backlog.admit(durability, options) : undefined;
  }

  async durable(database: SyncedDatabase, txid: bigint, wait: SyncWait): Promise<void> {
    if (database.durableTxid >= txid) return;
    const entry = this.#entryOf(database.id);
    if (entry.isFenced) throw fencedFailure(database.id, database.durableTxid);
    if (this.#isClosing) throw new Failure("SHUTTING_DOWN");
    entry.log = database.log;
    entry.unsyncedSinceMs ??= this.#host.clock.now();
    const waiting = entry.waits.wait(
      txid,
      wait,
      () =>
        new Failure("REMOTE_NOT_REACHED", {
          database: database.id,
          sequence: String(txid),
          durableSequence: String(database.durableTxid),
        }),
    );
    // After it, for what is known to be in vain is refused at once.
    this.#want(entry);
    await waiting;
  }

  async uploadAll(database: SyncedDatabase, given: SyncWait): Promise<bigint> {
    const wait = { ...given, isImpatient: true };
    for (;;) {
      const { log } = database;
      const last = log.hasOpen ? log.openTxid : log.closedTxid;
      if (last > database.durableTxid) await this.durable(database, last, wait);
      else if (!(await this.#publishKnown(database.id, wait))) return database.durableTxid;
    }
  }

  async publish(row: CatalogRow): Promise<void> {
    const { signal } = this.#publishing;
    try {
      await storeCall(this.#context, signal, 0, (call) => publish(this.#context.remote, row, call));
    } catch (error) {
      throw isStoreFailure(error) ? unavailable(error) : error;
    }
  }

  /** Waits for the manifest to have the facts; false when it has them already. */
  async #publishKnown(id: string, wait: SyncWait): Promise<boolean> {
    const row = this.#host.row(id);
    if (row === undefined || row.manifestVersion === row.etagVersion) return false;
    if (this.#isClosing) throw new Failure("SHUTTING_DOWN");
    const entry = this.#entryOf(id);
    entry.hasNewFacts = true;
    const waiting = entry.factsWaits.wait(row.etagVersion, wait, unavailable);
    this.#want(entry);
    await waiting;
    return true;
  }

  factsChanged(id: string): void {
    const row = this.#host.row(id);
    if (row === undefined || row.isFenced || this.#isClosing) return;
    const entry = this.#entryOf(id);
    entry.hasNewFacts = true;
    // What was never uploaded gets its manifest with its first batch.
    if (row.durableSequence === 0) {
      entry.openSinceMs ??= this.#host.clock.now();
      entry.unsyncedSinceMs ??= this.#host.clock.now();
    }
    if (this.#isAutomatic) this.#timetable.setBy(entry.uploadDue, this.#host.clock.now() + this.#jittered());
  }

  suspect(id: string): void {
    this.#suspect(id, this.#limits.intervalMs);
  }

  #suspect(id: string, spreadMs: number): void {
    const { clock, random } = this.#host;
    const entry = this.#entryOf(id);
    const nowMs = clock.now();
    entry.openSinceMs ??= nowMs;
    entry.unsyncedSinceMs ??= nowMs;
    entry.hasNewFacts = true;
    if (this.#isAutomatic) this.#timetable.setBy(entry.uploadDue, nowMs + random() * spreadMs);
  }

  retired(id: string, untilMs: number): void {
    const entry = this.#entryOf(id);
    if (entry.retiredUntilMs === undefined || untilMs < entry.retiredUntilMs) entry.retiredUntilMs = untilMs;
    this.#scheduleUpkeep(entry);
  }

  isBusy(id: string): boolean {
    const entry = this.#entries.get(id);
    if (entry === undefined) return false;
    if (this.#uploads.isRunning(entry.upload) || this.#upkeeps.isRunning(entry.upkeep)) return true;
    return entry.waits.count > 0 || (this.#isAutomatic && entry.openSinceMs !== undefined);
  }

  async forget(id: string, failure: Failure): Promise<void> {
    const entry = this.#entries.get(id);
    this.#replicas.forget(id);
    if (entry === undefined) return;
    // What is cut off may reach the store all the same, as long as a call may take.
    const isCutOff = this.#uploads.isRunning(entry.upload) || this.#upkeeps.isRunning(entry.upkeep);
    if (isCutOff) this.#tombstones.cutOff(id);
    entry.waits.rejectAll(failure);
    entry.factsWaits.rejectAll(failure);
    entry.controller.abort(failure);
    this.#uploads.remove(entry.upload);
    this.#upkeeps.remove(entry.upkeep);
    await Promise.all([this.#uploads.whenEnded(entry.upload), this.#upkeeps.whenEnded(entry.upkeep)]);
    this.#timetable.remove(entry.uploadDue);
    this.#timetable.remove(entry.upkeepDue);
    this.#replicas.forget(id);
    this.#drop(entry);
  }

  deleted(tombstone: Tombstone): void {
    this.#tombstones.add(tombstone);
  }

  lookUp(id: string): Promise<boolean> {
    return this.#discovery.lookUp(id);
  }

  get isDiscovering(): boolean {
    return this.#discovery.isRunning;
  }

  start({ unsynced, upkeeps, tombstones, isCatalogComplete }: FoundAtStart): void {
    for (const tombstone of tombstones) this.#tombstones.add(tombstone);
    const ids = [...unsynced];
    const spreadMs = Math.max(this.#limits.intervalMs, ids.length * startPaceMs);
    for (const id of ids) this.#suspect(id, spreadMs);
    for (const { id, atMs } of upkeeps) this.#startUpkeep(id, atMs);
    this.#discovery.start(isCatalogComplete);
  }

  stats(): SyncStats {
    const nowMs = this.#host.clock.now();
    let oldestMs = nowMs;
    let unsyncedDatabases = 0;
    let fencedDatabases = 0;
    for (const entry of this.#entries.values()) {
      if (entry.isFenced) fencedDatabases++;
      if (entry.unsyncedSinceMs === undefined) continue;
      unsyncedDatabases++;
      if (entry.unsyncedSinceMs < oldestMs) oldestMs = entry.unsyncedSinceMs;
    }
    const { uploads, uploadedBytes } = this.#carrier;
    const { compactions, snapshots } = this.#upkeeper;
    return {
      uploads,
      puts: this.#carrier.puts + this.#upkeeper.puts,
      uploadedBytes: uploadedBytes + this.#upkeeper.putBytes,
      uploadFailures: this.#uploadFailures,
      compactions,
      snapshots,
      unsyncedDatabases,
      unsyncedBytes: this.#backlog.bytes,
      lagMs: nowMs - oldestMs,
      fencedDatabases,
      deletionsPending: this.#tombstones.count,
    };
  }

  close(graceMs: number): Promise<void> {
    this.#closed ??= this.#close(graceMs);
    return this.#closed;
  }

  async #close(graceMs: number): Promise<void> {
    this.#isClosing = true;
    this.#discovery.stop();
    this.#tombstones.stop();
    const { clock, log } = this.#host;
    const isOver = Promise.withResolvers<void>();
    const cancelTimer = clock.after(graceMs, isOver.resolve);
    this.#timetable.clear();
    for (const entry of this.#entries.values()) {
      this.#upkeeps.remove(entry.upkeep);
      if (entry.isUnsynced || entry.hasNewFacts) this.#want(entry);
    }
    await Promise.race([this.#uploads.whenEmpty(), isOver.promise]);
    cancelTimer();
    const failure = new Failure("SHUTTING_DOWN");
    this.#uploads.clear();
    this.#upkeeps.clear();
    let left = 0;
    for (const entry of this.#entries.values()) {
      if (entry.isUnsynced) left++;
      entry.waits.rejectAll(failure);
      entry.factsWaits.rejectAll(failure);
      entry.controller.abort(failure);
    }
    if (left > 0) {
      log("warn", "not everything was uploaded at the end; the next start goes on", { databases: left });
    }
    this.#backlog.end(failure);
    this.#publishing.abort(failure);
    await Promise.all([this.#uploads.whenIdle(), this.#upkeeps.whenIdle(), this.#discovery.whenIdle()]);
    this.#timetable.clear();
  }

  #entryOf(id: string): SyncEntry {
    let entry = this.#entries.get(id);
    if (entry === undefined) {
      entry = new SyncEntry(id, this.#host.clock, this.#work);
      this.#entries.set(id, entry);
    }
    return entry;
  }

  readonly #work = {
    uploadDue: (entry: SyncEntry) => this.#uploads.add(entry.upload, entry.waits.count > 0),
    upkeepDue: (entry: SyncEntry) => this.#upkeeps.add(entry.upkeep, false),
    upload: (entry: SyncEntry) => this.#upload(entry),
    uploadEnded: (entry: SyncEntry) => this.#uploadEnded(entry),
    upkeep: (entry: SyncEntry) => this.#runUpkeep(entry),
    upkeepEnded: (entry: SyncEntry) => {
      this.#settled();
      this.#scheduleUpkeep(entry);
    },
  };

  async #upload(entry: SyncEntry): Promise<void> {
    this.#timetable.remove(entry.uploadDue);
    try {
      await this.#carrier.carry(entry);
      entry.uploadFailures = 0;
    } catch (error) {
      if (entry.controller.signal.aborted) return;
      this.#uploadFailures++;
      entry.uploadFailures++;
      const isStores = isStoreFailure(error);
      if (error instanceof Failure) {
        entry.waits.rejectImpatient(error);
        entry.factsWaits.rejectImpatient(error);
      }
      // Less and less often: it may go on for days.
      const isTold = Number.isInteger(Math.log2(entry.uploadFailures));
      if (isTold && !(isStores && this.#health.isAway)) {
        this.#host.log(isStores ? "warn" : "error", "an upload failed; it is tried again", {
          database: entry.id,
          error,
        });
      }
    }
  }

  #uploadEnded(entry: SyncEntry): void {
    this.#settled();
    this.#account(entry);
    if (entry.controller.signal.aborted) return;
    if (this.#isClosing) {
      this.#uploadEndedAtClose(entry);
    } else if (entry.uploadFailures > 0) {
      const waitMs = backOffMs(entry.uploadFailures, this.#limits.backOff, this.#host.random);
      this.#timetable.setBy(entry.uploadDue, this.#host.clock.now() + waitMs);
    } else if (entry.isWanted) {
      this.#uploads.add(entry.upload, true);
    } else {
      this.#schedule(entry);
      // Another file moves nothing forward that is about to be looked at.
      const isSoon = entry.upkeepDue.place >= 0 && entry.upkeepDue.dueAtMs - this.#host.clock.now() < upkeepSoonMs;
      if (!isSoon) this.#scheduleUpkeep(entry);
    }
  }

  /** At the end what fails is tried again at once, a few times; when the store counts as away all is left to the next start. */
  #uploadEndedAtClose(entry: SyncEntry): void {
    if (this.#health.isAway) this.#uploads.clear();
    else if (entry.isUnsynced && entry.uploadFailures < closeTryCountMax) this.#uploads.add(entry.upload, true);
  }

  async #runUpkeep(entry: SyncEntry): Promise<void> {
    this.#timetable.remove(entry.upkeepDue);
    try {
      await this.#upkeeper.run(entry);
      entry.upkeepFailures = 0;
    } catch (error) {
      if (entry.controller.signal.aborted) return;
      entry.upkeepFailures++;
      if (!this.#health.isAway) {
        this.#host.log("warn", "the upkeep of a remote copy failed; it is tried again", { database: entry.id, error });
      }
    }
  }

  /** Somebody waits, or asked for it: as soon as there is a place, and without a pause if it runs already. */
  #want(entry: SyncEntry): void {
    entry.isWanted = true;
    // One that failed a moment ago keeps its pause; who waits is served then.
    if (entry.uploadFailures > 0 && entry.uploadDue.place >= 0) return;
    this.#timetable.remove(entry.uploadDue);
    this.#uploads.add(entry.upload, true);
  }

  /** A commit waits for the interval, less some chance, so that databases written together are not uploaded together. */
  #schedule(entry: SyncEntry): void {
    const { openSinceMs } = entry;
    if (!this.#isAutomatic || entry.isFenced || this.#isClosing) return;
    const isUnderWay = this.#uploads.isRunning(entry.upload) || this.#uploads.isWaiting(entry.upload);
    if (openSinceMs === undefined || isUnderWay || entry.uploadFailures > 0) return;
    this.#timetable.setBy(entry.uploadDue, openSinceMs + this.#jittered());
  }

  /** Upkeep of a replica of which nothing but this is known. */
  #startUpkeep(id: string, atMs: number): void {
    const { clock, random } = this.#host;
    const entry = this.#entryOf(id);
    entry.upkeepAtMs = atMs;
    entry.mayHaveRetired = true;
    const waitMs = Math.max(0, atMs - clock.wallMs()) + random() * this.#limits.upkeepJitterMs;
    this.#timetable.setBy(entry.upkeepDue, clock.now() + waitMs);
  }

  #scheduleUpkeep(entry: SyncEntry): void {
    if (entry.controller.signal.aborted || this.#isClosing || entry.isFenced) return;
    if (this.#upkeeps.isRunning(entry.upkeep) || this.#upkeeps.isWaiting(entry.upkeep)) return;
    const { clock, random } = this.#host;
    const atMs = this.#upkeeper.next(entry);
    if (atMs === undefined) {
      this.#forgetIfIdle(entry);
      return;
    }
    const jitterMs = random() * this.#limits.upkeepJitterMs;
    const pauseMs = entry.upkeepFailures > 0 ? backOffMs(entry.upkeepFailures, this.#limits.backOff, random) : 0;
    const waitMs = Math.max(atMs - clock.wallMs() + jitterMs, pauseMs);
    this.#timetable.set(entry.upkeepDue, clock.now() + waitMs);
  }

  /** An entry that has nothing more to do is not kept. */
  #forgetIfIdle(entry: SyncEntry): void {
    if (entry.isUnsynced || entry.hasNewFacts || entry.isFenced || entry.waits.count > 0 || entry.factsWaits.count > 0)
      return;
    if (this.#uploads.isRunning(entry.upload) || this.#uploads.isWaiting(entry.upload)) return;
    if (entry.uploadDue.place >= 0 || entry.upkeepDue.place >= 0) return;
    this.#drop(entry);
  }

  #drop(entry: SyncEntry): void {
    this.#backlog.change(-entry.bytes);
    entry.bytes = 0;
    if (this.#entries.get(entry.id) === entry) this.#entries.delete(entry.id);
  }

  #account(entry: SyncEntry): void {
    const bytes = this.#isAutomatic && entry.isUnsynced ? (entry.log?.unsyncedBytes ?? 0) : 0;
    const change = bytes - entry.bytes;
    entry.bytes = bytes;
    this.#backlog.change(change);
  }

  #requestEarly(entry: SyncEntry): void {
    if (!this.#isAutomatic || entry.isFenced || entry.uploadFailures > 0 || this.#isClosing) return;
    if (this.#uploads.isRunning(entry.upload)) return;
    this.#timetable.remove(entry.uploadDue);
    this.#uploads.add(entry.upload, false);
  }

  /** Half of the budget is used: nobody waits for the interval any more. */
  #expedite(): void {
    for (const entry of this.#entries.values()) if (entry.openSinceMs !== undefined) this.#requestEarly(entry);
  }

  #storeIsBack(): void {
    const { clock, random, log } = this.#host;
    log("info", "the remote stage answers again", { waitingDatabases: this.#uploads.waitingCount });
    const nowMs = clock.now();
    for (const entry of this.#entries.values()) {
      if (entry.uploadFailures > 0) this.#timetable.setBy(entry.uploadDue, nowMs + random() * comeBackMs);
    }
    this.#pump();
  }

  #jittered(): number {
    return this.#limits.intervalMs * (1 - intervalJitter * this.#host.random());
  }

  #mayBegin(): boolean {
    const atMs = this.#health.nextTryAtMs;
    if (atMs === undefined) return false;
    if (atMs > this.#host.clock.now() && !this.#isClosing) {
      this.#timetable.setBy(this.#tryAgain, atMs);
      return false;
    }
    this.#health.began();
    return true;
  }

  #settled(): void {
    this.#health.settled();
    this.#pump();
  }

  #pump(): void {
    this.#uploads.pump();
    this.#upkeeps.pump();
  }
}

function unavailable(cause?: unknown): Failure {
  const options = { retryAfterMs: 1_000 };
  return new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, cause === undefined ? options : { ...options, cause });
}
