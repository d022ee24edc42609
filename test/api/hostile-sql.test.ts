/** SQL from strangers: every rule of docs/SQL.md, one statement at a time, each with what it is answered. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { TransactionMode } from "../../gen/persisto/v1/database_service_pb.js";
import type { Reason } from "../../src/failure/reasons.ts";
import { type ApiClients, freshDatabase, openClients } from "../support/api-clients.ts";
import { failureOf } from "../support/api-errors.ts";
import { startTestServer, type TestServer } from "../support/api-server.ts";
import { collect, type Plain, rowsOf, statement, value } from "../support/rows.ts";
import { pipeline } from "../support/transaction-client.ts";

type Outcome = Reason | "ok";
type Case = readonly [sql: string, outcome: Outcome];

let testServer: TestServer;
let api: ApiClients;
let database: string;

beforeAll(async () => {
  testServer = await startTestServer();
  api = openClients("grpc h2", testServer.port);
  database = await hostileDatabase();
});
afterAll(async () => {
  api?.close();
  await testServer?.close();
});

async function hostileDatabase(): Promise<string> {
  const id = await freshDatabase(api, "hostile");
  await api.databases.executeScript({
    database: id,
    script: `CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b TEXT);
      INSERT INTO t VALUES (1, 'one'), (2, 'two');
      CREATE INDEX t_b ON t (b);
      CREATE VIEW v AS SELECT b FROM t;
      CREATE VIRTUAL TABLE f USING fts5 (x);
      INSERT INTO f VALUES ('some words');
      CREATE TABLE d (a, b DEFAULT (abs(-1)));`,
  });
  // Makes the server's own table for request ids.
  await api.databases.execute({ database: id, statement: statement("DELETE FROM d"), requestId: crypto.randomUUID() });
  return id;
}

const execute = (sql: string, ...parameters: Plain[]) =>
  api.databases.execute({ database, statement: statement(sql, ...parameters) }, { timeoutMs: 5000 });
const read = (sql: string) => api.databases.read({ database, statement: statement(sql) }, { timeoutMs: 5000 });
const script = (text: string) => api.databases.executeScript({ database, script: text }, { timeoutMs: 5000 });
const batch = (...sqls: string[]) =>
  api.databases.executeBatch({ database, steps: sqls.map((sql) => ({ statement: { sql } })) }, { timeoutMs: 5000 });

async function expectOutcome(call: Promise<unknown>, outcome: Outcome): Promise<void> {
  if (outcome === "ok") {
    await call;
    return;
  }
  const error = await failureOf(call);
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason ?? `no reason: ${error.message}`;
  expect(reason, error.message).toBe(outcome);
}

function cases(title: string, run: (sql: string) => Promise<unknown>, table: readonly Case[]): void {
  describe(title, () => {
    it.each(
      table.map(([sql, outcome]) => ({ sql: sql.length > 90 ? `${sql.slice(0, 90)}…` : sql, outcome, whole: sql })),
    )("$sql → $outcome", ({ whole, outcome }) => expectOutcome(run(whole), outcome));
  });
}

const forbidden = (...sqls: readonly string[]): Case[] => sqls.map((sql) => [sql, "SQL_FORBIDDEN"]);
const fine = (...sqls: readonly string[]): Case[] => sqls.map((sql) => [sql, "ok"]);
const invalid = (...sqls: readonly string[]): Case[] => sqls.map((sql) => [sql, "SQL_INVALID"]);
const limited = (...sqls: readonly string[]): Case[] => sqls.map((sql) => [sql, "LIMIT_EXCEEDED"]);

cases("one statement a call", execute, [
  ...invalid(
    "",
    " \n\t",
    ";",
    "-- only a comment",
    "/* only a comment */",
    "SELECT 1; SELECT 2",
    "SELECT 1;SELECT 2;",
    "SELECT 1; ATTACH ':memory:' AS x",
    "SELECT 1; DROP TABLE t",
    "SELECT 1;; SELECT 2",
    "SELECT 1; nonsense",
    "SELECT 1; /* x */ DELETE FROM t",
    "SELECT 1\0",
    "SELECT 1; \0DROP TABLE t",
    "SELECT 'a\0b'",
    "SELECT 1 SELECT 2",
    "SELECT 1;;",
  ),
  ...fine("SELECT 1;", "SELECT 1 ; ", "/* a */ SELECT 1 -- b", "SELECT 1; -- b\n/* c */", "SELECT ';' AS \";\""),
]);

