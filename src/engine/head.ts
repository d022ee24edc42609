/** A head: the file that a database's calls run in, with the executors and the WAL that belong to it. */
import type { ExecutorDatabase, Executors } from "../sqlite/executor.ts";
import type { Flusher, WalFile } from "./flusher.ts";
import type { LogHead } from "./log/batch.ts";
import { redoKey } from "./log/redo.ts";

/** Where a head may be. */
export type HeadStage = "memory" | "local";

export interface HeadFile {
  readonly id: string;
  readonly lineage: string;
  readonly stage: HeadStage;
  /** Absolute path of the database file. */
  readonly path: string;
  readonly foreignKeys: boolean;
}

/**
 * A database has one head at a time and may get another one while calls are running: those `enter` the head that they were
 * sent to and end there. Writes are drained before a switch, so that only reads outlive it.
 */
export class Head implements LogHead {
  readonly stage: HeadStage;
  readonly path: string;
  readonly executor: ExecutorDatabase;
  readonly walFile: WalFile;
  #uses = 0;
  #onUnused: (() => void) | undefined;

  constructor(file: HeadFile, executors: Executors, flusher: Flusher) {
    const { id, lineage, stage, path, foreignKeys } = file;
    this.stage = stage;
    this.path = path;
    this.executor = executors.open({ id, path, foreignKeys });
    this.walFile = flusher.wal(path, stage === "local" ? redoKey(id, lineage) : undefined);
  }

  get isVolatile(): boolean {
    return this.stage === "memory";
  }

  flush(): Promise<void> {
    return this.walFile.flush();
  }

  enter(): void {
    this.#uses++;
  }

  leave(): void {
    if (--this.#uses === 0) this.#onUnused?.();
  }

  /** Resolves when no call is in it. To be asked once, when it is not the database's head any more: nobody enters then. */
  async whenUnused(): Promise<void> {
    if (this.#uses === 0) return;
    const unused = Promise.withResolvers<void>();
    this.#onUnused = unused.resolve;
    await unused.promise;
  }

  /** Lets go of everything; with `force` what still runs is ended. */
  async close(force: boolean): Promise<void> {
    await this.executor.close(force);
    await this.walFile.release();
  }
}
