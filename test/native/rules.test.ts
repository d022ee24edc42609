import { describe, expect, it } from "vitest";
import {
  FAILED_FORBIDDEN,
  FAILED_READ_ONLY,
  type NativeFailure,
  RUN_READ_ONLY,
  RUN_TRANSACTION_PRAGMAS,
} from "../../src/sqlite/native.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { failureOf, native, type Opened, open, statement, value } from "./support.ts";

const folder = temporaryFolders();

const schema = `
  CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
  CREATE TABLE child (p REFERENCES t);
  CREATE INDEX t_v ON t (v);
  CREATE VIEW seen AS SELECT v FROM t;
  CREATE VIRTUAL TABLE words USING fts5 (body);
  CREATE VIRTUAL TABLE boxes USING rtree (id, x0, x1);
  INSERT INTO t VALUES (1, 'a'), (2, 'b');
  INSERT INTO words VALUES ('hello world');
  INSERT INTO boxes VALUES (1, 2, 3)`;

/** A guarded database in which the server has a table of its own. */
function guarded(path = ":memory:"): Opened {
  const db = path === ":memory:" ? open() : open({ path });
  db.script(schema);
  native.trust(db.connection, true);
  db.script(
    "CREATE TABLE _persisto_records (id PRIMARY KEY, body); INSERT INTO _persisto_records VALUES (1, 'secret')",
  );
  native.trust(db.connection, false);
  return db;
}

function forbidden(failure: NativeFailure, sql: string): void {
  expect(failure, sql).toMatchObject({ kind: FAILED_FORBIDDEN });
  expect(failure.action, sql).not.toBe("");
}

describe("statements", () => {
  const refused: readonly [sql: string, action: string, resource?: string][] = [
    ["ATTACH '/etc/passwd' AS x", "ATTACH"],
    ["/**/ATTACH ':memory:' AS x", "ATTACH"],
    ["EXPLAIN ATTACH ':memory:' AS x", "ATTACH"],
    ["DETACH main", "DETACH"],
    ["VACUUM", "VACUUM"],
    ["-- x\nvAcUuM main", "VACUUM"],
    ["; ;VACUUM", "VACUUM"],
    ["VACUUM INTO '/tmp/persisto-never'", "VACUUM"],
    ["BEGIN", "TRANSACTION"],
    ["BEGIN EXCLUSIVE", "TRANSACTION"],
    ["COMMIT", "TRANSACTION"],
    ["END", "TRANSACTION"],
    ["ROLLBACK", "TRANSACTION"],
    ["SAVEPOINT a", "SAVEPOINT"],
    ["RELEASE a", "SAVEPOINT"],
    ["ROLLBACK TO a", "SAVEPOINT"],
    ["CREATE TEMP TABLE x (a)", "CREATE TEMP TABLE", "x"],
    ["CREATE TABLE temp.x (a)", "CREATE TABLE"],
    ["CREATE TEMP VIEW x AS SELECT 1", "CREATE TEMP VIEW"],
    ["CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", "CREATE TEMP TRIGGER"],
    ["CREATE VIRTUAL TABLE temp.x USING fts5 (a)", "CREATE VIRTUAL TABLE"],
    ["SELECT * FROM sqlite_temp_schema", "READ"],
    ["SELECT * FROM temp.sqlite_master", "READ"],
    ["CREATE VIRTUAL TABLE x USING dbstat", "CREATE VIRTUAL TABLE", "dbstat"],
    ["CREATE VIRTUAL TABLE x USING fts4 (a)", "CREATE VIRTUAL TABLE", "fts4"],
    ["CREATE VIRTUAL TABLE x USING fts3tokenize", "CREATE VIRTUAL TABLE", "fts3tokenize"],
    ["SELECT * FROM dbstat", "READ", "dbstat"],
    ["SELECT count(*) FROM main.DBSTAT", "READ"],
    ["SELECT load_extension('x')", "FUNCTION", "load_extension"],
    ["SELECT Load_Extension('x', 'y')", "FUNCTION"],
    ["SELECT * FROM t WHERE v = (SELECT load_extension('x'))", "FUNCTION"],
    ["CREATE TABLE x (a DEFAULT (load_extension('x'))); INSERT INTO x DEFAULT VALUES", "FUNCTION"],
    ["SELECT fts3_tokenizer('simple')", "FUNCTION"],
    ["UPDATE sqlite_schema SET sql = ''", "WRITE", "sqlite_master"],
    ["DELETE FROM main.sqlite_master", "WRITE"],
    ["INSERT INTO sqlite_temp_master VALUES (1, 2, 3, 4, 5)", "WRITE"],
    ["DROP TABLE sqlite_schema", "DROP TABLE"],
    ["UPDATE words_data SET block = x''", "WRITE", "words_data"],
    ["DELETE FROM boxes_node", "WRITE"],
  ];
  it.each(refused.map(([sql, ...rest]) => ({ sql, rest })))("$sql", ({ sql, rest: [action, resource] }) => {
    const db = guarded();
    const failure = failureOf(() => db.script(sql));
    forbidden(failure, sql);
    expect(failure.action).toBe(action);
    if (resource !== undefined) expect(failure.resource.toLowerCase()).toBe(resource);
    db.database.close();
  });
});

