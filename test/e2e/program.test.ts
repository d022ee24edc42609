import { existsSync, readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterEach, describe, expect, it } from "vitest";
import { Durability } from "../../gen/persisto/v1/database_pb.js";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { storagePlaces } from "../../src/settings/places.ts";
import { loadSettings } from "../../src/settings/settings.ts";
import { type ServerProcess, startInVain, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();
const started: ServerProcess[] = [];

async function start(folder: string, environment: Readonly<Record<string, string>> = {}): Promise<ServerProcess> {
  const server = await startServerProcess(folder, { environment });
  started.push(server);
  return server;
}

afterEach(async () => {
  await Promise.all(started.splice(0).map((server) => server.end("SIGKILL")));
});

function clientOf({ port }: ServerProcess) {
  return createClient(DatabaseService, createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }));
}

async function countOf(server: ServerProcess, database: string): Promise<bigint> {
  const answer = await clientOf(server).read({
    database,
    statement: { sql: "SELECT count(*), count(DISTINCT id) FROM t" },
  });
  const { data } = answer.result ?? {};
  const kinds = data?.case === "rowBatch" ? (data.value.rows[0]?.values.map(({ kind }) => kind.value) ?? []) : [];
  expect(kinds[0]).toBe(kinds[1]);
  return BigInt(kinds[0] as bigint);
}

/** Inserts rows one after another until the server is gone; the number of those that were acknowledged. */
async function insertUntilGone(
  server: ServerProcess,
  database: string,
  writer: number,
  acknowledged: { count: number },
) {
  const client = clientOf(server);
  for (let index = 0; index < 100_000; index++) {
    try {
      await client.execute({
        database,
        durability: Durability.LOCAL,
        statement: {
          sql: "INSERT INTO t (id) VALUES (?)",
          parameters: [{ kind: { case: "text", value: `${writer}-${index}` } }],
        },
      });
      acknowledged.count++;
    } catch (error) {
      if (
        error instanceof ConnectError &&
        [Code.Unavailable, Code.Unknown, Code.Aborted, Code.Internal, Code.Canceled].includes(error.code)
      )
        return;
      throw error;
    }
  }
}

