/** Compares the contracts with those of the main branch (or BREAKING_AGAINST): what clients send today must go on working. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const revision = process.env["BREAKING_AGAINST"] ?? earlier("origin/main", "HEAD~1");
if (revision === undefined) {
  console.log("skipped: there is no earlier commit to compare the contracts with");
} else {
  const folder = mkdtempSync(join(tmpdir(), "persisto-breaking-"));
  try {
    const archive = execFileSync("git", ["archive", revision, "proto"]);
    execFileSync("tar", ["-x", "-C", folder], { input: archive });
    const comparison = spawnSync("buf", ["breaking", "proto", "--against", join(folder, "proto")], {
      stdio: "inherit",
    });
    process.exitCode = comparison.status ?? 1;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The first that is a commit with contracts, and not the one that is checked out. */
function earlier(...revisions: string[]): string | undefined {
  const idOf = (name: string): string | undefined => {
    const { status, stdout } = spawnSync("git", ["rev-parse", "--verify", "--quiet", name], { encoding: "utf8" });
    return status === 0 ? stdout : undefined;
  };
  return revisions.find((each) => idOf(`${each}:proto`) !== undefined && idOf(each) !== idOf("HEAD"));
}
