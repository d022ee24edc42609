/** Waiting for something that many calls share, each for no longer than its own time. */
import type { Clock } from "../clock.ts";
import { CallCancelled, type CallOptions } from "../sqlite/executor.ts";

/** How long a call may wait. */
export type CallWait = Pick<CallOptions, "deadlineAtMs" | "cancel">;

/** What `work` comes to; rejects with what `late` makes at the deadline, with CallCancelled when the caller is gone. */
export async function waitFor<T>(work: Promise<T>, wait: CallWait, clock: Clock, late: () => Error): Promise<T> {
  if (wait.cancel?.cancelled) throw new CallCancelled();
  const end = Promise.withResolvers<never>();
  const cancelTimer = clock.after(Math.max(0, wait.deadlineAtMs - clock.now()), () => end.reject(late()));
  const forgetCancel = wait.cancel?.onCancel(() => end.reject(new CallCancelled()));
  try {
    return await Promise.race([work, end.promise]);
  } finally {
    cancelTimer();
    forgetCancel?.();
  }
}