describe("reserved names", () => {
  const refused = [
    "SELECT * FROM _persisto_records",
    "SELECT count(*) FROM _persisto_records",
    'SELECT 1 FROM "_PERSISTO_records"',
    "SELECT body FROM main.[_Persisto_Records]",
    "SELECT * FROM t WHERE v IN (SELECT body FROM _persisto_records)",
    "SELECT (SELECT body FROM `_persisto_records`)",
    "WITH x AS (SELECT * FROM _persisto_records) SELECT * FROM x",
    "INSERT INTO t SELECT 3, body FROM _persisto_records",
    "SELECT rowid FROM _persisto_records",
    "INSERT INTO _persisto_records VALUES (2, 3)",
    "INSERT INTO _persisto_records DEFAULT VALUES",
    "REPLACE INTO _persisto_records VALUES (1, 3)",
    "UPDATE _persisto_records SET body = 1",
    "UPDATE t SET v = r.body FROM _persisto_records AS r",
    "DELETE FROM _persisto_records",
    "DROP TABLE _persisto_records",
    "ALTER TABLE _persisto_records RENAME TO mine",
    "ALTER TABLE _persisto_records ADD COLUMN x",
    "ALTER TABLE _persisto_records DROP COLUMN body",
    "ALTER TABLE t RENAME TO _persisto_x",
    'ALTER TABLE t RENAME TO "_persisto_x"',
    "ALTER TABLE t RENAME /* TO */ TO -- x\n '_PERSISTO_x'",
    "ALTER TABLE t RENAME TO [_persisto_x];",
    "ALTER TABLE words RENAME TO _persisto",
    "CREATE TABLE _persisto_x (a)",
    "CREATE TABLE IF NOT EXISTS `_persisto_x` (a)",
    "CREATE TABLE _Persisto_x AS SELECT 1",
    "CREATE VIEW _persisto_x AS SELECT 1",
    "CREATE INDEX _persisto_x ON t (v)",
    "CREATE INDEX x ON _persisto_records (body)",
    "CREATE TRIGGER _persisto_x AFTER INSERT ON t BEGIN SELECT 1; END",
    "CREATE TRIGGER x AFTER INSERT ON _persisto_records BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE _persisto_x USING fts5 (a)",
    "CREATE VIRTUAL TABLE _persisto USING fts5 (a)",
    "CREATE TABLE x (a REFERENCES _persisto_records)",
    "CREATE TABLE x (a, FOREIGN KEY (a) REFERENCES '_persisto_records' (id) ON DELETE CASCADE)",
    "ALTER TABLE t ADD COLUMN r REFERENCES _persisto_records",
    "PRAGMA table_info(_persisto_records)",
    "PRAGMA foreign_key_list('_persisto_records')",
    "CREATE VIEW x AS SELECT * FROM _persisto_records; SELECT * FROM x",
    "CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM _persisto_records; END; INSERT INTO t VALUES (9, 'x')",
    "CREATE TRIGGER x AFTER UPDATE ON t BEGIN INSERT INTO t SELECT 5, body FROM _persisto_records; END; UPDATE t SET v = 1",
    "CREATE VIRTUAL TABLE x USING fts5 (body, content = '_persisto_records'); SELECT * FROM x",
  ];
  it.each(refused)("%s", (sql) => {
    const db = guarded();
    forbidden(
      failureOf(() => db.script(sql)),
      sql,
    );
    native.trust(db.connection, true);
    expect(db.rows("SELECT * FROM _persisto_records")).toEqual([[1n, "secret"]]);
    native.trust(db.connection, false);
    db.database.close();
  });

  it("may stand in text, in aliases and in names of columns", () => {
    const db = guarded();
    db.script(`CREATE TABLE x (a DEFAULT '_persisto_x', _persisto_b); ALTER TABLE x ADD COLUMN d DEFAULT '_persisto_';
      INSERT INTO x (a) VALUES ('_persisto_records')`);
    expect(db.rows("SELECT v AS _persisto_v FROM t AS _persisto_t LIMIT 1")).toEqual([["a"]]);
    db.database.close();
  });
});