cases("no other files", execute, [
  ...forbidden(
    "ATTACH '/etc/passwd' AS x",
    "ATTACH ':memory:' AS x",
    "attach '' as x",
    "/**/ATTACH/**/'/tmp/x'/**/AS/**/x",
    "-- a\nATTACH DATABASE 'file:/etc/passwd?mode=ro' AS x",
    "ATTACH 'a' || 'b' AS x",
    "DETACH main",
    "DETACH DATABASE temp",
    "VACUUM",
    "VACUUM main",
    "VACUUM INTO '/tmp/x'",
    "VACUUM main INTO '/tmp/x'",
  ),
  ...invalid(
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/x', 'y')",
    "SELECT * FROM fsdir('/')",
    ".open /etc/passwd",
  ),
  ["EXPLAIN SELECT * FROM t", "ok"],
  ["EXPLAIN QUERY PLAN SELECT * FROM t", "ok"],
]);

const transactionWords = [
  "BEGIN",
  "BEGIN IMMEDIATE",
  "BEGIN EXCLUSIVE TRANSACTION",
  "COMMIT",
  "END",
  "ROLLBACK",
  "SAVEPOINT x",
  "RELEASE x",
  "ROLLBACK TO x",
  "/* */ cOmMiT -- now",
];
cases("no transactions in SQL, by Execute", execute, forbidden(...transactionWords));
cases("no transactions in SQL, by Read", read, forbidden("BEGIN", "COMMIT", "SAVEPOINT x"));
cases(
  "no transactions in SQL, in a batch",
  (sql) => batch("DELETE FROM t", sql),
  forbidden("COMMIT", "ROLLBACK", "SAVEPOINT x", "END"),
);
cases(
  "no transactions in SQL, in a script",
  (sql) => script(`DELETE FROM t; ${sql}; SELECT 1`),
  forbidden("COMMIT", "ROLLBACK", "BEGIN", "RELEASE x"),
);

cases("PRAGMAs that read", execute, [
  ...fine(
    "PRAGMA application_id",
    "PRAGMA collation_list",
    "PRAGMA compile_options",
    "PRAGMA data_version",
    "PRAGMA encoding",
    "PRAGMA foreign_keys",
    "PRAGMA freelist_count",
    "PRAGMA function_list",
    "PRAGMA module_list",
    "PRAGMA page_count",
    "PRAGMA page_size",
    "PRAGMA recursive_triggers",
    "PRAGMA schema_version",
    "PRAGMA table_list",
    "PRAGMA user_version",
    "PRAGMA main.user_version",
    "PRAGMA foreign_key_check",
    "PRAGMA foreign_key_list(t)",
    "PRAGMA index_info(t_b)",
    "PRAGMA index_list(t)",
    "PRAGMA index_xinfo('t_b')",
    "PRAGMA integrity_check",
    "PRAGMA integrity_check(10)",
    "PRAGMA quick_check",
    "PRAGMA table_info(t)",
    "PRAGMA table_xinfo=t",
    "PRAGMA optimize",
    "SELECT * FROM pragma_table_info('t')",
    "SELECT user_version FROM pragma_user_version",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 8",
  ),
]);

