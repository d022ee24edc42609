/** npm run simulate -- --seed N [--schedules K] [--steps S] [--verbose]: repeats what a seed stands for. */
import { parseArgs } from "node:util";
import { failPoints } from "../../src/fail-points.ts";
import { simulate } from "./simulate.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    schedules: { type: "string", default: "1" },
    steps: { type: "string" },
    verbose: { type: "boolean", default: false },
  },
});
const startMs = performance.now();
const { problems, reached, done, digests } = await simulate({
  firstSeed: Number(values.seed),
  scheduleCount: Number(values.schedules),
  stepCount: values.steps === undefined ? undefined : Number(values.steps),
  problemsMax: 20,
  trace: values.verbose ? (line) => console.log(line) : undefined,
});
const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
for (const problem of problems) console.log(problem);
console.log(`${digests.length - problems.length} passed, ${problems.length} failed, in ${seconds} s`);
console.log([...done].map(([kind, count]) => `${kind} ${count}`).join(", "));
console.log(`not reached: ${failPoints.filter((point) => !reached.has(point)).join(" ")}`);
if (digests.length === 1) console.log(`digest ${digests[0]}`);
process.exitCode = problems.length > 0 ? 1 : 0;
