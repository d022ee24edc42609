import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { getPriority } from "node:os";
import { afterEach, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import {
  CallCancelled,
  type ExecutorDatabase,
  type ExecutorLimits,
  type Executors,
} from "../../src/sqlite/executor.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { until } from "../support/until.ts";
import { describeExecutors } from "./contract.ts";
import { catchesSignals, cpuTicks, descriptorCount, executorPids } from "./processes.ts";
import {
  drain,
  ENDLESS,
  encode,
  encodeBatch,
  execute,
  failureOf,
  type LogLine,
  limits,
  newDatabase,
  newRecord,
  options,
  queryOptions,
  read,
  rows,
  startProcesses,
  TestCancel,
  within,
} from "./support.ts";

describeExecutors("a pool of executor processes", startProcesses);

/** One opcode that takes hours and looks at no interrupt. */
const UNINTERRUPTIBLE = "SELECT instr(zeroblob(4000000), zeroblob(2000000) || x'01')";

describe("a pool of executor processes", () => {
  const folder = temporaryFolders();
  let executors: Executors;
  const log: LogLine[] = [];

  const start = async (more: Partial<ExecutorLimits> = {}): Promise<void> => {
    log.length = 0;
    executors = await startProcesses({ limits: more, log });
  };

  const databases = (count: number): Promise<ExecutorDatabase[]> => {
    const path = folder();
    return Promise.all(Array.from({ length: count }, (_, index) => newDatabase(executors, path, `db-${index}`)));
  };

  afterEach(async () => {
    await executors.close(100);
    expect(executorPids()).toEqual([]);
  });

  it("serves others while a statement holds its executor", async () => {
    await start({ executorCountMin: 1, executorCountMax: 2 });
    const [slow, ...others] = await databases(5);
    await Promise.all(others.map((other) => execute(other, "CREATE TABLE t (x)")));
    const endless = failureOf((slow as ExecutorDatabase).execute(encode(ENDLESS), options(within(3_000))));
    let ended = false;
    void endless.then(() => {
      ended = true;
    });
    // All of them were sent behind it, where nothing runs for three seconds.
    const calls = others.flatMap((other) =>
      Array.from({ length: 20 }, () => other.execute(encode("INSERT INTO t VALUES (1)"), options())),
    );
    await Promise.all(calls);
    expect(ended).toBe(false);
    for (const other of others) expect(await read(other, "SELECT count(*) FROM t")).toEqual([[20n]]);
    expect(ended).toBe(false);
    expect(log.map(({ message }) => message)).toContain("an executor was added");
    expect(await endless).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
  });

  it("keeps no answer back while the statement behind it runs", async () => {
    await start({ executorCountMin: 1, executorCountMax: 2 });
    const [slow, ...others] = await databases(5);
    await Promise.all(others.map((other) => execute(other, "CREATE TABLE t (x)")));
    // All in one turn: the executor reads them together, the endless one last.
    const calls = others.map((other) => other.read(encode("SELECT count(*) FROM t"), options()));
    const cancel = new TestCancel();
    const endless = failureOf((slow as ExecutorDatabase).execute(encode(ENDLESS), options({ cancel })));
    await Promise.all(calls);
    expect(executors.stats().busy).toBe(1);
    cancel.cancel();
    expect(await endless).toBeInstanceOf(CallCancelled);
  });

  it("delivers what was answered before a statement that takes long", async () => {
    await start({ executorCountMin: 1, executorCountMax: 1 });
    const [fast, slow] = (await databases(2)) as [ExecutorDatabase, ExecutorDatabase];
    await execute(fast, "CREATE TABLE t (x)");
    // Sent together: when the slow one runs, the others' answers have not left the executor.
    const calls = [1, 2, 3].flatMap(() => [
      fast.read(encode("SELECT 1"), options()),
      fast.execute(encode("INSERT INTO t VALUES (1)"), options()),
    ]);
    let ended = false;
    const endless = failureOf(slow.read(encode(ENDLESS), options(within(2_000))));
    void endless.then(() => {
      ended = true;
    });
    await Promise.all(calls);
    expect(ended).toBe(false);
    expect(await endless).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    expect(await read(fast, "SELECT count(*) FROM t")).toEqual([[3n]]);
  });

  it("lets others have the processor first while a statement goes on and on", async () => {
    await start({ executorCountMin: 2, executorCountMax: 3 });
    const [slow, ...others] = (await databases(9)) as [ExecutorDatabase, ...ExecutorDatabase[]];
    const endless = failureOf(slow.execute(encode(ENDLESS), options(within(2_500))));
    const background = () => executorPids().filter((pid) => getPriority(pid) > getPriority());
    const [pid] = await until("its executor is in the background", async () => {
      await Promise.all(others.map((other) => read(other, "SELECT 1")));
      return background().length > 0 && background();
    });
    expect(await endless).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    // It comes back, or is replaced where that is not allowed.
    await until("it is not there any more", () => {
      executors.tidy();
      return background().length === 0;
    });
    expect(pid).toBeGreaterThan(0);
    await Promise.all(others.map((other) => read(other, "SELECT 1")));
  });

  it("serves the reads of a database whose write takes long", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    await execute(db, "CREATE TABLE t (x)");
    const sql =
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO t SELECT i FROM n WHERE i < 0";
    const writing = failureOf(db.execute(encode(sql), options(within(1_500))));
    let written = false;
    void writing.then(() => {
      written = true;
    });
    for (let index = 0; index < 20; index++) expect(await read(db, "SELECT count(*) FROM t")).toEqual([[0n]]);
    expect(written).toBe(false);
    expect(await writing).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    await execute(db, "INSERT INTO t VALUES (1)");
  });

  it("keeps others away from an executor with an open transaction", async () => {
    await start({ executorCountMin: 2, executorCountMax: 2 });
    const [holder, ...others] = (await databases(6)) as [ExecutorDatabase, ...ExecutorDatabase[]];
    await Promise.all(others.map((other) => execute(other, "CREATE TABLE t (x)")));
    const transaction = await holder.begin(true, options());
    const openedAtMs = systemClock.now();
    await until("it has been open for long", () => systemClock.now() > openedAtMs + 3 * limits.executorStallMs);
    // Its statement would hold up whoever shares the executor.
    const slow = failureOf(transaction.execute(encode(ENDLESS), options(within(1_000))));
    for (const other of others) {
      await execute(other, "INSERT INTO t VALUES (1)");
      expect(await read(other, "SELECT count(*) FROM t")).toEqual([[1n]]);
    }
    expect(transaction.isOpen).toBe(true);
    expect(await slow).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    await transaction.rollback();
  });

  it("kills an executor that no interrupt reaches, and only its call fails", async () => {
    await start({ executorCountMin: 1, executorCountMax: 1, executorGraceMs: 200 });
    const [bad, good] = (await databases(2)) as [ExecutorDatabase, ExecutorDatabase];
    await execute(good, "CREATE TABLE t (x)");
    const stuck = failureOf(
      bad.execute(encode(UNINTERRUPTIBLE), options({ ...within(100), deadlineSource: "client" })),
    );
    const others = [
      ...Array.from({ length: 10 }, () => good.execute(encode("INSERT INTO t VALUES (1)"), options())),
      ...Array.from({ length: 10 }, () => good.read(encode("SELECT 1"), options())),
    ];
    expect(await stuck).toMatchObject({ reason: "STATEMENT_TIMEOUT", facts: { source: "client", limitMs: "100" } });
    await Promise.all(others);
    expect(await read(good, "SELECT count(*) FROM t")).toEqual([[10n]]);
    expect(log.map(({ message }) => message)).toEqual([
      "an executor is killed: its statement cannot be interrupted",
      "an executor died and is replaced",
    ]);
    expect(executors.stats().restarts).toBe(1);
  });

  it("kills the executor of a cancelled statement that goes on, of a transaction and of a query", async () => {
    await start({ executorCountMin: 3, executorGraceMs: 100 });
    const [db] = (await databases(1)) as [ExecutorDatabase];
    await execute(db, "CREATE TABLE t (x)");
    const cancel = new TestCancel();
    const cancelled = failureOf(db.read(encode(UNINTERRUPTIBLE), options({ cancel })));
    cancel.cancel();
    expect(await cancelled).toBeInstanceOf(CallCancelled);
    const transaction = await db.begin(true, options());
    await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
    const late = failureOf(transaction.execute(encode(UNINTERRUPTIBLE), options(within(100))));
    expect(await late).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    expect(transaction.isOpen).toBe(false);
    const query = db.query(encode(UNINTERRUPTIBLE), queryOptions(within(1_000)));
    expect(await failureOf(query)).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    const sql =
      "SELECT iif(i < 60, i, instr(zeroblob(4000000), zeroblob(2000000) || x'01')) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 70) SELECT i FROM n)";
    const cursor = await db.query(encode(sql), queryOptions(within(1_500)));
    expect(await failureOf(drain(cursor))).toMatchObject({ reason: "STATEMENT_TIMEOUT" });
    await execute(db, "INSERT INTO t VALUES (2)");
    expect(await read(db, "SELECT x FROM t")).toEqual([[2n]]);
  });

  it("interrupts a statement whose caller has gone", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    for (const run of [
      (cancel: TestCancel) => db.execute(encode(ENDLESS), options({ cancel })),
      (cancel: TestCancel) => db.read(encode(ENDLESS), options({ cancel })),
      (cancel: TestCancel) => db.batch(encodeBatch({ sql: ENDLESS }), options({ cancel })),
      (cancel: TestCancel) => db.script(Buffer.from(ENDLESS), options({ cancel })),
      (cancel: TestCancel) => db.query(encode(ENDLESS), queryOptions({ cancel })),
    ]) {
      const cancel = new TestCancel();
      const running = failureOf(run(cancel));
      await until("it runs", () => executors.stats().busy > 0);
      cancel.cancel();
      expect(await running).toBeInstanceOf(CallCancelled);
    }
    expect(executors.stats().restarts).toBe(0);
  });

  it("ends what a forced close meets", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    const running = failureOf(db.execute(encode(ENDLESS), options()));
    const reading = failureOf(db.read(encode(ENDLESS), options()));
    await until("it runs", () => executors.stats().busy > 0);
    await db.close(true);
    expect(await running).toBeInstanceOf(CallCancelled);
    expect(await reading).toBeInstanceOf(CallCancelled);
  });

  it("tells each caller what became of his call when its executor dies", async () => {
    await start({ executorCountMin: 1, executorCountMax: 1 });
    const [db] = (await databases(1)) as [ExecutorDatabase];
    await execute(db, "CREATE TABLE t (x)");
    const running = failureOf(db.read(encode(ENDLESS), options()));
    const behind = db.execute(encode("INSERT INTO t VALUES (1)"), options());
    const recorded = db.execute(encode("INSERT INTO t VALUES (2)"), options(), newRecord());
    const [pid] = executorPids() as [number];
    const before = cpuTicks(pid);
    await until("it runs", () => cpuTicks(pid) > before + 5);
    process.kill(pid, "SIGABRT");
    expect(await running).toMatchObject({ reason: "EXECUTOR_LOST", facts: { signal: "SIGABRT" } });
    await behind;
    await recorded;
    expect(await read(db, "SELECT x FROM t ORDER BY x")).toEqual([[1n], [2n]]);
    expect(executorPids()).not.toContain(pid);
  });

  it("rolls a transaction back whose executor dies", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    await execute(db, "CREATE TABLE t (x)");
    const transaction = await db.begin(true, options());
    await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
    const waiting = db.batch(encodeBatch({ sql: "INSERT INTO t VALUES (2)" }), options());
    for (const pid of executorPids()) process.kill(pid, "SIGKILL");
    await waiting;
    expect(transaction.isOpen).toBe(false);
    expect(await failureOf(transaction.commit(options()))).toMatchObject({ reason: "EXECUTOR_LOST" });
    expect(await read(db, "SELECT x FROM t")).toEqual([[2n]]);
  });

  it("lets a query fail whose executor dies", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    const cursor = await db.query(
      encode("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"),
      queryOptions(),
    );
    await cursor.next();
    for (const pid of executorPids()) process.kill(pid, "SIGKILL");
    expect(await failureOf(drain(cursor))).toMatchObject({ reason: "EXECUTOR_LOST" });
    expect(await read(db, "SELECT 1")).toEqual([[1n]]);
  });

  it("interrupts a statement that takes too much memory", async () => {
    await start({ executorMemoryBytesMax: 160 << 20, databaseBytesMax: 1 << 30 });
    const [db] = (await databases(1)) as [ExecutorDatabase];
    const greedy =
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT count(*) FROM (SELECT DISTINCT randomblob(1000000) FROM n)";
    expect(await failureOf(db.read(encode(greedy), options()))).toMatchObject({
      reason: "LIMIT_EXCEEDED",
      facts: { what: "memory" },
    });
    expect(await read(db, "SELECT 1")).toEqual([[1n]]);
  });

  it("outlives the signals that a terminal sends to the whole group", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    await read(db, "SELECT 1");
    const pids = await until("all executors have begun", () => {
      const begun = executorPids().filter((pid) => catchesSignals(pid));
      return begun.length === executors.stats().executors && begun;
    });
    for (const pid of pids) for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.kill(pid, signal);
    for (let index = 0; index < 50; index++) await read(db, "SELECT 1");
    expect(executors.stats().restarts).toBe(0);
    expect(executorPids()).toEqual(expect.arrayContaining(pids));
  });

  it("brings databases home when their executor is free again", async () => {
    await start({ executorCountMin: 2, executorCountMax: 2 });
    const all = await databases(8);
    await Promise.all(all.map((db) => execute(db, "CREATE TABLE t (x)")));
    const endless = (all[0] as ExecutorDatabase).execute(encode(ENDLESS), options(within(400)));
    const ended = failureOf(endless);
    await Promise.all(all.slice(1).map((db) => execute(db, "INSERT INTO t VALUES (1)")));
    await ended;
    const since = systemClock.now();
    await until("they have been idle for long", () => {
      executors.tidy();
      return systemClock.now() - since > 1_200;
    });
    await Promise.all(all.map((db) => execute(db, "INSERT INTO t VALUES (1)")));
    expect(await read(all[3] as ExecutorDatabase, "SELECT count(*) FROM t")).toEqual([[2n]]);
  });

  it("counts what it uses, and closes what is idle", async () => {
    await start({ connectionIdleMs: 1 });
    const all = await databases(6);
    await Promise.all(all.map((db) => execute(db, "CREATE TABLE t (x)")));
    executors.tidy();
    await until("the executors have told", () => executors.stats().residentBytes > 0);
    expect(executors.stats().executors).toBeGreaterThanOrEqual(2);
    await until("all are closed", () => {
      executors.tidy();
      return executors.stats().openConnections === 0;
    });
    expect(await read(all[0] as ExecutorDatabase, "SELECT count(*) FROM t")).toEqual([[0n]]);
  });

  it("leaves no descriptor and no listener behind", async () => {
    await start();
    await executors.close(100);
    const before = descriptorCount();
    for (let round = 0; round < 3; round++) {
      await start();
      const [db] = (await databases(1)) as [ExecutorDatabase];
      await read(db, "SELECT 1");
      await executors.close(100);
    }
    expect(descriptorCount()).toBeLessThanOrEqual(before + 1);
  });

  it("says why it cannot start", async () => {
    await start();
    const program = `${folder()}/program.mjs`;
    writeFileSync(program, "process.exit(3)");
    const failing = startExecutors({
      limits,
      clock: systemClock,
      random: Math.random,
      log: (level, message, facts) => log.push({ level, message, facts }),
      programPath: program,
    });
    expect((await failureOf(failing)).message).toContain("exit code 3");
  });

  it("ends with its server, however that ends", async () => {
    await start();
    const script = `${folder()}/server.mts`;
    writeFileSync(
      script,
      `import { startProcesses, newDatabase, encode, options } from ${JSON.stringify(new URL("./support.ts", import.meta.url).href)};
       import { executorPids } from ${JSON.stringify(new URL("./processes.ts", import.meta.url).href)};
       import { systemClock } from ${JSON.stringify(new URL("../../src/clock.ts", import.meta.url).href)};
       const executors = await startProcesses();
       const database = await newDatabase(executors, ${JSON.stringify(folder())});
       void database.execute(encode(${JSON.stringify(UNINTERRUPTIBLE)}), options());
       systemClock.after(300, () => {
         console.log(executorPids().join(" "));
         process.kill(process.pid, "SIGKILL");
       });
       setInterval(() => undefined, 1_000);`,
    );
    const server = spawn(process.execPath, [script], { stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    server.stdout.on("data", (text: Buffer) => {
      output += text.toString();
    });
    await new Promise((resolve) => server.on("close", resolve));
    const pids = output.trim().split(" ").map(Number);
    expect(pids.length).toBeGreaterThanOrEqual(1);
    expect(pids).not.toContain(0);
    await until("they have ended", () => pids.every((pid) => !isAlive(pid)));
  });

  it("runs a statement's rows through unchanged", async () => {
    await start();
    const [db] = (await databases(1)) as [ExecutorDatabase];
    const result = await db.read(encode("SELECT ?, ?, ?", "text", 1.5, Buffer.from([0, 255])), options());
    expect(rows(result)).toEqual([["text", 1.5, Buffer.from([0, 255])]]);
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
