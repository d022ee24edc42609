/**
 * Everything that must hold before a change lands, in the order of what fails soonest. Each step's output is shown when it
 * fails, and kept in build/check/. The last line counts tests and steps: `N passed, N failed, N skipped`.
 */
import { spawn, spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";

interface Step {
  readonly name: string;
  readonly command: readonly string[];
  readonly minutesMax: number;
  /** Tried again after a failure: for what a noisy minute of the machine can spoil. */
  readonly tries?: number;
  /** Why the step cannot run here. */
  readonly missing?: string | undefined;
  /** Finer counts than the step as one. */
  readonly counts?: (output: string) => Counts | undefined;
}

interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

const testReport = "build/check/tests.json";

const steps: readonly Step[] = [
  { name: "lint and format", command: ["npm", "run", "--silent", "lint"], minutesMax: 2 },
  { name: "types", command: ["npm", "run", "--silent", "types"], minutesMax: 3 },
  { name: "generated files are fresh", command: ["npm", "run", "--silent", "check:generated"], minutesMax: 3 },
  { name: "contracts break nobody", command: ["npm", "run", "--silent", "check:breaking"], minutesMax: 2 },
  { name: "build", command: ["npm", "run", "--silent", "build"], minutesMax: 3 },
  {
    name: "tests",
    command: ["npx", "vitest", "run", "--reporter=dot", "--reporter=json", `--outputFile.json=${testReport}`],
    minutesMax: 12,
    counts: countTests,
  },
  { name: "fuzzing, short", command: ["npm", "run", "--silent", "fuzz"], minutesMax: 5, missing: unlessTool("cc") },
  {
    name: "conformance",
    command: ["npm", "run", "--silent", "conformance"],
    minutesMax: 12,
    missing: unlessTool("go"),
    counts: countCases,
  },
  { name: "benchmarks, short", command: ["npm", "run", "--silent", "bench", "--", "--short"], minutesMax: 8, tries: 2 },
];

const total = { passed: 0, failed: 0, skipped: 0 };
mkdirSync("build/check", { recursive: true });
for (const old of [testReport, "build/check/summary.txt"]) rmSync(old, { force: true });
for (const [index, step] of steps.entries()) {
  if (step.missing !== undefined) {
    console.log(`skipped  ${step.name}: ${step.missing}`);
    total.skipped++;
    continue;
  }
  const startMs = performance.now();
  const logPath = `build/check/${index + 1}-${step.name.replace(/\W+/g, "-")}.log`;
  let ok = await run(step, logPath);
  for (let tries = 1; !ok && tries < (step.tries ?? 1); tries++) ok = await run(step, logPath);
  const output = readFileSync(logPath, "utf8");
  const counts = step.counts?.(output) ?? { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 };
  total.passed += counts.passed;
  total.skipped += counts.skipped;
  total.failed += ok ? counts.failed : Math.max(1, counts.failed);
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
  const detail = step.counts === undefined ? "" : ` (${summary(counts)})`;
  console.log(`${ok ? "ok     " : "FAILED "}  ${step.name}, ${seconds} s${detail}`);
  if (!ok) console.log(output.split("\n").slice(-200).join("\n"));
}
writeFileSync("build/check/summary.txt", `${summary(total)}\n`);
console.log(summary(total));
process.exitCode = total.failed === 0 ? 0 : 1;

/** Runs a step in a process group of its own, so that nothing of it outlives its time. */
function run(step: Step, logPath: string): Promise<boolean> {
  const log = openSync(logPath, "w");
  const [command = "", ...args] = step.command;
  const child = spawn(command, args, {
    stdio: ["ignore", log, log],
    detached: true,
    env: { ...process.env, NO_COLOR: "1" },
  });
  closeSync(log);
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      console.log(`${step.name} did not end in ${step.minutesMax} minutes`);
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, step.minutesMax * 60_000);
    child.on("error", (error) => {
      clearTimeout(timer);
      console.log(`${step.name} did not start: ${error.message}`);
      resolve(false);
    });
    child.on("exit", (code) => {
      clearTimeout(timer);
      resolve(code === 0);
    });
  });
}

function countTests(): Counts | undefined {
  if (!existsSync(testReport)) return undefined;
  const report = JSON.parse(readFileSync(testReport, "utf8"));
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

/** The suite's own lines, one for each of its runs. */
function countCases(output: string): Counts | undefined {
  const lines = [...output.matchAll(/(\d+) passed, (\d+) failed/g)];
  if (lines.length === 0) return undefined;
  const sum = (index: number): number => lines.reduce((all, line) => all + Number(line[index]), 0);
  return { passed: sum(1), failed: sum(2), skipped: 0 };
}

function summary({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

function unlessTool(name: string): string | undefined {
  return spawnSync("sh", ["-c", `command -v ${name}`]).status === 0 ? undefined : `${name} is not installed`;
}
