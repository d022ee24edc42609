/** One database as the pool sees it: the door for its callers, and where its calls may run. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import { Call, type CallInput } from "./call.ts";
import { errorOfNote, timeout } from "./call-failures.ts";
import type { Dispatcher } from "./dispatcher.ts";
import {
  CallCancelled,
  type CallOptions,
  type CallResult,
  type CheckpointCounts,
  type Checkpointer,
  type DatabaseFile,
  type ExecutorDatabase,
  type ExecutorLimits,
  type ExecutorTransaction,
  PartlyDone,
  type QueryCursor,
  type QueryOptions,
  type RequestRecord,
} from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import { countsIn, PoolCheckpointer } from "./pool-checkpointer.ts";
import { PoolQuery } from "./pool-query.ts";
import { PoolTransaction } from "./pool-transaction.ts";
import {
  CALL_COLUMNS,
  CALL_RECORD,
  CALL_SALT,
  CALL_WRITES,
  DONE_COMMITTED,
  DONE_REPLAYED,
  DONE_SALT,
  OP_BATCH,
  OP_BEGIN,
  OP_CHECKPOINT,
  OP_CLOSE,
  OP_CREATE,
  OP_EXECUTE,
  OP_QUERY,
  OP_READ,
  OP_SCRIPT,
  QUERY_EXECUTION_MS,
  QUERY_HEAD_BYTES,
  QUERY_LIFE_MS,
  QUERY_WINDOW,
  SALT_BYTES,
} from "./protocol.ts";

/** For calls of the pool itself. */
const OWN_DEADLINE_MS = 30_000;

/** How long a database that is closed waits for executors that others hold; its connections there close later. */
const CLOSE_DEADLINE_MS = 2_000;

/** Salt of a WAL that has no header. */
const NO_SALT = "\0".repeat(SALT_BYTES);

const nothing = new Uint8Array(0);

/** The state of a WAL that an executor reported last; `salt` undefined: not known. */
export interface WalState {
  readonly salt: string | undefined;
  readonly frames: number;
}

/** What a database needs of its pool. */
export interface DatabasePool {
  readonly clock: Clock;
  readonly limits: ExecutorLimits;
  readonly dispatcher: Dispatcher;
  /** Ends everything that the database's callers have running or waiting. */
  abort(database: PoolDatabase): void;
  forget(database: PoolDatabase): void;
}

export class PoolDatabase implements ExecutorDatabase {
  readonly pool: DatabasePool;
  readonly number: number;
  /** Grows when the file's options change; executors that know an older one are told. */
  generation = 0;
  readonly knownBy = new Map<Pipeline, number>();
  /** The executor with the writing connection. */
  home: Pipeline | undefined;
  /** Calls, transactions and queries, running and waiting. */
  callCount = 0;
  /** Writes sent and not answered: they hold the home where it is. */
  writesSent = 0;
  /** Who has the write lock for longer than a call: a transaction, a checkpoint. */
  lockHolder: object | undefined;
  /** No write may start: the pool finds out what a dead executor had committed. */
  sealed = false;
  /** Writes that wait for the lock, in order. */
  lockQueue: Call[] = [];
  wal: WalState = { salt: undefined, frames: 0 };
  lastUsedMs = 0;
  closing = false;
  onIdle: (() => void) | undefined;
  /** Checkpoints under way. */
  #checkpoints = 0;
  #file: DatabaseFile;

  constructor(pool: DatabasePool, number: number, file: DatabaseFile) {
    this.pool = pool;
    this.number = number;
    this.#file = file;
  }

  get file(): DatabaseFile {
    return this.#file;
  }

  execute(statement: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#run(OP_EXECUTE, statement, options, record);
  }

  read(statement: Uint8Array, options: CallOptions): Promise<CallResult> {
    return this.#run(OP_READ, statement, options, undefined);
  }

  batch(request: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#run(OP_BATCH, request, options, record);
  }

  script(text: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#run(OP_SCRIPT, text, options, record);
  }

