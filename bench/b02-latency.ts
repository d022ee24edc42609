import { startPointReads } from "./b01-point-reads.ts";
import { atMost, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import { load, startLoad } from "./drive.ts";
import { checkPointRead, rowName, service } from "./requests.ts";
import { ratios } from "./statistics.ts";

async function run(bench: Bench): Promise<BenchmarkResult> {
  const { server, frame, echoPort } = await startPointReads(bench);
  const peer = await startLoad(bench);
  const calls = [{ frame: frame.toString("base64"), contains: Buffer.from(rowName(4711)).toString("base64") }];
  const ports = { bare: echoPort, persisto: server.port };
  const p50 = { bare: [] as number[], persisto: [] as number[] };
  const p99 = { bare: [] as number[], persisto: [] as number[] };
  await inTurn(bench.short ? 2 : 5, ["bare", "persisto"], async (name, round) => {
    const path = `${service}/Execute`;
    if (round === 0) {
      // Both are measured when their code is compiled, which takes more calls than come one at a time.
      await load(peer, { port: ports[name], path, calls, connections: 8, streams: 16, seconds: bench.short ? 2 : 3 });
      return;
    }
    const seconds = bench.short ? 1 : 2;
    const answer = await load(peer, { port: ports[name], path, calls, connections: 1, streams: 1, seconds });
    p50[name].push(answer.p50Micros);
    p99[name].push(answer.p99Micros);
    bench.progress(
      `round ${round} ${name}: p50 ${Math.round(answer.p50Micros)} µs, p99 ${Math.round(answer.p99Micros)} µs`,
    );
  });
  await checkPointRead(server.port, "points", 4711);
  return {
    ratios: [
      { name: "p50, times the bare http2 server's", values: ratios(p50.persisto, p50.bare), target: atMost(1.5) },
      {
        name: "p99, times the bare http2 server's",
        values: ratios(p99.persisto, p99.bare),
        target: atMost(1.5),
        isOfMachine: true,
      },
    ],
    figures: [
      { name: "Persisto p50", unit: "µs", values: p50.persisto },
      { name: "bare http2 server p50", unit: "µs", values: p50.bare },
      { name: "Persisto p99", unit: "µs", values: p99.persisto },
      { name: "bare http2 server p99", unit: "µs", values: p99.bare },
    ],
  };
}

export const latency: Benchmark = {
  id: "B2",
  title: "Latency of a point read",
  method:
    "The calls of B1, one at a time on one connection, against the same bare server. Every answer's status and bytes are " +
    "checked by the client.",
  run,
};
