/**
 * The pool of executors: which executor runs which call, in which order, and what becomes of it when an executor is slow or
 * dies. DESIGN.md says why it is so.
 */
import type { Clock } from "../clock.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { type Reason, reasons } from "../failure/reasons.ts";
import { Call, type CallInput } from "./call.ts";
import {
  CallCancelled,
  type CallOptions,
  type CallResult,
  type DatabaseFile,
  type ExecutorDatabase,
  type ExecutorLimits,
  type ExecutorStats,
  type Executors,
  type ExecutorTransaction,
  type QueryCursor,
  type QueryOptions,
  type RequestRecord,
} from "./executor.ts";
import type { OpenLink } from "./executor-link.ts";
import { processLinks } from "./executor-process.ts";
import { FairQueue } from "./fair-queue.ts";
import { loadSharedPages } from "./load-native.ts";
import type { ExecutorLog, ExecutorsOptions } from "./options.ts";
import { Pipeline, type PipelineEvents } from "./pipeline.ts";
import { PoolDatabase } from "./pool-database.ts";
import { PoolQuery } from "./pool-query.ts";
import { PoolTransaction } from "./pool-transaction.ts";
import {
  CALL_COLUMNS,
  CALL_RECORD,
  CALL_WRITES,
  DONE_COMMITTED,
  DONE_OPEN,
  DONE_REPLAYED,
  DONE_SALT,
  type FailureNote,
  OP_BEGIN,
  OP_CHECKPOINT,
  OP_CLOSE,
  OP_COMMIT,
  OP_CREATE,
  OP_EXECUTE,
  OP_INSPECT,
  OP_QUERY,
  OP_READ,
  OP_ROLLBACK,
  SALT_BYTES,
} from "./protocol.ts";
import { rendezvous } from "./rendezvous.ts";

/** Starts the executor processes; resolves when the first one takes calls. */
export async function startExecutors(options: ExecutorsOptions): Promise<Executors> {
  const pool = new Pool(options, processLinks(options, loadSharedPages(options.nativePath)));
  try {
    await pool.start();
  } catch (error) {
    await pool.close(0);
    throw error;
  }
  return pool;
}

/** How often the pool looks for calls that take too long, while any call is on its way. */
const TICK_MS = 5;

/** For calls of the pool itself. */
const OWN_DEADLINE_MS = 30_000;

/** How long a call whose database is busy waits before it tries again, told to callers as RetryInfo too. */
const RETRY_AFTER_MS = 50;

/** Restarts of executors that die before they take a call wait longer and longer. */
const RESTART_DELAY_MS = 25;
const RESTART_DELAY_MS_MAX = 5_000;
/** After this many the start of the pool is given up. */
const FAILED_STARTS_MAX = 3;

/** An executor above the minimum that had nothing to do for this long ends. */
const SURPLUS_IDLE_MS = 60_000;

/** A database that was moved away goes back to its own executor after this long without calls. */
const RETURN_AFTER_MS = 1_000;

/** Deaths that a call may see before it is given up. */
const DEATHS_MAX = 3;

/** Salt of a WAL that has no header. */
const NO_SALT = "\0".repeat(SALT_BYTES);

const nothing = new Uint8Array(0);

