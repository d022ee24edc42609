import { once } from "node:events";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { loadNative, loadSharedPages } from "../../src/sqlite/load-native.ts";
import { FAILED_STEP } from "../../src/sqlite/native.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { failureOf, native, type Opened, open, statement, value } from "./support.ts";

const folder = temporaryFolders();
const openFiles = (): number => readdirSync("/proc/self/fd").length;
const SQLITE_BUSY = 5;
const SQLITE_ABORT_ROLLBACK = 516;

describe("the library", () => {
  it("is one a process, and needs no SQLite for shared pages", () => {
    expect(loadNative(Database)).toBe(native);
    expect(loadSharedPages()).toBe(native);
    expect(() => loadSharedPages("/nowhere/persisto.node")).toThrow("does not load");
  });

  it("serves one thread", async () => {
    const path = join(import.meta.dirname, "../../build/persisto.node");
    const worker = new Worker(
      `const { parentPort, workerData } = require("node:worker_threads");
       const native = require(workerData);
       const message = (run) => { try { run(); return "no error"; } catch (error) { return error.message; } };
       parentPort.postMessage([message(() => native.connect(1)), message(() => native.output(Buffer.alloc(9)))]);`,
      { eval: true, workerData: path },
    );
    const [messages] = await once(worker, "message");
    expect(messages).toEqual(Array(2).fill("the native library serves one thread a process"));
    await worker.terminate();
  });

  it("takes each connection once", () => {
    const db = open();
    expect(() => native.connect(8)).toThrow("no connection");
    const other = new Database(":memory:");
    other.close();
    expect(() => native.connect(8)).toThrow("no connection");
    db.database.close();
  });
});

describe("cursors", () => {
  const rows = (db: Opened, count: number) =>
    db.run(
      `CREATE TABLE t AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT ${count}) SELECT n FROM r`,
    );

  it("count their rows, end by themselves, and close more than once", () => {
    const db = open();
    rows(db, 10);
    const cursor = db.cursor(statement("SELECT n FROM t WHERE n > ?", [value.integer(3)]));
    expect(native.columns(cursor, 0)).toBeGreaterThan(0);
    expect(db.next(cursor, { rowsMax: 5 })).toBeDefined();
    expect(native.rows(cursor)).toBe(5);
    expect(db.next(cursor, { rowsMax: 5 })).toBeDefined();
    expect(db.next(cursor)).toBeUndefined();
    expect(db.next(cursor)).toBeUndefined();
    expect(native.rows(cursor)).toBe(7);
    native.close(cursor);
    native.close(cursor);
    expect(db.next(db.cursor(statement("SELECT 1 WHERE 0")))).toBeUndefined();
    db.database.close();
  });

  it("hold their snapshot, keep their parameters, and let go of it when closed", () => {
    const path = join(folder(), "db.sqlite");
    const writer = open({ path });
    rows(writer, 100);
    const reader = open({ path, readOnly: true });
    const request = statement("SELECT n FROM t WHERE ? = 'kept'", [value.text("kept")]);
    const cursor = reader.cursor(request);
    request.fill(0);
    writer.run("DELETE FROM t");
    expect(native.checkpoint(writer.connection, 3)[0]).toBe(SQLITE_BUSY);
    while (reader.next(cursor, { rowsMax: 7 })) {
      expect(native.rows(cursor)).toBeLessThanOrEqual(100);
    }
    expect(native.rows(cursor)).toBe(100);
    expect(native.checkpoint(writer.connection, 3)).toEqual([0, 0, 0]);
    reader.database.close();
    writer.database.close();
  });

  it("end with a rollback on their connection", () => {
    const db = open();
    rows(db, 5);
    db.control("begin");
    const cursor = db.cursor(statement("SELECT n FROM t"));
    expect(db.next(cursor, { rowsMax: 2 })).toBeDefined();
    db.run("DELETE FROM t WHERE n = 4");
    db.control("rollback");
    expect(failureOf(() => db.next(cursor))).toMatchObject({ kind: FAILED_STEP, code: SQLITE_ABORT_ROLLBACK });
    expect(db.next(db.cursor(statement("SELECT n FROM t")))).toBeDefined();
    db.database.close();
  });

  it("refuse to write", () => {
    const db = open();
    db.run("CREATE TABLE t (a)");
    expect(failureOf(() => db.cursor(statement("INSERT INTO t VALUES (1) RETURNING *"))).message).toContain("writes");
    db.database.close();
  });

  it("may be many on one connection, of one text", () => {
    const db = open({ cacheCount: 2 });
    rows(db, 3);
    const cursors = Array.from({ length: 5 }, () => db.cursor(statement("SELECT n FROM t")));
    for (const cursor of cursors) expect(db.next(cursor, { rowsMax: 1 })).toBeDefined();
    for (const cursor of cursors) expect(db.next(cursor)).toBeDefined();
    for (const cursor of cursors) expect(native.rows(cursor)).toBe(3);
    db.database.close();
  });
});

