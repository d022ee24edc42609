/** Transactions through the engine: limits of time, durability, what ends them. */
import { describe, expect, it } from "vitest";
import { ManualClock } from "../support/manual-clock.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { statement } from "./fixtures.ts";
import { openScene, rowsOfResult } from "./scene.ts";
import { failureOf, until } from "./support.ts";

const newFolder = temporaryFolders();

async function openTable() {
  const clock = new ManualClock();
  const scene = await openScene({ directoryPath: newFolder(), clock });
  await scene.create("a");
  await scene.run("a", "CREATE TABLE t (x)");
  const begin = (readWrite = true, idleTimeoutMs = 0) =>
    scene.engine.begin("a", readWrite, idleTimeoutMs, undefined, scene.options({ ms: 60_000 }));
  const options = () => scene.options({ ms: 60_000 });
  const insert = statement("INSERT INTO t VALUES (1)");
  const count = async () => (await scene.rows("a", "SELECT count(*) FROM t"))[0]?.[0];
  return { ...scene, clock, begin, options, insert, count };
}

describe("transactions", () => {
  it("keep their changes at commit, whose position covers them", async () => {
    const { engine, begin, options, insert, count, close, clock, timerCount } = await openTable();
    const transaction = await begin();
    expect(transaction.snapshot).toEqual(engine.position("a"));
    expect(transaction.expireTimeMs).toBe(clock.wallMs() + 30_000);
    await transaction.execute(insert, options());
    await transaction.savepoint("s", options());
    await transaction.execute(insert, options());
    await transaction.rollbackTo("s", options());
    expect(await count()).toBe(0);
    expect(engine.stats().openTransactions).toBe(1);
    const flushes = engine.stats().flushes;
    const { position } = await transaction.commit("local", options());
    expect(position.sequence).toBeGreaterThanOrEqual(transaction.snapshot.sequence);
    expect(engine.stats()).toMatchObject({ openTransactions: 0, flushes: flushes + 1 });
    expect(await count()).toBe(1);
    for (const late of [transaction.execute(insert, options()), transaction.commit("local", options())]) {
      await failureOf(late, "TRANSACTION_NOT_OPEN");
    }
    expect((await transaction.rollback()).position).toEqual(position);
    expect(timerCount()).toBe(1);
    await close();
  });

  it("are rolled back on demand, and then hold up nobody", async () => {
    const { begin, options, insert, count, run, close } = await openTable();
    const transaction = await begin();
    await transaction.execute(insert, options());
    const waiting = run("a", "INSERT INTO t VALUES (2)");
    await transaction.rollback();
    await waiting;
    expect(await count()).toBe(1);
    expect(transaction.isOpen).toBe(false);
    await close();
  });

  it("without changes leave the position where it is", async () => {
    const { engine, begin, options, close } = await openTable();
    const before = engine.position("a");
    const transaction = await begin(false);
    expect(rowsOfResult((await transaction.execute(statement("SELECT count(*) FROM t"), options())).body)).toEqual([
      [0],
    ]);
    expect((await transaction.commit("committed", options())).position).toEqual(before);
    await close();
  });

  it("refuse REMOTE and go on", async () => {
    const { begin, options, insert, count, close } = await openTable();
    const transaction = await begin();
    await transaction.execute(insert, options());
    await failureOf(transaction.commit("remote", options()), "STAGE_NOT_CONFIGURED");
    await transaction.commit("committed", options());
    expect(await count()).toBe(1);
    await close();
  });

  it("are rolled back when they are idle for too long; commands start the time again", async () => {
    const { clock, begin, options, insert, count, close } = await openTable();
    const transaction = await begin();
    const expired: unknown[] = [];
    transaction.onExpired((failure) => expired.push(failure));
    for (let step = 0; step < 3; step++) {
      clock.advance(4000);
      await transaction.execute(insert, options());
    }
    clock.advance(4999);
    expect(transaction.isOpen).toBe(true);
    clock.advance(1);
    await until(() => expired.length === 1);
    expect(expired).toMatchObject([
      { reason: "TRANSACTION_EXPIRED", facts: { limit: "idle_timeout", limitMs: "5000" } },
    ]);
    expect(transaction.isOpen).toBe(false);
    await failureOf(transaction.execute(insert, options()), "TRANSACTION_EXPIRED");
    await failureOf(transaction.commit("local", options()), "TRANSACTION_EXPIRED");
    await failureOf(transaction.rollback(), "TRANSACTION_EXPIRED");
    expect(await count()).toBe(0);
    // The write lock is free again.
    await (await begin()).rollback();
    await close();
  });

  it("may ask for a shorter idle time, not for a longer one", async () => {
    const { clock, begin, close, engine } = await openTable();
    const short = await begin(false, 100);
    const long = await begin(false, 60_000);
    clock.advance(100);
    await until(() => !short.isOpen);
    expect(long.isOpen).toBe(true);
    clock.advance(4900);
    await until(() => engine.stats().openTransactions === 0);
    await close();
  });

  it("are rolled back when they are open for too long, however busy", async () => {
    const { clock, begin, options, insert, count, close } = await openTable();
    const transaction = await begin();
    const expired: unknown[] = [];
    transaction.onExpired((failure) => expired.push(failure));
    for (let step = 0; step < 9; step++) {
      clock.advance(3300);
      await transaction.execute(insert, options());
    }
    clock.advance(300);
    await until(() => expired.length === 1);
    expect(expired).toMatchObject([
      { reason: "TRANSACTION_EXPIRED", facts: { limit: "total_timeout", limitMs: "30000" } },
    ]);
    expect(await count()).toBe(0);
    await close();
  });

  it("end with the statement that would outlive them", async () => {
    const scene = await openScene({ directoryPath: newFolder(), limits: { transactionTotalMsMax: 100 } });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    const transaction = await scene.engine.begin("a", true, 0, undefined, scene.options());
    await transaction.execute(statement("INSERT INTO t VALUES (1)"), scene.options());
    const endless = statement("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c");
    const short = transaction.execute(endless, scene.options({ ms: 10 }));
    expect((await failureOf(short, "STATEMENT_TIMEOUT")).facts["limitMs"]).toBeDefined();
    expect(transaction.isOpen).toBe(true);
    const failure = await failureOf(transaction.execute(endless, scene.options()), "TRANSACTION_EXPIRED");
    expect(failure.facts).toEqual({ limit: "total_timeout", limitMs: "100" });
    await until(() => scene.engine.stats().openTransactions === 0);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    await scene.close();
  });

  it("tell of their end also those who ask later", async () => {
    const { clock, begin, close, engine } = await openTable();
    const transaction = await begin();
    clock.advance(5000);
    await until(() => engine.stats().openTransactions === 0);
    const expired: unknown[] = [];
    transaction.onExpired((failure) => expired.push(failure));
    expect(expired).toHaveLength(1);
    await close();
  });

  it("wait for each other's write lock, in order", async () => {
    const { begin, options, insert, count, close } = await openTable();
    const first = await begin();
    const order: number[] = [];
    const others = [1, 2, 3].map(async (number) => {
      const transaction = await begin();
      order.push(number);
      await transaction.execute(insert, options());
      await transaction.commit("local", options());
    });
    await first.execute(insert, options());
    expect(order).toEqual([]);
    await first.commit("committed", options());
    await Promise.all(others);
    expect(order).toEqual([1, 2, 3]);
    expect(await count()).toBe(4);
    await close();
  });
});
