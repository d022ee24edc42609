/**
 * The pool of executors: which executor runs which call, in which order, and what becomes of it when an executor is slow or
 * dies. DESIGN.md says why it is so.
 */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import { Call, type CallInput } from "./call.ts";
import { busy, errorOfNote, lost, neverSent, timeout } from "./call-failures.ts";
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
import { ExecutorSet } from "./executor-set.ts";
import { FairQueue } from "./fair-queue.ts";
import { loadSharedPages } from "./load-native.ts";
import type { ExecutorLog, ExecutorsOptions } from "./options.ts";
import type { Pipeline, PipelineEvents } from "./pipeline.ts";
import { PoolDatabase, type WalState } from "./pool-database.ts";
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
  type Hello,
  OP_BEGIN,
  OP_CHECKPOINT,
  OP_CLOSE,
  OP_COMMIT,
  OP_CREATE,
  OP_EXECUTE,
  OP_INSPECT,
  OP_QUERY,
  OP_ROLLBACK,
  SALT_BYTES,
} from "./protocol.ts";
import { Recovery, type RecoveryPool } from "./recovery.ts";

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

/** How long a database that is closed waits for executors that others hold; its connections there close later. */
const CLOSE_DEADLINE_MS = 2_000;

/** A database that was moved away goes back to its own executor after this long without calls. */
const RETURN_AFTER_MS = 1_000;

/** How often the pool tries to look at the WAL of a database whose executor died. */
const INSPECTIONS_MAX = 4;

/** Salt of a WAL that has no header. */
const NO_SALT = "\0".repeat(SALT_BYTES);

const nothing = new Uint8Array(0);