  query(statement: Uint8Array, options: QueryOptions): Promise<QueryCursor> {
    return new Promise((resolve, reject) => {
      const nowMs = this.pool.clock.now();
      const { executionMsMax = Number.POSITIVE_INFINITY } = options;
      // Until it is open, its execution is measured by the clock.
      const executionEndsFirst = nowMs + executionMsMax < options.deadlineAtMs;
      const call = new Call({
        ...this.ownInput(OP_QUERY),
        flags: options.columns ? CALL_COLUMNS : 0,
        scope: options.scope,
        resultBytesMax: options.resultBytesMax,
        first: options.chunkRowsMax,
        second: options.chunkBytesMax,
        head: queryHead(this.pool.limits.queryWindowChunks, executionMsMax, options.deadlineAtMs - nowMs),
        payload: statement,
        deadlineAtMs: executionEndsFirst ? nowMs + executionMsMax : options.deadlineAtMs,
        deadlineSource: executionEndsFirst ? "server" : options.deadlineSource,
        cancel: options.cancel,
        onDone: (done, _flags, _frames, columns) => {
          const query = this.#openQuery(done, columns, options);
          if (done.stopCause !== "cancel") resolve(query);
          else {
            query.close();
            reject(new CallCancelled());
          }
        },
        onFailed: (_, error) => reject(error),
      });
      this.pool.dispatcher.submit(call, true);
    });
  }

