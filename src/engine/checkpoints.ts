/**
 * Checkpoints keep WALs bounded. They are triggered by frames, as writes report them; there is no timer per database.
 *
 * A pass copies frames back and lets the next write start the WAL over, unless writes or reads went on meanwhile. A WAL that
 * grows all the same gets more passes, and at last a moment without writes, in which only the tail of the last pass is left to
 * copy. A read that keeps it from starting over all the same is ended when the WAL has grown too far. A WAL that is in use
 * is never truncated: one whose size stays is flushed twice as fast as one that grows.
 */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { CheckpointRun } from "./log/checkpoint-run.ts";
import type { EngineLimits, EngineLog } from "./options.ts";

type CheckpointLimits = Pick<
  EngineLimits,
  | "checkpointFrames"
  | "checkpointPauseFrames"
  | "checkpointPauseMsMax"
  | "checkpointConcurrencyMax"
  | "checkpointIdleMs"
  | "readFramesMax"
>;

/** A database as checkpoints see it. */
export interface Checkpointed {
  readonly id: string;
  /** State of its WAL, kept by `Checkpoints`. */
  readonly wal: WalState;
  readonly lastWriteMs: number;
  /** False when calls are running. */
  readonly isIdle: boolean;
  /** The database cannot be closed until the run ends. Undefined when it takes no checkpoints any more. */
  beginCheckpoint(): CheckpointRun | undefined;
  /** Holds new writes back and waits for the running ones; false when they did not end within `msMax`. */
  pauseWrites(msMax: number): Promise<boolean>;
  resumeWrites(): void;
  /** Ends reads whose snapshot is older than so many frames; how many there were. */
  endReads(frames: number): number;
  /** Stops the database: a flush of its files failed inside SQLite. */
  stop(problem: string, cause: unknown): void;
}

/** What is known of a WAL. */
export class WalState {
  /** Frames in it, as far as they matter: 0 when all are copied back. */
  frames = 0;
  /** Frames that the file has room for: how large it is on disk. */
  fileFrames = 0;
  /** Frames after the last commit. */
  reportedFrames = 0;
  /** Frames written since it is known, over all its lives. */
  totalFrames = 0;
  /** Frames at which the next checkpoint is due. */
  dueFrames: number;
  isQueued = false;
  readonly #firstDueFrames: number;

  constructor(dueFrames: number) {
    this.dueFrames = dueFrames;
    this.#firstDueFrames = dueFrames;
  }

  /** After a commit; `frames` are in it then. */
  report(frames: number): void {
    const isRestarted = frames < this.reportedFrames;
    this.totalFrames += isRestarted ? frames : frames - this.reportedFrames;
    if (isRestarted) this.dueFrames = this.#firstDueFrames;
    this.reportedFrames = frames;
    this.frames = frames;
    if (frames > this.fileFrames) this.fileFrames = frames;
  }

  /** The file is empty, or another one. */
  reset(): void {
    this.frames = 0;
    this.fileFrames = 0;
    this.reportedFrames = 0;
    this.dueFrames = this.#firstDueFrames;
  }
}

/** Passes in a row that follow the writer's new frames before it is left alone or paused. */
const passCountMax = 8;

/** A tail that is sealed and copied so fast that writes may wait for it. */
const tailFrames = 128;

/** A pass after which this part of the tail before is left gains nothing on the writer. */
const tailShrinkMax = 0.8;

export class Checkpoints {
  readonly #limits: CheckpointLimits;
  readonly #clock: Clock;
  readonly #log: EngineLog;
  readonly #queue: Checkpointed[] = [];
  /** Those whose WAL is large enough to be emptied when they become idle. */
  readonly #large = new Set<Checkpointed>();
  #running = 0;
  #done = 0;

  constructor(limits: CheckpointLimits, clock: Clock, log: EngineLog) {
    this.#limits = limits;
    this.#clock = clock;
    this.#log = log;
  }

  /** Checkpoints run so far. */
  get count(): number {
    return this.#done;
  }

