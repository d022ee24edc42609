import { describe, expect, it } from "vitest";
import {
  FAILED_CLOSED,
  FAILED_PARAMETERS,
  FAILED_PREPARE,
  FAILED_READ_ONLY,
  FAILED_REQUEST,
  FAILED_SIZE,
  FAILED_STEP,
  FAILED_TEXT,
  limitNames,
  RUN_COLUMNS,
  RUN_READ_ONLY,
} from "../../src/sqlite/native.ts";
import { failureOf, native, type Opened, open, statement, value } from "./support.ts";

/** Runs with a database of one table, and closes it. */
function withTable(run: (db: Opened) => void): void {
  const db = open();
  db.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL UNIQUE)");
  try {
    run(db);
  } finally {
    db.database.close();
  }
}

describe("a statement that does not compile", () => {
  it("has SQLite's message and the byte offset", () =>
    withTable((db) => {
      expect(db.fails("SELECT 1, absent FROM t")).toMatchObject({
        kind: FAILED_PREPARE,
        code: 1,
        offset: 10,
        message: "no such column: absent",
      });
      expect(db.fails("SELECT 'ä', absent").offset).toBe(13);
      expect(db.fails("SELEC 1")).toMatchObject({ kind: FAILED_PREPARE, offset: 0 });
    }));

  it("is none, or more than one", () =>
    withTable((db) => {
      expect(db.fails("SELECT 1; SELECT 2")).toMatchObject({ kind: FAILED_TEXT, offset: 10 });
      expect(db.fails("SELECT 1; ;").kind).toBe(FAILED_TEXT);
      expect(db.fails(" -- nothing").kind).toBe(FAILED_TEXT);
      expect(db.fails("").kind).toBe(FAILED_TEXT);
      expect(db.fails("SELECT 1\0; DROP TABLE t")).toMatchObject({ kind: FAILED_TEXT, offset: 8 });
      expect(db.rows("/* a */ SELECT 1 AS x -- b\n; /* c */ -- d")).toEqual([[1n]]);
      expect(db.rows("SELECT 2 /* open to the end")).toEqual([[2n]]);
    }));

  it("may be over a limit, which is told", () =>
    withTable((db) => {
      const limitOf = (sql: string): string => {
        const failure = db.fails(sql);
        return failure.limit < 0 ? failure.message : (limitNames[failure.limit] ?? "unknown");
      };
      expect(limitOf(`SELECT '${"x".repeat(1 << 20)}'`)).toBe("SQL bytes");
      expect(limitOf(`SELECT ${"1,".repeat(600)}1`)).toBe("columns");
      expect(limitOf(`CREATE TABLE w (${Array.from({ length: 501 }, (_, i) => `c${i}`)})`)).toBe("columns");
      expect(limitOf(`SELECT 1 ${"+ 1 ".repeat(300)}`)).toBe("expression depth");
      expect(limitOf(`SELECT 1 ${"UNION ALL SELECT 1 ".repeat(150)}`)).toBe("compound SELECT terms");
      expect(limitOf(`SELECT max(${"1,".repeat(150)}1)`)).toBe("function arguments");
      expect(limitOf(`SELECT '' LIKE '${"%a".repeat(700)}'`)).toBe("LIKE pattern bytes");
      expect(limitOf("SELECT zeroblob(1e9)")).toBe("value bytes");
      expect(limitOf("SELECT hex(zeroblob(4000000))")).toBe("value bytes");
      expect(limitOf("SELECT ?32767")).toBe("parameters");
      native.guard(db.connection, Int32Array.of(-1, -1, -1, -1, -1, 20), false);
      expect(limitOf("SELECT * FROM t JOIN t AS u USING (id) ORDER BY 2")).toBe("program instructions");
    }));
});