export class Pool implements Executors, PipelineEvents {
  sqliteVersion = "";
  readonly #limits: ExecutorLimits;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #log: ExecutorLog;
  readonly #openLink: OpenLink;
  /** By slot; a dead one's place is taken by its successor. */
  readonly #active: Pipeline[] = [];
  /** Started and idle: takes a dead or a full one's place at once, and runs checkpoints until then. */
  #spare: Pipeline | undefined;
  /** Every executor that is not dead. */
  readonly #living = new Set<Pipeline>();
  readonly #databases = new Set<PoolDatabase>();
  /** Databases away from where their name puts them. */
  readonly #displaced = new Set<PoolDatabase>();
  #lastNumber = 0;
  #lastOrder = 0;
  /** Calls that no executor could take. */
  readonly #unplaced = new FairQueue<PoolDatabase, Call>();
  /** Calls that found their database busy, for the next tick. */
  #retries: Call[] = [];
  /** Databases with writes that wait for the lock. */
  readonly #locked = new Set<PoolDatabase>();
  #stopTicking: (() => void) | undefined;
  #restarts = 0;
  #failedStarts = 0;
  #starting: { resolve(): void; reject(error: Error): void } | undefined;
  #closing = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: ExecutorsOptions, openLink: OpenLink) {
    this.#limits = options.limits;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#log = options.log;
    this.#openLink = openLink;
  }

  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#starting = { resolve, reject };
      for (let slot = 0; slot < this.#limits.executorCountMin; slot++) this.#active.push(this.#launch(slot));
    });
  }

  // ---- Executors

  open(file: DatabaseFile): ExecutorDatabase {
    const database = new PoolDatabase(this, ++this.#lastNumber, file);
    this.#databases.add(database);
    return database;
  }

  stats(): ExecutorStats {
    let busy = 0;
    let waitingCalls = this.#unplaced.size + this.#retries.length;
    let runningCalls = 0;
    let openConnections = 0;
    let residentBytes = 0;
    for (const pipeline of this.#living) {
      if (pipeline.count > 0) busy++;
      waitingCalls += pipeline.waiting.size;
      runningCalls += pipeline.count;
      openConnections += pipeline.openConnections;
      residentBytes += pipeline.residentBytes;
    }
    for (const database of this.#locked) waitingCalls += database.lockQueue.length;
    return {
      executors: this.#living.size,
      busy,
      waitingCalls,
      runningCalls,
      openConnections,
      restarts: this.#restarts,
      residentBytes,
    };
  }

  tidy(): void {
    if (this.#closing) return;
    const nowMs = this.#clock.now();
    for (const pipeline of this.#living) pipeline.tidy();
    for (const database of this.#displaced) this.#bringHome(database, nowMs);
    this.#retireSurplus(nowMs);
    this.#keepSpare();
  }

  async close(graceMs: number): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    await this.#emptied(graceMs);
    const dead = Promise.all(
      [...this.#living].map((pipeline) => new Promise<void>((resolve) => this.#onDeath.set(pipeline, resolve))),
    );
    for (const pipeline of this.#living) pipeline.end();
    const kill = this.#clock.after(this.#limits.executorGraceMs, () => {
      for (const pipeline of this.#living) pipeline.kill(undefined);
    });
    await dead;
    kill();
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

  readonly #onDeath = new Map<Pipeline, () => void>();

  /** Waits until no call is on its way; those left after the grace are stopped, then killed. */
  #emptied(graceMs: number): Promise<void> {
    return new Promise((resolve) => {
      let stopTimer: (() => void) | undefined;
      this.#onEmpty = () => {
        if ([...this.#databases].some((database) => database.callCount > 0)) return;
        this.#onEmpty = undefined;
        stopTimer?.();
        resolve();
      };
      stopTimer = this.#clock.after(graceMs, () => {
        for (const database of this.#databases) this.#abort(database);
        for (const pipeline of this.#living) for (const call of pipeline.sentCalls()) this.#stop(call, "cancel");
      });
      this.#onEmpty();
    });
  }

  // ---- doors of PoolDatabase and PoolTransaction

  run(
    op: number,
    database: PoolDatabase,
    payload: Uint8Array,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<CallResult> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        op,
        flags: (options.columns ? CALL_COLUMNS : 0) | (record === undefined ? 0 : CALL_RECORD),
        database,
        scope: options.scope,
        target: 0,
        resultBytesMax: options.resultBytesMax,
        first: 0,
        second: 0,
        head: record && recordHead(record),
        payload,
        submittedAtMs: this.#clock.now(),
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        pinned: undefined,
        onDone: (done, flags, walFrames, body) => resolve(this.#result(done, flags, walFrames, body)),
        onFailed: (_, error) => reject(error),
      });
      this.#submit(call, true);
    });
  }

  query(database: PoolDatabase, statement: Uint8Array, options: QueryOptions): Promise<QueryCursor> {
    return new Promise((resolve, reject) => {
      const window = Buffer.alloc(4);
      window.writeUInt32LE(this.#limits.queryWindowChunks);
      const call = new Call({
        op: OP_QUERY,
        flags: options.columns ? CALL_COLUMNS : 0,
        database,
        scope: options.scope,
        target: 0,
        resultBytesMax: options.resultBytesMax,
        first: options.chunkRowsMax,
        second: options.chunkBytesMax,
        head: window,
        payload: statement,
        submittedAtMs: this.#clock.now(),
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        pinned: undefined,
        onDone: (done, _flags, _frames, body) => resolve(this.#openQuery(done, body, options)),
        onFailed: (_, error) => reject(error),
      });
      this.#submit(call, true);
    });
  }

  begin(database: PoolDatabase, readWrite: boolean, options: CallOptions): Promise<ExecutorTransaction> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.#ownInput(OP_BEGIN, database),
        flags: readWrite ? CALL_WRITES : 0,
        scope: options.scope,
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        onDone: (done) => {
          const transaction = new PoolTransaction(
            this,
            done.id,
            database,
            done.ranIn as Pipeline,
            readWrite,
            this.#clock.now(),
          );
          transaction.pipeline.transactions.set(done.id, transaction);
          database.callCount++;
          if (readWrite) database.lockHolder = transaction;
          resolve(transaction);
        },
        onFailed: (failed, error) => {
          if (database.lockHolder === failed) this.#unlock(database);
          reject(error);
        },
      });
      this.#submit(call, true);
    });
  }

  command(
    transaction: PoolTransaction,
    op: number,
    payload: Uint8Array,
    options: CallOptions,
    name: string,
  ): Promise<CallResult> {
    return new Promise((resolve, reject) => {
      if (!transaction.isOpen) {
        reject(new Failure("TRANSACTION_NOT_OPEN", { command: name }));
        return;
      }
      const call = new Call({
        op,
        flags: options.columns ? CALL_COLUMNS : 0,
        database: transaction.database,
        scope: options.scope,
        target: transaction.id,
        resultBytesMax: options.resultBytesMax,
        first: 0,
        second: 0,
        head: undefined,
        payload,
        submittedAtMs: this.#clock.now(),
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        pinned: transaction.pipeline,
        onDone: (done, flags, walFrames, body) => {
          transaction.commands.delete(done);
          const result = this.#result(done, flags, walFrames, body);
          if (!(flags & DONE_OPEN)) this.#endTransaction(transaction);
          resolve(result);
        },
        onFailed: (failed, error, flags) => {
          transaction.commands.delete(failed);
          if (!(flags & DONE_OPEN)) this.#endTransaction(transaction);
          reject(error);
        },
      });
      transaction.commands.add(call);
      this.#submit(call, false);
    });
  }

  rollback(transaction: PoolTransaction): Promise<void> {
    if (!transaction.isOpen) return Promise.resolve();
    for (const command of transaction.commands) this.#stop(command, "cancel");
    return new Promise((resolve) => {
      const over = (): void => {
        this.#endTransaction(transaction);
        resolve();
      };
      const call = new Call({
        ...this.#ownInput(OP_ROLLBACK, transaction.database),
        target: transaction.id,
        pinned: transaction.pipeline,
        onDone: over,
        // The only failure is the executor's death, and that rolls back.
        onFailed: over,
      });
      this.#submit(call, false);
    });
  }

  checkpoint(database: PoolDatabase, truncate: boolean): Promise<{ readonly frames: number; readonly done: number }> {
    // A WAL in use keeps its size; and nobody is to wait for a checkpoint.
    const alone = truncate && database.callCount === 0 && database.lockHolder === undefined && !database.sealed;
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.#ownInput(OP_CHECKPOINT, database),
        flags: alone ? CALL_WRITES : 0,
        onDone: (done, _flags, _frames, body) => {
          const counts = { frames: body.readUInt32LE(0), done: body.readUInt32LE(4) };
          if (alone && counts.frames === 0) database.wal = { salt: NO_SALT, frames: 0 };
          if (database.lockHolder === done) this.#unlock(database);
          resolve(counts);
        },
        onFailed: (failed, error) => {
          if (database.lockHolder === failed) this.#unlock(database);
          reject(error);
        },
      });
      if (alone) database.lockHolder = call;
      this.#submit(call, false);
    });
  }

  create(database: PoolDatabase, pageBytes: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.#ownInput(OP_CREATE, database),
        first: pageBytes,
        onDone: () => {
          database.wal = { salt: NO_SALT, frames: 0 };
          resolve();
        },
        onFailed: (_, error) => reject(error),
      });
      this.#submit(call, false);
    });
  }

  async closeDatabase(database: PoolDatabase, force: boolean): Promise<void> {
    database.closing = true;
    if (force) this.#abort(database);
    if (database.callCount > 0)
      await new Promise<void>((resolve) => {
        database.onIdle = resolve;
      });
    await Promise.all(
      [...database.knownBy.keys()].map(
        (pipeline) =>
          new Promise<void>((resolve, reject) => {
            const call = new Call({
              ...this.#ownInput(OP_CLOSE, database),
              pinned: pipeline,
              onDone: () => resolve(),
              // With its executor the connections are gone too.
              onFailed: (_, error) => (pipeline.state === "dead" ? resolve() : reject(error)),
            });
            this.#submit(call, false);
          }),
      ),
    );
    this.#databases.delete(database);
    this.#displaced.delete(database);
  }

  #ownInput(op: number, database: PoolDatabase): CallInput {
    const nowMs = this.#clock.now();
    return {
      op,
      flags: 0,
      database,
      scope: 0,
      target: 0,
      resultBytesMax: 0,
      first: 0,
      second: 0,
      head: undefined,
      payload: nothing,
      submittedAtMs: nowMs,
      deadlineAtMs: nowMs + OWN_DEADLINE_MS,
      deadlineSource: "server",
      cancel: undefined,
      pinned: undefined,
      onDone: () => undefined,
      onFailed: () => undefined,
    };
  }

  // ---- a call's way

  /** `counted`: a caller's call, which may be refused for there being too many. */
  #submit(call: Call, counted: boolean): void {
    const { input } = call;
    const { database } = input;
    if (counted) {
      const refusal = this.#refusal(database);
      if (refusal !== undefined) {
        call.settled = true;
        input.onFailed(call, refusal, 0);
        return;
      }
    }
    call.counted = counted;
    call.order = ++this.#lastOrder;
    if (counted) database.callCount++;
    database.lastUsedMs = input.submittedAtMs;
    if (input.cancel !== undefined) {
      if (input.cancel.cancelled) {
        this.#fail(call, new CallCancelled(), stillOpen(input));
        return;
      }
      call.uncancel = input.cancel.onCancel(() => this.#stop(call, "cancel"));
    }
    if (input.deadlineAtMs <= input.submittedAtMs) {
      this.#fail(call, timeout(input), stillOpen(input));
      return;
    }
    this.#tickWhileBusy();
    if (this.#mustQueue(call)) this.#queueForLock(call);
    else this.#route(call);
  }

  #refusal(database: PoolDatabase): Failure | undefined {
    if (this.#closing) return new Failure("SHUTTING_DOWN");
    if (database.closing) return this.#busy(database, "it is being closed", 0);
    if (database.callCount < this.#limits.databaseCallsMax) return undefined;
    return this.#busy(database, `${this.#limits.databaseCallsMax} calls run or wait`, 0);
  }

  #busy(database: PoolDatabase, problem: string, waitedMs: number): Failure {
    return new Failure(
      "DATABASE_BUSY",
      { database: database.file.id, problem, waitedMs: `${Math.round(waitedMs)}` },
      { retryAfterMs: RETRY_AFTER_MS },
    );
  }

  /** True for writes that cannot have the lock now. Execute may be a read, so it tries, unless it must not. */
  #mustQueue(call: Call): boolean {
    const { database } = call.input;
    if (!takesLock(call)) return false;
    if (database.sealed) return true;
    if (database.lockHolder === undefined) return database.lockQueue.length > 0;
    return call.input.op !== OP_EXECUTE || (call.input.flags & CALL_RECORD) !== 0;
  }

  #queueForLock(call: Call): void {
    const { database } = call.input;
    const { lockQueue } = database;
    let place = lockQueue.length;
    // One that had tried first is older than those that queued at once.
    while (place > 0 && (lockQueue[place - 1] as Call).order > call.order) place--;
    lockQueue.splice(place, 0, call);
    this.#locked.add(database);
  }

  #unlock(database: PoolDatabase): void {
    database.lockHolder = undefined;
    this.#drainLockQueue(database);
  }

  #drainLockQueue(database: PoolDatabase): void {
    while (database.lockHolder === undefined && !database.sealed) {
      const call = database.lockQueue.shift();
      if (call === undefined) {
        this.#locked.delete(database);
        return;
      }
      if (!call.settled) this.#route(call);
    }
  }

  /** Sends a call to an executor, or lets it wait for one. */
  #route(call: Call): void {
    const { input } = call;
    if (input.op === OP_BEGIN && input.flags & CALL_WRITES) input.database.lockHolder = call;
    if (input.pinned?.state === "dead") {
      this.#fail(call, lost(undefined), 0);
      return;
    }
    const pipeline = input.pinned ?? this.#place(call);
    if (pipeline === undefined) this.#unplaced.push(input.database, call);
    else if (pipeline.hasRoom && pipeline.waiting.size === 0) this.#send(pipeline, call);
    else pipeline.waiting.push(input.database, call);
  }

  #send(pipeline: Pipeline, call: Call): void {
    if (takesLock(call)) call.input.database.writesSent++;
    pipeline.send(call, this.#clock.now());
  }

  /** Sends what waits for this executor, as far as it takes it. */
  #pump(pipeline: Pipeline): void {
    while (pipeline.hasRoom) {
      const call = pipeline.waiting.shift();
      if (call === undefined) return;
      if (!call.settled) this.#send(pipeline, call);
    }
  }

  /** The executor for a call that may run in several; undefined when none can take it now. */
  #place(call: Call): Pipeline | undefined {
    const { database, op } = call.input;
    if (op === OP_CHECKPOINT) return this.#placeCheckpoint(database);
    const home = this.#homeOf(database);
    const writes = takesLock(call) || op === OP_INSPECT || op === OP_CREATE;
    if (home?.takesCalls && !(home.avoided && this.#isForeign(home, database))) return home;
    // Its writes are there, and the lock with them.
    if (writes && home !== undefined && this.#holdsHome(database, home)) return home;
    const other = this.#best(database, true) ?? this.#grow() ?? (home?.takesCalls ? home : this.#best(database, false));
    if (other === undefined) return home?.state === "ready" ? home : undefined;
    if (writes && other !== home) this.#moveHome(database, other);
    return other;
  }

  /** The home, chosen by name when there is none. */
  #homeOf(database: PoolDatabase): Pipeline | undefined {
    if (database.home === undefined || database.home.state === "dead") {
      const preferred = this.#preferred(database);
      const home = preferred?.state === "ready" ? preferred : this.#best(database, false);
      if (home === undefined) return undefined;
      this.#moveHome(database, home);
    }
    return database.home;
  }

  #preferred(database: PoolDatabase): Pipeline | undefined {
    return this.#active[rendezvous(database.file.id, this.#active.length)];
  }

  #moveHome(database: PoolDatabase, home: Pipeline): void {
    database.home = home;
    if (home === this.#preferred(database)) this.#displaced.delete(database);
    else this.#displaced.add(database);
  }

  /** True while the database has something in its home that cannot move. */
  #holdsHome(database: PoolDatabase, home: Pipeline): boolean {
    if (database.writesSent > 0) return true;
    const { lockHolder } = database;
    return lockHolder instanceof PoolTransaction && lockHolder.pipeline === home;
  }

  /** True when the executor's long work is not this database's own. */
  #isForeign(pipeline: Pipeline, database: PoolDatabase): boolean {
    for (const transaction of pipeline.transactions.values()) if (transaction.database === database) return false;
    for (const query of pipeline.queries.values()) if (query.input.database === database) return false;
    return true;
  }

  /** The executor with the least to do. */
  #best(database: PoolDatabase, free: boolean): Pipeline | undefined {
    let best: Pipeline | undefined;
    for (const pipeline of this.#active) {
      if (!pipeline.takesCalls || (free && pipeline.avoided && this.#isForeign(pipeline, database))) continue;
      if (best === undefined || load(pipeline) < load(best)) best = pipeline;
    }
    return best;
  }

  /** A checkpoint flushes and writes for long: best where nobody else is. */
  #placeCheckpoint(database: PoolDatabase): Pipeline | undefined {
    if (this.#spare?.takesCalls) return this.#spare;
    let best: Pipeline | undefined;
    for (const pipeline of this.#active) {
      if (!pipeline.takesCalls) continue;
      const better = best === undefined || load(pipeline) < load(best) || best === database.home;
      if (better && (pipeline !== database.home || best === undefined)) best = pipeline;
    }
    return best;
  }

  /** Takes back a call that was sent and did not run. */
  #unsend(call: Call): void {
    if (takesLock(call)) call.input.database.writesSent--;
  }

  #settle(call: Call): void {
    call.settled = true;
    call.uncancel?.();
    call.uncancel = undefined;
    if (!call.counted) return;
    this.#uncount(call.input.database);
  }

  #uncount(database: PoolDatabase): void {
    database.callCount--;
    if (database.callCount > 0) return;
    database.onIdle?.();
    database.onIdle = undefined;
    this.#onEmpty?.();
  }

  #fail(call: Call, error: Error, flags: number): void {
    if (call.settled) return;
    this.#settle(call);
    call.input.onFailed(call, error, flags);
  }

  // ---- PipelineEvents

  done(call: Call, flags: number, walFrames: number, body: Buffer): void {
    this.#unsend(call);
    this.#settle(call);
    call.input.onDone(call, flags, walFrames, body);
  }

  failed(call: Call, note: FailureNote, flags: number): void {
    this.#unsend(call);
    if (note.busy && !(flags & DONE_OPEN) && call.input.pinned === undefined) {
      this.#again(call, note);
      return;
    }
    this.#fail(call, this.#errorOf(note, call), flags);
  }

  revoked(call: Call): void {
    this.#unsend(call);
    this.#requeue(call);
  }

  turn(pipeline: Pipeline): void {
    if (pipeline.waiting.size > 0) this.#pump(pipeline);
  }

  ready(pipeline: Pipeline, hello: { readonly sqliteVersion: string }): void {
    this.sqliteVersion = hello.sqliteVersion;
    this.#starting?.resolve();
    this.#starting = undefined;
    this.#pump(pipeline);
    if (pipeline !== this.#spare) for (const call of this.#unplaced.drain()) if (!call.settled) this.#route(call);
    // After the others: they are needed first.
    if (this.#active.every((active) => active.state === "ready")) this.#keepSpare();
  }

  unfit(_pipeline: Pipeline, message: string): void {
    this.#log("error", "an executor cannot start", { error: message });
    this.#starting?.reject(new Error(message));
    this.#starting = undefined;
  }

  dead(pipeline: Pipeline, how: string): void {
    this.#living.delete(pipeline);
    this.#onDeath.get(pipeline)?.();
    this.#onDeath.delete(pipeline);
    for (const database of this.#databases) {
      database.knownBy.delete(pipeline);
      if (database.home === pipeline) database.home = undefined;
    }
    const wasExpected = this.#closing || this.#retired.delete(pipeline);
    if (!wasExpected) {
      this.#restarts++;
      this.#log("warn", "an executor died and is replaced", { slot: pipeline.slot, how, calls: pipeline.count });
      this.#replace(pipeline);
    }
    this.#bury(pipeline, how);
    if (this.#starting !== undefined && this.#failedStarts > FAILED_STARTS_MAX) {
      this.#starting.reject(new Error(`executors die as soon as they start: ${how}`));
      this.#starting = undefined;
    }
  }

  // ---- results

  #result(call: Call, flags: number, walFrames: number, body: Buffer): CallResult {
    const { database } = call.input;
    const committed = (flags & DONE_COMMITTED) !== 0;
    let rest = body;
    if (flags & DONE_SALT) {
      database.wal = { salt: body.toString("latin1", 0, SALT_BYTES), frames: walFrames };
      rest = body.subarray(SALT_BYTES);
    } else if (committed)
      // Fewer frames without a new salt: the executor did not see the WAL start over, so the salt is not known.
      database.wal = { salt: walFrames > database.wal.frames ? database.wal.salt : undefined, frames: walFrames };
    return { body: rest, committed, walFrames: database.wal.frames, replayed: (flags & DONE_REPLAYED) !== 0 };
  }

  #openQuery(call: Call, columns: Buffer, options: QueryOptions): QueryCursor {
    const pipeline = call.ranIn as Pipeline;
    const { database } = call.input;
    const query = new PoolQuery({
      id: call.id,
      pipeline,
      database,
      columns,
      openedAtMs: this.#clock.now(),
      deadlineAtMs: options.deadlineAtMs,
      windowChunks: this.#limits.queryWindowChunks,
      now: () => this.#clock.now(),
      errorOf: (note) => this.#errorOf(note, call),
      timeout: () => timeout(call.input),
      onOver: () => this.#uncount(database),
    });
    database.callCount++;
    pipeline.queries.set(call.id, query);
    query.uncancel = options.cancel?.onCancel(() => query.close());
    return query;
  }

  #endTransaction(transaction: PoolTransaction): void {
    if (!transaction.isOpen) return;
    transaction.isOpen = false;
    transaction.pipeline.transactions.delete(transaction.id);
    if (transaction.database.lockHolder === transaction) this.#unlock(transaction.database);
    this.#uncount(transaction.database);
  }

  #errorOf(note: FailureNote, call: Call): Error {
    const { input } = call;
    if (note.interrupted !== undefined) {
      const cause = note.interrupted === "cancel" ? call.stopCause : "deadline";
      if (cause === "cancel") return new CallCancelled();
      return timeout(input, note.facts);
    }
    if (note.busy) return this.#busy(input.database, note.facts.problem ?? "", this.#waitedMs(call));
    if (note.field !== undefined) return fieldInvalid(note.field, note.facts.description ?? "");
    if (note.detail !== undefined || !(note.reason in reasons)) return new Error(note.detail ?? note.reason);
    return new Failure(note.reason as Reason, note.facts);
  }

  #waitedMs(call: Call): number {
    return this.#clock.now() - call.input.submittedAtMs;
  }

  // ---- calls that must end or try again

  /** Ends a call: at once when it was not sent, else as soon as its executor can. */
  #stop(call: Call, cause: "cancel" | "deadline"): void {
    if (call.settled || call.stopCause !== undefined) return;
    call.stopCause = cause;
    call.stoppedAtMs = this.#clock.now();
    if (call.pipeline !== undefined) call.pipeline.stop(call);
    else this.#fail(call, this.#stopped(call), stillOpen(call.input));
  }

  /** What a caller is told whose call never ran. */
  #stopped(call: Call): Error {
    if (call.stopCause === "cancel") return new CallCancelled();
    const { database } = call.input;
    const problem =
      database.lockHolder !== undefined && takesLock(call)
        ? "another transaction holds the write lock"
        : "its executor is busy";
    return this.#busy(database, problem, this.#waitedMs(call));
  }

  /** The database was busy: once more when the lock is free, or a little later. */
  #again(call: Call, note: FailureNote): void {
    if (call.settled) return;
    if (call.stopCause !== undefined || call.input.deadlineAtMs <= this.#clock.now()) {
      this.#fail(call, call.stopCause === "cancel" ? new CallCancelled() : this.#errorOf(note, call), 0);
      return;
    }
    const { database } = call.input;
    if (database.lockHolder === call) database.lockHolder = undefined;
    if (takesLock(call) && (database.lockHolder !== undefined || database.sealed)) this.#queueForLock(call);
    else this.#retries.push(call);
  }

  /** Places a call again that was sent to an executor and did not begin there. */
  #requeue(call: Call): void {
    if (call.settled) return;
    if (call.stopCause !== undefined) this.#fail(call, this.#stopped(call), stillOpen(call.input));
    else if (call.input.pinned !== undefined) this.#route(call);
    else if (call.input.database.sealed && takesLock(call)) this.#queueForLock(call);
    else this.#route(call);
  }

  #abort(database: PoolDatabase): void {
    for (const call of database.lockQueue.splice(0)) this.#stop(call, "cancel");
    this.#locked.delete(database);
    for (const pipeline of this.#living) {
      for (const call of pipeline.sentCalls()) if (call.input.database === database) this.#stop(call, "cancel");
      for (const call of pipeline.waiting.remove((waiting) => waiting.input.database === database))
        this.#stop(call, "cancel");
      for (const query of pipeline.queries.values()) if (query.input.database === database) query.close();
      // Nobody waits for this rollback: the transaction's end is what counts, and it is counted.
      for (const transaction of pipeline.transactions.values())
        if (transaction.database === database) void this.rollback(transaction);
    }
    for (const call of this.#unplaced.remove((waiting) => waiting.input.database === database))
      this.#stop(call, "cancel");
  }

  // ---- time

  #tickWhileBusy(): void {
    this.#stopTicking ??= this.#clock.every(TICK_MS, () => this.#tick());
  }

  #tick(): void {
    const nowMs = this.#clock.now();
    let busy = this.#unplaced.size > 0 || this.#retries.length > 0 || this.#locked.size > 0;
    for (const pipeline of this.#living) {
      if (!pipeline.isIdle) {
        busy = true;
        this.#watch(pipeline, nowMs);
      } else pipeline.avoided = false;
    }
    for (const database of this.#locked) this.#expire(database.lockQueue, nowMs);
    for (const database of this.#locked)
      if (database.lockHolder === undefined && !database.sealed) this.#drainLockQueue(database);
    for (const call of this.#unplaced.drain()) this.#expireOr(call, nowMs, () => this.#route(call));
    for (const call of this.#retries.splice(0)) this.#expireOr(call, nowMs, () => this.#requeue(call));
    if (busy) return;
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

  #expire(calls: readonly Call[], nowMs: number): void {
    for (const call of calls) if (call.input.deadlineAtMs <= nowMs) this.#stop(call, "deadline");
  }

  #expireOr(call: Call, nowMs: number, otherwise: () => void): void {
    if (call.settled) return;
    if (call.input.deadlineAtMs <= nowMs) this.#stop(call, "deadline");
    else otherwise();
  }

  /** Looks for what takes too long in one executor. */
  #watch(pipeline: Pipeline, nowMs: number): void {
    if (pipeline.state !== "ready") {
      for (const call of pipeline.waiting.remove((waiting) => waiting.input.deadlineAtMs <= nowMs))
        this.#stop(call, "deadline");
      return;
    }
    pipeline.avoided = false;
    for (const transaction of pipeline.transactions.values())
      if (nowMs - transaction.openedAtMs > this.#limits.executorStallMs) pipeline.avoided = true;
    for (const query of pipeline.queries.values()) this.#watchQuery(pipeline, query, nowMs);
    let late = false;
    for (const call of pipeline.sentCalls()) {
      if (call.stopCause === undefined && call.input.deadlineAtMs <= nowMs) {
        if (pipeline.hasBegun(call)) this.#stop(call, "deadline");
        else late = true;
      }
      if (call.stopCause !== undefined && this.#isBeyondGrace(pipeline, call, nowMs)) return;
    }
    for (const call of pipeline.waiting.remove((waiting) => waiting.input.deadlineAtMs <= nowMs))
      this.#stop(call, "deadline");
    if (pipeline.count === 0) return;
    if (pipeline.frontSinceMs === 0) pipeline.frontSinceMs = nowMs;
    if (late || nowMs - pipeline.frontSinceMs > this.#limits.executorStallMs) this.#stall(pipeline);
  }

  #watchQuery(pipeline: Pipeline, query: PoolQuery, nowMs: number): void {
    if (nowMs - query.input.openedAtMs > this.#limits.executorStallMs) pipeline.avoided = true;
    if (query.closedAtMs === undefined) {
      if (query.input.deadlineAtMs <= nowMs) query.expire();
    } else {
      pipeline.interrupt(query.input.id);
      if (nowMs - query.closedAtMs > this.#limits.executorGraceMs && pipeline.isRunning(query.input.id))
        this.#kill(pipeline, "deadline", query.input.database);
    }
  }

  /** Kills the executor of a statement that goes on although it was interrupted long ago. */
  #isBeyondGrace(pipeline: Pipeline, call: Call, nowMs: number): boolean {
    if (nowMs - call.stoppedAtMs <= this.#limits.executorGraceMs || !pipeline.isRunning(call.id)) return false;
    this.#kill(pipeline, call.stopCause ?? "deadline", call.input.database);
    return true;
  }

  #kill(pipeline: Pipeline, cause: "deadline" | "cancel", database: PoolDatabase): void {
    if (pipeline.killedFor !== undefined) return;
    this.#log("warn", "an executor is killed: its statement cannot be interrupted", {
      slot: pipeline.slot,
      database: database.file.id,
      graceMs: this.#limits.executorGraceMs,
    });
    pipeline.kill(cause);
  }

  /** Moves what waits behind a long statement to executors that are free. */
  #stall(pipeline: Pipeline): void {
    pipeline.stalled = true;
    const moved = pipeline.revoke();
    for (const call of moved) this.#unsend(call);
    const waiting = pipeline.waiting.drain();
    const nowMs = this.#clock.now();
    for (const call of [...moved, ...waiting])
      this.#expireOr(call, nowMs, () => {
        // What can run nowhere else waits in front of what comes later.
        if (call.input.pinned === undefined) this.#requeue(call);
        else if (call.stopCause !== undefined) this.#fail(call, this.#stopped(call), stillOpen(call.input));
        else pipeline.waiting.push(call.input.database, call);
      });
  }

  // ---- executors come and go

  readonly #retired = new Set<Pipeline>();

  #launch(slot: number): Pipeline {
    const pipeline = new Pipeline(slot, this.#clock.now(), this.#openLink, this);
    this.#living.add(pipeline);
    return pipeline;
  }

  #keepSpare(): void {
    if (this.#spare !== undefined || this.#closing || this.#active.length >= this.#limits.executorCountMax) return;
    this.#spare = this.#launch(-1);
  }

  /** One more executor for calls; undefined when there may be no more, or none is ready. */
  #grow(): Pipeline | undefined {
    if (this.#active.length >= this.#limits.executorCountMax) return undefined;
    const spare = this.#spare;
    if (spare === undefined || !spare.takesCalls) {
      this.#keepSpare();
      return undefined;
    }
    this.#spare = undefined;
    spare.slot = this.#active.length;
    spare.lastUsedMs = this.#clock.now();
    this.#active.push(spare);
    this.#log("info", "an executor was added", { executors: this.#active.length });
    this.#keepSpare();
    return spare;
  }

  #retireSurplus(nowMs: number): void {
    const last = this.#active.at(-1);
    if (last === undefined || this.#active.length <= this.#limits.executorCountMin) return;
    if (!last.isIdle || nowMs - last.lastUsedMs < SURPLUS_IDLE_MS) return;
    this.#active.pop();
    this.#retired.add(last);
    last.state = "dead";
    for (const database of this.#databases) {
      database.knownBy.delete(last);
      if (database.home === last) database.home = undefined;
    }
    last.end();
    this.#log("info", "an idle executor was ended", { executors: this.#active.length });
  }

  #bringHome(database: PoolDatabase, nowMs: number): void {
    const { home } = database;
    const preferred = this.#preferred(database);
    if (database.callCount > 0 || nowMs - database.lastUsedMs < RETURN_AFTER_MS) return;
    if (preferred === undefined || !preferred.takesCalls || preferred.avoided) return;
    home?.release(database);
    database.home = undefined;
    this.#displaced.delete(database);
  }

  /** Puts another executor into a dead one's place. */
  #replace(pipeline: Pipeline): void {
    // One that never took a call says that the next one may fare no better.
    this.#failedStarts = pipeline.wasReady ? 0 : this.#failedStarts + 1;
    const delayMs =
      this.#failedStarts === 0
        ? 0
        : Math.min(RESTART_DELAY_MS_MAX, RESTART_DELAY_MS * 2 ** this.#failedStarts) * (0.5 + this.#random() / 2);
    if (pipeline === this.#spare) {
      this.#spare = undefined;
      this.#later(delayMs, () => this.#keepSpare());
      return;
    }
    const spare = this.#spare;
    if (spare?.takesCalls) {
      this.#spare = undefined;
      spare.slot = pipeline.slot;
      this.#active[pipeline.slot] = spare;
      this.#later(delayMs, () => this.#keepSpare());
      return;
    }
    this.#later(delayMs, () => {
      if (this.#active[pipeline.slot] === pipeline) this.#active[pipeline.slot] = this.#launch(pipeline.slot);
    });
  }

  #later(delayMs: number, run: () => void): void {
    if (delayMs === 0) run();
    else
      this.#clock.after(delayMs, () => {
        if (!this.#closing) run();
      });
  }

  /** Decides about everything that a dead executor had. */
  #bury(pipeline: Pipeline, how: string): void {
    const { unbegun, finished, running } = pipeline.remains();
    const waiting = pipeline.waiting.drain();
    const doubtful = new Map<PoolDatabase, Doubt[]>();
    const doubt = (call: Call, wasRunning: boolean): void => {
      const list = doubtful.get(call.input.database);
      const entry = { call, wasRunning, how, killedFor: pipeline.killedFor };
      if (list === undefined) doubtful.set(call.input.database, [entry]);
      else list.push(entry);
    };
    for (const call of [...unbegun, ...finished]) {
      this.#unsend(call);
      call.deaths++;
    }
    if (running !== undefined) this.#unsend(running);
    for (const call of finished) {
      if (commits(call)) doubt(call, false);
      else if (call.input.op === OP_CLOSE || call.input.op === OP_ROLLBACK) this.#fail(call, lost(how), 0);
    }
    if (running !== undefined) {
      if (commits(running)) doubt(running, true);
      else this.#fail(running, lostRunning(running, pipeline.killedFor, how), 0);
    }
    for (const [database, doubts] of doubtful) this.#inquire(database, doubts, 0);
    for (const query of pipeline.queries.values()) {
      pipeline.queries.delete(query.input.id);
      query.lose(lost(how));
    }
    for (const transaction of [...pipeline.transactions.values()])
      if (![...transaction.commands].some((command) => command.input.op === OP_COMMIT && !command.settled))
        this.#endTransaction(transaction);
    for (const call of finished) if (!commits(call)) this.#reviveAfter(call, how);
    for (const call of [...unbegun, ...waiting]) this.#reviveAfter(call, how);
  }

  /** Runs a call again whose executor died and which had no effect. */
  #reviveAfter(call: Call, how: string): void {
    if (call.settled) return;
    if (call.input.pinned !== undefined || call.deaths > DEATHS_MAX) this.#fail(call, lost(how), 0);
    else this.#requeue(call);
  }

  /** Finds out whether a dead executor had committed anything to a database, and settles the calls that hang on it. */
  #inquire(database: PoolDatabase, doubts: readonly Doubt[], tries: number): void {
    const before = database.wal;
    database.sealed = true;
    const decide = (after: WalKnowledge): void => {
      database.sealed = false;
      const unchanged = after !== undefined && after.salt === before.salt && after.frames === before.frames;
      if (after !== undefined) database.wal = after;
      for (const doubt of doubts) this.#settleDoubt(doubt, unchanged, after !== undefined && doubts.length === 1);
      this.#drainLockQueue(database);
    };
    const call = new Call({
      ...this.#ownInput(OP_INSPECT, database),
      onDone: (_call, _flags, walFrames, body) =>
        decide({ salt: body.toString("latin1", 0, SALT_BYTES), frames: walFrames }),
      onFailed: (_call, error) => {
        if (tries < DEATHS_MAX) this.#inquire(database, doubts, tries + 1);
        else {
          this.#log("error", "a database could not be inspected after its executor's death", {
            database: database.file.id,
            error: error.message,
          });
          decide(undefined);
        }
      },
    });
    this.#submit(call, false);
  }

  #settleDoubt(doubt: Doubt, unchanged: boolean, alone: boolean): void {
    const { call, wasRunning, how, killedFor } = doubt;
    const { input } = call;
    if (call.settled) return;
    if (unchanged) {
      if (input.op === OP_COMMIT) this.#fail(call, lost(how), 0);
      else if (wasRunning) this.#fail(call, lostRunning(call, killedFor, how), 0);
      // It had run to its end without a commit, so it may run again.
      else this.#reviveAfter(call, how);
      return;
    }
    if (input.flags & CALL_RECORD && call.deaths <= DEATHS_MAX && call.stopCause === undefined) {
      // The record in the database tells whether it was this one.
      call.deaths++;
      this.#requeue(call);
    } else if (input.op === OP_COMMIT && alone && input.database.wal.salt !== undefined) {
      // Only the holder of the lock could commit, and the WAL has changed.
      this.#settle(call);
      input.onDone(call, DONE_COMMITTED, input.database.wal.frames, Buffer.alloc(0));
    } else this.#fail(call, new Failure("OUTCOME_UNKNOWN", { signal: how }), 0);
  }
}

