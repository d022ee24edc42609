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
import type { Catalog, CatalogRow, Touch } from "./catalog.ts";
import type { Checkpointed, Checkpoints, WalState } from "./checkpoints.ts";
import { type CursorHolder, HeldCursor } from "./cursor.ts";
import type { DatabaseStateName, DurabilityLevel, EngineAnswer, EngineQuery, Position } from "./engine.ts";
import { type Facts, factsOf } from "./facts.ts";
import { localStageFailure, requireStage } from "./failures.ts";
import type { Flusher } from "./flusher.ts";
import type { Folder } from "./folder.ts";
import { Head } from "./head.ts";
import type { EngineLimits, EngineLog } from "./options.ts";
import { PositionWaits } from "./position-waits.ts";
import { WriteGate } from "./write-gate.ts";

/** Sequences are reserved on disk in steps of this many, so that none is given out twice whatever happens. */
export const sequenceStep = 2 ** 24;

/** A new step is reserved when fewer than this many are left: more than the calls that may be running. */
const sequenceMargin = 2 ** 16;

const retryAfterMs = 100;

/** What a database needs from the engine. */
export interface DatabaseHost {
  readonly executors: Executors;
  readonly clock: Clock;
  readonly limits: EngineLimits;
  readonly log: EngineLog;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly flusher: Flusher;
  readonly checkpoints: Checkpoints;
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
export class HostedDatabase implements Checkpointed {
  readonly id: string;
  readonly lineage: string;
  readonly wal: WalState;
  lastWriteMs = 0;
  /** True while it has been used since the last look for one to drop. */
  recentlyUsed = true;
  readonly #host: DatabaseHost;
  #head: Head;
  #facts: Facts;
  #row: CatalogRow;
  #factsWork: Promise<unknown> = Promise.resolve();
  readonly #handle: number;
  #commits = 0;
  #sequence: number;
  #position: Position;
  #lastAccessTimeMs: number;
  #isTouched = false;
  #calls = 0;
  readonly #gate: WriteGate;
  readonly #idleWaits: (() => void)[] = [];
  readonly #positionWaits: PositionWaits;
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
    this.#sequence = row.sequence;
    this.#position = { lineage: row.lineage, sequence: BigInt(row.sequence) };
    this.#lastAccessTimeMs = row.lastAccessTimeMs;
    this.#gate = new WriteGate(host.clock);
    this.#positionWaits = new PositionWaits(row.id, host.limits, host.clock);
    const path = host.folder.filePath(row.id);
    const { id, foreignKeys } = row;
    this.#head = new Head({ id, stage: "local", path, foreignKeys }, host.executors, host.flusher);
    this.wal = host.checkpoints.newWal();
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
    return this.#facts.successor === undefined ? "ready" : "read_only";
  }

  get isIdle(): boolean {
    return this.#calls === 0;
  }

  /** Where the database is: everything answered so far is in it. */
  get position(): Position {
    return this.#position;
  }

