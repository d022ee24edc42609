/** What tests of executors share: limits, calls from plain values, answers as plain values. */
import { randomUUID } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  ExecuteBatchRequestSchema,
  ExecuteBatchResponseSchema,
  ExecuteResponseSchema,
  ExecuteScriptResponseSchema,
  QueryResponseSchema,
  type ResultSet,
  ResultSetSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import { StatementSchema } from "../../gen/persisto/v1/value_pb.js";
import { type Clock, systemClock } from "../../src/clock.ts";
import type { Failure } from "../../src/failure/failure.ts";
import type {
  CallOptions,
  CallResult,
  Cancel,
  ExecutorDatabase,
  ExecutorLimits,
  Executors,
  QueryCursor,
  QueryOptions,
  RequestRecord,
} from "../../src/sqlite/executor.ts";
import { startInProcessExecutors } from "../../src/sqlite/in-process.ts";
import type { ExecutorsOptions } from "../../src/sqlite/options.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { type Plain, plain, rowsOf, statement } from "../support/rows.ts";

export const limits: ExecutorLimits = {
  executorCountMin: 2,
  executorCountMax: 4,
  executorStallMs: 25,
  executorGraceMs: 500,
  executorMemoryBytesMax: 1 << 30,
  connectionCountMax: 256,
  connectionIdleMs: 60_000,
  statementCacheCount: 16,
  databaseCallsMax: 256,
  databaseBytesMax: 1 << 30,
  queryWindowChunks: 8,
  valueBytesMax: 4 << 20,
  sqlBytesMax: 1 << 20,
  columnCountMax: 500,
  expressionDepthMax: 200,
  compoundSelectCountMax: 100,
  vdbeOpCountMax: 250_000,
  functionArgumentCountMax: 127,
  likePatternBytesMax: 1000,
  parameterCountMax: 32_766,
  triggerDepthMax: 32,
  requestRecordMs: 86_400_000,
  requestRecordCountMax: 100_000,
};

export interface LogLine {
  readonly level: string;
  readonly message: string;
  readonly facts: Readonly<Record<string, string | number>>;
}

export interface StartInput {
  readonly limits?: Partial<ExecutorLimits>;
  readonly clock?: Clock;
  readonly log?: LogLine[];
}

export type Start = (input?: StartInput) => Promise<Executors>;

const optionsOf = (input: StartInput): ExecutorsOptions => ({
  limits: { ...limits, ...input.limits },
  clock: input.clock ?? systemClock,
  random: Math.random,
  log: (level, message, facts) => input.log?.push({ level, message, facts }),
});

export const startProcesses: Start = (input = {}) => startExecutors(optionsOf(input));
export const startInProcess: Start = (input = {}) => startInProcessExecutors(optionsOf(input));

/** Makes a new database in the folder. */
export async function newDatabase(executors: Executors, folder: string, id = "test"): Promise<ExecutorDatabase> {
  mkdirSync(join(folder, id), { recursive: true });
  const database = executors.open({ id, path: join(folder, id, "db.sqlite"), foreignKeys: true });
  await database.create(4096);
  return database;
}

export function options(more: Partial<CallOptions> = {}): CallOptions {
  return {
    columns: false,
    scope: 0,
    resultBytesMax: 2 << 20,
    deadlineAtMs: systemClock.now() + 10_000,
    deadlineSource: "server",
    cancel: undefined,
    ...more,
  };
}

export function queryOptions(more: Partial<QueryOptions> = {}): QueryOptions {
  return { ...options(), chunkRowsMax: 1000, chunkBytesMax: 64 * 1024, ...more };
}

export function within(ms: number): Partial<CallOptions> {
  return { deadlineAtMs: systemClock.now() + ms };
}

export function encode(sql: string, ...parameters: readonly Plain[]): Uint8Array {
  return toBinary(StatementSchema, create(StatementSchema, statement(sql, ...parameters)));
}

export interface Step {
  readonly sql: string;
  readonly parameters?: readonly Plain[];
  readonly expected?: bigint;
}

export function encodeBatch(...steps: readonly Step[]): Uint8Array {
  return toBinary(
    ExecuteBatchRequestSchema,
    create(ExecuteBatchRequestSchema, {
      database: "test",
      steps: steps.map(({ sql, parameters = [], expected }) => ({
        statement: statement(sql, ...parameters),
        ...(expected === undefined ? {} : { expectedRowsAffected: expected }),
      })),
    }),
  );
}

export const resultOf = ({ body }: CallResult): ResultSet => {
  const { result } = fromBinary(ExecuteResponseSchema, body);
  if (result === undefined) throw new Error("the answer has no result");
  return result;
};

export const rows = (result: CallResult): Plain[][] => rowsOf(resultOf(result));
export const transactionRows = ({ body }: CallResult): Plain[][] => rowsOf(fromBinary(ResultSetSchema, body));
export const batchResults = ({ body }: CallResult): ResultSet[] => fromBinary(ExecuteBatchResponseSchema, body).results;
export const scriptCounts = ({ body }: CallResult) => fromBinary(ExecuteScriptResponseSchema, body);

export async function execute(
  database: ExecutorDatabase,
  sql: string,
  ...parameters: readonly Plain[]
): Promise<Plain[][]> {
  return rows(await database.execute(encode(sql, ...parameters), options()));
}

export async function read(
  database: ExecutorDatabase,
  sql: string,
  ...parameters: readonly Plain[]
): Promise<Plain[][]> {
  return rows(await database.read(encode(sql, ...parameters), options()));
}

/** Reads a query to its end. */
export async function drain(cursor: QueryCursor): Promise<{ rows: Plain[][]; chunks: number }> {
  const all: Plain[][] = [];
  let chunks = 0;
  for (;;) {
    const chunk = await cursor.next();
    if (chunk === undefined) return { rows: all, chunks };
    chunks++;
    const { message } = fromBinary(QueryResponseSchema, chunk);
    if (message.case === "rowBatch") for (const row of message.value.rows) all.push(row.values.map(plain));
    else if (message.case !== "columnBatch") throw new Error(`a chunk is ${message.case}`);
  }
}

/** The failure that a promise rejects with. */
export async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  try {
    await promise;
  } catch (error) {
    return error as Failure;
  }
  throw new Error("it did not fail");
}

/** A request's record with a new id. */
export function newRecord(hash = "hash", method = "Execute"): RequestRecord {
  return { id: randomUUID().replaceAll("-", ""), method, hash };
}

/** A Cancel that the test pulls. */
export class TestCancel implements Cancel {
  cancelled = false;
  readonly #listeners = new Set<() => void>();

  onCancel(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get listenerCount(): number {
    return this.#listeners.size;
  }

  cancel(): void {
    this.cancelled = true;
    for (const listener of this.#listeners) listener();
    this.#listeners.clear();
  }
}

/** Runs until it is over or interrupted. */
export const ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/** One opcode that no interrupt ends for a while. */
export const UNINTERRUPTIBLE_BYTES = 4_000_000;
