/** The object store of benchmarks, beside the server. */
import type { Bench } from "./benchmark.ts";
import type { StoreAnswer, StoreQuestion, StoreReady } from "./peers/object-store.ts";
import { Peer } from "./processes.ts";

export interface Store {
  readonly port: number;
  /** What was asked of it since the last time. */
  counts(): Promise<StoreAnswer>;
  /** From now on every request takes this long. */
  setLatency(latencyMs: number): Promise<void>;
}

/** Every request takes `latencyMs`. */
export async function startStore(bench: Bench, latencyMs: number): Promise<Store> {
  const { peer, ready } = await Peer.start<StoreReady>(
    "object store",
    "peers/object-store.ts",
    [String(latencyMs)],
    bench.placement.loads,
  );
  bench.onEnd(() => peer.stop());
  return {
    port: ready.port,
    counts: () => peer.ask<StoreAnswer>({} satisfies StoreQuestion),
    async setLatency(ms) {
      await peer.ask<StoreAnswer>({ latencyMs: ms } satisfies StoreQuestion);
    },
  };
}
