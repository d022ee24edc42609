import { execFile, spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { read, root } from "../house/repository.ts";
import { callByHttp, readOne } from "../support/http-calls.ts";
import { type ServerProcess, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();
const runFile = promisify(execFile);
let server: ServerProcess;
let address: string;

beforeAll(async () => {
  server = await startServerProcess(newFolder());
  address = `127.0.0.1:${server.port}`;
});
afterAll(() => server.end("SIGTERM"));

/** The first block of README.md in that language with that word in it, for the server of this test. */
function block(language: string, word: string): string {
  const blocks = [...read("README.md").matchAll(/```(\w+)\n([\s\S]*?)```/g)];
  const found = blocks.find(([, of = "", text = ""]) => of === language && text.includes(word));
  return (found?.[2] ?? "").replaceAll("127.0.0.1:8080", address);
}

async function run(command: string, ...args: string[]): Promise<string> {
  const { stdout } = await runFile(command, args, {
    cwd: root,
    timeout: 30_000,
    env: { ...process.env, PATH: [join(root, "node_modules", ".bin"), process.env["PATH"]].join(delimiter) },
  });
  return stdout;
}

describe("README.md", () => {
  it("shows a first query by curl", async ({ skip }) => {
    if (spawnSync("curl", ["--version"]).status !== 0) skip("curl is not installed");
    const output = await run("bash", "-euc", `shopt -s expand_aliases\n${block("sh", "alias call=")}`);
    expect(output).toContain('"values":[{"text":"Lisbon"},{"integer":"567131"}]');
  });

  it("shows a first query by TypeScript", async () => {
    const folder = join(root, "build", "readme");
    mkdirSync(folder, { recursive: true });
    const program = join(folder, "first-query.ts");
    writeFileSync(program, block("ts", "createClient").replace('"./gen/', '"../../gen/'));
    expect(await run(process.execPath, program)).toContain("[ 'Lisbon', 567131n ]");
    rmSync(folder, { recursive: true });
  });

  it("shows a first query by grpcurl", async ({ skip }) => {
    if (spawnSync("grpcurl", ["-version"]).status !== 0) skip("grpcurl is not installed");
    const output = await run("bash", "-euc", block("sh", "grpcurl").replace("CreateDatabase", "GetDatabase"));
    expect(output).toContain('"integer": "42"');
  });
});

/** The operation that works on a database now. */
async function operationOf({ port }: ServerProcess, database: string): Promise<unknown> {
  const { databaseStage } = await callByHttp(port, "StageService/GetDatabaseStage", { database });
  return (databaseStage as { operation?: unknown }).operation;
}

describe("README.md's calls of stages and history", () => {
  it("do what it says", async () => {
    await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "first", allowExisting: true });
    const { position } = await callByHttp(server.port, "DatabaseService/ExecuteScript", {
      database: "first",
      script: "CREATE TABLE IF NOT EXISTS city (name TEXT)",
    });
    const { lineage, sequence } = position as { lineage: string; sequence: string };
    const text = block("sh", "GetDatabaseStage")
      .replaceAll("\\\n", " ")
      .replace('"63f250aef68dd809", "sequence": "1"', `"${lineage}", "sequence": "${sequence}"`);
    const calls = [...text.matchAll(/-d '(.*)'\s+\S+\s+persisto\.v1\.(\S+)/g)];
    expect(calls.map(([, , method]) => method)).toEqual([
      "StageService/GetDatabaseStage",
      "StageService/PromoteDatabase",
      "StageService/SyncDatabase",
      "DatabaseService/ForkDatabase",
      "DatabaseService/RestoreDatabase",
    ]);
    for (const [, body = "", method = ""] of calls) {
      // The policy may be moving it just now.
      await expect.poll(() => operationOf(server, "first")).toBeUndefined();
      const answer = await callByHttp(server.port, method, JSON.parse(body));
      expect([method, JSON.stringify(answer)]).toEqual([method, expect.not.stringContaining('"error"')]);
    }
    expect(await readOne(server.port, "copy", "SELECT count(*) FROM city")).toBeDefined();
  });
});

describe("reflection", () => {
  it.each(["grpc-v1", "grpc-v1alpha"])("lets buf curl call without proto files, by %s", async (protocol) => {
    const output = await run(
      "buf",
      ...["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", protocol, "--data", "{}"],
      `http://${address}/persisto.v1.ServerService/GetServerInfo`,
    );
    expect(JSON.parse(output)).toMatchObject({ name: "SQLite Backend API", version: "1.0.0" });
  });
});