describe("parameters", () => {
  it("that are missing or extra are named", () =>
    withTable((db) => {
      const fails = (sql: string, ...rest: [Parameters<typeof statement>[1]?, Parameters<typeof statement>[2]?]) =>
        failureOf(() => db.bytes(statement(sql, ...rest)));
      const one = value.integer(1);
      const none = value.null();
      expect(fails("SELECT :a + :b", [], { a: one })).toMatchObject({
        kind: FAILED_PARAMETERS,
        parameter: "b",
        message: "missing parameter",
      });
      expect(fails("SELECT :a", [], { a: one, zz: none })).toMatchObject({
        kind: FAILED_PARAMETERS,
        parameter: "zz",
        message: "extra parameter",
      });
      expect(fails("SELECT ?, ?", [none])).toMatchObject({ parameter: "?2", expected: 2, actual: 1 });
      expect(fails("SELECT 1", [none])).toMatchObject({ kind: FAILED_PARAMETERS, expected: 0, actual: 1 });
      expect(fails("SELECT 1", [], { a: none })).toMatchObject({ kind: FAILED_PARAMETERS, parameter: "a" });
      expect(fails("SELECT :a", [none])).toMatchObject({ kind: FAILED_PARAMETERS, parameter: "a" });
      expect(fails("SELECT ?1", [], { 1: none })).toMatchObject({ kind: FAILED_PARAMETERS, parameter: "?1" });
      expect(fails("SELECT ?, :a", [none], { a: none }).kind).toBe(FAILED_PARAMETERS);
    }));

  it("of one name or number are one", () =>
    withTable((db) => {
      expect(db.rows("SELECT ?1 + ?1", [value.integer(4)])).toEqual([[8n]]);
      db.bytes(statement("SELECT :a + @a + $a", [], { a: value.integer(4) }));
    }));

  it("need a kind", () =>
    withTable((db) => {
      const request = statement("SELECT ?", [{ case: undefined }]);
      expect(failureOf(() => db.bytes(request))).toMatchObject({ kind: FAILED_REQUEST, parameter: "?1" });
    }));

  it("are refused by their count before SQLite compiles for seconds", () =>
    withTable((db) => {
      const names = Array.from({ length: 32_000 }, (_, i) => `:p${i}`);
      const sql = statement(`SELECT max(${names})`);
      const named = statement("SELECT 1", [], Object.fromEntries(names.map((name) => [name.slice(1), value.null()])));
      const before = performance.now();
      expect(failureOf(() => db.bytes(sql))).toMatchObject({ kind: FAILED_PARAMETERS, expected: 4096, limit: 9 });
      expect(failureOf(() => db.bytes(named))).toMatchObject({ kind: FAILED_PARAMETERS, expected: 4096, limit: 9 });
      expect(performance.now() - before).toBeLessThan(200);
      const many = Array.from({ length: 32_766 }, () => value.integer(1));
      const rows = Array.from({ length: 16_383 }, () => "(?,?)");
      expect(db.run(`SELECT count(*) FROM (VALUES ${rows})`, many).rowsAffected).toBe(0n);
      expect(failureOf(() => db.run("SELECT 1", [...many, value.null()])).kind).toBe(FAILED_PARAMETERS);
    }));
});

describe("a statement that fails while it runs", () => {
  it("has SQLite's extended code", () =>
    withTable((db) => {
      expect(db.fails("INSERT INTO t VALUES (1, NULL)")).toMatchObject({
        kind: FAILED_STEP,
        code: 1299,
        message: "NOT NULL constraint failed: t.v",
        transactionOpen: true,
      });
      expect(db.fails("SELECT abs(-9223372036854775808)")).toMatchObject({
        kind: FAILED_STEP,
        message: "integer overflow",
      });
    }));

  it("may end the transaction, and says so", () =>
    withTable((db) => {
      db.run("INSERT INTO t VALUES (1, 'a')");
      db.control("begin");
      expect(db.fails("INSERT INTO t VALUES (1, 'b')").transactionOpen).toBe(true);
      expect(db.fails("INSERT OR ROLLBACK INTO t VALUES (1, 'b')").transactionOpen).toBe(false);
      expect(native.inTransaction(db.connection)).toBe(false);
    }));

  it("may not write where only reads may run", () =>
    withTable((db) => {
      for (const sql of ["INSERT INTO t VALUES (1, 'x')", "CREATE TABLE u (a)", "PRAGMA user_version = 4", "REINDEX t"])
        expect(db.fails(sql, { flags: RUN_READ_ONLY }), sql).toMatchObject({ kind: FAILED_READ_ONLY });
      expect(db.rows("SELECT count(*) FROM t", [], { flags: RUN_READ_ONLY })).toEqual([[0n]]);
    }));
});

describe("a result that is too large", () => {
  const filled = (run: (db: Opened) => void): void =>
    withTable((db) => {
      db.run("INSERT INTO t SELECT value, 'v' || value FROM json_each(?)", [
        value.text(JSON.stringify(Array.from({ length: 2000 }, (_, i) => i))),
      ]);
      run(db);
    });

  it.each([0, RUN_COLUMNS])("fails (flags %i)", (flags) =>
    filled((db) => {
      expect(db.fails("SELECT * FROM t", { flags, bytesMax: 1000 }).kind).toBe(FAILED_SIZE);
      expect(db.fails("SELECT zeroblob(2000)", { flags, bytesMax: 1000 }).kind).toBe(FAILED_SIZE);
      expect(db.bytes(statement("SELECT zeroblob(900)"), { flags, bytesMax: 1000 }).length).toBeLessThan(1000);
    }),
  );

  it.each([0, RUN_COLUMNS])("leaves nothing behind (flags %i)", (flags) =>
    filled((db) => {
      expect(db.fails("UPDATE t SET v = v || '!' RETURNING *", { flags, bytesMax: 1000 }).kind).toBe(FAILED_SIZE);
      expect(db.rows("SELECT count(*) FROM t WHERE v LIKE '%!'")).toEqual([[0n]]);
    }),
  );

  it.each([0, RUN_COLUMNS])("leaves nothing behind in a transaction, which goes on (flags %i)", (flags) =>
    filled((db) => {
      db.control("begin");
      db.run("INSERT INTO t VALUES (-1, 'kept')");
      const failure = db.fails("UPDATE t SET v = v || '!' RETURNING *", { flags, bytesMax: 1000 });
      expect(failure).toMatchObject({ kind: FAILED_SIZE, transactionOpen: true });
      db.run("UPDATE t SET v = v || '?' WHERE id = 5 RETURNING *");
      db.control("commit");
      expect(db.rows("SELECT v FROM t WHERE id < 0 OR v LIKE '%!' OR v LIKE '%?'")).toEqual([["kept"], ["v5?"]]);
    }),
  );
});

