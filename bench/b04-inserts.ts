import { join } from "node:path";
import { atLeast, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import { carry } from "./client.ts";
import { load, startDriver, startLoad } from "./drive.ts";
import type { FullAnswer, FullQuestion } from "./peers/full-commits.ts";
import { cpuMicros, Peer } from "./processes.ts";
import { createDatabase, execute, insertFrame, insertTable, integerOf, service } from "./requests.ts";
import { startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";

const manyCount = 64;
const many = Array.from({ length: manyCount }, (_, index) => `many-${index}`);

async function run(bench: Bench): Promise<BenchmarkResult> {
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal });
  bench.onEnd(() => server.stop());
  for (const database of ["one", ...many]) await createDatabase(server.port, database, insertTable);
  await carry(server.port, ["one", ...many]);
  const { frame: answer } = await execute(server.port, insertFrame("one"));
  const { peer: echo, ready } = await Peer.start<{ port: number }>(
    "bare http2 server",
    "peers/echo.ts",
    [answer.toString("base64")],
    bench.placement.servers,
  );
  bench.onEnd(() => echo.stop());
  const { peer: full } = await Peer.start("SQLite alone", "peers/full-commits.ts", [join(bench.folder, "full.sqlite")]);
  bench.onEnd(() => full.stop());
  const drive = await startDriver(bench);
  const loading = await startLoad(bench);

  const rates = { bare: [], one: [], full: [], bareMany: [], many: [] } as Record<
    "bare" | "one" | "full" | "bareMany" | "many",
    number[]
  >;
  const cpu = { server: [] as number[], executors: [] as number[] };
  let acknowledgedOne = 1;
  let acknowledgedMany = 0;
  await inTurn(bench.short ? 2 : 5, ["bare", "one", "full", "many", "bareMany"], async (name, round) => {
    const seconds = bench.short ? 1 : 2;
    const path = `${service}/Execute`;
    const shape = { path, connections: 8, streams: 8, seconds };
    let rate: number;
    if (name === "full") {
      const question: FullQuestion = { seconds: 1 };
      rate = (await full.ask<FullAnswer>(question)).commitsPerSecond;
    } else if (name === "bare" || name === "one") {
      const port = name === "one" ? server.port : ready.port;
      const executors = server.executorPids();
      const before = { server: cpuMicros(server.pid), executors: cpuSum(executors) };
      const result = await drive({ ...shape, port, frame: insertFrame("one"), answerBytes: answer.length });
      rate = result.callsPerSecond;
      if (name === "one") {
        acknowledgedOne += result.calls;
        if (round > 0) {
          cpu.server.push((cpuMicros(server.pid) - before.server) / result.calls);
          cpu.executors.push((cpuSum(executors) - before.executors) / result.calls);
        }
      }
    } else {
      const port = name === "many" ? server.port : ready.port;
      const calls = many.map((database) => ({ frame: insertFrame(database).toString("base64"), contains: "" }));
      const result = await load(loading, { ...shape, port, calls });
      rate = result.callsPerSecond;
      if (name === "many") acknowledgedMany += result.callsAnswered;
    }
    if (round === 0) return;
    rates[name].push(rate);
    bench.progress(`round ${round} ${name}: ${Math.round(rate)} a second`);
  });

  const rowsOne = await integerOf(server.port, "one", "SELECT count(*) FROM entry");
  let rowsMany = 0;
  for (const database of many) rowsMany += await integerOf(server.port, database, "SELECT count(*) FROM entry");
  // The driver leaves without waiting for its last calls, so there may be more rows than it has counted, never fewer.
  if (rowsOne < acknowledgedOne) throw new Error(`${acknowledgedOne} acknowledged, ${rowsOne} rows`);
  if (rowsMany !== acknowledgedMany) throw new Error(`${acknowledgedMany} acknowledged, ${rowsMany} rows`);

  return {
    // The bare server needs no disk: how fast that flushes decides these two as much as we do.
    ratios: [
      {
        name: "one database, of the bare http2 server",
        values: ratios(rates.one, rates.bare),
        target: atLeast(0.55),
        isOfMachine: true,
      },
      { name: "one database, times SQLite alone", values: ratios(rates.one, rates.full), target: atLeast(3) },
      {
        name: "64 databases, of the bare http2 server",
        values: ratios(rates.many, rates.bareMany),
        target: atLeast(0.45),
        isOfMachine: true,
      },
      { name: "64 databases, times SQLite alone", values: ratios(rates.many, rates.full), target: atLeast(2.5) },
    ],
    figures: [
      { name: "one database", unit: "inserts/s", values: rates.one },
      { name: "64 databases in turn", unit: "inserts/s", values: rates.many },
      { name: "bare http2 server", unit: "calls/s", values: rates.bare },
      { name: "bare http2 server, the client of the 64", unit: "calls/s", values: rates.bareMany },
      { name: "SQLite alone, synchronous=FULL", unit: "commits/s", values: rates.full },
      { name: "processor time of the server process, one database", unit: "µs a call", values: cpu.server },
      { name: "processor time of the executors, one database", unit: "µs a call", values: cpu.executors },
    ],
  };
}

function cpuSum(pids: readonly number[]): number {
  return pids.reduce((total, pid) => total + cpuMicros(pid), 0);
}

export const inserts: Benchmark = {
  id: "B4",
  title: "Durable one-row inserts",
  method:
    "Execute of a one-row insert with DURABILITY_LOCAL, 8 connections × 8 streams, on one database and on 64 in turn; against " +
    "the bare server of B1 under the same load, and against SQLite alone on the same disk with synchronous=FULL, one " +
    "commit after another. Afterwards the rows are counted: none that was acknowledged may be missing.",
  run,
};
