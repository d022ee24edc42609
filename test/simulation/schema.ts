/** What a simulated database holds: a log of writes, and tables that follow from it. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ExecuteBatchRequestSchema, ExecuteResponseSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { StatementSchema } from "../../gen/persisto/v1/value_pb.js";

const keyCount = 16;
const modulus = 1_000_003;

/** One request that makes all of it. */
export const schemaBatch = toBinary(
  ExecuteBatchRequestSchema,
  create(ExecuteBatchRequestSchema, {
    steps: [
      "CREATE TABLE IF NOT EXISTS log (n INTEGER PRIMARY KEY, tag INTEGER NOT NULL UNIQUE)",
      "CREATE TABLE IF NOT EXISTS sums (k INTEGER PRIMARY KEY, v INTEGER NOT NULL, pad BLOB)",
      "CREATE TABLE IF NOT EXISTS bulk (tag INTEGER, pad BLOB)",
      "WITH RECURSIVE k(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM k WHERE i < 15)" +
        " INSERT OR IGNORE INTO sums SELECT i, 0, '' FROM k",
      "CREATE TRIGGER IF NOT EXISTS follow AFTER INSERT ON log BEGIN" +
        ` UPDATE sums SET v = (v * 31 + new.tag) % ${modulus}, pad = printf('%0200d', new.tag) WHERE k = new.tag % ${keyCount};` +
        " INSERT INTO bulk SELECT new.tag, printf('%0700d', new.tag) FROM sums WHERE new.tag % 5 = 0 AND k < 6;" +
        " DELETE FROM bulk WHERE new.tag % 11 = 0;" +
        " END",
    ].map((sql) => ({ statement: { sql } })),
  }),
);

export function statementOf(sql: string): Uint8Array {
  return toBinary(StatementSchema, create(StatementSchema, { sql }));
}

/** Answers with its place in the log. */
export function writeOf(tag: number): Uint8Array {
  return statementOf(`INSERT INTO log (tag) VALUES (${tag}) RETURNING n`);
}

export const readEverything = statementOf(
  "SELECT 0 AS kind, n, tag FROM log UNION ALL SELECT 1, k, v FROM sums UNION ALL SELECT 2, count(*), 0 FROM bulk" +
    " ORDER BY 1, 2",
);

/** The integers of the rows of an answer of Execute or Read. */
export function numbersOf(body: Uint8Array): number[][] {
  const { result } = fromBinary(ExecuteResponseSchema, body);
  if (result?.data.case !== "rowBatch") return [];
  return result.data.value.rows.map((row) =>
    row.values.map(({ kind }) => (kind.case === "integer" ? Number(kind.value) : Number.NaN)),
  );
}

/** The log that a database holds, or what does not fit together in it. */
export function readLog(rows: readonly (readonly number[])[]): { readonly tags: number[]; readonly problem?: string } {
  const of = (kind: number) => rows.filter(([first]) => first === kind).map(([, a = 0, b = 0]) => [a, b] as const);
  const tags = of(0).map(([, tag]) => tag);
  const numbers = of(0).map(([n]) => n);
  if (numbers.some((n, index) => n !== index + 1)) return { tags, problem: `its log is numbered ${numbers.join(",")}` };
  const sums = new Array<number>(keyCount).fill(0);
  let bulk = 0;
  for (const tag of tags) {
    const key = tag % keyCount;
    sums[key] = ((sums[key] ?? 0) * 31 + tag) % modulus;
    if (tag % 5 === 0) bulk += 6;
    if (tag % 11 === 0) bulk = 0;
  }
  const found = of(1).map(([, v]) => v);
  if (JSON.stringify(found) !== JSON.stringify(sums)) return { tags, problem: "its sums do not follow from its log" };
  const [[rowCount] = [0]] = of(2);
  if (rowCount !== bulk) return { tags, problem: `it has ${rowCount} bulk rows where its log says ${bulk}` };
  return { tags };
}
