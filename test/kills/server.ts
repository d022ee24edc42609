/** A whole engine for the kill tests: all stages, small bounds, so that everything happens within a second. */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { systemClock } from "../../src/clock.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { openEngine } from "../../src/engine/local-engine.ts";
import type { FailPoints } from "../../src/fail-points.ts";
import type { FileSystem } from "../../src/files/file-system.ts";
import { snapshotLevel } from "../../src/ltx/replica.ts";
import type { ObjectStorePlace } from "../../src/objects/open-object-store.ts";
import { openObjectStore } from "../../src/objects/open-object-store.ts";
import type { CallOptions, Executors } from "../../src/sqlite/executor.ts";
import { startInProcessExecutors } from "../../src/sqlite/in-process.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { openRemoteStage } from "../../src/stages/open-remote-stage.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { executorLimits, testLimits } from "../engine/fixtures.ts";

const retention = { levelZeroMs: 300, snapshotMs: 700 };

export interface ServerOptions {
  readonly localPath: string;
  readonly memoryPath: string;
  readonly place: ObjectStorePlace;
  readonly fileSystem: FileSystem;
  readonly failPoints?: FailPoints;
  /** Executors in processes of their own. */
  readonly hasProcesses: boolean;
  readonly between?: (executors: Executors) => Executors;
  readonly log?: (line: string) => void;
}

export interface Server {
  readonly engine: Engine;
  readonly remote: RemoteStage;
  close(): Promise<void>;
}

export async function openServer(options: ServerOptions): Promise<Server> {
  const { localPath, memoryPath, place, fileSystem, failPoints, hasProcesses, between = (all) => all } = options;
  const random = (byteCount: number) => randomBytes(byteCount);
  const log = (level: string, message: string, facts: unknown) => {
    if (level !== "info") options.log?.(`${level} ${message} ${JSON.stringify(facts)}`);
  };
  const start = hasProcesses ? startExecutors : startInProcessExecutors;
  const executors = await start({ limits: executorLimits, clock: systemClock, random: Math.random, log });
  const { store, layout } = await openObjectStore(place, { clock: systemClock, random });
  const remote = await openRemoteStage({
    store,
    layout,
    displayName: "remote",
    fileSystem,
    spoolDirectoryPath: join(localPath, "spool"),
    clock: systemClock,
    random,
    retention,
    compactionFilesMax: 4,
  });
  const engine = await openEngine({
    directoryPath: localPath,
    executors: between(executors),
    clock: systemClock,
    random,
    log,
    limits: { ...testLimits, checkpointFrames: 20, checkpointPauseFrames: 60, openDatabaseCountMax: 20, tidyMs: 100 },
    fileSystem,
    ...(failPoints && { failPoints }),
    remote,
    sync: {
      isAutomatic: true,
      closeGraceMs: 5_000,
      limits: {
        intervalMs: 30,
        uploadConcurrencyMax: 4,
        compactionConcurrencyMax: 2,
        unsyncedBytesMax: 1024 * 1024 * 1024,
        backOff: { startMs: 20, maxMs: 200 },
        storeCallMs: 5_000,
        upkeepJitterMs: 20,
        upkeep: {
          levelIntervalsMs: new Map([
            [1, 100],
            [2, 250],
            [snapshotLevel, 400],
          ]),
          retention,
          compactionFilesMax: 4,
        },
      },
    },
    stages: {
      settings: {
        autoMovement: false,
        defaultCreationStage: 2,
        persistenceStage: 3,
        timeoutMs: 600_000,
        requestCountThreshold: 1_000_000,
        requestWindowMs: 60_000,
        cooldownMs: 0,
        moveConcurrencyMax: 4,
        moveWaitMsMax: 500,
        hydrationConcurrencyMax: 4,
      },
      displayNames: { memory: "memory", local: "local", remote: "remote" },
      memory: { directoryPath: memoryPath, bytesMax: 0, databaseCountMax: 0 },
      local: { bytesMax: 0, databaseCountMax: 0 },
    },
  });
  return {
    engine,
    remote,
    async close() {
      await engine.close();
      await executors.close(1_000);
      await store.close();
    },
  };
}

export function callOptions(ms = 10_000): CallOptions {
  return {
    columns: false,
    scope: 0,
    resultBytesMax: 4 * 1024 * 1024,
    deadlineAtMs: systemClock.now() + ms,
    deadlineSource: "server",
    cancel: undefined,
  };
}
