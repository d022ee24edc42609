import { Agent, get as httpGet } from "node:http";
import { Stage } from "../gen/persisto/v1/database_pb.js";
import { atMost, type Bench, type Benchmark, type BenchmarkResult, type Figure, type Ratio } from "./benchmark.ts";
import { Client, each } from "./client.ts";
import { remoteAt, startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";
import { type Store, startStore } from "./store.ts";

const latencyMs = 20;
const blobBytes = 1000;
const fillStepMB = 10;
/** As many connections as a browser has to one server. */
const downloadConcurrency = 6;

async function run(bench: Bench): Promise<BenchmarkResult> {
  const store = await startStore(bench, 0);
  const settings = { ...staysLocal, ...remoteAt(store.port) };
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings });
  bench.onEnd(() => server.stop());
  const client = new Client(server.port);
  bench.onEnd(async () => client.close());

  const results: Ratio[] = [];
  const figures: Figure[] = [];
  for (const sizeMB of bench.short ? [1, 10] : [1, 10, 100]) {
    const database = `size-${sizeMB}`;
    await store.setLatency(0);
    await fill(client, database, sizeMB);
    await client.sync(database);
    await client.move("demote", database, Stage.REMOTE);
    await store.setLatency(latencyMs);
    const times = { hydration: [] as number[], download: [] as number[] };
    const requests: number[] = [];
    const rounds = bench.short ? 2 : 4;
    for (let round = 0; round <= rounds; round++) {
      await store.counts();
      const startedAt = performance.now();
      await client.execute(database, "SELECT count(*) FROM filler WHERE id = 1");
      const hydrationMs = performance.now() - startedAt;
      const { keysGot, gets, lists } = await store.counts();
      // Called, it still counts as remote; only what is on the local stage is taken away again.
      await client.move("promote", database, Stage.LOCAL);
      await client.move("demote", database, Stage.REMOTE);
      const downloadMs = await download(store, database, keysGot);
      if (round === 0) continue;
      times.hydration.push(hydrationMs);
      times.download.push(downloadMs);
      requests.push(gets + lists);
      bench.progress(
        `${sizeMB} MB, round ${round}: ${Math.round(hydrationMs)} ms, download ${Math.round(downloadMs)} ms`,
      );
    }
    results.push({
      name: `${sizeMB} MB, times a plain download`,
      values: ratios(times.hydration, times.download),
      target: atMost(1.3),
    });
    figures.push(
      { name: `${sizeMB} MB, to the first answer`, unit: "ms", values: times.hydration },
      { name: `${sizeMB} MB, plain download`, unit: "ms", values: times.download },
      { name: `${sizeMB} MB, requests`, unit: "", values: requests },
    );
  }
  return { ratios: results, figures };
}

async function fill(client: Client, database: string, sizeMB: number): Promise<void> {
  await client.createDatabase(database);
  await client.script(database, "CREATE TABLE filler (id INTEGER PRIMARY KEY, data BLOB NOT NULL)");
  for (let filledMB = 0; filledMB < sizeMB; filledMB += fillStepMB) {
    const count = (Math.min(fillStepMB, sizeMB) * 1_000_000) / blobBytes;
    await client.script(
      database,
      `INSERT INTO filler (data) WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ${count}) ` +
        `SELECT randomblob(${blobBytes}) FROM number`,
    );
  }
}

/** What a client must ask that knows the id alone: the manifest, then what there is, then all of that. */
async function download(store: Store, database: string, keysGot: readonly string[]): Promise<number> {
  const agent = new Agent({ keepAlive: true, maxSockets: downloadConcurrency });
  const manifest = `${database}/database.json`;
  const files = new Set(keysGot.filter((key) => key.endsWith(".ltx")));
  if (files.size === 0) throw new Error("nothing was fetched: the database was not remote");
  try {
    const startedAt = performance.now();
    await fetchAll(agent, store, `/benchmark/${manifest}`);
    await fetchAll(agent, store, `/benchmark/?list-type=2&prefix=${encodeURIComponent(`${database}/`)}`);
    await each([...files], downloadConcurrency, (key) => fetchAll(agent, store, `/benchmark/${key}`));
    return performance.now() - startedAt;
  } finally {
    agent.destroy();
  }
}

function fetchAll(agent: Agent, store: Store, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = httpGet({ agent, port: store.port, host: "127.0.0.1", path }, (response) => {
      if (response.statusCode !== 200) reject(new Error(`${path}: status ${response.statusCode}`));
      response.resume();
      response.on("end", resolve);
      response.on("error", reject);
    });
    request.on("error", reject);
  });
}

export const hydration: Benchmark = {
  id: "B14",
  title: "From the remote stage to the first answer",
  method:
    "A database that is on the remote stage alone is called: the server brings it to its disk and answers a read. The store " +
    "answers after 20 ms and sends 1 Gbit/s, to both sides. Against a plain download of the same objects by a bare HTTP " +
    "client, which has to ask for the manifest and the list first as well.",
  run,
};
