/** Databases that are being given a file, because a call came: one piece of work for all calls of a database that wait. */
import { Failure } from "../../failure/failure.ts";

/** Databases that wait for their turn. */
const waitingCountMax = 4_096;

const retryAfterMs = 1_000;

interface Hydration {
  readonly done: PromiseWithResolvers<void>;
  readonly controller: AbortController;
  isRunning: boolean;
}

export class Hydrations {
  readonly #concurrencyMax: number;
  readonly #work: (id: string, signal: AbortSignal) => Promise<void>;
  /** In the order of their coming. */
  readonly #all = new Map<string, Hydration>();
  #running = 0;
  #finished = 0;
  #isClosed = false;

  /** `work` gives a database its file; it clears up when it fails. */
  constructor(concurrencyMax: number, work: (id: string, signal: AbortSignal) => Promise<void>) {
    this.#concurrencyMax = concurrencyMax;
    this.#work = work;
  }

  get running(): number {
    return this.#running;
  }

  /** How many databases have got their file. */
  get finished(): number {
    return this.#finished;
  }

  has(id: string): boolean {
    return this.#all.has(id);
  }

  /**
   * Resolves when the database has its file; joins the work that is under way. Goes on when those who asked are gone: what is
   * here already would be lost, and they come again.
   */
  run(id: string): Promise<void> {
    if (this.#isClosed) throw new Failure("SHUTTING_DOWN");
    const present = this.#all.get(id);
    if (present !== undefined) return present.done.promise;
    if (this.#all.size - this.#running >= waitingCountMax) {
      const problem = "too many databases are on their way from the remote stage";
      throw new Failure("DATABASE_BUSY", { database: id, problem }, { retryAfterMs });
    }
    const hydration = { done: Promise.withResolvers<void>(), controller: new AbortController(), isRunning: false };
    // Whether anybody still waits is not known.
    hydration.done.promise.catch(() => undefined);
    this.#all.set(id, hydration);
    this.#next();
    return hydration.done.promise;
  }

  /** Ends the work on a database that is about to go; resolves when it is over. */
  async stop(id: string, failure: Failure): Promise<void> {
    const hydration = this.#all.get(id);
    if (hydration === undefined) return;
    hydration.controller.abort(failure);
    if (!hydration.isRunning) {
      this.#all.delete(id);
      hydration.done.reject(failure);
    }
    // How it ended is told to those who wait for it.
    await hydration.done.promise.catch(() => undefined);
  }

  /** Ends everything; resolves when it is over. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const failure = new Failure("SHUTTING_DOWN");
    await Promise.all([...this.#all.keys()].map((id) => this.stop(id, failure)));
  }

  #next(): void {
    if (this.#running >= this.#concurrencyMax) return;
    for (const [id, hydration] of this.#all) {
      if (hydration.isRunning) continue;
      hydration.isRunning = true;
      this.#running++;
      void this.#run(id, hydration);
      if (this.#running >= this.#concurrencyMax) return;
    }
  }

  async #run(id: string, { done, controller }: Hydration): Promise<void> {
    try {
      await this.#work(id, controller.signal);
      this.#finished++;
      this.#all.delete(id);
      done.resolve();
    } catch (error) {
      this.#all.delete(id);
      done.reject(controller.signal.aborted ? controller.signal.reason : error);
    } finally {
      this.#running--;
      this.#next();
    }
  }
}
