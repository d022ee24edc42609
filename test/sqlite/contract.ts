/** What every implementation of Executors promises. */
import { copyFileSync, existsSync, statSync } from "node:fs";
import { create, toBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ExecuteBatchRequestSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { systemClock } from "../../src/clock.ts";
import { CallCancelled, type ExecutorDatabase, type Executors, PartlyDone } from "../../src/sqlite/executor.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import {
  batchResults,
  drain,
  ENDLESS,
  encode,
  encodeBatch,
  execute,
  failureOf,
  newDatabase,
  newRecord,
  options,
  queryOptions,
  read,
  resultOf,
  rows,
  type Start,
  scriptCounts,
  TestCancel,
  transactionRows,
  within,
} from "./support.ts";

const NUMBERS = (count: number) =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count}) SELECT i FROM n`;

export function describeExecutors(name: string, start: Start): void {
  describe(name, () => {
    const folder = temporaryFolders();
    let executors: Executors;
    let database: ExecutorDatabase;
    let created = 0;

    const fresh = (): Promise<ExecutorDatabase> => newDatabase(executors, folder(), `fresh-${++created}`);

    beforeAll(async () => {
      executors = await start();
      database = await newDatabase(executors, folder());
      await execute(database, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)");
    });
    afterAll(() => executors.close(1_000));

    it("knows SQLite's version", () => {
      expect(executors.sqliteVersion).toMatch(/^3\.\d+\.\d+$/);
    });

    describe("execute and read", () => {
      it("runs a write and tells what it did", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)");
        const result = await db.execute(encode("INSERT INTO t (name) VALUES (?), (?)", "a", "b"), options());
        expect(result).toMatchObject({ committed: true, replayed: false });
        expect(result.walFrames).toBeGreaterThan(0);
        expect(resultOf(result)).toMatchObject({ rowsAffected: 2n, lastInsertRowid: 2n });
        expect(await read(db, "SELECT * FROM t")).toEqual([
          [1n, "a"],
          [2n, "b"],
        ]);
      });

      it("tells when a statement failed and left something behind", async () => {
        await execute(database, "CREATE TABLE once (x UNIQUE)");
        const insert = (how: string) =>
          failureOf(database.execute(encode(`INSERT ${how} INTO once VALUES (1), (1)`), options()));
        expect(await insert("OR ABORT")).not.toBeInstanceOf(PartlyDone);
        const failure = await insert("OR FAIL");
        expect(failure).toBeInstanceOf(PartlyDone);
        expect(failure).toMatchObject({ reason: "CONSTRAINT_VIOLATED", facts: { table: "once" } });
        expect(await execute(database, "SELECT x FROM once")).toEqual([[1n]]);
      });

      it("tells that a statement without an effect committed nothing", async () => {
        const result = await database.execute(encode("SELECT 1"), options());
        expect(result.committed).toBe(false);
        const none = await database.execute(encode("UPDATE t SET name = 'x' WHERE id = -1"), options());
        expect(none.committed).toBe(false);
      });

      it("keeps 64-bit integers exact, in rows and in columns", async () => {
        const values = [2n ** 63n - 1n, -(2n ** 63n), 2n ** 53n + 1n, 0n] as const;
        for (const columns of [false, true]) {
          const result = await database.read(encode("SELECT ?, ?, ?, ?", ...values), options({ columns }));
          expect(resultOf(result).data.case).toBe(columns ? "columnBatch" : "rowBatch");
          expect(rows(result)).toEqual([[...values]]);
        }
      });

      it("returns large results whole", async () => {
        const result = await database.read(encode("SELECT zeroblob(1500000), ?", "end"), options());
        const [row] = rows(result);
        expect(row?.[0]).toHaveLength(1_500_000);
        expect(row?.[1]).toBe("end");
      });

      it("sees what was written before", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        for (let count = 1n; count <= 50n; count++) {
          await execute(db, "INSERT INTO t VALUES (1)");
          expect(await read(db, "SELECT count(*) FROM t")).toEqual([[count]]);
        }
      });

      it("runs calls that were sent together, each once", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        await Promise.all(
          Array.from({ length: 200 }, (_, index) => db.execute(encode(`INSERT INTO t VALUES (${index})`), options())),
        );
        expect(await read(db, "SELECT count(*), count(DISTINCT x) FROM t")).toEqual([[200n, 200n]]);
      });

      it("refuses writes on Read", async () => {
        for (const sql of ["INSERT INTO t DEFAULT VALUES", "DELETE FROM t", "CREATE TABLE u (x)"])
          expect(await failureOf(read(database, sql))).toMatchObject({ reason: "STATEMENT_NOT_READ_ONLY" });
      });

      it("has no effect when the result is too large", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const sql = `INSERT INTO t ${NUMBERS(1000)} RETURNING x`;
        const failure = await failureOf(db.execute(encode(sql), options({ resultBytesMax: 1000 })));
        expect(failure).toMatchObject({ reason: "RESULT_TOO_LARGE", facts: { limitBytes: "1000" } });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });
    });

    describe("failures", () => {
      const failing = (sql: string, ...parameters: (string | bigint)[]) =>
        failureOf(database.execute(encode(sql, ...parameters), options()));

      it("say where a statement does not compile", async () => {
        expect(await failing("SELECT * FROM t WHERE nowhere = 1")).toMatchObject({
          reason: "SQL_INVALID",
          facts: { sqliteCode: "SQLITE_ERROR", offset: "22", sqliteMessage: "no such column: nowhere" },
        });
        for (const sql of ["SELECT 1; SELECT 2", "SELECT 'a\0b'"])
          expect(await failing(sql)).toMatchObject({
            reason: "SQL_INVALID",
            facts: { offset: expect.stringMatching(/^\d+$/) },
          });
        for (const sql of ["", "  -- nothing"]) {
          const failure = await failing(sql);
          expect(failure).toMatchObject({ reason: "SQL_INVALID" });
          expect(failure.facts).not.toHaveProperty("offset");
        }
      });

      it("name parameters that do not match", async () => {
        expect(await failing("SELECT ?")).toMatchObject({
          reason: "PARAMETERS_MISMATCH",
          facts: { expected: "1", actual: "0" },
        });
        expect(await failing("SELECT :a", "x")).toMatchObject({ reason: "PARAMETERS_MISMATCH" });
        expect(await failing("SELECT 1", "x")).toMatchObject({ reason: "PARAMETERS_MISMATCH" });
      });

      it("name what is forbidden", async () => {
        for (const sql of ["ATTACH 'x' AS y", "BEGIN", "PRAGMA journal_mode = DELETE", "CREATE TEMP TABLE x (y)"]) {
          const failure = await failing(sql);
          expect(failure).toMatchObject({ reason: "SQL_FORBIDDEN" });
          expect(failure.facts.action).toBeTruthy();
        }
        expect(await failing("CREATE TABLE _persisto_x (y)")).toMatchObject({ reason: "SQL_FORBIDDEN" });
      });

      it("name the constraint", async () => {
        const db = await fresh();
        await db.script(
          Buffer.from(
            `CREATE TABLE p (id INTEGER PRIMARY KEY, a TEXT NOT NULL, b INT CHECK (b > 0), c INT, UNIQUE (a, c));
             CREATE TABLE k (p INT REFERENCES p); INSERT INTO p VALUES (1, 'x', 1, 1)`,
          ),
          options(),
        );
        const violating = (sql: string) => failureOf(db.execute(encode(sql), options()));
        expect(await violating("INSERT INTO p VALUES (2, 'x', 1, 1)")).toMatchObject({
          reason: "CONSTRAINT_VIOLATED",
          facts: { constraint: "UNIQUE", table: "p", columns: "a,c", sqliteCode: "SQLITE_CONSTRAINT_UNIQUE" },
        });
        expect(await violating("INSERT INTO p VALUES (3, NULL, 1, 1)")).toMatchObject({
          facts: { constraint: "NOT NULL", table: "p", columns: "a" },
        });
        expect(await violating("INSERT INTO p VALUES (1, 'y', 1, 1)")).toMatchObject({
          facts: { constraint: "PRIMARY KEY", table: "p", columns: "id" },
        });
        expect(await violating("INSERT INTO p VALUES (4, 'y', 0, 1)")).toMatchObject({
          facts: { constraint: "CHECK" },
        });
        expect(await violating("INSERT INTO k VALUES (9)")).toMatchObject({ facts: { constraint: "FOREIGN KEY" } });
      });

      it("name limits", async () => {
        expect(await failing(`SELECT ${"1,".repeat(600)}1`)).toMatchObject({ reason: "LIMIT_EXCEEDED" });
        expect(await failing(`SELECT 1${"+1".repeat(300)}`)).toMatchObject({
          reason: "LIMIT_EXCEEDED",
        });
        expect(await failing("SELECT zeroblob(100000000)")).toMatchObject({ reason: "LIMIT_EXCEEDED" });
      });

      it("tell a failed run from a failed compilation", async () => {
        expect(await failing("SELECT json_extract('{', '$')")).toMatchObject({ reason: "SQL_FAILED" });
      });

      it("say that the database is full", async () => {
        const small = await start({ limits: { databaseBytesMax: 64 * 1024 } });
        try {
          const db = await newDatabase(small, folder());
          await execute(db, "CREATE TABLE t (x)");
          const full = db.execute(encode("INSERT INTO t VALUES (zeroblob(100000))"), options());
          expect(await failureOf(full)).toMatchObject({ reason: "DATABASE_FULL", facts: { database: "test" } });
          await execute(db, "INSERT INTO t VALUES (zeroblob(10000))");
        } finally {
          await small.close(1_000);
        }
      });

      it("say that data is damaged", async () => {
        const path = folder();
        copyFileSync(import.meta.filename, `${path}/db.sqlite`);
        const damaged = executors.open({ id: "damaged", path: `${path}/db.sqlite`, foreignKeys: true });
        expect(await failureOf(read(damaged, "SELECT * FROM sqlite_schema"))).toMatchObject({ reason: "DATA_CORRUPT" });
        await damaged.close(false);
      });

      it("end a statement at its deadline, and nothing else", async () => {
        const endless = failureOf(
          database.execute(encode(ENDLESS), options({ ...within(100), deadlineSource: "client" })),
        );
        expect(await endless).toMatchObject({
          reason: "STATEMENT_TIMEOUT",
          facts: { source: "client", limitMs: "100" },
        });
        expect(await failureOf(database.read(encode(ENDLESS), options(within(50))))).toMatchObject({
          reason: "STATEMENT_TIMEOUT",
        });
        expect(await read(database, "SELECT 1")).toEqual([[1n]]);
      });

      it("roll an interrupted write back whole", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const write = db.execute(encode(`INSERT INTO t ${NUMBERS(1_000_000_000)}`), options(within(60)));
        expect(await failureOf(write)).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });

      it("do not run a call whose deadline is over", async () => {
        const db = await fresh();
        const late = db.execute(encode("CREATE TABLE late (x)"), options(within(-1)));
        expect(await failureOf(late)).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
        expect(await read(db, "SELECT count(*) FROM sqlite_schema")).toEqual([[0n]]);
      });
    });

    describe("batch", () => {
      it("runs all steps in one transaction", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const result = await db.batch(
          encodeBatch(
            { sql: "INSERT INTO t VALUES (?), (2)", parameters: [1n], expected: 2n },
            { sql: "SELECT sum(x) FROM t" },
            { sql: "UPDATE t SET x = x + 1" },
          ),
          options(),
        );
        expect(result.committed).toBe(true);
        expect(batchResults(result).map(({ rowsAffected }) => rowsAffected)).toEqual([2n, 0n, 2n]);
      });

      it("may be empty", async () => {
        expect(batchResults(await database.batch(encodeBatch(), options()))).toEqual([]);
      });

      it("rolls back when a step fails, and says which", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x UNIQUE)");
        const failure = await failureOf(
          db.batch(
            encodeBatch({ sql: "INSERT INTO t VALUES (1)" }, { sql: "SELECT 1" }, { sql: "INSERT INTO t VALUES (1)" }),
            options(),
          ),
        );
        expect(failure).toMatchObject({ reason: "CONSTRAINT_VIOLATED", facts: { step: "2" } });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });

      it("rolls back when another number of rows was changed", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const failure = await failureOf(
          db.batch(
            encodeBatch({ sql: "INSERT INTO t VALUES (1)" }, { sql: "UPDATE t SET x = 2 WHERE x = 7", expected: 1n }),
            options(),
          ),
        );
        expect(failure).toMatchObject({
          reason: "EXPECTATION_FAILED",
          facts: { step: "1", expected: "1", actual: "0" },
        });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });

      it("rolls back when the commit fails", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, p REFERENCES t DEFERRABLE INITIALLY DEFERRED)");
        const failure = await failureOf(db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (1, 9)" }), options()));
        expect(failure).toMatchObject({ reason: "CONSTRAINT_VIOLATED", facts: { constraint: "FOREIGN KEY" } });
        await execute(db, "INSERT INTO t VALUES (1, 1)");
      });

      it("takes PRAGMAs back that hold for it alone", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE p (id INTEGER PRIMARY KEY)");
        await execute(db, "CREATE TABLE k (p REFERENCES p)");
        await db.batch(
          encodeBatch(
            { sql: "PRAGMA defer_foreign_keys = ON" },
            { sql: "INSERT INTO k VALUES (1)" },
            { sql: "INSERT INTO p VALUES (1)" },
          ),
          options(),
        );
        const recursive = encodeBatch({ sql: "PRAGMA recursive_triggers = ON" }, { sql: "PRAGMA recursive_triggers" });
        await db.batch(recursive, options());
        expect(await execute(db, "PRAGMA recursive_triggers")).toEqual([[0n]]);
        expect(await failureOf(execute(db, "PRAGMA recursive_triggers = ON"))).toMatchObject({
          reason: "SQL_FORBIDDEN",
        });
      });

      it("refuses to end its own transaction", async () => {
        for (const sql of ["COMMIT", "ROLLBACK", "SAVEPOINT a", "BEGIN"])
          expect(await failureOf(database.batch(encodeBatch({ sql }), options()))).toMatchObject({
            reason: "SQL_FORBIDDEN",
            facts: { step: "0" },
          });
      });

      it("bounds the sum of its results, and applies nothing beyond it", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const step = { sql: "INSERT INTO t VALUES (1) RETURNING zeroblob(600)" };
        const batch = encodeBatch(step, step, step, step);
        expect(await failureOf(db.batch(batch, options({ resultBytesMax: 2_000 })))).toMatchObject({
          reason: "RESULT_TOO_LARGE",
          facts: { step: "3" },
        });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
        expect(batchResults(await db.batch(batch, options()))).toHaveLength(4);
      });

      it("carries many and large results", async () => {
        const steps = Array.from({ length: 2_000 }, (_, index) => ({ sql: `SELECT ${index}, zeroblob(500)` }));
        const results = batchResults(await database.batch(encodeBatch(...steps), options()));
        expect(results).toHaveLength(2_000);
        expect(results.map((result) => result.data.case)).not.toContain(undefined);
      });

      it("refuses what is no request", async () => {
        const broken = Buffer.from([0x12, 0x7f, 0x01]);
        expect(await failureOf(database.batch(broken, options()))).toMatchObject({ reason: "FIELD_INVALID" });
        const withoutKind = create(ExecuteBatchRequestSchema, {
          steps: [{ statement: { sql: "SELECT 1" } }, { statement: { sql: "SELECT ?", parameters: [{}] } }],
        });
        const request = toBinary(ExecuteBatchRequestSchema, withoutKind);
        expect(await failureOf(database.batch(request, options()))).toMatchObject({
          reason: "FIELD_INVALID",
          facts: { field: "steps[1].statement" },
        });
      });
    });

    describe("script", () => {
      const run = (db: ExecutorDatabase, text: string) => db.script(Buffer.from(text), options());

      it("runs many statements in one transaction", async () => {
        const db = await fresh();
        const result = await run(
          db,
          "CREATE TABLE t (x); -- a comment\nINSERT INTO t VALUES (1), (2); UPDATE t SET x = 3;; CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM t; SELECT 1; END;",
        );
        expect(scriptCounts(result)).toMatchObject({ statementCount: 4n, rowsAffected: 4n });
        expect(result.committed).toBe(true);
      });

      it("takes nothing over when one fails, and says which", async () => {
        const db = await fresh();
        expect(
          await failureOf(run(db, "CREATE TABLE t (x); INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)")),
        ).toMatchObject({
          reason: "SQL_INVALID",
          facts: { step: "2" },
        });
        expect(await read(db, "SELECT count(*) FROM sqlite_schema")).toEqual([[0n]]);
      });

      it("obeys the rules in every statement", async () => {
        for (const sql of ["SELECT 1; COMMIT", "CREATE TABLE a (x); ATTACH 'x' AS y", "BEGIN; SELECT 1; COMMIT"])
          expect(await failureOf(run(database, sql))).toMatchObject({ reason: "SQL_FORBIDDEN" });
      });

      it("ends at the deadline", async () => {
        const script = database.script(Buffer.from(`SELECT 1; ${ENDLESS}`), options(within(50)));
        expect(await failureOf(script)).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
      });
    });

    describe("request ids", () => {
      it("apply a call once and repeat its answer", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const record = newRecord();
        const first = await db.execute(encode("INSERT INTO t VALUES (1) RETURNING x, random()"), options(), record);
        const second = await db.execute(encode("INSERT INTO t VALUES (1) RETURNING x, random()"), options(), record);
        expect(first).toMatchObject({ committed: true, replayed: false });
        expect(second).toMatchObject({ committed: false, replayed: true });
        expect(second.body).toEqual(first.body);
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[1n]]);
      });

      it("are of one database, method and request", async () => {
        const db = await fresh();
        const other = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const record = newRecord();
        await db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (1)" }), options(), record);
        for (const wrong of [
          { ...record, hash: "other" },
          { ...record, method: "ExecuteScript" },
        ]) {
          const failure = await failureOf(db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (1)" }), options(), wrong));
          expect(failure).toMatchObject({ reason: "FIELD_INVALID", facts: { field: "request_id" } });
          expect(failure.violations).toHaveLength(1);
        }
        await other.batch(encodeBatch({ sql: "CREATE TABLE t (x)" }), options(), { ...record, hash: "other" });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[1n]]);
      });

      it("are not kept for calls that failed", async () => {
        const db = await fresh();
        const record = newRecord();
        const insert = () => db.execute(encode("INSERT INTO t VALUES (1)"), options(), record);
        expect(await failureOf(insert())).toMatchObject({ reason: "SQL_INVALID" });
        await execute(db, "CREATE TABLE t (x)");
        expect(await insert()).toMatchObject({ replayed: false });
        expect(await insert()).toMatchObject({ replayed: true });
      });

      it("are kept without an answer that is too large", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const record = newRecord();
        const insert = () =>
          db.execute(encode("INSERT INTO t VALUES (1) RETURNING zeroblob(70000)"), options(), record);
        expect((await insert()).body.length).toBeGreaterThan(70_000);
        expect(await insert()).toMatchObject({ replayed: true, body: Buffer.alloc(0) });
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[1n]]);
      });

      it("outlive their executors", async () => {
        const path = folder();
        const record = newRecord();
        const first = await start();
        const db = await newDatabase(first, path);
        await execute(db, "CREATE TABLE t (x)");
        await db.script(Buffer.from("INSERT INTO t VALUES (1)"), options(), record);
        await first.close(1_000);
        const second = await start();
        try {
          const again = second.open(db.file);
          const answer = await again.script(Buffer.from("INSERT INTO t VALUES (1)"), options(), record);
          expect(answer.replayed).toBe(true);
          expect(scriptCounts(answer)).toMatchObject({ statementCount: 1n, rowsAffected: 1n });
          expect(await read(again, "SELECT count(*) FROM t")).toEqual([[1n]]);
        } finally {
          await second.close(1_000);
        }
      });

      it("are forgotten oldest first above their bound", async () => {
        const few = await start({ limits: { requestRecordCountMax: 10 } });
        try {
          const db = await newDatabase(few, folder());
          await execute(db, "CREATE TABLE t (x)");
          const records = Array.from({ length: 30 }, () => newRecord());
          const insert = (index: number) =>
            db.execute(encode("INSERT INTO t VALUES (1)"), options(), records[index] ?? newRecord());
          for (const index of records.keys()) await insert(index);
          expect(await insert(29)).toMatchObject({ replayed: true });
          expect(await insert(20)).toMatchObject({ replayed: true });
          expect(await insert(19)).toMatchObject({ replayed: false });
        } finally {
          await few.close(1_000);
        }
      });
    });

    describe("transactions", () => {
      it("keep or drop what they did", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const kept = await db.begin(true, options());
        const result = await kept.execute(encode("INSERT INTO t VALUES (1) RETURNING x"), options());
        expect(result.committed).toBe(false);
        expect(transactionRows(result)).toEqual([[1n]]);
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
        expect(await kept.commit(options())).toMatchObject({ committed: true });
        expect(kept.isOpen).toBe(false);
        const dropped = await db.begin(true, options());
        await dropped.execute(encode("INSERT INTO t VALUES (2)"), options());
        await dropped.rollback();
        expect(dropped.isOpen).toBe(false);
        await dropped.rollback();
        expect(await read(db, "SELECT x FROM t")).toEqual([[1n]]);
        const empty = await db.begin(true, options());
        expect(await empty.commit(options())).toMatchObject({ committed: false });
      });

      it("have savepoints", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
        await transaction.savepoint('a "quoted" name', options());
        await transaction.execute(encode("INSERT INTO t VALUES (2)"), options());
        await transaction.rollbackTo('a "quoted" name', options());
        expect(await failureOf(transaction.rollbackTo("unknown", options()))).toMatchObject({
          facts: { sqliteMessage: "no such savepoint: unknown" },
        });
        expect(transaction.isOpen).toBe(true);
        await transaction.commit(options());
        expect(await read(db, "SELECT x FROM t")).toEqual([[1n]]);
      });

      it("go on after a statement that failed", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x UNIQUE)");
        const transaction = await db.begin(true, options());
        const insert = () => transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
        await insert();
        expect(await failureOf(insert())).toMatchObject({ reason: "CONSTRAINT_VIOLATED" });
        expect(await failureOf(transaction.execute(encode("COMMIT"), options()))).toMatchObject({
          reason: "SQL_FORBIDDEN",
        });
        const large = transaction.execute(
          encode(`INSERT INTO t ${NUMBERS(99)} RETURNING zeroblob(99)`),
          options({ resultBytesMax: 999 }),
        );
        expect(await failureOf(large)).toBeDefined();
        expect(transaction.isOpen).toBe(true);
        await transaction.commit(options());
        expect(await read(db, "SELECT x FROM t")).toEqual([[1n]]);
      });

      it("end when SQLite ends them", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x UNIQUE)");
        await execute(db, "INSERT INTO t VALUES (1)");
        const rolled = await db.begin(true, options());
        await rolled.execute(encode("INSERT INTO t VALUES (2)"), options());
        const failed = failureOf(rolled.execute(encode("INSERT OR ROLLBACK INTO t VALUES (1)"), options()));
        expect(await failed).toMatchObject({ reason: "CONSTRAINT_VIOLATED" });
        expect(rolled.isOpen).toBe(false);
        expect(await failureOf(rolled.execute(encode("SELECT 1"), options()))).toMatchObject({
          reason: "TRANSACTION_NOT_OPEN",
        });
        const interrupted = await db.begin(true, options());
        const write = interrupted.execute(
          encode(`INSERT INTO t SELECT -i FROM (${NUMBERS(1_000_000_000)})`),
          options(within(50)),
        );
        expect(await failureOf(write)).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
        expect(interrupted.isOpen).toBe(false);
        const reading = await db.begin(true, options());
        expect(await failureOf(reading.execute(encode(ENDLESS), options(within(50))))).toMatchObject({
          reason: "STATEMENT_TIMEOUT",
        });
        expect(reading.isOpen).toBe(true);
        await reading.rollback();
        expect(await execute(db, "SELECT x FROM t")).toEqual([[1n]]);
      });

      it("stay open when the commit fails", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, p REFERENCES t DEFERRABLE INITIALLY DEFERRED)");
        const transaction = await db.begin(true, options());
        await transaction.execute(encode("INSERT INTO t VALUES (1, 2)"), options());
        expect(await failureOf(transaction.commit(options()))).toMatchObject({ reason: "CONSTRAINT_VIOLATED" });
        expect(transaction.isOpen).toBe(true);
        await transaction.execute(encode("INSERT INTO t VALUES (2, 1)"), options());
        expect(await transaction.commit(options())).toMatchObject({ committed: true });
      });

      it("hold the lock: writes wait in order, reads go on", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        await transaction.execute(encode("INSERT INTO t VALUES (0)"), options());
        const order: number[] = [];
        const waiting = [1, 2, 3].map(async (index) => {
          await db.execute(encode("INSERT INTO t VALUES (?)", BigInt(index)), options());
          order.push(index);
        });
        const batch = db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (4)" }), options()).then(() => order.push(4));
        const next = db.begin(true, options());
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
        expect(await execute(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
        expect(order).toEqual([]);
        await transaction.commit(options());
        await Promise.all([...waiting, batch]);
        expect(order).toEqual([1, 2, 3, 4]);
        const second = await next;
        expect(transactionRows(await second.execute(encode("SELECT x FROM t ORDER BY rowid"), options()))).toEqual([
          [0n],
          [1n],
          [2n],
          [3n],
          [4n],
        ]);
        await second.rollback();
      });

      it("let nobody wait beyond his deadline", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        const late = [
          db.begin(true, options(within(40))),
          db.execute(encode("INSERT INTO t VALUES (1)"), options(within(40))),
          db.script(Buffer.from("INSERT INTO t VALUES (1)"), options(within(40))),
        ];
        for (const failure of await Promise.all(late.map(failureOf))) {
          expect(failure).toMatchObject({ reason: "DATABASE_BUSY", facts: { database: db.file.id } });
          expect(Number(failure.facts.waitedMs)).toBeGreaterThanOrEqual(30);
          expect(failure.retryAfterMs).toBeGreaterThan(0);
        }
        await transaction.rollback();
        expect(await execute(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
        await execute(db, "INSERT INTO t VALUES (1)");
      });

      it("read one snapshot when they only read", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(false, options());
        await execute(db, "INSERT INTO t VALUES (1)");
        const count = () => transaction.execute(encode("SELECT count(*) FROM t"), options());
        expect(transactionRows(await count())).toEqual([[0n]]);
        expect(await failureOf(transaction.execute(encode("INSERT INTO t VALUES (1)"), options()))).toMatchObject({
          reason: "STATEMENT_NOT_READ_ONLY",
        });
        expect(transactionRows(await count())).toEqual([[0n]]);
        await transaction.commit(options());
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[1n]]);
      });

      it("run commands in their order without waiting for answers", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        const commands = Array.from({ length: 100 }, (_, index) =>
          transaction.execute(encode("INSERT INTO t VALUES (?) RETURNING rowid", BigInt(index)), options()),
        );
        const commit = transaction.commit(options());
        const numbers = (await Promise.all(commands)).map((result) => transactionRows(result)[0]?.[0]);
        expect(numbers).toEqual(Array.from({ length: 100 }, (_, index) => BigInt(index + 1)));
        expect(await commit).toMatchObject({ committed: true });
      });
    });

    describe("queries", () => {
      it("stream all rows of one snapshot while others write", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        await execute(db, `INSERT INTO t ${NUMBERS(20_000)}`);
        const cursor = await db.query(encode("SELECT x FROM t"), queryOptions());
        expect(cursor.columns.length).toBeGreaterThan(0);
        await execute(db, "DELETE FROM t");
        const { rows: all, chunks } = await drain(cursor);
        expect(all).toHaveLength(20_000);
        expect(chunks).toBeGreaterThanOrEqual(20);
        expect(cursor.summary().rowCount).toBe(20_000n);
        expect(cursor.summary().elapsedNs).toBeGreaterThan(0n);
        expect(await cursor.next()).toBeUndefined();
        cursor.close();
      });

      it("keep to the bounds of chunks, the first being small", async () => {
        const cursor = await database.query(encode(NUMBERS(500)), queryOptions({ chunkRowsMax: 100 }));
        const sizes: number[] = [];
        for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next())
          sizes.push((await drain({ ...cursor, next: once(chunk) })).rows.length);
        expect(sizes[0]).toBeLessThanOrEqual(50);
        expect(Math.max(...sizes)).toBeLessThanOrEqual(100);
        expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(500);
        const bytes = await database.query(
          encode("SELECT zeroblob(3000) FROM t UNION ALL SELECT zeroblob(3000)"),
          queryOptions({ chunkBytesMax: 1000 }),
        );
        expect((await drain(bytes)).rows).toHaveLength(1);
      });

      it("stop at the window until the reader reads", async () => {
        const db = await fresh();
        const cursor = await db.query(encode(NUMBERS(1_000_000_000)), queryOptions({ chunkRowsMax: 10 }));
        // Were there no window, these rows would fill memory; so would the executor have no time for others.
        for (let turn = 0; turn < 20; turn++) expect(await read(db, "SELECT 1")).toEqual([[1n]]);
        for (let chunk = 0; chunk < 50; chunk++) expect(await cursor.next()).toBeDefined();
        cursor.close();
        await db.close(false);
      });

      it("run side by side, each in its turn", async () => {
        const db = await fresh();
        const cursors = await Promise.all(
          Array.from({ length: 5 }, () => db.query(encode(NUMBERS(10_000)), queryOptions())),
        );
        const all = await Promise.all(cursors.map(drain));
        expect(all.map((one) => one.rows.length)).toEqual([10_000, 10_000, 10_000, 10_000, 10_000]);
      });

      it("fail before the first row, or between rows", async () => {
        expect(await failureOf(database.query(encode("SELECT nothing"), queryOptions()))).toMatchObject({
          reason: "SQL_INVALID",
        });
        expect(await failureOf(database.query(encode("DELETE FROM t"), queryOptions()))).toMatchObject({
          reason: "STATEMENT_NOT_READ_ONLY",
        });
        const sql = `SELECT json_extract(iif(i < 5000, '{}', '{'), '$') FROM (${NUMBERS(9_000)})`;
        const cursor = await database.query(encode(sql), queryOptions());
        expect(await failureOf(drain(cursor))).toMatchObject({ reason: "SQL_FAILED" });
      });

      it("end at their deadline, read or not", async () => {
        const endless = encode(NUMBERS(1_000_000_000));
        const reading = await database.query(endless, queryOptions(within(80)));
        expect(await failureOf(drain(reading))).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
        const slow = await database.query(encode(ENDLESS.replace("count(*)", "i")), queryOptions(within(60)));
        expect(await failureOf(drain(slow))).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
      });

      it("may be read for longer than SQLite may work on them", async () => {
        const cursor = await database.query(
          encode(NUMBERS(20_000)),
          queryOptions({ executionMsMax: 250, chunkRowsMax: 1_000 }),
        );
        let chunks = 0;
        const startedAtMs = systemClock.now();
        for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next()) {
          chunks++;
          await new Promise<void>((resolve) => systemClock.after(20, resolve));
        }
        expect(systemClock.now() - startedAtMs).toBeGreaterThan(300);
        expect(chunks).toBeGreaterThan(15);
        expect(cursor.summary().rowCount).toBe(20_000n);
      });

      it("end when SQLite has worked on them for as long as it may", async () => {
        const limit = { executionMsMax: 120, deadlineSource: "client" } as const;
        const filter = `SELECT i FROM (${NUMBERS(1_000_000_000)}) WHERE i < 0`;
        const timeout = { reason: "STATEMENT_TIMEOUT", facts: { limitMs: "120", source: "server" } };
        expect(await failureOf(database.query(encode(filter), queryOptions(limit)))).toMatchObject(timeout);
        const late = `SELECT i FROM (${NUMBERS(1_000_000_000)}) WHERE i < 60`;
        expect(await failureOf(drain(await database.query(encode(late), queryOptions(limit))))).toMatchObject(timeout);
        const rows = await database.query(encode(NUMBERS(1_000_000_000)), queryOptions(limit));
        expect(await failureOf(drain(rows))).toMatchObject(timeout);
      });

      it("are over at once when closed, and free their snapshot", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        await execute(db, `INSERT INTO t ${NUMBERS(5_000)}`);
        const cursor = await db.query(encode("SELECT t.x FROM t, t AS u"), queryOptions());
        await cursor.next();
        await execute(db, "INSERT INTO t VALUES (1)");
        const pinned = await db.checkpoint("passive");
        expect(pinned.done).toBeLessThan(pinned.frames);
        const pending = failureOf(drain(cursor));
        cursor.close();
        expect(await pending).toBeInstanceOf(CallCancelled);
        await read(db, "SELECT 1");
        const freed = await db.checkpoint("passive");
        expect(freed.done).toBe(freed.frames);
      });
    });

    describe("cancel", () => {
      it("ends a call that waits", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        const cancel = new TestCancel();
        const waiting = failureOf(db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (1)" }), options({ cancel })));
        cancel.cancel();
        expect(await waiting).toBeInstanceOf(CallCancelled);
        await transaction.rollback();
        expect(await execute(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });

      it("refuses what was cancelled before", async () => {
        const cancel = new TestCancel();
        cancel.cancel();
        expect(await failureOf(database.read(encode("SELECT 1"), options({ cancel })))).toBeInstanceOf(CallCancelled);
      });

      it("leaves no listener behind", async () => {
        const cancel = new TestCancel();
        await database.read(encode("SELECT 1"), options({ cancel }));
        await failureOf(database.read(encode("SELECT"), options({ cancel })));
        await drain(await database.query(encode("SELECT 1"), queryOptions({ cancel })));
        expect(cancel.listenerCount).toBe(0);
      });

      it("ends a query", async () => {
        const cancel = new TestCancel();
        const cursor = await database.query(encode(NUMBERS(1_000_000_000)), queryOptions({ cancel }));
        await cursor.next();
        const rest = failureOf(drain(cursor));
        cancel.cancel();
        expect(await rest).toBeInstanceOf(CallCancelled);
      });
    });

    describe("the life of a database", () => {
      it("is made as a WAL database of the page size that was asked for", async () => {
        const path = `${folder()}/db.sqlite`;
        const db = executors.open({ id: "pages", path, foreignKeys: true });
        await db.create(8192);
        expect(statSync(path).size).toBe(8192);
        expect(await read(db, "PRAGMA page_size")).toEqual([[8192n]]);
        await execute(db, "CREATE TABLE t (x)");
        expect(statSync(`${path}-wal`).size).toBeGreaterThan(0);
        await db.close(false);
      });

      it("checkpoints without anybody waiting", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        await execute(db, `INSERT INTO t ${NUMBERS(10_000)}`);
        const passive = await db.checkpoint("passive");
        expect(passive.frames).toBeGreaterThan(10);
        expect(passive.done).toBe(passive.frames);
        expect(await db.checkpoint("truncate")).toEqual({ frames: 0, done: 0 });
        expect(statSync(`${db.file.path}-wal`).size).toBe(0);
        await execute(db, "INSERT INTO t VALUES (1)");
        const transaction = await db.begin(true, options());
        await transaction.execute(encode("INSERT INTO t VALUES (2)"), options());
        await db.checkpoint("truncate");
        expect(statSync(`${db.file.path}-wal`).size).toBeGreaterThan(0);
        await transaction.commit(options());
      });

      it("copies no more than was committed at the pin", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        await execute(db, `INSERT INTO t ${NUMBERS(5_000)}`);
        const checkpointer = db.checkpointer();
        await checkpointer.pin();
        await execute(db, `INSERT INTO t ${NUMBERS(5_000)}`);
        const pinned = await checkpointer.checkpoint();
        expect(pinned.done).toBeGreaterThan(5);
        expect(pinned.done).toBeLessThan(pinned.frames);
        // The pin went with its checkpoint; the next one sees everything.
        await checkpointer.pin();
        const all = await checkpointer.checkpoint();
        expect(all.done).toBe(all.frames);
        await checkpointer.close();
        await checkpointer.close();
        expect(await read(db, "SELECT count(*) FROM t")).toEqual([[10_000n]]);
      });

      it("checkpoints nothing without a pin, and ends what a closed database had pinned", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const checkpointer = db.checkpointer();
        expect(await failureOf(checkpointer.checkpoint())).toMatchObject({ reason: "EXECUTOR_LOST" });
        await checkpointer.pin();
        await checkpointer.checkpoint();
        expect(await failureOf(checkpointer.checkpoint())).toMatchObject({
          message: expect.stringContaining("without its pin"),
        });
        await checkpointer.pin();
        await db.close(false);
        expect(await failureOf(checkpointer.checkpoint())).toMatchObject({ reason: "DATABASE_BUSY" });
        await checkpointer.close();
      });

      it("keeps the WAL when the last connection closes", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const size = statSync(`${db.file.path}-wal`).size;
        await db.close(false);
        expect(statSync(`${db.file.path}-wal`).size).toBe(size);
      });

      it("takes new options", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE p (id INTEGER PRIMARY KEY)");
        await execute(db, "CREATE TABLE k (p REFERENCES p)");
        expect(await failureOf(execute(db, "INSERT INTO k VALUES (1)"))).toMatchObject({
          reason: "CONSTRAINT_VIOLATED",
        });
        db.reconfigure({ ...db.file, foreignKeys: false });
        await execute(db, "INSERT INTO k VALUES (1)");
      });

      it("closes when its calls are over, and takes no more", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        let closed = false;
        const closing = db.close(false).then(() => {
          closed = true;
        });
        expect(await failureOf(read(db, "SELECT 1"))).toMatchObject({ reason: "DATABASE_BUSY" });
        await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
        expect(closed).toBe(false);
        await transaction.commit(options());
        await closing;
        const again = executors.open(db.file);
        expect(await read(again, "SELECT count(*) FROM t")).toEqual([[1n]]);
      });

      it("ends everything when forced", async () => {
        const db = await fresh();
        await execute(db, "CREATE TABLE t (x)");
        const transaction = await db.begin(true, options());
        await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
        const waiting = failureOf(db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (2)" }), options()));
        const cursor = await db.query(encode(NUMBERS(1_000_000_000)), queryOptions());
        await db.close(true);
        expect(await waiting).toBeInstanceOf(CallCancelled);
        expect(await failureOf(drain(cursor))).toBeInstanceOf(CallCancelled);
        expect(transaction.isOpen).toBe(false);
        const again = executors.open(db.file);
        expect(await execute(again, "SELECT count(*) FROM t")).toEqual([[0n]]);
      });

      it("serves more databases in turn than may be open", async () => {
        const few = await start({ limits: { connectionCountMax: 8 } });
        try {
          const path = folder();
          const databases = await Promise.all(
            Array.from({ length: 60 }, (_, index) => newDatabase(few, path, `many-${index}`)),
          );
          for (let round = 0n; round < 3n; round++) {
            await Promise.all(
              databases.map(async (db) => {
                await execute(db, "CREATE TABLE IF NOT EXISTS t (x)");
                await execute(db, "INSERT INTO t VALUES (1)");
                expect(await read(db, "SELECT count(*) FROM t")).toEqual([[round + 1n]]);
              }),
            );
          }
        } finally {
          await few.close(1_000);
        }
      });

      it("bounds the calls of one database", async () => {
        const few = await start({ limits: { databaseCallsMax: 4 } });
        try {
          const db = await newDatabase(few, folder());
          const transaction = await db.begin(true, options());
          const waiting = [1, 2, 3].map(() => db.script(Buffer.from("SELECT 1"), options()));
          const refused = await failureOf(db.read(encode("SELECT 1"), options()));
          expect(refused).toMatchObject({ reason: "DATABASE_BUSY" });
          expect(refused.retryAfterMs).toBeGreaterThan(0);
          await transaction.rollback();
          await Promise.all(waiting);
          expect(await read(db, "SELECT 1")).toEqual([[1n]]);
        } finally {
          await few.close(1_000);
        }
      });
    });

    it("refuses calls while it closes, and closes twice", async () => {
      const short = await start();
      const db = await newDatabase(short, folder());
      const transaction = await db.begin(true, options());
      const closing = short.close(20);
      expect(await failureOf(read(db, "SELECT 1"))).toMatchObject({ reason: "SHUTTING_DOWN" });
      await closing;
      expect(transaction.isOpen).toBe(false);
      await short.close(20);
      expect(existsSync(db.file.path)).toBe(true);
      expect(short.stats()).toMatchObject({ executors: 0, runningCalls: 0, waitingCalls: 0 });
    });
  });
}

/** A `next` that gives one chunk. */
function once(chunk: Uint8Array): () => Promise<Uint8Array | undefined> {
  let given = false;
  return () => {
    const result = given ? undefined : chunk;
    given = true;
    return Promise.resolve(result);
  };
}
