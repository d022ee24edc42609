/** What every kind of call in an executor needs: the call that runs, connections, the answer being written, SQLite. */
import type { Clock } from "../clock.ts";
import type { Answers } from "./answers.ts";
import type { Connection, Connections, OpenDatabase } from "./connections.ts";
import type { ExecutorLimits } from "./executor.ts";
import { type FailureContext, NotedFailure, noteOfNative } from "./failure-notes.ts";
import { type Control, type Native, RUN_COLUMNS, RUN_ELAPSED } from "./native.ts";
import {
  ANSWER_DONE,
  CALL_COLUMNS,
  CALL_DATABASE,
  CALL_DEADLINE_MS,
  CALL_FIRST,
  CALL_FLAGS,
  CALL_HEADER_BYTES,
  CALL_ID,
  CALL_OP,
  CALL_RESULT_BYTES_MAX,
  CALL_SALT,
  CALL_SCOPE,
  CALL_SECOND,
  CALL_TARGET,
  DONE_COMMITTED,
} from "./protocol.ts";
import { walSalt } from "./wal-salt.ts";

/** For the server's own short statements, which no caller's deadline covers. */
const OWN_DEADLINE_MS = 60_000;

const nothing = Buffer.alloc(0);

/** The call being run: fields of its header. One object for all calls, as they run one at a time. */
export class CurrentCall {
  id = 0;
  op = 0;
  flags = 0;
  number = 0;
  scope = 0;
  target = 0;
  deadlineAtMs = 0;
  resultBytesMax = 0;
  first = 0;
  second = 0;
  /** Where the payload lies. */
  bytes: Buffer = nothing;
  start = 0;
  end = 0;

  read(bytes: Buffer, start: number, end: number, nowMs: number): void {
    this.id = bytes.readInt32LE(start + CALL_ID);
    this.op = bytes[start + CALL_OP] as number;
    this.flags = bytes[start + CALL_FLAGS] as number;
    this.number = bytes.readInt32LE(start + CALL_DATABASE);
    this.scope = bytes.readUInt32LE(start + CALL_SCOPE);
    this.target = bytes.readInt32LE(start + CALL_TARGET);
    this.deadlineAtMs = nowMs + bytes.readInt32LE(start + CALL_DEADLINE_MS);
    this.resultBytesMax = bytes.readUInt32LE(start + CALL_RESULT_BYTES_MAX);
    this.first = bytes.readUInt32LE(start + CALL_FIRST);
    this.second = bytes.readUInt32LE(start + CALL_SECOND);
    this.bytes = bytes;
    this.start = start + CALL_HEADER_BYTES;
    this.end = end;
  }

  /** Lets the payload go. */
  clear(): void {
    this.bytes = nothing;
  }

  /** The payload as text. */
  text(): string {
    return this.bytes.toString("utf8", this.start, this.end);
  }
}

export interface ExecutionOptions {
  readonly connections: Connections;
  readonly native: Native;
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  readonly answers: Answers;
}

export class Execution {
  readonly connections: Connections;
  readonly native: Native;
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  readonly answers: Answers;
  readonly call = new CurrentCall();
  /** When the frames that are being worked on were read: the time for everything that needs no better one. */
  nowMs = 0;

  constructor(options: ExecutionOptions) {
    this.connections = options.connections;
    this.native = options.native;
    this.limits = options.limits;
    this.clock = options.clock;
    this.answers = options.answers;
  }

  /** The call's database. */
  database(): OpenDatabase {
    return this.connections.get(this.call.number);
  }

  /** What is left of the call's time; throws when that is nothing. */
  leftMs(): number {
    const leftMs = this.call.deadlineAtMs - this.clock.now();
    if (leftMs <= 0) throw interruptedBefore("deadline");
    return leftMs;
  }

  /** Runs a statement; its ResultSet is then in the answers' buffer at `at`, or in one of its own. */
  runAt(at: number, connection: Connection, flags: number, start: number, end: number): number | Buffer {
    const { call } = this;
    const result = this.native.run(
      connection.native,
      call.bytes,
      start,
      end,
      at,
      flags | RUN_ELAPSED | (call.flags & CALL_COLUMNS ? RUN_COLUMNS : 0),
      call.scope,
      Math.max(0, call.resultBytesMax - this.answers.bodyBytes),
      this.leftMs(),
    );
    if (result === null) throw this.failure();
    return result;
  }

  /** BEGIN and its like, in the call's time. */
  control(connection: Connection, what: Control): void {
    if (!this.native.control(connection.native, what, this.leftMs())) throw this.failure();
  }

  /** Whatever the connection is in. */
  rollBack(connection: Connection): void {
    if (this.native.inTransaction(connection.native))
      this.native.control(connection.native, "rollback", OWN_DEADLINE_MS);
  }

  /** Runs statements of the server's own. */
  trusted<T>(connection: Connection, work: () => T): T {
    this.native.trust(connection.native, true);
    try {
      return work();
    } finally {
      this.native.trust(connection.native, false);
    }
  }

  /** Makes SQLite look at the file: takes a snapshot inside a transaction, recovers the WAL when nobody has it open. */
  touch(connection: Connection): void {
    this.trusted(connection, () => connection.database.prepare("SELECT 1 FROM sqlite_schema LIMIT 1").get());
  }

  /** Answers a call that ran on a connection that may have committed. */
  done(database: OpenDatabase, connection: Connection, flags: number): void {
    const commits = this.native.commits(connection.native);
    if (commits === connection.commits) {
      this.answers.finish(this.call.id, ANSWER_DONE, flags, 0, undefined);
      return;
    }
    connection.commits = commits;
    const frames = this.native.frames(connection.native);
    // No more frames than before: the WAL was started over, and has another salt.
    const isNews = frames <= connection.frames || connection.frames === 0 || (this.call.flags & CALL_SALT) !== 0;
    const salt = isNews ? walSalt(database.file.path) : undefined;
    connection.frames = frames;
    this.answers.finish(this.call.id, ANSWER_DONE, flags | DONE_COMMITTED, frames, salt);
  }

  /** What the native library said last. */
  failure(): NotedFailure {
    return new NotedFailure(noteOfNative(this.native.failure(), this.failureContext()));
  }

  failureContext(): FailureContext {
    const { id: database, path } = this.database().file;
    return { database, path, limits: this.limits, resultBytesMax: this.call.resultBytesMax };
  }
}

/** For what did not run because its time was over, or nobody wants it any more. */
export function interruptedBefore(interrupted: "deadline" | "cancel"): NotedFailure {
  return new NotedFailure({ reason: "STATEMENT_TIMEOUT", facts: {}, interrupted });
}
