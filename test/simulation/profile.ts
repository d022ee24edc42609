/** Settings of one simulated server: small bounds, so that short lives meet them. */
import type { PlacementSettings } from "../../src/engine/options.ts";
import type { UpkeepRules } from "../../src/engine/sync/upkeep.ts";
import { snapshotLevel } from "../../src/ltx/replica.ts";
import type { RetentionRules } from "../../src/ltx/retention.ts";
import type { FaultChances } from "../../src/objects/faulty.ts";
import type { Random } from "./random.ts";

export const retention: RetentionRules = { levelZeroMs: 4_000, snapshotMs: 60_000 };

export const upkeep: UpkeepRules = {
  levelIntervalsMs: new Map([
    [1, 2_000],
    [2, 8_000],
    [3, 30_000],
    [snapshotLevel, 60_000],
  ]),
  retention,
  compactionFilesMax: 4,
};

export interface Profile {
  readonly openDatabaseCountMax: number;
  readonly pageBytes: number;
  readonly syncsByItself: boolean;
  readonly unsyncedBytesMax: number;
  readonly hasMemory: boolean;
  readonly memoryCountMax: number;
  readonly placement: PlacementSettings;
  /** Of the store. */
  readonly faults: FaultChances;
  /** Faults of the disk come at all. */
  readonly diskFails: boolean;
}

export function randomProfile(random: Random): Profile {
  const persistenceStage = random.chance(0.85) ? 3 : 2;
  return {
    openDatabaseCountMax: random.pick([2, 3, 10]),
    pageBytes: random.pick([512, 1024, 4096]),
    syncsByItself: random.chance(0.85),
    unsyncedBytesMax: random.chance(0.2) ? 200_000 : 1024 * 1024 * 1024,
    hasMemory: random.chance(0.9),
    memoryCountMax: random.pick([0, 0, 1, 2]),
    placement: {
      autoMovement: random.chance(0.6),
      defaultCreationStage: Math.min(persistenceStage, 1 + random.below(3)),
      persistenceStage,
      timeoutMs: random.pick([2_000, 20_000]),
      requestCountThreshold: random.pick([2, 10]),
      requestWindowMs: 10_000,
      cooldownMs: random.pick([0, 3_000]),
      moveConcurrencyMax: 2,
      moveWaitMsMax: 1_000,
      hydrationConcurrencyMax: 2,
    },
    faults: random.pick<FaultChances>([
      {},
      {},
      { fail_before: 0.04, fail_after: 0.04, throttle: 0.02, delay: 0.05, delayMsMax: 400, cut_read: 0.03 },
      { lose_answer: 0.02, fail_after: 0.1, delete_part: 0.1 },
      { flip_bit: 0.04, cut_read: 0.04 },
    ]),
    diskFails: random.chance(0.25),
  };
}
