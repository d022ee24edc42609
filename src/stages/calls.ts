/** What all long work here does now and then. */
import type { Clock } from "../clock.ts";
import { checkCall } from "../objects/bounded.ts";
import type { StageCall } from "./stage.ts";

/** Throws when the call's time is over, or its signal's reason. */
export function checkStageCall(clock: Clock, call: StageCall): void {
  checkCall(clock, call);
}

/** Lets everything else on the event loop have its turn. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** After which a list counts as lost. */
export const listMsMax = 60_000;

/** A part of a call that ends after some time at the latest. */
export function within(clock: Clock, call: StageCall, ms: number): StageCall {
  return { ...call, deadlineAtMs: Math.min(call.deadlineAtMs, clock.now() + ms) };
}
