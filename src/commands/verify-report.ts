/** What `verify` found, for programs and for people. */

/** A copy of a database on one stage, or its log. */
export interface CopyReport {
  readonly place: "log" | "local" | "memory" | "remote" | "retired";
  /** Path or prefix. */
  readonly name: string;
  /** The last batch that it holds, as a decimal number; `0` where it has no number. */
  readonly txid: string;
  readonly fileCount: number;
  readonly byteCount: number;
  /** What is wrong, in sentences. */
  readonly problems: readonly string[];
}

/** Two copies at one position. */
export interface ComparisonReport {
  readonly left: string;
  readonly right: string;
  readonly txid: string;
  /** `bytes`: every page is the same. `rows`: pages differ, all rows are the same. `different`: rows differ. */
  readonly outcome: "bytes" | "rows" | "different";
  /** Tables whose rows differ, and `schema`. */
  readonly differences: readonly string[];
}

export interface DatabaseReport {
  readonly database: string;
  readonly lineage: string;
  readonly isGood: boolean;
  readonly copies: readonly CopyReport[];
  readonly comparisons: readonly ComparisonReport[];
  /** Copies that SQLite's integrity_check found whole. */
  readonly intact: readonly string[];
  /** What is wrong, besides the problems of single copies. */
  readonly problems: readonly string[];
  /** What could not be looked at, and why. */
  readonly notes: readonly string[];
}

export interface VerifyReport {
  readonly isGood: boolean;
  readonly databases: readonly DatabaseReport[];
}

export function textOfReport(report: DatabaseReport): string {
  const { database, isGood, copies, comparisons, intact, problems, notes } = report;
  const lines = [`${isGood ? "ok " : "BAD"}  ${database}`];
  for (const { place, name, txid, fileCount, byteCount, problems: ofCopy } of copies) {
    const position = txid === "0" ? "" : ` up to ${txid}`;
    lines.push(`     ${place}${position}, ${fileCount} files, ${byteCount} bytes: ${name}`);
    for (const problem of ofCopy) lines.push(`     ! ${problem}`);
  }
  for (const { left, right, txid, outcome, differences } of comparisons) {
    const found = {
      bytes: "the same, byte for byte",
      rows: "the same rows in pages that differ",
      different: `different rows: ${differences.join(", ")}`,
    };
    lines.push(`     ${outcome === "different" ? "! " : ""}${left} and ${right} at ${txid}: ${found[outcome]}`);
  }
  if (intact.length > 0) lines.push(`     integrity_check of ${intact.join(" and ")}: ok`);
  for (const problem of problems) lines.push(`     ! ${problem}`);
  for (const note of notes) lines.push(`     ${note}`);
  return `${lines.join("\n")}\n`;
}