export class Pool implements Executors, PipelineEvents, RecoveryPool {
  sqliteVersion = "";
  readonly #limits: ExecutorLimits;
  readonly #clock: Clock;
  readonly #log: ExecutorLog;
  readonly #executors: ExecutorSet;
  readonly #recovery: Recovery;
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
  #closing = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: ExecutorsOptions, openLink: OpenLink) {
    this.#limits = options.limits;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#recovery = new Recovery(this);
    this.#executors = new ExecutorSet({
      limits: options.limits,
      clock: options.clock,
      random: options.random,
      log: options.log,
      openLink,
      events: this,
      onRetired: (pipeline) => this.#forget(pipeline),
      onCountChanged: () => this.#findDisplaced(),
    });
  }

  start(): Promise<void> {
    return this.#executors.start();
  }

  // ---- Executors

  open(file: DatabaseFile): ExecutorDatabase {
    const database = new PoolDatabase(this, ++this.#lastNumber, file);
    this.#databases.add(database);
    return database;
  }

  stats(): ExecutorStats {
    let busyCount = 0;
    let waitingCalls = this.#unplaced.size + this.#retries.length;
    let runningCalls = 0;
    let openConnections = 0;
    let residentBytes = 0;
    for (const pipeline of this.#executors.living) {
      if (pipeline.count > 0) busyCount++;
      waitingCalls += pipeline.waiting.size;
      runningCalls += pipeline.count;
      openConnections += pipeline.openConnections;
      residentBytes += pipeline.residentBytes;
    }
    for (const database of this.#locked) waitingCalls += database.lockQueue.length;
    return {
      executors: this.#executors.living.size,
      busy: busyCount,
      waitingCalls,
      runningCalls,
      openConnections,
      restarts: this.#executors.restarts,
      residentBytes,
    };
  }

  tidy(): void {
    if (this.#closing) return;
    const nowMs = this.#clock.now();
    this.#executors.tidy(nowMs);
    for (const database of this.#displaced) this.#bringHome(database, nowMs);
  }

  async close(graceMs: number): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    await this.#emptied(graceMs);
    await this.#executors.close(this.#limits.executorGraceMs);
    for (const call of [...this.#unplaced.drain(), ...this.#retries.splice(0)])
      this.fail(call, new Failure("SHUTTING_DOWN"), 0);
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

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
          database.callCount++;
          const transaction = new PoolTransaction(
            this,
            done.id,
            database,
            done.ranIn as Pipeline,
            readWrite,
            this.#clock.now(),
          );
          transaction.pipeline.transactions.set(done.id, transaction);
          if (readWrite) database.lockHolder = transaction;
          if (done.stopCause !== "cancel") resolve(transaction);
          else void this.rollback(transaction).then(() => reject(new CallCancelled()));
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
        // It holds the lock until the executor has seen this, however long that takes.
        deadlineAtMs: Number.POSITIVE_INFINITY,
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
          new Promise<void>((resolve) => {
            const call = new Call({
              ...this.#ownInput(OP_CLOSE, database),
              pinned: pipeline,
              deadlineAtMs: this.#clock.now() + CLOSE_DEADLINE_MS,
              onDone: () => resolve(),
              onFailed: () => {
                // Dead, and the connections with it; or held by others, and told to close them when it can.
                pipeline.release(database);
                resolve();
              },
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
        this.fail(call, new CallCancelled(), stillOpen(input));
        return;
      }
      call.uncancel = input.cancel.onCancel(() => this.#stop(call, "cancel"));
    }
    if (input.deadlineAtMs <= input.submittedAtMs) {
      this.fail(call, timeout(input), stillOpen(input));
      return;
    }
    this.#tickWhileBusy();
    if (this.#mustQueue(call)) this.#queueForLock(call);
    else this.#route(call);
  }

  #refusal(database: PoolDatabase): Failure | undefined {
    if (this.#closing) return new Failure("SHUTTING_DOWN");
    if (database.closing) return busy(database, "it is being closed", 0);
    if (database.callCount < this.#limits.databaseCallsMax) return undefined;
    return busy(database, `${this.#limits.databaseCallsMax} calls run or wait`, 0);
  }

  /** True for writes that cannot have the lock now. Execute may be a read, so it tries, unless it must not. */
  #mustQueue(call: Call): boolean {
    const { database } = call.input;
    if (!call.takesLock) return false;
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
      this.fail(call, lost("its executor has ended"), 0);
      return;
    }
    const pipeline = input.pinned ?? this.#place(call);
    if (pipeline === undefined) this.#unplaced.push(input.database, call);
    else if (pipeline.hasRoom && pipeline.waiting.size === 0) this.#send(pipeline, call);
    else pipeline.waiting.push(input.database, call);
  }

  #send(pipeline: Pipeline, call: Call): void {
    if (call.takesLock) call.input.database.writesSent++;
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

  /** The executor for a call that may run in several; undefined when there is none. */
  #place(call: Call): Pipeline | undefined {
    const { database, op } = call.input;
    if (op === OP_CHECKPOINT) return this.#placeCheckpoint(database);
    const home = this.#homeOf(database);
    const isHeld = (pipeline: Pipeline): boolean => pipeline.avoided && isForeign(pipeline, database);
    if (home?.takesCalls && !isHeld(home)) return home;
    const movesHome = call.takesLock || op === OP_INSPECT;
    // Its writes are there, and the lock with them.
    if (movesHome && home !== undefined && holdsHome(database, home)) return home;
    const other =
      this.#executors.best(isHeld) ??
      this.#executors.grow() ??
      (home?.takesCalls ? home : this.#executors.best(() => false));
    if (other === undefined) return home;
    if (movesHome && other !== home) this.#moveHome(database, other);
    return other;
  }

  /** The home, chosen by name when there is none. */
  #homeOf(database: PoolDatabase): Pipeline | undefined {
    if (database.home === undefined) {
      const preferred = this.#executors.preferred(database.file.id);
      const home = preferred?.state === "ready" ? preferred : this.#executors.best(() => false);
      if (home !== undefined) this.#moveHome(database, home);
    }
    return database.home;
  }

  #moveHome(database: PoolDatabase, home: Pipeline): void {
    database.home = home;
    if (home === this.#executors.preferred(database.file.id)) this.#displaced.delete(database);
    else this.#displaced.add(database);
  }

  #findDisplaced(): void {
    for (const database of this.#databases) if (database.home !== undefined) this.#moveHome(database, database.home);
  }

  #bringHome(database: PoolDatabase, nowMs: number): void {
    if (database.callCount > 0 || nowMs - database.lastUsedMs < RETURN_AFTER_MS) return;
    const preferred = this.#executors.preferred(database.file.id);
    if (preferred === undefined || !preferred.takesCalls || preferred.avoided) return;
    database.home?.release(database);
    database.home = undefined;
    this.#displaced.delete(database);
  }

  /** A checkpoint flushes and writes for long: best where nobody else is. */
  #placeCheckpoint(database: PoolDatabase): Pipeline | undefined {
    const { spare } = this.#executors;
    if (spare?.takesCalls) return spare;
    return this.#executors.best((pipeline) => pipeline === database.home) ?? this.#executors.best(() => false);
  }

  /** The executor is gone: nothing is open there, and nothing is sent there. */
  #forget(pipeline: Pipeline): void {
    for (const database of this.#databases) {
      database.knownBy.delete(pipeline);
      if (database.home === pipeline) database.home = undefined;
    }
  }

  unsend(call: Call): void {
    if (call.takesLock) call.input.database.writesSent--;
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

  fail(call: Call, error: Error, flags: number): void {
    if (call.settled) return;
    this.#settle(call);
    call.input.onFailed(call, error, flags);
  }

  // ---- PipelineEvents

  done(call: Call, flags: number, walFrames: number, body: Buffer): void {
    this.unsend(call);
    this.succeed(call, flags, walFrames, body);
  }

  failed(call: Call, note: FailureNote, flags: number): void {
    this.unsend(call);
    if (note.busy && call.input.pinned === undefined) this.#again(call, note);
    else this.fail(call, errorOfNote(note, call, this.#clock.now()), flags);
  }

  revoked(call: Call): void {
    this.unsend(call);
    this.requeue(call);
  }

  turn(pipeline: Pipeline): void {
    if (pipeline.waiting.size > 0) this.#pump(pipeline);
  }

  ready(pipeline: Pipeline, hello: Hello): void {
    this.sqliteVersion = hello.sqliteVersion;
    this.#pump(pipeline);
    for (const call of this.#unplaced.drain()) if (!call.settled) this.#route(call);
    this.#executors.ready(pipeline);
  }

  unfit(_pipeline: Pipeline, message: string): void {
    this.#executors.unfit(message);
  }

  dead(pipeline: Pipeline, how: string): void {
    this.#forget(pipeline);
    this.#executors.dead(pipeline, how);
    this.#recovery.bury(pipeline, how);
  }

  // ---- RecoveryPool

  get isClosing(): boolean {
    return this.#closing;
  }

  succeed(call: Call, flags: number, walFrames: number, body: Buffer): void {
    this.#settle(call);
    call.input.onDone(call, flags, walFrames, body);
  }

  inspect(database: PoolDatabase, done: (wal: WalState | undefined) => void, tries = 1): void {
    const call = new Call({
      ...this.#ownInput(OP_INSPECT, database),
      onDone: (_call, _flags, frames, body) => done({ salt: body.toString("latin1", 0, SALT_BYTES), frames }),
      onFailed: (_call, error) => {
        if (tries < INSPECTIONS_MAX && !this.#closing) {
          this.inspect(database, done, tries + 1);
          return;
        }
        this.#log("error", "a database could not be inspected after its executor's death", {
          database: database.file.id,
          error: error.message,
        });
        done(undefined);
      },
    });
    this.#submit(call, false);
  }

  unseal(database: PoolDatabase): void {
    database.sealed = false;
    this.#drainLockQueue(database);
  }

  /** A commit that is in doubt keeps its transaction until that is settled. */
  endTransactions(pipeline: Pipeline): void {
    for (const transaction of [...pipeline.transactions.values()])
      if (![...transaction.commands].some(({ input, settled }) => input.op === OP_COMMIT && !settled))
        this.#endTransaction(transaction);
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
      errorOf: (note) => errorOfNote(note, call, this.#clock.now()),
      timeout: () => timeout(call.input),
      onOver: () => this.#uncount(database),
    });
    database.callCount++;
    pipeline.queries.set(call.id, query);
    if (call.stopCause === "cancel") query.close();
    else query.uncancel = options.cancel?.onCancel(() => query.close());
    return query;
  }

  #endTransaction(transaction: PoolTransaction): void {
    if (!transaction.isOpen) return;
    transaction.isOpen = false;
    transaction.pipeline.transactions.delete(transaction.id);
    if (transaction.database.lockHolder === transaction) this.#unlock(transaction.database);
    this.#uncount(transaction.database);
  }

  // ---- calls that must end or try again

  /** Ends a call: at once when it was not sent, else as soon as its executor can. */
  #stop(call: Call, cause: "cancel" | "deadline"): void {
    if (call.settled || call.stopCause !== undefined) return;
    call.stopCause = cause;
    call.stoppedAtMs = this.#clock.now();
    if (call.pipeline !== undefined) call.pipeline.stop(call);
    else this.fail(call, neverSent(call, call.stoppedAtMs), stillOpen(call.input));
  }

  /** The database was busy: once more when the lock is free, or a little later. */
  #again(call: Call, note: FailureNote): void {
    if (call.settled) return;
    if (call.stopCause !== undefined || call.input.deadlineAtMs <= this.#clock.now()) {
      this.fail(
        call,
        call.stopCause === "cancel" ? new CallCancelled() : errorOfNote(note, call, this.#clock.now()),
        0,
      );
      return;
    }
    const { database } = call.input;
    if (database.lockHolder === call) database.lockHolder = undefined;
    if (call.takesLock && (database.lockHolder !== undefined || database.sealed)) this.#queueForLock(call);
    else this.#retries.push(call);
  }

  /** Places a call again that was sent to an executor and did not begin there. */
  requeue(call: Call): void {
    if (call.settled) return;
    if (call.stopCause !== undefined) this.fail(call, neverSent(call, this.#clock.now()), stillOpen(call.input));
    else if (call.input.pinned !== undefined) this.#route(call);
    else if (call.input.database.sealed && call.takesLock) this.#queueForLock(call);
    else this.#route(call);
  }

  /** Ends everything that a database's callers have running or waiting. */
  #abort(database: PoolDatabase): void {
    const isMine = (call: Call): boolean => call.input.database === database;
    for (const call of database.lockQueue.splice(0)) this.#stop(call, "cancel");
    this.#locked.delete(database);
    for (const pipeline of this.#executors.living) {
      for (const call of [...pipeline.sentCalls().filter(isMine), ...pipeline.waiting.remove(isMine)])
        this.#stop(call, "cancel");
      for (const query of pipeline.queries.values()) if (query.input.database === database) query.close();
      // Nobody waits for this rollback: the transaction's end is what counts, and it is counted.
      for (const transaction of pipeline.transactions.values())
        if (transaction.database === database) void this.rollback(transaction);
    }
    for (const call of [...this.#unplaced.remove(isMine), ...this.#retries.filter(isMine)]) this.#stop(call, "cancel");
  }

  // ---- time

  #tickWhileBusy(): void {
    this.#stopTicking ??= this.#clock.every(TICK_MS, () => this.#tick());
  }

  #tick(): void {
    const nowMs = this.#clock.now();
    let busy = this.#unplaced.size > 0 || this.#retries.length > 0 || this.#locked.size > 0;
    for (const pipeline of this.#executors.living) {
      if (!pipeline.isIdle) {
        busy = true;
        this.#watch(pipeline, nowMs);
      } else pipeline.avoided = false;
    }
    for (const database of this.#locked) {
      database.lockQueue = database.lockQueue.filter((call) => !this.#isOver(call, nowMs));
      this.#drainLockQueue(database);
    }
    for (const call of this.#unplaced.drain()) if (!this.#isOver(call, nowMs)) this.#route(call);
    for (const call of this.#retries.splice(0)) if (!this.#isOver(call, nowMs)) this.requeue(call);
    if (busy) return;
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

  /** True for a call that waits for nothing any more; its time may be over just now. */
  #isOver(call: Call, nowMs: number): boolean {
    if (call.input.deadlineAtMs <= nowMs) this.#stop(call, "deadline");
    return call.settled;
  }

  /** Looks for what takes too long in one executor. */
  #watch(pipeline: Pipeline, nowMs: number): void {
    pipeline.waiting.remove((call) => this.#isOver(call, nowMs));
    if (pipeline.state !== "ready") return;
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
    if (pipeline.count === 0) return;
    if (pipeline.frontSinceMs === 0) pipeline.frontSinceMs = nowMs;
    if (late || nowMs - pipeline.frontSinceMs > this.#limits.executorStallMs) this.#stall(pipeline, nowMs);
  }

  #watchQuery(pipeline: Pipeline, query: PoolQuery, nowMs: number): void {
    if (nowMs - query.input.openedAtMs > this.#limits.executorStallMs) pipeline.avoided = true;
    if (query.closedAtMs === undefined) {
      if (query.input.deadlineAtMs <= nowMs) query.expire();
    } else {
      pipeline.interrupt(query.input.id);
      if (nowMs - query.closedAtMs > this.#limits.executorGraceMs && pipeline.isRunning(query.input.id))
        this.#kill(pipeline, query.input.database);
    }
  }

  /** Kills the executor of a statement that goes on although it was interrupted long ago. */
  #isBeyondGrace(pipeline: Pipeline, call: Call, nowMs: number): boolean {
    if (nowMs - call.stoppedAtMs <= this.#limits.executorGraceMs || !pipeline.isRunning(call.id)) return false;
    this.#kill(pipeline, call.input.database);
    return true;
  }

  #kill(pipeline: Pipeline, database: PoolDatabase): void {
    if (pipeline.wasKilled) return;
    this.#log("warn", "an executor is killed: its statement cannot be interrupted", {
      slot: pipeline.slot,
      database: database.file.id,
      graceMs: this.#limits.executorGraceMs,
    });
    pipeline.kill();
  }

  /** Moves what waits behind a long statement to executors that are free. */
  #stall(pipeline: Pipeline, nowMs: number): void {
    pipeline.stalled = true;
    const moved = pipeline.revoke();
    for (const call of moved) this.unsend(call);
    for (const call of [...moved, ...pipeline.waiting.drain()]) {
      if (this.#isOver(call, nowMs)) continue;
      // What can run nowhere else waits here, in its order.
      if (call.input.pinned !== undefined && call.stopCause === undefined)
        pipeline.waiting.push(call.input.database, call);
      else this.requeue(call);
    }
  }
}

/** True when the executor's long work is not this database's own. */
function isForeign(pipeline: Pipeline, database: PoolDatabase): boolean {
  for (const transaction of pipeline.transactions.values()) if (transaction.database === database) return false;
  for (const query of pipeline.queries.values()) if (query.input.database === database) return false;
  return true;
}

/** True while the database has something in its home that cannot move. */
function holdsHome(database: PoolDatabase, home: Pipeline): boolean {
  const { lockHolder, writesSent } = database;
  return writesSent > 0 || (lockHolder instanceof PoolTransaction && lockHolder.pipeline === home);
}

/** A command that never ran leaves its transaction as it was. */
function stillOpen(input: CallInput): number {
  return input.target === 0 ? 0 : DONE_OPEN;
}

/** The record in front of a payload: a length of 16 bits, then id, method and hash with blanks between them. */
function recordHead(record: RequestRecord): Buffer {
  const text = `${record.id} ${record.method} ${record.hash}`;
  const head = Buffer.alloc(2 + text.length);
  head.writeUInt16LE(text.length);
  head.write(text, 2, "latin1");
  return head;
}
