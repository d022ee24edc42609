/** Calls that are a transaction by themselves: Execute, Read, ExecuteBatch, ExecuteScript. */
import { forEachStep, rowsAffected } from "./batch.ts";
import type { Connection, OpenDatabase } from "./connections.ts";
import type { Execution } from "./execution.ts";
import type { RequestRecord } from "./executor.ts";
import { type FailureContext, NotedFailure, noteOfError, noteOfNative } from "./failure-notes.ts";
import { RUN_READ_ONLY, RUN_TRANSACTION_PRAGMAS } from "./native.ts";
import { ANSWER_DONE, CALL_RECORD, DONE_COMMITTED, DONE_REPLAYED } from "./protocol.ts";
import { prepareRecords, type RecordStatements } from "./records.ts";
import { varintSize, writeVarint } from "./wire.ts";

export class Autocommit {
  readonly #execution: Execution;

  constructor(execution: Execution) {
    this.#execution = execution;
  }

  execute(): void {
    const execution = this.#execution;
    const { call } = execution;
    const database = execution.database();
    const connection = execution.connections.writer(database, execution.nowMs);
    if (call.flags & CALL_RECORD) {
      this.#atomically(database, connection, () => this.#run(connection, 0, call.start, call.end));
      return;
    }
    this.#run(connection, 0, call.start, call.end);
    execution.done(database, connection, 0);
  }

  /** After an Execute that met a constraint: DONE_COMMITTED when what it did before that is committed (OR FAIL). */
  flagsOfFailure(): number {
    const { native } = this.#execution;
    const { writer } = this.#execution.database();
    if (writer === undefined) return 0;
    try {
      // SQLite tells of that commit behind the next statement that ends well.
      writer.database.exec("SELECT 1 WHERE 0");
    } catch {
      // Then it cannot be told, and counts as one.
      return DONE_COMMITTED;
    }
    const commits = native.commits(writer.native);
    if (commits === writer.commits) return 0;
    writer.commits = commits;
    writer.frames = native.frames(writer.native);
    return DONE_COMMITTED;
  }

  read(): void {
    const execution = this.#execution;
    const { call, connections } = execution;
    const database = execution.database();
    const connection = connections.take(database, true, execution.nowMs);
    try {
      this.#run(connection, RUN_READ_ONLY, call.start, call.end);
    } finally {
      connections.giveBack(database, connection);
    }
    execution.answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  batch(): void {
    const execution = this.#execution;
    const { call } = execution;
    const database = execution.database();
    const connection = execution.connections.writer(database, execution.nowMs);
    this.#atomically(database, connection, () => {
      let index = 0;
      forEachStep(call.bytes, call.start, call.end, (step) => {
        try {
          this.#run(connection, RUN_TRANSACTION_PRAGMAS, step.start, step.end, step.expected);
        } catch (error) {
          throw withStep(error, index, execution.failureContext());
        }
        index++;
      });
    });
  }

  script(): void {
    const execution = this.#execution;
    const { call, native } = execution;
    const database = execution.database();
    const connection = execution.connections.writer(database, execution.nowMs);
    this.#atomically(database, connection, () => {
      const done = native.script(
        connection.native,
        call.bytes,
        call.start,
        call.end,
        RUN_TRANSACTION_PRAGMAS,
        call.scope,
        execution.leftMs(),
      );
      if (done === null) {
        const failure = native.failure();
        const context = execution.failureContext();
        throw withStep(new NotedFailure(noteOfNative(failure, context)), failure.actual, context);
      }
      execution.answers.append(scriptAnswer(done[0], done[1]));
    });
  }

  /** Runs a statement and adds its result to the answer, as `result = 1` (or one of `results`). */
  #run(connection: Connection, flags: number, start: number, end: number, expected?: bigint): void {
    const { answers } = this.#execution;
    const at = answers.resultAt;
    const result = this.#execution.runAt(at, connection, flags, start, end);
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

  /** Runs `work` in a transaction of its own, with the request's record when there is one, and answers. */
  #atomically(database: OpenDatabase, connection: Connection, work: () => void): void {
    const execution = this.#execution;
    const { answers, call, clock } = execution;
    const record = call.flags & CALL_RECORD ? this.#takeRecord() : undefined;
    execution.control(connection, "beginImmediate");
    try {
      const earlier = record && execution.trusted(connection, () => this.#records(connection).find(record));
      if (earlier !== undefined) {
        execution.rollBack(connection);
        answers.append(earlier);
        execution.done(database, connection, DONE_REPLAYED);
        return;
      }
      work();
      if (record !== undefined) {
        const body = answers.body();
        execution.trusted(connection, () => this.#records(connection).add(record, body, clock.wallMs()));
      }
      execution.control(connection, "commit");
    } catch (error) {
      execution.rollBack(connection);
      throw error;
    } finally {
      execution.native.resetPragmas(connection.native);
    }
    execution.done(database, connection, 0);
  }

  /** Takes the record from the front of the payload. */
  #takeRecord(): RequestRecord {
    const { call } = this.#execution;
    const length = call.bytes.readUInt16LE(call.start);
    const text = call.bytes.toString("latin1", call.start + 2, call.start + 2 + length);
    call.start += 2 + length;
    const [id = "", method = "", hash = ""] = text.split(" ");
    return { id, method, hash };
  }

  #records(connection: Connection): RecordStatements {
    connection.records ??= prepareRecords(connection.database, this.#execution.limits);
    return connection.records;
  }
}

/** The failure with the number of the step or statement that it happened in. */
function withStep(error: unknown, step: number, context: FailureContext): NotedFailure {
  const note = noteOfError(error, context);
  const field = note.field && { field: `steps[${step}].${note.field}` };
  return new NotedFailure({ ...note, ...field, facts: { ...note.facts, step: `${step}` } });
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
