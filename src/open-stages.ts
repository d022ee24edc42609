/** The stages that the settings name, tried before the server relies on them. */
import { rmdir } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "./clock.ts";
import type { StagesOptions, SyncOptions } from "./engine/options.ts";
import { Failure } from "./failure/failure.ts";
import { nodeFileSystem } from "./files/file-system.ts";
import { defaultLevelIntervalsMs, defaultRetention } from "./ltx/retention.ts";
import { type MissingAbility, ObjectStoreError } from "./objects/object-store.ts";
import { isBucket, type OpenedObjectStore, openObjectStore } from "./objects/open-object-store.ts";
import type { Log } from "./observe/log.ts";
import { storagePlaces } from "./settings/places.ts";
import type { Settings } from "./settings/settings.ts";
import { FileStage } from "./stages/file-stage.ts";
import { openRemoteStage } from "./stages/open-remote-stage.ts";
import type { RemoteStage } from "./stages/remote.ts";

export interface StageDependencies {
  readonly clock: Clock;
  readonly randomBytes: (byteCount: number) => Uint8Array;
  readonly log: Pick<Log, "warn" | "error">;
}

export interface OpenedStages {
  /** What the engine is told of them. */
  readonly options: {
    readonly remote: RemoteStage | undefined;
    readonly sync: SyncOptions | undefined;
    readonly stages: StagesOptions;
  };
  /** Gives connections back; after the engine's end. */
  close(): Promise<void>;
}

/** A stage is not as it has to be. The message says what to do. */
export class StageError extends Error {
  override readonly name = "StageError";
}

/** A probe takes a dozen requests. */
const probeMsMax = 20_000;
/** One small request, repeats and all. */
const storeCallMs = 30_000;
const backOffStartMs = 500;
/** Files that one compaction takes: a merge holds a part of each in memory. */
const compactionFilesMax = 256;
const upkeepJitterMs = 10_000;

/**
 * Opens what the settings name. Rejects with StageError when the object store does not work and is required; without
 * that it is tried again for as long as the server runs.
 */
export async function openStages(settings: Settings, dependencies: StageDependencies): Promise<OpenedStages> {
  const { stages, sync, storage } = settings;
  const [remote, memory] = await Promise.all([openRemote(settings, dependencies), memoryStage(settings, dependencies)]);
  const retention = { ...defaultRetention, snapshotMs: sync.retentionMs };
  return {
    options: {
      remote: remote?.stage,
      sync: remote && {
        isAutomatic: stages.autoSyncEnabled,
        closeGraceMs: sync.closeGraceMs,
        limits: {
          intervalMs: sync.intervalMs,
          uploadConcurrencyMax: sync.uploadConcurrencyMax,
          compactionConcurrencyMax: sync.compactionConcurrencyMax,
          unsyncedBytesMax: storage.unsyncedBytesMax,
          backOff: { startMs: Math.min(backOffStartMs, sync.backoffMsMax), maxMs: sync.backoffMsMax },
          storeCallMs,
          upkeepJitterMs,
          upkeep: { levelIntervalsMs: defaultLevelIntervalsMs, retention, compactionFilesMax },
        },
      },
      stages: {
        settings: stages,
        displayNames: { memory: storage.memoryName, local: storage.localName, remote: storage.remoteName },
        memory,
        local: { bytesMax: storage.localBytesMax, databaseCountMax: storage.localDatabaseCountMax },
      },
    },
    async close() {
      await remote?.store.close();
      if (memory !== undefined && storage.memoryDirectoryPath === undefined) await leave(memory.directoryPath);
    },
  };
}

/** Our own folder in memory goes when no database is in it. */
async function leave(directoryPath: string): Promise<void> {
  for (const path of [join(directoryPath, "databases"), directoryPath]) {
    try {
      await rmdir(path);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOTEMPTY" || code === "EEXIST") return;
      if (code !== "ENOENT") throw error;
    }
  }
}

