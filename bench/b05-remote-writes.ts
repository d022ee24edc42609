import { Durability } from "../gen/persisto/v1/database_pb.js";
import { atLeast, atMost, type Bench, type Benchmark, type BenchmarkResult } from "./benchmark.ts";
import { Client, each } from "./client.ts";
import { load, startLoad } from "./drive.ts";
import { insertFrame, insertTable, integerOf, service } from "./requests.ts";
import { remoteAt, startServer, staysLocal } from "./server.ts";
import { startStore } from "./store.ts";

const latencyMs = 20;
/** At one time, while the databases are made. */
const createConcurrency = 32;
/** As the server's default: commits of this time go up together when nobody waits for them. */
const syncIntervalSeconds = 5;

async function run(bench: Bench): Promise<BenchmarkResult> {
  const groups = bench.short ? [100] : [100, 1000];
  const databases = Array.from({ length: Math.max(...groups) }, (_, index) => `remote-${index}`);
  const store = await startStore(bench, 0);
  const settings = { ...staysLocal, ...remoteAt(store.port) };
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings });
  bench.onEnd(() => server.stop());
  const client = new Client(server.port);
  bench.onEnd(async () => client.close());
  const syncAll = () => each(databases, createConcurrency, (database) => client.sync(database));
  await each(databases, createConcurrency, async (database) => {
    await client.createDatabase(database);
    for (const script of insertTable) await client.script(database, script);
  });
  await syncAll();
  await store.setLatency(latencyMs);

  const loading = await startLoad(bench);
  let written = 0;
  /** Gives what the clients saw, and the PUTs until everything is on the remote stage. */
  const write = async (chosen: readonly string[], durability: Durability, seconds: number, callsPerSecond?: number) => {
    await store.counts();
    const answer = await load(loading, {
      port: server.port,
      path: `${service}/Execute`,
      calls: chosen.map((name) => ({ frame: insertFrame(name, durability).toString("base64"), contains: "" })),
      connections: 8,
      ...(callsPerSecond === undefined ? { streams: 8 } : { streams: 1000, callsPerSecond }),
      seconds,
    });
    await syncAll();
    written += answer.callsAnswered;
    return { ...answer, puts: (await store.counts()).puts };
  };

  const waiting = groups.map((count) => ({ count, p50: [] as number[], p99: [] as number[], puts: [] as number[] }));
  const gathered = { puts: [] as number[], writesPerPut: [] as number[] };
  const shared = { rate: [] as number[], writesPerPut: [] as number[] };
  for (let round = 1; round <= (bench.short ? 1 : 2); round++) {
    const seconds = bench.short ? 3 : 8;
    for (const { count, p50, p99, puts } of waiting) {
      const answer = await write(databases.slice(0, count), Durability.REMOTE, seconds, count);
      p50.push(answer.p50Micros / 1000);
      p99.push(answer.p99Micros / 1000);
      puts.push(answer.puts / seconds);
      bench.progress(`round ${round}, ${count} databases: p50 ${Math.round(answer.p50Micros / 1000)} ms`);
    }
    const quietSeconds = syncIntervalSeconds * (bench.short ? 1 : 2);
    const quiet = await write(databases, Durability.COMMITTED, quietSeconds, databases.length);
    const joined = await write(databases.slice(0, 1), Durability.REMOTE, bench.short ? 1 : 3);
    gathered.puts.push(quiet.puts / quietSeconds);
    gathered.writesPerPut.push(quiet.callsAnswered / Math.max(1, quiet.puts));
    shared.rate.push(joined.callsPerSecond);
    shared.writesPerPut.push(joined.callsAnswered / Math.max(1, joined.puts));
  }
  let rows = 0;
  for (const database of databases) rows += await integerOf(server.port, database, "SELECT count(*) FROM entry");
  if (rows !== written) throw new Error(`${written} acknowledged, ${rows} rows`);
  return {
    ratios: [
      ...waiting.map(({ count, p50 }) => ({
        name: `p50 of ${count} remote writes a second`,
        values: p50,
        target: atMost(latencyMs + 40),
        unit: "ms",
        isOfMachine: true,
      })),
      { name: "writes of one database that share a PUT", values: shared.writesPerPut, target: atLeast(10) },
      {
        name: `writes that share a PUT when nobody waits, every ${syncIntervalSeconds} s`,
        values: gathered.writesPerPut,
        target: atLeast(syncIntervalSeconds * 0.7),
      },
    ],
    figures: [
      ...waiting.flatMap(({ count, p50, p99, puts }) => [
        { name: `${count} databases, each written once a second, p50`, unit: "ms", values: p50 },
        { name: `${count} databases, p99`, unit: "ms", values: p99 },
        { name: `${count} databases, somebody waits for every write`, unit: "PUTs/s", values: puts },
      ]),
      { name: `${databases.length} databases, nobody waits`, unit: "PUTs/s", values: gathered.puts },
      { name: "one database, 64 writers that wait", unit: "writes/s", values: shared.rate },
    ],
  };
}

export const remoteWrites: Benchmark = {
  id: "B5",
  title: "Writes that are acknowledged by the remote stage",
  method:
    "One-row inserts into many databases, each written once a second, over a store that answers after 20 ms: with " +
    "DURABILITY_REMOTE, where every write that is alone is one object; with DURABILITY_COMMITTED, where those of an interval " +
    "share one; and from 64 writers of one database, who share uploads because one runs at a time. All requests of the store " +
    "count, manifests and compactions too. Afterwards the rows are counted.",
  run,
};
