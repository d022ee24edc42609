/**
 * Checkpoints of one database in the order in which nothing is lost: copied back ≤ pinned ≤ sealed, at every moment. Once
 * every frame is copied back and no read uses the WAL, the next write starts it over, and what is in no file of the log by
 * then is gone.
 */
import type { FailPoints } from "../../fail-points.ts";
import type { CheckpointCounts, Checkpointer } from "../../sqlite/executor.ts";
import type { Head } from "../head.ts";
import type { DatabaseLog } from "./database-log.ts";

export class CheckpointRun {
  readonly #head: Head;
  readonly #log: DatabaseLog;
  readonly #failPoints: FailPoints;
  readonly #onEnd: () => void;
  #checkpointer: Checkpointer | undefined;

  /** The head is held until `end`. */
  constructor(head: Head, log: DatabaseLog, failPoints: FailPoints, onEnd: () => void) {
    this.#head = head;
    this.#log = log;
    this.#failPoints = failPoints;
    this.#onEnd = onEnd;
  }

  /** Copies back what is committed by now. Undefined when the file is being read, and nothing may be copied into it. */
  async pass(): Promise<CheckpointCounts | undefined> {
    const { executor, walFile } = this.#head;
    const log = this.#log;
    await walFile.beforeCopy();
    if (!log.mustSeal) {
      await log.skip();
      return log.copy(() => executor.checkpoint("passive"));
    }
    this.#checkpointer ??= executor.checkpointer();
    await this.#checkpointer.pin();
    this.#failPoints.reach("checkpoint.pinned");
    await log.seal();
    this.#failPoints.reach("checkpoint.sealed");
    const checkpointer = this.#checkpointer;
    const counts = await log.copy(() => checkpointer.checkpoint());
    this.#failPoints.reach("checkpoint.copied");
    return counts;
  }

  /** Empties the WAL. Writes are paused, and a pass has just copied everything back. */
  async truncate(): Promise<CheckpointCounts | undefined> {
    const { executor, walFile } = this.#head;
    await this.#unpin();
    await walFile.forget();
    return this.#log.copy(() => executor.checkpoint("truncate"));
  }

  async end(): Promise<void> {
    await this.#unpin();
    this.#failPoints.reach("checkpoint.end");
    this.#onEnd();
  }

  async #unpin(): Promise<void> {
    const checkpointer = this.#checkpointer;
    this.#checkpointer = undefined;
    await checkpointer?.close();
  }
}
