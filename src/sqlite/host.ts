/**
 * An executor: takes calls as frames, runs them on its connections one after another, answers as frames. The same code is
 * the child process and the in-process implementation.
 */
import { closeSync, openSync, readSync } from "node:fs";
import type Database from "better-sqlite3";
import type { Clock } from "../clock.ts";
import { Answers } from "./answers.ts";
import { forEachStep, rowsAffected } from "./batch.ts";
import { type Connection, Connections, type OpenDatabase } from "./connections.ts";
import type { DatabaseFile, ExecutorLimits, RequestRecord } from "./executor.ts";
import { busyNote, type FailureContext, NotedFailure, noteOfError, noteOfNative } from "./failure-notes.ts";
import { FrameReader, type WriteParts } from "./frames.ts";
import {
  type Native,
  type NativeCursor,
  RUN_COLUMNS,
  RUN_ELAPSED,
  RUN_READ_ONLY,
  RUN_TRANSACTION_PRAGMAS,
} from "./native.ts";
import {
  ANSWER_CHUNK,
  ANSWER_DONE,
  ANSWER_FAILED,
  ANSWER_HELLO,
  ANSWER_QUERY_END,
  ANSWER_QUERY_FAILED,
  ANSWER_REVOKED,
  ANSWER_STATUS,
  CALL_COLUMNS,
  CALL_DATABASE,
  CALL_DEADLINE_MS,
  CALL_FIRST,
  CALL_FLAGS,
  CALL_HEADER_BYTES,
  CALL_ID,
  CALL_OP,
  CALL_RECORD,
  CALL_RESULT_BYTES_MAX,
  CALL_SCOPE,
  CALL_SECOND,
  CALL_TARGET,
  CALL_WRITES,
  CONTROL_CLOSE_QUERY,
  CONTROL_CREDIT,
  CONTROL_DEFINE,
  CONTROL_RELEASE,
  CONTROL_TIDY,
  DONE_COMMITTED,
  DONE_OPEN,
  DONE_REPLAYED,
  FRAME_BYTES_MAX,
  type Hello,
  isFrom,
  OP_BATCH,
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
  OP_ROLLBACK_TO,
  OP_SAVEPOINT,
  OP_SCRIPT,
  OP_TRANSACTION_EXECUTE,
  SALT_BYTES,
  WORD_BEGUN,
  WORD_CANCEL,
  WORD_REVOKED,
  WORD_RUNNING,
} from "./protocol.ts";
import { prepareRecords } from "./records.ts";
import { primaryCode, SQLITE_BUSY } from "./sqlite-codes.ts";
import { varintSize, writeVarint } from "./wire.ts";

/** Answers gathered before they are sent while more calls wait: the server flushes logs meanwhile. */
const CALLS_A_WRITE = 16;

/** The first chunk of a query is small, so that something shows early. */
const FIRST_CHUNK_ROWS = 50;
/** A chunk ends after this long: others wait for their turn. */
const CHUNK_SOFT_MS = 10;

/** Modes of sqlite3_wal_checkpoint_v2. */
const CHECKPOINT_LOOK = -1;
const CHECKPOINT_PASSIVE = 0;
const CHECKPOINT_TRUNCATE = 3;

/** Where the two salts lie in the header of a WAL file. */
const WAL_SALT_OFFSET = 16;

/** For the server's own short statements, which no caller's deadline covers. */
const OWN_DEADLINE_MS = 60_000;

export interface HostOptions {
  readonly Database: typeof Database;
  readonly native: Native;
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  /** Words shared with the server; see DESIGN.md. */
  readonly words: Int32Array;
  readonly write: WriteParts;
}

interface Transaction {
  readonly number: number;
  readonly database: OpenDatabase;
  readonly connection: Connection;
}

interface Query {
  readonly id: number;
  readonly number: number;
  readonly database: OpenDatabase;
  readonly connection: Connection;
  readonly cursor: NativeCursor;
  readonly rowsMax: number;
  readonly bytesMax: number;
  readonly deadlineAtMs: number;
  credits: number;
  waiting: boolean;
  first: boolean;
  elapsedMs: number;
}

/** The call being run: fields of its header. One object for all calls, as they run one at a time. */
interface CurrentCall {
  id: number;
  flags: number;
  number: number;
  scope: number;
  target: number;
  deadlineAtMs: number;
  resultBytesMax: number;
  first: number;
  second: number;
  bytes: Buffer;
  start: number;
  end: number;
}

