import { execFile, spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { read, root } from "../house/repository.ts";
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