cases("PRAGMAs that nobody may use", execute, [
  ...forbidden(
    "PRAGMA journal_mode",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA main.journal_mode = 'wal'",
    "pragma JOURNAL_MODE(off)",
    "PRAGMA synchronous=OFF",
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA writable_schema=ON",
    "PRAGMA writable_schema=RESET",
    "PRAGMA trusted_schema=ON",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA foreign_keys(0)",
    "PRAGMA schema_version=99",
    "PRAGMA encoding='UTF-16'",
    "PRAGMA page_size=512",
    "PRAGMA page_count=1",
    "PRAGMA max_page_count=1000000",
    "PRAGMA max_page_count",
    "PRAGMA mmap_size=268435456",
    "PRAGMA cache_size=-1000000",
    "PRAGMA cache_spill=OFF",
    "PRAGMA auto_vacuum=FULL",
    "PRAGMA incremental_vacuum(10)",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA wal_autocheckpoint=1",
    "PRAGMA query_only=OFF",
    "PRAGMA read_uncommitted=ON",
    "PRAGMA secure_delete=OFF",
    "PRAGMA shrink_memory",
    "PRAGMA soft_heap_limit=1",
    "PRAGMA hard_heap_limit=1",
    "PRAGMA threads=8",
    "PRAGMA temp_store=FILE",
    "PRAGMA temp_store_directory='/tmp'",
    "PRAGMA busy_timeout=100000",
    "PRAGMA cell_size_check=OFF",
    "PRAGMA database_list",
    "PRAGMA legacy_alter_table=ON",
    "PRAGMA reverse_unordered_selects=ON",
    "PRAGMA analysis_limit=1",
    "PRAGMA checkpoint_fullfsync=OFF",
    "PRAGMA recursive_triggers=ON",
    "PRAGMA defer_foreign_keys=ON",
    "PRAGMA case_sensitive_like=ON",
    "PRAGMA ignore_check_constraints=ON",
    "SELECT * FROM pragma_journal_mode",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_journal_mode('main')",
    "EXPLAIN PRAGMA journal_mode=DELETE",
  ),
]);

cases("PRAGMAs of a batch alone", (sql) => batch(sql, "SELECT 1"), [
  ...fine(
    "PRAGMA defer_foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",
    "PRAGMA case_sensitive_like=ON",
    "PRAGMA ignore_check_constraints=ON",
  ),
  ...forbidden("PRAGMA foreign_keys=OFF", "PRAGMA writable_schema=ON"),
]);

cases("functions", execute, [
  ...forbidden(
    "SELECT load_extension('x')",
    "SELECT LOAD_EXTENSION('x', 'y')",
    "SELECT \"load_extension\"('x')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('simple', x'0000000000000000')",
    "SELECT b FROM t WHERE load_extension(b) IS NULL",
    "INSERT INTO t (b) VALUES (load_extension('x'))",
    "CREATE INDEX bad ON t (load_extension(b))",
    "CREATE TABLE bad (a CHECK (load_extension(a)))",
    "CREATE TABLE bad (a, b AS (load_extension(a)))",
  ),
  ...invalid("SELECT no_such_function()", "SELECT edit('x')", "SELECT sqlite_rename_table(1, 2, 3, 4, 5, 6)"),
  ...fine(
    "SELECT json('[1]'), sin(1), date('now'), printf('%d', 1), random(), hex(randomblob(8)), upper('a')",
    "SELECT group_concat(b), total(a), row_number() OVER () FROM t",
    "SELECT sqlite_version(), changes(), total_changes(), last_insert_rowid()",
    "SELECT * FROM json_each('[1,2]')",
    "SELECT * FROM json_tree('{\"a\": [1]}')",
    "SELECT highlight(f, 0, '<', '>') FROM f WHERE f MATCH 'words'",
  ),
]);

cases("virtual tables", execute, [
  ...fine(
    "CREATE VIRTUAL TABLE vt1 USING fts5 (a, b)",
    "CREATE VIRTUAL TABLE vt2 USING fts5vocab ('f', 'row')",
    "CREATE VIRTUAL TABLE vt3 USING rtree (id, x0, x1)",
    "SELECT term FROM vt2",
  ),
  ...forbidden(
    "CREATE VIRTUAL TABLE bad USING fts3 (a)",
    "CREATE VIRTUAL TABLE bad USING fts4 (a)",
    "CREATE VIRTUAL TABLE bad USING dbstat",
    "CREATE VIRTUAL TABLE bad USING csv (filename = '/etc/passwd')",
    "CREATE VIRTUAL TABLE bad USING zipfile ('/tmp/x.zip')",
    "CREATE VIRTUAL TABLE bad USING unknown",
    "CREATE VIRTUAL TABLE temp.bad USING fts5 (a)",
    "CREATE VIRTUAL TABLE _persisto_bad USING fts5 (a)",
    "SELECT * FROM dbstat",
    "SELECT * FROM main.dbstat",
  ),
]);

cases("nothing in TEMP", execute, [
  ...forbidden(
    "CREATE TEMP TABLE bad (a)",
    "CREATE TEMPORARY TABLE bad AS SELECT 1",
    "CREATE TABLE temp.bad (a)",
    "CREATE TEMP VIEW bad AS SELECT 1",
    "CREATE VIEW temp.bad AS SELECT 1",
    "CREATE TEMP TRIGGER bad AFTER INSERT ON t BEGIN SELECT 1; END",
  ),
]);