describe("the program", () => {
  it("says where it listens, what is off and what to try, and ends with 0 at SIGTERM", async () => {
    const folder = newFolder();
    const server = await start(folder);
    expect(server.output).toContain(`http://127.0.0.1:${server.port}`);
    expect(server.output).toMatch(/authentication is off/);
    expect(server.output).toContain("grpcurl -plaintext");
    expect(server.output).toMatch(/"remote":"[^"]+\/storage\/remote"/);
    const settings = loadSettings({ STORAGE_LOCAL_DIRECTORY_PATH: join(folder, "storage") });
    const { memoryDirectoryPath } = storagePlaces(settings);
    expect(existsSync(memoryDirectoryPath)).toBe(true);
    expect(await server.end("SIGTERM")).toBe(0);
    expect(existsSync(memoryDirectoryPath)).toBe(false);
  });

  it("ends with 0 at SIGINT too, and leaves no executor behind", async () => {
    const server = await start(newFolder());
    await clientOf(server).createDatabase({ database: "a" });
    const children = childrenOf(server.pid);
    expect(children.length).toBeGreaterThan(0);
    expect(await server.end("SIGINT")).toBe(0);
    expect(children.filter(isAlive)).toEqual([]);
  });

  it("takes a signal that comes twice at once for one, and a later one for the wish to end at once", async () => {
    const server = await start(newFolder());
    const client = clientOf(server);
    await client.createDatabase({ database: "busy" });
    const sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    const endless = client.read({ database: "busy", statement: { sql } }).catch((error: unknown) => error);
    await expect.poll(() => callsRunning(server)).toBe(1);
    process.kill(server.pid, "SIGINT");
    process.kill(server.pid, "SIGTERM");
    await expect.poll(() => server.output).toContain("drains");
    // It goes on draining: the endless statement has twenty seconds.
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(server.output).not.toContain('"message":"ends at once"');
    expect(await server.end("SIGTERM")).toBe(0);
    expect(server.output).toContain('"message":"ends at once"');
    expect(await endless).toBeInstanceOf(ConnectError);
  });

  it("refuses a folder that another server uses, and says so in one line", async () => {
    const folder = newFolder();
    await start(folder);
    const second = await startInVain(folder);
    expect(second.code).toBe(1);
    expect(second.output).toMatch(/Persisto cannot start: .*(in use|another)/i);
    expect(second.output).not.toMatch(/^\s+at /m);
  });

  it("refuses a port that is taken, and names the setting", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    const address = taken.address();
    const port = typeof address === "object" ? String(address?.port) : "";
    const { code, output } = await startInVain(newFolder(), { environment: { SERVER_PORT: port } });
    taken.close();
    expect(code).toBe(1);
    expect(output).toContain("SERVER_PORT");
  });

  it("refuses a log file that cannot be written", async () => {
    const folder = newFolder();
    const { code, output } = await startInVain(folder, { environment: { LOGGING_OUTPUT_FILE_PATH: folder } });
    expect(code).toBe(1);
    expect(output).toMatch(/Persisto cannot start: .*look at the paths/);
    expect(output).not.toMatch(/^\s+at /m);
  });

  it("refuses wrong settings, all at once", async () => {
    const { code, output } = await startInVain(newFolder(), {
      environment: { SERVER_PORT: "no", LOGGING_LEVEL: "loud", SERVER_HOST: "0.0.0.0" },
    });
    expect(code).toBe(1);
    expect(output).toContain("SERVER_PORT must be");
    expect(output).toContain("LOGGING_LEVEL must be");
  });

  it("loses nothing that it acknowledged as LOCAL when it is killed in mid-write, three times over", async () => {
    const folder = newFolder();
    const acknowledged = { count: 0 };
    for (let round = 0; round < 3; round++) {
      const server = await start(folder);
      const client = clientOf(server);
      if (round === 0) {
        await client.createDatabase({ database: "ledger" });
        await client.execute({ database: "ledger", statement: { sql: "CREATE TABLE t (id TEXT NOT NULL)" } });
      }
      expect(await countOf(server, "ledger")).toBeGreaterThanOrEqual(acknowledged.count);
      const before = acknowledged.count;
      const writers = [1, 2, 3, 4].map((writer) =>
        insertUntilGone(server, "ledger", round * 10 + writer, acknowledged),
      );
      // Killed in the middle of a create as well.
      const creating = client.createDatabase({ database: `half-${round}` }).catch((error: unknown) => error);
      while (acknowledged.count < before + 50) await new Promise((resolve) => setImmediate(resolve));
      expect(await server.end("SIGKILL")).toBe("SIGKILL");
      await Promise.all([...writers, creating]);
    }
    const server = await start(folder);
    const count = Number(await countOf(server, "ledger"));
    expect(count).toBeGreaterThanOrEqual(acknowledged.count);
    // A write may have been made durable without its answer having left: at most one for each writer and kill.
    expect(count).toBeLessThanOrEqual(acknowledged.count + 12);
    expect(readdirSync(join(folder, "storage", "databases")).filter((name) => name.startsWith("."))).toEqual([]);
    const { databases } = await clientOf(server).listDatabases({});
    for (const { id } of databases) expect(await clientOf(server).getDatabase({ database: id })).toBeDefined();
    expect(await server.end("SIGTERM")).toBe(0);
  }, 60_000);

  it("leaves no executor behind when it is killed", async () => {
    const server = await start(newFolder());
    await clientOf(server).createDatabase({ database: "a" });
    const children = childrenOf(server.pid);
    await server.end("SIGKILL");
    await expect.poll(() => children.filter(isAlive), { timeout: 5000 }).toEqual([]);
  });
});

async function callsRunning({ port }: ServerProcess): Promise<number> {
  const metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
  return Number(/^persisto_executor_calls_running (\d+)/m.exec(metrics)?.[1]);
}

function childrenOf(pid: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => parentOf(name) === pid)
    .map(Number);
}

function statusOf(pid: number | string): string {
  try {
    return readFileSync(`/proc/${pid}/status`, "utf8");
  } catch {
    // It has ended meanwhile.
    return "";
  }
}

function parentOf(pid: string): number {
  return Number(/^PPid:\s*(\d+)/m.exec(statusOf(pid))?.[1]);
}

/** A zombie is not alive: nobody may be there to collect it. */
function isAlive(pid: number): boolean {
  return /^State:\s*[^ZX]/m.test(statusOf(pid));
}
