/** Calls of a simulation's clients, and what their answers say to the model. */
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { QueryResponseSchema, type ResultSet, ResultSetSchema } from "../../gen/persisto/v1/database_service_pb.js";
import type {
  DurabilityLevel,
  EngineAnswer,
  EngineTransaction,
  HistoryTarget,
  OperationInfo,
  Position,
  StageName,
} from "../../src/engine/engine.ts";
import { Failure } from "../../src/failure/failure.ts";
import type { CallOptions, QueryCursor } from "../../src/sqlite/executor.ts";
import { openRemoteStage } from "../../src/stages/open-remote-stage.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { filesUnder, manifests, restorableTxid, strayKeys } from "./bucket.ts";
import { type Loss, ModelDatabase, Violation, type Write } from "./model.ts";
import type { Profile } from "./profile.ts";
import type { Random } from "./random.ts";
import { numbersOf, readEverything, readLog, schemaBatch, writeOf } from "./schema.ts";
import type { World } from "./world.ts";

/** What a call may be refused with at any time; it has had no effect then. */
const refusals: ReadonlySet<string> = new Set([
  "DATABASE_BUSY",
  "STAGE_FULL",
  "STAGE_UNAVAILABLE",
  "STAGE_NOT_CONFIGURED",
  "SYNC_BACKLOG_FULL",
  "OPERATION_CONFLICT",
  "DATABASE_READ_ONLY",
  "SHUTTING_DOWN",
  "NOT_IMPLEMENTED",
  "POSITION_NOT_REACHED",
  "RATE_LIMITED",
]);
/** What leaves the outcome open. */
const doubts: ReadonlySet<string> = new Set(["STATEMENT_TIMEOUT", "OUTCOME_UNKNOWN", "EXECUTOR_LOST"]);
/** What an operation may end with: the database is as it was. */
const failedOperations: ReadonlySet<string> = new Set([
  "OPERATION_CANCELLED",
  "OPERATION_INTERRUPTED",
  "HISTORY_OUT_OF_RANGE",
  "HISTORY_NOT_KEPT",
  "REMOTE_NOT_REACHED",
  "DATABASE_EXISTS",
  "FIELD_INVALID",
]);

/** A transaction or a query that is open over several steps. */
interface Held {
  readonly model: ModelDatabase;
  /** Steps until it is to end. */
  left: number;
  end(): Promise<void>;
}

/** What a restore or fork that was begun may bring. */
interface Wanted {
  readonly from: ModelDatabase;
  readonly target: HistoryTarget;
}

export const ids = ["a", "b", "c", "d"] as const;

export class Traffic {
  readonly #world: World;
  readonly #random: Random;
  readonly #profile: Profile;
  readonly #models = new Map<string, ModelDatabase>();
  readonly #exclusive = new Set<string>();
  readonly #held = new Set<Held>();
  /** By id: a restore or fork whose end nobody was told. */
  readonly #wanted = new Map<string, Wanted>();
  /** Etags of the batches that were seen in the bucket. */
  readonly #batches = new Map<string, string>();
  /** What a lost disk has left in the bucket, and nobody can know of. */
  readonly lostPrefixes = new Set<string>();
  /** Files of this engine may fail: databases may be stopped until it starts again. */
  diskFailed = false;
  /** Bits were flipped on their way from the bucket. */
  #at = 0;
  #lifeAt = 0;
  #lastTag = 0;

  constructor(world: World, random: Random, profile: Profile) {
    this.#world = world;
    this.#random = random;
    this.#profile = profile;
  }

  get models(): Iterable<ModelDatabase> {
    return this.#models.values();
  }

  model(id: string): ModelDatabase {
    let model = this.#models.get(id);
    if (model === undefined) {
      model = new ModelDatabase(id);
      model.presence = "absent";
      this.#models.set(id, model);
    }
    return model;
  }

