/**
 * Many databases on a real S3 server, under load, moves, kills and lost disks; nothing that was acknowledged may be missing.
 *
 *     npm run soak -- [--databases 10000] [--kills 6] [--seconds 20] [--seed 1]
 *
 * Each life of the server lasts so many seconds and ends with SIGKILL; every third takes the disk and the memory stage with
 * it, after which what was acknowledged REMOTE must be there. At the end every database is read, and samples are restored by
 * Litestream where it is installed. The last line counts what was compared, and what was wrong.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import Database from "better-sqlite3";
import { systemClock } from "../../src/clock.ts";
import { openObjectStore } from "../../src/objects/open-object-store.ts";
import {
  accessKeyId,
  bucket,
  installed,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { litestreamPath, litestreamRestore } from "../stages/litestream.ts";
import { callByHttp } from "../support/http-calls.ts";
import { type ServerProcess, startServerProcess } from "../support/server-process.ts";

const { values: given } = parseArgs({
  options: {
    databases: { type: "string", default: "10000" },
    kills: { type: "string", default: "6" },
    seconds: { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
  },
});
const databaseCount = Number(given.databases);
const killCount = Number(given.kills);
const lifeMs = Number(given.seconds) * 1000;

const clientCount = 32;
const rowsOfDatabaseMax = 400;
const litestreamSampleCount = 25;
const problemCountMax = 20;

const durabilities = ["COMMITTED", "LOCAL", "REMOTE"] as const;

/** What a client knows of a database; one client at a time uses it. */
interface Known {
  readonly id: string;
  isCreated: boolean;
  next: number;
  /** Acknowledged at any level, and at REMOTE. */
  readonly acknowledged: Set<number>;
  readonly remote: Set<number>;
  isBusy: boolean;
}

const problems: string[] = [];
const refusals = new Map<string, number>();
const counts = { writes: 0, reads: 0, moves: 0, refused: 0, checked: 0 };

function problem(text: string): void {
  problems.push(text);
  if (problems.length <= problemCountMax) process.stdout.write(`PROBLEM ${text}\n`);
}

/** Mulberry32. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

const random = randomOf(Number(given.seed));
const folder = mkdtempSync(join(tmpdir(), "persisto-soak-"));
const memoryFolder = mkdtempSync(join("/dev/shm", "persisto-soak-"));
const kind = s3ServerKinds.find((each) => each.hasConditions && installed(each) !== undefined);
if (kind === undefined) throw new Error("no S3 server is installed: sh tools/install-s3-servers.sh");
const s3 = await startS3Server(kind, folder);
const environment = {
  STORAGE_REMOTE_ENDPOINT: s3.endpoint,
  STORAGE_REMOTE_ACCESS_KEY_ID: accessKeyId,
  STORAGE_REMOTE_SECRET_KEY: secretAccessKey,
  STORAGE_REMOTE_BUCKET_NAME: bucket,
  STORAGE_MEMORY_DIRECTORY_PATH: memoryFolder,
  // Far fewer than there are: most of the time somebody has to go.
  STORAGE_MEMORY_DATABASE_COUNT_MAX: String(Math.ceil(databaseCount / 20)),
  STORAGE_LOCAL_DATABASE_COUNT_MAX: String(Math.ceil(databaseCount / 4)),
  SETTINGS_STAGE_TIMEOUT_SECONDS: "10",
  SETTINGS_STAGE_COOLDOWN_SECONDS: "1",
  SETTINGS_REQUEST_WINDOW_SECONDS: "30",
  SETTINGS_SYNC_INTERVAL_SECONDS: "2",
  UV_THREADPOOL_SIZE: "16",
};

const known: Known[] = Array.from({ length: databaseCount }, (_, index) => ({
  id: `db-${index}`,
  isCreated: false,
  next: 1,
  acknowledged: new Set(),
  remote: new Set(),
  isBusy: false,
}));

/** Some are used much, most seldom. */
function pick(): Known {
  for (;;) {
    const database = known[Math.floor(random() ** 2 * known.length)];
    if (database !== undefined && !database.isBusy) return database;
  }
}

/** Until the server is killed. */
async function client(server: ServerProcess, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    const database = pick();
    database.isBusy = true;
    try {
      await act(server, database);
    } catch (error) {
      counts.refused++;
      const reason = String(error)
        .slice(0, 160)
        .replace(/db-\d+|\d+/g, "N");
      refusals.set(reason, (refusals.get(reason) ?? 0) + 1);
      if (/internal|data_loss|not_found/.test(String(error))) problem(`${database.id}: ${error}`);
    } finally {
      database.isBusy = false;
    }
  }
}

async function act(server: ServerProcess, database: Known): Promise<void> {
  const { port } = server;
  const { id } = database;
  if (!database.isCreated) {
    await callByHttp(port, "DatabaseService/CreateDatabase", { database: id, allowExisting: true });
    await execute(port, id, "CREATE TABLE IF NOT EXISTS log (n INTEGER PRIMARY KEY, body TEXT)", "REMOTE");
    database.isCreated = true;
    return;
  }
  const chance = random();
  if (chance < 0.1) {
    await check(port, database, database.acknowledged);
    counts.reads++;
  } else if (chance < 0.14) {
    const call = random() < 0.5 ? "PromoteDatabase" : "DemoteDatabase";
    const stage = ["MEMORY", "LOCAL", "REMOTE"][Math.floor(random() * 3)];
    await callByHttp(port, `StageService/${call}`, { database: id, targetStage: `STAGE_${stage}`, wait: "10s" });
    counts.moves++;
  } else if (database.next <= rowsOfDatabaseMax) {
    const durability = durabilities[Math.floor(random() * 3)] ?? "LOCAL";
    const number = database.next++;
    await execute(port, id, `INSERT INTO log VALUES (${number}, hex(randomblob(100)))`, durability);
    database.acknowledged.add(number);
    if (durability === "REMOTE") for (const each of database.acknowledged) database.remote.add(each);
    counts.writes++;
  }
}