describe("scripts", () => {
  it("run statement after statement", () => {
    const db = open();
    expect(
      db.script(`-- a script
        CREATE TABLE t (a); ;; INSERT INTO t VALUES (1), (2); /* ; */ SELECT * FROM t;
        CREATE TRIGGER x AFTER INSERT ON t BEGIN UPDATE t SET a = a + 1; DELETE FROM t WHERE a > 9; END;
        UPDATE t SET a = 5; -- the end`),
    ).toEqual([5, 4]);
    expect(db.script("")).toEqual([0, 0]);
    expect(db.script(" ; -- nothing\n;")).toEqual([0, 0]);
    db.database.close();
  });

  it("say which statement failed, and where", () => {
    const db = open();
    const fails = (sql: string | Buffer) => failureOf(() => db.script(sql));
    expect(fails("CREATE TABLE t (a); SELECT 1; SELECT absent;")).toMatchObject({
      kind: FAILED_PREPARE,
      actual: 2,
      offset: 37,
    });
    expect(fails("SELECT 1; SELECT abs(-9223372036854775808)")).toMatchObject({ kind: FAILED_STEP, actual: 1 });
    expect(fails("SELECT 1; SELECT ?")).toMatchObject({ kind: FAILED_PARAMETERS, actual: 1 });
    expect(fails("SELECT 1; SELECT \0")).toMatchObject({ kind: FAILED_TEXT, offset: 17 });
    expect(fails(Buffer.of(0x20, 0xff)).kind).toBe(FAILED_REQUEST);
    db.database.close();
  });
});

describe("requests that are no Statement", () => {
  it.each(["0a", "0aff", "0a02c328", "12", "1203", "ffffffffffffffffffff01", "00", "0b", "1201ff", "07"])(
    "fail: %s",
    (hex) => {
      const db = open();
      expect(failureOf(() => db.bytes(Buffer.from(hex, "hex"))).kind).toBe(FAILED_REQUEST);
      db.database.close();
    },
  );

  it("may hold fields of later versions", () => {
    const db = open();
    const more = Buffer.from("2328012479010203040506070824087d01020304", "hex");
    expect(() => db.bytes(Buffer.concat([statement("SELECT 1"), more.subarray(0, 4)]))).not.toThrow();
    db.database.close();
  });
});

describe("after close", () => {
  it("calls fail, and nothing crashes", () => {
    const db = open();
    const cursor = db.cursor(statement("SELECT 1 UNION ALL SELECT 2"));
    db.database.close();
    expect(failureOf(() => db.run("SELECT 1")).kind).toBe(FAILED_CLOSED);
    expect(failureOf(() => db.script("SELECT 1")).kind).toBe(FAILED_CLOSED);
    expect(failureOf(() => db.control("begin")).kind).toBe(FAILED_CLOSED);
    expect(failureOf(() => db.cursor(statement("SELECT 1"))).kind).toBe(FAILED_CLOSED);
    expect(failureOf(() => db.next(cursor)).kind).toBe(FAILED_CLOSED);
    native.close(cursor);
    native.release(db.connection);
    native.trust(db.connection, false);
    native.shrink(db.connection);
    expect(native.inTransaction(db.connection)).toBe(false);
    expect(() => native.checkpoint(db.connection, 0)).toThrow("closed");
  });

  it("handles are told apart", () => {
    const db = open();
    const cursor = db.cursor(statement("SELECT 1"));
    // @ts-expect-error: the wrong handle
    expect(() => native.release(cursor)).toThrow(TypeError);
    // @ts-expect-error: the wrong handle
    expect(() => native.close(db.connection)).toThrow(TypeError);
    // @ts-expect-error: no handle
    expect(() => native.close({})).toThrow(TypeError);
    expect(() => native.run(db.connection, Buffer.alloc(4), 2, 9, 0, 0, 0, 0, 0)).toThrow(RangeError);
    expect(() => native.run(db.connection, Buffer.alloc(4), 3, 2, 0, 0, 0, 0, 0)).toThrow(RangeError);
    db.database.close();
  });
});
