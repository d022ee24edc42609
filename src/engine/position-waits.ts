/** Calls that wait until a database has reached a position. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import { CallCancelled, type CallOptions } from "../sqlite/executor.ts";
import type { EngineLimits } from "./options.ts";

type WaitLimits = Pick<EngineLimits, "positionWaitMsMax" | "positionWaitCountMax">;

interface Wait {
  readonly sequence: number;
  readonly reached: () => void;
}

const retryAfterMs = 100;

export class PositionWaits {
  readonly #database: string;
  readonly #limits: WaitLimits;
  readonly #clock: Clock;
  readonly #waits: Wait[] = [];

  constructor(database: string, limits: WaitLimits, clock: Clock) {
    this.#database = database;
    this.#limits = limits;
    this.#clock = clock;
  }

  /** The database is at `sequence` now. */
  reached(sequence: number): void {
    for (const wait of this.#waits) if (wait.sequence <= sequence) wait.reached();
  }

  /** Waits for `sequence`; POSITION_NOT_REACHED at the end of the call's time or of the longest wait. */
  async wait(sequence: bigint, current: () => bigint, options: CallOptions): Promise<void> {
    if (options.cancel?.cancelled) throw new CallCancelled();
    if (this.#waits.length >= this.#limits.positionWaitCountMax) {
      throw new Failure(
        "DATABASE_BUSY",
        { database: this.#database, problem: "too many wait for a position" },
        { retryAfterMs },
      );
    }
    const waitMs = Math.min(this.#limits.positionWaitMsMax, options.deadlineAtMs - this.#clock.now());
    const end = Promise.withResolvers<void>();
    // A wish beyond every number that was ever given out is not reached, but it may be waited for.
    const wait: Wait = { sequence: Number(sequence), reached: end.resolve };
    this.#waits.push(wait);
    const cancelTimer = this.#clock.after(Math.max(0, waitMs), () => {
      end.reject(
        new Failure(
          "POSITION_NOT_REACHED",
          { database: this.#database, sequence: String(sequence), current: String(current()) },
          { retryAfterMs },
        ),
      );
    });
    const forgetCancel = options.cancel?.onCancel(() => end.reject(new CallCancelled()));
    try {
      await end.promise;
    } finally {
      cancelTimer();
      forgetCancel?.();
      const index = this.#waits.indexOf(wait);
      if (index >= 0) this.#waits.splice(index, 1);
    }
  }
}
