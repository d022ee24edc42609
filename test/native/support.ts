/** The native library for tests: connections in this process, statements and results as messages. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import Database from "better-sqlite3";
import { expect } from "vitest";
import { type ResultSet, ResultSetSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { StatementSchema, type Value } from "../../gen/persisto/v1/value_pb.js";
import { loadNative } from "../../src/sqlite/load-native.ts";
import type { NativeConnection, NativeCursor, NativeFailure } from "../../src/sqlite/native.ts";

export const native = loadNative(Database);

/** Where answers lie until the next call. */
export const output = Buffer.allocUnsafeSlow(1 << 20);
native.output(output);

/** The defaults of the SQL rules, by SQLITE_LIMIT_* number. */
export const limits = Int32Array.of(4 << 20, 1 << 20, 500, 200, 100, 250_000, 127, 0, 1000, 32_766, 32, 0);

/** A Value as the init shape of protobuf-es. */
export type Kind = Value["kind"];
export const value = {
  null: (): Kind => ({ case: "null", value: 0 }),
  integer: (v: bigint | number): Kind => ({ case: "integer", value: BigInt(v) }),
  real: (v: number): Kind => ({ case: "real", value: v }),
  text: (v: string): Kind => ({ case: "text", value: v }),
  blob: (v: Uint8Array): Kind => ({ case: "blob", value: v }),
};

export function statement(
  sql: string,
  parameters: readonly Kind[] = [],
  named: Readonly<Record<string, Kind>> = {},
): Buffer {
  return Buffer.from(
    toBinary(
      StatementSchema,
      create(StatementSchema, {
        sql,
        parameters: parameters.map((kind) => ({ kind })),
        namedParameters: Object.fromEntries(Object.entries(named).map(([key, kind]) => [key, { kind }])),
      }),
    ),
  );
}

export interface RunOptions {
  readonly flags?: number;
  readonly scope?: number;
  readonly bytesMax?: number;
  readonly deadlineMs?: number;
}

/** Thrown for what the library refuses; `failure` has the facts. */
export class NativeError extends Error {
  readonly failure: NativeFailure;
  constructor() {
    const failure = native.failure();
    super(`${failure.kind}: ${failure.message} ${failure.action} ${failure.resource}`);
    this.failure = failure;
  }
}

/** The failure of what must fail. */
export function failureOf(run: () => unknown): NativeFailure {
  try {
    run();
  } catch (error) {
    if (error instanceof NativeError) return error.failure;
    throw error;
  }
  return expect.fail("it did not fail");
}

const TEN_SECONDS_MS = 10_000;

export interface Opened {
  readonly database: Database.Database;
  readonly connection: NativeConnection;
  /** Bytes of a ResultSet. */
  bytes(request: Buffer, options?: RunOptions): Buffer;
  run(sql: string, parameters?: readonly Kind[], options?: RunOptions): ResultSet;
  /** The rows as plain values. */
  rows(sql: string, parameters?: readonly Kind[], options?: RunOptions): unknown[][];
  fails(sql: string, options?: RunOptions): NativeFailure;
  script(sql: string | Buffer, options?: RunOptions): [number, number];
  control(what: "begin" | "beginImmediate" | "commit" | "rollback"): void;
  cursor(request: Buffer, options?: RunOptions): NativeCursor;
  /** The next QueryResponse, copied. */
  next(
    cursor: NativeCursor,
    options?: { rowsMax?: number; bytesMax?: number; softMs?: number; deadlineMs?: number },
  ): Buffer | undefined;
}

export interface OpenOptions {
  readonly path?: string;
  readonly guard?: boolean;
  readonly readOnly?: boolean;
  readonly cacheCount?: number;
  readonly limits?: Int32Array;
}

/** Opens a connection with the guard on. The caller closes `database`. */
export function open(options: OpenOptions = {}): Opened {
  const readOnly = options.readOnly ?? false;
  const database = new Database(options.path ?? ":memory:", { readonly: readOnly, timeout: 0 });
  const connection = native.connect(options.cacheCount ?? 32);
  if (options.path !== undefined && !readOnly) database.pragma("journal_mode = WAL");
  if (options.guard ?? true) native.guard(connection, options.limits ?? limits, readOnly);
  const bytes = (request: Buffer, given: RunOptions = {}): Buffer => {
    const result = native.run(
      connection,
      request,
      0,
      request.length,
      0,
      given.flags ?? 0,
      given.scope ?? 0,
      given.bytesMax ?? 2 ** 31,
      given.deadlineMs ?? TEN_SECONDS_MS,
    );
    if (result === null) throw new NativeError();
    return typeof result === "number" ? Buffer.from(output.subarray(0, result)) : result;
  };
  const run: Opened["run"] = (sql, parameters, given) =>
    fromBinary(ResultSetSchema, bytes(statement(sql, parameters), given));
  return {
    database,
    connection,
    bytes,
    run,
    rows(sql, parameters, given) {
      const { data } = run(sql, parameters, given);
      if (data.case !== "rowBatch") return expect.fail("rows are expected");
      return data.value.rows.map((row) => row.values.map(({ kind }) => (kind.case === "null" ? null : kind.value)));
    },
    fails: (sql, given) => failureOf(() => run(sql, [], given)),
    script(sql, given = {}) {
      const text = typeof sql === "string" ? Buffer.from(sql) : sql;
      const done = native.script(
        connection,
        text,
        0,
        text.length,
        given.flags ?? 0,
        given.scope ?? 0,
        given.deadlineMs ?? TEN_SECONDS_MS,
      );
      if (done === null) throw new NativeError();
      return done;
    },
    control(what) {
      if (!native.control(connection, what, TEN_SECONDS_MS)) throw new NativeError();
    },
    cursor(request, given = {}) {
      const cursor = native.open(
        connection,
        request,
        0,
        request.length,
        given.flags ?? 0,
        given.scope ?? 0,
        given.deadlineMs ?? TEN_SECONDS_MS,
      );
      if (cursor === null) throw new NativeError();
      return cursor;
    },
    next(cursor, given = {}) {
      const result = native.next(
        cursor,
        0,
        given.rowsMax ?? 1000,
        given.bytesMax ?? 65_536,
        given.softMs ?? 0,
        given.deadlineMs ?? TEN_SECONDS_MS,
      );
      if (result === null) throw new NativeError();
      return typeof result === "number" ? Buffer.from(output.subarray(0, result)) : result;
    },
  };
}

/** SQL that never ends by itself, and never gives a row. */
export const ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r";