function execute(port: number, database: string, sql: string, durability: (typeof durabilities)[number]) {
  return callByHttp(port, "DatabaseService/Execute", {
    database,
    durability: `DURABILITY_${durability}`,
    statement: { sql },
  });
}

/** Every number that must be there is, and none that was never sent. */
async function check(port: number, database: Known, wanted: ReadonlySet<number>): Promise<void> {
  const answer = await callByHttp(port, "DatabaseService/Read", {
    database: database.id,
    statement: { sql: "SELECT group_concat(n) FROM log" },
  });
  const { rowBatch } = answer["result"] as { rowBatch: { rows: { values: { text?: string }[] }[] } };
  compare(database, wanted, rowBatch.rows[0]?.values[0]?.text ?? "");
}

function compare(database: Known, wanted: ReadonlySet<number>, text: string): void {
  const found = new Set(text === "" ? [] : text.split(",").map(Number));
  const missing = [...wanted].filter((number) => !found.has(number));
  const unknown = [...found].filter((number) => number >= database.next);
  if (missing.length > 0) problem(`${database.id} lacks ${missing.slice(0, 10)} of ${wanted.size}`);
  if (unknown.length > 0) problem(`${database.id} has ${unknown.slice(0, 10)}, which nobody wrote`);
  counts.checked++;
}

/** After a lost disk: what was promised is there; what is there from now on stays. */
async function checkAll(server: ServerProcess): Promise<void> {
  const queue = known.filter((database) => database.isCreated).values();
  const work = async () => {
    for (const database of queue) {
      try {
        await check(server.port, database, database.acknowledged);
      } catch (error) {
        problem(`${database.id} cannot be read: ${error}`);
      }
    }
  };
  await Promise.all(Array.from({ length: clientCount }, work));
}

function say(text: string): void {
  process.stdout.write(`${new Date().toISOString()} ${text} ${JSON.stringify(counts)}\n`);
}

const serverFolder = join(folder, "server");
mkdirSync(serverFolder);
try {
  for (let life = 1; life <= killCount; life++) {
    const startedMs = Date.now();
    const server = await startServerProcess(serverFolder, { environment });
    say(`life ${life} of ${killCount} began in ${Date.now() - startedMs} ms`);
    let isOver = false;
    const clients = Array.from({ length: clientCount }, () => client(server, () => isOver));
    await new Promise((resolve) => setTimeout(resolve, lifeMs * (0.5 + random() / 2)));
    isOver = true;
    await server.end("SIGKILL");
    if (/"level":"(error|fatal)"/.test(server.output)) say(`its log has errors: ${errorsOf(server.output)}`);
    await Promise.all(clients);
    if (life % 3 === 0) {
      rmSync(join(serverFolder, "storage"), { recursive: true, force: true });
      rmSync(memoryFolder, { recursive: true, force: true });
      for (const database of known) {
        database.acknowledged.clear();
        for (const number of database.remote) database.acknowledged.add(number);
      }
      say("the disk and the memory stage are lost");
    }
  }
  const last = await startServerProcess(serverFolder, { environment });
  await checkAll(last);
  say("every database was read");
  const code = await last.end("SIGTERM");
  if (code !== 0) problem(`the orderly end gave ${code}`);
  await restoreSamples();
} finally {
  await s3.stop();
  rmSync(folder, { recursive: true, force: true });
  rmSync(memoryFolder, { recursive: true, force: true });
}
for (const [reason, count] of refusals) process.stdout.write(`refused ${count} times: ${reason}\n`);
say(problems.length === 0 ? "nothing was lost" : "FAILED");
process.stdout.write(`${counts.checked} passed, ${problems.length} failed\n`);
process.exit(problems.length === 0 ? 0 : 1);

function errorsOf(output: string): string {
  const lines = output.split("\n").filter((line) => /"level":"(error|fatal)"/.test(line));
  return `${lines.length}, such as ${lines.at(-1)?.slice(0, 600)}`;
}

/** By Litestream alone: what any other program makes of the bucket. */
async function restoreSamples(): Promise<void> {
  if (litestreamPath === undefined) {
    say("Litestream is not installed: its restores are skipped");
    return;
  }
  const { store } = await openObjectStore(
    { endpoint: s3.endpoint, accessKeyId, secretAccessKey, bucket, region: "auto", directoryPath: folder },
    { clock: systemClock, random: randomBytes, onProblem: problem },
  );
  const created = known.filter((database) => database.isCreated);
  for (let index = 0; index < Math.min(litestreamSampleCount, created.length); index++) {
    const database = created[Math.floor(random() * created.length)];
    if (database === undefined) continue;
    const path = join(folder, `restored-${index}.sqlite`);
    try {
      const call = { deadlineAtMs: systemClock.now() + 10_000, bytesMax: 1_000_000 };
      const { bytes } = await store.get(`${database.id}/database.json`, call);
      const { prefix } = JSON.parse(Buffer.from(bytes).toString("utf8")) as { prefix: string };
      await litestreamRestore({ endpoint: s3.endpoint, prefix }, path);
      const restored = new Database(path, { readonly: true });
      const numbers = restored.prepare("SELECT group_concat(n) FROM log").pluck().get() as string | null;
      restored.close();
      compare(database, database.acknowledged, numbers ?? "");
    } catch (error) {
      problem(`${database.id} is not restored by Litestream: ${String(error).slice(0, 400)}`);
    }
  }
  await store.close();
  say("Litestream restored samples");
}
