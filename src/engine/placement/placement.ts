/**
 * Placement: on which stage databases live, who brings them there, and what has to leave for them. One object for all
 * databases; an idle one costs a row of the catalog.
 */
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import { Failure, fieldInvalid } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { Catalog, CatalogRow, PageKey } from "../catalog.ts";
import type { HostedDatabase } from "../database.ts";
import type {
  DatabaseStageInfo,
  MoveInput,
  MoveStats,
  OperationInfo,
  PinInfo,
  StageInfo,
  StageName,
  StageResidencyInfo,
} from "../engine.ts";
import { factsOf } from "../facts.ts";
import type { Folder } from "../folder.ts";
import type { Handles } from "../handles.ts";
import type { Operations, OperationTask, Progress } from "../operations.ts";
import type { EngineLog, StagesOptions } from "../options.ts";
import type { Sync } from "../sync/sync.ts";
import { Budget, type StageUsage } from "./budgets.ts";
import { HeadBringer } from "./head-bringer.ts";
import type { HeadFiles } from "./head-files.ts";
import { Healing } from "./healing.ts";
import { Hydrations } from "./hydrations.ts";
import { Moves } from "./moves.ts";
import {
  activePin,
  closerStage,
  type Decision,
  decide,
  fartherStage,
  isCloser,
  type PlacementFacts,
  stagesOutward,
  type Tiers,
  worth,
} from "./policy.ts";
import { Room, type Victims } from "./rooms.ts";

export interface PlacementOptions {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly fileSystem: FileSystem;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly directoryPath: string;
  readonly files: HeadFiles;
  readonly handles: Handles;
  readonly operations: Operations;
  readonly sync: Sync;
  readonly remote: RemoteStage | undefined;
  /** True when data is carried to the remote stage by itself. */
  readonly carriesByItself: boolean;
  readonly stages: StagesOptions;
}

/** Databases looked at in one round of the timer: those that are used, and those that nobody uses. */
const wantedCountMax = 64;
const idleCountMax = 256;

/** Rows looked at to find what is to leave a stage that is full. */
const victimLookCountMax = 1_000;

/** Databases that leave together for one that comes, at most. */
const victimCountMax = 64;

/** A base follows its head in memory when so much of the log waits for it. */
const baseBytesMax = 16 * 1024 * 1024;
const baseFileCountMax = 256;

/** A pause of the sweep over idle databases, in parts of the timeout: how much later than it a database may leave. */
const sweepPart = 10;
const sweepPauseMsMax = 30_000;
/** When some were in use. */
const sweepPauseMsMin = 1_000;

const retryAfterMs = 1_000;

const start: PageKey = [Number.NEGATIVE_INFINITY, ""];

/** Only the local disk, and nothing moves. */
export const localOnly: StagesOptions = {
  settings: {
    autoMovement: false,
    defaultCreationStage: 2,
    persistenceStage: 2,
    timeoutMs: Number.POSITIVE_INFINITY,
    requestCountThreshold: Number.POSITIVE_INFINITY,
    requestWindowMs: 60_000,
    cooldownMs: 0,
    moveConcurrencyMax: 1,
    moveWaitMsMax: 5_000,
    hydrationConcurrencyMax: 1,
  },
  displayNames: { memory: "memory", local: "local", remote: "remote" },
  memory: undefined,
  local: { bytesMax: 0, databaseCountMax: 0 },
};

const creationStages: Readonly<Record<number, StageName>> = { 1: "memory", 2: "local", 3: "remote" };

export class Placement {
  readonly #options: PlacementOptions;
  readonly #moves: Moves;
  readonly #hydrations: Hydrations;
  readonly #healing: Healing;
  readonly #rooms: { readonly memory: Room | undefined; readonly local: Room };
  /** Called often enough that they may move closer. */
  readonly #wanted = new Set<HostedDatabase>();
  /** Bases that follow their heads now. */
  readonly #following = new Map<string, Promise<void>>();
  readonly #moveWaits: (() => void)[] = [];
  #movesRunning = 0;
  #moved = { promotions: 0, demotions: 0, failures: 0 };
  /** Where the sweep over idle databases goes on, for each place that heads have. */
  #sweeps: { head: "memory" | "local"; after: PageKey; atMs: number; isSoon: boolean }[] = [];
  /** Until when the policy leaves a database alone whose move has failed. */
  readonly #rests = new Map<string, number>();
  /** Placed in memory, and without a head for now. */
  readonly #returning = new Set<string>();
  /** Pinned to a stage that they are not on yet. */
  readonly #astray = new Set<string>();
  /** Of all logs, as they were at the last round: it is asked for with every database that comes. */
  #unsyncedBytes = 0;
  #isClosing = false;