describe("PRAGMA", () => {
  const read = [
    "application_id",
    "collation_list",
    "compile_options",
    "data_version",
    "encoding",
    "foreign_keys",
    "freelist_count",
    "function_list",
    "module_list",
    "page_count",
    "page_size",
    "recursive_triggers",
    "schema_version",
    "table_list",
    "user_version",
    "integrity_check",
    "quick_check",
    "foreign_key_check",
  ];
  it.each(read)("%s may be read, as a table too, and where only reads may run", (name) => {
    const db = guarded();
    db.run(`PRAGMA ${name}`);
    db.run(`PRAGMA main.${name}`, [], { flags: RUN_READ_ONLY });
    if (!["foreign_key_check", "schema_version"].includes(name) && !/^(user|data)_version$|^application_id$/.test(name))
      expect(() => db.rows(`SELECT * FROM pragma_${name}`), name).not.toThrow();
    db.database.close();
  });

  it.each(["table_info", "table_xinfo", "index_list", "foreign_key_list", "foreign_key_check", "quick_check"])(
    "%s takes an argument",
    (name) => {
      const db = guarded();
      db.run(`PRAGMA ${name}(t)`);
      db.run(`PRAGMA ${name} = t`);
      db.run(`SELECT * FROM pragma_${name}('t')`);
      db.database.close();
    },
  );

  const refused = [
    "PRAGMA journal_mode",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA main.Journal_Mode = OFF",
    "pragma writable_schema = ON",
    "PRAGMA writable_schema",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA foreign_keys(0)",
    "PRAGMA trusted_schema = ON",
    "PRAGMA query_only = OFF",
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA synchronous = OFF",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA mmap_size = 1000000",
    "PRAGMA cache_size = 1000000",
    "PRAGMA page_size = 512",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA schema_version = 9",
    "PRAGMA max_page_count = 99999999",
    "PRAGMA wal_checkpoint",
    "PRAGMA wal_autocheckpoint = 1",
    "PRAGMA database_list",
    "PRAGMA incremental_vacuum",
    "PRAGMA auto_vacuum = 1",
    "PRAGMA busy_timeout = 100000",
    "PRAGMA hard_heap_limit = 1",
    "PRAGMA threads = 8",
    "PRAGMA secure_delete = 0",
    "PRAGMA cell_size_check = 0",
    "PRAGMA ignore_check_constraints = 1",
    "PRAGMA recursive_triggers = 1",
    "PRAGMA defer_foreign_keys = 1",
    "PRAGMA case_sensitive_like = 1",
    "EXPLAIN PRAGMA case_sensitive_like = 1",
    "PRAGMA temp.user_version",
    "PRAGMA no_such_pragma",
    "SELECT * FROM pragma_journal_mode",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM main.pragma_database_list",
    "SELECT file FROM t, pragma_database_list",
    "CREATE VIEW x AS SELECT * FROM pragma_database_list; SELECT * FROM x",
  ];
  it.each(refused)("%s is refused", (sql) => {
    const db = guarded();
    const failure = failureOf(() => db.script(sql));
    if (failure.kind !== FAILED_FORBIDDEN) expect(failure.message).toMatch(/no such table|unsafe use/);
    db.database.close();
  });

  it("user_version and application_id may be set", () => {
    const db = guarded();
    db.run("PRAGMA user_version = 7");
    db.run("PRAGMA application_id = 8");
    expect(db.rows("PRAGMA user_version")).toEqual([[7n]]);
    expect(db.fails("PRAGMA user_version = 8", { flags: RUN_READ_ONLY }).kind).toBe(FAILED_READ_ONLY);
    db.run("PRAGMA optimize");
    db.run("PRAGMA optimize(0x10002)");
    expect(db.fails("PRAGMA optimize", { flags: RUN_READ_ONLY }).kind).toBe(FAILED_READ_ONLY);
    expect(db.fails("SELECT * FROM pragma_optimize", { flags: RUN_READ_ONLY }).kind).toBe(FAILED_READ_ONLY);
    db.database.close();
  });

  it("of a transaction hold for it alone, and are set each time", () => {
    const db = guarded();
    const inTransaction = { flags: RUN_TRANSACTION_PRAGMAS };
    const isSensitive = () => db.rows("SELECT 'A' LIKE 'a'", [], inTransaction)[0]?.[0] === 0n;
    for (let i = 0; i < 2; i++) {
      db.control("begin");
      db.run("PRAGMA case_sensitive_like = 1", [], inTransaction);
      db.run("PRAGMA recursive_triggers = ON", [], inTransaction);
      db.run("PRAGMA defer_foreign_keys = 1", [], inTransaction);
      db.run("INSERT INTO child VALUES (77)", [], inTransaction);
      db.run("DELETE FROM child WHERE p = 77", [], inTransaction);
      expect(isSensitive()).toBe(true);
      db.control("commit");
      native.resetPragmas(db.connection);
      expect(isSensitive()).toBe(false);
      expect(db.rows("PRAGMA recursive_triggers")).toEqual([[0n]]);
    }
    db.run("PRAGMA case_sensitive_like = 1", [], inTransaction);
    expect(db.rows("SELECT 'A' LIKE 'a'")).toEqual([[1n]]);
    db.database.close();
  });
});

