import { execFileSync, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { temporaryFolders } from "../support/temporary-folder.ts";

const program = resolve(import.meta.dirname, "../../tools/tag-release.ts");
const newFolder = temporaryFolders();
const identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"];

let folder: string;
function git(...args: string[]): string {
  return execFileSync("git", [...identity, ...args], { cwd: folder, encoding: "utf8" }).trim();
}

function commit(changelog: string): void {
  writeFileSync(join(folder, "package.json"), JSON.stringify({ version: "1.2.3" }));
  writeFileSync(join(folder, "CHANGELOG.md"), changelog);
  git("add", ".");
  git("commit", "--quiet", "--allow-empty", "--message", "A change");
}

function tagRelease(tag: string) {
  const environment = { PATH: process.env["PATH"], GIT_AUTHOR_NAME: "Test", GIT_AUTHOR_EMAIL: "test@example.com" };
  const committer = { GIT_COMMITTER_NAME: "Test", GIT_COMMITTER_EMAIL: "test@example.com" };
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, tag], {
    cwd: folder,
    encoding: "utf8",
    env: { ...environment, ...committer },
  });
  return { status, output: stdout + stderr };
}

beforeEach(() => {
  folder = newFolder();
  git("init", "--quiet");
});

describe("make tag-release", () => {
  it("tags a release once, and says how to push it", () => {
    commit("# Changelog\n\n## 1.2.3 (2026-01-31)\n");
    expect(tagRelease("v1.2.3")).toMatchObject({
      status: 0,
      output: expect.stringContaining("git push origin v1.2.3"),
    });
    expect(git("tag", "--list")).toBe("v1.2.3");
    expect(tagRelease("v1.2.3")).toMatchObject({ status: 1, output: expect.stringContaining("exists already") });
  });

  it.each(["", "1.2.3", "v1.2", "v1.2.3;", "--help"])("refuses the tag %j", (tag) => {
    commit("## 1.2.3 (2026-01-31)\n");
    expect(tagRelease(tag)).toMatchObject({ status: 1, output: expect.stringContaining("TAG must look like v1.0.0") });
  });

  it("refuses changes that are not committed, another version, and one without its day, all at once", () => {
    commit("## 1.2.4 (not released)\n");
    writeFileSync(join(folder, "new.txt"), "x");
    const { status, output } = tagRelease("v1.2.4");
    expect(status).toBe(1);
    expect(output.trim().split("\n")).toEqual([
      "- there are changes that are not committed",
      "- package.json is not at 1.2.4",
      '- CHANGELOG.md has no section "## 1.2.4 (YEAR-MONTH-DAY)"',
    ]);
    expect(git("tag", "--list")).toBe("");
  });
});
