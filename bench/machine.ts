/** Where figures were taken. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem, type } from "node:os";
import Database from "better-sqlite3";
import { h2loadVersion } from "./drive.ts";
import { serverIsBuilt } from "./server.ts";

export interface Machine {
  readonly processor: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly fileSystem: string;
  readonly node: string;
  readonly sqlite: string;
  readonly betterSqlite3: string;
  readonly loadGenerator: string;
  readonly program: string;
  /** Load average of the minute before. */
  readonly loadBefore: number;
}

export function describeMachine(folder: string): Machine {
  const manifest = readFileSync(new URL("../node_modules/better-sqlite3/package.json", import.meta.url), "utf8");
  const memory = new Database(":memory:");
  const sqlite = memory.prepare<[], string>("SELECT sqlite_version()").pluck().get() ?? "unknown";
  memory.close();
  return {
    processor: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 1024 ** 3),
    kernel: `${type()} ${release()}`,
    fileSystem: execFileSync("stat", ["--file-system", "--format", "%T", folder], { encoding: "utf8" }).trim(),
    node: process.version,
    sqlite,
    betterSqlite3: (JSON.parse(manifest) as { version: string }).version,
    loadGenerator: h2loadVersion ?? "bench/load.ts",
    program: serverIsBuilt ? "dist/" : "src/",
    loadBefore: loadavg()[0] ?? Number.NaN,
  };
}
