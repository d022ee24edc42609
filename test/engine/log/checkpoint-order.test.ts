/**
 * Checkpoints under load while executors are killed: what is in the log, and what is still in the WAL, is the database. The
 * same with checkpoints that are bounded by no pin must lose pages: then the test can see it.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../../src/clock.ts";
import { type Checkpointed, Checkpoints, type WalState } from "../../../src/engine/checkpoints.ts";
import { Flusher } from "../../../src/engine/flusher.ts";
import { Head } from "../../../src/engine/head.ts";
import { CheckpointRun } from "../../../src/engine/log/checkpoint-run.ts";
import { DatabaseLog } from "../../../src/engine/log/database-log.ts";
import { SealSlots } from "../../../src/engine/log/seal-slots.ts";
import { WriteGate } from "../../../src/engine/write-gate.ts";
import { noFailPoints } from "../../../src/fail-points.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import type { CallOptions, ExecutorDatabase, Executors } from "../../../src/sqlite/executor.ts";
import { startExecutors } from "../../../src/sqlite/pool.ts";
import { executorPids } from "../../sqlite/processes.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { executorLimits, statement, testLimits } from "../fixtures.ts";
import { replaced } from "../scene.ts";
import { restoreBytes } from "./subject.ts";

const newFolder = temporaryFolders();
const limits = { ...testLimits, checkpointFrames: 150, checkpointPauseFrames: 400, checkpointPauseMsMax: 500 };

/** Takes the place of a pinned checkpoint: seals, then copies back whatever is committed by then. */
function naive(database: ExecutorDatabase): ExecutorDatabase {
  return replaced(database, {
    checkpointer: () => ({
      pin: async () => undefined,
      checkpoint: () => database.checkpoint("passive"),
      close: async () => undefined,
    }),
  });
}

/** One database with its log and its checkpoints, as the engine puts them together. */
class Rig implements Checkpointed {
  readonly id = "a";
  readonly wal: WalState;
  readonly log: DatabaseLog;
  readonly warnings: string[] = [];
  readonly path: string;
  readonly logPath: string;
  /** Files that were closed, with what they held then. */
  readonly history = new Map<bigint, Buffer>();
  lastWriteMs = 0;
  readonly #head: Head;
  readonly #gate = new WriteGate(systemClock);
  readonly #checkpoints: Checkpoints;
  acknowledged = 0;
  /** Writes that came to an end, whichever. */
  #ended = 0;
  #waits: { readonly count: number; readonly resolve: () => void }[] = [];

  constructor(folder: string, executors: Executors, isNaive: boolean) {
    this.path = join(folder, "db.sqlite");
    this.logPath = join(folder, "log");
    const warn = (level: string, message: string): void => {
      if (level !== "info") this.warnings.push(message);
    };
    const wrapped: Executors = isNaive ? { ...executors, open: (file) => naive(executors.open(file)) } : executors;
    const flusher = new Flusher(nodeFileSystem, systemClock, limits, noFailPoints);
    const file = { id: "a", lineage: "1", stage: "local", path: this.path, foreignKeys: true } as const;
    this.#head = new Head(file, wrapped, flusher);
    this.#checkpoints = new Checkpoints(limits, systemClock, () => undefined);
    this.wal = this.#checkpoints.newWal();
    this.log = new DatabaseLog(
      {
        fileSystem: nodeFileSystem,
        clock: systemClock,
        log: warn,
        failPoints: noFailPoints,
        slots: new SealSlots(nodeFileSystem, limits),
      },
      {
        id: "a",
        folderPath: this.logPath,
        head: this.#head,
        position: 0n,
        baseTxid: 0n,
        durableTxid: 0n,
        isCarried: true,
        onFault: (problem) => this.warnings.push(problem),
      },
    );
  }

  get checkpoints(): number {
    return this.#checkpoints.count;
  }

  get executor(): ExecutorDatabase {
    return this.#head.executor;
  }

  get isIdle(): boolean {
    return false;
  }

