/** The handles of the databases that are in use: opened by the first call, dropped when others need the room. */
import { Failure } from "../failure/failure.ts";
import type { CatalogRow } from "./catalog.ts";
import { type DatabaseHost, HostedDatabase } from "./database.ts";
import { databaseNotFound } from "./failures.ts";
import { type CallWait, waitFor } from "./waiting.ts";

/** Handles looked at to find one to drop. */
const dropLookCountMax = 64;

const retryAfterMs = 100;

export interface HandlesHost extends DatabaseHost {
  /** The row of a database; throws DATABASE_NOT_FOUND. A promise while only the remote stage may know. */
  row(id: string): CatalogRow | Promise<CatalogRow>;
  /**
   * Sees to it that the file of the row's head is there. Undefined when it is; otherwise a promise, after which the row is
   * asked for again.
   */
  bring(row: CatalogRow): Promise<void> | undefined;
  /** False for a handle that has to be kept although nobody uses it. */
  mayDrop(database: HostedDatabase): boolean;
  /** What is known of a handle that is being dropped goes to the catalog; false when that fails, and it has to be kept. */
  dropped(database: HostedDatabase): boolean;
}

/** How a database is taken away from its callers. */
export interface Detachment {
  /** Those that run may end within this time. */
  readonly graceMs: number;
  /** What they are answered then; without `force` nothing is done to them, and it is what `detach` rejects with. */
  readonly failure: Failure;
  /** The files are to go, whatever is in them. */
  readonly force: boolean;
  /** Runs when no call is left, before the handle is closed; when it fails, the handle stays and `detach` rejects. */
  readonly beforeClose?: (database: HostedDatabase) => Promise<void>;
}

export class Handles {
  readonly #host: HandlesHost;
  /** Roughly least recently used first: see `#dropOne`. */
  readonly #hosted = new Map<string, HostedDatabase>();
  /** Handles that are being closed; their databases are not opened again before that is over. */
  readonly #leaving = new Map<string, Promise<unknown>>();
  /** Those of them that are still open, for work that is not a call. */
  readonly #parting = new Map<string, HostedDatabase>();
  readonly #deleting = new Set<string>();
  #isClosed = false;
  #isEnded = false;

  constructor(host: HandlesHost) {
    this.#host = host;
  }

  get count(): number {
    return this.#hosted.size;
  }

  get(id: string): HostedDatabase | undefined {
    return this.#hosted.get(id) ?? this.#parting.get(id);
  }

  all(): Iterable<HostedDatabase> {
    return this.#hosted.values();
  }

  /** From here on no call enters any more. */
  closeDoor(): void {
    this.#isClosed = true;
  }

  /** From here on nobody does. */
  end(): void {
    this.#isEnded = true;
  }

  isDeleting(id: string): boolean {
    // Asked on every call: nothing is being deleted nearly always.
    return this.#deleting.size > 0 && this.#deleting.has(id);
  }