  /** The server has died. */
  died(loss: Loss): void {
    this.#exclusive.clear();
    this.#held.clear();
    const published = loss === "disk" ? manifests(this.#world.bucket) : undefined;
    if (loss === "disk") this.#forgetUnpublished();
    for (const model of this.#models.values()) {
      model.lose(loss);
      if (published === undefined || model.presence === "there") continue;
      // Nobody knows any more what was deleted or made without the bucket being told: there is what the bucket has.
      const lineage = published.get(model.id)?.lineage;
      if (lineage === undefined) this.#absent(model.id, false);
      else if (lineage !== model.lineage) this.#models.set(model.id, ghost(model.id));
    }
  }

  /** Objects that the lost disk alone knew of: being published for the first time, or being deleted. */
  #forgetUnpublished(): void {
    const { bucket, clock } = this.#world;
    const unpublished = strayKeys(bucket, clock.wallMs()).map((key) => key.split("/").slice(0, 2).join("/"));
    for (const prefix of unpublished) this.lostPrefixes.add(prefix);
    const published = manifests(bucket);
    for (const { id, lineage } of this.#models.values())
      if (lineage !== undefined && published.get(id)?.lineage !== lineage) this.lostPrefixes.add(`${id}/${lineage}`);
  }

  /** The server has begun. */
  began(): void {
    this.#lifeAt = this.#at;
    this.diskFailed = false;
  }

  /** The server has ended in good order. */
  closed(): void {
    if (this.diskFailed) return;
    for (const model of this.#models.values()) model.promise("machine", this.#lifeAt, this.#at);
  }

  /** Begins a call of that kind, if it fits. */
  begin(kind: TrafficKind): void {
    const id = this.#random.pick(ids);
    if (this.#exclusive.has(id)) return;
    const model = this.model(id);
    if (model.isGhost) this.#alone([id], `delete ${id}`, () => this.#remove(model));
    else if (this.#wanted.has(id)) this.#alone([id], `resolve ${id}`, () => this.#resolve(id));
    else if (kind === "create" || model.presence === "absent" || model.lineage === undefined)
      this.#alone([id], `create ${id}`, () => this.#create(id));
    else if (kind === "delete") this.#alone([id], `delete ${id}`, () => this.#remove(model));
    else if (!model.hasSchema) this.#alone([id], `schema ${id}`, () => this.#makeSchema(model));
    else this.#beginOn(model, kind);
  }

  #beginOn(model: ModelDatabase, kind: TrafficKind): void {
    const { id } = model;
    if (kind === "write") {
      const level = this.#level();
      const tag = ++this.#lastTag;
      this.#world.run(`write ${id} ${tag} ${level}`, () => this.#write(model, tag, level));
    } else if (kind === "read") this.read(model);
    else if (kind === "query") this.#world.run(`query ${id}`, () => this.#query(model));
    else if (kind === "transaction") this.#world.run(`transaction ${id}`, () => this.#transaction(model));
    else if (kind === "move") this.#move(model);
    else if (kind === "sync") {
      const durability = this.#random.chance(0.7) ? "remote" : "local";
      this.#world.run(`sync ${id} ${durability}`, () => this.#sync(model, durability));
    } else if (kind === "pin") this.#world.run(`pin ${id}`, () => this.#pin(id));
    else if (kind === "label") this.#world.run(`label ${id}`, () => this.#label(model));
    else if (kind === "restore") this.#alone([id], `restore ${id}`, () => this.#restore(model));
    else if (kind === "fork") {
      const newId = this.#random.pick(ids.filter((other) => other !== id));
      const other = this.model(newId);
      if (other.presence !== "absent" || other.isGhost || this.#wanted.has(newId)) return;
      this.#alone([newId], `fork ${newId} of ${id}`, () => this.#fork(model, newId));
    }
  }

  read(model: ModelDatabase): void {
    this.#world.run(`read ${model.id}`, () => this.#read(model));
  }

  /** Ends transactions and queries whose time has come. */
  endHeld(all = false): void {
    for (const held of this.#held) {
      if (!all && held.left-- > 0) continue;
      this.#held.delete(held);
      this.#world.run(`end ${held.model.id}`, () => held.end());
    }
  }

  /** Finds out what became of operations whose end nobody was told. */
  resolveAll(): void {
    for (const id of this.#wanted.keys()) this.#alone([id], `resolve ${id}`, () => this.#resolve(id));
    for (const model of this.#models.values())
      if (model.isGhost) this.#alone([model.id], `delete ${model.id}`, () => this.#remove(model));
  }

  /** Every position that was called durable leads to files in the bucket, and no batch is ever another one. */
  checkBucket(): void {
    const { bucket } = this.#world;
    for (const { id, lineage, durableSequence, presence } of this.#models.values()) {
      if (lineage === undefined || durableSequence === 0n || presence !== "there" || this.#exclusive.has(id)) continue;
      const reached = restorableTxid(filesUnder(bucket, `${id}/${lineage}`));
      if (reached < durableSequence)
        throw new Violation(`${id}: durable position ${durableSequence} was answered, the bucket leads to ${reached}`);
    }
    for (const [key, { info }] of bucket) {
      if (!key.includes("/0000/")) continue;
      const known = this.#batches.get(key);
      if (known !== undefined && known !== info.etag) throw new Violation(`${key} was stored a second time`);
      this.#batches.set(key, info.etag);
    }
  }

  /** Another server takes over the history of a database: stores the next batch. */
  async rival(): Promise<void> {
    const { bucket, clock } = this.#world;
    const known = [...this.#models.values()].filter(
      ({ id, presence, durableSequence }) => presence === "there" && durableSequence > 0n && !this.#exclusive.has(id),
    );
    if (known.length === 0) return;
    const model = this.#random.pick(known);
    const files = filesUnder(bucket, `${model.id}/${model.lineage}`);
    if (files.length === 0) return;
    const store = new MemoryObjectStore(clock, bucket);
    const stage = await openRemoteStage({
      store,
      layout: "bucket",
      displayName: "bucket",
      fileSystem: this.#world.disk.mount(() => false),
      spoolDirectoryPath: join(this.#world.disk.memoryPath, "rival"),
      clock,
      random: (byteCount) => this.#random.bytes(byteCount),
    });
    const call = { deadlineAtMs: clock.now() + 10_000 };
    const txid = await stage.replica(`${model.id}/${model.lineage}`).claim(clock.wallMs(), call);
    this.#world.say(`another server has batch ${txid} of ${model.id}`);
    model.hasRival = true;
  }

  /** Makes everything durable, now that nothing goes wrong any more. */
  syncAll(): void {
    for (const model of this.#models.values())
      if (model.presence === "there" && !model.hasRival)
        this.#world.run(`sync ${model.id} remote`, () => this.#sync(model, "remote", true));
  }

  /** Nothing else of these databases runs meanwhile. */
  #alone(some: readonly string[], name: string, work: () => Promise<void>): void {
    const isBusy = (id: string | undefined) => id !== undefined && some.includes(id);
    if (some.some((id) => this.#exclusive.has(id))) return;
    if (this.#world.running.some((other) => isBusy(other.split(" ")[1]) || isBusy(other.split(" ")[3]))) return;
    if ([...this.#held].some(({ model }) => isBusy(model.id))) return;
    for (const id of some) this.#exclusive.add(id);
    this.#world.run(name, work, () => {
      for (const id of some) this.#exclusive.delete(id);
    });
  }

  #level(): DurabilityLevel {
    const remote = this.#profile.placement.persistenceStage === 3 ? 2 : 0;
    return this.#random.weighted<DurabilityLevel>({ committed: 5, local: 4, remote });
  }

  #call(ms = 10_000): CallOptions {
    return {
      columns: false,
      scope: 0,
      resultBytesMax: 2 * 1024 * 1024,
      deadlineAtMs: this.#world.clock.now() + ms,
      deadlineSource: "server",
      cancel: undefined,
    };
  }

  // Life of a database

  async #create(id: string): Promise<void> {
    const { engine, life } = this.#world;
    const before = this.model(id);
    const { presence, mustBeAbsent } = before;
    if (presence === "absent") before.presence = "unsure";
    before.mustBeAbsent = false;
    const initialStage = this.#random.pick<StageName | undefined>([undefined, undefined, "memory", "local", "remote"]);
    try {
      const info = await engine.createDatabase({
        id,
        labels: {},
        initialStage,
        foreignKeys: true,
        allowExisting: false,
        request: undefined,
      });
      if (life.isDead) return;
      if (before.presence === "there") throw new Violation(`${id} was made although it exists`);
      const model = new ModelDatabase(id);
      model.presence = "there";
      model.strength = "machine";
      model.lineage = info.position.lineage;
      this.#models.set(id, model);
      this.#take(model, info.position, info.durablePosition, 0n, "create");
    } catch (error) {
      if (life.isDead) return;
      const reason = this.#reasonOf(error);
      if (reason === "DATABASE_EXISTS") {
        if (mustBeAbsent) throw new Violation(`${id} exists although it was deleted`);
        before.presence = "there";
        before.lineage ??= engine.position(id).lineage;
        return;
      }
      if (!refusals.has(reason)) throw error;
      before.presence = presence;
      before.mustBeAbsent = mustBeAbsent;
      this.#world.say(`create ${id}: ${reason}`);
    }
  }

  async #remove(model: ModelDatabase): Promise<void> {
    const { life, engine } = this.#world;
    const { presence } = model;
    model.presence = "unsure";
    try {
      await engine.deleteDatabase(model.id, undefined, false);
      if (life.isDead) return;
    } catch (error) {
      if (life.isDead) return;
      const reason = this.#reasonOf(error);
      if (reason !== "DATABASE_NOT_FOUND" || presence === "there") {
        if (!refusals.has(reason)) throw error;
        model.presence = presence;
        // Its name may be taken away on a disk that has failed.
        if (this.diskFailed) model.strength = "process";
        return;
      }
    }
    this.#absent(model.id);
  }

  #absent(id: string, isDeleted = true): void {
    const next = new ModelDatabase(id);
    next.presence = "absent";
    next.mustBeAbsent = isDeleted;
    this.#models.set(id, next);
  }

  async #label(model: ModelDatabase): Promise<void> {
    const { life, engine } = this.#world;
    const labels = { value: String(this.#random.below(1000)) };
    try {
      await engine.updateDatabase({ id: model.id, etag: undefined, labels, foreignKeys: undefined });
    } catch (error) {
      if (!life.isDead) this.#accept(model, error);
    }
  }

  // Writes

  async #makeSchema(model: ModelDatabase): Promise<void> {
    model.schema ??= new ModelDatabase(model.id).issue(0, ++this.#at);
    if (model.schema.fate === "gone") model.schema.fate = "unsure";
    const level = this.#level();
    await this.#judge(model, model.schema, level, () =>
      this.#world.engine.batch(model.id, schemaBatch, level, this.#call(), undefined),
    );
  }

  async #write(model: ModelDatabase, tag: number, level: DurabilityLevel): Promise<void> {
    const write = model.issue(tag, ++this.#at);
    await this.#judge(model, write, level, () =>
      this.#world.engine.execute(model.id, writeOf(tag), level, this.#call(), undefined),
    );
  }

  /** What the answer to a write says of it. */
  async #judge(
    model: ModelDatabase,
    write: Write,
    level: DurabilityLevel,
    run: () => Promise<EngineAnswer>,
  ): Promise<void> {
    const { sequence } = model;
    const { life } = this.#world;
    try {
      const { body, position, durablePosition } = await run();
      if (life.isDead) return;
      const n = write.tag === 0 ? undefined : numbersOf(body)[0]?.[0];
      model.acknowledge(write, n, position, level, ++this.#at);
      this.#take(model, position, durablePosition, sequence, `write ${write.tag}`);
      this.#mustBeDurable(model, level, position, durablePosition);
    } catch (error) {
      if (life.isDead) return;
      this.#writesFailed(model, [write], error);
    }
  }

  #mustBeDurable(model: ModelDatabase, level: DurabilityLevel, position: Position, durable: Position | undefined) {
    if (level === "remote" && (durable === undefined || durable.sequence < position.sequence))
      throw new Violation(`${model.id}: a REMOTE write is at ${position.sequence}, durable is ${durable?.sequence}`);
  }

  #writesFailed(model: ModelDatabase, writes: readonly Write[], error: unknown): void {
    const reason = this.#reasonOf(error);
    // The commit is there, and only the bucket has not answered in time.
    if (reason === "REMOTE_NOT_REACHED")
      for (const write of writes) model.acknowledge(write, undefined, undefined, "committed", ++this.#at);
    else if (reason === "STAGE_FULL" && this.diskFailed) {
      // It is committed, and only what was to make it durable had no room; or it was refused before.
    } else if (this.#isMissing(model, reason) || this.#isTableless(model, error) || refusals.has(reason))
      for (const write of writes) model.refuse(write);
    else if (reason === "TRANSACTION_EXPIRED" || reason === "TRANSACTION_NOT_OPEN")
      for (const write of writes) model.refuse(write);
    else if (!doubts.has(reason) && !this.#isStopped(model, reason)) throw error;
    this.#world.say(`write ${writes.map(({ tag }) => tag).join(",")}: ${reason}`);
  }

  async #transaction(model: ModelDatabase): Promise<void> {
    const { life, engine } = this.#world;
    const { sequence } = model;
    let transaction: EngineTransaction;
    try {
      transaction = await engine.begin(model.id, true, 0, undefined, this.#call());
    } catch (error) {
      if (!life.isDead) this.#accept(model, error);
      return;
    }
    if (life.isDead) return;
    this.#take(model, transaction.snapshot, undefined, sequence, "begin");
    const writes: Write[] = [];
    for (let count = 1 + this.#random.below(3); count > 0; count--) {
      const write = model.issue(++this.#lastTag, ++this.#at);
      try {
        const { body } = await transaction.execute(writeOf(write.tag), this.#call());
        if (life.isDead) return;
        // Only its commit makes the place its own.
        write.place = resultNumbers(body)[0]?.[0];
        writes.push(write);
      } catch (error) {
        if (life.isDead) return;
        model.refuse(write);
        this.#acceptInTransaction(model, error);
        break;
      }
    }
    this.#held.add({
      model,
      left: this.#random.below(4),
      end: () => this.#endTransaction(model, transaction, writes),
    });
  }

  async #endTransaction(model: ModelDatabase, transaction: EngineTransaction, writes: readonly Write[]): Promise<void> {
    const { life } = this.#world;
    const { sequence } = model;
    const commits = this.#random.chance(0.75) && writes.length > 0;
    const level = this.#level();
    try {
      const { position, durablePosition } = commits
        ? await transaction.commit(level, this.#call())
        : await transaction.rollback();
      if (life.isDead) return;
      for (const write of writes) {
        if (commits) model.acknowledge(write, write.place, position, level, ++this.#at);
        else model.refuse(write);
      }
      this.#take(model, position, durablePosition, sequence, "transaction");
      if (commits) this.#mustBeDurable(model, level, position, durablePosition);
    } catch (error) {
      if (!life.isDead) this.#writesFailed(model, writes, error);
    }
  }

  // Reads

  async #read(model: ModelDatabase): Promise<void> {
    const { life, engine } = this.#world;
    const mustSee = model.mustSee();
    const { sequence } = model;
    const known = mustSee.filter(({ position }) => position?.lineage === model.lineage);
    const minPosition = known.length > 0 && this.#random.chance(0.3) ? this.#random.pick(known).position : undefined;
    try {
      const before = this.#versionOf(model.id);
      const wasWritten = this.#isWritten(model.id);
      const answer = await engine.read(model.id, readEverything, minPosition, this.#call());
      if (life.isDead) return;
      const rows = numbersOf(answer.body);
      this.#judgeRows(model, rows, mustSee);
      this.#take(model, answer.position, answer.durablePosition, sequence, "read");
      // A commit may be seen a moment before it is counted and answered.
      if (before === undefined || wasWritten || this.#isWritten(model.id)) return;
      if (before === this.#versionOf(model.id)) model.version(before, JSON.stringify(rows));
    } catch (error) {
      if (!life.isDead) this.#accept(model, error);
    }
  }

  async #query(model: ModelDatabase): Promise<void> {
    const { life, engine } = this.#world;
    const mustSee = model.mustSee();
    const { sequence } = model;
    let cursor: QueryCursor;
    try {
      const query = await engine.query(model.id, readEverything, undefined, {
        ...this.#call(30_000),
        executionMsMax: 10_000,
        chunkRowsMax: 5,
        chunkBytesMax: 4096,
      });
      if (life.isDead) return;
      this.#take(model, query.position, undefined, sequence, "query");
      cursor = query.cursor;
    } catch (error) {
      if (!life.isDead) this.#accept(model, error);
      return;
    }
    const end = async () => {
      const rows: number[][] = [];
      try {
        for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next())
          rows.push(...rowsOfChunk(chunk));
      } catch (error) {
        if (!life.isDead) this.#accept(model, error);
        return;
      } finally {
        cursor.close();
      }
      if (!life.isDead && this.#models.get(model.id) === model) this.#judgeRows(model, rows, mustSee);
    };
    this.#held.add({ model, left: this.#random.below(6), end });
  }

  #judgeRows(model: ModelDatabase, rows: readonly (readonly number[])[], mustSee: readonly Write[]): void {
    const { tags, problem } = readLog(rows);
    if (problem !== undefined) throw new Violation(`${model.id}: ${problem}`);
    model.found(tags, mustSee);
    model.presence = "there";
  }

  // Stages

  #move(model: ModelDatabase): void {
    const target = this.#random.pick<StageName | undefined>(["memory", "local", "remote", undefined]);
    const verb = this.#random.chance(0.5) ? "promote" : "demote";
    const { id } = model;
    const before = this.#at;
    this.#world.run(`${verb} ${id} ${target ?? ""}`, async () => {
      const { life, engine } = this.#world;
      const wait = { waitMs: this.#random.chance(0.8) ? 20_000 : 0, cancel: undefined };
      try {
        const operation = await engine[verb]({ id, target, wait });
        if (life.isDead) return;
        this.#say(operation);
        if (operation.error !== undefined) this.#acceptOperation(model, operation.error);
        if (!operation.done || operation.error !== undefined || verb === "promote") return;
        const { residencies } = await engine.getDatabaseStage(id);
        if (life.isDead) return;
        // One that is there already, and only has a copy closer, is left alone.
        if (residencies.every(({ stage }) => stage === "remote")) model.promise("disk", 0, before);
      } catch (error) {
        if (!life.isDead) this.#acceptOperation(model, error);
      }
    });
  }

  async #sync(model: ModelDatabase, durability: "local" | "remote", mustSucceed = false): Promise<void> {
    const { life, engine } = this.#world;
    const before = this.#at;
    const { sequence } = model;
    try {
      const wait = { waitMs: 20_000, cancel: undefined };
      const { operation, durablePosition } = await engine.sync({ id: model.id, upTo: undefined, durability, wait });
      if (life.isDead) return;
      this.#say(operation);
      model.durable(durablePosition);
      if (operation.error !== undefined) throw operation.error;
      if (!operation.done) return;
      model.promise(durability === "remote" ? "disk" : "machine", 0, before);
      if (durability === "remote" && (durablePosition === undefined || durablePosition.sequence < sequence))
        throw new Violation(`${model.id}: synced up to ${durablePosition?.sequence}, it was at ${sequence}`);
    } catch (error) {
      if (life.isDead) return;
      if (mustSucceed) throw error;
      this.#acceptOperation(model, error);
    }
  }

  async #pin(id: string): Promise<void> {
    const { life, engine, clock } = this.#world;
    const stage = this.#random.pick<StageName>(["memory", "local", "remote"]);
    try {
      if (this.#random.chance(0.5)) await engine.pin(id, { stage, expireTimeMs: clock.wallMs() + 10_000 });
      else await engine.unpin(id);
    } catch (error) {
      if (!life.isDead) this.#acceptOperation(this.model(id), error);
    }
  }

  // History

  async #restore(model: ModelDatabase): Promise<void> {
    const target = this.#target(model);
    if (target === undefined) return;
    this.#wanted.set(model.id, { from: model, target });
    await this.#operate(model.id, () =>
      this.#world.engine.restore({
        id: model.id,
        target,
        etag: undefined,
        request: undefined,
        wait: { waitMs: 20_000, cancel: undefined },
      }),
    );
  }

