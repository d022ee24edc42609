/**
 * Checkpoints keep WALs bounded. They are triggered by frames, as writes report them; there is no timer per database.
 *
 * A passive checkpoint copies frames back and lets the next write start the WAL over, unless writes or reads went on
 * meanwhile. A WAL that grows all the same gets more passes, and at last a moment without writes. A WAL that is in use is
 * never truncated: one whose size stays is flushed twice as fast as one that grows.
 */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { EngineLimits, EngineLog } from "./options.ts";

type CheckpointLimits = Pick<
  EngineLimits,
  | "checkpointFrames"
  | "checkpointPauseFrames"
  | "checkpointPauseMsMax"
  | "checkpointConcurrencyMax"
  | "checkpointIdleMs"
>;

/** A database as checkpoints see it. */
export interface Checkpointed {
  readonly id: string;
  /** State of its WAL, kept by `Checkpoints`. */
  readonly wal: WalState;
  readonly lastWriteMs: number;
  /** False when calls are running. */
  readonly isIdle: boolean;
  /** Runs a checkpoint; the database cannot be closed meanwhile. Undefined when it takes none any more. */
  checkpoint(mode: "passive" | "truncate"): Promise<{ readonly frames: number; readonly done: number }> | undefined;
  /** Holds new writes back and waits for the running ones; false when they did not end within `msMax`. */
  pauseWrites(msMax: number): Promise<boolean>;
  resumeWrites(): void;
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
  /** Frames at which the next checkpoint is due. */
  dueFrames: number;
  isQueued = false;

  constructor(dueFrames: number) {
    this.dueFrames = dueFrames;
  }
}

/** Passes in a row that follow the writer's new frames before it is left alone or paused. */
const passCountMax = 4;

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
    if (frames < wal.reportedFrames) wal.dueFrames = this.#limits.checkpointFrames;
    wal.reportedFrames = frames;
    wal.frames = frames;
    if (frames > wal.fileFrames) wal.fileFrames = frames;
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

  async #run(database: Checkpointed): Promise<void> {
    const { wal } = database;
    const idleMs = this.#clock.now() - database.lastWriteMs;
    try {
      if (database.isIdle && idleMs >= this.#limits.checkpointIdleMs) await this.#empty(database);
      else await this.#bound(database);
    } catch (error) {
      // Tried again when the WAL has grown some more. A flush that failed inside SQLite is never tried again.
      wal.dueFrames = wal.reportedFrames + this.#step;
      if (error instanceof Failure && error.facts["sqliteCode"]?.startsWith("SQLITE_IOERR")) {
        database.stop("a checkpoint failed", error);
      } else {
        this.#log("warn", "a checkpoint failed; it is tried again later", { database: database.id, error });
      }
    }
  }

  async #bound(database: Checkpointed): Promise<void> {
    const { wal } = database;
    for (let pass = 0; pass < passCountMax && wal.reportedFrames < this.#limits.checkpointPauseFrames; pass++) {
      if ((await this.#pass(database, "passive")) === 0) break;
    }
    // When the next write starts the WAL over, its report puts this back.
    wal.dueFrames = wal.reportedFrames + this.#step;
    // All may be copied, and a write have come in between: then the WAL grows on, however often it is copied.
    if (wal.reportedFrames < this.#limits.checkpointPauseFrames) return;
    const paused = await database.pauseWrites(this.#limits.checkpointPauseMsMax);
    try {
      // Also when somebody still writes: then it copies what there is.
      const left = await this.#pass(database, "passive");
      // Everything is copied and still it may not start over: a read is in the way, and pausing often does not help.
      if (paused && left === 0) wal.dueFrames = wal.reportedFrames + this.#limits.checkpointPauseFrames;
    } finally {
      database.resumeWrites();
    }
  }

  async #empty(database: Checkpointed): Promise<void> {
    const { wal } = database;
    if ((await this.#pass(database, "truncate")) > 0) return;
    wal.fileFrames = 0;
    wal.reportedFrames = 0;
    wal.dueFrames = this.#limits.checkpointFrames;
    this.#large.delete(database);
  }

  /** Frames that are not copied back after it. */
  async #pass(database: Checkpointed, mode: "passive" | "truncate"): Promise<number> {
    const running = database.checkpoint(mode);
    if (running === undefined) return 0;
    const { frames, done } = await running;
    this.#done++;
    if (done < frames) return frames - done;
    database.wal.frames = 0;
    return 0;
  }

  get #step(): number {
    return Math.max(1, Math.floor(this.#limits.checkpointFrames / 2));
  }
}
