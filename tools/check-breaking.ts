/** Compares the contracts with those of the main branch (or BREAKING_AGAINST): what clients send today must go on working. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const revision = process.env["BREAKING_AGAINST"] ?? firstThatExists("origin/main", "HEAD~1");
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

function firstThatExists(...revisions: string[]): string | undefined {
  return revisions.find((each) => spawnSync("git", ["rev-parse", "--verify", "--quiet", `${each}:proto`]).status === 0);
}
