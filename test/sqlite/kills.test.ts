/**
 * Executors are killed at random moments under load. What every caller was told must agree with what the databases hold.
 * PERSISTO_KILLS sets how many kills.
 */
import { afterAll, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { Failure } from "../../src/failure/failure.ts";
import type { ExecutorDatabase } from "../../src/sqlite/executor.ts";
import type { Plain } from "../support/rows.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { descriptorCount, executorPids } from "./processes.ts";
import {
  drain,
  encode,
  encodeBatch,
  execute,
  type LogLine,
  newDatabase,
  newRecord,
  options,
  queryOptions,
  read,
  rows,
  startProcesses,
} from "./support.ts";

const wanted = process.env.PERSISTO_KILLS;
const kills = Number(wanted ?? 150);
/** Without a wish for a number, time is the bound. */
const timeMs = wanted === undefined ? 25_000 : 60_000 + kills * 2_000;
const KILLS_MIN = 10;
/** Writes end here, whatever the number of kills. */
const WRITES_MAX = 200_000;
const FIXED_ROWS = 3_000n;

const folder = temporaryFolders();
const log: LogLine[] = [];

/** What a caller was told about a value that he wrote. */
type Told = "done" | "nothing" | "unknown";

const told = new Map<ExecutorDatabase, Map<bigint, Told>>();
const counts = { done: 0, nothing: 0, unknown: 0, reads: 0, lostReads: 0, queries: 0, lostQueries: 0 };
let lastValue = 0n;
let running = true;

afterAll(() => {
  for (const pid of executorPids()) process.kill(pid, "SIGKILL");
});

const pause = (ms: number) => new Promise<void>((resolve) => systemClock.after(ms, resolve));

/** What a failed call says about its effect; everything that is no news about executors fails the test. */
function meaningOf(error: unknown): Told {
  if (error instanceof Failure) {
    if (error.reason === "OUTCOME_UNKNOWN") return "unknown";
    if (error.reason === "EXECUTOR_LOST" || error.reason === "DATABASE_BUSY") return "nothing";
  }
  throw error;
}

async function write(database: ExecutorDatabase, work: (value: bigint) => Promise<void>): Promise<void> {
  const value = ++lastValue;
  let outcome: Told = "done";
  try {
    await work(value);
  } catch (error) {
    outcome = meaningOf(error);
  }
  counts[outcome]++;
  told.get(database)?.set(value, outcome);
}

async function loop(work: () => Promise<void>): Promise<void> {
  while (running && lastValue < WRITES_MAX) await work();
}

const INSERT = "INSERT INTO t VALUES (?) RETURNING v";
const own = (answered: Plain[][], value: bigint) => expect(answered).toEqual([[value]]);

/** Every kind of caller, on one database. */
function callers(database: ExecutorDatabase): Promise<void>[] {
  return [
    loop(() =>
      write(database, async (value) => own(rows(await database.execute(encode(INSERT, value), options())), value)),
    ),
    loop(() =>
      write(database, async (value) => own(rows(await database.execute(encode(INSERT, value), options())), value)),
    ),
    // With a request id a call is repeated until it is known to be done.
    loop(() =>
      write(database, async (value) => {
        const record = newRecord();
        let wasTold = false;
        for (;;) {
          try {
            const result = await database.execute(encode(INSERT, value), options(), record);
            own(rows(result), value);
            // The commit is counted once it is known, also when a record had to tell.
            expect(result.committed || wasTold).toBe(true);
            return;
          } catch (error) {
            meaningOf(error);
            wasTold = true;
          }
        }
      }),
    ),
    loop(() =>
      write(database, async (value) => {
        const step = { sql: "INSERT INTO pairs VALUES (?)", parameters: [value] };
        await database.batch(encodeBatch(step, { sql: INSERT, parameters: [value] }, step), options());
      }),
    ),
    loop(() =>
      write(database, async (value) => {
        const transaction = await database.begin(true, options());
        await transaction.execute(encode("INSERT INTO pairs VALUES (?)", value), options());
        await transaction.execute(encode(INSERT, value), options());
        await transaction.execute(encode("INSERT INTO pairs VALUES (?)", value), options());
        expect(await transaction.commit(options())).toMatchObject({ committed: true });
      }),
    ),
    loop(async () => {
      try {
        expect(await read(database, "SELECT count(*), sum(i) FROM fixed")).toEqual([
          [FIXED_ROWS, (FIXED_ROWS * (FIXED_ROWS + 1n)) / 2n],
        ]);
        counts.reads++;
      } catch (error) {
        expect(meaningOf(error)).toBe("nothing");
        counts.lostReads++;
      }
    }),
    loop(async () => {
      try {
        const cursor = await database.query(
          encode("SELECT i FROM fixed ORDER BY i"),
          queryOptions({ chunkRowsMax: 100 }),
        );
        const all = (await drain(cursor)).rows;
        expect(all).toHaveLength(Number(FIXED_ROWS));
        expect(all.at(-1)).toEqual([FIXED_ROWS]);
        expect(cursor.summary().rowCount).toBe(FIXED_ROWS);
        counts.queries++;
      } catch (error) {
        expect(meaningOf(error)).toBe("nothing");
        counts.lostQueries++;
      }
    }),
  ];
}

it(`keeps its word through up to ${kills} kills of executors`, { timeout: timeMs + 30_000 }, async () => {
  const descriptorsBefore = descriptorCount();
  const executors = await startProcesses({ log, limits: { executorCountMin: 2, executorCountMax: 3 } });
  const path = folder();
  const databases: ExecutorDatabase[] = [];
  for (let index = 0; index < 4; index++) {
    const database = await newDatabase(executors, path, `db-${index}`);
    await execute(database, "CREATE TABLE t (v INTEGER)");
    await execute(database, "CREATE TABLE pairs (v INTEGER)");
    await execute(database, "CREATE TABLE fixed (i INTEGER)");
    await execute(
      database,
      `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${FIXED_ROWS}) INSERT INTO fixed SELECT i FROM n`,
    );
    databases.push(database);
    told.set(database, new Map());
  }

  const work = Promise.all(databases.flatMap(callers));
  const checkpoints = loop(async () => {
    for (const database of databases) {
      try {
        await database.checkpoint("passive");
      } catch (error) {
        meaningOf(error);
      }
    }
    await pause(100);
  });
  const startedAtMs = systemClock.now();
  let killed = 0;
  while (killed < kills && systemClock.now() - startedAtMs < timeMs) {
    const pids = executorPids();
    const victim = pids[Math.floor(Math.random() * pids.length)];
    if (victim !== undefined) {
      process.kill(victim, "SIGKILL");
      killed++;
    }
    // At any moment of the work, but let there be work.
    const enough = counts.done + Math.floor(Math.random() * 200);
    const latestMs = systemClock.now() + 1_000;
    do await pause(Math.random() * 10);
    while (counts.done < enough && systemClock.now() < latestMs);
  }
  running = false;
  await work;
  await checkpoints;

  for (const database of databases) {
    const found = new Map(
      (await read(database, "SELECT v, count(*) FROM t GROUP BY v")).map(([value, count]) => [value, count]),
    );
    const pairs = new Map(
      (await read(database, "SELECT v, count(*) FROM pairs GROUP BY v")).map(([value, count]) => [value, count]),
    );
    const wrong: string[] = [];
    for (const [value, outcome] of told.get(database) ?? []) {
      const count = found.get(value) ?? 0n;
      const allowed =
        outcome === "done" ? count === 1n : outcome === "nothing" ? count === 0n : count === 0n || count === 1n;
      if (!allowed) wrong.push(`value ${value}: told ${outcome}, found ${count}`);
      const pair = pairs.get(value);
      if (pair !== undefined && (pair !== 2n || count !== 1n)) wrong.push(`value ${value}: half a transaction`);
    }
    expect(wrong).toEqual([]);
    expect(await read(database, "PRAGMA integrity_check")).toEqual([["ok"]]);
  }
  expect(killed).toBeGreaterThanOrEqual(wanted === undefined ? KILLS_MIN : kills);
  expect(counts.done).toBeGreaterThan(killed);
  expect(executors.stats()).toMatchObject({ runningCalls: 0, waitingCalls: 0 });
  expect(log.filter(({ level }) => level === "error")).toEqual([]);
  await executors.close(5_000);
  expect(executorPids()).toEqual([]);
  expect(descriptorCount()).toBeLessThanOrEqual(descriptorsBefore + 2);
  if (wanted !== undefined) console.log({ killed, ...counts });
});
