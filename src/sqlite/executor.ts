/**
 * Running SQL: the interface between the engine and whatever runs SQLite. Requests and results are protobuf bytes of
 * persisto.v1 that nobody above decodes. Two implementations: a pool of processes, and one in process.
 */

import { Failure } from "../failure/failure.ts";

/** What SQLite needs to know to open a database. */
export interface DatabaseFile {
  /** The database's id, for messages. */
  readonly id: string;
  /** Absolute path of the database file; its -wal and -shm lie beside it. */
  readonly path: string;
  readonly foreignKeys: boolean;
}

/** Options of one statement, batch or script. */
export interface CallOptions {
  /** persisto.v1.RowFormat: columns when true, rows when false. */
  readonly columns: boolean;
  /** Cache scope: callers with other rights have other scopes. 0 until grants by table exist. */
  readonly scope: number;
  /** Longest result in bytes; beyond it RESULT_TOO_LARGE and nothing has taken effect. Of a query: its longest row, LIMIT_EXCEEDED. */
  readonly resultBytesMax: number;
  /** When the call's time is over, in milliseconds of the clock's `now()`. */
  readonly deadlineAtMs: number;
  /** Whose limit that is: metadata of STATEMENT_TIMEOUT. */
  readonly deadlineSource: "client" | "server";
  /** Ends the wait and interrupts the statement; the promise then rejects with CallCancelled. */
  readonly cancel: Cancel | undefined;
}

/** A light AbortSignal: no allocation while nobody cancels. */
export interface Cancel {
  readonly cancelled: boolean;
  /** Called once at most. Returns a function that takes the listener back. */
  onCancel(listener: () => void): () => void;
}

/** The caller went away; nobody reads the answer. Never sent to anyone. */
export class CallCancelled extends Error {
  override readonly name = "CallCancelled";
}

/** A statement failed, and what it had done until then is committed: INSERT OR FAIL, RAISE(FAIL). */
export class PartlyDone extends Failure {
  constructor({ reason, facts, retryAfterMs, violations }: Failure) {
    super(reason, facts, { violations, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) });
  }
}

/** Makes a call apply once: see docs/design of request ids in DESIGN.md. */
export interface RequestRecord {
  /** 16 bytes of the UUID, as 32 hex digits. */
  readonly id: string;
  /** Name of the RPC method. */
  readonly method: string;
  /** Hash of the request without its request_id. */
  readonly hash: string;
}

/** The outcome of a call that ran to its end. */
export interface CallResult {
  /** Protobuf fields of the answer, without position; valid for good. */
  readonly body: Uint8Array;
  /** True when this call committed something. */
  readonly committed: boolean;
  /** Frames in the WAL after it. */
  readonly walFrames: number;
  /** True when `body` is the stored answer of an earlier call with the same request id. */
  readonly replayed: boolean;
}

/** Rows of a query, chunk by chunk. The reader's pace is the sender's: at most a window of chunks is on its way. */
export interface QueryCursor {
  /** Bytes of `repeated Column columns = 1`, as QueryHeader holds them. */
  readonly columns: Uint8Array;
  /** The next whole QueryResponse (row_batch or column_batch), or undefined at the end. Rejects as the other calls do. */
  next(): Promise<Uint8Array | undefined>;
  /** After the end: how many rows there were, and the time SQLite took. */
  summary(): { readonly rowCount: bigint; readonly elapsedNs: bigint };
  /** Ends the query and its snapshot; harmless when it is over. */
  close(): void;
}

/**
 * Options of a query. Its deadline is the end of its life, read or not, because an open snapshot keeps the WAL from starting
 * over.
 */
export interface QueryOptions extends CallOptions {
  /** Time that SQLite may spend on it, summed over its chunks: a slow reader costs none. Unbounded when left out. */
  readonly executionMsMax?: number;
  /** Bounds of a chunk; the first one is cut after 50 rows or 10 ms. */
  readonly chunkRowsMax: number;
  readonly chunkBytesMax: number;
}

/** A transaction on a connection of its own. Commands run one at a time, in order. */
export interface ExecutorTransaction {
  /** Bytes of a ResultSet. A failed statement leaves the transaction open unless `isOpen` says otherwise. */
  execute(statement: Uint8Array, options: CallOptions): Promise<CallResult>;
  savepoint(id: string, options: CallOptions): Promise<void>;
  rollbackTo(id: string, options: CallOptions): Promise<void>;
  commit(options: CallOptions): Promise<CallResult>;
  rollback(): Promise<void>;
  /** False after its end, whoever ended it (commit, rollback, SQLite, the executor's death). */
  readonly isOpen: boolean;
}