  begin(readWrite: boolean, options: CallOptions): Promise<ExecutorTransaction> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.ownInput(OP_BEGIN),
        flags: readWrite ? CALL_WRITES : 0,
        scope: options.scope,
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        onDone: (done) => {
          const transaction = new PoolTransaction(this, done.id, done.ranIn as Pipeline);
          if (readWrite) this.lockHolder = transaction;
          if (done.stopCause !== "cancel") resolve(transaction);
          // Nobody wants it any more.
          else void transaction.rollback().then(() => reject(new CallCancelled()));
        },
        onFailed: (failed, error) => {
          this.#letGo(failed);
          reject(error);
        },
      });
      this.pool.dispatcher.submit(call, true);
    });
  }

  checkpointer(): Checkpointer {
    return new PoolCheckpointer(this);
  }

  checkpoint(mode: "passive" | "truncate"): Promise<CheckpointCounts> {
    // A WAL in use keeps its size; and nobody is to wait for a checkpoint.
    const isAlone = this.callCount === 0 && this.lockHolder === undefined && !this.sealed;
    const truncates = mode === "truncate" && isAlone;
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.ownInput(OP_CHECKPOINT),
        flags: truncates ? CALL_WRITES : 0,
        onDone: (done, _flags, _frames, body) => {
          const counts = countsIn(body);
          this.checkpointed(counts.done >= counts.frames);
          if (truncates && counts.frames === 0) this.wal = { salt: NO_SALT, frames: 0 };
          this.#letGo(done);
          resolve(counts);
        },
        onFailed: (failed, error) => {
          this.checkpointed(true);
          this.#letGo(failed);
          reject(error);
        },
      });
      this.checkpointBegins();
      if (truncates) this.lockHolder = call;
      this.pool.dispatcher.submit(call, false);
    });
  }

  create(pageBytes: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.ownInput(OP_CREATE),
        first: pageBytes,
        onDone: () => {
          this.wal = { salt: NO_SALT, frames: 0 };
          resolve();
        },
        onFailed: (_, error) => reject(error),
      });
      this.pool.dispatcher.submit(call, false);
    });
  }

  reconfigure(file: DatabaseFile): void {
    this.#file = file;
    this.generation++;
  }

  async close(force: boolean): Promise<void> {
    this.closing = true;
    if (force) this.pool.abort(this);
    if (this.callCount > 0)
      await new Promise<void>((resolve) => {
        this.onIdle = resolve;
      });
    await Promise.all([...this.knownBy.keys()].map((pipeline) => this.#closeIn(pipeline)));
    this.pool.forget(this);
  }

  /** What the server's own calls are made of; callers' calls differ from it. */
  ownInput(op: number): CallInput {
    const nowMs = this.pool.clock.now();
    return {
      op,
      flags: 0,
      database: this,
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

  /**
   * For calls that may commit. An executor tells the salt when it sees that the WAL was started over, which each of its
   * connections sees only by its own last commit; after a checkpoint, when that may happen, it is asked for it.
   */
  get saltFlag(): number {
    return this.wal.salt === undefined || this.#checkpoints > 0 ? CALL_SALT : 0;
  }

  /** Takes an answer, and what it says about the WAL. */
  resultOf(flags: number, walFrames: number, body: Buffer): CallResult {
    const committed = (flags & DONE_COMMITTED) !== 0;
    let rest = body;
    if (flags & DONE_SALT) {
      this.wal = { salt: body.toString("latin1", 0, SALT_BYTES), frames: walFrames };
      rest = body.subarray(SALT_BYTES);
    } else if (committed)
      // No more frames and no new salt: the executor did not see the WAL start over, so the salt is not known.
      this.wal = {
        salt: walFrames > this.wal.frames && this.#checkpoints === 0 ? this.wal.salt : undefined,
        frames: walFrames,
      };
    return { body: rest, committed, walFrames: this.wal.frames, replayed: (flags & DONE_REPLAYED) !== 0 };
  }

  #run(op: number, payload: Uint8Array, options: CallOptions, record: RequestRecord | undefined): Promise<CallResult> {
    return new Promise((resolve, reject) => {
      const call = new Call({
        op,
        flags: (options.columns ? CALL_COLUMNS : 0) | (record === undefined ? 0 : CALL_RECORD) | this.saltFlag,
        database: this,
        scope: options.scope,
        target: 0,
        resultBytesMax: options.resultBytesMax,
        first: 0,
        second: 0,
        head: record && recordHead(record),
        payload,
        submittedAtMs: this.pool.clock.now(),
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        pinned: undefined,
        onDone: (done, flags, walFrames, body) => {
          const result = this.resultOf(flags, walFrames, body);
          // The commit that was in doubt is this one, and nobody has counted it.
          resolve(done.doubt !== undefined && result.replayed ? { ...result, committed: true } : result);
        },
        onFailed: (_, error, flags) => reject(flags & DONE_COMMITTED ? this.#partlyDone(error) : error),
      });
      this.pool.dispatcher.submit(call, true);
    });
  }

  #partlyDone(error: Error): Error {
    this.wal = { salt: undefined, frames: this.wal.frames };
    return error instanceof Failure ? new PartlyDone(error) : error;
  }

  #openQuery(call: Call, columns: Buffer, options: QueryOptions): PoolQuery {
    const { clock, dispatcher, limits } = this.pool;
    const pipeline = call.ranIn as Pipeline;
    const query = new PoolQuery({
      id: call.id,
      pipeline,
      database: this,
      columns,
      openedAtMs: clock.now(),
      deadlineAtMs: options.deadlineAtMs,
      executionMsMax: options.executionMsMax ?? Number.POSITIVE_INFINITY,
      windowChunks: limits.queryWindowChunks,
      now: () => clock.now(),
      errorOf: (note) => errorOfNote(note, call, clock.now()),
      timeout: () => {
        const { deadlineAtMs, deadlineSource } = options;
        return timeout({ ...call.input, deadlineAtMs, deadlineSource });
      },
      onOver: () => dispatcher.uncount(this),
    });
    this.callCount++;
    pipeline.queries.set(call.id, query);
    query.uncancel = options.cancel?.onCancel(() => query.close());
    return query;
  }

  #closeIn(pipeline: Pipeline): Promise<void> {
    return new Promise((resolve) => {
      const call = new Call({
        ...this.ownInput(OP_CLOSE),
        pinned: pipeline,
        deadlineAtMs: this.pool.clock.now() + CLOSE_DEADLINE_MS,
        onDone: () => resolve(),
        onFailed: () => {
          // Dead, and the connections with it; or held by others, and told to close them when it can.
          pipeline.release(this);
          resolve();
        },
      });
      this.pool.dispatcher.submit(call, false);
    });
  }

  /** From here on the WAL may start over at any time. */
  checkpointBegins(): void {
    this.#checkpoints++;
  }

  /** `mayStartOver`: all frames may be copied, so that the next write starts the WAL over. */
  checkpointed(mayStartOver: boolean): void {
    this.#checkpoints--;
    if (mayStartOver) this.wal = { salt: undefined, frames: this.wal.frames };
  }

  /** Gives the write lock back if this call had it. */
  #letGo(call: Call): void {
    if (this.lockHolder === call) this.pool.dispatcher.unlock(this);
  }
}

/** In front of a query's statement; see protocol.ts. */
function queryHead(windowChunks: number, executionMsMax: number, lifeMs: number): Buffer {
  const head = Buffer.alloc(QUERY_HEAD_BYTES);
  head.writeUInt32LE(windowChunks, QUERY_WINDOW);
  head.writeUInt32LE(Math.min(0x7fffffff, Math.ceil(executionMsMax)), QUERY_EXECUTION_MS);
  head.writeUInt32LE(Math.min(0x7fffffff, Math.max(0, Math.ceil(lifeMs))), QUERY_LIFE_MS);
  return head;
}

/** The record in front of a payload: a length of 16 bits, then id, method and hash with blanks between them. */
function recordHead(record: RequestRecord): Buffer {
  const text = `${record.id} ${record.method} ${record.hash}`;
  const head = Buffer.alloc(2 + text.length);
  head.writeUInt16LE(text.length);
  head.write(text, 2, "latin1");
  return head;
}