  constructor(options: PlacementOptions) {
    this.#options = options;
    const { stages, directoryPath, fileSystem, catalog } = options;
    const { memory, local, settings } = stages;
    this.#moves = new Moves({ ...options, moveWaitMsMax: settings.moveWaitMsMax });
    const localBudget = new Budget("local", local, directoryPath, fileSystem, () => {
      const [inMemory, onDisk] = [catalog.use("memory"), catalog.use("local")];
      // A head in memory has its base and its log on the disk.
      return { bytes: onDisk.bytes + inMemory.bytes + this.#unsyncedBytes, count: onDisk.count + inMemory.count };
    });
    const memoryBudget =
      memory && new Budget("memory", memory, memory.directoryPath, fileSystem, () => catalog.use("memory"));
    this.#rooms = { memory: memoryBudget && this.#room(memoryBudget), local: this.#room(localBudget) };
    const room = (row: CatalogRow, signal: AbortSignal | undefined) =>
      this.#rooms.local.take(row.sizeBytes, Number.POSITIVE_INFINITY, signal);
    const bringer = new HeadBringer({ ...options, room });
    this.#healing = new Healing({
      ...options,
      room,
      bringer,
      moves: this.#moves,
      drainMsMax: settings.moveWaitMsMax,
      inTurn: (id, progress, run) =>
        this.#inTurn(progress, async () => {
          await this.#following.get(id);
          await run();
        }),
    });
    this.#hydrations = new Hydrations(settings.hydrationConcurrencyMax, (id, signal) => bringer.bring(id, signal));
    const nowMs = options.clock.now();
    this.#sweeps = [
      { head: "memory", after: start, atMs: nowMs, isSoon: false },
      { head: "local", after: start, atMs: nowMs, isSoon: false },
    ];
  }

  get moveStats(): MoveStats {
    const { running: hydrations, finished: hydrated } = this.#hydrations;
    return { running: this.#movesRunning, waiting: this.#moveWaits.length, hydrations, hydrated, ...this.#moved };
  }

  /** To be called before anything is opened. */
  async open(): Promise<void> {
    const { files, catalog } = this.#options;
    const heads = new Set<string>();
    for (const { id, lineage } of catalog.idle("memory", start, Number.POSITIVE_INFINITY, -1)) {
      heads.add(`${id}.${lineage}`);
    }
    await files.sweepMemory((name) => heads.has(name));
    await Promise.all([this.#rooms.local.budget.open(), this.#rooms.memory?.budget.open()]);
  }

  /** Sees to it that a database has the file that its calls run in; undefined when it has. */
  bring(row: CatalogRow): Promise<void> | undefined {
    if (row.head === "local" || this.#options.files.exists(row)) return undefined;
    if (row.head === "none" && row.successor !== undefined) {
      // A file that came now would be of the history that is about to be replaced.
      throw new Failure("DATABASE_BUSY", { database: row.id, problem: "it is being restored" }, { retryAfterMs });
    }
    if (row.head === "none" && row.stage === "memory" && this.#returning.size < astrayCountMax) {
      this.#returning.add(row.id);
    }
    return this.#hydrations.run(row.id);
  }

  /** The work that gives a database its file, while it is under way. */
  bringing(id: string): Promise<void> | undefined {
    return this.#hydrations.has(id) ? this.#hydrations.run(id) : undefined;
  }

  /** Gives a database without a head one. */
  async warm(row: CatalogRow): Promise<void> {
    await this.bring(row);
  }

  /** A database is about to go: what is under way for it ends, and nothing new begins while it counts as being deleted. */
  async forget(id: string, failure: Failure): Promise<void> {
    await this.#hydrations.stop(id, failure);
    await this.#following.get(id);
  }

  /** Where a new database lives. Throws STAGE_NOT_CONFIGURED for a stage that was asked for and that is not there. */
  creationStage(asked: StageName | undefined): StageName {
    const { settings } = this.#options.stages;
    if (asked !== undefined) {
      this.#require(asked);
      return asked;
    }
    const wished = creationStages[Math.min(settings.defaultCreationStage, settings.persistenceStage)] ?? "local";
    // Where a stage is not there, the next closer one; at last the local disk, which is always there.
    for (let stage: StageName | undefined = wished; stage !== undefined; stage = closerStage(stage)) {
      if (this.#has(stage)) return stage;
    }
    return "local";
  }

  /**
   * Takes the room for a new database; to be given back when it is there. Where memory is full and nobody asked for it, the
   * database comes to the local stage.
   */
  async reserve(
    stage: StageName,
    isAsked: boolean,
    sizeBytes: number,
  ): Promise<{ readonly stage: StageName; readonly release: () => void }> {
    const releaseLocal = await this.#rooms.local.take(sizeBytes, Number.POSITIVE_INFINITY);
    const { memory } = this.#rooms;
    if (stage !== "memory" || memory === undefined) return { stage, release: releaseLocal };
    try {
      // What is used is worth more than what nobody has used yet.
      const releaseMemory = await memory.take(sizeBytes, 0);
      const release = () => {
        releaseLocal();
        releaseMemory();
      };
      return { stage, release };
    } catch (error) {
      const isFull = error instanceof Failure && error.reason === "STAGE_FULL";
      if (isFull && !isAsked) return { stage: "local", release: releaseLocal };
      releaseLocal();
      throw error;
    }
  }

  /** A database was called so often that it may move closer. O(1). */
  wanted(database: HostedDatabase): void {
    this.#wanted.add(database);
  }

  /** SQLite says that the file of a database's head is damaged. */
  damaged(database: HostedDatabase, failure: Failure): void {
    if (!this.#isClosing) this.#healing.damaged(database, failure);
  }

  /** The log of a database in memory has grown: its base may have to follow. */
  written(database: HostedDatabase): void {
    if (database.headStage !== "memory" || this.#following.has(database.id) || this.#isClosing) return;
    const files = database.log.files();
    const byteCount = files.reduce((sum, file) => sum + file.byteCount, 0);
    if (files.length < baseFileCountMax && byteCount < baseBytesMax) return;
    if (this.#options.operations.lockedBy(database.id) !== undefined) return;
    database.enter();
    const following = this.#moves
      .followWithBase(database)
      .catch((error: unknown) => {
        this.#options.log("warn", "the base of a database in memory does not follow; it is tried again", {
          database: database.id,
          error,
        });
      })
      .finally(() => {
        database.leave();
        this.#following.delete(database.id);
      });
    this.#following.set(database.id, following);
  }

  /** One round of the one timer. */
  tidy(): void {
    if (this.#isClosing) return;
    this.#unsyncedBytes = this.#options.sync.stats().unsyncedBytes;
    // Without it only what comes makes others leave.
    if (this.#options.stages.settings.autoMovement) {
      this.#rooms.memory?.relieve();
      this.#rooms.local.keepFree();
    }
    this.#bringPinned();
    if (this.#options.stages.settings.autoMovement) this.#promoteWanted();
    this.#sweep();
  }

  /** Resolves when nothing is brought any more. Operations are ended by whoever runs them. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await this.#hydrations.close();
    await Promise.all(this.#following.values());
  }

  promote(row: CatalogRow, input: MoveInput): Promise<OperationInfo> {
    return this.#move(row, "promote", input);
  }

  demote(row: CatalogRow, input: MoveInput): Promise<OperationInfo> {
    return this.#move(row, "demote", input);
  }

  async pin(row: CatalogRow, pin: PinInfo): Promise<void> {
    this.#require(pin.stage);
    await this.#setPin(row, pin);
    if (row.stage === pin.stage) return;
    this.#begin(row, pin.stage);
    // What works on it now may take it elsewhere.
    if (this.#astray.size < astrayCountMax) this.#astray.add(row.id);
  }

  async unpin(row: CatalogRow): Promise<void> {
    await this.#setPin(row, undefined);
    // It may be one that nobody has used for long.
    for (const sweep of this.#sweeps) Object.assign(sweep, { after: start, atMs: this.#options.clock.now() });
  }

  async listStages(): Promise<readonly StageInfo[]> {
    const { catalog, stages, sync, fileSystem, directoryPath } = this.#options;
    const placed = catalog.placed();
    const memory = this.#rooms.memory?.budget;
    const local = this.#rooms.local.budget;
    const infos: StageInfo[] = [];
    for (const stage of stagesOutward) {
      if (!this.#has(stage)) continue;
      const budget = stage === "memory" ? memory : stage === "local" ? local : undefined;
      const usedBytes = budget === undefined ? placed.remote.bytes : budget.usage.bytes;
      let healthy = stage === "remote" ? sync.health.isHealthy : true;
      if (budget !== undefined) {
        const path = stage === "memory" ? (stages.memory?.directoryPath ?? directoryPath) : directoryPath;
        try {
          const { freeBytes } = await fileSystem.space(path);
          healthy = freeBytes > 0 && budget.above(1).bytes === 0;
        } catch {
          // A folder that cannot be looked at takes nothing.
          healthy = false;
        }
      }
      infos.push({
        stage,
        displayName: stages.displayNames[stage],
        capacityBytes: budget && BigInt(budget.capacityBytes),
        usedBytes: BigInt(Math.floor(usedBytes)),
        databaseCount: BigInt(placed[stage].count),
        healthy,
      });
    }
    return infos;
  }

  stageInfo(row: CatalogRow): DatabaseStageInfo {
    const { operations, clock } = this.#options;
    return {
      database: row.id,
      stage: row.stage,
      operation: operations.lockedBy(row.id),
      residencies: this.#residencies(row),
      pin: activePin(row.pin, clock.wallMs()),
      placementReason: this.#decide(row).reason,
    };
  }

  #residencies(row: CatalogRow): StageResidencyInfo[] {
    const { files, handles, folder } = this.#options;
    const { id, lineage, head } = row;
    const database = handles.get(id);
    const position = database?.position ?? { lineage, sequence: BigInt(row.sequence) };
    const residencies: StageResidencyInfo[] = [];
    if (head !== "none") {
      residencies.push({ stage: head, residentBytes: BigInt(files.sizeBytes(row)), position });
    }
    if (head === "memory") {
      const sequence = BigInt(row.baseTxid);
      const residentBytes = BigInt(folder.sizeBytes(id));
      residencies.push({ stage: "local", residentBytes, position: { lineage, sequence } });
    }
    const durable = database?.durableTxid ?? BigInt(row.durableSequence);
    if (durable > 0n) {
      const residentBytes = BigInt(row.sizeBytes);
      residencies.push({ stage: "remote", residentBytes, position: { lineage, sequence: durable } });
    }
    return residencies;
  }

  #decide(row: CatalogRow): Decision {
    const { stages, clock } = this.#options;
    return decide(this.#factsOf(row), stages.settings, this.#tiers, clock.wallMs());
  }

  #factsOf(row: CatalogRow): PlacementFacts {
    const { handles, clock } = this.#options;
    const database = handles.get(row.id);
    const nowMs = clock.wallMs();
    return {
      stage: row.stage,
      head: row.head,
      pin: row.pin,
      requestCount: database?.requestCount ?? 0,
      idleMs: Math.max(0, nowMs - (database?.lastAccessTimeMs ?? row.lastAccessTimeMs)),
      sinceMoveMs: row.movedAtMs === 0 ? Number.POSITIVE_INFINITY : Math.max(0, nowMs - row.movedAtMs),
    };
  }

  get #tiers(): Tiers {
    const { stages, remote, carriesByItself } = this.#options;
    return {
      hasMemory: stages.memory !== undefined,
      carriesToRemote: remote !== undefined && carriesByItself && stages.settings.persistenceStage >= 3,
    };
  }

  #has(stage: StageName): boolean {
    const { stages, sync, remote } = this.#options;
    if (stage === "memory") return stages.memory !== undefined;
    return stage === "local" || (remote !== undefined && sync.isCarrying);
  }

  #require(stage: StageName): void {
    if (!this.#has(stage)) throw new Failure("STAGE_NOT_CONFIGURED", { stage });
  }

  #move(row: CatalogRow, kind: "promote" | "demote", { target, wait }: MoveInput): Promise<OperationInfo> {
    const { operations } = this.#options;
    const to = target ?? (kind === "promote" ? closerStage(row.stage) : fartherStage(row.stage));
    // Already as close, or as far, as it gets.
    if (to === undefined || to === row.stage) return Promise.resolve(operations.done({ database: row.id, kind }));
    this.#require(to);
    if (isCloser(to, row.stage) !== (kind === "promote")) {
      throw fieldInvalid("target_stage", `must be ${kind === "promote" ? "closer" : "farther"} than ${row.stage}`);
    }
    const { id } = operations.start(this.#task(row, kind, to));
    return operations.wait(id, wait);
  }

  #task({ id }: CatalogRow, kind: "promote" | "demote", target: StageName): OperationTask {
    return {
      database: id,
      kind,
      key: target,
      locks: [id],
      run: (progress) => this.#inTurn(progress, () => this.#count(kind, this.#run(id, target, progress))),
    };
  }

  async #count(kind: "promote" | "demote", move: Promise<void>): Promise<void> {
    try {
      await move;
      this.#moved[kind === "promote" ? "promotions" : "demotions"]++;
    } catch (error) {
      this.#moved.failures++;
      throw error;
    }
  }

  /** At most so many moves at one time. */
  async #inTurn(progress: Progress, run: () => Promise<void>): Promise<void> {
    const { moveConcurrencyMax } = this.#options.stages.settings;
    if (this.#movesRunning >= moveConcurrencyMax) {
      const turn = Promise.withResolvers<void>();
      this.#moveWaits.push(turn.resolve);
      const forgetCancel = progress.cancel.onCancel(() => {
        const at = this.#moveWaits.indexOf(turn.resolve);
        if (at < 0) return;
        this.#moveWaits.splice(at, 1);
        turn.reject(new Failure("OPERATION_CANCELLED", { operation: progress.operation }));
      });
      try {
        await turn.promise;
      } finally {
        forgetCancel();
      }
    } else this.#movesRunning++;
    try {
      progress.check();
      await run();
    } finally {
      const next = this.#moveWaits.shift();
      if (next === undefined) this.#movesRunning--;
      else next();
    }
  }

  async #run(id: string, target: StageName, progress: Progress, uploadMsMax?: number): Promise<void> {
    const { catalog } = this.#options;
    await this.#following.get(id);
    const row = catalog.get(id);
    if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
    if (target === "remote") {
      await this.#moves.toRemote(id, progress, uploadMsMax);
      return;
    }
    await this.bring(row);
    if (target === "local") {
      await this.#moves.toLocal(id, progress);
      return;
    }
    const sizeBytes = this.#options.handles.get(id)?.sizeBytes ?? row.sizeBytes;
    const { memory } = this.#rooms;
    if (memory === undefined) throw new Failure("STAGE_NOT_CONFIGURED", { stage: "memory" });
    const release = await memory.take(sizeBytes, this.#worth(row, sizeBytes), progress.signal);
    try {
      await this.#moves.toMemory(id, progress);
    } finally {
      release();
    }
  }

  get #windowMs(): number {
    return this.#options.stages.settings.requestWindowMs;
  }

  #room(budget: Budget): Room {
    const { stage } = budget;
    return new Room(budget, {
      clock: this.#options.clock,
      victims: (missing, worthMax) => this.#victims(stage, missing, worthMax),
      evict: (row) => this.#evict(row, stage),
    });
  }

  #victims(stage: "memory" | "local", missing: StageUsage, worthMax: number): Victims {
    const { catalog, handles, operations, clock, stages } = this.#options;
    if (stage === "local" && !this.#tiers.carriesToRemote) return { rows: [], hasBusy: false };
    const nowMs = clock.wallMs();
    const candidates: { readonly row: CatalogRow; readonly value: number }[] = [];
    let hasBusy = false;
    for (const row of catalog.idle(stage, start, Number.POSITIVE_INFINITY, victimLookCountMax)) {
      const pin = activePin(row.pin, nowMs);
      if ((pin !== undefined && !isCloser(stage, pin.stage)) || row.state !== "ready") continue;
      // By itself nothing leaves the stage it was placed on; what was only brought for a call may go.
      if (!stages.settings.autoMovement && stage === "local" && row.stage !== "remote") continue;
      const { requestCount, idleMs, sinceMoveMs } = this.#factsOf(row);
      const value = worth({ requestCount, idleMs, sizeBytes: row.sizeBytes }, this.#windowMs);
      if (value >= worthMax || this.#rests.has(row.id)) continue;
      if (stage === "memory" && sinceMoveMs < stages.settings.cooldownMs) continue;
      if (handles.get(row.id)?.isIdle === false || operations.lockedBy(row.id) !== undefined) hasBusy = true;
      else candidates.push({ row, value });
    }
    candidates.sort((one, other) => one.value - other.value);
    const rows: CatalogRow[] = [];
    let { bytes, count } = missing;
    for (const { row } of candidates) {
      if ((bytes <= 0 && count <= 0) || rows.length === victimCountMax) break;
      rows.push(row);
      bytes -= row.sizeBytes;
      count--;
    }
    return { rows, hasBusy };
  }

  /** Not in turn with other moves: one of them may wait for it. */
  async #evict(row: CatalogRow, stage: "memory" | "local"): Promise<void> {
    const { operations } = this.#options;
    const target = stage === "memory" ? "local" : "remote";
    const task = this.#task(row, "demote", target);
    const run = (progress: Progress) => this.#run(row.id, target, progress, evictionMsMax);
    const { id } = operations.start(this.#resting({ ...task, run }));
    const { error } = await operations.wait(id, { waitMs: evictionMsMax, cancel: undefined });
    if (error !== undefined) throw error;
  }

  #promoteWanted(): void {
    const { catalog, handles } = this.#options;
    let looked = 0;
    for (const database of this.#wanted) {
      if (++looked > wantedCountMax || !this.#mayBegin) return;
      this.#wanted.delete(database);
      database.takeWanted();
      if (handles.get(database.id) !== database || this.#rests.has(database.id)) continue;
      const row = catalog.get(database.id);
      if (row?.state !== "ready") continue;
      const { target } = this.#decide(row);
      if (!isCloser(target, row.stage)) continue;
      if (target === "memory" && !this.#hasRoom(row, database.sizeBytes)) this.#rest(row.id);
      else this.#begin(row, target);
    }
  }

  /** Whether a database would find room in memory, so that none is begun that will not. */
  #hasRoom(row: CatalogRow, sizeBytes: number): boolean {
    const memory = this.#rooms.memory?.budget;
    if (memory === undefined || memory.isTooLarge(sizeBytes)) return false;
    const missing = memory.missing(sizeBytes);
    if (missing.bytes === 0 && missing.count === 0) return true;
    return isEnough(this.#victims("memory", missing, this.#worth(row, sizeBytes)).rows, missing);
  }

  #worth(row: CatalogRow, sizeBytes: number): number {
    const { requestCount, idleMs } = this.#factsOf(row);
    return worth({ requestCount, idleMs, sizeBytes }, this.#windowMs);
  }

  /** Pins whose move could not begin, or has failed, and databases that a restore has taken out of memory. */
  #bringPinned(): void {
    const { catalog, operations } = this.#options;
    this.#endRests();
    for (const id of this.#returning) {
      const row = catalog.get(id);
      if (row?.head === "none" && this.#hydrations.has(id)) continue;
      if (operations.lockedBy(id) !== undefined || !this.#mayBegin) continue;
      this.#returning.delete(id);
      if (row?.head === "local") this.#start(row, "memory", this.#task(row, "promote", "memory"));
    }
    for (const id of this.#astray) {
      const row = catalog.get(id);
      const pin = row && activePin(row.pin, this.#options.clock.wallMs());
      if (row === undefined || pin === undefined || pin.stage === row.stage) {
        this.#astray.delete(id);
      } else if (!this.#rests.has(id) && operations.lockedBy(id) === undefined && this.#mayBegin) {
        this.#begin(row, pin.stage);
      }
    }
  }

  /** Those that rest are in the order of their rest's end. */
  #endRests(): void {
    const nowMs = this.#options.clock.now();
    for (const [id, untilMs] of this.#rests) {
      if (untilMs > nowMs && this.#rests.size <= restCountMax) return;
      this.#rests.delete(id);
    }
  }

  #rest(id: string): void {
    this.#rests.delete(id);
    this.#rests.set(id, this.#options.clock.now() + Math.max(restMsMin, this.#options.stages.settings.cooldownMs));
  }

  /** Looks at the least recently used, some in each round; at the end of them it pauses. */
  #sweep(): void {
    const { catalog, clock, stages } = this.#options;
    const { timeoutMs } = stages.settings;
    const nowMs = clock.now();
    const tiers = this.#tiers;
    for (const sweep of this.#sweeps) {
      if (sweep.atMs > nowMs || !this.#mayBegin) continue;
      // Where nothing farther is to be had, nothing leaves.
      if (sweep.head === "local" && !tiers.carriesToRemote) continue;
      const rows = catalog.idle(sweep.head, sweep.after, clock.wallMs() - timeoutMs, idleCountMax);
      for (const row of rows) {
        if (!this.#mayBegin) return;
        sweep.after = [row.lastAccessTimeMs, row.id];
        if (!this.#consider(row)) sweep.isSoon = true;
      }
      if (rows.length === idleCountMax) continue;
      sweep.after = start;
      sweep.atMs = nowMs + (sweep.isSoon ? sweepPauseMsMin : Math.min(sweepPauseMsMax, timeoutMs / sweepPart));
      sweep.isSoon = false;
    }
  }

  /** False when it is in use right now: syncing may have it for a moment. */
  #consider(row: CatalogRow): boolean {
    const { handles, operations } = this.#options;
    if (row.state !== "ready" || operations.lockedBy(row.id) !== undefined || this.#rests.has(row.id)) return true;
    if (handles.get(row.id)?.isIdle === false) return false;
    const { target, dropsHead } = this.#decide(row);
    if (target !== row.stage || dropsHead) this.#begin(row, target);
    return true;
  }

  /** Moves of the policy wait in no queue: what is decided now may be wrong by then. */
  get #mayBegin(): boolean {
    return this.#movesRunning < this.#options.stages.settings.moveConcurrencyMax;
  }

  #begin(row: CatalogRow, target: StageName): void {
    this.#start(row, target, this.#task(row, isCloser(target, row.stage) ? "promote" : "demote", target));
  }

  #start(row: CatalogRow, target: StageName, task: OperationTask): void {
    const { operations, log } = this.#options;
    try {
      operations.start(this.#resting(task));
    } catch (error) {
      const isExpected = error instanceof Failure && expected.has(error.reason);
      if (!isExpected) log("error", "a move could not be begun", { database: row.id, target, error });
    }
  }

  /** The same task as the policy's own; when it fails, the policy leaves the database alone for a while. */
  #resting(task: OperationTask): OperationTask {
    return {
      ...task,
      isBackground: true,
      run: async (progress) => {
        try {
          await task.run(progress);
        } catch (error) {
          this.#rest(task.database);
          throw error;
        }
      },
    };
  }

  async #setPin(row: CatalogRow, pin: PinInfo | undefined): Promise<void> {
    const { handles, catalog } = this.#options;
    const database = await handles.enterHead(row.id);
    if (database === undefined) {
      catalog.put({ ...row, ...factsOf(row), pin });
      return;
    }
    try {
      await database.changeFacts((facts) => ({ ...facts, pin }));
    } finally {
      database.leave();
    }
  }
}

function isEnough(victims: readonly CatalogRow[], missing: StageUsage): boolean {
  const freedBytes = victims.reduce((sum, row) => sum + row.sizeBytes, 0);
  return freedBytes >= missing.bytes && victims.length >= missing.count;
}

const evictionMsMax = 60_000;

/** Pause of the policy with a database whose move has failed, at least. */
const restMsMin = 10_000;
const restCountMax = 10_000;
const astrayCountMax = 1_000;

const expected: ReadonlySet<string> = new Set(["OPERATION_CONFLICT", "RATE_LIMITED", "SHUTTING_DOWN"]);
