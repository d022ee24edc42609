/**
 * History: taking a database back to an earlier point, and making a new one of such a point. Both write the state as the
 * first batch of a new history under a new prefix, and then publish it with one conditional write: before it nothing has
 * happened, after it everything has.
 */
import type { Clock } from "../clock.ts";
import type { FailPoints } from "../fail-points.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import { isObjectStoreError } from "../objects/object-store.ts";
import type { RequestRecord } from "../sqlite/executor.ts";
import type { Manifest, RetiredPrefix, StoredManifest } from "../stages/manifest.ts";
import type { RemoteReplica, RemoteStage } from "../stages/remote.ts";
import type { StageCall } from "../stages/stage.ts";
import type { CatalogRow } from "./catalog.ts";
import type { HostedDatabase } from "./database.ts";
import type { ForkInput, HistoryTarget, OperationInfo, RestoreInput } from "./engine.ts";
import { localStageFailure } from "./failures.ts";
import { writeFirstBatch } from "./first-batch.ts";
import type { Folder } from "./folder.ts";
import { type FoundPoint, findPoint, outOfRange, type Point } from "./history-points.ts";
import type { StoredOperation } from "./operation-store.ts";
import type { Operations, OperationTask, Progress } from "./operations.ts";
import type { EngineLog } from "./options.ts";
import { prefixOf } from "./sync/publish.ts";
import { isStoreFailure } from "./sync/store-health.ts";
import type { Discovered, Sync, SyncedDatabase } from "./sync/sync.ts";

export interface HistoryLimits {
  /** How long a replaced history is kept. */
  readonly retentionMs: number;
  /** How long a restore waits for open write transactions. */
  readonly drainMsMax: number;
  /** Restores and forks that copy at one time. */
  readonly concurrencyMax: number;
}

/** What is to become of a database that was restored. */
export interface NewHistory {
  readonly lineage: string;
  readonly remotePrefix: string;
  /** The `etagVersion` that its manifest has. */
  readonly manifestVersion: number;
}

/** What the engine does for history. */
export interface HistoryHost {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly fileSystem: FileSystem;
  readonly folder: Pick<Folder, "scratch">;
  readonly operations: Operations;
  /** Undefined when nothing is carried to a remote stage. */
  readonly remote: RemoteStage | undefined;
  readonly sync: Pick<Sync, "uploadAll" | "forget" | "retired">;
  newLineage(): string;
  /** Throws DATABASE_NOT_FOUND; asks the remote stage while it is being discovered. */
  find(id: string): Promise<CatalogRow>;
  /** The same, without a failure. */
  get(id: string): Promise<CatalogRow | undefined>;
  etagOf(row: CatalogRow): string;
  /** Runs alone among the creations, deletions and changes of that id. */
  exclusively<T>(id: string, work: () => Promise<T>): Promise<T>;
  /** The handle, in use until it is left; undefined when the database has no head. */
  open(id: string): Promise<(HostedDatabase & SyncedDatabase) | undefined>;
  /** Notes the lineage that is about to follow, on the disk; from there on the database is read-only. Undefined takes it back. */
  setSuccessor(id: string, lineage: string | undefined): Promise<void>;
  /**
   * The database has another history: ends calls that still run on the old one, removes its local copies, and leaves it
   * without a head, at batch 1, which the remote stage holds.
   */
  replaceHistory(id: string, next: NewHistory): Promise<void>;
  /** What a lineage has in the remote stage goes, whatever happens between: it was never published. */
  discard(id: string, lineage: string): Promise<void>;
  /** Gives a database a head again that had one. */
  warm(id: string): Promise<void>;
  /** Takes a database that only the remote stage has into the catalog; false when the id is known. */
  adopt(found: Discovered): Promise<boolean>;
}

/** Uploads of what a point needs have to come to their end in this time; writes wait for no longer than that. */
const uploadMsMax = 60_000;
/** One call of the store, and what is added for what it carries. */
const callMs = 60_000;
const bytesPerMs = 256;
const retryStartMs = 250;
const retryMsMax = 15_000;
/** Files may be merged while they are planned with. */
const planRoundMax = 3;

