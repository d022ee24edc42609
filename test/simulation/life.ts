/** One process of the simulated server, from its start to its death. What is dead answers nothing and does nothing. */
import { join } from "node:path";
import type { Clock } from "../../src/clock.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { openEngine } from "../../src/engine/local-engine.ts";
import type { FailPoint } from "../../src/fail-points.ts";
import type { FileSystem } from "../../src/files/file-system.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";
import type { Executors } from "../../src/sqlite/executor.ts";
import { startInProcessExecutors } from "../../src/sqlite/in-process.ts";
import { openRemoteStage } from "../../src/stages/open-remote-stage.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { executorLimits, testLimits } from "../engine/fixtures.ts";
import type { SimulatedDisk } from "./disk.ts";
import { MortalClock, mortalStore } from "./mortal.ts";
import { type Profile, retention, upkeep } from "./profile.ts";
import type { Random } from "./random.ts";

export interface LifeOptions {
  readonly disk: SimulatedDisk;
  readonly clock: Clock;
  readonly random: Random;
  readonly profile: Profile;
  /** The bucket, as far as it is to be reached. */
  readonly store: ObjectStore;
  readonly betweenStage: ((stage: RemoteStage) => RemoteStage) | undefined;
  /** Told of every step of the engine, while it lives. */
  onReach(point: FailPoint): void;
  onLog(level: "info" | "warn" | "error", message: string, facts: Readonly<Record<string, unknown>>): void;
}

export class Life {
  readonly #options: LifeOptions;
  readonly #clock: MortalClock;
  #executors: Executors | undefined;
  #engine: Engine | undefined;
  #isDead = false;

  constructor(options: LifeOptions) {
    this.#options = options;
    this.#clock = new MortalClock(options.clock);
  }

  get isDead(): boolean {
    return this.#isDead;
  }

  get engine(): Engine {
    if (this.#engine === undefined) throw new Error("the server has not begun");
    return this.#engine;
  }

  /** Does not end when it dies meanwhile. */
  async begin(): Promise<void> {
    const { disk, random, clock, profile, onReach, onLog } = this.#options;
    const isDead = () => this.#isDead;
    const log: LifeOptions["onLog"] = (level, message, facts) => {
      if (!this.#isDead) onLog(level, message, facts);
    };
    // On the clock that goes on, so that a dead one's executors can be closed.
    this.#executors = await startInProcessExecutors({
      limits: { ...executorLimits, connectionCountMax: 6 },
      clock,
      random: () => random.next(),
      log,
    });
    const fileSystem = disk.mount(isDead);
    const bytes = (byteCount: number) => random.bytes(byteCount);
    this.#engine = await openEngine({
      directoryPath: disk.localPath,
      executors: mortalExecutors(this.#executors, disk, isDead),
      clock: this.#clock,
      random: bytes,
      log,
      limits: {
        ...testLimits,
        openDatabaseCountMax: profile.openDatabaseCountMax,
        checkpointFrames: 12,
        checkpointPauseFrames: 30,
        flushDescriptorCountMax: 2,
        pageBytes: profile.pageBytes,
      },
      fileSystem,
      failPoints: { reach: (point) => (this.#isDead ? undefined : onReach(point)) },
      ...(await this.#stages(fileSystem, isDead, bytes)),
    });
  }

  /** From now on nothing that it does has an effect. Its files must have been taken away before. */
  die(): void {
    this.#isDead = true;
    this.#clock.end();
    void this.#executors?.close(0);
  }

  async close(): Promise<void> {
    await this.#engine?.close();
    await this.#executors?.close(0);
  }

  async #stages(fileSystem: FileSystem, isDead: () => boolean, random: (byteCount: number) => Uint8Array) {
    const { disk, profile, store, betweenStage = (stage) => stage } = this.#options;
    const remote = await openRemoteStage({
      store: mortalStore(store, isDead),
      layout: "bucket",
      displayName: "bucket",
      fileSystem,
      spoolDirectoryPath: join(disk.localPath, "spool"),
      clock: this.#clock,
      random,
      retention,
      compactionFilesMax: 4,
    });
    return {
      remote: profile.placement.persistenceStage === 3 ? betweenStage(remote) : undefined,
      sync: {
        isAutomatic: profile.syncsByItself,
        closeGraceMs: 10_000,
        limits: {
          intervalMs: 500,
          uploadConcurrencyMax: 2,
          compactionConcurrencyMax: 1,
          unsyncedBytesMax: profile.unsyncedBytesMax,
          backOff: { startMs: 100, maxMs: 2_000 },
          storeCallMs: 5_000,
          upkeepJitterMs: 200,
          upkeep,
        },
      },
      stages: {
        settings: profile.placement,
        displayNames: { memory: "memory", local: "disk", remote: "bucket" },
        memory: profile.hasMemory
          ? { directoryPath: disk.memoryPath, bytesMax: 0, databaseCountMax: profile.memoryCountMax }
          : undefined,
        local: { bytesMax: 0, databaseCountMax: 0 },
      },
    };
  }
}

/** Executors of a process that may die, with the disk told of what SQLite flushes. */
export function mortalExecutors(executors: Executors, disk: SimulatedDisk, isDead: () => boolean): Executors {
  return {
    get sqliteVersion() {
      return executors.sqliteVersion;
    },
    open: (file) => mortal(executors.open(file), disk, isDead, file.path),
    stats: () => executors.stats(),
    tidy: () => executors.tidy(),
    close: (graceMs) => executors.close(graceMs),
  };
}

/** A database, or what belongs to one: a checkpointer, a transaction. */
function mortal<T extends object>(target: T, disk: SimulatedDisk, isDead: () => boolean, path: string): T {
  const never = new Promise<never>(() => undefined);
  return new Proxy(target, {
    get(_target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return (...inputs: unknown[]) => {
        // It gives what it makes at once, and that is as dead.
        if (isDead() && name !== "checkpointer") return never;
        const isCheckpoint = name === "checkpoint";
        if (isCheckpoint) disk.checkpointing(path);
        const result: unknown = value.apply(target, inputs);
        if (name === "checkpointer") return mortal(result as object, disk, isDead, path);
        if (!(result instanceof Promise)) return result;
        return result.then(
          (answer: unknown) => {
            if (isDead()) return never;
            if (isCheckpoint) disk.checkpointed(path, (answer as { readonly done: number }).done);
            if (name === "begin") return mortal(answer as object, disk, isDead, path);
            return answer;
          },
          (error: unknown) => (isDead() ? never : Promise.reject(error)),
        );
      };
    },
  });
}