describe("what may be done", () => {
  it("is all of SQL on one's own tables", () => {
    const db = guarded();
    db.script(
      `
      CREATE TABLE u (a INTEGER PRIMARY KEY AUTOINCREMENT, b REFERENCES t ON DELETE CASCADE, c AS (a + 1), CHECK (b > 0));
      INSERT INTO u (b) VALUES (1), (2);
      CREATE UNIQUE INDEX u_b ON u (b) WHERE b > 0; REINDEX; REINDEX u; ANALYZE; ANALYZE u;
      CREATE TRIGGER u_t AFTER DELETE ON u BEGIN INSERT INTO t (v) VALUES (old.b || 'x'); END; DROP TRIGGER u_t;
      CREATE TRIGGER u_v INSTEAD OF INSERT ON seen BEGIN INSERT INTO t (v) VALUES (new.v); END;
      INSERT INTO seen VALUES ('through the view');
      ALTER TABLE u RENAME TO w; ALTER TABLE w RENAME COLUMN b TO bb; ALTER TABLE w ADD COLUMN d DEFAULT 3; ALTER TABLE w DROP COLUMN d;
      INSERT INTO t VALUES (1, 'x') ON CONFLICT DO UPDATE SET v = excluded.v;
      DELETE FROM t WHERE id = 2; DROP VIEW seen; DROP INDEX t_v; DROP TABLE w;
      ALTER TABLE words RENAME TO terms; INSERT INTO terms (terms) VALUES ('optimize'); DROP TABLE terms;
      CREATE VIRTUAL TABLE shapes USING geopoly (); DROP TABLE shapes; DROP TABLE boxes;
      CREATE VIRTUAL TABLE d USING fts5 (v, content = 't', content_rowid = 'id'); INSERT INTO d (d) VALUES ('rebuild');
      CREATE VIRTUAL TABLE e USING fts5vocab ('d', 'row')`,
    );
    db.database.close();
  });

  it("is reading on a connection that only reads, virtual tables too", () => {
    const path = `${folder()}/rules.sqlite`;
    const writer = guarded(path);
    const db = open({ path, readOnly: true });
    db.database.close();
    const reader = open({ path, readOnly: true });
    expect(reader.rows("SELECT v FROM seen ORDER BY 1")).toEqual([["a"], ["b"]]);
    expect(reader.rows("SELECT body FROM words WHERE words MATCH 'hello'")).toEqual([["hello world"]]);
    expect(reader.rows("SELECT id FROM boxes WHERE x0 < 3")).toEqual([[1n]]);
    expect(reader.rows("SELECT key, value FROM json_each('[4]')")).toEqual([[0n, 4n]]);
    expect(
      reader.rows("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 3) SELECT sum(n) FROM r"),
    ).toEqual([[6n]]);
    reader.run("EXPLAIN QUERY PLAN SELECT * FROM t");
    for (const sql of [
      "INSERT INTO t VALUES (5, 'x')",
      "DELETE FROM t",
      "UPDATE t SET v = 1 RETURNING *",
      "EXPLAIN DELETE FROM t",
      "WITH x AS (SELECT 1) INSERT INTO t SELECT 9, 9 FROM x",
      "CREATE TABLE x (a)",
      "CREATE INDEX x ON t (v)",
      "DROP TABLE t",
      "ALTER TABLE t RENAME TO s",
      "ANALYZE",
      "REINDEX",
      "INSERT INTO words VALUES ('x')",
      "PRAGMA user_version = 1",
    ])
      expect(reader.fails(sql), sql).toMatchObject({ kind: FAILED_READ_ONLY });
    for (const sql of [
      "BEGIN",
      "COMMIT",
      "SAVEPOINT x",
      "ATTACH ':memory:' AS x",
      "PRAGMA foreign_keys = ON",
      "VACUUM",
    ])
      forbidden(reader.fails(sql), sql);
    reader.database.close();
    writer.database.close();
  });
});

