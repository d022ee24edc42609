/** What all work on the remote stage shares: how a call is bounded, and what its end says about the store. */
import type { ObjectCall } from "../../objects/object-store.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { Replicas } from "./replicas.ts";
import { isStoreFailure, type StoreHealth } from "./store-health.ts";
import type { SyncHost, SyncLimits } from "./sync.ts";

export interface StoreContext {
  readonly host: SyncHost;
  readonly remote: RemoteStage;
  readonly limits: SyncLimits;
  readonly health: StoreHealth;
  readonly replicas: Replicas;
}

/** Slowest transfer that is waited for. */
const bytesPerMs = 256;

/** Runs one call, or a few that belong together, with a deadline that leaves time for so many bytes. */
export async function storeCall<T>(
  { host, limits, health }: StoreContext,
  signal: AbortSignal,
  byteCount: number,
  run: (call: ObjectCall) => Promise<T>,
): Promise<T> {
  const deadlineAtMs = host.clock.now() + limits.storeCallMs + byteCount / bytesPerMs;
  try {
    const result = await run({ deadlineAtMs, signal });
    health.succeeded();
    return result;
  } catch (error) {
    if (isStoreFailure(error)) health.failed(error);
    else if (!signal.aborted) health.answered(error);
    throw error;
  }
}
