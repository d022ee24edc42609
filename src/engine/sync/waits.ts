/** Calls that wait for something until their deadline, or until they are cancelled. */
import type { Clock } from "../../clock.ts";
import { CallCancelled } from "../../sqlite/executor.ts";
import type { SyncWait } from "./sync.ts";

interface Waiting<Key> {
  readonly key: Key;
  readonly isImpatient: boolean;
  readonly end: PromiseWithResolvers<void>;
}

/** Those that wait for one thing, each for a value of it. The calls are bounded elsewhere. */
export class Waits<Key> {
  readonly #clock: Clock;
  readonly #waiting = new Set<Waiting<Key>>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get count(): number {
    return this.#waiting.size;
  }

  /** Rejects with `late()` at the deadline, with CallCancelled when the call is cancelled, or as `rejectAll` says. */
  async wait(key: Key, options: SyncWait, late: () => Error): Promise<void> {
    const { deadlineAtMs, cancel, isImpatient = false } = options;
    if (cancel?.cancelled) throw new CallCancelled();
    const waiting: Waiting<Key> = { key, isImpatient, end: Promise.withResolvers() };
    const { promise, reject } = waiting.end;
    this.#waiting.add(waiting);
    const cancelTimer = this.#clock.after(Math.max(0, deadlineAtMs - this.#clock.now()), () => reject(late()));
    const forgetCancel = cancel?.onCancel(() => reject(new CallCancelled()));
    try {
      await promise;
    } finally {
      this.#waiting.delete(waiting);
      cancelTimer();
      forgetCancel?.();
    }
  }

  /** Ends the wait of those whose key is met. */
  resolve(isMet: (key: Key) => boolean): void {
    for (const { key, end } of this.#waiting) if (isMet(key)) end.resolve();
  }

  rejectImpatient(failure: Error): void {
    for (const { end, isImpatient } of this.#waiting) if (isImpatient) end.reject(failure);
  }

  rejectAll(failure: Error): void {
    for (const { end } of this.#waiting) end.reject(failure);
  }
}
