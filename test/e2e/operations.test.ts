import { execFile, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import Database from "better-sqlite3";
import { afterEach, describe, expect, it } from "vitest";
import { read, root } from "../house/repository.ts";
import {
  accessKeyId,
  bucket,
  installed,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { litestreamPath, litestreamReplicate } from "../stages/litestream.ts";
import { callByHttp, readOne, write } from "../support/http-calls.ts";
import { type ServerProcess, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();
const started: ServerProcess[] = [];

afterEach(async () => {
  await Promise.all(started.splice(0).map((server) => server.end("SIGKILL")));
});

type Environment = Readonly<Record<string, string>>;

async function start(folder: string, environment: Environment): Promise<ServerProcess> {
  const server = await startServerProcess(folder, { environment });
  started.push(server);
  return server;
}

/** The block of docs/OPERATIONS.md with that word in it, with replacements; each has to be there. */
function block(word: string, replacements: Readonly<Record<string, string>>): string {
  const blocks = [...read("docs/OPERATIONS.md").matchAll(/```sh\n([\s\S]*?)```/g)].map(([, text = ""]) => text);
  let text = blocks.find((each) => each.includes(word)) ?? "";
  for (const [from, to] of Object.entries(replacements)) {
    expect(text).toContain(from);
    text = text.replaceAll(from, to);
  }
  return text;
}

/** Runs shell lines as the documents have them; rejects with what they wrote when one fails. */
async function shell(script: string, folder: string, environment: Environment = {}): Promise<string> {
  const path = [join(root, "build", "s3-servers", "bin"), process.env["PATH"]].join(delimiter);
  const env = { PATH: path, HOME: folder, EXECUTOR_COUNT_MAX: "1", ...environment };
  const { stdout } = await promisify(execFile)("bash", ["-euo", "pipefail", "-c", script], {
    cwd: folder,
    env,
    timeout: 60_000,
  });
  return stdout;
}

const program = `"${process.execPath}" "${join(root, "src", "main.ts")}"`;

/** A database `orders` with two rows, the second acknowledged REMOTE, whose server is gone. */
async function orders(folder: string, environment: Environment): Promise<void> {
  const server = await start(folder, environment);
  await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "orders" });
  await write(server.port, "orders", "CREATE TABLE line (body TEXT)");
  await write(server.port, "orders", "INSERT INTO line VALUES ('one')", "COMMITTED");
  await write(server.port, "orders", "INSERT INTO line VALUES ('two')");
  await server.end("SIGKILL");
}

function linesOf(path: string): unknown[] {
  const database = new Database(path, { readonly: true });
  try {
    return database.prepare("SELECT body FROM line ORDER BY rowid").pluck().all();
  } finally {
    database.close();
  }
}

const noLitestream = litestreamPath === undefined ? "litestream is not installed" : undefined;

describe("docs/OPERATIONS.md", () => {
  it("restores a database from a folder without Persisto", async ({ skip }) => {
    if (noLitestream !== undefined) skip(noLitestream);
    const folder = newFolder();
    const remote = join(folder, "remote");
    await orders(folder, { STORAGE_REMOTE_DIRECTORY_PATH: remote });
    await shell(block("file://$remote", { "/var/lib/persisto/storage/remote": remote }), folder);
    expect(linesOf(join(folder, "orders.sqlite"))).toEqual(["one", "two"]);
  }, 60_000);

  it("restores a database from a bucket without Persisto", async ({ skip }) => {
    if (noLitestream !== undefined) skip(noLitestream);
    if (spawnSync("curl", ["--version"]).status !== 0) skip("curl is not installed");
    const kind = s3ServerKinds.find((each) => ["versitygw", "weed"].includes(each.program) && installed(each));
    if (kind === undefined) return skip("no S3 server is installed");
    const s3 = await startS3Server(kind, newFolder());
    try {
      const folder = newFolder();
      await orders(folder, {
        STORAGE_REMOTE_ENDPOINT: s3.endpoint,
        STORAGE_REMOTE_ACCESS_KEY_ID: accessKeyId,
        STORAGE_REMOTE_SECRET_KEY: secretAccessKey,
        STORAGE_REMOTE_BUCKET_NAME: bucket,
      });
      const script = block("--aws-sigv4", {
        "https://s3.example.com": s3.endpoint,
        "bucket=my-databases": `bucket=${bucket}`,
        "LITESTREAM_ACCESS_KEY_ID=key": `LITESTREAM_ACCESS_KEY_ID=${accessKeyId}`,
        "LITESTREAM_SECRET_ACCESS_KEY=secret": `LITESTREAM_SECRET_ACCESS_KEY=${secretAccessKey}`,
      });
      await shell(script, folder);
      expect(linesOf(join(folder, "orders.sqlite"))).toEqual(["one", "two"]);
    } finally {
      await s3.stop();
    }
  }, 90_000);

  it("adopts what Litestream wrote, serves it, and Litestream restores what was added", async ({ skip }) => {
    if (noLitestream !== undefined) skip(noLitestream);
    const folder = newFolder();
    const remote = join(folder, "remote");
    const path = join(folder, "app.sqlite");
    const database = new Database(path);
    database.pragma("journal_mode = WAL");
    database.exec("CREATE TABLE line (body TEXT); INSERT INTO line VALUES ('of Litestream')");
    await litestreamReplicate({ folder: join(remote, "backup", "orders.db") }, path);
    database.close();

    const environment = { STORAGE_REMOTE_DIRECTORY_PATH: remote };
    // A server whose catalog is complete without it.
    expect(await (await start(folder, environment)).end("SIGTERM")).toBe(0);
    const printed = await shell(block("--dry-run", { "node dist/main.js": program }), folder, environment);
    expect(printed).toMatch(/can be adopted as orders\n[\s\S]*adopted as orders;/);
    const server = await start(folder, environment);
    expect(await readOne(server.port, "orders", "SELECT body FROM line")).toBe("of Litestream");
    await write(server.port, "orders", "INSERT INTO line VALUES ('of Persisto')");
    expect(await server.end("SIGTERM")).toBe(0);

    const checked = await shell(block("verify orders", { "node dist/main.js": program }), folder, environment);
    expect(checked.match(/^ok {3}orders$/gm)).toHaveLength(2);
    await shell(block("file://$remote", { "/var/lib/persisto/storage/remote": remote }), folder);
    expect(linesOf(join(folder, "orders.sqlite"))).toEqual(["of Litestream", "of Persisto"]);
    // Deleting the database deletes what Litestream wrote, too.
    const again = await start(folder, environment);
    await callByHttp(again.port, "DatabaseService/DeleteDatabase", { database: "orders" });
    await expect.poll(() => existsSync(join(remote, "backup", "orders.db", "ltx", "0"))).toBe(false);
  }, 90_000);

  it("explains every metric, and none that is not there", async () => {
    const server = await start(newFolder(), {});
    await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "orders" });
    const metrics = await (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text();
    const exported = [...metrics.matchAll(/^# TYPE (persisto_\w+)/gm)].map(([, name]) => name);
    const table = read("docs/OPERATIONS.md")
      .split("\n")
      .filter((line) => line.startsWith("| persisto_"));
    const explained = table.flatMap((line) => [...(line.split("|")[1] ?? "").matchAll(/persisto_\w+/g)]).map(String);
    expect(explained.toSorted()).toEqual(exported.toSorted());
  });
});
