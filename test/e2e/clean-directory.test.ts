import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { read, root } from "../house/repository.ts";
import {
  accessKeyId,
  bucket,
  installed,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { runCommandProcess } from "../support/command-process.ts";
import { callByHttp, write } from "../support/http-calls.ts";
import { startInVain, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();

/** What the image's build stage copies, out of what is committed. */
function copyBuildContext(target: string): void {
  const copied = read(".dockerignore")
    .split("\n")
    .filter((line) => line.startsWith("!"))
    .map((line) => line.slice(1));
  const tracked = execFileSync("git", ["ls-files", "-z", "--", ...copied], { cwd: root, encoding: "utf8" });
  for (const path of tracked.split("\0").filter((each) => each !== "")) {
    mkdirSync(dirname(join(target, path)), { recursive: true });
    cpSync(join(root, path), join(target, path));
  }
  symlinkSync(join(root, "node_modules"), join(target, "node_modules"));
}

/** The modules of dist/ that are loaded with main.js: it, what it imports to start the server, and what these import. */
function startedBy(main: string): string[] {
  const found = new Map<string, string>();
  const follow = (path: string): void => {
    if (found.has(path)) return;
    const text = readFileSync(path, "utf8");
    found.set(path, text);
    for (const [, name = ""] of text.matchAll(/^(?:import|export)\b[^;"]*"(\.\/[^"]+)"/gm))
      follow(join(dirname(path), name));
  };
  follow(main);
  const late = [...(found.get(main) ?? "").matchAll(/import\("(\.\/(?:server|log|open-stages)-[^"]+)"\)/g)];
  expect(late).toHaveLength(3);
  for (const [, name = ""] of late) follow(join(dirname(main), name));
  expect(found.size).toBeGreaterThan(5);
  return [...found.values()];
}

/** The steps of the Dockerfile without an engine: build from the committed files, keep dist/ alone, run it elsewhere. */
describe("the program built in a clean directory", () => {
  let dist: string;

  beforeAll(() => {
    const context = newFolder();
    copyBuildContext(context);
    const environment = {
      ...process.env,
      PATH: [join(root, "node_modules", ".bin"), process.env["PATH"]].join(delimiter),
    };
    for (const script of ["native", "build"]) {
      execFileSync("npm", ["run", "--silent", script], {
        cwd: context,
        env: environment,
        stdio: "inherit",
        timeout: 120_000,
      });
    }
    dist = join(newFolder(), "dist");
    renameSync(join(context, "dist"), dist);
    rmSync(context, { recursive: true });
  }, 240_000);

  it("serves queries, answers its health check and ends in good order", async () => {
    const server = await startServerProcess(newFolder(), { program: join(dist, "main.js") });
    const call = async (method: string, body: object) => {
      const response = await fetch(`http://127.0.0.1:${server.port}/persisto.v1.DatabaseService/${method}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      return response.json();
    };
    await call("CreateDatabase", { database: "first" });
    const answer = await call("Read", { database: "first", statement: { sql: "SELECT 40 + 2" } });
    expect(answer).toMatchObject({ result: { rowBatch: { rows: [{ values: [{ integer: "42" }] }] } } });

    const metrics = await (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text();
    expect(metrics).toContain('persisto_calls_total{service="persisto.v1.DatabaseService",method="Read"');
    expect(metrics).toContain("process_cpu_seconds_total");

    const healthcheck = () => {
      const environment = { ...process.env, SERVER_PORT: String(server.port) };
      return spawnSync(process.execPath, [join(dist, "healthcheck.js")], { env: environment, timeout: 10_000 }).status;
    };
    expect(healthcheck()).toBe(0);
    expect(await server.end("SIGTERM")).toBe(0);
    expect(healthcheck()).toBe(1);
  }, 60_000);

  it("carries what a bucket needs, and the commands", async ({ skip }) => {
    const kind = s3ServerKinds.find((each) => ["versitygw", "weed"].includes(each.program) && installed(each));
    if (kind === undefined) return skip("no S3 server is installed");
    const s3 = await startS3Server(kind, newFolder());
    try {
      const program = join(dist, "main.js");
      const environment = {
        STORAGE_REMOTE_ENDPOINT: s3.endpoint,
        STORAGE_REMOTE_ACCESS_KEY_ID: accessKeyId,
        STORAGE_REMOTE_SECRET_KEY: secretAccessKey,
        STORAGE_REMOTE_BUCKET_NAME: bucket,
      };
      const folder = newFolder();
      const server = await startServerProcess(folder, { program, environment });
      await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "first" });
      await write(server.port, "first", "CREATE TABLE t (a)");
      expect(await server.end("SIGTERM")).toBe(0);
      const { code, printed } = await runCommandProcess(folder, ["verify"], { program, environment });
      expect([code, printed]).toEqual([0, expect.stringContaining("ok   first")]);
    } finally {
      await s3.stop();
    }
  }, 90_000);

  it("loads neither the codecs of the log nor the client of buckets to start", async () => {
    const server = await startServerProcess(newFolder(), { program: join(dist, "main.js") });
    const loaded = readFileSync(`/proc/${server.pid}/maps`, "utf8");
    expect(loaded).toContain("persisto.node");
    expect(loaded).not.toContain("lz4-napi");
    expect(await server.end("SIGTERM")).toBe(0);
    expect(startedBy(join(dist, "main.js")).filter((text) => /\bS3Client\b|WASMInterface/.test(text))).toEqual([]);
  }, 60_000);

  it("says what to install when the native library is missing", async () => {
    const broken = join(newFolder(), "dist");
    cpSync(dist, broken, { recursive: true });
    rmSync(join(broken, "persisto.node"));
    const { code, output } = await startInVain(newFolder(), { program: join(broken, "main.js") });
    expect(code).toBe(1);
    expect(output).toMatch(/Persisto cannot start: .*(compiler|cc|make)/i);
    expect(output).not.toMatch(/^\s+at /m);
  });
});
