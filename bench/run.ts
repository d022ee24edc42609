/**
 * node bench/run.ts [--short] [--only B1,B3] [--no-write]
 *
 * Runs the benchmarks. A whole, long run writes docs/BENCHMARKS.md and docs/benchmarks.json; the status tells of large
 * losses only.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { pointReads } from "./b01-point-reads.ts";
import { latency } from "./b02-latency.ts";
import { streaming } from "./b03-stream.ts";
import { inserts } from "./b04-inserts.ts";
import { remoteWrites } from "./b05-remote-writes.ts";
import { moves } from "./b07-moves.ts";
import { density } from "./b08-density.ts";
import { encoding } from "./b09-encode.ts";
import { noisyNeighbour } from "./b11-noisy-neighbour.ts";
import { start } from "./b13-start.ts";
import { hydration } from "./b14-hydration.ts";
import type { Benchmark, BenchmarkResult } from "./benchmark.ts";
import { describeMachine } from "./machine.ts";
import { choosePlacement } from "./processes.ts";
import { largeLosses, type ReportEntry, ratioLine, toMarkdown } from "./report.ts";
import { serverIsBuilt } from "./server.ts";

const all: readonly Benchmark[] = [
  pointReads,
  latency,
  streaming,
  inserts,
  remoteWrites,
  moves,
  density,
  encoding,
  noisyNeighbour,
  start,
  hydration,
];

const { values } = parseArgs({
  options: {
    short: { type: "boolean", default: false },
    only: { type: "string" },
    "no-write": { type: "boolean", default: false },
  },
});
const only = values.only?.split(",");
const unknown = only?.filter((id) => !all.some((benchmark) => benchmark.id === id)) ?? [];
if (unknown.length > 0)
  throw new Error(`no benchmark ${unknown.join(", ")}; there are ${all.map((b) => b.id).join(", ")}`);
const chosen = all.filter((benchmark) => only?.includes(benchmark.id) ?? true);
if (!serverIsBuilt) console.log("dist/ is not built (make build): measuring the sources");

const parent = fileURLToPath(new URL("../build", import.meta.url));
mkdirSync(parent, { recursive: true });
const folder = mkdtempSync(join(parent, "bench-"));
const placement = choosePlacement();
const stops: (() => Promise<void>)[] = [];

async function stopAll(): Promise<void> {
  for (const stop of stops.splice(0).reverse()) await stop();
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    void stopAll().finally(() => {
      rmSync(folder, { recursive: true, force: true });
      process.exit(1);
    });
  });
}

async function runOne(benchmark: Benchmark): Promise<BenchmarkResult> {
  const own = join(folder, benchmark.id);
  mkdirSync(own);
  try {
    return await benchmark.run({
      folder: own,
      short: values.short,
      placement,
      progress: (line) => console.log(`  ${line}`),
      onEnd: (stop) => stops.push(stop),
    });
  } finally {
    await stopAll();
    rmSync(own, { recursive: true, force: true });
  }
}

const machine = describeMachine(folder);
const entries: ReportEntry[] = [];
try {
  for (const benchmark of chosen) {
    console.log(`${benchmark.id} ${benchmark.title}`);
    const result = await runOne(benchmark);
    for (const ratio of result.ratios) console.log(ratioLine(benchmark.id, ratio));
    entries.push({ id: benchmark.id, title: benchmark.title, method: benchmark.method, result });
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

if (!values.short && !values["no-write"] && only === undefined) {
  const docs = (name: string) => fileURLToPath(new URL(`../docs/${name}`, import.meta.url));
  const takenOn = new Date().toISOString().slice(0, 10);
  const report = { takenOn, machine, benchmarks: entries };
  mkdirSync(docs(""), { recursive: true });
  writeFileSync(docs("BENCHMARKS.md"), toMarkdown(report));
  writeFileSync(docs("benchmarks.json"), `${JSON.stringify(report, undefined, 2)}\n`);
  console.log("written: docs/BENCHMARKS.md, docs/benchmarks.json");
}

const losses = largeLosses(entries);
if (losses.length > 0) {
  console.error(`far from the target:\n${losses.join("\n")}`);
  process.exitCode = 1;
}
