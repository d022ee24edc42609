import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { atMost, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import { Http2Client, prepareRequest } from "./http2-client.ts";
import { stopProcess } from "./processes.ts";
import { createDatabase, pointFrame, pointTable, rowName, service } from "./requests.ts";
import { freePort, spawnServer, startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";

const giveUpMs = 20_000;

async function run(bench: Bench): Promise<BenchmarkResult> {
  const first = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal });
  await createDatabase(first.port, "points", pointTable).finally(() => first.stop());
  const times = { node: [] as number[], persisto: [] as number[] };
  await inTurn(bench.short ? 5 : 15, ["node", "persisto"], async (name, round) => {
    const ms = name === "node" ? await startNode() : await startToAnswer(bench);
    if (round === 0) return;
    times[name].push(ms);
    bench.progress(`round ${round} ${name}: ${ms.toFixed(1)} ms`);
  });
  return {
    ratios: [{ name: "times node -e 0", values: ratios(times.persisto, times.node), target: atMost(6) }],
    figures: [
      { name: "process start to first answered read", unit: "ms", values: times.persisto },
      { name: "node -e 0, start to end", unit: "ms", values: times.node },
    ],
  };
}

async function startNode(): Promise<number> {
  const startedAt = performance.now();
  await once(spawn(process.execPath, ["-e", "0"], { stdio: "ignore" }), "exit");
  return performance.now() - startedAt;
}

async function startToAnswer(bench: Bench): Promise<number> {
  const port = await freePort();
  const request = prepareRequest(`${service}/Execute`, port, pointFrame("points", 7));
  const startedAt = performance.now();
  const child = spawnServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal, port });
  try {
    while (!(await listens(port))) {
      if (child.exitCode !== null || performance.now() - startedAt > giveUpMs)
        throw new Error("the server did not start");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const body = await answerOf(port, request);
    const ms = performance.now() - startedAt;
    if (!body.includes(rowName(7))) throw new Error("the first read was answered wrongly");
    return ms;
  } finally {
    await stopProcess(child, "SIGTERM");
  }
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

function answerOf(port: number, request: ReturnType<typeof prepareRequest>): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const client = new Http2Client({ port, windowBytes: 1 << 20, onFailure: reject });
    const parts: Buffer[] = [];
    client.send(request, {
      data: (bytes) => parts.push(Buffer.from(bytes)),
      end(trailers) {
        client.close();
        if (trailers === undefined) reject(new Error("the first read failed"));
        else resolve(Buffer.concat(parts));
      },
    });
  });
}

export const start: Benchmark = {
  id: "B13",
  title: "Start",
  method:
    "From the start of the process to the first answered read of a database that was there before, against the start and " +
    "end of `node -e 0`. The reader tries to connect every millisecond.",
  run,
};
