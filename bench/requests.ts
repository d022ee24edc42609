/** The calls that are measured, as gRPC frames, and the checking client. */

import { type ClientHttp2Session, connect } from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Durability } from "../gen/persisto/v1/database_pb.js";
import {
  CreateDatabaseRequestSchema,
  ExecuteRequestSchema,
  type ExecuteResponse,
  ExecuteResponseSchema,
  ExecuteScriptRequestSchema,
  QueryRequestSchema,
} from "../gen/persisto/v1/database_service_pb.js";
import { RowFormat, StatementSchema, type Value, ValueSchema } from "../gen/persisto/v1/value_pb.js";

export const service = "/persisto.v1.DatabaseService";

export function grpcFrame(message: Uint8Array): Buffer {
  const frame = Buffer.alloc(5 + message.length);
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  return frame;
}

export const rowCount = 10_000;
export const pointSql = "SELECT id, name, score FROM item WHERE id = ?";
export const insertSql = "INSERT INTO entry (name, score) VALUES (?, ?)";
export const rowName = (id: number) => `name of row ${id}`;

/** The table that point reads read, filled by one statement. */
export const pointTable = [
  "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, score REAL NOT NULL)",
  fillSql("item", rowCount),
] as const;
export const insertTable = [
  "CREATE TABLE entry (id INTEGER PRIMARY KEY, name TEXT NOT NULL, score REAL NOT NULL)",
] as const;
export const streamRowCount = 1_000_000;
export const streamSql = "SELECT id, name, score FROM big";
export const streamTable = [
  "CREATE TABLE big (id INTEGER PRIMARY KEY, name TEXT NOT NULL, score REAL NOT NULL)",
  fillSql("big", streamRowCount),
] as const;

function fillSql(table: string, count: number): string {
  return (
    `WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ${count}) ` +
    `INSERT INTO ${table} (id, name, score) SELECT n, 'name of row ' || n, n * 1.5 FROM number`
  );
}

const integer = (value: number): Value => create(ValueSchema, { kind: { case: "integer", value: BigInt(value) } });
const text = (value: string): Value => create(ValueSchema, { kind: { case: "text", value } });
const real = (value: number): Value => create(ValueSchema, { kind: { case: "real", value } });

function executeFrame(database: string, sql: string, parameters: Value[], durability: Durability): Buffer {
  const statement = create(StatementSchema, { sql, parameters });
  return grpcFrame(toBinary(ExecuteRequestSchema, create(ExecuteRequestSchema, { database, statement, durability })));
}

export const pointFrame = (database: string, id: number) =>
  executeFrame(database, pointSql, [integer(id)], Durability.UNSPECIFIED);

export const insertFrame = (database: string, durability = Durability.LOCAL) =>
  executeFrame(database, insertSql, [text("a name of some length"), real(1.5)], durability);

/** A statement that never ends by itself and gives no row meanwhile. */
export const endlessFrame = (database: string) =>
  executeFrame(
    database,
    "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number) SELECT count(*) FROM number",
    [],
    Durability.UNSPECIFIED,
  );

export function queryFrame(database: string, layout: "rows" | "columns"): Buffer {
  const statement = create(StatementSchema, { sql: streamSql });
  const rowFormat = layout === "rows" ? RowFormat.ROWS : RowFormat.COLUMNS;
  return grpcFrame(toBinary(QueryRequestSchema, create(QueryRequestSchema, { database, statement, rowFormat })));
}

/** One call on a connection of its own; rejects when its status is not OK. Gives the messages of the answer. */
export async function call(port: number, path: string, frame: Uint8Array): Promise<Buffer[]> {
  const session = connect(`http://127.0.0.1:${port}`, { settings: { initialWindowSize: 1 << 20 } });
  try {
    return await Promise.race([
      callOn(session, path, frame),
      new Promise<never>((_, reject) => session.on("error", reject)),
    ]);
  } finally {
    session.close();
  }
}

/** The same on a connection that is there. */
export function callOn(session: ClientHttp2Session, path: string, frame: Uint8Array): Promise<Buffer[]> {
  return new Promise<Buffer[]>((resolve, reject) => {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc",
      te: "trailers",
    });
    const parts: Buffer[] = [];
    let status: unknown;
    let message: unknown;
    const note = (headers: Readonly<Record<string, unknown>>) => {
      status ??= headers["grpc-status"];
      message ??= headers["grpc-message"];
    };
    stream.on("response", note);
    stream.on("trailers", note);
    stream.on("data", (part: Buffer) => parts.push(part));
    stream.on("error", reject);
    stream.on("end", () => {
      if (status !== "0") reject(new Error(`${path}: status ${String(status)} ${String(message)}`));
      else resolve(messages(Buffer.concat(parts)));
    });
    stream.end(frame);
  });
}

function messages(body: Buffer): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  while (at < body.length) {
    const end = at + 5 + body.readUInt32BE(at + 1);
    found.push(body.subarray(at + 5, end));
    at = end;
  }
  return found;
}

/** Makes a database and runs the statements, one transaction each. */
export async function createDatabase(port: number, database: string, statements: readonly string[]): Promise<void> {
  await call(
    port,
    `${service}/CreateDatabase`,
    grpcFrame(toBinary(CreateDatabaseRequestSchema, create(CreateDatabaseRequestSchema, { database }))),
  );
  for (const script of statements) {
    await call(
      port,
      `${service}/ExecuteScript`,
      grpcFrame(toBinary(ExecuteScriptRequestSchema, create(ExecuteScriptRequestSchema, { database, script }))),
    );
  }
}

export async function execute(port: number, frame: Uint8Array): Promise<{ answer: ExecuteResponse; frame: Buffer }> {
  const [message = Buffer.alloc(0)] = await call(port, `${service}/Execute`, frame);
  return { answer: fromBinary(ExecuteResponseSchema, message), frame: grpcFrame(message) };
}

/** The single integer of a query like `SELECT count(*)`. */
export async function integerOf(port: number, database: string, sql: string): Promise<number> {
  const { answer } = await execute(port, executeFrame(database, sql, [], Durability.UNSPECIFIED));
  const value = firstRow(answer)[0];
  if (typeof value !== "bigint") throw new Error(`${sql}: no integer`);
  return Number(value);
}

export function firstRow(answer: ExecuteResponse): unknown[] {
  const data = answer.result?.data;
  if (data?.case !== "rowBatch") throw new Error("no rows");
  return data.value.rows[0]?.values.map((value) => value.kind.value) ?? [];
}

/** Rejects unless the server answers this point read with exactly the row that is there. Gives the answer as a frame. */
export async function checkPointRead(port: number, database: string, id: number): Promise<Buffer> {
  const { answer, frame } = await execute(port, pointFrame(database, id));
  const row = firstRow(answer);
  if (row[0] !== BigInt(id) || row[1] !== rowName(id) || row[2] !== id * 1.5) {
    throw new Error(`wrong row for ${id}: ${String(row)}`);
  }
  return frame;
}
