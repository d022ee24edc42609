/** The report as people and as programs read it. */
import { type BenchmarkResult, largeLoss, type Ratio, reached, type Target } from "./benchmark.ts";
import type { Machine } from "./machine.ts";
import { median } from "./statistics.ts";

export interface ReportEntry {
  readonly id: string;
  readonly title: string;
  readonly method: string;
  readonly result: BenchmarkResult;
}

export interface Report {
  readonly takenOn: string;
  readonly machine: Machine;
  readonly benchmarks: readonly ReportEntry[];
}

/** Three significant digits, thousands apart. */
export function format(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 1000) return Number(value.toPrecision(3)).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

const spread = (values: readonly number[]) => `${format(Math.min(...values))}–${format(Math.max(...values))}`;
const bound = (target: Target) => `${target.kind === "at least" ? "≥" : "≤"} ${target.value}`;

/** One line for a ratio, as the terminal shows it. */
export function ratioLine(id: string, ratio: Ratio): string {
  const value = median(ratio.values);
  const unit = ratio.unit === undefined ? "" : ` ${ratio.unit}`;
  const verdict =
    ratio.target === undefined
      ? ""
      : `, target ${bound(ratio.target)}: ${reached(ratio.target, value) ? "reached" : "MISSED"}`;
  return `${id} ${ratio.name}: ${format(value)}${unit} (${spread(ratio.values)})${verdict}`;
}

/** Ratios so far from their target that noise does not explain it. */
export function largeLosses(entries: readonly ReportEntry[]): string[] {
  return entries.flatMap(({ id, result }) =>
    result.ratios
      .filter((ratio) => ratio.isOfMachine !== true)
      .filter((ratio) => ratio.target !== undefined && largeLoss(ratio.target, median(ratio.values)))
      .map((ratio) => ratioLine(id, ratio)),
  );
}

export function toMarkdown(report: Report): string {
  const { machine } = report;
  const lines = [
    "# Benchmarks",
    "",
    "Written by `make bench`; no figure is typed by hand. Machines differ and are noisy, so what counts are ratios of two things",
    "measured in turn in the same round; the figures below them are for scale. Each value is the median of the rounds, with the",
    "lowest and highest. How to run and read them: [bench/README.md](../bench/README.md).",
    "",
    "| | |",
    "| --- | --- |",
    `| taken on | ${report.takenOn} |`,
    `| machine | ${machine.processor}, ${machine.cores} cores, ${machine.memoryGiB} GiB |`,
    `| system | ${machine.kernel}, ${machine.fileSystem} |`,
    `| versions | Node ${machine.node}, SQLite ${machine.sqlite} (better-sqlite3 ${machine.betterSqlite3}), ${machine.loadGenerator} |`,
    `| program | ${machine.program} |`,
    `| load average before | ${machine.loadBefore.toFixed(2)} |`,
    "",
    "## Targets",
    "",
    "| | | median | spread | target | |",
    "| --- | --- | --- | --- | --- | --- |",
  ];
  for (const { id, title, result } of report.benchmarks) {
    for (const ratio of result.ratios) {
      const value = median(ratio.values);
      const unit = ratio.unit === undefined ? "" : ` ${ratio.unit}`;
      const target = ratio.target === undefined ? "none" : bound(ratio.target);
      const verdict = ratio.target === undefined ? "" : reached(ratio.target, value) ? "reached" : "**missed**";
      lines.push(
        `| ${id} ${title} | ${ratio.name} | **${format(value)}**${unit} | ${spread(ratio.values)} | ${target} | ${verdict} |`,
      );
    }
  }
  for (const { id, title, method, result } of report.benchmarks) {
    lines.push("", `## ${id} ${title}`, "", method, "", "| | median | spread | |", "| --- | --- | --- | --- |");
    for (const figure of result.figures) {
      lines.push(`| ${figure.name} | ${format(median(figure.values))} | ${spread(figure.values)} | ${figure.unit} |`);
    }
  }
  return `${lines.join("\n")}\n`;
}
