/** Queries: rows in chunks, as far as the reader gives credit, one chunk a turn of the event loop. */
import type { Connection, OpenDatabase } from "./connections.ts";
import { type Execution, interruptedBefore } from "./execution.ts";
import { noteOfNative } from "./failure-notes.ts";
import { FAILED_SIZE, type NativeCursor, RUN_COLUMNS, RUN_READ_ONLY } from "./native.ts";
import {
  ANSWER_CHUNK,
  ANSWER_DONE,
  ANSWER_QUERY_END,
  ANSWER_QUERY_FAILED,
  CALL_COLUMNS,
  type FailureNote,
  QUERY_EXECUTION_MS,
  QUERY_HEAD_BYTES,
  QUERY_LIFE_MS,
  QUERY_WINDOW,
  WORD_RUNNING,
} from "./protocol.ts";

/** The first chunk is small, so that something shows early. */
const FIRST_CHUNK_ROWS = 50;
/** A chunk ends after this long: others wait for their turn. */
const CHUNK_SOFT_MS = 10;

interface Query {
  readonly id: number;
  readonly number: number;
  readonly database: OpenDatabase;
  readonly connection: Connection;
  readonly cursor: NativeCursor;
  readonly rowsMax: number;
  readonly bytesMax: number;
  readonly rowBytesMax: number;
  readonly executionMsMax: number;
  readonly deadlineAtMs: number;
  credits: number;
  /** It is among the turns. */
  isWaiting: boolean;
  isFirst: boolean;
  elapsedMs: number;
}

export interface QueriesOptions {
  readonly execution: Execution;
  readonly words: Int32Array;
  /** Called before a turn writes, and after. */
  readonly beforeTurn: () => void;
  readonly afterTurn: () => void;
}

export class Queries {
  readonly #execution: Execution;
  readonly #words: Int32Array;
  readonly #beforeTurn: () => void;
  readonly #afterTurn: () => void;
  readonly #open = new Map<number, Query>();
  /** Queries that have credit, in the order of their turns. */
  readonly #turns: Query[] = [];
  #turnPlanned = false;

  constructor(options: QueriesOptions) {
    this.#execution = options.execution;
    this.#words = options.words;
    this.#beforeTurn = options.beforeTurn;
    this.#afterTurn = options.afterTurn;
  }

  open(): void {
    const execution = this.#execution;
    const { answers, call, clock, connections, native } = execution;
    const database = execution.database();
    const connection = connections.take(database, true, execution.nowMs);
    const startedAtMs = clock.now();
    let cursor: NativeCursor | null = null;
    try {
      cursor = native.open(
        connection.native,
        call.bytes,
        call.start + QUERY_HEAD_BYTES,
        call.end,
        RUN_READ_ONLY | (call.flags & CALL_COLUMNS ? RUN_COLUMNS : 0),
        call.scope,
        execution.leftMs(),
      );
      const columns = cursor && native.columns(cursor, answers.at);
      if (cursor === null || columns === null) throw execution.failure();
      answers.take(columns);
    } catch (error) {
      if (cursor !== null) native.close(cursor);
      connections.giveBack(database, connection);
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
      rowBytesMax: call.resultBytesMax,
      executionMsMax: call.bytes.readUInt32LE(call.start + QUERY_EXECUTION_MS),
      deadlineAtMs: execution.nowMs + call.bytes.readUInt32LE(call.start + QUERY_LIFE_MS),
      credits: call.bytes.readUInt32LE(call.start + QUERY_WINDOW),
      isWaiting: false,
      isFirst: true,
      elapsedMs: clock.now() - startedAtMs,
    };
    this.#open.set(query.id, query);
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
    this.#enqueue(query);
  }

  /** The reader has taken chunks. */
  credit(id: number, chunks: number): void {
    const query = this.#open.get(id);
    if (query === undefined) return;
    query.credits += chunks;
    this.#enqueue(query);
  }

  /** Nobody reads any more. */
  end(id: number): void {
    const query = this.#open.get(id);
    if (query !== undefined) this.#finish(query);
  }

