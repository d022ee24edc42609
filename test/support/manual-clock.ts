/** A clock that stands still until a test moves it. */
import type { Clock } from "../../src/clock.ts";

interface Timer {
  atMs: number;
  readonly everyMs: number | undefined;
  readonly run: () => void;
}

export class ManualClock implements Clock {
  readonly #timers = new Set<Timer>();
  readonly #startWallMs: number;
  #nowMs = 0;

  constructor(startWallMs = Date.UTC(2026, 0, 1)) {
    this.#startWallMs = startWallMs;
  }

  now(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#startWallMs + this.#nowMs;
  }

  after(ms: number, run: () => void): () => void {
    return this.#add({ atMs: this.#nowMs + ms, everyMs: undefined, run });
  }

  every(ms: number, run: () => void): () => void {
    return this.#add({ atMs: this.#nowMs + ms, everyMs: ms, run });
  }

  /** Moves on, and runs what falls due on the way, in order. */
  advance(ms: number): void {
    const endMs = this.#nowMs + ms;
    for (;;) {
      let next: Timer | undefined;
      for (const timer of this.#timers) {
        if (timer.atMs <= endMs && (next === undefined || timer.atMs < next.atMs)) next = timer;
      }
      if (next === undefined) break;
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      if (next.everyMs === undefined) this.#timers.delete(next);
      else next.atMs += next.everyMs;
      next.run();
    }
    this.#nowMs = endMs;
  }

  #add(timer: Timer): () => void {
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }
}

/** The same clock, with a count of the timers that are set through it. */
export class CountingClock implements Clock {
  timerCount = 0;
  readonly #clock: Clock;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  now(): number {
    return this.#clock.now();
  }

  wallMs(): number {
    return this.#clock.wallMs();
  }

  after(ms: number, run: () => void): () => void {
    const end = this.#counted();
    const cancel = this.#clock.after(ms, () => {
      end();
      run();
    });
    return () => {
      end();
      cancel();
    };
  }

  every(ms: number, run: () => void): () => void {
    const end = this.#counted();
    const cancel = this.#clock.every(ms, run);
    return () => {
      end();
      cancel();
    };
  }

  #counted(): () => void {
    let isSet = true;
    this.timerCount++;
    return () => {
      if (isSet) this.timerCount--;
      isSet = false;
    };
  }
}