cases("reserved names", execute, [
  ...forbidden(
    "CREATE TABLE _persisto_x (a)",
    'CREATE TABLE "_persisto_x" (a)',
    "CREATE TABLE [_Persisto_X] (a)",
    "CREATE TABLE IF NOT EXISTS main._PERSISTO_x (a)",
    "CREATE TABLE _persisto_x AS SELECT 1",
    "CREATE VIEW _persisto_x AS SELECT 1",
    "CREATE INDEX _persisto_x ON t (a)",
    "CREATE TRIGGER _persisto_x AFTER INSERT ON t BEGIN SELECT 1; END",
    "CREATE TRIGGER bad AFTER INSERT ON _persisto_requests BEGIN SELECT 1; END",
    "ALTER TABLE t RENAME TO _persisto_x",
    'ALTER TABLE t RENAME TO "_persisto_x"',
    "ALTER TABLE t /* x */ RENAME /* y */ TO /* z */ [_PERSISTO_x]",
    "SELECT * FROM _persisto_requests",
    'SELECT count(*) FROM main."_PERSISTO_requests"',
    "SELECT (SELECT 1 FROM _persisto_requests)",
    "INSERT INTO _persisto_requests DEFAULT VALUES",
    "UPDATE _persisto_requests SET rowid = 1",
    "DELETE FROM _persisto_requests",
    "DROP TABLE _persisto_requests",
    "CREATE INDEX bad ON _persisto_requests (rowid)",
    "ALTER TABLE _persisto_requests RENAME TO mine",
    "ALTER TABLE _persisto_requests ADD COLUMN mine",
    "WITH x AS (SELECT * FROM _persisto_requests) SELECT * FROM x",
  ),
  ...fine(
    "SELECT '_persisto_requests'",
    "CREATE TABLE my_persisto_x (_persisto_column)",
    "CREATE TABLE persisto_x (a)",
  ),
]);

cases("the schema and shadow tables are not written directly", execute, [
  ...forbidden(
    "UPDATE sqlite_schema SET sql = 'x'",
    "UPDATE sqlite_master SET sql = 'x'",
    "DELETE FROM sqlite_schema",
    "INSERT INTO sqlite_schema VALUES ('table', 'x', 'x', 0, 'CREATE TABLE x (a)')",
    "DELETE FROM f_data",
    "UPDATE f_config SET v = 0",
    "INSERT INTO f_content VALUES (9, 'x')",
    "DROP TABLE f_data",
    "DROP TABLE sqlite_sequence",
    "ALTER TABLE sqlite_schema RENAME TO x",
  ),
  ...fine("SELECT name FROM sqlite_schema", "SELECT * FROM sqlite_sequence", "SELECT count(*) FROM f_data"),
]);

const writes = [
  "INSERT INTO t (b) VALUES ('x')",
  "INSERT INTO t (b) VALUES ('x') RETURNING a",
  "WITH x AS (SELECT 1) INSERT INTO t (b) SELECT 'x' FROM x",
  "REPLACE INTO t VALUES (1, 'x')",
  "UPDATE t SET b = 'x'",
  "DELETE FROM t",
  "DELETE FROM t WHERE 0",
  "CREATE TABLE w (a)",
  "CREATE TABLE w AS SELECT 1",
  "CREATE INDEX w ON t (a)",
  "DROP TABLE t",
  "DROP TABLE IF EXISTS t",
  "ALTER TABLE t ADD COLUMN c",
  "REINDEX",
  "ANALYZE",
  "INSERT INTO f (f) VALUES ('optimize')",
  "PRAGMA user_version = 5",
];
cases(
  "a read cannot write",
  read,
  writes.map((sql) => [sql, "STATEMENT_NOT_READ_ONLY"]),
);
cases("a query cannot write", (sql) => collect(api.databases.query({ database, statement: statement(sql) })), [
  ["DELETE FROM t", "STATEMENT_NOT_READ_ONLY"],
  ["INSERT INTO t (b) VALUES ('x') RETURNING a", "STATEMENT_NOT_READ_ONLY"],
  ["ATTACH ':memory:' AS x", "SQL_FORBIDDEN"],
  ["PRAGMA journal_mode", "SQL_FORBIDDEN"],
  ["SELECT * FROM _persisto_requests", "SQL_FORBIDDEN"],
  ["SELECT load_extension('x')", "SQL_FORBIDDEN"],
]);