  /** Ends those of a database, or all, without an answer. */
  close(number?: number): void {
    for (const query of [...this.#open.values()])
      if (number === undefined || query.number === number) this.#drop(query);
  }

  #enqueue(query: Query): void {
    if (!query.isWaiting && query.credits > 0) {
      query.isWaiting = true;
      this.#turns.push(query);
    }
    this.#planTurn();
  }

  #planTurn(): void {
    if (this.#turnPlanned || this.#turns.length === 0) return;
    this.#turnPlanned = true;
    // What comes meanwhile is read before the next chunk.
    setImmediate(() => {
      this.#turnPlanned = false;
      const query = this.#turns.shift();
      if (query === undefined) return;
      query.isWaiting = false;
      if (this.#open.has(query.id)) {
        this.#beforeTurn();
        this.#chunk(query);
        this.#afterTurn();
      }
      this.#planTurn();
    });
  }

  /** Sends a query's next chunk. */
  #chunk(query: Query): void {
    const { answers, clock, native } = this.#execution;
    const startedAtMs = clock.now();
    query.database.lastUsedMs = startedAtMs;
    const lifeLeftMs = query.deadlineAtMs - startedAtMs;
    const executionLeftMs = query.executionMsMax - query.elapsedMs;
    const leftMs = Math.min(lifeLeftMs, executionLeftMs);
    answers.begin();
    Atomics.store(this.#words, WORD_RUNNING, query.id);
    const rowsMax = query.isFirst ? Math.min(FIRST_CHUNK_ROWS, query.rowsMax) : query.rowsMax;
    const chunk =
      leftMs <= 0 ? null : native.next(query.cursor, answers.at, rowsMax, query.bytesMax, CHUNK_SOFT_MS, leftMs);
    Atomics.store(this.#words, WORD_RUNNING, 0);
    query.isFirst = false;
    query.elapsedMs += clock.now() - startedAtMs;
    if (chunk === undefined) this.#finish(query);
    else if (chunk === null) {
      const note = leftMs <= 0 ? interruptedBefore("deadline").note : this.#failure(query);
      const isOfExecution = note.interrupted === "deadline" && executionLeftMs <= lifeLeftMs;
      this.#fail(query, isOfExecution ? { ...note, ofExecution: true } : note);
    } else if ((typeof chunk === "number" ? chunk : chunk.length) > query.rowBytesMax) {
      // Chunks end before the row that would make them too large: this is one row, and no message can hold it.
      this.#fail(query, rowTooLarge(query));
    } else {
      answers.take(chunk);
      answers.finish(query.id, ANSWER_CHUNK, 0, 0, undefined);
      query.credits--;
      this.#enqueue(query);
    }
  }

  /** Ends a query and says so. */
  #finish(query: Query): void {
    const { answers, native } = this.#execution;
    const summary = Buffer.alloc(16);
    summary.writeBigUInt64LE(BigInt(native.rows(query.cursor)), 0);
    summary.writeBigUInt64LE(BigInt(Math.round(query.elapsedMs * 1e6)), 8);
    this.#drop(query);
    answers.begin();
    answers.append(summary);
    answers.finish(query.id, ANSWER_QUERY_END, 0, 0, undefined);
  }

  #drop(query: Query): void {
    this.#open.delete(query.id);
    this.#execution.native.close(query.cursor);
    this.#execution.connections.giveBack(query.database, query.connection);
  }

  /** What the native library said last. */
  #failure(query: Query): FailureNote {
    const { limits, native } = this.#execution;
    const failure = native.failure();
    if (failure.kind === FAILED_SIZE) return rowTooLarge(query);
    const { id: database, path } = query.database.file;
    return noteOfNative(failure, { database, path, limits, resultBytesMax: query.rowBytesMax });
  }

  #fail(query: Query, note: FailureNote): void {
    const { answers } = this.#execution;
    this.#drop(query);
    answers.append(Buffer.from(JSON.stringify(note)));
    answers.finish(query.id, ANSWER_QUERY_FAILED, 0, 0, undefined);
  }
}

const rowTooLarge = (query: Query): FailureNote => ({
  reason: "LIMIT_EXCEEDED",
  facts: { what: "bytes of one row", limit: `${query.rowBytesMax}` },
});
