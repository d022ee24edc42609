/** Generates everything into a scratch folder and fails when the repository holds something else. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const generated = ["gen", "docs/API.md", "docs/ERRORS.md", "docs/CONFIGURATION.md", ".env.example"];

const folder = mkdtempSync(join(tmpdir(), "persisto-generated-"));
try {
  execFileSync("buf", ["generate", "--output", folder], { stdio: "inherit" });
  execFileSync("node", ["tools/generate-docs.ts", folder], { stdio: "inherit" });
  const stale = generated.filter(
    (path) => spawnSync("diff", ["-r", "-u", path, join(folder, path)], { stdio: "inherit" }).status !== 0,
  );
  if (stale.length > 0) {
    console.error(`not what the sources say: ${stale.join(", ")}; run \`make generate\` and commit the result`);
    process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true });
}
