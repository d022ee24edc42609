import { readdirSync } from "node:fs";
import { atMost, type Bench, type Benchmark, type BenchmarkResult } from "./benchmark.ts";
import { Client, each } from "./client.ts";
import { load, startLoad } from "./drive.ts";
import { cpuMicros, residentMiB } from "./processes.ts";
import { insertFrame, insertTable, integerOf, service } from "./requests.ts";
import { remoteAt, type Server, startServer, staysLocal } from "./server.ts";
import { startStore } from "./store.ts";

const createConcurrency = 32;
/** Before what is idle is watched: the start's own work, and the last uploads. */
const settleMs = 3_000;

async function run(bench: Bench): Promise<BenchmarkResult> {
  const knownCount = bench.short ? 500 : 10_000;
  const openCount = bench.short ? 100 : 1_000;
  const idleSeconds = bench.short ? 3 : 60;
  const known = Array.from({ length: knownCount }, (_, index) => `known-${index}`);
  const store = await startStore(bench, 0);
  const options = {
    folder: bench.folder,
    prefix: bench.placement.servers,
    settings: { ...staysLocal, ...remoteAt(store.port) },
  };
  await fill(await startServer(options), known);

  const startedAt = performance.now();
  const server = await startServer(options);
  bench.onEnd(() => server.stop());
  const readyMs = performance.now() - startedAt;
  await new Promise((resolve) => setTimeout(resolve, settleMs));

  await store.counts();
  const before = sumOf(server, cpuMicros);
  await new Promise((resolve) => setTimeout(resolve, idleSeconds * 1000));
  const idleCpuMs = (sumOf(server, cpuMicros) - before) / 1000;
  const idleRequests = await store.counts();
  const { puts, gets, lists } = idleRequests;
  bench.progress(`idle: ${idleCpuMs} ms of processor, ${puts} PUTs, ${gets + lists} other requests`);

  const loading = await startLoad(bench);
  const question = { port: server.port, path: `${service}/Execute`, connections: 4, streams: 16 };
  const framesOf = (chosen: readonly string[]) =>
    chosen.map((database) => ({ frame: insertFrame(database).toString("base64"), contains: "" }));
  // A server that works is larger than one that does not: that is not the databases' doing.
  const few = known.slice(0, 4);
  await load(loading, { ...question, calls: framesOf(few), seconds: bench.short ? 1 : 5 });
  const working = { memory: sumOf(server, residentMiB), descriptors: sumOf(server, descriptorCount) };
  const used = known.slice(0, openCount);
  const answer = await load(loading, { ...question, calls: framesOf(used), seconds: bench.short ? 2 : 10 });
  if (answer.callsAnswered < openCount) throw new Error(`only ${answer.callsAnswered} of ${openCount} were used`);
  const open = { memory: sumOf(server, residentMiB), descriptors: sumOf(server, descriptorCount) };
  const opened = openCount - few.length;
  const rows = await integerOf(server.port, `known-${openCount - 1}`, "SELECT count(*) FROM entry");
  if (rows < 1) throw new Error("a database that was written to is empty");
  return {
    ratios: [
      {
        name: "memory of a database in use",
        values: [((open.memory - working.memory) * 1024) / opened],
        target: atMost(200),
        unit: "KiB",
        // Few databases are lost in what a heap grows and shrinks by.
        isOfMachine: bench.short,
      },
      {
        name: "descriptors of a database in use",
        values: [(open.descriptors - working.descriptors) / opened],
        target: atMost(4),
      },
      { name: "ready after a restart", values: [readyMs], target: atMost(1_000), unit: "ms", isOfMachine: true },
      { name: "PUTs while all are idle", values: [puts], target: atMost(0) },
      {
        name: "processor while all are idle, of one core",
        values: [idleCpuMs / (idleSeconds * 10)],
        target: atMost(1),
        unit: "%",
        isOfMachine: true,
      },
    ],
    figures: [
      { name: "databases known", unit: "", values: [knownCount] },
      { name: "databases open, used in turn", unit: "", values: [openCount] },
      { name: "writes to them, DURABILITY_LOCAL", unit: "calls/s", values: [answer.callsPerSecond] },
      { name: "p99 of these", unit: "ms", values: [answer.p99Micros / 1000] },
      { name: "all processes, working on 4 databases", unit: "MiB", values: [working.memory] },
      { name: "all processes, with all of these open", unit: "MiB", values: [open.memory] },
      { name: "idle for", unit: "s", values: [idleSeconds] },
      { name: "processor time in that time", unit: "ms", values: [idleCpuMs] },
      { name: "other requests of the object store in that time", unit: "", values: [gets + lists] },
    ],
  };
}

/** Makes all databases, and ends the server when everything of them is uploaded. */
async function fill(server: Server, known: readonly string[]): Promise<void> {
  const client = new Client(server.port);
  try {
    await each(known, createConcurrency, async (database) => {
      await client.createDatabase(database);
      for (const script of insertTable) await client.script(database, script);
    });
    await each(known, createConcurrency, (database) => client.sync(database));
  } finally {
    client.close();
    await server.stop();
  }
}

function sumOf(server: Server, figure: (pid: number) => number): number {
  return [server.pid, ...server.executorPids()].reduce((sum, pid) => sum + figure(pid), 0);
}

function descriptorCount(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

export const density: Benchmark = {
  id: "B8",
  title: "Many databases",
  method:
    "Very many databases are made and uploaded; the server starts again, idles, and then a part of them is written to in turn, " +
    "one row each, more of them than there are connections of the client. Memory and descriptors are those of all processes of " +
    "the server, beyond what it has while it works on 4 databases. A wrong answer ends the run.",
  run,
};
