/** Deadlines and signals around work that knows neither. */
import type { Clock } from "../clock.ts";
import { type ObjectCall, ObjectStoreError } from "./object-store.ts";

/** Throws when the call's time is over already. */
export function checkCall(clock: Clock, call: ObjectCall): void {
  call.signal?.throwIfAborted();
  if (clock.now() >= call.deadlineAtMs) throw late();
}

/**
 * Runs `work` with a signal that fires at the deadline, at the call's own signal, or at `ended`; rejects at that moment,
 * whatever the work does. Its later outcome is handed to `dropped`.
 */
export async function bounded<T>(
  clock: Clock,
  call: ObjectCall,
  work: (signal: AbortSignal) => Promise<T>,
  { ended, dropped }: { readonly ended?: AbortSignal; readonly dropped?: (result: T) => void } = {},
): Promise<T> {
  checkCall(clock, call);
  ended?.throwIfAborted();
  const controller = new AbortController();
  const { signal } = controller;
  const onAbort = () => controller.abort(call.signal?.reason);
  const onEnd = () => controller.abort(ended?.reason);
  const cancelTimer = afterAtMost(clock, call.deadlineAtMs, () => controller.abort(late()));
  call.signal?.addEventListener("abort", onAbort, { once: true });
  ended?.addEventListener("abort", onEnd, { once: true });
  try {
    return await new Promise<T>((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      work(signal).then(
        (result) => {
          if (signal.aborted) dropped?.(result);
          resolve(result);
        },
        // Work that its signal ended fails in ways of its own; the signal's reason is the answer.
        (error: unknown) => reject(signal.aborted ? signal.reason : error),
      );
    });
  } finally {
    cancelTimer();
    call.signal?.removeEventListener("abort", onAbort);
    ended?.removeEventListener("abort", onEnd);
  }
}

/** Resolves after the time, or rejects with the signal's reason. */
export function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const onAbort = () => {
      cancel();
      reject(signal.reason);
    };
    const cancel = clock.after(ms, () => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    });
    signal.addEventListener("abort", onAbort, { once: true });
  });
}

/** A timer can wait for 24 days at most; what ends later ends then. */
const TIMER_MS_MAX = 2 ** 31 - 1;

function afterAtMost(clock: Clock, atMs: number, run: () => void): () => void {
  return clock.after(Math.min(Math.max(0, atMs - clock.now()), TIMER_MS_MAX), run);
}

function late(): ObjectStoreError {
  return new ObjectStoreError("unavailable", "no answer before the deadline");
}
