/** Whether the object store answers, and when the next try is worth it. */
import type { Clock } from "../../clock.ts";
import { ObjectStoreError } from "../../objects/object-store.ts";

export interface BackOff {
  readonly startMs: number;
  readonly maxMs: number;
}

/** Waits grow twofold with every failure, up to a bound; half of each is chance, so that not all come back together. */
export function backOffMs(failures: number, { startMs, maxMs }: BackOff, random: () => number): number {
  const fullMs = Math.min(maxMs, startMs * 2 ** Math.min(failures - 1, 30));
  return fullMs * (0.5 + random() / 2);
}

/** True for failures that say something about the store, not about one object. */
export function isStoreFailure(error: unknown): error is ObjectStoreError {
  if (!(error instanceof ObjectStoreError)) return false;
  return error.kind === "unavailable" || error.kind === "throttled" || error.kind === "denied";
}

export interface HealthEvents {
  readonly away: (problem: string) => void;
  readonly back: () => void;
}

/** Failures in a row, with no good answer between, from which the store counts as away. */
const awayFailureCount = 3;

/**
 * One lost answer says little; several in a row, and nothing else, say that the store is away: then a single call tries it
 * from time to time in place of all that wait.
 */
export class StoreHealth {
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #backOff: BackOff;
  readonly #events: HealthEvents;
  #failures = 0;
  /** Tries while it was away. */
  #vainTries = 0;
  #problem = "";
  #tryAtMs = 0;
  #isTrying = false;

  constructor(clock: Clock, random: () => number, backOff: BackOff, events: HealthEvents) {
    this.#clock = clock;
    this.#random = random;
    this.#backOff = backOff;
    this.#events = events;
  }

  get isAway(): boolean {
    return this.#failures >= awayFailureCount;
  }

  /** What is wrong; undefined while it is not away. */
  get problem(): string | undefined {
    return this.isAway ? this.#problem : undefined;
  }

  /** When the next work may begin, by the clock; undefined when some is trying already. */
  get nextTryAtMs(): number | undefined {
    if (!this.isAway) return 0;
    return this.#isTrying ? undefined : this.#tryAtMs;
  }

  /** Work begins that `nextTryAtMs` allowed. */
  began(): void {
    if (this.isAway) this.#isTrying = true;
  }

  /** Work has ended, whether it asked the store or not. */
  settled(): void {
    this.#isTrying = false;
  }

  succeeded(): void {
    const wasAway = this.isAway;
    this.#failures = 0;
    this.#vainTries = 0;
    if (wasAway) this.#events.back();
  }

  failed(error: ObjectStoreError): void {
    const wasAway = this.isAway;
    this.#problem = error.message;
    this.#failures++;
    if (!this.isAway) return;
    // What was under way when it went away, or began with the last try, counts as one.
    if (wasAway && this.#clock.now() < this.#tryAtMs) return;
    this.#vainTries++;
    this.#tryAtMs = this.#clock.now() + backOffMs(this.#vainTries, this.#backOff, this.#random);
    if (!wasAway) this.#events.away(error.message);
  }

  /** A failure that the store has answered with says that it is there. */
  answered(error: unknown): void {
    if (error instanceof ObjectStoreError) this.succeeded();
  }
}