  /**
   * A handle in use: `leave` is the caller's, or of the method that is called on it. At once when the database is open or
   * can be opened, so that calls that come one after another go in one after another.
   */
  enter(id: string, wait: CallWait | undefined): HostedDatabase | Promise<HostedDatabase> {
    if (this.#isClosed) throw new Failure("SHUTTING_DOWN");
    const present = this.#hosted.get(id);
    if (present !== undefined && !this.isDeleting(id)) {
      present.enter();
      return present;
    }
    if (this.isDeleting(id)) throw databaseNotFound(id);
    const leaving = this.#leaving.get(id);
    if (leaving !== undefined) return this.#enterAfter(id, leaving, "it is being closed", wait);
    const row = this.#host.row(id);
    if (row instanceof Promise) return this.#enterAfter(id, row, "the remote stage is asked for it", wait);
    const bringing = this.#host.bring(row);
    if (bringing !== undefined) return this.#enterAfter(id, bringing, "it is on its way from the remote stage", wait);
    return this.#open(row);
  }

  /** The same for a database that is open or has a head here; undefined when it has none. */
  async enterHead(id: string): Promise<HostedDatabase | undefined> {
    for (;;) {
      if (this.#isEnded) return undefined;
      const present = this.get(id);
      if (present !== undefined) {
        present.enter();
        return present;
      }
      const leaving = this.#leaving.get(id);
      if (leaving !== undefined) {
        await leaving;
        continue;
      }
      if (this.#deleting.has(id)) return undefined;
      const row = this.#host.catalog.get(id);
      if (row === undefined || row.head === "none") return undefined;
      // A head in memory that the machine has lost is made again here; the log beside it may have to be carried.
      const bringing = this.#host.bring(row);
      if (bringing === undefined) return this.#open(row);
      await bringing;
    }
  }

  /**
   * Takes a database away from its callers. `work` runs with the handle closed, undefined where there was none; who comes
   * meanwhile waits until it is over, and is refused with DATABASE_NOT_FOUND when the database is being deleted.
   */
  async detach<T>(
    id: string,
    detachment: Detachment,
    work: (database: HostedDatabase | undefined) => Promise<T>,
  ): Promise<T> {
    while (this.#leaving.has(id)) await this.#leaving.get(id);
    const database = this.#hosted.get(id);
    this.#hosted.delete(id);
    const run = async () => {
      if (database !== undefined) await this.#part(database, detachment);
      return work(database);
    };
    const done = run();
    this.#leave(id, done);
    return done;
  }

  /** Runs `work` while the database counts as being deleted. */
  async deleting<T>(id: string, work: () => Promise<T>): Promise<T> {
    this.#deleting.add(id);
    try {
      return await work();
    } finally {
      this.#deleting.delete(id);
    }
  }

  /** Resolves when no handle is being closed. */
  async whenSettled(): Promise<void> {
    await Promise.allSettled(this.#leaving.values());
  }

  async #enterAfter(
    id: string,
    work: Promise<unknown>,
    problem: string,
    wait: CallWait | undefined,
  ): Promise<HostedDatabase> {
    const { clock } = this.#host;
    if (wait === undefined) await work;
    else {
      const startMs = clock.now();
      await waitFor(work, wait, clock, () => {
        const waitedMs = `${Math.round(clock.now() - startMs)}`;
        return new Failure("DATABASE_BUSY", { database: id, problem, waitedMs }, { retryAfterMs });
      });
    }
    return this.enter(id, wait);
  }

  async #part(database: HostedDatabase, { graceMs, failure, force, beforeClose }: Detachment): Promise<void> {
    const { id } = database;
    this.#parting.set(id, database);
    try {
      let isIdle = await database.whenIdle(graceMs);
      if (!isIdle && !force) throw failure;
      if (beforeClose !== undefined) {
        await beforeClose(database);
        // Syncing may have it still.
        isIdle = await database.whenIdle(graceMs);
        if (!isIdle && !force) throw failure;
      }
      this.#parting.delete(id);
      await database.close(!isIdle, failure);
    } catch (error) {
      if (this.#parting.delete(id)) this.#hosted.set(id, database);
      throw error;
    }
  }

  #open(row: CatalogRow): HostedDatabase {
    const database = new HostedDatabase(this.#host, row);
    database.enter();
    this.#hosted.set(row.id, database);
    if (this.#hosted.size > this.#host.limits.openDatabaseCountMax) this.#dropOne();
    return database;
  }

  /**
   * Drops a handle that nobody uses and that was not used since it was last looked at; the others get a second chance.
   * When all of those looked at are in use there is one handle more: calls are bounded elsewhere.
   */
  #dropOne(): void {
    let looked = 0;
    for (const [id, database] of this.#hosted) {
      if (++looked > dropLookCountMax) return;
      this.#hosted.delete(id);
      if (database.isIdle && !database.recentlyUsed && this.#host.mayDrop(database)) {
        this.#drop(database);
        return;
      }
      database.recentlyUsed = false;
      this.#hosted.set(id, database);
    }
  }

  /** Closes a handle that is out of `#hosted` already and that nobody uses. */
  #drop(database: HostedDatabase): void {
    if (!this.#host.dropped(database)) {
      // Only the handle knows the position then.
      this.#hosted.set(database.id, database);
      return;
    }
    const closed = database.close(false, new Failure("SHUTTING_DOWN")).catch((error: unknown) => {
      this.#host.log("error", "a database that was idle did not close", { database: database.id, error });
    });
    this.#leave(database.id, closed);
  }

  #leave(id: string, work: Promise<unknown>): void {
    // How it ended is the affair of whoever began it; the others only wait.
    const leaving = work.then(
      () => undefined,
      () => undefined,
    );
    this.#leaving.set(id, leaving);
    void leaving.then(() => {
      if (this.#leaving.get(id) === leaving) this.#leaving.delete(id);
    });
  }
}