describe("closing", () => {
  it("with cached statements and open cursors leaks no file", () => {
    const directory = folder();
    const before = openFiles();
    for (let i = 0; i < 20; i++) {
      const db = open({ path: join(directory, "leak.sqlite") });
      db.script("CREATE TABLE IF NOT EXISTS t (a); INSERT INTO t VALUES (1), (2)");
      for (let k = 0; k < 10; k++) db.run(`SELECT ${k} FROM t`);
      db.next(db.cursor(statement("SELECT * FROM t")), { rowsMax: 1 });
      db.database.close();
    }
    expect(openFiles()).toBe(before);
  });

  it("leaves the WAL: nothing is checkpointed but on demand", () => {
    const path = join(folder(), "wal.sqlite");
    const db = open({ path });
    expect([native.commits(db.connection), native.frames(db.connection)]).toEqual([0, 0]);
    db.run("CREATE TABLE t (a)");
    for (let i = 0; i < 1500; i++) db.run("INSERT INTO t VALUES (?)", [value.integer(i)]);
    expect(native.commits(db.connection)).toBe(1501);
    expect(native.frames(db.connection)).toBeGreaterThan(1500);
    const [code, frames, done] = native.checkpoint(db.connection, 0);
    expect([code, done]).toEqual([0, frames]);
    db.run("DELETE FROM t WHERE a = 5");
    db.database.close();
    expect(statSync(`${path}-wal`).size).toBeGreaterThan(0);
  });
});

describe("transactions", () => {
  it("begin, commit and roll back, and say when the database is busy", () => {
    const path = join(folder(), "busy.sqlite");
    const one = open({ path });
    const two = open({ path });
    one.run("CREATE TABLE t (a)");
    one.control("beginImmediate");
    expect(native.inTransaction(one.connection)).toBe(true);
    expect(native.control(two.connection, "beginImmediate", 1000)).toBe(false);
    expect(native.failure()).toMatchObject({ kind: FAILED_STEP, code: SQLITE_BUSY });
    one.control("rollback");
    two.control("beginImmediate");
    two.control("commit");
    expect(failureOf(() => two.control("commit")).message).toContain("no transaction");
    one.database.close();
    two.database.close();
  });

  it("stay open when COMMIT meets a deferred foreign key", () => {
    const db = open();
    db.script("CREATE TABLE p (id PRIMARY KEY); CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED)");
    db.control("begin");
    db.run("INSERT INTO c VALUES (1)");
    expect(failureOf(() => db.control("commit"))).toMatchObject({ code: 787, transactionOpen: true });
    db.run("INSERT INTO p VALUES (1)");
    db.control("commit");
    db.database.close();
  });
});

describe("five hundred connections", () => {
  it("live side by side, and cost little when idle", () => {
    const directory = folder();
    const before = openFiles();
    const opened = Array.from({ length: 500 }, (_, i) => {
      const db = open({ path: join(directory, `${i}.sqlite`), cacheCount: 8 });
      db.script("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'a')");
      return db;
    });
    for (let round = 0; round < 3; round++)
      for (const [i, db] of opened.entries()) {
        db.run("UPDATE t SET v = ?", [value.integer(i)]);
        expect(db.rows("SELECT v FROM t WHERE id = ?", [value.integer(1)])).toEqual([[BigInt(i)]]);
      }
    for (const db of opened) native.shrink(db.connection);
    native.trim();
    for (const db of opened) db.database.close();
    expect(openFiles()).toBe(before);
  });
});
