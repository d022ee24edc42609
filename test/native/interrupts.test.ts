import { closeSync, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, it } from "vitest";
import { FAILED_INTERRUPTED } from "../../src/sqlite/native.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { ENDLESS, failureOf, native, open, statement } from "./support.ts";

const BY_DEADLINE = 1;
const BY_CANCEL = 2;
const BY_MEMORY = 3;

const folder = temporaryFolders();

describe("deadlines", () => {
  it("interrupt within 5 ms, and the next statement is clean", () => {
    const db = open();
    let best = Number.POSITIVE_INFINITY;
    // More than once: another program may have the processor.
    for (let i = 0; i < 3 || (best > 5 && i < 40); i++) {
      const deadlineMs = [1, 5, 20][i % 3] as number;
      const began = performance.now();
      expect(db.fails(ENDLESS, { deadlineMs })).toMatchObject({ kind: FAILED_INTERRUPTED, expected: BY_DEADLINE });
      const over = performance.now() - began - deadlineMs;
      expect(over).toBeGreaterThanOrEqual(0);
      best = Math.min(best, over);
      expect(db.rows("SELECT 1")).toEqual([[1n]]);
    }
    expect(best).toBeLessThan(5);
    db.database.close();
  });

  it("of 0 or less are none", () => {
    const db = open();
    expect(
      db.rows("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 200000) SELECT max(n) FROM r", [], {
        deadlineMs: 0,
      }),
    ).toEqual([[200_000n]]);
    expect(db.rows("SELECT 1", [], { deadlineMs: -5 })).toEqual([[1n]]);
    db.database.close();
  });

  it("undo an autocommit write, and end a transaction that wrote", () => {
    const db = open();
    db.run("CREATE TABLE t (n)");
    const write = `INSERT INTO t ${ENDLESS.replace("count(*)", "n")}`;
    expect(db.fails(write, { deadlineMs: 20 }).kind).toBe(FAILED_INTERRUPTED);
    expect(db.rows("SELECT count(*) FROM t")).toEqual([[0n]]);
    db.control("begin");
    expect(db.fails(write, { deadlineMs: 20 })).toMatchObject({ kind: FAILED_INTERRUPTED, transactionOpen: false });
    db.control("begin");
    expect(db.fails(ENDLESS, { deadlineMs: 20 })).toMatchObject({ kind: FAILED_INTERRUPTED, transactionOpen: true });
    db.control("rollback");
    db.database.close();
  });

  it("hold for scripts, and for compiling", () => {
    const db = open();
    expect(failureOf(() => db.script(`SELECT 1; ${ENDLESS}`, { deadlineMs: 20 }))).toMatchObject({
      kind: FAILED_INTERRUPTED,
      actual: 1,
    });
    expect(failureOf(() => db.script("SELECT 1;".repeat(400_000), { deadlineMs: 20 })).kind).toBe(FAILED_INTERRUPTED);
    expect(db.script(";".repeat(1 << 20))).toEqual([0, 0]);
    expect(db.script("SELECT 1")).toEqual([1, 0]);
    db.database.close();
  });

  it("hold for the first step of a cursor, and for each chunk", () => {
    const db = open();
    expect(failureOf(() => db.cursor(statement(ENDLESS), { deadlineMs: 20 })).kind).toBe(FAILED_INTERRUPTED);
    const slow = db.cursor(statement(`SELECT 1 UNION ALL SELECT * FROM (${ENDLESS})`));
    expect(failureOf(() => db.next(slow, { deadlineMs: 20 }))).toMatchObject({
      kind: FAILED_INTERRUPTED,
      expected: BY_DEADLINE,
    });
    expect(db.rows("SELECT 1")).toEqual([[1n]]);
    db.database.close();
  });

  it("cut a chunk softly between rows", () => {
    const db = open();
    const cursor = db.cursor(statement(ENDLESS.replace("count(*)", "n")));
    let rows = 0;
    for (let i = 0; i < 3; i++) {
      const began = performance.now();
      expect(db.next(cursor, { rowsMax: 2 ** 31, bytesMax: 2 ** 26, softMs: 10 })).toBeDefined();
      expect(performance.now() - began).toBeLessThan(200);
      expect(native.rows(cursor)).toBeGreaterThan(rows);
      rows = native.rows(cursor);
    }
    native.close(cursor);
    db.database.close();
  });
});