const nothing = Buffer.alloc(0);

/** Whose buffer the native library has: a process may have several hosts. */
let lender: Host | undefined;

export class Host {
  readonly #Database: typeof Database;
  readonly #native: Native;
  readonly #limits: ExecutorLimits;
  readonly #clock: Clock;
  readonly #words: Int32Array;
  readonly #write: WriteParts;
  readonly #connections: Connections;
  readonly #answers: Answers;
  readonly #reader = new FrameReader(FRAME_BYTES_MAX, (buffer, start, end) => this.#frame(buffer, start, end));
  readonly #transactions = new Map<number, Transaction>();
  readonly #queries = new Map<number, Query>();
  /** Queries that have credit, in the order of their turns. */
  readonly #turns: Query[] = [];
  readonly #call: CurrentCall = {
    id: 0,
    flags: 0,
    number: 0,
    scope: 0,
    target: 0,
    deadlineAtMs: 0,
    resultBytesMax: 0,
    first: 0,
    second: 0,
    bytes: nothing,
    start: 0,
    end: 0,
  };
  #receivedAtMs = 0;
  #unsent = 0;
  #turnPlanned = false;
  #closed = false;

  constructor(options: HostOptions) {
    this.#Database = options.Database;
    this.#native = options.native;
    this.#limits = options.limits;
    this.#clock = options.clock;
    this.#words = options.words;
    this.#write = options.write;
    this.#connections = new Connections(options.Database, options.native, options.limits);
    this.#answers = new Answers((parts) => this.#write(parts));
    this.#native.memoryLimit(options.limits.executorMemoryBytesMax);
  }

  hello(hello: Hello): void {
    this.#answers.begin();
    this.#answers.append(Buffer.from(JSON.stringify(hello)));
    this.#answers.finish(0, ANSWER_HELLO, 0, 0, undefined);
    this.#answers.flush();
  }

  /** Takes what the server sent; throws when it is no protocol. */
  receive(chunk: Buffer): void {
    this.#lend();
    this.#receivedAtMs = this.#clock.now();
    this.#reader.push(chunk);
    this.#flush();
  }

  /** Ends everything. Open transactions roll back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const query of [...this.#queries.values()]) this.#endQuery(query);
    for (const [id, transaction] of [...this.#transactions]) this.#endTransaction(id, transaction);
    this.#connections.closeAll();
  }

  /** The native library writes to one buffer a process. */
  #lend(): void {
    if (lender === this) return;
    lender = this;
    this.#native.output(this.#answers.lent);
  }

  #flush(): void {
    this.#unsent = 0;
    this.#answers.flush();
  }

  #frame(bytes: Buffer, start: number, end: number): void {
    const call = this.#call;
    call.id = bytes.readInt32LE(start + CALL_ID);
    const op = bytes[start + CALL_OP] as number;
    call.flags = bytes[start + CALL_FLAGS] as number;
    call.number = bytes.readInt32LE(start + CALL_DATABASE);
    call.scope = bytes.readUInt32LE(start + CALL_SCOPE);
    call.target = bytes.readInt32LE(start + CALL_TARGET);
    call.deadlineAtMs = this.#receivedAtMs + bytes.readInt32LE(start + CALL_DEADLINE_MS);
    call.resultBytesMax = bytes.readUInt32LE(start + CALL_RESULT_BYTES_MAX);
    call.first = bytes.readUInt32LE(start + CALL_FIRST);
    call.second = bytes.readUInt32LE(start + CALL_SECOND);
    call.bytes = bytes;
    call.start = start + CALL_HEADER_BYTES;
    call.end = end;
    if (op >= CONTROL_DEFINE) this.#control(op);
    else this.#answer(op);
    call.bytes = nothing;
  }

  #answer(op: number): void {
    const call = this.#call;
    const words = this.#words;
    // The server stores REVOKED and then reads BEGUN; we store BEGUN and then read REVOKED. One of us sees the other.
    Atomics.store(words, WORD_BEGUN, call.id);
    const revoked = Atomics.load(words, WORD_REVOKED);
    this.#answers.begin();
    if (revoked !== 0 && isFrom(call.id, revoked)) this.#answers.finish(call.id, ANSWER_REVOKED, 0, 0, undefined);
    else {
      Atomics.store(words, WORD_RUNNING, call.id);
      try {
        if (Atomics.load(words, WORD_CANCEL) === call.id) throw interruptedBefore("cancel");
        this.#run(op);
      } catch (error) {
        this.#fail(error);
      }
      Atomics.store(words, WORD_RUNNING, 0);
    }
    if (++this.#unsent >= CALLS_A_WRITE) this.#flush();
  }

  #run(op: number): void {
    switch (op) {
      case OP_EXECUTE:
        this.#execute();
        return;
      case OP_READ:
        this.#read();
        return;
      case OP_BATCH:
        this.#batch();
        return;
      case OP_SCRIPT:
        this.#script();
        return;
      case OP_QUERY:
        this.#query();
        return;
      case OP_BEGIN:
        this.#begin();
        return;
      case OP_TRANSACTION_EXECUTE:
        this.#transactionExecute();
        return;
      case OP_SAVEPOINT:
        this.#savepoint("savepoint");
        return;
      case OP_ROLLBACK_TO:
        this.#savepoint("rollbackTo");
        return;
      case OP_COMMIT:
        this.#commit();
        return;
      case OP_ROLLBACK:
        this.#rollback();
        return;
      case OP_CREATE:
        this.#create();
        return;
      case OP_CHECKPOINT:
        this.#checkpoint();
        return;
      case OP_INSPECT:
        this.#inspect();
        return;
      case OP_CLOSE:
        this.#closeDatabase();
        return;
      default:
        throw new Error(`unknown call ${op}`);
    }
  }

  #control(op: number): void {
    const call = this.#call;
    switch (op) {
      case CONTROL_DEFINE:
        this.#connections.define(
          call.number,
          JSON.parse(call.bytes.toString("utf8", call.start, call.end)) as DatabaseFile,
        );
        return;
      case CONTROL_CREDIT: {
        const query = this.#queries.get(call.target);
        if (query === undefined) return;
        query.credits += call.first;
        this.#enqueue(query);
        return;
      }
      case CONTROL_CLOSE_QUERY: {
        const query = this.#queries.get(call.target);
        if (query !== undefined) this.#finishQuery(query);
        return;
      }
      case CONTROL_TIDY:
        this.#connections.tidy(this.#receivedAtMs);
        this.#status();
        return;
      case CONTROL_RELEASE:
        this.#connections.release(call.number);
        return;
      default:
        throw new Error(`unknown control ${op}`);
    }
  }

  // ---- single calls

  #execute(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.writer(database, this.#receivedAtMs);
    if (call.flags & CALL_RECORD) {
      this.#atomically(database, connection, () => this.#runInto(connection, 0, call.start, call.end));
      return;
    }
    this.#runInto(connection, 0, call.start, call.end);
    this.#done(database, connection, 0);
  }

  #read(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.take(database, true, this.#receivedAtMs);
    try {
      this.#runInto(connection, RUN_READ_ONLY, call.start, call.end);
    } finally {
      this.#connections.giveBack(database, connection);
    }
    this.#answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  #batch(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.writer(database, this.#receivedAtMs);
    this.#atomically(database, connection, () => {
      let index = 0;
      forEachStep(call.bytes, call.start, call.end, (step) => {
        try {
          this.#runInto(connection, RUN_TRANSACTION_PRAGMAS, step.start, step.end, step.expected);
        } catch (error) {
          throw withStep(error, index, this.#context(database));
        }
        index++;
      });
    });
  }

  #script(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.writer(database, this.#receivedAtMs);
    this.#atomically(database, connection, () => {
      const done = this.#native.script(
        connection.native,
        call.bytes,
        call.start,
        call.end,
        RUN_TRANSACTION_PRAGMAS,
        call.scope,
        this.#left(),
      );
      if (done === null) {
        const failure = this.#native.failure();
        throw withStep(new NotedFailure(noteOfNative(failure, this.#context(database))), failure.actual);
      }
      this.#answers.append(scriptAnswer(done[0], done[1]));
    });
  }

  /** Runs a statement and adds its result to the answer, as `result = 1` (or one of `results`). */
  #runInto(connection: Connection, flags: number, start: number, end: number, expected?: bigint): void {
    const answers = this.#answers;
    const at = answers.resultAt;
    const result = this.#runAt(at, connection, flags, start, end);
    if (expected !== undefined) {
      const actual =
        typeof result === "number"
          ? rowsAffected(answers.buffer, at, at + result)
          : rowsAffected(result, 0, result.length);
      if (actual !== expected)
        throw new NotedFailure({
          reason: "EXPECTATION_FAILED",
          facts: { expected: `${expected}`, actual: `${actual}` },
        });
    }
    answers.wrap(result);
  }

  /** Runs a statement; its ResultSet is then in the answers' buffer at `at`, or in one of its own. */
  #runAt(at: number, connection: Connection, flags: number, start: number, end: number): number | Buffer {
    const call = this.#call;
    const result = this.#native.run(
      connection.native,
      call.bytes,
      start,
      end,
      at,
      flags | RUN_ELAPSED | (call.flags & CALL_COLUMNS ? RUN_COLUMNS : 0),
      call.scope,
      Math.max(0, call.resultBytesMax - this.#answers.bodyBytes),
      this.#left(),
    );
    if (result === null) throw new NotedFailure(noteOfNative(this.#native.failure(), this.#context(undefined)));
    return result;
  }

  /** Runs `work` in a transaction of its own, with the request's record when there is one, and answers. */
  #atomically(database: OpenDatabase, connection: Connection, work: () => void): void {
    const call = this.#call;
    const native = this.#native;
    const record = call.flags & CALL_RECORD ? this.#readRecord() : undefined;
    this.#mustControl(connection, "beginImmediate");
    try {
      const earlier = record && this.#trusted(connection, () => this.#records(connection).find(record));
      if (earlier !== undefined) {
        native.control(connection.native, "rollback", OWN_DEADLINE_MS);
        this.#answers.append(earlier);
        this.#done(database, connection, DONE_REPLAYED);
        return;
      }
      work();
      if (record !== undefined) {
        const body = this.#answers.body();
        this.#trusted(connection, () => this.#records(connection).add(record, body, this.#clock.wallMs()));
      }
      this.#mustControl(connection, "commit");
    } catch (error) {
      if (native.inTransaction(connection.native)) native.control(connection.native, "rollback", OWN_DEADLINE_MS);
      throw error;
    } finally {
      native.resetPragmas(connection.native);
    }
    this.#done(database, connection, 0);
  }

  /** Takes the record from the front of the payload. */
  #readRecord(): RequestRecord {
    const call = this.#call;
    const length = call.bytes.readUInt16LE(call.start);
    const text = call.bytes.toString("latin1", call.start + 2, call.start + 2 + length);
    call.start += 2 + length;
    const [id = "", method = "", hash = ""] = text.split(" ");
    return { id, method, hash };
  }

  #records(connection: Connection) {
    connection.records ??= prepareRecords(connection.database, this.#limits);
    return connection.records;
  }

  #trusted<T>(connection: Connection, work: () => T): T {
    this.#native.trust(connection.native, true);
    try {
      return work();
    } finally {
      this.#native.trust(connection.native, false);
    }
  }

  #mustControl(connection: Connection, what: "begin" | "beginImmediate" | "commit" | "rollback"): void {
    if (!this.#native.control(connection.native, what, this.#left()))
      throw new NotedFailure(noteOfNative(this.#native.failure(), this.#context(undefined)));
  }

  /** Answers a call that ran on a connection that may have committed. */
  #done(database: OpenDatabase, connection: Connection, flags: number): void {
    const commits = this.#native.commits(connection.native);
    if (commits === connection.commits) {
      this.#answers.finish(this.#call.id, ANSWER_DONE, flags, 0, undefined);
      return;
    }
    connection.commits = commits;
    const frames = this.#native.frames(connection.native);
    // Fewer frames than before: the WAL was started over, and has another salt.
    const salt = frames <= connection.frames || connection.frames === 0 ? walSalt(database.file.path) : undefined;
    connection.frames = frames;
    this.#answers.finish(this.#call.id, ANSWER_DONE, flags | DONE_COMMITTED, frames, salt);
  }

  // ---- transactions

  #begin(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const writes = (call.flags & CALL_WRITES) !== 0;
    const connection = this.#connections.take(database, !writes, this.#receivedAtMs);
    try {
      this.#mustControl(connection, writes ? "beginImmediate" : "begin");
      // A snapshot is taken by the first read.
      if (!writes) this.#touch(connection);
    } catch (error) {
      if (this.#native.inTransaction(connection.native))
        this.#native.control(connection.native, "rollback", OWN_DEADLINE_MS);
      this.#connections.giveBack(database, connection);
      throw error;
    }
    this.#transactions.set(call.id, { number: call.number, database, connection });
    this.#answers.finish(call.id, ANSWER_DONE, DONE_OPEN, 0, undefined);
  }

  #transaction(): Transaction {
    const transaction = this.#transactions.get(this.#call.target);
    if (transaction === undefined)
      throw new NotedFailure({ reason: "TRANSACTION_NOT_OPEN", facts: { command: "this command" } });
    transaction.database.lastUsedMs = this.#receivedAtMs;
    return transaction;
  }

  #transactionExecute(): void {
    const call = this.#call;
    const { connection } = this.#transaction();
    const flags = RUN_TRANSACTION_PRAGMAS | (connection.readOnly ? RUN_READ_ONLY : 0);
    this.#answers.take(this.#runAt(this.#answers.at, connection, flags, call.start, call.end));
    this.#transactionDone();
  }

  #savepoint(what: "savepoint" | "rollbackTo"): void {
    const call = this.#call;
    const { connection } = this.#transaction();
    if (!this.#native.savepoint(connection.native, what, call.bytes.toString("utf8", call.start, call.end)))
      throw new NotedFailure(noteOfNative(this.#native.failure(), this.#context(undefined)));
    this.#transactionDone();
  }

  #commit(): void {
    const { connection } = this.#transaction();
    this.#mustControl(connection, "commit");
    this.#transactionDone();
  }

  #rollback(): void {
    const transaction = this.#transactions.get(this.#call.target);
    if (transaction !== undefined) this.#endTransaction(this.#call.target, transaction);
    this.#answers.finish(this.#call.id, ANSWER_DONE, 0, 0, undefined);
  }

  #transactionDone(): void {
    const call = this.#call;
    const transaction = this.#transactions.get(call.target) as Transaction;
    const { connection, database } = transaction;
    if (this.#native.inTransaction(connection.native)) {
      this.#answers.finish(call.id, ANSWER_DONE, DONE_OPEN, 0, undefined);
      return;
    }
    this.#done(database, connection, 0);
    this.#endTransaction(call.target, transaction);
  }

  #endTransaction(id: number, transaction: Transaction): void {
    const { connection, database } = transaction;
    this.#transactions.delete(id);
    if (this.#native.inTransaction(connection.native))
      this.#native.control(connection.native, "rollback", OWN_DEADLINE_MS);
    this.#native.resetPragmas(connection.native);
    this.#connections.giveBack(database, connection);
  }

  // ---- queries

  #query(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.take(database, true, this.#receivedAtMs);
    const startedAtMs = this.#clock.now();
    let cursor: NativeCursor | null = null;
    try {
      cursor = this.#native.open(
        connection.native,
        call.bytes,
        call.start + QUERY_WINDOW_BYTES,
        call.end,
        RUN_READ_ONLY | (call.flags & CALL_COLUMNS ? RUN_COLUMNS : 0),
        call.scope,
        this.#left(),
      );
      const columns = cursor && this.#native.columns(cursor, this.#answers.at);
      if (cursor === null || columns === null)
        throw new NotedFailure(noteOfNative(this.#native.failure(), this.#context(undefined)));
      this.#answers.take(columns);
    } catch (error) {
      if (cursor !== null) this.#native.close(cursor);
      this.#connections.giveBack(database, connection);
      throw error;
    }
    const query: Query = {
      id: call.id,
      number: call.number,
      database,
      connection,
      cursor,
      rowsMax: call.first,
      bytesMax: call.second,
      deadlineAtMs: call.deadlineAtMs,
      credits: call.bytes.readUInt32LE(call.start),
      waiting: false,
      first: true,
      elapsedMs: this.#clock.now() - startedAtMs,
    };
    this.#queries.set(query.id, query);
    this.#answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
    this.#enqueue(query);
  }

  #enqueue(query: Query): void {
    if (!query.waiting && query.credits > 0) {
      query.waiting = true;
      this.#turns.push(query);
    }
    if (this.#turnPlanned || this.#turns.length === 0) return;
    this.#turnPlanned = true;
    setImmediate(() => {
      this.#turnPlanned = false;
      const next = this.#turns.shift();
      if (next === undefined) return;
      this.#chunk(next);
      this.#flush();
      // What has come meanwhile is read before the next chunk.
      const again = this.#turns[0];
      if (again !== undefined) this.#enqueue(again);
    });
  }

  /** Sends a query's next chunk. */
  #chunk(query: Query): void {
    query.waiting = false;
    if (!this.#queries.has(query.id)) return;
    this.#lend();
    this.#receivedAtMs = this.#clock.now();
    query.database.lastUsedMs = this.#receivedAtMs;
    const leftMs = query.deadlineAtMs - this.#receivedAtMs;
    Atomics.store(this.#words, WORD_RUNNING, query.id);
    this.#answers.begin();
    const chunk =
      leftMs <= 0
        ? null
        : this.#native.next(
            query.cursor,
            this.#answers.at,
            query.first ? Math.min(FIRST_CHUNK_ROWS, query.rowsMax) : query.rowsMax,
            query.bytesMax,
            CHUNK_SOFT_MS,
            leftMs,
          );
    Atomics.store(this.#words, WORD_RUNNING, 0);
    query.first = false;
    query.elapsedMs += this.#clock.now() - this.#receivedAtMs;
    if (chunk === undefined) this.#finishQuery(query);
    else if (chunk === null) {
      const note =
        leftMs <= 0
          ? interruptedBefore("deadline").note
          : noteOfNative(this.#native.failure(), this.#contextOf(query.database, 0));
      this.#endQuery(query);
      this.#answers.append(Buffer.from(JSON.stringify(note)));
      this.#answers.finish(query.id, ANSWER_QUERY_FAILED, 0, 0, undefined);
    } else {
      this.#answers.take(chunk);
      this.#answers.finish(query.id, ANSWER_CHUNK, 0, 0, undefined);
      query.credits--;
      if (query.credits > 0) {
        query.waiting = true;
        this.#turns.push(query);
      }
    }
  }

  /** Ends a query and says so. */
  #finishQuery(query: Query): void {
    const summary = Buffer.alloc(16);
    summary.writeBigUInt64LE(BigInt(this.#native.rows(query.cursor)), 0);
    summary.writeBigUInt64LE(BigInt(Math.round(query.elapsedMs * 1e6)), 8);
    this.#endQuery(query);
    this.#answers.begin();
    this.#answers.append(summary);
    this.#answers.finish(query.id, ANSWER_QUERY_END, 0, 0, undefined);
  }

  #endQuery(query: Query): void {
    this.#queries.delete(query.id);
    this.#native.close(query.cursor);
    this.#connections.giveBack(query.database, query.connection);
  }

  // ---- the life of a database

  #create(): void {
    const call = this.#call;
    const { file } = this.#connections.get(call.number);
    const created = new this.#Database(file.path, { timeout: 0 });
    try {
      created.exec(`PRAGMA synchronous=FULL; PRAGMA page_size=${call.first}; PRAGMA journal_mode=WAL`);
    } finally {
      created.close();
    }
    this.#answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  #checkpoint(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    // Without a connection here this one is for the checkpoint alone: this executor is not the database's home.
    const connection = database.writer ?? this.#connections.openPlain(database);
    try {
      const mode = call.flags & CALL_WRITES ? CHECKPOINT_TRUNCATE : CHECKPOINT_PASSIVE;
      const [code, frames, done] = this.#native.checkpoint(connection.native, mode);
      if (code !== 0 && primaryCode(code) !== SQLITE_BUSY)
        throw new NotedFailure(noteOfNative(this.#native.failure(), this.#context(database)));
      const counts = Buffer.alloc(8);
      counts.writeUInt32LE(Math.max(0, frames), 0);
      counts.writeUInt32LE(Math.max(0, done), 4);
      this.#answers.append(counts);
    } finally {
      if (connection !== database.writer) this.#connections.closePlain(connection);
    }
    this.#answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  #inspect(): void {
    const call = this.#call;
    const database = this.#connections.get(call.number);
    const connection = this.#connections.writer(database, this.#receivedAtMs);
    this.#touch(connection);
    const [code, frames] = this.#native.checkpoint(connection.native, CHECKPOINT_LOOK);
    if (code !== 0) throw new NotedFailure(busyNote(database.file.id, "its log is being recovered"));
    this.#answers.finish(call.id, ANSWER_DONE, 0, Math.max(0, frames), walSalt(database.file.path));
  }

  #closeDatabase(): void {
    const { number, id } = this.#call;
    for (const query of [...this.#queries.values()]) if (query.number === number) this.#endQuery(query);
    for (const [target, transaction] of [...this.#transactions])
      if (transaction.number === number) this.#endTransaction(target, transaction);
    this.#connections.forget(number);
    this.#answers.finish(id, ANSWER_DONE, 0, 0, undefined);
  }

  /** Makes SQLite look at the file: takes a snapshot inside a transaction, recovers the WAL when nobody has it open. */
  #touch(connection: Connection): void {
    this.#trusted(connection, () => connection.database.prepare("SELECT 1 FROM sqlite_schema LIMIT 1").get());
  }

  // ---- the rest

  #left(): number {
    const leftMs = this.#call.deadlineAtMs - this.#clock.now();
    if (leftMs <= 0) throw interruptedBefore("deadline");
    return leftMs;
  }

  #context(database: OpenDatabase | undefined): FailureContext {
    return this.#contextOf(database ?? this.#connections.get(this.#call.number), this.#call.resultBytesMax);
  }

  #contextOf(database: OpenDatabase, resultBytesMax: number): FailureContext {
    return { database: database.file.id, limits: this.#limits, resultBytesMax };
  }

  /** Answers that the call failed, and whether a transaction that it belongs to goes on. */
  #fail(error: unknown): void {
    const call = this.#call;
    let flags = 0;
    const transaction = this.#transactions.get(call.target);
    if (call.target !== 0 && transaction !== undefined) {
      if (this.#native.inTransaction(transaction.connection.native)) flags = DONE_OPEN;
      else this.#endTransaction(call.target, transaction);
    }
    const note = noteOfError(error, this.#context(undefined));
    this.#answers.begin();
    this.#answers.append(Buffer.from(JSON.stringify(note)));
    this.#answers.finish(call.id, ANSWER_FAILED, flags, 0, undefined);
  }

  #status(): void {
    const status = Buffer.alloc(12);
    status.writeUInt32LE(this.#connections.openCount, 0);
    status.writeBigUInt64LE(BigInt(process.memoryUsage.rss()), 4);
    this.#answers.begin();
    this.#answers.append(status);
    this.#answers.finish(0, ANSWER_STATUS, 0, 0, undefined);
  }
}

/** Chunks that may be sent at first: in front of a query's statement. */
export const QUERY_WINDOW_BYTES = 4;

function interruptedBefore(interrupted: "deadline" | "cancel"): NotedFailure {
  return new NotedFailure({ reason: "STATEMENT_TIMEOUT", facts: {}, interrupted });
}

/** The failure with the number of the step or statement that it happened in. */
function withStep(error: unknown, step: number, context?: FailureContext): unknown {
  if (!(error instanceof NotedFailure) && context === undefined) return error;
  const note = error instanceof NotedFailure ? error.note : noteOfError(error, context as FailureContext);
  return new NotedFailure({ ...note, facts: { ...note.facts, step: `${step}` } });
}

/** `statement_count = 1`, `rows_affected = 2`. */
function scriptAnswer(statements: number, rows: number): Buffer {
  const bytes = Buffer.alloc(2 + varintSize(statements) + varintSize(rows));
  bytes[0] = 0x08;
  const next = writeVarint(bytes, 1, statements);
  bytes[next] = 0x10;
  writeVarint(bytes, next + 1, rows);
  return bytes;
}

/** The salts in the header of the WAL: another history of frames has others. Zero when there is no header. */
function walSalt(databasePath: string): Buffer {
  const salt = Buffer.alloc(SALT_BYTES);
  let descriptor: number;
  try {
    descriptor = openSync(`${databasePath}-wal`, "r");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return salt;
    throw error;
  }
  try {
    readSync(descriptor, salt, 0, SALT_BYTES, WAL_SALT_OFFSET);
  } finally {
    closeSync(descriptor);
  }
  return salt;
}
