/** What only SQLite can say of a database file. It runs in executors, for the file may come from anywhere. */
import { createHash, type Hash } from "node:crypto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { QueryResponseSchema, ReadResponseSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { type Row, RowSchema, StatementSchema } from "../../gen/persisto/v1/value_pb.js";
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { CallOptions, Cancel, ExecutorDatabase, ExecutorLimits, Executors } from "../sqlite/executor.ts";
import { startExecutors } from "../sqlite/pool.ts";

/** Longest that one check of one database may take. */
const checkMsMax = 6 * 3_600_000;
const resultBytesMax = 16 * 1024 * 1024;
const chunkRowsMax = 1000;
const chunkBytesMax = 1024 * 1024;
/** integrity_check of a database of very many tables is a very long program. */
const vdbeOpCountMax = 100_000_000;
const problemCountMax = 20;

export interface CheckerOptions {
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  readonly random: () => number;
  readonly signal: AbortSignal;
}

/** Rows of a database as hashes: equal hashes, equal rows. */
export type RowHashes = ReadonlyMap<string, string>;

export class SqliteChecker {
  readonly #executors: Executors;
  readonly #clock: Clock;
  readonly #cancel: Cancel;
  #count = 0;

  private constructor(executors: Executors, { clock, signal }: CheckerOptions) {
    this.#executors = executors;
    this.#clock = clock;
    this.#cancel = {
      get cancelled() {
        return signal.aborted;
      },
      onCancel(listener) {
        signal.addEventListener("abort", listener, { once: true });
        return () => signal.removeEventListener("abort", listener);
      },
    };
  }

  static async start(options: CheckerOptions): Promise<SqliteChecker> {
    const limits = { ...options.limits, executorCountMin: 1, executorCountMax: 1, vdbeOpCountMax };
    const { clock, random } = options;
    return new SqliteChecker(await startExecutors({ limits, clock, random, log: () => undefined }), options);
  }

  close(): Promise<void> {
    return this.#executors.close(0);
  }

  /** What integrity_check says: nothing when all is well. */
  integrityProblems(path: string): Promise<readonly string[]> {
    return this.#with(path, async (database) => {
      const rows = await this.#read(database, `PRAGMA integrity_check(${problemCountMax})`);
      const problems = rows.map((row) => textOf(row, 0));
      return problems.length === 1 && problems[0] === "ok" ? [] : problems;
    });
  }

  /** By table, and `schema` for the definitions. Tables of SQLite and of this server are left out. */
  rowHashes(path: string): Promise<RowHashes> {
    return this.#with(path, async (database) => {
      const definitions = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name";
      const hashes = new Map([["schema", await this.#hash(database, definitions)]]);
      const tables = await this.#read(
        database,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'" +
          " AND name NOT LIKE '\\_persisto\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name",
      );
      for (const row of tables) {
        const name = textOf(row, 0);
        const quoted = `"${name.replaceAll('"', '""')}"`;
        hashes.set(name, await this.#hashTable(database, quoted));
      }
      return hashes;
    });
  }

  /** With the rowid, where rows have one. */
  async #hashTable(database: ExecutorDatabase, table: string): Promise<string> {
    try {
      return await this.#hash(database, `SELECT rowid, * FROM ${table}`);
    } catch (error) {
      if (!(error instanceof Failure) || error.reason === "DATA_CORRUPT") throw error;
      return this.#hash(database, `SELECT * FROM ${table}`);
    }
  }

  async #hash(database: ExecutorDatabase, sql: string): Promise<string> {
    const hash = createHash("sha256");
    const cursor = await database.query(statement(sql), { ...this.#options(), chunkRowsMax, chunkBytesMax });
    try {
      for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next()) addRows(hash, chunk);
    } finally {
      cursor.close();
    }
    return hash.digest("hex");
  }

  async #read(database: ExecutorDatabase, sql: string): Promise<readonly Row[]> {
    const { body } = await database.read(statement(sql), this.#options());
    const data = fromBinary(ReadResponseSchema, body).result?.data;
    return data?.case === "rowBatch" ? data.value.rows : [];
  }

  async #with<T>(path: string, check: (database: ExecutorDatabase) => Promise<T>): Promise<T> {
    const database = this.#executors.open({ id: `check-${++this.#count}`, path, foreignKeys: false });
    try {
      return await check(database);
    } finally {
      await database.close(true);
    }
  }

  #options(): CallOptions {
    return {
      columns: false,
      scope: 0,
      resultBytesMax,
      deadlineAtMs: this.#clock.now() + checkMsMax,
      deadlineSource: "server",
      cancel: this.#cancel,
    };
  }
}

/** Where one chunk ends is chance: only rows count. */
function addRows(hash: Hash, chunk: Uint8Array): void {
  const { message } = fromBinary(QueryResponseSchema, chunk);
  if (message.case !== "rowBatch") return;
  for (const row of message.value.rows) {
    const bytes = toBinary(RowSchema, row);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    hash.update(length).update(bytes);
  }
}

function statement(sql: string): Uint8Array {
  return toBinary(StatementSchema, create(StatementSchema, { sql }));
}

function textOf(row: Row, column: number): string {
  const kind = row.values[column]?.kind;
  return kind?.case === "text" ? kind.value : "";
}
