/** The budget of bytes that wait for the remote stage. */
import type { Clock } from "../../clock.ts";
import { Failure } from "../../failure/failure.ts";
import type { DurabilityLevel } from "../engine.ts";
import type { SyncWait } from "./sync.ts";
import { Waits } from "./waits.ts";

const retryAfterMs = 1_000;

export class Backlog {
  readonly #bytesMax: number;
  readonly #onHalfFull: () => void;
  readonly #waits: Waits<undefined>;
  #bytes = 0;

  /** `onHalfFull` is called when half of the budget has just been used up. */
  constructor(clock: Clock, bytesMax: number, onHalfFull: () => void) {
    this.#bytesMax = bytesMax;
    this.#onHalfFull = onHalfFull;
    this.#waits = new Waits(clock);
  }

  get bytes(): number {
    return this.#bytes;
  }

  get isFull(): boolean {
    return this.#bytes >= this.#bytesMax;
  }

  change(byBytes: number): void {
    if (byBytes === 0) return;
    const half = this.#bytesMax / 2;
    const wasBelow = this.#bytes < half;
    this.#bytes += byBytes;
    if (!this.isFull) this.#waits.resolve(() => true);
    if (wasBelow && this.#bytes >= half) this.#onHalfFull();
  }

  /** See `Sync.admit`. */
  admit(durability: DurabilityLevel, wait: SyncWait): Promise<void> | undefined {
    if (!this.isFull) return undefined;
    if (durability !== "remote") throw this.#full();
    return this.#waitForRoom(wait);
  }

  /** Those who wait for room wait in vain. */
  end(failure: Failure): void {
    this.#waits.rejectAll(failure);
  }

  async #waitForRoom(wait: SyncWait): Promise<void> {
    while (this.isFull) await this.#waits.wait(undefined, wait, () => this.#full());
  }

  #full(): Failure {
    const facts = { unsyncedBytes: String(this.#bytes), limitBytes: String(this.#bytesMax) };
    return new Failure("SYNC_BACKLOG_FULL", facts, { retryAfterMs });
  }
}
