/** Tags a release after checking that it is one: `make tag-release TAG=v1.0.0`. The tag starts the release workflow. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { loadSettings, processEnvironment } from "../src/settings/settings.ts";

const tag = process.argv[2] ?? "";
const problems = problemsOf(tag);

if (problems.length > 0) {
  console.error(problems.map((problem) => `- ${problem}`).join("\n"));
  process.exitCode = 1;
} else {
  git("tag", "--annotate", tag, "--message", `Persisto ${tag.slice(1)}`);
  push();
}

function problemsOf(name: string): string[] {
  if (!/^v\d+\.\d+\.\d+(-[0-9A-Za-z.]+)?$/.test(name))
    return [`TAG must look like v1.0.0, not ${JSON.stringify(name)}`];
  const version = name.slice(1);
  return [
    git("status", "--porcelain") === "" ? "" : "there are changes that are not committed",
    git("tag", "--list", name) === "" ? "" : `${name} exists already`,
    JSON.parse(readFileSync("package.json", "utf8")).version === version ? "" : `package.json is not at ${version}`,
    isDated(version) ? "" : `CHANGELOG.md has no section "## ${version} (YEAR-MONTH-DAY)"`,
  ].filter((problem) => problem !== "");
}

function isDated(version: string): boolean {
  const lines = readFileSync("CHANGELOG.md", "utf8").split("\n");
  return lines.some((line) => line.startsWith(`## ${version} (`) && /\(\d{4}-\d\d-\d\d\)$/.test(line));
}

/** To the repository of the GITHUB_REPOSITORY_* settings when they are there; otherwise it says what to do. */
function push(): void {
  const { repositoryOwner, repositoryName, repositoryToken } = loadSettings(processEnvironment()).github;
  if (repositoryOwner === undefined || repositoryName === undefined || repositoryToken === undefined) {
    console.log(`tagged ${tag}; \`git push origin ${tag}\` starts the release`);
    return;
  }
  const helper = '!f() { echo username=x-access-token; echo "password=$GITHUB_REPOSITORY_TOKEN"; }; f';
  git("-c", `credential.helper=${helper}`, "push", `https://github.com/${repositoryOwner}/${repositoryName}.git`, tag);
  console.log(`tagged and pushed ${tag}; the release workflow builds the image`);
}

function git(...args: string[]): string {
  return execFileSync("git", args, { encoding: "utf8", env: processEnvironment() }).trim();
}
