/** What is known of a database after an executor's death, and what goes on. */
import { afterEach, describe, expect, it } from "vitest";
import { Failure } from "../../src/failure/failure.ts";
import { inDoubt } from "../../src/sqlite/call-failures.ts";
import { CallCancelled, type ExecutorDatabase, type Executors } from "../../src/sqlite/executor.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { until } from "../support/until.ts";
import { cpuTicks, executorPids } from "./processes.ts";
import { ENDLESS, encode, execute, failureOf, newDatabase, options, read, startProcesses } from "./support.ts";

const ENDLESS_WRITE = `INSERT INTO t ${ENDLESS}`;

describe("after the death of an executor", () => {
  const folder = temporaryFolders();
  let executors: Executors;

  const database = async (): Promise<ExecutorDatabase> => {
    executors = await startProcesses({ limits: { executorCountMin: 1, executorCountMax: 1 } });
    const made = await newDatabase(executors, folder());
    await execute(made, "CREATE TABLE t (x)");
    return made;
  };

  const killWhileBusy = async (): Promise<void> => {
    const [pid] = executorPids() as [number];
    const before = cpuTicks(pid);
    await until("it runs", () => cpuTicks(pid) > before + 5);
    process.kill(pid, "SIGKILL");
  };

  afterEach(() => executors.close(100));

  it("a transaction that waited behind a write in doubt begins, and others behind it", async () => {
    const db = await database();
    const running = failureOf(db.execute(encode(ENDLESS_WRITE), options()));
    const beginning = db.begin(true, options());
    await killWhileBusy();
    expect(await running).toMatchObject({ reason: "EXECUTOR_LOST" });
    const transaction = await beginning;
    const behind = db.execute(encode("INSERT INTO t VALUES (2)"), options());
    await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
    await transaction.commit(options());
    await behind;
    expect(await read(db, "SELECT x FROM t")).toEqual([[1n], [2n]]);
  });

  it("the WAL is known although one connection started over what another had written", async () => {
    const db = await database();
    const transaction = await db.begin(true, options());
    await transaction.execute(encode("INSERT INTO t VALUES (1)"), options());
    await transaction.commit(options());
    const { frames, done } = await db.checkpoint("passive");
    expect(done).toBe(frames);
    // More frames than the transaction left: their number does not tell that the WAL was started over.
    await execute(db, "INSERT INTO t VALUES (randomblob(100000))");
    const running = failureOf(db.execute(encode(ENDLESS_WRITE), options()));
    await killWhileBusy();
    expect(await running).toMatchObject({ reason: "EXECUTOR_LOST" });
    expect(await read(db, "SELECT count(*) FROM t")).toEqual([[2n]]);
  });
});

describe("a call that may have been committed before", () => {
  it("is unknown when it fails before its record was looked for, else what the failure says", () => {
    const early = [
      new CallCancelled(),
      new Failure("STATEMENT_TIMEOUT"),
      new Failure("DATABASE_BUSY"),
      new Failure("EXECUTOR_LOST"),
    ];
    for (const error of early) {
      expect(inDoubt(error, "SIGKILL")).toMatchObject({ reason: "OUTCOME_UNKNOWN", facts: { signal: "SIGKILL" } });
    }
    const late = new Failure("CONSTRAINT_VIOLATED");
    expect(inDoubt(late, "SIGKILL")).toBe(late);
  });
});
