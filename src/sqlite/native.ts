/**
 * The native library as JavaScript sees it: one shared object that is both a SQLite extension and an N-API addon (native/).
 * Every call works on better-sqlite3's own `sqlite3*`; one thread a process.
 */

declare const connectionBrand: unique symbol;
declare const cursorBrand: unique symbol;
export type NativeConnection = { readonly [connectionBrand]: true };
export type NativeCursor = { readonly [cursorBrand]: true };

/** Bits of `flags`. */
export const RUN_COLUMNS = 1;
export const RUN_READ_ONLY = 2;
export const RUN_ELAPSED = 4;
/** Allows the PRAGMAs that hold for one transaction or batch only; `resetPragmas` takes them back. */
export const RUN_TRANSACTION_PRAGMAS = 8;

/** Kinds of failure, as native/runner.h numbers them. */
export const FAILED_REQUEST = 1;
export const FAILED_PREPARE = 2;
export const FAILED_TEXT = 3;
export const FAILED_PARAMETERS = 4;
export const FAILED_STEP = 5;
export const FAILED_SIZE = 6;
export const FAILED_READ_ONLY = 7;
export const FAILED_CLOSED = 8;
/** The authorizer or a reserved name: `action` and `resource` say what. */
export const FAILED_FORBIDDEN = 9;
/** Interrupted: `expected` is 1 for the deadline, 2 for cancel, 3 for memory. */
export const FAILED_INTERRUPTED = 10;

/** Why the last call returned null. */
export interface NativeFailure {
  readonly kind: number;
  /** SQLite's extended result code. */
  readonly code: number;
  /** Byte offset in the SQL, or -1. */
  readonly offset: number;
  readonly expected: number;
  readonly actual: number;
  /** The SQLITE_LIMIT_* number of the limit that was exceeded, or -1; names in `limitNames`. */
  readonly limit: number;
  readonly message: string;
  readonly parameter: string;
  readonly action: string;
  readonly resource: string;
  /** False when the failure has ended the transaction that was open. */
  readonly transactionOpen: boolean;
}

/** Names of SQLite's limits by SQLITE_LIMIT_* number: the order of the Int32Array that `guard` takes. */
export const limitNames = [
  "value bytes",
  "SQL bytes",
  "columns",
  "expression depth",
  "compound SELECT terms",
  "program instructions",
  "function arguments",
  "attached databases",
  "LIKE pattern bytes",
  "parameters",
  "trigger depth",
  "worker threads",
] as const;
/** Length of that array; -1 keeps a limit as it is. */
export const LIMIT_COUNT = limitNames.length;

export type Control = "begin" | "beginImmediate" | "commit" | "rollback";

/** Calls with a closed connection or cursor fail with FAILED_CLOSED, or do nothing where there is nothing to answer. */
export interface Native {
  /** Lends the buffer that answers are written to; it must never be transferred. */
  output(buffer: Buffer): void;
  /**
   * Takes the connection that better-sqlite3 opened last: lookaside off, NO_CKPT_ON_CLOSE, no automatic checkpoint, WAL hook.
   * Must be the first thing after `new Database`. `cacheCount`: prepared statements kept.
   */
  connect(cacheCount: number): NativeConnection;
  /**
   * Turns the guard on: limits, DEFENSIVE, trusted_schema off, no extensions, authorizer. `readOnly` refuses all that is not a
   * read. Once more: other limits. From then on the rules hold for better-sqlite3's own statements on the connection, too.
   */
  guard(connection: NativeConnection, limits: Int32Array, readOnly: boolean): void;
  /**
   * While true the authorizer lets everything pass, but not in views and triggers: only around the server's own statements,
   * which for that reason read reserved tables in no subquery with a name.
   */
  trust(connection: NativeConnection, on: boolean): void;
  /** Runs a Statement to its end: the length of a ResultSet in the output at `at`, a Buffer when it did not fit, null on failure. `deadlineMs` from now. */
  run(
    connection: NativeConnection,
    request: Buffer,
    start: number,
    end: number,
    at: number,
    flags: number,
    scope: number,
    bytesMax: number,
    deadlineMs: number,
  ): number | Buffer | null;
  /** Runs SQL text of many statements inside the open transaction: [statements, rows affected] or null; failure().actual is then the statement's number from 0. */
  script(
    connection: NativeConnection,
    text: Buffer,
    start: number,
    end: number,
    flags: number,
    scope: number,
    deadlineMs: number,
  ): [number, number] | null;
  /** Begins a read and takes its snapshot; null on failure, also for what writes. A rollback or an interrupt on the connection ends it. */
  open(
    connection: NativeConnection,
    request: Buffer,
    start: number,
    end: number,
    flags: number,
    scope: number,
    deadlineMs: number,
  ): NativeCursor | null;
  /** `repeated Column columns = 1`, as QueryHeader has it. */
  columns(cursor: NativeCursor, at: number): number | Buffer | null;
  /** One QueryResponse with the next rows, undefined at the end. Cut after `rowsMax`, `bytesMax`, or `softMs` (0: no bound). */
  next(
    cursor: NativeCursor,
    at: number,
    rowsMax: number,
    bytesMax: number,
    softMs: number,
    deadlineMs: number,
  ): number | Buffer | undefined | null;
  /** Rows given so far. */
  rows(cursor: NativeCursor): number;
  close(cursor: NativeCursor): void;
  /** Trusted and cached: BEGIN and friends. False on failure. COMMIT may fail for a deferred foreign key. */
  control(connection: NativeConnection, what: Control, deadlineMs: number): boolean;
  /** Names differ by case, too; at most 1,000 bytes, without NUL. */
  savepoint(connection: NativeConnection, what: "savepoint" | "release" | "rollbackTo", name: string): boolean;
  /** Takes back what RUN_TRANSACTION_PRAGMAS allowed. */
  resetPragmas(connection: NativeConnection): void;
  inTransaction(connection: NativeConnection): boolean;
  /** Commits this connection has made since it was opened. */
  commits(connection: NativeConnection): number;
  /** Frames in the WAL at this connection's last commit. */
  frames(connection: NativeConnection): number;
  /** [result code, frames in the WAL, frames copied back]. Modes: -1 none, only look; 0 passive; 3 truncate. */
  checkpoint(connection: NativeConnection, mode: number): [number, number, number];
  /** sqlite3_db_release_memory. */
  shrink(connection: NativeConnection): void;
  /** malloc_trim of the process. */
  trim(): void;
  /** Finalises every statement, cached or open. */
  release(connection: NativeConnection): void;
  /** Maps the first bytes of a file that processes share; the file must be as long, and may be closed afterwards. */
  sharedPage(fd: number, bytes: number): ArrayBuffer;
  /** Interrupts the running statement when word `cancelWord` equals word `begunWord` and is not 0. */
  watch(page: ArrayBuffer, begunWord: number, cancelWord: number): void;
  /** Interrupts statements while the process's resident memory is above this; 0: no bound. */
  memoryLimit(bytes: number): void;
  /** From now on this process ends at once when `parentPid` is not its parent any more, whatever it is doing. */
  exitWithParent(parentPid: number): void;
  /** Of the last call that answered null or false. */
  failure(): NativeFailure;
}
