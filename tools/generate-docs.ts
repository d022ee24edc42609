/** Writes the generated pages of docs/ and .env.example, into the folder given or the repository itself. */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { configurationPage, environmentExample } from "./configuration-docs.ts";

const folder = process.argv[2] ?? ".";
mkdirSync(join(folder, "docs"), { recursive: true });
const template = {
  version: "v2",
  inputs: [{ directory: "proto" }],
  plugins: [{ local: ["node", "tools/protoc-gen-docs.ts"], out: "docs", strategy: "all", opt: ["target=ts"] }],
};
execFileSync("buf", ["generate", "--template", JSON.stringify(template), "--output", folder], { stdio: "inherit" });
writeFileSync(join(folder, "docs", "CONFIGURATION.md"), configurationPage());
writeFileSync(join(folder, ".env.example"), environmentExample());
