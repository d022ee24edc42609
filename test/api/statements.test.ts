import { describe, expect, it } from "vitest";
import { Durability } from "../../gen/persisto/v1/database_pb.js";
import { RowFormat } from "../../gen/persisto/v1/value_pb.js";
import { type ApiUnderTest, describeEachProtocol, freshDatabase, freshId } from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid, failureOf, preconditions } from "../support/api-errors.ts";
import { collect, type Plain, rowsOf, statement, value } from "../support/rows.ts";

/** A database with people 1 Ada, 2 Bob, 3 Cy and one index. */
async function people(api: ApiUnderTest): Promise<string> {
  const database = await freshDatabase(api);
  await api.databases.executeScript({
    database,
    script: `CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age REAL, CONSTRAINT adult CHECK (age >= 18));
      CREATE UNIQUE INDEX person_name ON person (name);
      INSERT INTO person VALUES (1, 'Ada', 36.5), (2, 'Bob', NULL), (3, 'Cy', 18);`,
  });
  return database;
}

const execute = (api: ApiUnderTest, database: string, sql: string, ...parameters: Plain[]) =>
  api.databases.execute({ database, statement: statement(sql, ...parameters) });

const environment = { SETTINGS_POSITION_WAIT_SECONDS: "0.2" };

describeEachProtocol(
  "statements",
  (api) => {
    describe("Execute", () => {
      it("returns rows and where their columns come from", async () => {
        const database = await people(api);
        const { result, position } = await execute(
          api,
          database,
          "SELECT id, name AS who, age + 1 FROM person WHERE id < ?",
          3n,
        );
        expect(rowsOf(result)).toEqual([
          [1n, "Ada", 37.5],
          [2n, "Bob", null],
        ]);
        expect(result?.columns.map(({ name, declaredType }) => [name, declaredType])).toEqual([
          ["id", "INTEGER"],
          ["who", "TEXT"],
          ["age + 1", ""],
        ]);
        expect(result?.rowsAffected).toBe(0n);
        expect(result?.lastInsertRowid).toBeUndefined();
        expect(result?.elapsed).toBeDefined();
        expect(position?.lineage).toMatch(/^[0-9a-f]{16}$/);
      });

      it("tells what a write changed", async () => {
        const database = await people(api);
        const inserted = await execute(api, database, "INSERT INTO person (name, age) VALUES (?, ?)", "Di", 40);
        expect(inserted.result).toMatchObject({ rowsAffected: 1n, lastInsertRowid: 4n });
        const updated = await execute(api, database, "UPDATE person SET age = 50 WHERE id > 1");
        expect(updated.result?.rowsAffected).toBe(3n);
        expect(updated.result?.lastInsertRowid).toBeUndefined();
        const returned = await execute(api, database, "DELETE FROM person WHERE id = 4 RETURNING name");
        expect(rowsOf(returned.result)).toEqual([["Di"]]);
        expect(returned.result?.rowsAffected).toBe(1n);
        const schema = await execute(api, database, "CREATE TABLE other (a)");
        expect(schema.result?.rowsAffected).toBe(0n);
      });

      it("names the batch that holds the commit, and moves with no read", async () => {
        const database = await people(api);
        const first = await execute(api, database, "UPDATE person SET age = 20");
        expect(first.position?.sequence).toBeGreaterThan(0n);
        await api.stages.syncDatabase({ database });
        const second = await execute(api, database, "UPDATE person SET age = 21");
        expect(second.position?.lineage).toBe(first.position?.lineage);
        expect(second.position?.sequence).toBeGreaterThan(first.position?.sequence ?? 0n);
        const read = await execute(api, database, "SELECT 1");
        expect(read.position?.sequence).toBe(second.position?.sequence);
      });

      it("lays rows out by column on request", async () => {
        const database = await people(api);
        const { result } = await api.databases.execute({
          database,
          statement: statement("SELECT id, name, age FROM person ORDER BY id"),
          rowFormat: RowFormat.COLUMNS,
        });
        expect(result?.data.case).toBe("columnBatch");
        expect(rowsOf(result)).toEqual([
          [1n, "Ada", 36.5],
          [2n, "Bob", null],
          [3n, "Cy", 18],
        ]);
      });

      it("sets the batch even when there are no rows", async () => {
        const database = await people(api);
        for (const rowFormat of [RowFormat.UNSPECIFIED, RowFormat.ROWS, RowFormat.COLUMNS]) {
          const none = { database, statement: statement("SELECT id FROM person WHERE 0"), rowFormat };
          const { result } = await api.databases.execute(none);
          expect(result?.data.case).toBe(rowFormat === RowFormat.COLUMNS ? "columnBatch" : "rowBatch");
          expect(rowsOf(result)).toEqual([]);
        }
      });

      it("binds by name, whatever the prefix", async () => {
        const database = await people(api);
        const { result } = await api.databases.execute({
          database,
          statement: { sql: "SELECT :a, @b, $c, :a", namedParameters: { a: value(1n), b: value("x"), c: value(null) } },
        });
        expect(rowsOf(result)).toEqual([[1n, "x", null, 1n]]);
      });

      it("acknowledges at each durability that is there", async () => {
        const database = await people(api);
        const { UNSPECIFIED, COMMITTED, LOCAL, REMOTE } = Durability;
        for (const durability of [UNSPECIFIED, COMMITTED, LOCAL, REMOTE]) {
          const update = { database, statement: statement("UPDATE person SET age = age + 1"), durability };
          expect((await api.databases.execute(update)).result?.rowsAffected).toBe(3n);
        }
      });

      it("refuses fields that break their rules", async () => {
        const database = await people(api);
        const select = statement("SELECT 1");
        await expectFieldInvalid(api.databases.execute({ statement: select }), "database");
        await expectFieldInvalid(api.databases.execute({ database: "No", statement: select }), "database");
        await expectFieldInvalid(api.databases.execute({ database }), "statement");
        await expectFieldInvalid(
          api.databases.execute({ database, statement: select, rowFormat: 9 as RowFormat }),
          "row_format",
        );
        await expectFieldInvalid(
          api.databases.execute({ database, statement: select, durability: 9 as Durability }),
          "durability",
        );
        await expectFieldInvalid(api.databases.execute({ database, statement: select, requestId: "x" }), "request_id");
        await expectFailure(api.databases.execute({ database: freshId(), statement: select }), "DATABASE_NOT_FOUND");
      });

      it("says where a statement does not compile", async () => {
        const database = await people(api);
        const facts = await expectFailure(execute(api, database, "SELECT * FORM person"), "SQL_INVALID");
        expect(facts.offset).toBe("9");
        expect(facts.sqliteMessage).toMatch(/syntax error/);
        const missing = await expectFailure(execute(api, database, "SELECT * FROM nobody"), "SQL_INVALID");
        expect(missing.sqliteMessage).toContain("no such table: nobody");
        await expectFailure(execute(api, database, ""), "SQL_INVALID");
        await expectFailure(execute(api, database, "SELECT 1; SELECT 2"), "SQL_INVALID");
        expect(rowsOf((await execute(api, database, " /* a */ SELECT 1 ; -- b")).result)).toEqual([[1n]]);
      });

      it("says which constraint failed", async () => {
        const database = await people(api);
        const unique = execute(api, database, "INSERT INTO person VALUES (9, 'Ada', 20)");
        const error = await failureOf(unique);
        expect(preconditions(error)).toMatchObject([{ type: expect.stringMatching(/unique/i) }]);
        const facts = await expectFailure(
          execute(api, database, "INSERT INTO person VALUES (9, 'Ada', 20)"),
          "CONSTRAINT_VIOLATED",
        );
        expect(facts).toMatchObject({ table: "person", columns: "name" });
        for (const [sql, constraint] of [
          ["INSERT INTO person VALUES (1, 'New', 20)", /primary|unique/i],
          ["INSERT INTO person VALUES (9, NULL, 20)", /not/i],
          ["INSERT INTO person VALUES (9, 'New', 3)", /check/i],
        ] as const) {
          const { constraint: found } = await expectFailure(execute(api, database, sql), "CONSTRAINT_VIOLATED");
          expect(found).toMatch(constraint);
        }
      });

      it("checks that parameters and placeholders match", async () => {
        const database = await people(api);
        await expectFailure(execute(api, database, "SELECT ?"), "PARAMETERS_MISMATCH");
        await expectFailure(execute(api, database, "SELECT ?", 1n, 2n), "PARAMETERS_MISMATCH");
        const extra = { sql: "SELECT :a", namedParameters: { a: value(1n), b: value(1n) } };
        expect(
          await expectFailure(api.databases.execute({ database, statement: extra }), "PARAMETERS_MISMATCH"),
        ).toMatchObject({
          parameter: "b",
        });
        const mixed = { sql: "SELECT :a", parameters: [value(1n)], namedParameters: { a: value(1n) } };
        const error = await failureOf(api.databases.execute({ database, statement: mixed }));
        expect(error.message).toMatch(/parameter/);
      });

      it("tells failures of a running statement from those of its text", async () => {
        const database = await people(api);
        await expectFailure(execute(api, database, "SELECT abs(-9223372036854775808)"), "SQL_FAILED");
        await expectFailure(execute(api, database, "SELECT json('{')"), "SQL_FAILED");
      });

      it("refuses a result of more than 2 MiB, and takes nothing of it into effect", async () => {
        const database = await people(api);
        await execute(api, database, "CREATE TABLE big (a)");
        const insert =
          "INSERT INTO big WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 3000) SELECT hex(zeroblob(500)) FROM c RETURNING a";
        const facts = await expectFailure(execute(api, database, insert), "RESULT_TOO_LARGE");
        expect(facts.limitBytes).toBe(String(2 * 1024 * 1024));
        expect(rowsOf((await execute(api, database, "SELECT count(*) FROM big")).result)).toEqual([[0n]]);
        const fitting =
          "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 1500) SELECT hex(zeroblob(500)) FROM c";
        expect(rowsOf((await execute(api, database, fitting)).result)).toHaveLength(1500);
      });
    });

    describe("Execute with a request_id", () => {
      it("applies once, and repeats its first answer", async () => {
        const database = await people(api);
        const request = {
          database,
          statement: statement("INSERT INTO person (name) VALUES (?) RETURNING id", "Eve"),
          requestId: crypto.randomUUID(),
        };
        const first = await api.databases.execute(request);
        const second = await api.databases.execute(request);
        expect(rowsOf(first.result)).toEqual([[4n]]);
        expect(rowsOf(second.result)).toEqual([[4n]]);
        expect(rowsOf((await execute(api, database, "SELECT count(*) FROM person")).result)).toEqual([[4n]]);
        const other = { ...request, statement: statement("INSERT INTO person (name) VALUES (?) RETURNING id", "Fay") };
        await expectFieldInvalid(api.databases.execute(other), "request_id");
        const script = { database, script: "SELECT 1", requestId: request.requestId };
        await expectFieldInvalid(api.databases.executeScript(script), "request_id");
      });

      it("repeats an answer of more than 64 KiB without its result", async () => {
        const database = await people(api);
        const request = {
          database,
          statement: statement("INSERT INTO person (name) VALUES (hex(zeroblob(50000))) RETURNING name"),
          requestId: crypto.randomUUID(),
        };
        const first = await api.databases.execute(request);
        expect(rowsOf(first.result)).toEqual([["0".repeat(100_000)]]);
        const second = await api.databases.execute(request);
        expect(second.result).toBeUndefined();
        expect(second.position).toEqual(first.position);
        expect(rowsOf((await execute(api, database, "SELECT count(*) FROM person")).result)).toEqual([[4n]]);
      });

      it("does not remember a statement that failed", async () => {
        const database = await people(api);
        const request = {
          database,
          statement: statement("INSERT INTO person (id, name) VALUES (7, 'Gil')"),
          requestId: crypto.randomUUID(),
        };
        await execute(api, database, "INSERT INTO person (id, name) VALUES (7, 'Hal')");
        await expectFailure(api.databases.execute(request), "CONSTRAINT_VIOLATED");
        await execute(api, database, "DELETE FROM person WHERE id = 7");
        expect((await api.databases.execute(request)).result?.rowsAffected).toBe(1n);
      });
    });

    describe("Read", () => {
      it("runs reads", async () => {
        const database = await people(api);
        const { result, position } = await api.databases.read({
          database,
          statement: statement("SELECT name FROM person WHERE id = ?", 2n),
        });
        expect(rowsOf(result)).toEqual([["Bob"]]);
        expect(position?.sequence).toBeGreaterThan(0n);
      });

      it("refuses writes", async () => {
        const database = await people(api);
        for (const sql of [
          "DELETE FROM person",
          "CREATE TABLE x (a)",
          "INSERT INTO person VALUES (8, 'x', 20) RETURNING 1",
        ]) {
          await expectFailure(api.databases.read({ database, statement: statement(sql) }), "STATEMENT_NOT_READ_ONLY");
        }
      });

      it("sees what was written before, by position", async () => {
        const database = await people(api);
        const { position } = await execute(api, database, "UPDATE person SET age = 77 WHERE id = 1");
        const read = await api.databases.read({
          database,
          statement: statement("SELECT age FROM person WHERE id = 1"),
          ...(position && { minPosition: position }),
        });
        expect(rowsOf(read.result)).toEqual([[77]]);
        expect(read.position?.sequence).toBeGreaterThanOrEqual(position?.sequence ?? 0n);
      });

      it("tells positions of another history from those that are not reached", async () => {
        const database = await people(api);
        const { position } = await execute(api, database, "UPDATE person SET age = 18 WHERE id = 1");
        const read = (lineage: string, sequence: bigint) =>
          api.databases.read(
            { database, statement: statement("SELECT 1"), minPosition: { lineage, sequence } },
            { timeoutMs: 2000 },
          );
        await expectFailure(read("0123456789abcdef", 1n), "LINEAGE_CHANGED");
        await expectFieldInvalid(read("", 1n), "min_position.lineage");
        const unreached = read(position?.lineage ?? "", (position?.sequence ?? 0n) + 1000n);
        expect(await expectFailure(unreached, "POSITION_NOT_REACHED")).toMatchObject({ database });
      });
    });

    describe("Query", () => {
      it("streams header, chunks and summary", async () => {
        const database = await people(api);
        const rows = await collect(
          api.databases.query({ database, statement: statement("SELECT id, name FROM person ORDER BY id") }),
        );
        expect(rows.columns).toEqual(["id", "name"]);
        expect(rows.rows).toEqual([
          [1n, "Ada"],
          [2n, "Bob"],
          [3n, "Cy"],
        ]);
        expect(rows.header.position?.lineage).toMatch(/^[0-9a-f]{16}$/);
        expect(rows.summary).toMatchObject({ rowCount: 3n });
        expect(rows.summary.elapsed).toBeDefined();
      });

      it.each([RowFormat.ROWS, RowFormat.COLUMNS])("cuts many rows into chunks (format %i)", async (rowFormat) => {
        const database = await people(api);
        const sql =
          "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 2500) SELECT x, 'row ' || x, x / 2.0 FROM c";
        const whole = await collect(api.databases.query({ database, statement: statement(sql), rowFormat }));
        expect(whole.rows).toHaveLength(2500);
        expect(whole.rows[2499]).toEqual([2500n, "row 2500", 1250]);
        expect(whole.chunkCount).toBeGreaterThanOrEqual(3);
        expect(whole.summary.rowCount).toBe(2500n);
        const small = await collect(
          api.databases.query({ database, statement: statement(sql), rowFormat, maxChunkRows: 100 }),
        );
        expect(small.chunkCount).toBeGreaterThanOrEqual(25);
        expect(small.rows).toEqual(whole.rows);
        const bytes = await collect(
          api.databases.query({ database, statement: statement(sql), rowFormat, maxChunkBytes: 2000 }),
        );
        expect(bytes.chunkCount).toBeGreaterThanOrEqual(20);
        expect(bytes.rows).toEqual(whole.rows);
      });

      it("ends well without rows", async () => {
        const database = await people(api);
        const none = await collect(
          api.databases.query({ database, statement: statement("SELECT id FROM person WHERE 0") }),
        );
        expect(none.rows).toEqual([]);
        expect(none.columns).toEqual(["id"]);
        expect(none.summary.rowCount).toBe(0n);
      });

      it("fails before the first message as unary calls do", async () => {
        const database = await people(api);
        const query = (sql: string) => collect(api.databases.query({ database, statement: statement(sql) }));
        await expectFailure(query("SELECT * FORM person"), "SQL_INVALID");
        await expectFailure(query("DELETE FROM person"), "STATEMENT_NOT_READ_ONLY");
        await expectFailure(
          collect(api.databases.query({ database: freshId(), statement: statement("SELECT 1") })),
          "DATABASE_NOT_FOUND",
        );
        await expectFieldInvalid(collect(api.databases.query({ database })), "statement");
      });

      it("fails in the middle without a summary", async () => {
        const database = await people(api);
        const sql =
          "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 5000) SELECT CASE x WHEN 4000 THEN abs(-9223372036854775808) ELSE x END FROM c";
        const seen: (string | undefined)[] = [];
        const reading = (async () => {
          for await (const { message } of api.databases.query({ database, statement: statement(sql) })) {
            seen.push(message.case);
          }
        })();
        await expectFailure(reading, "SQL_FAILED");
        expect(seen[0]).toBe("header");
        expect(seen).toContain("rowBatch");
        expect(seen).not.toContain("summary");
      });

      it("sends rows as large as a message may be, and names the limit beyond", async () => {
        const database = await people(api);
        const read = (bytes: bigint) =>
          collect(api.databases.query({ database, statement: statement("SELECT zeroblob(?)", bytes) }));
        expect((await read(2_500_000n)).rows[0]?.[0]).toHaveLength(2_500_000);
        expect(await expectFailure(read(4_194_304n), "LIMIT_EXCEEDED")).toMatchObject({
          what: "bytes of one row",
          limit: "4194304",
        });
      });

      it("reads one snapshot while others write", async () => {
        const database = await people(api);
        const sql =
          "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT 20000) SELECT x, (SELECT count(*) FROM person) FROM c";
        const counts = new Set<Plain | undefined>();
        let wrote = false;
        for await (const { message } of api.databases.query({ database, statement: statement(sql) })) {
          if (message.case === "rowBatch") {
            if (!wrote) {
              wrote = true;
              await execute(api, database, "INSERT INTO person (name) VALUES ('late')");
            }
            for (const row of message.value.rows) {
              counts.add(row.values[1]?.kind.value as bigint);
            }
          }
        }
        expect(wrote).toBe(true);
        expect([...counts]).toEqual([3n]);
      });

      it("can be left early, and the database goes on", async () => {
        const database = await people(api);
        const sql = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
        let messages = 0;
        for await (const _ of api.databases.query({ database, statement: statement(sql) })) {
          messages++;
          if (messages === 3) break;
        }
        expect((await execute(api, database, "UPDATE person SET age = 30")).result?.rowsAffected).toBe(3n);
      });
    });

    describe("ExecuteBatch", () => {
      it("applies all steps in one transaction", async () => {
        const database = await people(api);
        const before = await api.stages.syncDatabase({ database });
        const { results, position } = await api.databases.executeBatch({
          database,
          steps: [
            { statement: statement("INSERT INTO person (name) VALUES (?)", "Ivy") },
            { statement: statement("UPDATE person SET age = 44 WHERE name = ?", "Ivy"), expectedRowsAffected: 1n },
            { statement: statement("SELECT count(*) FROM person") },
          ],
        });
        expect(results.map(({ rowsAffected }) => rowsAffected)).toEqual([1n, 1n, 0n]);
        expect(rowsOf(results[2])).toEqual([[4n]]);
        expect(position?.sequence).toBeGreaterThan(before.durablePosition?.sequence ?? 0n);
      });

      it("rolls all back when a step fails, and names it", async () => {
        const database = await people(api);
        const batch = (...steps: Parameters<typeof api.databases.executeBatch>[0]["steps"] & object) =>
          api.databases.executeBatch({ database, steps });
        const constraint = batch(
          { statement: statement("DELETE FROM person") },
          { statement: statement("INSERT INTO person VALUES (1, NULL, 1)") },
        );
        expect(await expectFailure(constraint, "CONSTRAINT_VIOLATED")).toMatchObject({ step: "1" });
        const expectation = batch(
          { statement: statement("DELETE FROM person WHERE id = 1"), expectedRowsAffected: 1n },
          { statement: statement("DELETE FROM person WHERE id = 99"), expectedRowsAffected: 1n },
        );
        expect(await expectFailure(expectation, "EXPECTATION_FAILED")).toEqual({
          step: "1",
          expected: "1",
          actual: "0",
        });
        const invalid = batch({ statement: statement("DELETE FROM person") }, { statement: statement("nonsense") });
        expect(await expectFailure(invalid, "SQL_INVALID")).toMatchObject({ step: "1" });
        const commit = batch({ statement: statement("DELETE FROM person") }, { statement: statement("COMMIT") });
        expect(await expectFailure(commit, "SQL_FORBIDDEN")).toMatchObject({ step: "1" });
        expect(rowsOf((await execute(api, database, "SELECT count(*) FROM person")).result)).toEqual([[3n]]);
      });

      it("applies once for a request_id", async () => {
        const database = await people(api);
        const request = {
          database,
          requestId: crypto.randomUUID(),
          steps: [{ statement: statement("UPDATE person SET age = age + 1 RETURNING age") }],
        };
        const first = await api.databases.executeBatch(request);
        const second = await api.databases.executeBatch(request);
        expect(second.results.map(rowsOf)).toEqual(first.results.map(rowsOf));
        expect(rowsOf((await execute(api, database, "SELECT age FROM person WHERE id = 1")).result)).toEqual([[37.5]]);
      });

      it("needs steps, and not too many", async () => {
        const database = await people(api);
        await expectFieldInvalid(api.databases.executeBatch({ database }), "steps");
        const step = { statement: statement("SELECT 1") };
        const many = { database, steps: Array.from({ length: 1001 }, () => step) };
        await expectFieldInvalid(api.databases.executeBatch(many), "steps");
        const { results } = await api.databases.executeBatch({ ...many, steps: many.steps.slice(1) });
        expect(results).toHaveLength(1000);
      });
    });

    describe("ExecuteScript", () => {
      it("runs many statements in one transaction", async () => {
        const database = await freshDatabase(api);
        const { statementCount, rowsAffected, position } = await api.databases.executeScript({
          database,
          script: `-- schema
          CREATE TABLE t (a);
          CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET a = a; END;
          INSERT INTO t VALUES (1), (2); INSERT INTO t VALUES ('; --');
        `,
        });
        expect(statementCount).toBe(4n);
        expect(rowsAffected).toBe(3n);
        expect(position?.sequence).toBeGreaterThan(0n);
      });

      it("takes nothing into effect when a statement fails", async () => {
        const database = await freshDatabase(api);
        const script = (text: string) => api.databases.executeScript({ database, script: text });
        expect(
          await expectFailure(script("CREATE TABLE t (a); INSERT INTO u VALUES (1)"), "SQL_INVALID"),
        ).toMatchObject({
          step: "1",
        });
        await expectFailure(script("CREATE TABLE t (a); COMMIT"), "SQL_FORBIDDEN");
        await expectFailure(script("CREATE TABLE t (a UNIQUE); INSERT INTO t VALUES (1), (1)"), "CONSTRAINT_VIOLATED");
        expect(rowsOf((await execute(api, database, "SELECT count(*) FROM sqlite_schema")).result)).toEqual([[0n]]);
        await expectFieldInvalid(script(""), "script");
      });
    });
  },
  { environment },
);