  async write(sql: string): Promise<void> {
    while (this.#gate.closed !== undefined) await this.#gate.closed;
    this.#gate.enter();
    this.lastWriteMs = systemClock.now();
    try {
      const result = await this.executor.execute(statement(sql), callOptions());
      this.log.committed(result.walFrames);
      this.#checkpoints.committed(this, result.walFrames);
      this.acknowledged++;
    } catch {
      // Its executor was killed: it may have committed.
      this.log.committed(undefined);
    } finally {
      this.#gate.leave();
      this.#ended++;
      for (const { count, resolve } of this.#waits) if (count <= this.#ended) resolve();
      this.#waits = this.#waits.filter(({ count }) => count > this.#ended);
    }
  }

  /** Resolves when so many writes have ended. */
  ended(count: number): Promise<void> {
    if (this.#ended >= count) return Promise.resolve();
    return new Promise((resolve) => this.#waits.push({ count, resolve }));
  }

  /** Closes a batch and keeps what it held. */
  async close(): Promise<void> {
    const batch = await this.log.close();
    if (batch !== undefined) this.history.set(batch.txid, readFileSync(batch.path));
  }

  beginCheckpoint(): CheckpointRun {
    return new CheckpointRun(this.#head, this.log, noFailPoints, () => undefined);
  }

  pauseWrites(msMax: number): Promise<boolean> {
    return this.#gate.pause(msMax);
  }

  resumeWrites(): void {
    this.#gate.resume();
  }

  endReads(): number {
    return 0;
  }

  stop(problem: string): void {
    this.warnings.push(problem);
  }
}

const callOptions = (): CallOptions => ({
  columns: false,
  scope: 0,
  resultBytesMax: 1024 * 1024,
  deadlineAtMs: systemClock.now() + 20_000,
  deadlineSource: "server",
  cancel: undefined,
});

/** What SQLite makes of the files that are there, copied. */
function headBytes(path: string, folder: string): Buffer {
  const copy = join(folder, "copy");
  rmSync(copy, { recursive: true, force: true });
  mkdirSync(copy);
  copyFileSync(path, join(copy, "db"));
  if (existsSync(`${path}-wal`)) copyFileSync(`${path}-wal`, join(copy, "db-wal"));
  const db = new Database(join(copy, "db"));
  try {
    db.pragma("wal_checkpoint(TRUNCATE)");
    expect(db.pragma("integrity_check", { simple: true })).toBe("ok");
  } finally {
    db.close();
  }
  return readFileSync(join(copy, "db"));
}

const writerCount = 8;
const writeCount = 1600;

interface Outcome {
  /** The log leads to what the head holds. */
  readonly isWhole: boolean;
  readonly warnings: readonly string[];
  readonly acknowledged: number;
  readonly checkpoints: number;
  readonly rows: number;
}

/** Writes at full speed, seals, checkpoints, and kills executors in between. */
async function round(isNaive: boolean, kills: number): Promise<Outcome> {
  const folder = newFolder();
  const executors = await startExecutors({
    limits: { ...executorLimits, executorCountMin: 2, executorCountMax: 3 },
    clock: systemClock,
    random: Math.random,
    log: () => undefined,
  });
  try {
    const rig = new Rig(folder, executors, isNaive);
    await rig.executor.create(4096);
    await rig.log.load();
    await rig.write("CREATE TABLE t (id INTEGER PRIMARY KEY, v)");
    const writers = Array.from({ length: writerCount }, async (_, writer) => {
      for (let count = 0; count < writeCount / writerCount; count++) {
        await rig.write(
          count % 5 === 4
            ? `UPDATE t SET v = randomblob(2000) WHERE id % 97 = ${(writer * 13 + count) % 97}`
            : "INSERT INTO t (v) VALUES (randomblob(abs(random()) % 3000))",
        );
      }
    });
    const closer = (async () => {
      for (let count = 30; count < writeCount; count += 30) {
        await rig.ended(count);
        await rig.close();
      }
    })();
    const killer = (async () => {
      for (let kill = 1; kill <= kills; kill++) {
        await rig.ended(Math.floor((kill * writeCount) / (kills + 1)));
        const pids = executorPids();
        const pid = pids[Math.floor(Math.random() * pids.length)];
        if (pid !== undefined) process.kill(pid, "SIGKILL");
      }
    })();
    await Promise.all([...writers, closer, killer]);
    await rig.close();
    await rig.close();
    const rows = Number(headRows(rig.path, folder));
    const { checkpoints, acknowledged, warnings, history } = rig;
    const files = [...history].sort(([a], [b]) => Number(a - b)).map(([, bytes]) => bytes);
    const restored = await restoreBytes(files).catch(() => Buffer.alloc(0));
    const isWhole = restored.equals(headBytes(rig.path, folder));
    await rig.log.stop();
    return { isWhole, warnings, acknowledged, checkpoints, rows };
  } finally {
    await executors.close(100);
  }
}

function headRows(path: string, folder: string): unknown {
  const bytes = headBytes(path, folder);
  const file = join(folder, "rows");
  writeFileSync(file, bytes);
  const db = new Database(file);
  try {
    return db.prepare("SELECT count(*) FROM t").pluck().get();
  } finally {
    db.close();
  }
}

describe("the order copied back, pinned, sealed", () => {
  it.each([0, 6])("loses nothing under load, with %i kills of executors", { timeout: 60_000 }, async (kills) => {
    const outcome = await round(false, kills);
    expect(outcome).toMatchObject({ isWhole: true, warnings: [] });
    expect(outcome.checkpoints).toBeGreaterThan(3);
    expect(outcome.acknowledged).toBeGreaterThan(100);
  });

  it("is what keeps pages: without the pin they are lost, and that is seen", { timeout: 120_000 }, async () => {
    let lost = 0;
    for (let attempt = 0; attempt < 8 && lost === 0; attempt++) {
      const { isWhole, warnings } = await round(true, 2);
      if (!isWhole || warnings.length > 0) lost++;
    }
    expect(lost).toBe(1);
  });
});
