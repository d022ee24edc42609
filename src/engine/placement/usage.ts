/** How often a database is called: two counters, no list of times, no timer. */

/**
 * Counts within a sliding window, by the share that the window still covers of the one before: right to within the calls of
 * one window, and exact for calls that all lie in the last one.
 */
export class RequestCount {
  readonly #windowMs: number;
  #startMs = Number.NEGATIVE_INFINITY;
  #current = 0;
  #previous = 0;

  constructor(windowMs: number) {
    this.#windowMs = windowMs;
  }

  /** One more call; returns those of the window, it among them. */
  add(nowMs: number): number {
    this.#turn(nowMs);
    this.#current++;
    return this.#within(nowMs);
  }

  /** Calls within the window that ends now, rounded down. */
  count(nowMs: number): number {
    const passedMs = nowMs - this.#startMs;
    if (passedMs < this.#windowMs) return this.#within(nowMs);
    // The window that was the current one is the one before now.
    return Math.floor(this.#current * Math.max(0, 2 - passedMs / this.#windowMs));
  }

  #within(nowMs: number): number {
    const covered = 1 - (nowMs - this.#startMs) / this.#windowMs;
    return this.#current + Math.floor(this.#previous * Math.max(0, covered));
  }

  #turn(nowMs: number): void {
    const passedMs = nowMs - this.#startMs;
    if (passedMs < this.#windowMs) return;
    // A window begins with its first call, so that calls close together are in one.
    this.#previous = passedMs < 2 * this.#windowMs ? this.#current : 0;
    this.#current = 0;
    this.#startMs = passedMs < 2 * this.#windowMs ? this.#startMs + this.#windowMs : nowMs;
  }
}
