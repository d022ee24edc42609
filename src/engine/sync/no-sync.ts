/** Syncing where nothing is carried: the persistence stage is a closer one, or there is no remote stage. */
import { Failure } from "../../failure/failure.ts";
import type { DurabilityLevel } from "../engine.ts";
import type { RemoteHealth, Sync, SyncStats } from "./sync.ts";

const healthy: RemoteHealth = { isHealthy: true, problem: undefined };

const nothing: SyncStats = {
  uploads: 0,
  puts: 0,
  uploadedBytes: 0,
  uploadFailures: 0,
  compactions: 0,
  snapshots: 0,
  unsyncedDatabases: 0,
  unsyncedBytes: 0,
  lagMs: 0,
  fencedDatabases: 0,
  deletionsPending: 0,
};

const ignored = (): void => undefined;
const ignoredLater = async (): Promise<void> => undefined;
const refused = async (): Promise<never> => {
  throw notCarried();
};

export const noSync: Sync = {
  isCarrying: false,
  isDiscovering: false,
  health: healthy,
  admit(durability: DurabilityLevel): undefined {
    if (durability === "remote") throw notCarried();
  },
  committed: ignored,
  durable: refused,
  uploadAll: refused,
  publish: refused,
  factsChanged: ignored,
  suspect: ignored,
  isBusy: () => false,
  forget: ignoredLater,
  // Its trace stays, for a server that carries.
  deleted: ignored,
  retired: ignored,
  lookUp: async () => false,
  start: ignored,
  stats: () => nothing,
  close: ignoredLater,
};

function notCarried(): Failure {
  return new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
}
