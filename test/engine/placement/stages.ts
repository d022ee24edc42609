/** An engine with all stages: folders of the test, a bucket in memory behind faults, and a clock that can jump. */
import { randomBytes } from "node:crypto";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type Clock, systemClock } from "../../../src/clock.ts";
import type { EngineOptions, PlacementSettings, StageBudget } from "../../../src/engine/options.ts";
import type { FailPoint } from "../../../src/fail-points.ts";
import type { FileSystem } from "../../../src/files/file-system.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import { type FaultSource, FaultyStore } from "../../../src/objects/faulty.ts";
import { openRemoteStage } from "../../../src/stages/open-remote-stage.ts";
import { type MemoryBucket, MemoryObjectStore } from "../../support/memory-object-store.ts";
import { openScene, type Scene } from "../scene.ts";
import { testSyncLimits } from "../sync/scene.ts";

/** The machine's clock, which can also be told that time has passed. Timers keep to the machine's time. */
export class JumpingClock implements Clock {
  #aheadMs = 0;
  #rounds = 0;
  readonly #waits = new Set<{ readonly rounds: number; readonly done: () => void }>();
  now(): number {
    return systemClock.now() + this.#aheadMs;
  }
  wallMs(): number {
    return systemClock.wallMs() + this.#aheadMs;
  }
  after(ms: number, run: () => void): () => void {
    return systemClock.after(ms, run);
  }
  every(ms: number, run: () => void): () => void {
    return systemClock.every(ms, () => {
      run();
      this.#rounds++;
      for (const wait of [...this.#waits]) {
        if (this.#rounds < wait.rounds) continue;
        this.#waits.delete(wait);
        wait.done();
      }
    });
  }
  /** Resolves when what runs regularly has run so many times more. */
  async rounds(count: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waits.add({ rounds: this.#rounds + count, done: resolve });
    await promise;
  }
  jump(ms: number): void {
    this.#aheadMs += ms;
  }
}

export interface StagesSceneOptions {
  readonly folder: string;
  readonly bucket?: MemoryBucket;
  readonly settings?: Partial<PlacementSettings>;
  readonly memory?: Partial<StageBudget> | false;
  readonly local?: Partial<StageBudget>;
  /** False: there is no remote stage. */
  readonly remote?: boolean;
  readonly isAutomatic?: boolean;
  readonly intervalMs?: number;
  readonly limits?: Parameters<typeof openScene>[0]["limits"];
  readonly fileSystem?: FileSystem;
  readonly processes?: boolean;
  readonly onReach?: (point: FailPoint) => void;
}

export interface StagesScene extends Scene {
  readonly clock: JumpingClock;
  readonly bucket: MemoryBucket;
  /** Calls that have reached the store: operation and key. */
  readonly calls: string[];
  /** Faults of the calls to come. */
  faults: FaultSource;
  /** Names in the local folder of a database; none when there is no folder. */
  localFiles(id: string): string[];
  /** Databases that have files in memory. */
  memoryFiles(): string[];
  /** Moves and waits for the end; rejects with the operation's error. */
  move(kind: "promote" | "demote", id: string, target?: "memory" | "local" | "remote"): Promise<void>;
  stageOf(id: string): Promise<string>;
  /** Where there are bytes of it, closest first. */
  placesOf(id: string): Promise<string[]>;
}

export const testSettings: PlacementSettings = {
  autoMovement: false,
  defaultCreationStage: 2,
  persistenceStage: 3,
  timeoutMs: 300_000,
  requestCountThreshold: 3,
  requestWindowMs: 60_000,
  cooldownMs: 60_000,
  moveConcurrencyMax: 2,
  moveWaitMsMax: 10_000,
  hydrationConcurrencyMax: 2,
};

export async function openStages(given: StagesSceneOptions): Promise<StagesScene> {
  const clock = new JumpingClock();
  const bucket: MemoryBucket = given.bucket ?? new Map();
  const calls: string[] = [];
  const faulting: { faults: FaultSource } = { faults: () => [] };
  const store = new FaultyStore({
    store: new MemoryObjectStore(systemClock, bucket),
    clock: systemClock,
    faults: (operation, key) => {
      calls.push(`${operation} ${key}`);
      return faulting.faults(operation, key);
    },
  });
  const directoryPath = join(given.folder, "local");
  const memoryPath = join(given.folder, "memory");
  for (const path of [directoryPath, memoryPath]) await nodeFileSystem.makeFolder(path);
  const fileSystem = given.fileSystem ?? nodeFileSystem;
  const remote =
    given.remote === false
      ? undefined
      : await openRemoteStage({
          store,
          layout: "bucket",
          displayName: "remote",
          fileSystem,
          spoolDirectoryPath: join(given.folder, "spool"),
          clock,
          random: (byteCount) => randomBytes(byteCount),
        });
  const stages: Pick<EngineOptions, "remote" | "sync" | "stages" | "failPoints"> = {
    remote,
    sync: remote && {
      isAutomatic: given.isAutomatic ?? true,
      closeGraceMs: 2_000,
      limits: {
        ...testSyncLimits,
        intervalMs: given.intervalMs ?? 20,
        upkeepJitterMs: 1,
        unsyncedBytesMax: 1024 ** 3,
        backOff: { startMs: 10, maxMs: 50 },
      },
    },
    stages: {
      settings: { ...testSettings, ...given.settings },
      displayNames: { memory: "Memory", local: "Disk", remote: "Bucket" },
      memory:
        given.memory === false
          ? undefined
          : { directoryPath: memoryPath, bytesMax: 1024 ** 3, databaseCountMax: 0, ...given.memory },
      local: { bytesMax: 8 * 1024 ** 3, databaseCountMax: 0, ...given.local },
    },
    ...(given.onReach === undefined ? {} : { failPoints: { reach: given.onReach } }),
  };
  const scene = await openScene({
    directoryPath,
    clock,
    stages,
    fileSystem,
    processes: given.processes ?? false,
    limits: { tidyMs: 10, ...given.limits },
  });
  const { engine } = scene;
  return {
    ...scene,
    clock,
    bucket,
    calls,
    get faults() {
      return faulting.faults;
    },
    set faults(faults: FaultSource) {
      faulting.faults = faults;
    },
    localFiles: (id) => {
      const path = join(directoryPath, "databases", id);
      return existsSync(path) ? readdirSync(path).sort() : [];
    },
    memoryFiles: () => {
      const path = join(memoryPath, "databases");
      return existsSync(path) ? readdirSync(path).sort() : [];
    },
    async move(kind, id, target) {
      const { done, error } = await engine[kind]({ id, target, wait: { waitMs: 15_000, cancel: undefined } });
      if (error !== undefined) throw error;
      if (!done) throw new Error("the move did not end in time");
    },
    stageOf: async (id) => (await engine.getDatabaseStage(id)).stage,
    placesOf: async (id) => (await engine.getDatabaseStage(id)).residencies.map(({ stage }) => stage),
  };
}
