/** SQL values and rows as plain JavaScript, for tests. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { NullValue } from "@bufbuild/protobuf/wkt";
import type { QueryResponse, ResultSet } from "../../gen/persisto/v1/database_service_pb.js";
import type { ColumnBatch, RowBatch, StatementSchema, Value, ValueSchema } from "../../gen/persisto/v1/value_pb.js";

/** bigint: integer; number: real. */
export type Plain = null | bigint | number | string | Uint8Array;

export function value(plain: Plain): MessageInitShape<typeof ValueSchema> {
  if (plain === null) return { kind: { case: "null", value: NullValue.NULL_VALUE } };
  switch (typeof plain) {
    case "bigint":
      return { kind: { case: "integer", value: plain } };
    case "number":
      return { kind: { case: "real", value: plain } };
    case "string":
      return { kind: { case: "text", value: plain } };
    default:
      return { kind: { case: "blob", value: plain } };
  }
}

export function statement(sql: string, ...parameters: readonly Plain[]): MessageInitShape<typeof StatementSchema> {
  return { sql, parameters: parameters.map(value) };
}

export function plain({ kind }: Value): Plain {
  if (kind.case === undefined) {
    throw new Error("a value has no kind");
  }
  if (kind.case === "null") return null;
  return kind.case === "blob" ? Buffer.from(kind.value) : kind.value;
}

/** Rows of a result in either layout. */
export function rowsOf(result: ResultSet | undefined): Plain[][] {
  switch (result?.data.case) {
    case "rowBatch":
      return rowBatch(result.data.value);
    case "columnBatch":
      return columnBatch(result.data.value);
    default:
      throw new Error("the result has no batch");
  }
}

export function rowBatch({ rows }: RowBatch): Plain[][] {
  return rows.map((row) => row.values.map(plain));
}

export function columnBatch({ rowCount, columns }: ColumnBatch): Plain[][] {
  const columnValues = columns.map(({ classes, integers, reals, texts, blobs }) => {
    const taken = [0, 0, 0, 0, 0];
    const take = <T>(kind: number, from: readonly T[]): T => {
      const index = taken[kind] ?? 0;
      taken[kind] = index + 1;
      return from[index] as T;
    };
    return Array.from({ length: rowCount }, (_, row): Plain => {
      switch (classes.length === 1 ? classes[0] : classes[row]) {
        case 0:
          return null;
        case 1:
          return take(1, integers);
        case 2:
          return take(2, reals);
        case 3:
          return take(3, texts);
        case 4:
          return Buffer.from(take(4, blobs));
        default:
          throw new Error("a row has no class");
      }
    });
  });
  return Array.from({ length: rowCount }, (_, row) => columnValues.map((column) => column[row] as Plain));
}

export interface Streamed {
  readonly columns: string[];
  readonly rows: Plain[][];
  readonly chunkCount: number;
  readonly header: (QueryResponse["message"] & { case: "header" })["value"];
  readonly summary: (QueryResponse["message"] & { case: "summary" })["value"];
}

/** Reads a Query to its end, checking the order of its messages. */
export async function collect(stream: AsyncIterable<QueryResponse>): Promise<Streamed> {
  let header: Streamed["header"] | undefined;
  let summary: Streamed["summary"] | undefined;
  const rows: Plain[][] = [];
  let chunkCount = 0;
  for await (const { message } of stream) {
    if (summary !== undefined) throw new Error(`${message.case} after the summary`);
    if ((message.case === "header") !== (header === undefined)) throw new Error(`${message.case} out of order`);
    switch (message.case) {
      case "header":
        header = message.value;
        break;
      case "rowBatch":
        rows.push(...rowBatch(message.value));
        chunkCount++;
        break;
      case "columnBatch":
        rows.push(...columnBatch(message.value));
        chunkCount++;
        break;
      case "summary":
        summary = message.value;
        break;
      default:
        throw new Error("a message is empty");
    }
  }
  if (header === undefined || summary === undefined) throw new Error("the stream was cut short");
  return { columns: header.columns.map(({ name }) => name), rows, chunkCount, header, summary };
}
