import { rmSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { VerifyReport } from "../../src/commands/verify-report.ts";
import { storagePlaces } from "../../src/settings/places.ts";
import { loadSettings } from "../../src/settings/settings.ts";
import { runCommandProcess } from "../support/command-process.ts";
import { callByHttp, write } from "../support/http-calls.ts";
import { startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();

/** Everything happens often: moves, uploads, checkpoints. */
const environment = {
  SETTINGS_STAGE_COOLDOWN_SECONDS: "0",
  SETTINGS_STAGE_TIMEOUT_SECONDS: "1",
  SETTINGS_SYNC_INTERVAL_SECONDS: "0.2",
  SETTINGS_CHECKPOINT_FRAMES_COUNT: "60",
  SETTINGS_CHECKPOINT_PAUSE_FRAMES_COUNT: "200",
};
const statements = [
  "INSERT INTO t (body) VALUES (randomblob(3000))",
  "UPDATE t SET body = randomblob(500) WHERE id % 3 = 0",
  "DELETE FROM t WHERE id % 5 = 0",
];
const durabilities = ["COMMITTED", "LOCAL", "REMOTE"] as const;
const ids = ["a", "b", "c"];
const writesBeforeKill = 60;

/** Writes and moves until the server is killed. */
async function live(folder: string): Promise<void> {
  const server = await startServerProcess(folder, { environment });
  let isOver = false;
  let writes = 0;
  // What fails in a move is tried again; at the end everything fails.
  const again = (): undefined => undefined;
  const writer = async (database: string) => {
    await callByHttp(server.port, "DatabaseService/CreateDatabase", { database, allowExisting: true }).catch(again);
    await write(server.port, database, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)").catch(again);
    for (let round = 0; !isOver; round++) {
      const sql = statements[round % 7 < 5 ? 0 : round % 3] ?? "";
      await write(server.port, database, sql, durabilities[round % 3]).catch(again);
      writes++;
    }
  };
  const mover = async () => {
    for (let round = 0; !isOver; round++) {
      const method = `StageService/${round % 3 < 2 ? "Promote" : "Demote"}Database`;
      await callByHttp(server.port, method, { database: ids[round % ids.length], wait: "1s" }).catch(again);
    }
  };
  const working = [...ids.map(writer), mover()];
  await expect.poll(() => writes, { timeout: 30_000 }).toBeGreaterThan(writesBeforeKill);
  expect(await server.end("SIGKILL")).toBe("SIGKILL");
  isOver = true;
  await Promise.all(working);
}

it("every copy agrees with every other after kills under load and moves, and without the memory stage", async () => {
  const folder = newFolder();
  for (let round = 0; round < 2; round++) {
    await live(folder);
    const { code, printed } = await runCommandProcess(folder, ["verify", "--json"], { environment });
    const { databases }: VerifyReport = JSON.parse(printed);
    expect(databases.filter(({ isGood }) => !isGood)).toEqual([]);
    expect([code, databases.map(({ database }) => database)]).toEqual([0, ids]);
    expect(databases.flatMap(({ comparisons }) => comparisons).length).toBeGreaterThan(0);
  }
  const settings = loadSettings({ STORAGE_LOCAL_DIRECTORY_PATH: join(folder, "storage") });
  rmSync(storagePlaces(settings).memoryDirectoryPath, { recursive: true });
  const { code, printed } = await runCommandProcess(folder, ["verify"], { environment });
  expect([code, printed]).toEqual([0, expect.stringContaining("3 databases verified, 0 with problems")]);
}, 120_000);