const repeat = (text: string, count: number, separator = ", ") =>
  Array.from({ length: count }, () => text).join(separator);

cases("limits", execute, [
  ...limited(
    `SELECT '${"x".repeat(1024 * 1024)}'`,
    "SELECT zeroblob(1e9)",
    "SELECT zeroblob(4194305)",
    "SELECT hex(randomblob(2e8))",
    "SELECT hex(zeroblob(3000000))",
    "SELECT printf('%1000000000s', 'x')",
    "SELECT replace(hex(zeroblob(10000)), '0', hex(zeroblob(10000)))",
    `SELECT ${repeat("1", 501)}`,
    `CREATE TABLE wide (${Array.from({ length: 501 }, (_, index) => `c${index}`).join(", ")})`,
    `SELECT ${repeat("1", 250, " + ")}`,
    `SELECT ${"NOT ".repeat(250)}1`,
    repeat("SELECT 1", 101, " UNION ALL "),
    `SELECT max(${repeat("1", 128)})`,
    `SELECT 'x' LIKE '${"%".repeat(1001)}'`,
    `SELECT 'x' GLOB '${"*".repeat(1001)}'`,
    "SELECT ?32767",
    "SELECT group_concat(hex(zeroblob(100000)), '') FROM (VALUES (1),(2),(3),(4),(5),(6),(7)), (VALUES (1),(2),(3),(4),(5),(6),(7))",
  ),
  ...fine(
    `SELECT ${repeat("1", 500)}`,
    repeat("SELECT 1", 100, " UNION ALL "),
    `SELECT max(${repeat("1", 127)})`,
    "SELECT length(zeroblob(4194304 - 100))",
    `SELECT 'x' LIKE '${"%".repeat(1000)}'`,
    `SELECT '${"x".repeat(1024 * 1024 - 20)}' IS NULL`,
  ),
]);

describe("limits of what comes with a statement", () => {
  it("values, parameters, triggers", async () => {
    await expectOutcome(execute("SELECT length(?)", Buffer.alloc(4 * 1024 * 1024 - 10_000)), "ok");
    const many = Array.from({ length: 32_766 }, (_, index) => BigInt(index));
    const marks = `SELECT count(*) FROM (VALUES ${many.map(() => "(?)").join(", ")})`;
    expect(rowsOf((await execute(marks, ...many)).result)).toEqual([[32_766n]]);
    await script(
      `CREATE TABLE deep (a); CREATE TRIGGER deeper AFTER INSERT ON deep WHEN new.a < 100 BEGIN INSERT INTO deep VALUES (new.a + 1); END;`,
    );
    await expectOutcome(batch("PRAGMA recursive_triggers=ON", "INSERT INTO deep VALUES (0)"), "LIMIT_EXCEEDED");
    expect(rowsOf((await execute("SELECT count(*) FROM deep")).result)).toEqual([[0n]]);
  });

  it("five hundred named parameters", async () => {
    const names = Array.from({ length: 500 }, (_, index) => `p${index}`);
    const named = {
      sql: `SELECT ${names.map((name) => `:${name}`).join(", ")}`,
      namedParameters: Object.fromEntries(names.map((name, index) => [name, value(BigInt(index))])),
    };
    const { result } = await api.databases.execute({ database, statement: named });
    expect(rowsOf(result)).toEqual([names.map((_, index) => BigInt(index))]);
  });
});

describe("time", () => {
  const endless = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
  const endlessRows = endless.replace("count(*)", "x");
  it.each([
    endless,
    `INSERT INTO t (b) ${endless}`,
    `DELETE FROM t WHERE a = (${endless})`,
    `SELECT count(*) FROM (VALUES (1),(2),(3)), (${endlessRows})`,
    `CREATE TABLE endless AS ${endlessRows}`,
    `SELECT * FROM (${endlessRows}) ORDER BY x`,
  ])("%s ends at its deadline", async (sql) => {
    const started = performance.now();
    const call = api.databases.execute({ database, statement: statement(sql) }, { timeoutMs: 150 });
    const error = await failureOf(call);
    expect(error.code).toBe(4);
    const [info] = error.findDetails(ErrorInfoSchema);
    if (info !== undefined) {
      expect(info).toMatchObject({ reason: "STATEMENT_TIMEOUT", metadata: { source: "client" } });
    }
    expect(performance.now() - started).toBeLessThan(2000);
    expect(rowsOf((await execute("SELECT count(*) FROM sqlite_schema WHERE name = 'endless'")).result)).toEqual([[0n]]);
  });
});