/** Where a point lies: whose files lead there. */
interface Source {
  readonly replica: RemoteReplica;
  /** True when it is the history that goes on. */
  readonly isCurrent: boolean;
  readonly point: Point | undefined;
  /** Why no file can lead there. */
  readonly problem?: string | undefined;
}

/** The state of a point, as the first batch of another history. */
interface Stored {
  readonly byteCount: number;
  readonly pageSize: number;
}

export class History {
  readonly #host: HistoryHost;
  readonly #limits: HistoryLimits;
  #copies = 0;
  readonly #waiting = new Set<() => void>();

  constructor(host: HistoryHost, limits: HistoryLimits) {
    this.#host = host;
    this.#limits = limits;
  }

  /** See `Engine.restore`. */
  async restore(input: RestoreInput): Promise<OperationInfo> {
    const { operations } = this.#host;
    const { id, target, request, wait } = input;
    const repeated = operations.repeated(id, request);
    if (repeated !== undefined) return operations.wait(repeated.id, wait);
    const found = await this.#host.find(id);
    this.#checkEtag(found, input.etag);
    await this.#checkPoint(found, target);
    // As it is now: the look at the remote stage took its time.
    const row = await this.#host.find(id);
    this.#checkEtag(row, input.etag);
    const lineage = this.#host.newLineage();
    const started = operations.start({
      ...restoreTask(id, lineage),
      key: targetKey(row.lineage, target),
      request,
      // Only when its turn has come: until then the database takes writes.
      run: (progress) => this.#withPlace(progress, () => this.#runRestore(id, lineage, target, progress)),
    });
    return operations.wait(started.id, wait);
  }

