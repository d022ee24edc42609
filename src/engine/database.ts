/** A hosted database: the handle that calls go through while a database is in use. */
import { createHash } from "node:crypto";
import type { Clock } from "../clock.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import {
  CallCancelled,
  type CallOptions,
  type CallResult,
  type Executors,
  PartlyDone,
  type QueryOptions,
  type RequestRecord,
} from "../sqlite/executor.ts";
import type { Catalog, CatalogRow, SyncColumns, Touch } from "./catalog.ts";
import type { Checkpointed, Checkpoints, WalState } from "./checkpoints.ts";
import { type CursorHolder, HeldCursor } from "./cursor.ts";
import type { DatabaseStateName, DurabilityLevel, EngineAnswer, EngineQuery, Position } from "./engine.ts";
import { type Facts, factsOf } from "./facts.ts";
import { localStageFailure } from "./failures.ts";
import type { Flusher } from "./flusher.ts";
import type { Folder } from "./folder.ts";
import { Head, type HeadStage } from "./head.ts";
import { CheckpointRun } from "./log/checkpoint-run.ts";
import { DatabaseLog, type LogHost } from "./log/database-log.ts";
import type { EngineLimits, EngineLog } from "./options.ts";
import type { HeadFiles } from "./placement/head-files.ts";
import { RequestCount } from "./placement/usage.ts";
import { PositionWaits } from "./position-waits.ts";
import { fencedFailure } from "./sync/fenced.ts";
import type { Sync, SyncedDatabase } from "./sync/sync.ts";
import { WriteGate } from "./write-gate.ts";

const retryAfterMs = 100;

/** What a database needs from the engine. */
export interface DatabaseHost {
  readonly executors: Executors;
  readonly clock: Clock;
  readonly limits: EngineLimits;
  readonly log: EngineLog;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly files: HeadFiles;
  /** Calls within this time count for placement. */
  readonly requestWindowMs: number;
  readonly flusher: Flusher;
  readonly checkpoints: Checkpoints;
  readonly logs: LogHost;
  /** Whether the batches of databases are carried to the remote stage. */
  readonly isCarried: boolean;
  /** Called when SQLite finds the head's file damaged, with what it says. */
  damaged(database: HostedDatabase, failure: Failure): void;
  /** Called when so many calls have come within the window that the database may move closer. */
  wanted(database: HostedDatabase): void;
  /** That many calls. */
  readonly wantedCount: number;
  /** Carries what is committed to the remote stage. */
  sync(): Sync;
  /** Called at the first use after `takeTouch`. */
  touched(database: HostedDatabase): void;
  /** A number that no other handle of this engine has. */
  nextHandle(): number;
  /** The operation that alone works on a database. */
  operationOf(id: string): string | undefined;
}

/** The three kinds of writing call. */
export type WriteKind = "execute" | "batch" | "script";

/**
 * Use: `enter` (or `tryEnter`), one method, `leave`; the methods that run SQL leave by themselves. Nobody closes the
 * database between the two.
 */
export class HostedDatabase implements Checkpointed, SyncedDatabase {
  readonly id: string;
  readonly lineage: string;
  wal: WalState;
  readonly log: DatabaseLog;
  lastWriteMs = 0;
  /** True while it has been used since the last look for one to drop. */
  recentlyUsed = true;
  readonly #host: DatabaseHost;
  #head: Head;
  /** Ends when the head before is closed, and what it had in its WAL is in its file. */
  #retiring: Promise<void> | undefined;
  #retired: Head | undefined;
  readonly #requests: RequestCount;
  #facts: Facts;
  #row: CatalogRow;
  #factsWork: Promise<unknown> = Promise.resolve();
  readonly #handle: number;
  /** Commits answered, and how many of them are on the local disk for sure; -1: what a WAL held before may not be. */
  #commits = 0;
  #flushedCommits = -1;
  #position: Position;
  #durableTxid: bigint;
  #durablePosition: Position | undefined;
  #lastAccessTimeMs: number;
  #isTouched = false;
  #isWanted = false;
  #calls = 0;
  readonly #gate: WriteGate;
  readonly #idleWaits: (() => void)[] = [];
  /** Queries and transactions that are open. */
  readonly #holds = new Set<Hold>();
  readonly #positionWaits: PositionWaits;
  /** Why it takes no writes any more: another server writes its history. */
  #fence: Failure | undefined;
  /** Why it is stopped: a fault of its files. */
  #fault: Failure | undefined;
  /** What calls are answered: the fault, or that the handle is closed. */
  #refusal: Failure | undefined;
  #isClosed = false;

