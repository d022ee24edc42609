import { execFile, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ServerProcess, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const root = join(import.meta.dirname, "..", "..");
const newFolder = temporaryFolders();
const runFile = promisify(execFile);

let server: ServerProcess;
let address: string;

beforeAll(async () => {
  server = await startServerProcess(newFolder());
  address = `127.0.0.1:${server.port}`;
});
afterAll(() => server.end("SIGTERM"));

async function run(command: string, args: readonly string[], folder = ".", timeout = 60_000): Promise<string> {
  const { stdout } = await runFile(command, args, {
    cwd: join(root, folder),
    timeout,
    killSignal: "SIGKILL",
    env: { ...process.env, PATH: [join(root, "node_modules", ".bin"), process.env["PATH"]].join(delimiter) },
  });
  return stdout;
}

function isInstalled(command: string, ...args: string[]): boolean {
  return spawnSync(command, args).status === 0;
}

const printed = "Lisbon 567131\nPorto 248769\n2 rows\n";

describe("examples", () => {
  it("curl", async ({ skip }) => {
    if (!isInstalled("curl", "--version")) skip("curl is not installed");
    const output = await run("bash", ["examples/curl/first-query.sh", address]);
    const answers = output
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(answers[3].result.rowBatch.rows).toEqual([
      { values: [{ text: "Lisbon" }, { integer: "567131" }] },
      { values: [{ text: "Porto" }, { integer: "248769" }] },
    ]);
  });

  it("TypeScript", async () => {
    expect(await run(process.execPath, ["examples/typescript/first-query.ts", address])).toBe(printed);
  });

  it("Python", async ({ skip }) => {
    const environment = join(root, "build", "examples", "python");
    const python = join(environment, "bin", "python3");
    const requirements = join("examples", "python", "requirements.txt");
    try {
      if (!existsSync(python)) await run("python3", ["-m", "venv", environment]);
      await run(python, ["-m", "pip", "install", "--quiet", "--requirement", requirements], ".", 120_000);
    } catch (error) {
      skip(`Python or its packages cannot be had: ${String(error).slice(0, 200)}`);
    }
    expect(await run(python, ["examples/python/first_query.py", address])).toBe(
      `${printed}PERMISSION_DENIED - no caller may use /etc/passwd (ATTACH); see the SQL rules in docs/SQL.md\n`,
    );
  }, 240_000);

  it("Go", async ({ skip }) => {
    if (!isInstalled("go", "version")) skip("Go is not installed");
    try {
      await run("go", ["mod", "download"], "examples/go", 120_000);
    } catch (error) {
      skip(`Go's modules cannot be had: ${String(error).slice(0, 200)}`);
    }
    await run("go", ["generate", "./..."], "examples/go", 180_000);
    expect(await run("go", ["run", ".", address], "examples/go", 180_000)).toBe(printed);
  }, 480_000);
});
