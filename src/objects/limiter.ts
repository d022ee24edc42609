/** How many calls a store takes at one time, learnt from its answers. */
import type { Clock } from "../clock.ts";
import { ObjectStoreError } from "./object-store.ts";

export interface LimiterOptions {
  readonly clock: Clock;
  /** Calls at one time, at most. */
  readonly concurrencyMax: number;
  /** Calls that may wait for their turn; more fail with `throttled`. */
  readonly waitingCountMax: number;
}

/** After a cut, further complaints of this time belong to calls sent before it. */
const CUT_PAUSE_MS = 500;
/** Where it starts: enough to be quick, too little to flood a store that is in trouble. */
const CONCURRENCY_START = 16;

interface Waiting {
  readonly start: () => void;
}

/**
 * Grows by one for every full round of good answers, halves when the store complains: what TCP does. First come, first
 * served.
 */
export class Limiter {
  readonly #clock: Clock;
  readonly #concurrencyMax: number;
  readonly #waitingCountMax: number;
  readonly #waiting = new Set<Waiting>();
  #bound: number;
  #running = 0;
  #cutAtMs = Number.NEGATIVE_INFINITY;

  constructor({ clock, concurrencyMax, waitingCountMax }: LimiterOptions) {
    this.#clock = clock;
    this.#concurrencyMax = concurrencyMax;
    this.#waitingCountMax = waitingCountMax;
    this.#bound = Math.min(CONCURRENCY_START, concurrencyMax);
  }

  /** Calls allowed at one time, just now. */
  get concurrency(): number {
    return Math.floor(this.#bound);
  }

  /** Resolves, in turn, with what must be called once when the call is over. */
  async acquire(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#running >= this.concurrency) {
      if (this.#waiting.size >= this.#waitingCountMax) {
        throw new ObjectStoreError("throttled", `${this.#waiting.size} calls wait for the object store already`);
      }
      await this.#turn(signal);
    } else {
      this.#running++;
    }
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      this.#running--;
      this.#admit();
    };
  }

  /** The store answered. */
  succeeded(): void {
    this.#bound = Math.min(this.#concurrencyMax, this.#bound + 1 / this.#bound);
    this.#admit();
  }

  /** The store asked for fewer calls. */
  throttled(): void {
    const now = this.#clock.now();
    if (now - this.#cutAtMs < CUT_PAUSE_MS) return;
    this.#cutAtMs = now;
    this.#bound = Math.max(1, this.#bound / 2);
  }

  #turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#waiting.delete(waiting);
        reject(signal.reason);
      };
      const waiting: Waiting = {
        start: () => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      this.#waiting.add(waiting);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  #admit(): void {
    for (const waiting of this.#waiting) {
      if (this.#running >= this.concurrency) return;
      this.#waiting.delete(waiting);
      this.#running++;
      waiting.start();
    }
  }
}