  /** See `Engine.fork`. */
  async fork(input: ForkInput): Promise<OperationInfo> {
    const { operations } = this.#host;
    const { id, newId, source, request, wait } = input;
    const repeated = operations.repeated(id, request);
    if (repeated !== undefined) return operations.wait(repeated.id, wait);
    const row = await this.#host.find(id);
    await this.#checkPoint(row, source);
    const started = await this.#host.exclusively(newId, async () => {
      const task = this.#forkTask(input, row.lineage);
      // A task that runs has the id; it is joined, or in the way.
      if (operations.lockedBy(newId) !== undefined) return operations.start(task);
      const present = await this.#host.get(newId);
      if (present === undefined) return operations.start(task);
      if (isMadeBy(present, request)) return operations.done(task);
      throw new Failure("DATABASE_EXISTS", { database: newId });
    });
    return operations.wait(started.id, wait);
  }

  /**
   * What becomes of an operation that an earlier server left: it is brought to its end where it was published, and taken
   * back where it was not. Undefined for other kinds.
   */
  resume({ database, kind, input }: StoredOperation): OperationTask | undefined {
    const lineage = input?.["lineage"];
    if (typeof lineage !== "string" || this.#host.remote === undefined) return undefined;
    if (kind === "restore") return this.recovery(database, lineage);
    const newId = input?.["newId"];
    if (kind !== "fork" || typeof newId !== "string") return undefined;
    return {
      database,
      kind,
      key: newId,
      locks: [newId],
      input,
      run: (progress) => this.#recoverFork(newId, lineage, progress),
    };
  }

  /** The same for a database whose facts name a successor, though no operation is known. */
  recovery(id: string, lineage: string): OperationTask {
    return { ...restoreTask(id, lineage), run: (progress) => this.#recoverRestore(id, lineage, progress) };
  }

  #forkTask({ id, newId, source, request }: ForkInput, sourceLineage: string): OperationTask {
    const lineage = this.#host.newLineage();
    return {
      database: id,
      kind: "fork",
      key: `${newId} ${targetKey(sourceLineage, source)}`,
      locks: [newId],
      request,
      input: { newId, lineage },
      run: (progress) =>
        this.#withPlace(progress, () => this.#runFork({ id, newId, source, request }, lineage, progress)),
    };
  }

  #remote(id: string): RemoteStage {
    if (this.#host.remote === undefined) throw new Failure("HISTORY_NOT_KEPT", { database: id });
    return this.#host.remote;
  }

  #checkEtag(row: CatalogRow, etag: string | undefined): void {
    if (etag !== undefined && etag !== this.#host.etagOf(row)) throw new Failure("ETAG_MISMATCH", { database: row.id });
  }

  /** Refuses at once what no upload could bring about. */
  async #checkPoint(row: CatalogRow, target: HistoryTarget | undefined): Promise<void> {
    this.#remote(row.id);
    if (row.isFenced)
      throw new Failure("DATABASE_FENCED", { database: row.id, sequence: String(row.durableSequence + 1) });
    if (target === undefined) return;
    await this.#storeWork(async (call) => {
      const source = await this.#source(row, target, call);
      const { replica, point, problem } = source;
      if (point === undefined) return;
      await this.#load(source, call);
      const files = replica.files();
      if (problem !== undefined) throw outOfRange(row.id, files, point, problem);
      // What is not uploaded yet comes behind what is: a later batch, or the first that anything is stored of.
      const isToCome =
        source.isCurrent && (point.timeMs === undefined ? point.txid > replica.lastTxid : replica.lastTxid === 0n);
      if (!isToCome) findPoint(row.id, files, point);
    });
  }

  /** Whose files lead to a point, and which point it is there. */
  async #source(row: CatalogRow, target: HistoryTarget | undefined, call: StageCall): Promise<Source> {
    const remote = this.#remote(row.id);
    const stored = await remote.manifests.read(row.id, call);
    const retired = stored?.manifest.retired ?? [];
    const present = prefixOf(remote, row);
    const current = (point: Point | undefined, problem?: string): Source => ({
      replica: remote.replica(present),
      isCurrent: true,
      point,
      problem,
    });
    const past = ({ prefix }: RetiredPrefix, point: Point): Source => ({
      replica: remote.replica(prefix),
      isCurrent: false,
      point,
    });
    if (target === undefined) return current(undefined);
    if (target.position !== undefined) {
      const { lineage, sequence } = target.position;
      const point = { txid: sequence };
      if (lineage === row.lineage) {
        const newest = await this.#newest(row);
        return current(point, sequence > newest ? `the database is at position ${newest}` : undefined);
      }
      const of = retired.find((each) => each.lineage === lineage);
      if (of === undefined) throw new Failure("LINEAGE_CHANGED", { lineage: row.lineage });
      return past(of, point);
    }
    const point = { timeMs: target.timeMs };
    if (target.timeMs > this.#host.clock.wallMs()) return current(point, "it lies in the future");
    const of = [...retired]
      .sort((a, b) => a.retiredAtMs - b.retiredAtMs)
      .find(({ retiredAtMs }) => target.timeMs < retiredAtMs);
    return of === undefined ? current(point) : past(of, point);
  }

  /** The position of the database now, with what is only in its handle. */
  async #newest(row: CatalogRow): Promise<bigint> {
    if (row.head === "none") return BigInt(row.sequence);
    const database = await this.#host.open(row.id);
    if (database === undefined) return BigInt(row.sequence);
    const { sequence } = database.position;
    database.leave();
    return sequence;
  }

  async #load({ replica, point }: Source, call: StageCall): Promise<void> {
    await replica.load(call);
    if (point?.timeMs !== undefined) await replica.loadTimes(call);
  }

  async #runRestore(id: string, lineage: string, target: HistoryTarget, progress: Progress): Promise<void> {
    const { failPoints, sync, clock } = this.#host;
    const remote = this.#remote(id);
    const row = await this.#host.find(id);
    const prefix = remote.prefixOf(id, lineage);
    await this.#host.setSuccessor(id, lineage);
    failPoints.reach("restore.noted");
    let isStored = false;
    let isCommitted = false;
    let isPublished = false;
    try {
      await this.#uploadNewest(row, true, progress);
      await this.#copy(row, target, prefix, progress, () => {
        isStored = true;
      });
      failPoints.reach("restore.stored");
      progress.commit();
      isCommitted = true;
      const keepUntilMs = clock.wallMs() + this.#limits.retentionMs;
      const manifest = await this.#publishRestore(row, { lineage, prefix }, keepUntilMs, progress);
      isPublished = true;
      failPoints.reach("restore.published");
      await this.#switch(manifest, progress);
      sync.retired(id, keepUntilMs);
    } catch (error) {
      // At the end of the server nobody may know whether it was published: the next start asks.
      if (!isPublished && !(isCommitted && isShutDown(error))) {
        if (isStored) await this.#discard(id, lineage);
        await this.#host.setSuccessor(id, undefined);
      }
      throw error;
    }
    failPoints.reach("restore.end");
    this.#warm(id);
  }

  async #runFork(
    { id, newId, source, request }: Pick<ForkInput, "id" | "newId" | "source" | "request">,
    lineage: string,
    progress: Progress,
  ): Promise<void> {
    const { failPoints } = this.#host;
    const remote = this.#remote(id);
    const row = await this.#host.find(id);
    const prefix = remote.prefixOf(newId, lineage);
    const nowMs = this.#host.clock.wallMs();
    const { labels, foreignKeys } = row;
    const manifestOf = (pageBytes: number): Manifest => ({
      id: newId,
      lineage,
      prefix,
      createTimeMs: nowMs,
      labels,
      foreignKeys,
      etagVersion: 1,
      pageBytes,
      createRecord: request && { ...request, labels, foreignKeys },
      retired: [],
    });
    let isStored = false;
    let isCommitted = false;
    let stored: Stored;
    let manifest: Manifest;
    try {
      if (needsNewest(row, source)) await this.#uploadNewest(row, false, progress);
      stored = await this.#copy(row, source, prefix, progress, () => {
        isStored = true;
      });
      manifest = manifestOf(stored.pageSize);
      failPoints.reach("fork.stored");
      progress.commit();
      isCommitted = true;
      await this.#publishFork(manifest, progress);
    } catch (error) {
      if (isStored && !(isCommitted && isShutDown(error))) await this.#discard(newId, lineage);
      throw error;
    }
    failPoints.reach("fork.published");
    await this.#adopt(manifest, stored.byteCount);
    failPoints.reach("fork.end");
  }

  async #recoverRestore(id: string, lineage: string, progress: Progress): Promise<void> {
    const remote = this.#remote(id);
    const row = await this.#host.find(id);
    // It had come to its end but for the word of it.
    if (row.lineage === lineage) return;
    // Until this is known the database takes no writes: there is nothing to cancel.
    progress.commit();
    const stored = await this.#untilKnown(progress, (call) => remote.manifests.read(id, call));
    if (stored?.manifest.lineage === lineage) {
      const retired = stored.manifest.retired.find((each) => each.lineage === row.lineage);
      await this.#switch(stored.manifest, progress);
      if (retired !== undefined) this.#host.sync.retired(id, retired.keepUntilMs);
      this.#host.failPoints.reach("restore.end");
      this.#warm(id);
      return;
    }
    await this.#discard(id, lineage);
    await this.#host.setSuccessor(id, undefined);
    throw new Failure("OPERATION_INTERRUPTED", { operation: progress.operation });
  }

  async #recoverFork(newId: string, lineage: string, progress: Progress): Promise<void> {
    const remote = this.#remote(newId);
    const prefix = remote.prefixOf(newId, lineage);
    progress.commit();
    const stored = await this.#untilKnown(progress, (call) => remote.manifests.read(newId, call));
    if (stored?.manifest.lineage !== lineage) {
      await this.#discard(newId, lineage);
      throw new Failure("OPERATION_INTERRUPTED", { operation: progress.operation });
    }
    const replica = remote.replica(prefix);
    await this.#untilKnown(progress, (call) => replica.load(call));
    await this.#adopt(
      stored.manifest,
      replica.files().reduce((sum, { byteCount }) => sum + byteCount, 0),
    );
    this.#host.failPoints.reach("fork.end");
  }

  /** Brings everything that is committed to the remote stage; with `drains`, writes have to have come to their end before. */
  async #uploadNewest(row: CatalogRow, drains: boolean, progress: Progress): Promise<void> {
    const { clock, log } = this.#host;
    const database = await this.#host.open(row.id);
    if (database === undefined) return;
    try {
      if (database.state === "faulted") {
        log("warn", "what a stopped database had not uploaded is not part of its history", { database: row.id });
        return;
      }
      if (drains) await this.#drain(database);
      progress.check();
      const deadlineAtMs = clock.now() + uploadMsMax;
      await this.#host.sync.uploadAll(database, { deadlineAtMs, cancel: progress.cancel });
    } finally {
      database.leave();
    }
  }

  /** No new write begins any more; those that run, and open write transactions, are waited for. */
  async #drain(database: HostedDatabase): Promise<void> {
    const isDrained = await database.pauseWrites(this.#limits.drainMsMax);
    database.resumeWrites();
    if (isDrained) return;
    throw new Failure(
      "DATABASE_BUSY",
      {
        database: database.id,
        problem: "a write transaction is open",
        waitedMs: String(this.#limits.drainMsMax),
      },
      { retryAfterMs: 1_000 },
    );
  }

  /** Writes the state of a point as the first batch under another prefix. */
  async #copy(
    row: CatalogRow,
    target: HistoryTarget | undefined,
    prefix: string,
    progress: Progress,
    onStore: () => void,
  ): Promise<Stored> {
    const { fileSystem, folder } = this.#host;
    const scratch = await folder.scratch();
    try {
      const restored = await this.#restoreTo(scratch.filePath, row, target, progress);
      progress.check();
      const batch = await writeFirstBatch(fileSystem, {
        databasePath: scratch.filePath,
        path: `${scratch.filePath}.ltx`,
        check: () => progress.check(),
        ...restored,
      });
      const replica = this.#remote(row.id).replica(prefix);
      onStore();
      await this.#storeWork((call) => replica.append(batch, call), progress, batch.byteCount);
      progress.add(batch.byteCount);
      return { byteCount: batch.byteCount, pageSize: batch.pageSize };
    } catch (error) {
      throw isFileFailure(error) ? localStageFailure(error) : error;
    } finally {
      await scratch.remove();
    }
  }

  /** Files are merged and deleted all the time: what is gone when it is read is planned anew. */
  async #restoreTo(path: string, row: CatalogRow, target: HistoryTarget | undefined, progress: Progress) {
    for (let round = 1; ; round++) {
      const source = await this.#storeWork(async (call) => {
        const found = await this.#source(row, target, call);
        await this.#load(found, call);
        return found;
      }, progress);
      const { replica, problem } = source;
      const point = source.point ?? { txid: replica.lastTxid };
      if (problem !== undefined) throw outOfRange(row.id, replica.files(), point, problem);
      const found = findPoint(row.id, replica.files(), point);
      try {
        return await this.#storeWork(
          (call) => this.#restoreFile(replica, path, found, progress, call),
          progress,
          found.byteCount,
        );
      } catch (error) {
        const isGone = error instanceof Failure && error.reason === "HISTORY_OUT_OF_RANGE";
        if (!isGone && !isObjectStoreError(error, "not_found")) throw error;
        if (round === planRoundMax) throw error;
      }
    }
  }

  async #restoreFile(
    replica: RemoteReplica,
    path: string,
    { txid, byteCount }: FoundPoint,
    progress: Progress,
    call: StageCall,
  ) {
    let done = 0;
    progress.total(byteCount);
    const { pageSize, pageCount, timestampMs } = await replica.restore(
      {
        path,
        flush: false,
        target: { txid },
        onProgress(bytes, bytesTotal) {
          progress.add(bytes - done);
          done = bytes;
          // Up again it goes as one file, of about that size.
          progress.total(2 * bytesTotal);
        },
      },
      call,
    );
    return { pageSize, pageCount, timestampMs };
  }

  /** The moment of a restore. What came of a write whose answer was lost is looked up, until it is known. */
  async #publishRestore(
    row: CatalogRow,
    next: Pick<Manifest, "lineage" | "prefix">,
    keepUntilMs: number,
    progress: Progress,
  ): Promise<Manifest> {
    const { manifests } = this.#remote(row.id);
    const retiredAtMs = this.#host.clock.wallMs();
    const replaced = (stored: StoredManifest): Manifest => ({
      ...stored.manifest,
      ...next,
      retired: [
        ...stored.manifest.retired,
        { lineage: row.lineage, prefix: stored.manifest.prefix, retiredAtMs, keepUntilMs },
      ],
    });
    return this.#untilKnown(progress, async (call) => {
      for (;;) {
        const stored = await manifests.read(row.id, call);
        if (stored?.manifest.lineage === next.lineage) return stored.manifest;
        if (stored?.manifest.lineage !== row.lineage) {
          throw new Failure("DATABASE_FENCED", { database: row.id, sequence: String(row.durableSequence + 1) });
        }
        const done = await manifests.replace(replaced(stored), stored.etag, call);
        if (done !== undefined) return done.manifest;
      }
    });
  }

  async #publishFork(manifest: Manifest, progress: Progress): Promise<void> {
    const { manifests } = this.#remote(manifest.id);
    await this.#untilKnown(progress, async (call) => {
      if ((await manifests.create(manifest, call)) !== undefined) return;
      const stored = await manifests.read(manifest.id, call);
      if (stored?.manifest.lineage !== manifest.lineage) {
        throw new Failure("DATABASE_EXISTS", { database: manifest.id });
      }
    });
  }

  /**
   * From the old history to the published one. There is no way back: what stands in the way, a full disk say, is tried again,
   * and the database takes no writes until then.
   */
  async #switch({ id, lineage, prefix, etagVersion }: Manifest, progress: Progress): Promise<void> {
    await this.#host.sync.forget(id, new Failure("LINEAGE_CHANGED", { lineage }));
    for (let waitMs = retryStartMs; ; waitMs = Math.min(2 * waitMs, retryMsMax)) {
      try {
        await this.#host.replaceHistory(id, { lineage, remotePrefix: prefix, manifestVersion: etagVersion });
        break;
      } catch (error) {
        if (progress.signal.aborted) throw new Failure("SHUTTING_DOWN", {}, { cause: error });
        this.#host.log("error", "the files of a restored database could not be exchanged; it is tried again", {
          database: id,
          error,
        });
      }
      await this.#pause(waitMs, progress);
    }
    this.#host.failPoints.reach("restore.dropped");
  }

  async #adopt(manifest: Manifest, sizeBytes: number): Promise<void> {
    const isNew = await this.#host.adopt({ manifest, txid: 1n, sizeBytes, upkeepAtMs: 0 });
    // Discovery may have been faster.
    if (isNew || (await this.#host.find(manifest.id)).lineage === manifest.lineage) return;
    throw new Failure("DATABASE_EXISTS", { database: manifest.id });
  }

  async #discard(id: string, lineage: string): Promise<void> {
    try {
      await this.#host.discard(id, lineage);
    } catch (error) {
      this.#host.log("warn", "objects that nothing refers to are left in the remote stage", {
        database: id,
        lineage,
        error,
      });
    }
  }

  /** In the background: the next call would do it all the same. */
  #warm(id: string): void {
    this.#host.warm(id).catch((error: unknown) => {
      this.#host.log("warn", "a restored database stays in the remote stage until it is called", {
        database: id,
        error,
      });
    });
  }

  /** Runs work that asks the store, as often as it takes to hear an answer. */
  async #untilKnown<T>(progress: Progress, run: (call: StageCall) => Promise<T>): Promise<T> {
    for (let waitMs = retryStartMs; ; waitMs = Math.min(2 * waitMs, retryMsMax)) {
      try {
        return await run(this.#call(progress, 0));
      } catch (error) {
        if (progress.signal.aborted) throw new Failure("SHUTTING_DOWN", {}, { cause: error });
        if (!isStoreFailure(error)) throw error;
        this.#host.log("warn", "the outcome of a restore or fork is not known yet; it is asked for again", {
          operation: progress.operation,
          error,
        });
      }
      await this.#pause(waitMs, progress);
    }
  }

  async #pause(ms: number, { signal }: Progress): Promise<void> {
    const over = Promise.withResolvers<void>();
    const cancelTimer = this.#host.clock.after(ms, over.resolve);
    signal.addEventListener("abort", () => over.resolve(), { once: true });
    await over.promise;
    cancelTimer();
  }

  async #storeWork<T>(run: (call: StageCall) => Promise<T>, progress?: Progress, byteCount = 0): Promise<T> {
    try {
      return await run(this.#call(progress, byteCount));
    } catch (error) {
      progress?.check();
      if (!isStoreFailure(error)) throw error;
      throw new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, { cause: error, retryAfterMs: 1_000 });
    }
  }

  #call(progress: Progress | undefined, byteCount: number): StageCall {
    const deadlineAtMs = this.#host.clock.now() + callMs + byteCount / bytesPerMs;
    return progress === undefined ? { deadlineAtMs } : { deadlineAtMs, signal: progress.signal };
  }

  /** Copies take disk and network: only so many run at one time. */
  async #withPlace<T>(progress: Progress, run: () => Promise<T>): Promise<T> {
    while (this.#copies >= this.#limits.concurrencyMax) {
      const turn = Promise.withResolvers<void>();
      this.#waiting.add(turn.resolve);
      const forgetCancel = progress.cancel.onCancel(turn.resolve);
      await turn.promise;
      forgetCancel();
      this.#waiting.delete(turn.resolve);
      // It may have been this one's turn: then it is the next one's.
      if (progress.signal.aborted) this.#wakeNext();
      progress.check();
    }
    this.#copies++;
    try {
      progress.check();
      return await run();
    } finally {
      this.#copies--;
      this.#wakeNext();
    }
  }

  #wakeNext(): void {
    const [next] = this.#waiting;
    next?.();
  }
}