describe("rights and the cache", () => {
  it("do not mix: a statement compiled with trust is compiled again without", () => {
    const db = guarded();
    const sql = "SELECT body FROM _persisto_records";
    native.trust(db.connection, true);
    for (let i = 0; i < 2; i++) expect(db.rows(sql)).toEqual([["secret"]]);
    native.trust(db.connection, false);
    forbidden(db.fails(sql), sql);
    native.trust(db.connection, true);
    expect(db.rows(sql)).toEqual([["secret"]]);
    native.trust(db.connection, false);
    forbidden(db.fails(sql, { scope: 0 }), sql);
    forbidden(db.fails(sql, { scope: 5 }), sql);
    db.database.close();
  });

  it("hold when a changed schema makes SQLite compile again", () => {
    const db = guarded();
    const sql = "SELECT * FROM x";
    db.script("CREATE VIEW x AS SELECT v FROM t");
    expect(db.rows(sql)).toHaveLength(2);
    db.script("DROP VIEW x; CREATE VIEW x AS SELECT body FROM _persisto_records");
    forbidden(db.fails(sql), sql);
    db.script("DROP VIEW x; CREATE TABLE x (a, b)");
    db.run("INSERT INTO x VALUES (1, 2)");
    expect(db.rows(sql)).toEqual([[1n, 2n]]);
    db.database.close();
  });

  it("end where trust reaches a view or a trigger of somebody else", () => {
    const db = guarded();
    db.script(`CREATE VIEW x AS SELECT body FROM _persisto_records;
      CREATE TRIGGER y AFTER INSERT ON t BEGIN DELETE FROM _persisto_records; END`);
    native.trust(db.connection, true);
    forbidden(db.fails("SELECT * FROM x"), "view");
    forbidden(db.fails("INSERT INTO t VALUES (50, 'x')"), "trigger");
    native.trust(db.connection, false);
    db.database.close();
  });

  it("let the server's own statements through, and only them", () => {
    const db = guarded();
    db.control("beginImmediate");
    expect(native.savepoint(db.connection, "savepoint", 'a "quoted" name')).toBe(true);
    db.run("INSERT INTO t VALUES (60, 'x')");
    expect(native.savepoint(db.connection, "rollbackTo", 'a "quoted" name')).toBe(true);
    expect(native.savepoint(db.connection, "release", 'a "quoted" name')).toBe(true);
    expect(native.savepoint(db.connection, "release", "absent")).toBe(false);
    expect(native.failure().message).toContain("no such savepoint");
    db.run("INSERT INTO t VALUES (61, 'before a')");
    for (const name of ["a", "A", "^a", "日".repeat(128)]) {
      expect(native.savepoint(db.connection, "savepoint", name)).toBe(true);
      db.run("INSERT INTO t (v) VALUES (?)", [value.text(name)]);
    }
    expect(native.savepoint(db.connection, "rollbackTo", "a")).toBe(true);
    expect(native.savepoint(db.connection, "rollbackTo", "A")).toBe(false);
    expect(() => native.savepoint(db.connection, "savepoint", "x".repeat(1100))).toThrow("too long");
    expect(() => native.savepoint(db.connection, "savepoint", "x\0")).toThrow("NUL");
    db.control("commit");
    expect(db.rows("SELECT max(id) FROM t")).toEqual([[61n]]);
    expect(db.rows("SELECT count(*) FROM t WHERE id = 60")).toEqual([[0n]]);
    forbidden(db.fails("COMMIT"), "COMMIT");
    db.database.close();
  });

  it("are not asked of JavaScript: functions of the library cannot be called from SQL", () => {
    const db = guarded();
    for (const name of ["persisto_guard", "persisto_trust", "persisto_deadline"])
      expect(db.fails(`SELECT ${name}(1)`).message).toContain("no such function");
    expect(db.rows("SELECT name FROM pragma_function_list WHERE name LIKE '%persisto%'")).toEqual([]);
    db.database.close();
  });
});

describe("limits", () => {
  it("hold for bound values, too", () => {
    const db = guarded();
    const failure = failureOf(() =>
      db.bytes(statement("SELECT length(?)", [value.blob(new Uint8Array((4 << 20) + 1))])),
    );
    expect(failure).toMatchObject({ code: 18, limit: 0, parameter: "?1" });
    db.database.close();
  });

  it("hold for triggers that call themselves", () => {
    const db = guarded();
    const flags = RUN_TRANSACTION_PRAGMAS;
    db.script("CREATE TRIGGER x AFTER INSERT ON child BEGIN INSERT INTO child VALUES (NULL); END", { flags });
    db.run("PRAGMA recursive_triggers = 1", [], { flags });
    expect(db.fails("INSERT INTO child VALUES (NULL)", { flags })).toMatchObject({ limit: 10 });
    db.database.close();
  });
});
