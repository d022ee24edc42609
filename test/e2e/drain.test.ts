import { createClient } from "@connectrpc/connect";
import { afterEach, describe, expect, it } from "vitest";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { createGrpcJsTransport } from "../support/grpc-js-transport.ts";
import { type ServerProcess, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();
const running = new Set<ServerProcess>();
const CALLERS = 16;
const RESTARTS = 6;

async function start(folder: string, port = 0): Promise<ServerProcess> {
  const server = await startServerProcess(folder, { environment: { SERVER_PORT: String(port) } });
  running.add(server);
  return server;
}

afterEach(async () => {
  await Promise.all([...running].map((server) => server.end("SIGKILL")));
});

/** Two servers behind one name, calls shared between them, UNAVAILABLE tried again: what a client of a mesh does. */
function clientOf(ports: readonly number[]) {
  const serviceConfig = {
    loadBalancingConfig: [{ round_robin: {} }],
    methodConfig: [
      {
        name: [{ service: DatabaseService.typeName }],
        waitForReady: true,
        retryPolicy: {
          maxAttempts: 5,
          initialBackoff: "0.05s",
          maxBackoff: "1s",
          backoffMultiplier: 2,
          retryableStatusCodes: ["UNAVAILABLE"],
        },
      },
    ],
  };
  const transport = createGrpcJsTransport(`ipv4:${ports.map((port) => `127.0.0.1:${port}`).join(",")}`, {
    "grpc.service_config": JSON.stringify(serviceConfig),
    "grpc.enable_retries": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
  });
  return { client: createClient(DatabaseService, transport), close: () => transport.close() };
}

describe("a restart by SIGTERM", () => {
  it("fails no call while two servers are restarted in turn under load", async () => {
    const folders = [newFolder(), newFolder()];
    const servers = await Promise.all(folders.map((folder) => start(folder)));
    const ports = servers.map(({ port }) => port);
    for (const { port } of servers) {
      const { client, close } = clientOf([port]);
      await client.createDatabase({ database: "orders" });
      await client.execute({ database: "orders", statement: { sql: "CREATE TABLE t (id INTEGER PRIMARY KEY)" } });
      close();
    }

    const { client, close } = clientOf(ports);
    let isOver = false;
    const counts = { reads: 0, writes: 0 };
    const failures: unknown[] = [];
    const callers = Array.from({ length: CALLERS }, async (_, caller) => {
      while (!isOver) {
        try {
          if (caller % 4 === 0) {
            await client.execute({
              database: "orders",
              statement: { sql: "INSERT INTO t DEFAULT VALUES" },
              requestId: crypto.randomUUID(),
            });
            counts.writes++;
          } else {
            await client.read({ database: "orders", statement: { sql: "SELECT 1" } });
            counts.reads++;
          }
        } catch (error) {
          failures.push(error);
          if (failures.length > 20) return;
        }
      }
    });

    for (let restart = 0; restart < RESTARTS; restart++) {
      const index = restart % 2;
      const before = counts.reads + counts.writes;
      await expect.poll(() => counts.reads + counts.writes, { timeout: 10_000 }).toBeGreaterThan(before + 200);
      expect(await servers[index]!.end("SIGTERM")).toBe(0);
      servers[index] = await start(folders[index]!, ports[index]!);
    }
    isOver = true;
    await Promise.all(callers);
    close();

    expect(failures).toEqual([]);
    expect(counts.reads).toBeGreaterThan(1000);
    expect(counts.writes).toBeGreaterThan(100);
  }, 90_000);
});