describe("cancel", () => {
  const BEGUN = 3;
  const CANCEL = 5;
  const page = () => {
    const fd = openSync(join(folder(), "page"), "w+");
    ftruncateSync(fd, 4096);
    const pages = [native.sharedPage(fd, 4096), native.sharedPage(fd, 4096)] as const;
    closeSync(fd);
    return pages;
  };

  afterEach(() => native.watch(page()[0], BEGUN, CANCEL));

  it("through a page shared with another thread or process ends the call that was begun, and no other", async () => {
    const [ours, theirs] = page();
    const words = new Int32Array(ours);
    native.watch(ours, BEGUN, CANCEL);
    const db = open();
    Atomics.store(words, BEGUN, 7);
    Atomics.store(words, CANCEL, 6);
    expect(db.fails(ENDLESS, { deadlineMs: 30 }).expected).toBe(BY_DEADLINE);
    const other = new Int32Array(theirs);
    Atomics.store(other, CANCEL, 7);
    const began = performance.now();
    expect(db.fails(ENDLESS)).toMatchObject({ kind: FAILED_INTERRUPTED, expected: BY_CANCEL });
    expect(performance.now() - began).toBeLessThan(500);
    Atomics.store(words, BEGUN, 8);
    expect(db.rows("SELECT 1")).toEqual([[1n]]);
    db.database.close();
  });

  it("reaches a statement that runs", async () => {
    const path = join(folder(), "page");
    const fd = openSync(path, "w+");
    ftruncateSync(fd, 4096);
    const ours = native.sharedPage(fd, 4096);
    native.watch(ours, BEGUN, CANCEL);
    Atomics.store(new Int32Array(ours), BEGUN, 9);
    // This thread is busy with SQL meanwhile, so another one writes the word: through the file, which is the same memory.
    const gate = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(
      `const { workerData: { fd, at, gate } } = require("node:worker_threads");
       Atomics.store(gate, 0, 1); Atomics.notify(gate, 0);
       Atomics.wait(gate, 0, 1, 50);
       require("node:fs").writeSync(fd, Uint8Array.of(9, 0, 0, 0), 0, 4, at);`,
      { eval: true, workerData: { fd, at: CANCEL * 4, gate } },
    );
    while (Atomics.load(gate, 0) === 0) await new Promise((resolve) => setImmediate(resolve));
    const db = open();
    const began = performance.now();
    expect(db.fails(ENDLESS).expected).toBe(BY_CANCEL);
    expect(performance.now() - began).toBeGreaterThan(5);
    db.database.close();
    await worker.terminate();
    closeSync(fd);
  });

  it("needs words inside the page, and a file as long as the page", () => {
    const [ours] = page();
    expect(() => native.watch(ours, 0, 1024)).toThrow();
    const fd = openSync(join(folder(), "short"), "w+");
    ftruncateSync(fd, 100);
    expect(() => native.sharedPage(fd, 4096)).toThrow();
    closeSync(fd);
    expect(() => native.sharedPage(fd, 64)).toThrow();
  });
});

describe("memory", () => {
  afterEach(() => native.memoryLimit(0));

  it("above the limit interrupts", () => {
    const db = open();
    native.memoryLimit(1 << 20);
    expect(db.fails(ENDLESS)).toMatchObject({ kind: FAILED_INTERRUPTED, expected: BY_MEMORY });
    native.memoryLimit(2 ** 40);
    expect(db.fails(ENDLESS, { deadlineMs: 30 }).expected).toBe(BY_DEADLINE);
    db.database.close();
  });
});