  /** Differs after every commit, and from that of every other handle of this engine. */
  get version(): string {
    return `${this.lineage}-${this.#handle}-${this.#commits}`;
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
      requireStage(durability);
      if (record !== undefined) this.#refuseCreateRecord(record);
      const begin = this.beginWrite();
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
      const answer = this.committed(result);
      // A stored answer may be of a write that was less durable, or whose flush nobody lived to see.
      if (durability === "local" && (result.committed || result.replayed)) await this.#flush();
      return answer;
    } finally {
      this.leave();
    }
  }

  /** A call of Read. Leaves. */
  async read(statement: Uint8Array, minPosition: Position | undefined, options: CallOptions): Promise<EngineAnswer> {
    try {
      this.#use();
      if (minPosition !== undefined) await this.reach(minPosition, options);
      const position = this.#position;
      const head = this.#head;
      head.enter();
      try {
        const { body } = await head.executor.read(statement, options);
        return { body, position, durablePosition: undefined };
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
      const position = this.#position;
      const head = this.#head;
      head.enter();
      try {
        const cursor = await head.executor.query(statement, options);
        return { position, cursor: new HeldCursor(cursor, new Hold(this, head), options) };
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
    if (readWrite) await this.beginWrite();
    const head = this.#head;
    const before = this.#position;
    head.enter();
    try {
      const transaction = await head.executor.begin(readWrite, options);
      // With the write lock held nothing is committed between here and the first statement.
      return { snapshot: readWrite ? this.#position : before, transaction, hold: new Hold(this, head) };
    } catch (error) {
      head.leave();
      if (readWrite) this.endWrite();
      throw error;
    }
  }

  /** Before a write is sent: waits while writes are paused, sees to it that there are sequences to give out. */
  beginWrite(): Promise<void> | undefined {
    this.#use();
    if (this.#facts.successor !== undefined) this.#refuseWhileRestored();
    if (this.#gate.closed !== undefined) return this.#beginWriteLater();
    if (this.wal.frames > this.#host.limits.walFramesMax) this.#refuseWrite();
    if (this.#sequence + sequenceMargin > this.#facts.sequenceReserved) return this.#beginWriteLater();
    this.#countWrite();
    return undefined;
  }

  async #beginWriteLater(): Promise<void> {
    while (this.#gate.closed !== undefined) await this.#gate.closed;
    if (this.#refusal !== undefined) throw this.#refusal;
    if (this.#facts.successor !== undefined) this.#refuseWhileRestored();
    if (this.wal.frames > this.#host.limits.walFramesMax) this.#refuseWrite();
    if (this.#sequence + sequenceMargin > this.#facts.sequenceReserved) await this.#reserve();
    this.#countWrite();
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
    const isOurs = error instanceof CallCancelled && options.cancel?.cancelled !== true;
    return isOurs ? (this.#refusal ?? error) : error;
  }

  /** Counts a failed write that may have committed all the same, so that the position covers it. Returns the failure. */
  writeFailed(error: unknown): unknown {
    const mayHaveCommitted = error instanceof PartlyDone || (error as Failure).reason === "OUTCOME_UNKNOWN";
    const nothingCommitted = error instanceof CallCancelled || (error instanceof Failure && !mayHaveCommitted);
    // A cancelled call is answered before its statement is over: what it did shows in the version at the latest here.
    this.#commits++;
    if (!nothingCommitted) this.#advance();
    if (!(error instanceof Failure)) return error;
    if (error.facts["sqliteCode"]?.endsWith("_FSYNC")) return this.stop("a flush of its files failed", error);
    if (error.reason === "DATA_CORRUPT") {
      this.#host.log("error", "the database's file is damaged", { database: this.id, error });
    }
    return error;
  }

  /** Takes a write's result into the position, and waits until it is as durable as was asked. */
  async acknowledge(result: CallResult, durability: DurabilityLevel): Promise<EngineAnswer> {
    const answer = this.committed(result);
    if (durability === "local" && (result.committed || result.replayed)) await this.#flush();
    return answer;
  }

  /** Takes a write's result into the position. */
  committed(result: CallResult): EngineAnswer {
    if (result.committed) {
      this.#advance();
      this.#host.checkpoints.committed(this, result.walFrames);
    }
    return { body: result.body, position: this.#position, durablePosition: undefined };
  }

  /** Waits until the database is at `position`. */
  async reach(position: Position, options: CallOptions): Promise<void> {
    if (position.lineage !== this.lineage) throw new Failure("LINEAGE_CHANGED", { lineage: this.lineage });
    if (position.sequence <= this.#position.sequence) return;
    await this.#positionWaits.wait(position.sequence, () => this.#position.sequence, options);
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

  /** What is to be written to the catalog of the time since the last call. */
  takeTouch(): Touch {
    this.#isTouched = false;
    return {
      id: this.id,
      sequence: this.#sequence,
      sizeBytes: this.#host.folder.sizeBytes(this.id),
      lastAccessTimeMs: this.#lastAccessTimeMs,
    };
  }

  /** Lets go of everything. With `force` what still runs is ended, and answered with `refusal`. Nobody may enter any more. */
  async close(force: boolean, refusal: Failure): Promise<void> {
    this.#isClosed = true;
    this.#refusal ??= refusal;
    this.#host.checkpoints.forget(this);
    await this.#head.close(force);
  }

  /** Makes the last writes durable and the WAL small, as far as that can be done. */
  async settle(): Promise<void> {
    if (this.#fault !== undefined || this.wal.fileFrames === 0) return;
    // SQLite flushes before it copies; this is for what it cannot copy.
    await this.#flush();
    await this.#head.executor.checkpoint("truncate");
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

  checkpoint(mode: "passive" | "truncate"): Promise<{ readonly frames: number; readonly done: number }> | undefined {
    if (this.#refusal !== undefined) return undefined;
    const head = this.#head;
    this.enter();
    head.enter();
    return head.executor.checkpoint(mode).finally(() => {
      head.leave();
      this.leave();
    });
  }

  pauseWrites(msMax: number): Promise<boolean> {
    return this.#gate.pause(msMax);
  }

  resumeWrites(): void {
    this.#gate.resume();
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
    this.#lastAccessTimeMs = this.#host.clock.wallMs();
    this.recentlyUsed = true;
    if (this.#isTouched) return;
    this.#isTouched = true;
    this.#host.touched(this);
  }

  #advance(): void {
    this.#commits++;
    const sequence = ++this.#sequence;
    this.#position = { lineage: this.lineage, sequence: BigInt(sequence) };
    this.#positionWaits.reached(sequence);
  }

  async #reserve(): Promise<void> {
    await this.changeFacts((facts) =>
      this.#sequence + sequenceMargin > facts.sequenceReserved
        ? { ...facts, sequenceReserved: facts.sequenceReserved + sequenceStep }
        : facts,
    );
  }

  async #flush(): Promise<void> {
    try {
      await this.#head.walFile.flush();
    } catch (error) {
      throw this.stop("a flush of its log failed", error);
    }
  }

  #refuseWhileRestored(): never {
    const operation = this.#host.operationOf(this.id) ?? "unknown";
    throw new Failure("DATABASE_READ_ONLY", { database: this.id, operation });
  }

  /** A long read keeps the WAL from starting over. The checkpoint tells when that is over. */
  #refuseWrite(): never {
    this.#host.checkpoints.request(this);
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
      ...this.#facts,
      state: this.state,
      sequence: this.#sequence,
      sizeBytes: this.#host.folder.sizeBytes(this.id),
      lastAccessTimeMs: this.#lastAccessTimeMs,
    };
    this.#host.catalog.put(this.#row);
  }
}

/** A database and the head that something was sent to, in use until it is left. */
class Hold implements CursorHolder {
  readonly #database: HostedDatabase;
  readonly #head: Head;

  constructor(database: HostedDatabase, head: Head) {
    this.#database = database;
    this.#head = head;
  }

  leave(): void {
    this.#head.leave();
    this.#database.leave();
  }

  causeOf(error: unknown, options: CallOptions): unknown {
    return this.#database.causeOf(error, options);
  }
}

const walFrameHeaderBytes = 24;

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