  async #fork(model: ModelDatabase, newId: string): Promise<void> {
    const source = this.#target(model);
    if (source === undefined) return;
    this.#wanted.set(newId, { from: model, target: source });
    this.model(newId).presence = "unsure";
    await this.#operate(newId, () =>
      this.#world.engine.fork({
        id: model.id,
        newId,
        source,
        request: undefined,
        wait: { waitMs: 20_000, cancel: undefined },
      }),
    );
  }

  /** A point that the caller was told of. */
  #target(model: ModelDatabase): HistoryTarget | undefined {
    const known = [...model.writes].filter(
      ({ fate, position }) => fate === "kept" && position?.lineage === model.lineage,
    );
    if (known.length === 0) return undefined;
    if (this.#random.chance(0.3)) return { timeMs: this.#world.clock.wallMs() - this.#random.below(20_000) };
    const { position } = this.#random.pick(known);
    return position && { position };
  }

  async #operate(id: string, run: () => Promise<OperationInfo>): Promise<void> {
    const { life } = this.#world;
    try {
      const operation = await run();
      if (life.isDead) return;
      this.#say(operation);
      if (operation.error !== undefined) throw operation.error;
    } catch (error) {
      if (life.isDead) return;
      const wanted = this.#wanted.get(id);
      this.#acceptOperation(wanted?.from ?? this.model(id), error);
    }
    await this.#resolve(id);
  }

  /** What has become of a restore or a fork: what there is now is the new history, or still the old one. */
  async #resolve(id: string): Promise<void> {
    const { life, engine, clock } = this.#world;
    const wanted = this.#wanted.get(id);
    if (wanted === undefined) return;
    for (let tries = 0; ; tries++) {
      const { operations } = await engine.listOperations({ pageSize: 100, pageToken: "", filter: "" });
      if (life.isDead) return;
      if (operations.every(({ done }) => done)) break;
      // It waits for the bucket: somebody looks again later.
      if (this.#world.isAway) return;
      if (tries > 200) {
        const names = operations.filter(({ done }) => !done).map(({ kind, database }) => `${kind} of ${database}`);
        throw new Violation(`${id}: ${names.join(", ")} does not end`);
      }
      await new Promise<void>((resolve) => clock.after(500, resolve));
      if (life.isDead) return;
    }
    const model = this.model(id);
    let rows: number[][];
    let position: Position;
    try {
      const answer = await engine.read(id, readEverything, undefined, this.#call());
      if (life.isDead) return;
      rows = numbersOf(answer.body);
      ({ position } = answer);
    } catch (error) {
      if (life.isDead) return;
      const reason = this.#reasonOf(error);
      if (reason === "DATABASE_NOT_FOUND" && model.presence !== "there") {
        this.#wanted.delete(id);
        this.#absent(id);
      } else if (isTableless(error) && engine.position(id).lineage !== model.lineage) {
        this.#wanted.delete(id);
        this.#models.set(id, ModelDatabase.restoredEmpty(id, engine.position(id).lineage, wanted));
      } else this.#accept(model, error);
      return;
    }
    this.#wanted.delete(id);
    if (position.lineage === model.lineage) return;
    const { tags, problem } = readLog(rows);
    if (problem !== undefined) throw new Violation(`${id}: ${problem}`);
    const { from, target } = wanted;
    from.checkPoint(tags, target);
    this.#models.set(id, ModelDatabase.restored(id, position.lineage, tags, from));
  }

  // What failures say

  #accept(model: ModelDatabase, error: unknown): void {
    const reason = this.#reasonOf(error);
    this.#world.say(`${model.id}: ${reason}`);
    if (this.#isMissing(model, reason) || this.#isTableless(model, error) || this.#isStopped(model, reason)) return;
    if (!refusals.has(reason) && !doubts.has(reason)) throw error;
  }

  #acceptInTransaction(model: ModelDatabase, error: unknown): void {
    const reason = this.#reasonOf(error);
    if (reason !== "TRANSACTION_EXPIRED" && reason !== "TRANSACTION_NOT_OPEN") this.#accept(model, error);
  }

  #acceptOperation(model: ModelDatabase, error: unknown): void {
    if (!failedOperations.has(this.#reasonOf(error))) this.#accept(model, error);
    else this.#world.say(`${model.id}: ${this.#reasonOf(error)}`);
  }

  /** Bytes that were damaged on their way are found out, and right when they are asked for again. */
  #isStopped(model: ModelDatabase, reason: string): boolean {
    if (reason === "DATABASE_FAULTED") return this.diskFailed;
    if (reason === "DATABASE_FENCED") return model.hasRival;
    return reason === "DATA_CORRUPT" && this.#profile.faults.flip_bit !== undefined;
  }

  #isMissing(model: ModelDatabase, reason: string): boolean {
    if (reason !== "DATABASE_NOT_FOUND") return false;
    if (this.#models.get(model.id) !== model) return true;
    if (model.presence === "there") throw new Violation(`${model.id} is lost`);
    this.#absent(model.id);
    return true;
  }

  #isTableless(model: ModelDatabase, error: unknown): boolean {
    if (!isTableless(error)) return false;
    model.foundNoTable();
    return true;
  }

  #take(model: ModelDatabase, position: Position, durable: Position | undefined, sequence: bigint, what: string): void {
    model.position(position, sequence, what);
    model.durable(durable);
  }

  #isWritten(id: string): boolean {
    return this.#world.running.some((name) => /^(write|end|schema)/.test(name) && name.split(" ")[1] === id);
  }

  #versionOf(id: string): string | undefined {
    try {
      return this.#world.engine.version(id);
    } catch (error) {
      if (error instanceof Failure) return undefined;
      throw error;
    }
  }

  #reasonOf(error: unknown): string {
    return error instanceof Failure ? error.reason : "";
  }

  #say({ kind, done, error }: OperationInfo): void {
    this.#world.say(`operation ${kind} ${done ? (error?.reason ?? "ended") : "goes on"}`);
  }
}

