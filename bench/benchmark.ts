/** What a benchmark is given and what it gives back. */
import type { Placement } from "./processes.ts";

/** One measured quantity, a value for each round. */
export interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly values: readonly number[];
}

/** Two things measured in turn: one ratio for each round. */
export interface Ratio {
  readonly name: string;
  readonly values: readonly number[];
  /** Undefined: reported without a target. */
  readonly target: Target | undefined;
  readonly unit?: string;
  /** What else runs on the machine decides it as much as we do: reported, and fails nobody. */
  readonly isOfMachine?: boolean;
}

export interface Target {
  readonly kind: "at least" | "at most";
  readonly value: number;
}

export interface BenchmarkResult {
  readonly ratios: readonly Ratio[];
  readonly figures: readonly Figure[];
}

export interface Bench {
  /** An empty folder on the local disk, removed after the benchmark. */
  readonly folder: string;
  readonly short: boolean;
  readonly placement: Placement;
  /** One line for whoever watches. */
  progress(line: string): void;
  /** Ends with the benchmark, whatever happens to it. */
  onEnd(stop: () => Promise<void>): void;
}

export interface Benchmark {
  readonly id: string;
  readonly title: string;
  /** What is measured, against what, and how answers are checked: goes into the report. */
  readonly method: string;
  run(bench: Bench): Promise<BenchmarkResult>;
}

export const atLeast = (value: number): Target => ({ kind: "at least", value });
export const atMost = (value: number): Target => ({ kind: "at most", value });

export function reached(target: Target, value: number): boolean {
  return target.kind === "at least" ? value >= target.value : value <= target.value;
}

/** Beyond what noise explains: half of the target, or twice a bound. */
export function largeLoss(target: Target, value: number): boolean {
  return !(target.kind === "at least" ? value >= target.value / 2 : value <= target.value * 2);
}

/** Runs `measure` for each name in each round, the order turning, so that drift of the machine hits all alike. Round 0 warms up. */
export async function inTurn<Name extends string>(
  rounds: number,
  names: readonly Name[],
  measure: (name: Name, round: number) => Promise<void>,
): Promise<void> {
  for (let round = 0; round <= rounds; round++) {
    for (let place = 0; place < names.length; place++) {
      const name = names[(place + round) % names.length];
      if (name !== undefined) await measure(name, round);
    }
  }
}