/** The remote stage, not tried; also for commands. `spoolDirectoryPath`: see `openRemoteStage`. */
export async function remoteStageOf(
  settings: Settings,
  spoolDirectoryPath: string,
  { clock, randomBytes, log }: StageDependencies,
): Promise<{ readonly stage: RemoteStage; readonly store: OpenedObjectStore["store"] }> {
  const { objectStore } = storagePlaces(settings);
  const { store, layout } = await openObjectStore(objectStore, {
    clock,
    random: randomBytes,
    limits: { concurrencyMax: settings.sync.uploadConcurrencyMax },
    onProblem: (message, error) => log.warn(message, { error }),
  });
  const stage = await openRemoteStage({
    store,
    layout,
    displayName: settings.storage.remoteName,
    fileSystem: nodeFileSystem,
    spoolDirectoryPath,
    clock,
    random: randomBytes,
    retention: { ...defaultRetention, snapshotMs: settings.sync.retentionMs },
    compactionFilesMax,
  });
  return { stage, store };
}

/** Undefined when nothing is to be carried there. */
async function openRemote(settings: Settings, dependencies: StageDependencies) {
  if (settings.stages.persistenceStage < 3) return undefined;
  const { localDirectoryPath, objectStore } = storagePlaces(settings);
  try {
    const remote = await remoteStageOf(settings, join(localDirectoryPath, "spool"), dependencies);
    // A folder that could be opened does what it has to: what is left to find out is what some S3 servers do not do.
    if (isBucket(objectStore)) await probe(remote, settings, dependencies);
    return remote;
  } catch (error) {
    if (error instanceof ObjectStoreError) throw new StageError(explain(error, settings), { cause: error });
    throw error;
  }
}

async function probe(
  { stage, store }: { readonly stage: RemoteStage; readonly store: OpenedObjectStore["store"] },
  settings: Settings,
  { clock, log }: StageDependencies,
): Promise<void> {
  try {
    await stage.probe({ deadlineAtMs: clock.now() + probeMsMax });
  } catch (error) {
    // Without conditional writes two servers could overwrite each other: that is no state to wait out.
    const canWait = error instanceof ObjectStoreError && error.missing !== "conditional_put";
    if (settings.storage.remoteRequired || !canWait) {
      await store.close();
      throw error;
    }
    log.error("the object store does not work; databases that are here are served, and it is tried again", { error });
  }
}

const advice: Readonly<Record<MissingAbility, string>> = {
  endpoint: "look at STORAGE_REMOTE_ENDPOINT and at the network",
  bucket: "make the bucket, or name another one by STORAGE_REMOTE_BUCKET_NAME",
  credentials: "look at STORAGE_REMOTE_ACCESS_KEY_ID, STORAGE_REMOTE_SECRET_KEY and STORAGE_REMOTE_REGION",
  permission: "the key must be allowed to list the bucket and to get, put and delete its objects (docs/OPERATIONS.md)",
  conditional_put: "",
};

function explain({ message, missing }: ObjectStoreError, settings: Settings): string {
  const { objectStore } = storagePlaces(settings);
  if (!isBucket(objectStore)) return `the remote stage: ${message}; look at STORAGE_REMOTE_DIRECTORY_PATH`;
  const hint = missing === undefined || missing === "conditional_put" ? "" : `; ${advice[missing]}`;
  const without = missing === "conditional_put" ? "" : ". STORAGE_REMOTE_REQUIRED=false serves what is local meanwhile";
  return `the remote stage: ${message}${hint}${without}`;
}

/** Undefined where there is no memory to use, unless the settings name a folder: then that is a mistake. */
async function memoryStage(settings: Settings, { clock, log }: StageDependencies): Promise<StagesOptions["memory"]> {
  const { memoryDirectoryPath: directoryPath } = storagePlaces(settings);
  const { memoryName, memoryBytesMax: bytesMax, memoryDatabaseCountMax: databaseCountMax } = settings.storage;
  const stage = new FileStage({
    name: "memory",
    displayName: memoryName,
    directoryPath,
    fileSystem: nodeFileSystem,
    clock,
  });
  try {
    await stage.probe({ deadlineAtMs: clock.now() + probeMsMax });
  } catch (error) {
    if (settings.storage.memoryDirectoryPath !== undefined) throw withoutStage(error);
    log.warn("there is no memory stage: STORAGE_MEMORY_DIRECTORY_PATH has to name a folder on a tmpfs", { error });
    return undefined;
  }
  return { directoryPath, bytesMax, databaseCountMax };
}

function withoutStage(error: unknown): unknown {
  if (!(error instanceof Failure) || !(error.cause instanceof Error)) return error;
  return new StageError(`the memory stage: ${error.cause.message}`, { cause: error });
}
