/** Runs schedules one after another, each in a folder of its own. */
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { FailPoint } from "../../src/fail-points.ts";
import { runSchedule, type Variant } from "./schedule.ts";

export interface SimulateOptions {
  readonly firstSeed: number;
  readonly scheduleCount: number;
  readonly stepCount?: number | undefined;
  readonly variant?: Variant | undefined;
  /** Stops after so many that went wrong; 5 when left out. */
  readonly problemsMax?: number | undefined;
  readonly trace?: ((line: string) => void) | undefined;
}

export interface SimulateReport {
  /** `seed N: …` each. */
  readonly problems: readonly string[];
  readonly reached: ReadonlySet<FailPoint>;
  readonly done: ReadonlyMap<string, number>;
  readonly digests: readonly string[];
}

/** In memory where the machine has a tmpfs: nothing of a simulation's files is to last. */
function scratchFolder(): string {
  return statSync("/dev/shm", { throwIfNoEntry: false })?.isDirectory() ? "/dev/shm" : tmpdir();
}

export async function simulate(options: SimulateOptions): Promise<SimulateReport> {
  const { firstSeed, scheduleCount, problemsMax = 5 } = options;
  const folder = mkdtempSync(join(scratchFolder(), "persisto-simulation-"));
  const problems: string[] = [];
  const reached = new Set<FailPoint>();
  const done = new Map<string, number>();
  const digests: string[] = [];
  try {
    for (let seed = firstSeed; seed < firstSeed + scheduleCount && problems.length < problemsMax; seed++) {
      const report = await runSchedule({
        seed,
        folder: join(folder, String(seed)),
        stepCount: options.stepCount,
        variant: options.variant,
        trace: options.trace,
      });
      for (const [kind, count] of report.done) done.set(kind, (done.get(kind) ?? 0) + count);
      for (const point of report.reached) reached.add(point);
      digests.push(report.digest);
      if (report.problem !== undefined) problems.push(`seed ${seed}: ${report.problem}`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return { problems, reached, done, digests };
}
