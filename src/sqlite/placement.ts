/** Which executor runs a call: the database's home, unless that is held by somebody else's long work. */
import type { Call } from "./call.ts";
import type { ExecutorSet } from "./executor-set.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import { PoolTransaction } from "./pool-transaction.ts";
import { OP_CHECKPOINT, OP_INSPECT, OP_PIN } from "./protocol.ts";

/** A database that was moved away goes back to its own executor after this long without calls. */
const RETURN_AFTER_MS = 1_000;

export class Placement {
  readonly #executors: ExecutorSet;
  /** Databases away from where their name puts them. */
  readonly #displaced = new Set<PoolDatabase>();

  constructor(executors: ExecutorSet) {
    this.#executors = executors;
  }

  /** For a call that is not pinned; undefined when there is no executor for it yet. */
  place(call: Call): Pipeline | undefined {
    const { database, op } = call.input;
    if (op === OP_CHECKPOINT || op === OP_PIN) return this.#placeCheckpoint(database);
    const home = this.#homeOf(database);
    if (home?.takesCalls && !isHeld(home, database)) return home;
    const movesHome = call.takesLock || op === OP_INSPECT;
    // Its writes are there, and the lock with them.
    if (movesHome && home !== undefined && holdsHome(database, home)) return home;
    const free = this.#executors.best((pipeline) => isHeld(pipeline, database)) ?? this.#executors.grow();
    // Soon there is one that nobody holds; whoever holds the others cannot go away.
    if (free === undefined && this.#executors.isGrowing) return undefined;
    const other = free ?? (home?.takesCalls ? home : this.#executors.best(() => false));
    if (other === undefined) return home;
    if (movesHome && other !== home) this.#moveHome(database, other);
    return other;
  }

  /** Other names belong to other executors now. */
  reconsider(databases: Iterable<PoolDatabase>): void {
    for (const database of databases) if (database.home !== undefined) this.#moveHome(database, database.home);
  }

  /** Sends idle databases back to where their names put them. */
  bringHome(nowMs: number): void {
    for (const database of this.#displaced) {
      if (database.callCount > 0 || nowMs - database.lastUsedMs < RETURN_AFTER_MS) continue;
      const preferred = this.#executors.preferred(database.file.id);
      if (preferred === undefined || !preferred.takesCalls || preferred.avoided) continue;
      database.home?.release(database);
      this.forget(database);
    }
  }

  /** The database has no home any more. */
  forget(database: PoolDatabase): void {
    database.home = undefined;
    this.#displaced.delete(database);
  }

  /** The home, chosen by name when there is none. */
  #homeOf(database: PoolDatabase): Pipeline | undefined {
    if (database.home === undefined) {
      const preferred = this.#executors.preferred(database.file.id);
      const home = preferred?.state === "ready" ? preferred : this.#executors.best(() => false);
      if (home !== undefined) this.#moveHome(database, home);
    }
    return database.home;
  }

  #moveHome(database: PoolDatabase, home: Pipeline): void {
    database.home = home;
    if (home === this.#executors.preferred(database.file.id)) this.#displaced.delete(database);
    else this.#displaced.add(database);
  }

  /** A checkpoint flushes and writes for long: best where nobody else is. */
  #placeCheckpoint(database: PoolDatabase): Pipeline | undefined {
    const { spare } = this.#executors;
    if (spare?.takesCalls) return spare;
    return this.#executors.best((pipeline) => pipeline === database.home) ?? this.#executors.best(() => false);
  }
}

/** True when a transaction or query of others has been open there for long. */
function isHeld(pipeline: Pipeline, database: PoolDatabase): boolean {
  if (!pipeline.avoided) return false;
  for (const transaction of pipeline.transactions.values()) if (transaction.database === database) return false;
  for (const query of pipeline.queries.values()) if (query.input.database === database) return false;
  return true;
}

/** True while the database has something in its home that cannot move. */
function holdsHome(database: PoolDatabase, home: Pipeline): boolean {
  const { lockHolder, writesSent } = database;
  return writesSent > 0 || (lockHolder instanceof PoolTransaction && lockHolder.pipeline === home);
}
