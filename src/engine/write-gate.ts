/** Holds new writes of a database back for a moment, until the running ones are done. */
import type { Clock } from "../clock.ts";

export class WriteGate {
  readonly #clock: Clock;
  #writes = 0;
  #closed: PromiseWithResolvers<void> | undefined;
  #onDrained: (() => void) | undefined;
  /** Pauses run one after another: a checkpoint's and a move's may meet. */
  #turn: Promise<void> = Promise.resolve();
  #endTurn: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** What a write has to wait for first; undefined: it may begin. To be asked again after the wait. */
  get closed(): Promise<void> | undefined {
    return this.#closed?.promise;
  }

  /** Writes under way, open write transactions among them. */
  get writes(): number {
    return this.#writes;
  }

  enter(): void {
    this.#writes++;
  }

  leave(): void {
    if (--this.#writes === 0) this.#onDrained?.();
  }

  /** False when those that were running did not end within `msMax`; new ones are held back all the same until `resume`. */
  async pause(msMax: number): Promise<boolean> {
    const before = this.#turn;
    const turn = Promise.withResolvers<void>();
    this.#turn = turn.promise;
    await before;
    this.#endTurn = turn.resolve;
    this.#closed = Promise.withResolvers();
    if (this.#writes === 0) return true;
    const drained = Promise.withResolvers<boolean>();
    const cancelTimer = this.#clock.after(msMax, () => drained.resolve(false));
    this.#onDrained = () => drained.resolve(true);
    const paused = await drained.promise;
    this.#onDrained = undefined;
    cancelTimer();
    return paused;
  }

  /** After every `pause`, once. */
  resume(): void {
    const closed = this.#closed;
    this.#closed = undefined;
    closed?.resolve();
    this.#endTurn?.();
    this.#endTurn = undefined;
  }
}
