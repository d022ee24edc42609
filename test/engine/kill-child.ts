/**
 * A server's engine under load, to be killed: node kill-child.ts FOLDER SEED. Each line of its output is something that was
 * acknowledged: `create ID LINEAGE`, `delete ID`, `label ID VALUE`, `insert ID NUMBER SEQUENCE`; `try delete ID` and
 * `try label ID VALUE` come before. Bounded by a number of operations.
 */
import { randomBytes } from "node:crypto";
import { writeSync } from "node:fs";
import { systemClock } from "../../src/clock.ts";
import { openEngine } from "../../src/engine/local-engine.ts";
import { Failure } from "../../src/failure/failure.ts";
import type { CallOptions } from "../../src/sqlite/executor.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { executorLimits, statement, testLimits } from "./fixtures.ts";

const [, , directoryPath = "", seedText = "1"] = process.argv;
const workerCount = 6;
const operationCountMax = 600;
const idCount = 5;

let state = Number(seedText) * 2654435761;
/** A number below `bound`, the same ones for the same seed. */
function pick(bound: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * bound);
}

/** At once and whole: what was written before a kill is read. */
function tell(line: string): void {
  writeSync(1, `${line}\n`);
}

const executors = await startExecutors({
  limits: executorLimits,
  clock: systemClock,
  random: Math.random,
  log: () => undefined,
});
const engine = await openEngine({
  directoryPath,
  executors,
  clock: systemClock,
  random: (byteCount) => randomBytes(byteCount),
  log: (level, message, facts) => tell(`log ${level} ${message} ${JSON.stringify(facts)}`),
  limits: { ...testLimits, openDatabaseCountMax: 3, checkpointFrames: 20, checkpointPauseFrames: 60 },
});
tell("ready");

const options = (): CallOptions => ({
  columns: false,
  scope: 0,
  resultBytesMax: 1024 * 1024,
  deadlineAtMs: systemClock.now() + 10_000,
  deadlineSource: "server",
  cancel: undefined,
});
const busy = new Set<string>();
let next = Number(seedText) * 1_000_000;

async function operation(id: string, isMine: boolean): Promise<void> {
  const kind = pick(100);
  if (isMine && kind < 4) {
    tell(`try delete ${id}`);
    await engine.deleteDatabase(id, undefined, false);
    tell(`delete ${id}`);
  } else if (isMine && kind < 10) {
    const value = String(next++);
    tell(`try label ${id} ${value}`);
    await engine.updateDatabase({ id, etag: undefined, labels: { value }, foreignKeys: undefined });
    tell(`label ${id} ${value}`);
  } else {
    const number = next++;
    const sql = `INSERT INTO t VALUES (${number}, randomblob(${pick(2000)}))`;
    const durability = pick(2) === 0 ? "local" : "committed";
    const { position } = await engine.execute(id, statement(sql), durability, options(), undefined);
    tell(`insert ${id} ${number} ${position.sequence}`);
  }
}

async function makeDatabase(id: string): Promise<void> {
  const made = await engine.createDatabase({
    id,
    labels: { value: "new" },
    initialStage: undefined,
    foreignKeys: true,
    allowExisting: false,
    request: undefined,
  });
  tell(`create ${id} ${made.position.lineage}`);
  await makeTable(id);
}

async function makeTable(id: string): Promise<void> {
  const table = "CREATE TABLE IF NOT EXISTS t (number INTEGER PRIMARY KEY, payload)";
  await engine.execute(id, statement(table), "local", options(), undefined);
  tell(`table ${id}`);
}

let operations = 0;
await Promise.all(
  Array.from({ length: workerCount }, async () => {
    while (operations < operationCountMax) {
      operations++;
      const id = `d${pick(idCount)}`;
      // Deletes and labels of one database one after another, so that it is known which was the last.
      const isMine = !busy.has(id);
      if (isMine) busy.add(id);
      try {
        await operation(id, isMine);
      } catch (error) {
        const reason = error instanceof Failure ? error.reason : undefined;
        if (reason === "DATABASE_NOT_FOUND") {
          if (isMine) await makeDatabase(id);
        } else if (reason === "SQL_INVALID") {
          // Made, and killed before it had its table.
          await makeTable(id);
        } else if (reason !== "DATABASE_BUSY") {
          tell(`failed ${String(error)}`);
        }
      } finally {
        if (isMine) busy.delete(id);
      }
    }
  }),
);
tell("done");
await engine.close();
await executors.close(1000);
