import type { Clock } from "../clock.ts";
import type { ExecutorLimits } from "./executor.ts";

/** What an operator should know about executors: starts, deaths, kills. */
export type ExecutorLog = (
  level: "info" | "warn" | "error",
  message: string,
  facts: Readonly<Record<string, string | number>>,
) => void;

/** What both implementations of `Executors` are built from. */
export interface ExecutorsOptions {
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  /** Between 0 and 1: jitter of restarts. */
  readonly random: () => number;
  readonly log: ExecutorLog;
  /** The executor program; by default the one beside this file. */
  readonly programPath?: string | undefined;
  /** The native library; by default it is searched for. */
  readonly nativePath?: string | undefined;
}
