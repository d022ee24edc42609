/** Operations as the catalog keeps them. */
import type Database from "better-sqlite3";
import type { RequestRecord } from "../sqlite/executor.ts";
import type { PageKey, SqlCondition } from "./catalog.ts";
import type { OperationKindName } from "./engine.ts";
import { StatementCache } from "./statement-cache.ts";

/** Kinds by their numbers in the catalog. */
export const kindCodes: Readonly<Record<OperationKindName, number>> = {
  promote: 1,
  demote: 2,
  sync: 3,
  restore: 4,
  fork: 5,
};
const kindNames = new Map(Object.entries(kindCodes).map(([name, code]) => [code, name as OperationKindName]));

/** Why an operation failed, as far as a caller is told. */
export interface StoredFailure {
  readonly reason: string;
  readonly facts: Readonly<Record<string, string>>;
}

export interface StoredOperation {
  readonly id: string;
  readonly database: string;
  readonly kind: OperationKindName;
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly createTimeMs: number;
  readonly endTimeMs: number | undefined;
  readonly error: StoredFailure | undefined;
  /** That of the call that began it. */
  readonly request: RequestRecord | undefined;
  /** What the next start needs to end it or to go on with it. */
  readonly input: Readonly<Record<string, unknown>> | undefined;
}

interface Row {
  readonly id: string;
  readonly database: string;
  readonly kind: number;
  readonly bytes_done: number;
  readonly bytes_total: number;
  readonly create_time_ms: number;
  readonly end_time_ms: number | null;
  readonly error: string | null;
  readonly request: string | null;
  readonly input: string | null;
}

const columns = "id, database, kind, bytes_done, bytes_total, create_time_ms, end_time_ms, error, request, input";

const pageStatementCountMax = 16;

/** Rows of the table `operations`. */
export class OperationStore {
  readonly #put: Database.Statement;
  readonly #get: Database.Statement;
  readonly #ofRequest: Database.Statement;
  readonly #unfinished: Database.Statement;
  readonly #dropOld: Database.Statement;
  readonly #dropMany: Database.Statement;
  readonly #pages: StatementCache;

  constructor(database: Database.Database) {
    this.#pages = new StatementCache(database, pageStatementCountMax);
    this.#put = database.prepare(
      `INSERT OR REPLACE INTO operations (${columns}) VALUES (@id, @database, @kind, @bytes_done, @bytes_total,` +
        " @create_time_ms, @end_time_ms, @error, @request, @input)",
    );
    this.#get = database.prepare(`SELECT ${columns} FROM operations WHERE id = ?`);
    this.#ofRequest = database.prepare(
      `SELECT ${columns} FROM operations WHERE database = ? AND request ->> '$.id' = ? ORDER BY id DESC LIMIT 1`,
    );
    this.#unfinished = database.prepare(`SELECT ${columns} FROM operations WHERE end_time_ms IS NULL ORDER BY id`);
    this.#dropOld = database.prepare("DELETE FROM operations WHERE end_time_ms < ?");
    this.#dropMany = database.prepare(
      "DELETE FROM operations WHERE end_time_ms IS NOT NULL AND id <= (SELECT id FROM operations ORDER BY id DESC LIMIT 1 OFFSET ?)",
    );
  }

  put(operation: StoredOperation): void {
    this.#put.run(rowOf(operation));
  }

  get(id: string): StoredOperation | undefined {
    const row = this.#get.get(id) as Row | undefined;
    return row && operationOf(row);
  }

  /** The newest operation on a database that a call with this request id began. */
  ofRequest(database: string, requestId: string): StoredOperation | undefined {
    const row = this.#ofRequest.get(database, requestId) as Row | undefined;
    return row && operationOf(row);
  }

  /** Those that had not ended when the last server did, oldest first. */
  unfinished(): StoredOperation[] {
    return (this.#unfinished.all() as Row[]).map(operationOf);
  }

  /** Forgets what ended before a time, and the oldest of more than `countMax`. */
  prune(endedBeforeMs: number, countMax: number): void {
    this.#dropOld.run(endedBeforeMs);
    this.#dropMany.run(countMax);
  }

  /** At most `countMax` that meet the condition, newest first, behind `after`; `key` is where to go on. */
  page(
    condition: SqlCondition,
    after: PageKey | undefined,
    countMax: number,
  ): { readonly operations: readonly StoredOperation[]; readonly key: PageKey | undefined } {
    const parts = [after === undefined ? "" : "id < ?", condition.sql].filter(Boolean);
    const where = parts.length === 0 ? "" : `WHERE ${parts.join(" AND ")}`;
    const rows = this.#pages
      .prepare(`SELECT ${columns} FROM operations ${where} ORDER BY id DESC LIMIT ?`)
      .all(...(after === undefined ? [] : [after[1]]), ...condition.parameters, countMax + 1) as Row[];
    const operations = rows.slice(0, countMax).map(operationOf);
    const last = operations.at(-1);
    return { operations, key: rows.length > countMax && last !== undefined ? [0, last.id] : undefined };
  }
}

function rowOf(operation: StoredOperation): Row {
  const { error, request, input } = operation;
  return {
    id: operation.id,
    database: operation.database,
    kind: kindCodes[operation.kind],
    bytes_done: operation.bytesDone,
    bytes_total: operation.bytesTotal,
    create_time_ms: operation.createTimeMs,
    end_time_ms: operation.endTimeMs ?? null,
    error: error === undefined ? null : JSON.stringify(error),
    request: request === undefined ? null : JSON.stringify(request),
    input: input === undefined ? null : JSON.stringify(input),
  };
}

function operationOf(row: Row): StoredOperation {
  return {
    id: row.id,
    database: row.database,
    kind: kindNames.get(row.kind) ?? "sync",
    bytesDone: row.bytes_done,
    bytesTotal: row.bytes_total,
    createTimeMs: row.create_time_ms,
    endTimeMs: row.end_time_ms ?? undefined,
    error: row.error === null ? undefined : JSON.parse(row.error),
    request: row.request === null ? undefined : JSON.parse(row.request),
    input: row.input === null ? undefined : JSON.parse(row.input),
  };
}
