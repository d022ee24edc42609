import { Code } from "@connectrpc/connect";
import fc from "fast-check";
import { expect, it } from "vitest";
import { RowFormat } from "../../gen/persisto/v1/value_pb.js";
import { type ClientKind, describeEachProtocol, freshDatabase } from "../support/api-clients.ts";
import { failureOf } from "../support/api-errors.ts";
import { collect, type Plain, rowsOf, statement } from "../support/rows.ts";

const samples: readonly Plain[] = [
  null,
  0n,
  1n,
  -1n,
  2n ** 53n + 1n,
  -(2n ** 53n) - 1n,
  2n ** 63n - 1n,
  -(2n ** 63n),
  0,
  -0,
  0.1,
  -1.5e300,
  5e-324,
  Number.MAX_VALUE,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  "",
  "text",
  "ä 語 😀 '; --",
  "with\0NUL",
  "x".repeat(20_000),
  Buffer.alloc(0),
  Buffer.from([0, 255, 254, 1]),
  Buffer.alloc(20_000, 7),
];

/** JSON has no minus zero in JavaScript. */
const inJson = (kind: ClientKind, plains: readonly Plain[]) =>
  kind.startsWith("connect json") ? plains.map((plain) => plainZero(plain) as Plain) : plains;

describeEachProtocol("values", (api) => {
  it("come back as they were sent, in every layout and method", async () => {
    const database = await freshDatabase(api);
    const sql = `SELECT ${samples.map(() => "?").join(", ")}`;
    const kinds = `SELECT ${samples.map(() => "typeof(?)").join(", ")}`;
    for (const rowFormat of [RowFormat.ROWS, RowFormat.COLUMNS]) {
      const request = { database, statement: statement(sql, ...samples), rowFormat };
      expect(rowsOf((await api.databases.execute(request)).result)).toEqual([inJson(api.kind, samples)]);
      expect((await collect(api.databases.query(request))).rows).toEqual([inJson(api.kind, samples)]);
    }
    // Too long for a GET.
    const short = samples.filter((sample) => typeof sample !== "object" && String(sample).length < 1000);
    const read = await api.databases.read({
      database,
      statement: statement(`SELECT ${short.map(() => "?").join(", ")}`, ...short),
    });
    expect(rowsOf(read.result)).toEqual([inJson(api.kind, short)]);
    const types = rowsOf(
      (await api.databases.execute({ database, statement: statement(kinds, ...samples) })).result,
    )[0];
    expect(types).toEqual(samples.map(typeOf));
  });

  it("are stored and kept apart by their types, row by row", async () => {
    const database = await freshDatabase(api);
    await api.databases.execute({ database, statement: statement("CREATE TABLE t (a)") });
    await api.databases.executeBatch({
      database,
      steps: samples.map((sample) => ({ statement: statement("INSERT INTO t VALUES (?)", sample) })),
    });
    for (const rowFormat of [RowFormat.ROWS, RowFormat.COLUMNS]) {
      const request = { database, statement: statement("SELECT a FROM t ORDER BY rowid"), rowFormat };
      // -0.0 in a column of no type is stored as the integer 0.
      const expected = samples.map((sample) => [sample]);
      const found = rowsOf((await api.databases.execute(request)).result);
      expect(found.map(([cell]) => plainZero(cell))).toEqual(expected.map(([cell]) => plainZero(cell)));
    }
  });

  it("know no NaN: SQLite stores NULL", async () => {
    const database = await freshDatabase(api);
    const { result } = await api.databases.execute({ database, statement: statement("SELECT ?", Number.NaN) });
    expect(rowsOf(result)).toEqual([[null]]);
  });

  it("are blobs where text is not UTF-8", async () => {
    const database = await freshDatabase(api);
    const sql = "SELECT CAST(x'61ff62' AS TEXT), CAST(x'c3a4' AS TEXT), CAST(x'eda080' AS TEXT)";
    for (const rowFormat of [RowFormat.ROWS, RowFormat.COLUMNS]) {
      const { result } = await api.databases.execute({ database, statement: statement(sql), rowFormat });
      expect(rowsOf(result)).toEqual([[Buffer.from([0x61, 0xff, 0x62]), "ä", Buffer.from([0xed, 0xa0, 0x80])]]);
    }
  });

  it("must have a kind: unset is not NULL", async () => {
    const database = await freshDatabase(api);
    const unset = { database, statement: { sql: "SELECT ?", parameters: [{}] } };
    const error = await failureOf(api.databases.execute(unset));
    expect(error.code).toBe(Code.InvalidArgument);
  });
});

describeEachProtocol(
  "random values",
  (api) => {
    it("survive the way to SQLite and back", async () => {
      const database = await freshDatabase(api);
      const anyPlain: fc.Arbitrary<Plain> = fc.oneof(
        fc.constant(null),
        fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
        fc.double({ noNaN: true }),
        fc.string({ unit: "binary", maxLength: 20 }).filter((text) => text.isWellFormed()),
        fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)),
      );
      await fc.assert(
        fc.asyncProperty(
          fc.array(anyPlain, { minLength: 1, maxLength: 12 }),
          fc.constantFrom(RowFormat.ROWS, RowFormat.COLUMNS),
          async (plains, rowFormat) => {
            const sql = `SELECT ${plains.map(() => "?").join(", ")}`;
            const { result } = await api.databases.execute({
              database,
              statement: statement(sql, ...plains),
              rowFormat,
            });
            expect(rowsOf(result)).toEqual([inJson(api.kind, plains)]);
          },
        ),
        { numRuns: 100 },
      );
    });
  },
  { kinds: ["grpc-js", "connect json h1"] },
);

function typeOf(plain: Plain): string {
  if (plain === null) return "null";
  const types: Readonly<Record<string, string>> = { bigint: "integer", number: "real", string: "text" };
  return types[typeof plain] ?? "blob";
}

function plainZero(plain: Plain | undefined): Plain | undefined {
  return Object.is(plain, -0) ? 0 : plain;
}