  constructor(host: DatabaseHost, row: CatalogRow) {
    this.id = row.id;
    this.lineage = row.lineage;
    this.#host = host;
    this.#handle = host.nextHandle();
    this.#facts = factsOf(row);
    this.#row = row;
    this.#position = { lineage: row.lineage, sequence: BigInt(row.sequence) };
    this.#durableTxid = BigInt(row.durableSequence);
    if (row.isFenced) this.#fence = fencedFailure(row.id, this.#durableTxid);
    this.#lastAccessTimeMs = row.lastAccessTimeMs;
    this.#gate = new WriteGate(host.clock);
    this.#positionWaits = new PositionWaits(row.id, host.limits, host.clock);
    this.#requests = new RequestCount(host.requestWindowMs);
    const { id, lineage, foreignKeys } = row;
    const stage = row.head === "memory" ? "memory" : "local";
    this.#head = new Head(
      { id, lineage, stage, path: host.files.path(row), foreignKeys },
      host.executors,
      host.flusher,
    );
    this.wal = host.checkpoints.newWal();
    this.log = new DatabaseLog(host.logs, {
      id,
      folderPath: host.folder.logPath(id),
      head: this.#head,
      position: BigInt(row.sequence),
      baseTxid: BigInt(row.baseTxid),
      durableTxid: BigInt(row.durableSequence),
      isCarried: host.isCarried,
      onFault: (problem, cause) => this.stop(problem, cause),
    });
    if (row.state === "faulted") {
      this.#fault = faulted(row.id, "its files are damaged or could not be flushed; see the log");
      this.#refusal = this.#fault;
    }
  }

  get facts(): Facts {
    return this.#facts;
  }

  get state(): DatabaseStateName {
    if (this.#fault !== undefined) return "faulted";
    return this.#facts.successor === undefined && this.#fence === undefined ? "ready" : "read_only";
  }

  get isIdle(): boolean {
    return this.#calls === 0;
  }

  /** Where the database is: the batch that holds everything answered so far, or will hold it. */
  get position(): Position {
    const sequence = this.log.position;
    if (sequence !== this.#position.sequence) this.#position = { lineage: this.lineage, sequence };
    return this.#position;
  }

  /** Up to where the remote stage is known to hold it; 0: nothing, or not known. */
  get durableTxid(): bigint {
    return this.#durableTxid;
  }

  get durablePosition(): Position | undefined {
    const sequence = this.#durableTxid;
    if (sequence === 0n) return undefined;
    if (sequence !== this.#durablePosition?.sequence) this.#durablePosition = { lineage: this.lineage, sequence };
    return this.#durablePosition;
  }

  uploaded(txid: bigint): void {
    this.#durableTxid = txid;
    this.#touch();
  }

  fence(failure: Failure): void {
    this.#fence = failure;
  }

  /** Differs after every commit, and from that of every other handle of this engine. */
  get version(): string {
    return `${this.lineage}-${this.#handle}-${this.#commits}`;
  }

  get headStage(): HeadStage {
    return this.#head.stage;
  }

  /** Calls within the window. */
  get requestCount(): number {
    return this.#requests.count(this.#host.clock.now());
  }

  /** Bytes of the head's file and of its WAL. */
  get sizeBytes(): number {
    return this.#host.folder.sizeBytesOf(this.#head.path);
  }

  get lastAccessTimeMs(): number {
    return this.#lastAccessTimeMs;
  }

  /** Bytes of the WAL on disk, as far as it was written here. */
  get walBytes(): number {
    return this.wal.fileFrames * (this.#host.limits.pageBytes + walFrameHeaderBytes);
  }

  /** Begins a use. */
  enter(): void {
    this.#calls++;
  }

  /** Ends a use. */
  leave(): void {
    if (--this.#calls > 0) return;
    for (const wake of this.#idleWaits.splice(0)) wake();
  }

  /** Resolves true when nothing uses the database, false after `msMax`. */
  async whenIdle(msMax: number): Promise<boolean> {
    if (this.#calls === 0) return true;
    const idle = Promise.withResolvers<boolean>();
    const cancelTimer = this.#host.clock.after(msMax, () => idle.resolve(false));
    this.#idleWaits.push(() => idle.resolve(true));
    const isIdle = await idle.promise;
    cancelTimer();
    return isIdle;
  }

  /** A call of Execute, ExecuteBatch or ExecuteScript; see `Engine`. Leaves. */
  async write(
    kind: WriteKind,
    bytes: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer> {
    try {
      if (record !== undefined) this.#refuseCreateRecord(record);
      const begin = this.beginWrite(durability, options);
      if (begin !== undefined) await begin;
      let result: CallResult;
      try {
        // No switch of heads while a write is under way.
        const { executor } = this.#head;
        const own = record && ownRecord(this.id, record);
        if (kind === "execute") result = await executor.execute(bytes, options, own);
        else if (kind === "batch") result = await executor.batch(bytes, options, own);
        else result = await executor.script(bytes, options, own);
      } catch (error) {
        throw this.writeFailed(this.causeOf(error, options));
      } finally {
        this.endWrite();
      }
      return await this.acknowledge(result, durability, options);
    } finally {
      this.leave();
    }
  }

  /** A call of Read. Leaves. */
  async read(statement: Uint8Array, minPosition: Position | undefined, options: CallOptions): Promise<EngineAnswer> {
    try {
      this.#use();
      if (minPosition !== undefined) await this.reach(minPosition, options);
      const { position } = this;
      const head = this.#head;
      head.enter();
      try {
        const { body } = await head.executor.read(statement, options);
        return { body, position, durablePosition: this.durablePosition };
      } finally {
        head.leave();
      }
    } catch (error) {
      throw this.causeOf(error, options);
    } finally {
      this.leave();
    }
  }

  /** A call of Query. Leaves when the cursor ends. */
  async query(statement: Uint8Array, minPosition: Position | undefined, options: QueryOptions): Promise<EngineQuery> {
    try {
      this.#use();
      if (minPosition !== undefined) await this.reach(minPosition, options);
      const { position } = this;
      const head = this.#head;
      head.enter();
      try {
        const cursor = await head.executor.query(statement, options);
        const hold = this.#hold(head);
        const held = new HeldCursor(cursor, hold, options);
        hold.expire = (failure) => held.expire(failure);
        return { position, cursor: held };
      } catch (error) {
        head.leave();
        throw error;
      }
    } catch (error) {
      this.leave();
      throw this.causeOf(error, options);
    }
  }

  /** For transactions: begins one in an executor. `hold` is to be left at its end, in place of the database. */
  async begin(readWrite: boolean, minPosition: Position | undefined, options: CallOptions) {
    this.#use();
    if (minPosition !== undefined) await this.reach(minPosition, options);
    if (readWrite) await this.beginWrite("committed", options);
    const head = this.#head;
    const before = this.position;
    head.enter();
    try {
      const transaction = await head.executor.begin(readWrite, options);
      // With the write lock held nothing is committed between here and the first statement.
      return { snapshot: readWrite ? this.position : before, transaction, hold: this.#hold(head) };
    } catch (error) {
      head.leave();
      if (readWrite) this.endWrite();
      throw error;
    }
  }

  #hold(head: Head): Hold {
    const hold = new Hold(this, head, this.wal.totalFrames, () => this.#holds.delete(hold));
    this.#holds.add(hold);
    return hold;
  }

  /**
   * Before a write is sent: waits while writes are paused, the log is not read yet, or too much waits for the remote stage.
   * STAGE_NOT_CONFIGURED when nothing is as durable as that.
   */
  beginWrite(durability: DurabilityLevel, options: CallOptions): Promise<void> | undefined {
    this.#use();
    this.#requireWritable();
    const admitted = this.#host.sync().admit(durability, options);
    if (admitted !== undefined) return this.#beginWriteLater(admitted);
    if (this.#gate.closed !== undefined) return this.#beginWriteLater(undefined);
    if (this.log.load() !== undefined) return this.#beginWriteLater(undefined);
    this.#requireRoom();
    this.#countWrite();
    return undefined;
  }

  async #beginWriteLater(admitted: Promise<void> | undefined): Promise<void> {
    await admitted;
    await this.log.load();
    while (this.#gate.closed !== undefined) await this.#gate.closed;
    if (this.#refusal !== undefined) throw this.#refusal;
    this.#requireWritable();
    this.#requireRoom();
    this.#countWrite();
  }

  /** STAGE_NOT_CONFIGURED when nothing here is as durable as that. */
  requireDurability(durability: DurabilityLevel): void {
    if (durability === "remote" && !this.#host.sync().isCarrying) {
      throw new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
    }
  }

  #requireWritable(): void {
    if (this.#fence !== undefined) throw this.#fence;
    if (this.#facts.successor !== undefined) this.#refuseWhileRestored();
  }

  #countWrite(): void {
    this.lastWriteMs = this.#host.clock.now();
    this.#gate.enter();
  }

  /** When its answer is there. */
  endWrite(): void {
    this.#gate.leave();
  }

  /** Why a call was ended that nobody cancelled: by the end of the handle. Other errors are what they are. */
  causeOf(error: unknown, options: CallOptions): unknown {
    if (error instanceof Failure && error.reason === "DATA_CORRUPT") this.#host.damaged(this, error);
    const isOurs = error instanceof CallCancelled && options.cancel?.cancelled !== true;
    return isOurs ? (this.#refusal ?? error) : error;
  }

  /** Counts a failed write that may have committed all the same, so that the position covers it. Returns the failure. */
  writeFailed(error: unknown): unknown {
    const mayHaveCommitted = error instanceof PartlyDone || (error as Failure).reason === "OUTCOME_UNKNOWN";
    const nothingCommitted = error instanceof CallCancelled || (error instanceof Failure && !mayHaveCommitted);
    // A cancelled call is answered before its statement is over: what it did shows in the version at the latest here.
    this.#commits++;
    if (!nothingCommitted) this.#advance(undefined);
    if (!(error instanceof Failure)) return error;
    if (error.facts["sqliteCode"]?.endsWith("_FSYNC")) return this.stop("a flush of its files failed", error);
    return error;
  }

  /** Takes a write's result into the position, and waits until it is as durable as was asked. */
  async acknowledge(result: CallResult, durability: DurabilityLevel, options: CallOptions): Promise<EngineAnswer> {
    const answer = this.committed(result);
    // Also when it changed nothing: it may repeat a write that was less durable, or whose flush nobody lived to see.
    if (durability === "local") {
      if (result.committed) await this.#flush(this.wal.reportedFrames);
      else if (this.#mayHaveSeenUnflushed()) await this.#flush();
    }
    if (durability !== "remote") return answer;
    await this.#host.sync().durable(this, answer.position.sequence, options);
    return { ...answer, durablePosition: this.durablePosition };
  }

  /** Takes a write's result into the position. */
  committed(result: CallResult): EngineAnswer {
    if (result.committed) {
      this.#advance(result.walFrames);
      this.#host.checkpoints.committed(this, result.walFrames);
    }
    return { body: result.body, position: this.position, durablePosition: this.durablePosition };
  }

  /** Waits until the database is at `position`. */
  async reach(position: Position, options: CallOptions): Promise<void> {
    if (position.lineage !== this.lineage) throw new Failure("LINEAGE_CHANGED", { lineage: this.lineage });
    if (position.sequence <= this.log.position) return;
    await this.#positionWaits.wait(position.sequence, () => this.log.position, options);
  }

  /** Changes the facts, on disk first. Changes run one after another. */
  changeFacts(change: (facts: Facts) => Facts): Promise<Facts> {
    const work = this.#factsWork.then(async () => {
      // Another database may have the name by now.
      if (this.#isClosed && this.#refusal !== undefined) throw this.#refusal;
      const before = this.#facts;
      const facts = change(before);
      if (facts === before) return facts;
      try {
        await this.#host.folder.writeFacts(facts);
      } catch (error) {
        throw localStageFailure(error);
      }
      this.#facts = facts;
      if (facts.foreignKeys !== before.foreignKeys) {
        const { path, executor } = this.#head;
        executor.reconfigure({ id: this.id, path, foreignKeys: facts.foreignKeys });
      }
      try {
        this.#save();
      } catch (error) {
        throw localStageFailure(error);
      }
      return facts;
    });
    // One change that failed does not stop the next.
    this.#factsWork = work.catch(() => undefined);
    return work;
  }

  /** From here on `wanted` may be called again. */
  takeWanted(): void {
    this.#isWanted = false;
  }

  /** What is to be written to the catalog of the time since the last call. */
  takeTouch(): Touch {
    this.#isTouched = false;
    return {
      id: this.id,
      sequence: Number(this.log.position),
      sizeBytes: this.sizeBytes,
      lastAccessTimeMs: this.#lastAccessTimeMs,
      durableSequence: Number(this.#durableTxid),
    };
  }

  /** Lets go of everything. With `force` what still runs is ended, and answered with `refusal`. Nobody may enter any more. */
  async close(force: boolean, refusal: Failure): Promise<void> {
    this.#isClosed = true;
    this.#refusal ??= refusal;
    this.#host.checkpoints.forget(this);
    try {
      // Nobody else would do it any more.
      if (this.#commits > 0 && this.#flushedCommits < this.#commits && this.#fault === undefined) await this.#flush();
    } catch (error) {
      this.#host.log("warn", "the last writes of a database are not on the disk yet", { database: this.id, error });
    }
    await this.log.stop();
    await this.#head.close(force);
    if (force) await this.#retired?.executor.close(true);
    await this.#retiring;
  }

  /** Makes the last writes durable and the WAL small, as far as that can be done. */
  async settle(): Promise<void> {
    if (this.#fault !== undefined || this.wal.fileFrames === 0) return;
    // Before frames are copied they are flushed; this is for what cannot be copied.
    await this.#flush();
    await this.#host.checkpoints.settle(this);
  }

  stop(problem: string, cause: unknown): Failure {
    if (this.#fault !== undefined) return this.#fault;
    this.#fault = faulted(this.id, problem, cause);
    this.#refusal ??= this.#fault;
    this.#host.log("error", "a database is stopped; restart the server when its disk is well", {
      database: this.id,
      problem,
      error: cause,
    });
    void this.#leaveAlone();
    return this.#fault;
  }

  beginCheckpoint(): CheckpointRun | undefined {
    if (this.#refusal !== undefined) return undefined;
    const head = this.#head;
    this.enter();
    head.enter();
    return new CheckpointRun(head, this.log, this.#host.logs.failPoints, () => {
      head.leave();
      this.leave();
    });
  }

  endReads(frames: number): number {
    const before = this.wal.totalFrames - frames;
    const old = [...this.#holds].filter((hold) => hold.head === this.#head && hold.beganAtFrames < before);
    let count = 0;
    for (const { expire, beganAtFrames } of old) {
      if (expire === undefined) continue;
      const age = String(this.wal.totalFrames - beganAtFrames);
      expire(new Failure("SNAPSHOT_TOO_OLD", { database: this.id, frames: age }));
      count++;
    }
    return count;
  }

  /** To be awaited before the files of the closed database are removed: its WAL must not come back by the redo log. */
  forgetWal(): Promise<void> {
    return this.#head.walFile.forget();
  }

  pauseWrites(msMax: number): Promise<boolean> {
    return this.#gate.pause(msMax);
  }

  resumeWrites(): void {
    this.#gate.resume();
  }

  /**
   * Makes another file the head: writes are paused, and the file holds what this one does, exactly. Reads that run end in the
   * old one, which is folded then, or removed when it is in memory.
   */
  switchHead(stage: HeadStage, path: string): void {
    const { executors, flusher, checkpoints } = this.#host;
    const before = this.#head;
    const { id, lineage, foreignKeys } = this.#facts;
    this.#head = new Head({ id, lineage, stage, path, foreignKeys }, executors, flusher);
    this.log.rebase(this.#head);
    this.#flushedCommits = -1;
    checkpoints.forget(this);
    this.wal = checkpoints.newWal();
    this.#retired = before;
    const retiring = this.#retire(before).catch((error: unknown) => {
      this.#host.log("warn", "the file that a database was moved from could not be put in order", {
        database: id,
        error,
      });
    });
    this.#retiring = retiring;
    void retiring.then(() => {
      if (this.#retiring !== retiring) return;
      this.#retiring = undefined;
      this.#retired = undefined;
    });
  }

  /** Resolves true when nothing is left of the head before, false after `msMax`. */
  async whenRetired(msMax: number): Promise<boolean> {
    if (this.#retiring === undefined) return true;
    if (msMax <= 0) return false;
    const isOver = Promise.withResolvers<boolean>();
    const cancelTimer = this.#host.clock.after(msMax, () => isOver.resolve(false));
    void this.#retiring.then(() => isOver.resolve(true));
    const isRetired = await isOver.promise;
    cancelTimer();
    return isRetired;
  }

  /** Notes that it was moved between stages just now. */
  moved(): void {
    this.#row = { ...this.#row, movedAtMs: this.#host.clock.wallMs() };
    this.#save();
  }

  async #retire(head: Head): Promise<void> {
    const { files } = this.#host;
    await head.whenUnused();
    if (head.stage === "memory") {
      await head.close(false);
      await files.removeMemory(this.id, this.lineage);
      return;
    }
    await head.walFile.beforeCopy();
    const { frames, done } = await head.executor.checkpoint("passive");
    if (done < frames) throw new Error(`${frames - done} frames of its log were not copied back`);
    // All of its WAL is in the file, flushed: it goes, and must not come back by the redo log.
    await head.walFile.forget();
    await head.close(false);
    await files.fold(this.id, head.path);
  }

  /** Sees to it that nothing more is done to the files of a stopped database, also when its handle is dropped. */
  async #leaveAlone(): Promise<void> {
    try {
      if (!this.#isClosed) this.#save();
      await this.#head.executor.close(true);
    } catch (error) {
      this.#host.log("error", "a stopped database did not close", { database: this.id, error });
    }
  }

  /** At the beginning of every call: refuses when the database is stopped, keeps the time. */
  #use(): void {
    if (this.#refusal !== undefined) throw this.#refusal;
    const { clock, wantedCount } = this.#host;
    this.#lastAccessTimeMs = clock.wallMs();
    if (this.#requests.add(clock.now()) >= wantedCount && !this.#isWanted) {
      this.#isWanted = true;
      this.#host.wanted(this);
    }
    this.recentlyUsed = true;
    this.#touch();
  }

  #touch(): void {
    if (this.#isTouched) return;
    this.#isTouched = true;
    this.#host.touched(this);
  }

  /** Something was committed, or may have been. */
  #advance(walFrames: number | undefined): void {
    this.#commits++;
    this.#positionWaits.reached(Number(this.log.committed(walFrames)));
    this.#host.sync().committed(this);
  }

  /** Resolves when everything answered so far is on the local disk. */
  flush(): Promise<void> {
    return this.#flush();
  }

  /**
   * What a statement saw was answered before it, unless it is of a transaction: those may run in another executor, whose
   * answer is on its way.
   */
  #mayHaveSeenUnflushed(): boolean {
    if (this.#flushedCommits === this.#commits && this.#holds.size === 0) return false;
    if (this.#host.flusher.fileSystem.sizeBytes(`${this.#head.path}-wal`) > 0) return true;
    this.#flushedCommits = this.#commits;
    return false;
  }

  /** What is committed is on the local disk when it resolves; with `walFrames`, what is in so many frames of the WAL. */
  async #flush(walFrames?: number): Promise<void> {
    const head = this.#head;
    const commits = this.#commits;
    try {
      if (head.isVolatile) await this.log.seal();
      else await head.walFile.flush(walFrames);
      this.#flushedCommits = Math.max(this.#flushedCommits, commits);
    } catch (error) {
      if (error instanceof Failure && error.reason === "STAGE_FULL") throw error;
      throw this.stop("a flush of its log failed", error);
    }
  }

  #refuseWhileRestored(): never {
    const operation = this.#host.operationOf(this.id) ?? "unknown";
    throw new Failure("DATABASE_READ_ONLY", { database: this.id, operation });
  }

  /** Refuses a write when the WAL may not grow any more. */
  #requireRoom(): void {
    const { frames } = this.wal;
    const { walFramesMax, checkpointPauseFrames } = this.#host.limits;
    // What is not in the log cannot be copied back, and the disk is full.
    if (this.log.problem !== undefined && frames > checkpointPauseFrames) this.#refuseWrite(this.log.problem);
    if (frames > walFramesMax) this.#refuseWrite(undefined);
  }

  /** The next checkpoint tells when what is in the way is over: a long read, or a full disk. */
  #refuseWrite(problem: Failure | undefined): never {
    this.#host.checkpoints.request(this);
    if (problem !== undefined) throw problem;
    throw new Failure(
      "DATABASE_BUSY",
      { database: this.id, problem: "a long read keeps its log from being emptied" },
      { retryAfterMs },
    );
  }

  /** A request_id belongs to the database, over all methods: that of its creation cannot be used for SQL. */
  #refuseCreateRecord(record: RequestRecord): void {
    if (record.id !== this.#facts.createRecord?.id) return;
    throw fieldInvalid("request_id", "was used for another request");
  }

  #save(): void {
    this.#row = {
      ...this.#row,
      // Syncing writes its columns by itself.
      ...syncColumnsOf(this.#host.catalog.get(this.id)),
      durableSequence: Number(this.#durableTxid),
      ...this.#facts,
      state: this.state,
      sequence: Number(this.log.position),
      sizeBytes: this.sizeBytes,
      lastAccessTimeMs: this.#lastAccessTimeMs,
    };
    this.#host.catalog.put(this.#row);
  }
}

/** A database and the head that something was sent to, in use until it is left. */
export class Hold implements CursorHolder {
  /** Frames that had been written when it began. */
  readonly beganAtFrames: number;
  /** Ends what only reads when its snapshot is too old; undefined for what may write, and holds the write lock. */
  expire: ((failure: Failure) => void) | undefined;
  readonly head: Head;
  readonly #database: HostedDatabase;
  readonly #onLeave: () => void;

  constructor(database: HostedDatabase, head: Head, beganAtFrames: number, onLeave: () => void) {
    this.beganAtFrames = beganAtFrames;
    this.head = head;
    this.#database = database;
    this.#onLeave = onLeave;
  }

  leave(): void {
    this.#onLeave();
    this.head.leave();
    this.#database.leave();
  }

  causeOf(error: unknown, options: CallOptions): unknown {
    return this.#database.causeOf(error, options);
  }
}

const walFrameHeaderBytes = 24;

function syncColumnsOf(row: CatalogRow | undefined): SyncColumns {
  if (row === undefined) return {};
  const { durableSequence, manifestVersion, upkeepAtMs, isFenced } = row;
  return { durableSequence, manifestVersion, upkeepAtMs, isFenced };
}

/**
 * A request id means something in one database alone, and the records of a database go with its file into its forks: so they
 * are kept under the id of both.
 */
function ownRecord(database: string, record: RequestRecord): RequestRecord {
  const hash = createHash("sha256").update(`${database}\0${record.id}`).digest("hex");
  return { ...record, id: hash.slice(0, record.id.length) };
}

function faulted(id: string, problem: string, cause?: unknown): Failure {
  return new Failure("DATABASE_FAULTED", { database: id, problem }, { cause });
}