  newWal(): WalState {
    return new WalState(this.#limits.checkpointFrames);
  }

  /** To be called after every commit, with the frames that are then in the WAL. */
  committed(database: Checkpointed, frames: number): void {
    const { wal } = database;
    wal.report(frames);
    if (frames >= wal.dueFrames) this.request(database);
  }

  /** Queues a checkpoint, unless one is queued or running. */
  request(database: Checkpointed): void {
    this.#large.add(database);
    if (database.wal.isQueued) return;
    database.wal.isQueued = true;
    this.#queue.push(database);
    this.#next();
  }

  /** To be called about once a second: empties large WALs of databases that have become idle. */
  tidy(): void {
    const before = this.#clock.now() - this.#limits.checkpointIdleMs;
    for (const database of this.#large) {
      if (database.isIdle && database.lastWriteMs <= before) this.request(database);
    }
  }

  /** Forgets a database that is closed. */
  forget(database: Checkpointed): void {
    this.#large.delete(database);
  }

  #next(): void {
    while (this.#running < this.#limits.checkpointConcurrencyMax) {
      const database = this.#queue.shift();
      if (database === undefined) return;
      this.#running++;
      void this.#run(database).finally(() => {
        this.#running--;
        database.wal.isQueued = false;
        this.#next();
      });
    }
  }

  /** Copies everything back and empties the WAL, if nobody writes. For the end of a handle. */
  async settle(database: Checkpointed): Promise<void> {
    const run = database.beginCheckpoint();
    if (run === undefined) return;
    try {
      await this.#empty(database, run);
    } finally {
      await run.end();
    }
  }

  async #run(database: Checkpointed): Promise<void> {
    const { wal } = database;
    const idleMs = this.#clock.now() - database.lastWriteMs;
    const isIdle = database.isIdle && idleMs >= this.#limits.checkpointIdleMs;
    const run = database.beginCheckpoint();
    if (run === undefined) return;
    try {
      if (isIdle) await this.#empty(database, run);
      else await this.#bound(database, run);
    } catch (error) {
      // Tried again when the WAL has grown some more. A flush that failed inside SQLite is never tried again.
      wal.dueFrames = wal.reportedFrames + this.#step;
      if (error instanceof Failure && error.facts["sqliteCode"]?.startsWith("SQLITE_IOERR")) {
        database.stop("a checkpoint failed", error);
      } else {
        this.#log("warn", "a checkpoint failed; it is tried again later", { database: database.id, error });
      }
    } finally {
      await run.end();
    }
  }

  async #bound(database: Checkpointed, run: CheckpointRun): Promise<void> {
    const { checkpointPauseFrames, checkpointPauseMsMax, readFramesMax } = this.#limits;
    const { wal } = database;
    let left = Number.POSITIVE_INFINITY;
    for (let pass = 0; pass < passCountMax; pass++) {
      const before = left;
      left = await this.#pass(database, run);
      if (left <= tailFrames || left >= tailShrinkMax * before) break;
    }
    // When the next write starts the WAL over, its report puts this back.
    wal.dueFrames = wal.reportedFrames + this.#step;
    // All may be copied, and a write have come in between: then the WAL grows on, however often it is copied. While the file
    // is being read nothing helps.
    if (wal.reportedFrames < checkpointPauseFrames || left === Number.POSITIVE_INFINITY) return;
    const paused = await database.pauseWrites(checkpointPauseMsMax);
    try {
      // Also when somebody still writes: then it copies what there is.
      left = await this.#pass(database, run);
      // Everything is copied and still it may not start over: a read is in the way, and pausing often does not help.
      if (paused && left === 0) wal.dueFrames = wal.reportedFrames + checkpointPauseFrames;
    } finally {
      database.resumeWrites();
    }
    if (wal.reportedFrames >= readFramesMax) this.#endReads(database);
  }

  /** Pauses have not let the WAL start over: reads that are as old as half of it are in the way. */
  #endReads(database: Checkpointed): void {
    const { reportedFrames } = database.wal;
    const count = database.endReads(Math.floor(this.#limits.readFramesMax / 2));
    if (count === 0) return;
    this.#log("warn", "reads that kept a log from being emptied were ended", {
      database: database.id,
      reads: count,
      frames: reportedFrames,
    });
    // They are gone with the next look.
    database.wal.dueFrames = reportedFrames + this.#step;
  }

  async #empty(database: Checkpointed, run: CheckpointRun): Promise<void> {
    // Whoever writes again just now is to wait for a moment only.
    if ((await this.#pass(database, run)) === Number.POSITIVE_INFINITY) return;
    const paused = await database.pauseWrites(this.#limits.checkpointPauseMsMax);
    try {
      if (!paused || (await this.#pass(database, run)) > 0) return;
      const counts = await run.truncate();
      if (counts === undefined || counts.frames > 0) return;
      database.wal.reset();
      this.#large.delete(database);
    } finally {
      database.resumeWrites();
    }
  }

  /** Frames that are not copied back after it. */
  async #pass(database: Checkpointed, run: CheckpointRun): Promise<number> {
    const counts = await run.pass();
    if (counts === undefined) return Number.POSITIVE_INFINITY;
    this.#done++;
    const { frames, done } = counts;
    if (done < frames) return frames - done;
    database.wal.frames = 0;
    return 0;
  }

  get #step(): number {
    return Math.max(1, Math.floor(this.#limits.checkpointFrames / 2));
  }
}
