import { join } from "node:path";
import { atLeast, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import { carry } from "./client.ts";
import { startDriver } from "./drive.ts";
import { cpuMicros, Peer } from "./processes.ts";
import { checkPointRead, createDatabase, pointFrame, pointTable, service } from "./requests.ts";
import { startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";

const pointId = 4711;

/** Persisto with a table to read from, and the bare server that answers the same bytes. */
export async function startPointReads(bench: Bench) {
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal });
  bench.onEnd(() => server.stop());
  await createDatabase(server.port, "points", pointTable);
  await carry(server.port, ["points"]);
  const frame = pointFrame("points", pointId);
  const answer = await checkPointRead(server.port, "points", pointId);
  const { peer: echo, ready } = await Peer.start<{ port: number }>(
    "bare http2 server",
    "peers/echo.ts",
    [answer.toString("base64")],
    bench.placement.servers,
  );
  bench.onEnd(() => echo.stop());
  return { server, frame, answer, echo, echoPort: ready.port };
}

async function run(bench: Bench): Promise<BenchmarkResult> {
  const { server, frame, answer, echo, echoPort } = await startPointReads(bench);
  const { peer: stock, ready } = await Peer.start<{ port: number }>(
    "stock connect-node",
    "peers/stock-connect.ts",
    [join(bench.folder, "stock.sqlite")],
    bench.placement.servers,
  );
  bench.onEnd(() => stock.stop());
  const stockAnswer = await checkPointRead(ready.port, "points", pointId);
  const drive = await startDriver(bench);

  const targets = {
    bare: { port: echoPort, answerBytes: answer.length, pids: () => [echo.pid] },
    persisto: { port: server.port, answerBytes: answer.length, pids: () => [server.pid] },
    stock: { port: ready.port, answerBytes: stockAnswer.length, pids: () => [stock.pid] },
  };
  const rates = { bare: [] as number[], persisto: [] as number[], stock: [] as number[] };
  const cpu = { bare: [] as number[], persisto: [] as number[], stock: [] as number[], executors: [] as number[] };
  await inTurn(bench.short ? 2 : 5, ["bare", "persisto", "stock"], async (name, round) => {
    const target = targets[name];
    const executors = server.executorPids();
    const before = sum(target.pids());
    const executorsBefore = sum(executors);
    const result = await drive({
      port: target.port,
      path: `${service}/Execute`,
      frame,
      connections: 8,
      streams: 16,
      seconds: bench.short ? 1 : round === 0 ? 3 : 2,
      answerBytes: target.answerBytes,
    });
    if (round === 0) return;
    rates[name].push(result.callsPerSecond);
    cpu[name].push((sum(target.pids()) - before) / result.calls);
    if (name === "persisto") cpu.executors.push((sum(executors) - executorsBefore) / result.calls);
    bench.progress(`round ${round} ${name}: ${Math.round(result.callsPerSecond)} calls/s`);
  });
  await checkPointRead(server.port, "points", pointId);
  await checkPointRead(ready.port, "points", pointId);

  return {
    ratios: [
      { name: "of the bare http2 server", values: ratios(rates.persisto, rates.bare), target: atLeast(0.85) },
      { name: "times stock connect-node", values: ratios(rates.persisto, rates.stock), target: atLeast(6) },
    ],
    figures: [
      { name: "Persisto", unit: "calls/s", values: rates.persisto },
      { name: "bare http2 server", unit: "calls/s", values: rates.bare },
      { name: "stock connect-node", unit: "calls/s", values: rates.stock },
      { name: "processor time of Persisto's server process", unit: "µs a call", values: cpu.persisto },
      { name: "processor time of its executors", unit: "µs a call", values: cpu.executors },
      { name: "processor time of the bare http2 server", unit: "µs a call", values: cpu.bare },
      { name: "processor time of stock connect-node", unit: "µs a call", values: cpu.stock },
    ],
  };
}

function sum(pids: readonly number[]): number {
  return pids.reduce((total, pid) => total + cpuMicros(pid), 0);
}

export const pointReads: Benchmark = {
  id: "B1",
  title: "Point reads",
  method:
    "Execute of a read by primary key over gRPC, 8 connections × 16 streams, through the executor; against a bare node:http2 " +
    "server that answers the same bytes, and against the same statement behind stock connect-node with better-sqlite3 in " +
    "its own process. Answers are decoded before and after; during the load, status and length are checked.",
  run,
};
