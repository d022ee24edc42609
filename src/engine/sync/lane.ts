/** A few places for work, and two lines before them: who waits for an answer goes first. */

/** One piece of work; it may come again. */
export interface Job {
  readonly run: () => Promise<void>;
  /** Called when it has left its place, however it ended. */
  readonly ended?: (() => void) | undefined;
}

export interface LaneOptions {
  /** Jobs that run at one time. */
  readonly countMax: number;
  /** Asked before a job begins. False holds all of them back until `pump` is called. */
  readonly mayBegin: () => boolean;
  /** A job has ended with what it did not foresee. */
  readonly onProblem: (error: unknown) => void;
}

export class Lane {
  readonly #options: LaneOptions;
  /** In order of arrival; a set, so that one in the middle can leave at no cost. */
  readonly #urgent = new Set<Job>();
  readonly #ordinary = new Set<Job>();
  readonly #running = new Set<Job>();
  /** Of those who wait for the next end of a job. */
  #end: PromiseWithResolvers<void> | undefined;

  constructor(options: LaneOptions) {
    this.#options = options;
  }

  get waitingCount(): number {
    return this.#urgent.size + this.#ordinary.size;
  }

  get runningCount(): number {
    return this.#running.size;
  }

  isRunning(job: Job): boolean {
    return this.#running.has(job);
  }

  isWaiting(job: Job): boolean {
    return this.#urgent.has(job) || this.#ordinary.has(job);
  }

  /** Puts a job in line, or moves it forward. One that runs is left alone. */
  add(job: Job, isUrgent: boolean): void {
    if (this.#running.has(job) || this.#urgent.has(job)) return;
    if (isUrgent) {
      this.#ordinary.delete(job);
      this.#urgent.add(job);
    } else {
      this.#ordinary.add(job);
    }
    this.pump();
  }

  /** Takes a job that has not begun out of the line. */
  remove(job: Job): void {
    this.#urgent.delete(job);
    this.#ordinary.delete(job);
  }

  clear(): void {
    this.#urgent.clear();
    this.#ordinary.clear();
  }

  /** Begins what may begin. */
  pump(): void {
    while (this.#running.size < this.#options.countMax) {
      const [job] = this.#urgent.size > 0 ? this.#urgent : this.#ordinary;
      if (job === undefined || !this.#options.mayBegin()) return;
      this.remove(job);
      this.#running.add(job);
      void this.#run(job);
    }
  }

  /** Resolves when a job does not run, or no longer. */
  async whenEnded(job: Job): Promise<void> {
    while (this.#running.has(job)) await this.#nextEnd();
  }

  /** Resolves when nothing runs and nothing waits. */
  async whenEmpty(): Promise<void> {
    while (this.#running.size > 0 || this.waitingCount > 0) await this.#nextEnd();
  }

  /** Resolves when nothing runs. */
  async whenIdle(): Promise<void> {
    while (this.#running.size > 0) await this.#nextEnd();
  }

  #nextEnd(): Promise<void> {
    this.#end ??= Promise.withResolvers();
    return this.#end.promise;
  }

  async #run(job: Job): Promise<void> {
    try {
      await job.run();
    } catch (error) {
      this.#options.onProblem(error);
    } finally {
      this.#running.delete(job);
      job.ended?.();
      this.pump();
      this.#end?.resolve();
      this.#end = undefined;
    }
  }
}
