import { atMost, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import { load, startLoad } from "./drive.ts";
import { Http2Client, prepareRequest } from "./http2-client.ts";
import { checkPointRead, createDatabase, endlessFrame, pointFrame, pointTable, rowName, service } from "./requests.ts";
import { startServer, staysLocal } from "./server.ts";
import { ratios } from "./statistics.ts";

const quietCount = 100;
const noisyCount = 4;
const callsPerSecond = 1000;

/** Keeps an endless statement running on each of the noisy databases until it is told to stop. */
class Noise {
  readonly #port: number;
  #client: Http2Client | undefined;

  constructor(port: number) {
    this.#port = port;
  }

  start(): void {
    const client = new Http2Client({
      port: this.#port,
      windowBytes: 1 << 20,
      onFailure: (error) => {
        throw error;
      },
    });
    this.#client = client;
    for (let index = 0; index < noisyCount; index++) {
      const request = prepareRequest(`${service}/Execute`, this.#port, endlessFrame(`noisy-${index}`));
      const again = () => client.send(request, { data: () => undefined, end: again });
      again();
    }
  }

  stop(): void {
    this.#client?.close();
    this.#client = undefined;
  }
}

async function run(bench: Bench): Promise<BenchmarkResult> {
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal });
  bench.onEnd(() => server.stop());
  const quiet = Array.from({ length: quietCount }, (_, index) => `quiet-${index}`);
  for (const database of quiet) await createDatabase(server.port, database, pointTable);
  for (let index = 0; index < noisyCount; index++) await createDatabase(server.port, `noisy-${index}`, []);
  const loading = await startLoad(bench);
  const calls = quiet.map((database, index) => ({
    frame: pointFrame(database, index + 1).toString("base64"),
    contains: Buffer.from(rowName(index + 1)).toString("base64"),
  }));

  const noise = new Noise(server.port);
  bench.onEnd(async () => noise.stop());
  const p50 = { without: [] as number[], with: [] as number[] };
  const p99 = { without: [] as number[], with: [] as number[] };
  await inTurn(bench.short ? 2 : 5, ["without", "with"], async (name, round) => {
    const question = {
      port: server.port,
      path: `${service}/Execute`,
      calls,
      connections: 4,
      streams: 250,
      callsPerSecond,
    };
    if (name === "with") noise.start();
    // The first second shows how calls move away from executors that are taken; what is measured is the state after it.
    await load(loading, { ...question, seconds: 1 });
    const answer = await load(loading, { ...question, seconds: bench.short ? 1 : 3 });
    noise.stop();
    if (round === 0) return;
    p50[name].push(answer.p50Micros);
    p99[name].push(answer.p99Micros);
    bench.progress(
      `round ${round} ${name}: p50 ${Math.round(answer.p50Micros)} µs, p99 ${Math.round(answer.p99Micros)} µs`,
    );
  });
  await checkPointRead(server.port, "quiet-0", 1);
  return {
    ratios: [
      {
        name: "p99 with the neighbours, times without",
        values: ratios(p99.with, p99.without),
        target: atMost(3),
        isOfMachine: true,
      },
      { name: "p50 with the neighbours, times without", values: ratios(p50.with, p50.without), target: undefined },
    ],
    figures: [
      { name: "p99 without neighbours", unit: "µs", values: p99.without },
      { name: "p99 with neighbours", unit: "µs", values: p99.with },
      { name: "p50 without neighbours", unit: "µs", values: p50.without },
      { name: "p50 with neighbours", unit: "µs", values: p50.with },
    ],
  };
}

export const noisyNeighbour: Benchmark = {
  id: "B11",
  title: "Noisy neighbours",
  method:
    "Point reads on 100 databases at a fixed 1,000 calls a second, while another client keeps an endless statement running " +
    "on each of 4 other databases, against the same without it. Every answer's status and bytes are checked.",
  run,
};