function restoreTask(id: string, lineage: string) {
  return { database: id, kind: "restore", key: lineage, locks: [id], input: { lineage } } as const;
}

/** A fork of what is stored already has nothing to wait for. */
function needsNewest(row: CatalogRow, source: HistoryTarget | undefined): boolean {
  if (source === undefined) return true;
  if (source.position === undefined) return row.durableSequence === 0;
  const { lineage, sequence } = source.position;
  return lineage === row.lineage && sequence > BigInt(row.durableSequence);
}

/** True when an earlier call with the same request id has forked it, though its operation is forgotten. */
function isMadeBy({ createRecord }: CatalogRow, request: RequestRecord | undefined): boolean {
  if (request === undefined || createRecord?.id !== request.id) return false;
  return createRecord.method === request.method && createRecord.hash === request.hash;
}

function targetKey(lineage: string, target: HistoryTarget | undefined): string {
  if (target === undefined) return `${lineage} newest`;
  if (target.position === undefined) return `${lineage} at ${target.timeMs}`;
  return `${target.position.lineage}-${target.position.sequence}`;
}

function isFileFailure(error: unknown): boolean {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === "string" && "syscall" in error;
}

function isShutDown(error: unknown): boolean {
  return error instanceof Failure && error.reason === "SHUTTING_DOWN";
}