interface Doubt {
  readonly call: Call;
  readonly wasRunning: boolean;
  readonly how: string;
  readonly killedFor: "deadline" | "cancel" | undefined;
}

type WalKnowledge = { readonly salt: string; readonly frames: number } | undefined;

/** True for calls that need the database's write lock. */
function takesLock(call: Call): boolean {
  const { op, flags, pinned } = call.input;
  if (pinned !== undefined || op === OP_READ) return false;
  if (op === OP_BEGIN) return (flags & CALL_WRITES) !== 0;
  return op < OP_QUERY;
}

/** True for calls that may have committed something once they have begun. */
function commits(call: Call): boolean {
  const { op } = call.input;
  return op === OP_COMMIT || (op !== OP_READ && op < OP_QUERY);
}

/** A command that never ran leaves its transaction as it was. */
function stillOpen(input: CallInput): number {
  return input.target === 0 ? 0 : DONE_OPEN;
}

function load(pipeline: Pipeline): number {
  return pipeline.count + pipeline.waiting.size + pipeline.queries.size + pipeline.transactions.size;
}

function timeout(input: CallInput, facts: Readonly<Record<string, string>> = {}): Failure {
  return new Failure("STATEMENT_TIMEOUT", {
    ...facts,
    limitMs: `${Math.max(0, Math.round(input.deadlineAtMs - input.submittedAtMs))}`,
    source: input.deadlineSource,
  });
}

function lost(how: string | undefined): Failure {
  return new Failure("EXECUTOR_LOST", how === undefined ? {} : { signal: how }, { retryAfterMs: RETRY_AFTER_MS });
}

/** For the call that ran when its executor died: killed on its account, or by something else. */
function lostRunning(call: Call, killedFor: "deadline" | "cancel" | undefined, how: string): Error {
  if (killedFor === undefined || call.stopCause === undefined) return lost(how);
  return call.stopCause === "cancel" ? new CallCancelled() : timeout(call.input);
}

/** The record in front of a payload: a length of 16 bits, then id, method and hash with blanks between them. */
function recordHead(record: RequestRecord): Buffer {
  const text = `${record.id} ${record.method} ${record.hash}`;
  const head = Buffer.alloc(2 + text.length);
  head.writeUInt16LE(text.length);
  head.write(text, 2, "latin1");
  return head;
}
