import { join } from "node:path";
import { atLeast, type Bench, type Benchmark, type BenchmarkResult, inTurn } from "./benchmark.ts";
import type { EncodeAnswer, EncodeQuestion, EncodeReady } from "./peers/ltx-encode.ts";
import { Peer } from "./processes.ts";
import { ratios } from "./statistics.ts";

async function run(bench: Bench): Promise<BenchmarkResult> {
  const sizeMB = bench.short ? 30 : 100;
  const { peer, ready } = await Peer.start<EncodeReady>("encoder", "peers/ltx-encode.ts", [
    join(bench.folder, "encode.sqlite"),
    String(sizeMB),
  ]);
  bench.onEnd(() => peer.stop());
  const times = { ltx: [] as number[], lz4: [] as number[] };
  const sizes = { ltx: [] as number[], lz4: [] as number[] };
  await inTurn(bench.short ? 3 : 7, ["ltx", "lz4"], async (what, round) => {
    const { ms, bytes } = await peer.ask<EncodeAnswer>({ what } satisfies EncodeQuestion);
    if (round === 0) return;
    times[what].push(ms);
    sizes[what].push(bytes / 1e6);
    bench.progress(`round ${round} ${what}: ${Math.round(ms)} ms`);
  });
  const throughput = (list: readonly number[]) => list.map((ms) => ready.sizeBytes / 1000 / ms);
  return {
    ratios: [{ name: "of lz4 alone", values: ratios(times.lz4, times.ltx), target: atLeast(0.5) }],
    figures: [
      { name: "size of the database", unit: "MB", values: [ready.sizeBytes / 1e6] },
      { name: "LTX", unit: "MB/s", values: throughput(times.ltx) },
      { name: "lz4 alone", unit: "MB/s", values: throughput(times.lz4) },
      { name: "size of the LTX file", unit: "MB", values: sizes.ltx },
    ],
  };
}

export const encoding: Benchmark = {
  id: "B9",
  title: "A snapshot as LTX",
  method:
    "A database as one LTX file, compressed page by page with checksums and index, against the compressor alone on the same " +
    "pages: what is left is what the format costs.",
  run,
};