export const trafficWeights = {
  write: 34,
  read: 10,
  transaction: 6,
  query: 3,
  create: 4,
  delete: 2,
  move: 9,
  sync: 4,
  pin: 2,
  label: 1,
  restore: 2,
  fork: 2,
};

export type TrafficKind = keyof typeof trafficWeights;

function isTableless(error: unknown): boolean {
  return error instanceof Failure && error.reason === "SQL_INVALID" && error.message.includes("no such table");
}

/** One that has come back with the bucket, though it was deleted: nobody knows what it holds. */
function ghost(id: string): ModelDatabase {
  const model = new ModelDatabase(id);
  model.isGhost = true;
  return model;
}

function rowsOfChunk(chunk: Uint8Array): number[][] {
  const { message } = fromBinary(QueryResponseSchema, chunk);
  return message.case === "rowBatch" ? integers(message.value) : [];
}

function resultNumbers(body: Uint8Array): number[][] {
  const { data } = fromBinary(ResultSetSchema, body);
  return data.case === "rowBatch" ? integers(data.value) : [];
}

function integers({ rows }: Extract<ResultSet["data"], { case: "rowBatch" }>["value"]): number[][] {
  return rows.map((row) => row.values.map(({ kind }) => (kind.case === "integer" ? Number(kind.value) : Number.NaN)));
}
