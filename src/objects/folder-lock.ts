/** A lock on a folder that processes share and that the kernel takes back from one that dies. */
import SQLite from "better-sqlite3";
import type { Clock } from "../clock.ts";
import { pause } from "./bounded.ts";

/** It is held for microseconds; whoever finds it taken looks again so soon. */
const RETRY_MS = 2;

/**
 * SQLite's lock on a database that stays empty: it works between processes, between containers on one volume, and between
 * two stores of one process, and it leaves nothing behind to judge.
 */
export class FolderLock {
  readonly #database: SQLite.Database;
  readonly #clock: Clock;

  constructor(path: string, clock: Clock) {
    this.#clock = clock;
    this.#database = new SQLite(path, { timeout: 0 });
  }

  /** Runs `work` while nobody else holds the lock; it must not take long. */
  async hold<T>(signal: AbortSignal, work: () => T): Promise<T> {
    while (!this.#begin()) await pause(this.#clock, RETRY_MS, signal);
    try {
      return work();
    } finally {
      this.#database.exec("ROLLBACK");
    }
  }

  close(): void {
    this.#database.close();
  }

  #begin(): boolean {
    try {
      this.#database.exec("BEGIN IMMEDIATE");
      return true;
    } catch (error) {
      if (error instanceof SQLite.SqliteError && error.code.startsWith("SQLITE_BUSY")) return false;
      throw error;
    }
  }
}