describe("names and texts that are hard to quote", () => {
  it.each([
    'a "quoted" name',
    "a 'quoted' name",
    "[brackets]",
    "ä語😀",
    "select",
    "back`tick",
    "semi;colon",
    "--",
    "/*",
  ])("a table named %j", async (name) => {
    const quoted = `"${name.replaceAll('"', '""')}"`;
    await execute(`CREATE TABLE ${quoted} (${quoted})`);
    const { result } = await execute(`SELECT ${quoted} FROM ${quoted}`);
    expect(result?.columns).toMatchObject([{ name, originTable: name, originColumn: name }]);
  });
});

describe("a schema that turns bad when it is used", () => {
  it.each([
    ["CREATE TABLE x (a, b DEFAULT (load_extension('x')))", "INSERT INTO x (a) VALUES (1)"],
    ["CREATE TABLE x (a CHECK (load_extension(a) IS NULL))", "INSERT INTO x VALUES (1)"],
    ["CREATE VIEW x AS SELECT load_extension('x')", "SELECT * FROM x"],
    ["CREATE VIEW x AS SELECT * FROM _persisto_requests", "SELECT * FROM x"],
    ["CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT load_extension('x'); END", "INSERT INTO t (b) VALUES ('x')"],
    ["CREATE TRIGGER x AFTER UPDATE ON t BEGIN DELETE FROM _persisto_requests; END", "UPDATE t SET b = 'x'"],
    ["CREATE VIEW x AS SELECT fts3_tokenizer('simple')", "SELECT * FROM x"],
  ])("%s is refused then, or at %s", async (definition, use) => {
    const own = await hostileDatabase();
    const run = (sql: string) => api.databases.execute({ database: own, statement: statement(sql) });
    const definitionFailure = await run(definition).then(
      () => undefined,
      (error: unknown) => error,
    );
    await expectOutcome(
      definitionFailure === undefined ? run(use) : Promise.reject(definitionFailure),
      "SQL_FORBIDDEN",
    );
  });

  it("a table renamed away inside a script does not open the reserved one", async () => {
    await expectOutcome(script("CREATE TABLE fake (a); ALTER TABLE fake RENAME TO _persisto_fake"), "SQL_FORBIDDEN");
    const { result } = await execute("SELECT count(*) FROM sqlite_schema WHERE name LIKE '%fake%'");
    expect(rowsOf(result)).toEqual([[0n]]);
  });
});

describe("inside Transact", () => {
  it("the same rules hold, and the settable PRAGMAs hold until its end", async () => {
    const commands = [
      ...forbidden(
        "ATTACH ':memory:' AS x",
        "COMMIT",
        "PRAGMA journal_mode=DELETE",
        "SELECT load_extension('x')",
        "CREATE TEMP TABLE x (a)",
      ),
      ...fine("PRAGMA case_sensitive_like=ON", "SELECT 'a' LIKE 'A'"),
    ];
    const answers = await pipeline(api, [
      { case: "begin", value: { database, mode: TransactionMode.READ_WRITE } },
      ...commands.map(([sql]) => ({ case: "execute" as const, value: { sql } })),
      { case: "rollback", value: {} },
    ]);
    expect(answers.slice(1, -1).map(({ outcome }) => outcome.case)).toEqual(
      commands.map(([, outcome]) => (outcome === "ok" ? "result" : "statementError")),
    );
    const last = answers.at(-2)?.outcome;
    expect(last?.case === "result" && rowsOf(last.value)).toEqual([[0n]]);
    expect(rowsOf((await execute("SELECT 'a' LIKE 'A'")).result)).toEqual([[1n]]);
  });
});

describe("after all that", () => {
  it("the database is whole", async () => {
    expect(rowsOf((await execute("PRAGMA integrity_check")).result)).toEqual([["ok"]]);
    expect(rowsOf((await execute("SELECT b FROM t ORDER BY a")).result)).toEqual([["one"], ["two"]]);
  });
});
