import { join } from "node:path";
import { create, fromBinary } from "@bufbuild/protobuf";
import { QueryResponseSchema } from "../gen/persisto/v1/database_service_pb.js";
import { atLeast, atMost, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import type { CountAnswer, CountQuestion } from "./count-rows.ts";
import type { IterateAnswer } from "./peers/iterate-rows.ts";
import { forgetPeak, Peer, peakMiB, residentMiB } from "./processes.ts";
import { call, createDatabase, integerOf, queryFrame, service, streamRowCount, streamTable } from "./requests.ts";
import { startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";

async function run(bench: Bench): Promise<BenchmarkResult> {
  const options = { folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal };
  const filling = await startServer(options);
  await createDatabase(filling.port, "stream", streamTable).finally(() => filling.stop());
  const server = await startServer(options);
  bench.onEnd(() => server.stop());
  const { peer: iterating } = await Peer.start("better-sqlite3", "peers/iterate-rows.ts", [
    join(bench.folder, "iterate.sqlite"),
  ]);
  bench.onEnd(() => iterating.stop());
  const { peer: counting } = await Peer.start("counting client", "count-rows.ts", [], bench.placement.loads);
  bench.onEnd(() => counting.stop());

  // Idle: it has answered a call, and its executors have opened the database.
  await integerOf(server.port, "stream", "SELECT id FROM big WHERE id = 1");
  const executors = server.executorPids();
  const idle = { server: residentMiB(server.pid), executors: residentSum(executors) };
  const times = { iterate: [] as number[], rows: [] as number[], columns: [] as number[] };
  const memory = { server: [] as number[], executors: [] as number[] };
  await inTurn(bench.short ? 2 : 5, ["iterate", "rows", "columns"], async (name, round) => {
    let ms: number;
    let counted: number;
    if (name === "iterate") {
      ({ ms, rows: counted } = await iterating.ask<IterateAnswer>());
    } else {
      for (const pid of [server.pid, ...executors]) forgetPeak(pid);
      const frame = queryFrame("stream", name).toString("base64");
      const question: CountQuestion = { port: server.port, path: `${service}/Query`, frame };
      ({ ms, rows: counted } = await counting.ask<CountAnswer>(question));
      memory.server.push(peakMiB(server.pid) - idle.server);
      memory.executors.push(executors.reduce((sum, pid) => sum + peakMiB(pid), 0) - idle.executors);
    }
    if (counted !== streamRowCount) throw new Error(`${name}: ${counted} rows`);
    if (round === 0) return;
    times[name].push(ms);
    bench.progress(`round ${round} ${name}: ${Math.round(ms)} ms`);
  });
  await checkValues(server.port, "rows");
  await checkValues(server.port, "columns");

  return {
    ratios: [
      { name: "rows, times as fast as iterate()", values: ratios(times.iterate, times.rows), target: atLeast(2) },
      { name: "columns, times as fast as iterate()", values: ratios(times.iterate, times.columns), target: atLeast(2) },
      { name: "server process, peak memory above idle", unit: "MiB", values: memory.server, target: atMost(64) },
      { name: "executors together, peak memory above idle", unit: "MiB", values: memory.executors, target: atMost(64) },
    ],
    figures: [
      { name: "Query, rows", unit: "ms", values: times.rows },
      { name: "Query, columns", unit: "ms", values: times.columns },
      { name: "better-sqlite3 iterate()", unit: "ms", values: times.iterate },
      { name: "server process, idle", unit: "MiB", values: [idle.server] },
      { name: `executors together (${executors.length}), idle`, unit: "MiB", values: [idle.executors] },
    ],
  };
}

function residentSum(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + residentMiB(pid), 0);
}

/** Decodes a whole stream: every id once, in a header-to-summary stream. */
async function checkValues(port: number, layout: "rows" | "columns"): Promise<void> {
  const messages = await call(port, `${service}/Query`, queryFrame("stream", layout));
  let ids = 0n;
  let last = create(QueryResponseSchema);
  for (const bytes of messages) {
    last = fromBinary(QueryResponseSchema, bytes);
    if (last.message.case === "rowBatch") {
      for (const row of last.message.value.rows) {
        const id = row.values[0]?.kind;
        if (id?.case === "integer") ids += id.value;
      }
    } else if (last.message.case === "columnBatch") {
      for (const id of last.message.value.columns[0]?.integers ?? []) ids += id;
    }
  }
  const right = (BigInt(streamRowCount) * BigInt(streamRowCount + 1)) / 2n;
  if (ids !== right || last.message.case !== "summary") throw new Error(`wrong rows in the layout ${layout}`);
}

export const streaming: Benchmark = {
  id: "B3",
  title: "Streaming a million rows",
  method:
    "Query of 1,000,000 rows of integer, text and real to a client process that counts the rows in the bytes, against " +
    "better-sqlite3's iterate() (rows as arrays) over the same rows in one process. Memory is the peak of the resident set " +
    "while a stream runs, above what was resident before the first. Both layouts are decoded once and their values checked.",
  run,
};
