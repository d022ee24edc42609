/** Real data through every door: the Chinook database, dumped from its file and loaded by the API. */
import { fileURLToPath } from "node:url";
import Database from "better-sqlite3";
import { afterAll, beforeAll, expect, it } from "vitest";
import { RowFormat } from "../../gen/persisto/v1/value_pb.js";
import { type ApiUnderTest, describeEachProtocol, freshId } from "../support/api-clients.ts";
import { expectFailure } from "../support/api-errors.ts";
import type { TestServer } from "../support/api-server.ts";
import { collect, type Plain, rowsOf, statement } from "../support/rows.ts";

const rowsAStep = 50;

interface Table {
  readonly name: string;
  readonly sql: string;
}

let file: Database.Database;
let tables: Table[];

beforeAll(() => {
  file = new Database(fileURLToPath(new URL("../fixtures/chinook.sqlite", import.meta.url)), { readonly: true });
  tables = file
    .prepare<[], Table>(
      "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid",
    )
    .all();
});
afterAll(() => file?.close());

/** What better-sqlite3 reads, integers as bigints. */
function expectedRows(sql: string): Plain[][] {
  return file.prepare<[], Plain[]>(sql).raw().safeIntegers().all();
}

async function load(api: ApiUnderTest): Promise<string> {
  const database = freshId("chinook");
  // Tables come in the order of their names, not of their references; these are checked at the end.
  await api.databases.createDatabase({ database, sqlOptions: { foreignKeys: false } });
  const indexes = file
    .prepare<[], { sql: string }>("SELECT sql FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL")
    .all();
  const script = [...tables, ...indexes].map(({ sql }) => sql).join(";\n");
  const { statementCount } = await api.databases.executeScript({ database, script });
  expect(statementCount).toBe(BigInt(tables.length + indexes.length));
  for (const { name } of tables) {
    const rows = expectedRows(`SELECT * FROM "${name}"`);
    const row = `(${rows[0]?.map(() => "?").join(", ")})`;
    const steps = Array.from({ length: Math.ceil(rows.length / rowsAStep) }, (_, step) => {
      const some = rows.slice(step * rowsAStep, (step + 1) * rowsAStep);
      return {
        statement: statement(`INSERT INTO "${name}" VALUES ${some.map(() => row).join(", ")}`, ...some.flat()),
        expectedRowsAffected: BigInt(some.length),
      };
    });
    await api.databases.executeBatch({ database, steps });
  }
  await api.databases.updateDatabase({ database: { id: database, sqlOptions: { foreignKeys: true } } });
  return database;
}

/** As `toEqual`, which takes seconds for 15,000 rows. */
function firstDifference(rows: readonly Plain[][], expected: readonly Plain[][]): unknown {
  const at = expected.findIndex((row, index) => !row.every((cell, column) => Object.is(cell, rows[index]?.[column])));
  return at < 0 ? undefined : { at, found: rows[at], expected: expected[at] };
}

const questions = [
  "SELECT ar.Name, count(*), sum(t.Milliseconds) FROM Artist ar JOIN Album al USING (ArtistId) JOIN Track t USING (AlbumId) GROUP BY ar.ArtistId ORDER BY 2 DESC, 1 LIMIT 20",
  "SELECT BillingCountry, total(Total), avg(Total) FROM Invoice GROUP BY 1 ORDER BY 1",
  "SELECT c.FirstName || ' ' || c.LastName, e.LastName, c.Company FROM Customer c LEFT JOIN Employee e ON e.EmployeeId = c.SupportRepId ORDER BY 1",
  "SELECT g.Name, rank() OVER (ORDER BY count(*) DESC) FROM Genre g JOIN Track USING (GenreId) GROUP BY g.GenreId ORDER BY 2, 1",
];

/** Loaded by every client of the own path; the other server's clients share the database of the first of them. */
const shared = new WeakMap<TestServer, Promise<string>>();

describeEachProtocol("Chinook", (api) => {
  let own: Promise<string> | undefined;
  const chinook = () => {
    own ??= (api.ownPath ? undefined : shared.get(api.testServer)) ?? load(api);
    shared.set(api.testServer, own);
    return own;
  };

  it("every table comes back row by row as the file has it", async () => {
    const database = await chinook();
    for (const [index, { name }] of tables.entries()) {
      const sql = `SELECT * FROM "${name}" ORDER BY rowid`;
      const expected = expectedRows(sql);
      const rowFormat = (index + Number(api.ownPath)) % 2 === 0 ? RowFormat.ROWS : RowFormat.COLUMNS;
      const { rows, summary } = await collect(api.databases.query({ database, statement: { sql }, rowFormat }));
      expect(rows.length).toBe(expected.length);
      expect(firstDifference(rows, expected)).toBeUndefined();
      expect(summary.rowCount).toBe(BigInt(expected.length));
    }
  });

  it("questions get the answers that SQLite gives", async () => {
    const database = await chinook();
    for (const sql of questions) {
      const { result } = await api.databases.read({ database, statement: { sql } });
      expect(rowsOf(result)).toEqual(expectedRows(sql));
    }
  });

  it("its foreign keys hold", async () => {
    const database = await chinook();
    const { result } = await api.databases.read({ database, statement: { sql: "PRAGMA foreign_key_check" } });
    expect(rowsOf(result)).toEqual([]);
    const orphan = statement("INSERT INTO Album VALUES (9999, 'Nobody plays', 9999)");
    expect(
      await expectFailure(api.databases.execute({ database, statement: orphan }), "CONSTRAINT_VIOLATED"),
    ).toMatchObject({
      constraint: expect.stringMatching(/foreign/i),
    });
  });
});