/**
 * Checkpoints that copy no more than was committed when `pin` answered, however much is written meanwhile. Everything runs in
 * one executor, another one than the writer's where there is one; its death ends pin and checkpoint together. One call at a
 * time.
 */
export interface Checkpointer {
  /** Takes a snapshot of the database, in place of an earlier one. */
  pin(): Promise<void>;
  /** Copies back what was committed at the pin, unless other reads hold it back, and lets the pin go. */
  checkpoint(): Promise<CheckpointCounts>;
  /** Lets everything go. Never rejects. */
  close(): Promise<void>;
}

/** Frames in the WAL at a checkpoint, and how many of them are copied back. */
export interface CheckpointCounts {
  readonly frames: number;
  readonly done: number;
}

/** One database as the executors see it. All methods reject with a Failure, or CallCancelled. */
export interface ExecutorDatabase {
  readonly file: DatabaseFile;
  /** Execute: one statement on the writing connection. Body: `ResultSet result = 1`. */
  execute(statement: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult>;
  /** Read: one statement on a reading connection. Body: `ResultSet result = 1`. */
  read(statement: Uint8Array, options: CallOptions): Promise<CallResult>;
  /** ExecuteBatch: `request` is the whole ExecuteBatchRequest; its `steps = 2` run in one transaction. Body: `repeated ResultSet results = 1`. */
  batch(request: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult>;
  /** ExecuteScript. Body: `statement_count = 1`, `rows_affected = 2`. */
  script(text: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult>;
  /** Query: one statement on a reading connection of its own. Resolves when the first step has run. */
  query(statement: Uint8Array, options: QueryOptions): Promise<QueryCursor>;
  /** Begins a transaction; READ_WRITE takes the write lock, waiting for it in the queue of the database. */
  begin(readWrite: boolean, options: CallOptions): Promise<ExecutorTransaction>;
  /** Checkpoints; never blocks writers. `done` = frames copied back. Busy databases answer done < frames. */
  checkpoint(mode: "passive" | "truncate"): Promise<CheckpointCounts>;
  /** Opens nothing before the first `pin`. To be closed before the database is. */
  checkpointer(): Checkpointer;
  /** Runs PRAGMA quick things for a new file: makes it a WAL database with the given page size. Only before other calls. */
  create(pageBytes: number): Promise<void>;
  /** Replaces the options for connections opened from now on, and closes the present idle ones. */
  reconfigure(file: DatabaseFile): void;
  /** Refuses new calls, waits for those running (or ends them when `force`), closes all connections. The file may go afterwards. */
  close(force: boolean): Promise<void>;
}

/** What an executor looks like from outside, for metrics. */
export interface ExecutorStats {
  readonly executors: number;
  readonly busy: number;
  readonly waitingCalls: number;
  readonly runningCalls: number;
  readonly openConnections: number;
  readonly restarts: number;
  readonly residentBytes: number;
}

/** All executors. */
export interface Executors {
  readonly sqliteVersion: string;
  /** Makes a database known; opens nothing yet. */
  open(file: DatabaseFile): ExecutorDatabase;
  stats(): ExecutorStats;
  /** To be called about once a second: closes what is idle, shrinks memory. */
  tidy(): void;
  /** Waits for running calls up to `graceMs`, then ends them. */
  close(graceMs: number): Promise<void>;
}

/** Limits of executors and of SQL; each has a setting of the same name. */
export interface ExecutorLimits {
  readonly executorCountMin: number;
  readonly executorCountMax: number;
  /** A call waits at most this long behind another database's statement before it moves. */
  readonly executorStallMs: number;
  /** After a deadline, how long until the executor is killed. */
  readonly executorGraceMs: number;
  readonly executorMemoryBytesMax: number;
  /** Open connections per executor. */
  readonly connectionCountMax: number;
  readonly connectionIdleMs: number;
  readonly statementCacheCount: number;
  /** Calls of one database running and waiting; beyond it DATABASE_BUSY. */
  readonly databaseCallsMax: number;
  readonly databaseBytesMax: number;
  /** Chunks of a query sent and not yet taken by the reader. */
  readonly queryWindowChunks: number;
  readonly valueBytesMax: number;
  readonly sqlBytesMax: number;
  readonly columnCountMax: number;
  readonly expressionDepthMax: number;
  readonly compoundSelectCountMax: number;
  readonly vdbeOpCountMax: number;
  readonly functionArgumentCountMax: number;
  readonly likePatternBytesMax: number;
  readonly parameterCountMax: number;
  readonly triggerDepthMax: number;
  /** request_id records: kept this long, and this many a database. */
  readonly requestRecordMs: number;
  readonly requestRecordCountMax: number;
}
