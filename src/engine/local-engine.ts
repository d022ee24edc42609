/** The engine of one local folder: which databases there are, and everything between a call and its executor. */
import { noFailPoints } from "../fail-points.ts";
import { Failure, type FieldViolation, fieldInvalid } from "../failure/failure.ts";
import { nodeFileSystem } from "../files/file-system.ts";
import type { CallOptions, Cancel, QueryOptions, RequestRecord } from "../sqlite/executor.ts";
import { Catalog, type CatalogRow, newRowColumns, type PageKey, type Touch } from "./catalog.ts";
import { Checkpoints } from "./checkpoints.ts";
import { HostedDatabase, type WriteKind } from "./database.ts";
import type {
  CreateDatabaseInput,
  DatabaseInfo,
  DatabaseStageInfo,
  DurabilityLevel,
  Engine,
  EngineAnswer,
  EngineQuery,
  EngineStats,
  EngineTransaction,
  ForkInput,
  ListDatabasesInput,
  ListOperationsInput,
  MoveInput,
  OperationInfo,
  PinInfo,
  Position,
  RestoreInput,
  StageInfo,
  SyncInput,
  UpdateDatabaseInput,
} from "./engine.ts";
import { type Facts, factsOf } from "./facts.ts";
import { databaseNotFound, localStageFailure } from "./failures.ts";
import { filterCondition, parseFilter, parseOrder } from "./filter.ts";
import { Flusher } from "./flusher.ts";
import { Folder } from "./folder.ts";
import { Handles, type HandlesHost } from "./handles.ts";
import { History } from "./history.ts";
import { historyHost } from "./history-host.ts";
import { KeyedLock } from "./keyed-lock.ts";
import { parseRedoKey, Redo, redoFolder } from "./log/redo.ts";
import { SealSlots } from "./log/seal-slots.ts";
import { idRule, isDatabaseId, labelViolations } from "./names.ts";
import { Operations } from "./operations.ts";
import type { EngineOptions } from "./options.ts";
import { effectivePageSize, makePageToken, readPageToken } from "./page-token.ts";
import { HeadFiles } from "./placement/head-files.ts";
import { localOnly, Placement } from "./placement/placement.ts";
import { reconcile } from "./reconcile.ts";
import { type OpenedSync, openSync } from "./sync/open-sync.ts";
import { SyncCalls } from "./sync-calls.ts";
import { HeldTransaction } from "./transaction.ts";
import type { CallWait } from "./waiting.ts";

/** Databases whose use is written to the catalog in one round of the timer. */
const touchCountMax = 500;

const retryAfterMs = 1_000;

/** Rows of the catalog looked at without letting other work go on. */
const scanSliceCount = 2_000;

/** Databases closed side by side at the end. */
const closeConcurrency = 16;

/**
 * Opens the engine of a folder, takes the folder's lock, and mends what an earlier server has left half done.
 * Rejects with FolderInUseError when another server has the folder, with CatalogVersionError when a newer one wrote it.
 */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  const fileSystem = options.fileSystem ?? nodeFileSystem;
  const { directoryPath, random, log, clock } = options;
  const hex = (byteCount: number) => Buffer.from(random(byteCount)).toString("hex");
  await fileSystem.makeFolder(directoryPath);
  const catalog = Catalog.open(directoryPath);
  try {
    const folder = new Folder(directoryPath, fileSystem, () => hex(8), options.failPoints);
    const failPoints = options.failPoints ?? noFailPoints;
    // WALs first: what is looked at afterwards is what the databases will have.
    const redo = await Redo.open({
      fileSystem,
      folderPath: redoFolder(directoryPath),
      fileBytes: options.limits.redoFileBytes,
      log,
      failPoints,
      walPath: (key) => walPathOf(folder, key),
    });
    const memoryPath = options.stages?.memory?.directoryPath;
    const files = new HeadFiles({ fileSystem, folder, executors: options.executors, clock, failPoints, memoryPath });
    await reconcile({ catalog, fileSystem, folder, files, log, newLineage: () => hex(8), nowMs: clock.wallMs() });
    const flusher = new Flusher(fileSystem, clock, options.limits, failPoints, redo);
    const engine = new LocalEngine(options, { catalog, folder, files, flusher, newLineage: () => hex(8) });
    await engine.start();
    return engine;
  } catch (error) {
    catalog.distrust();
    catalog.close();
    throw error;
  }
}

/** Where a WAL of the redo log is; undefined when its database is gone. A base may have its last frames in a WAL, too. */
async function walPathOf(folder: Folder, key: string): Promise<string | undefined> {
  const named = parseRedoKey(key);
  if (named === undefined || !isDatabaseId(named.id)) return undefined;
  const { facts, hasData } = await folder.inspect(named.id);
  if (facts?.lineage !== named.lineage || !hasData) return undefined;
  return `${folder.filePath(named.id)}-wal`;
}

/** What is opened before the engine. */
interface EngineParts {
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly files: HeadFiles;
  readonly flusher: Flusher;
  readonly newLineage: () => string;
}

class LocalEngine implements Engine {
  readonly sqliteVersion: string;
  readonly #host: HandlesHost;
  readonly #handles: Handles;
  readonly #carrying: OpenedSync;
  readonly #newLineage: () => string;
  readonly #pageSecret: Buffer;
  readonly #operations: Operations;
  readonly #placement: Placement;
  readonly #history: History;
  readonly #syncCalls: SyncCalls;
  /** No other engine has it: what this one says of versions is compared with nothing that another one said. */
  readonly #bootNonce: string;
  readonly #lock = new KeyedLock();
  readonly #transactions = new Set<HeldTransaction>();
  /** Used since the catalog was told. */
  readonly #touched = new Set<HostedDatabase>();
  #emptyDatabase: Promise<Buffer> | undefined;
  #isClosing = false;
  #closed: Promise<void> | undefined;
  readonly #cancelTimer: () => void;
  readonly #syncGraceMs: number;

  constructor(options: EngineOptions, { catalog, folder, files, flusher, newLineage }: EngineParts) {
    const { executors, clock, limits, log, random } = options;
    this.sqliteVersion = executors.sqliteVersion;
    let handles = 0;
    const stages = options.stages ?? localOnly;
    const { settings } = stages;
    const failPoints = options.failPoints ?? noFailPoints;
    const fileSystem = options.fileSystem ?? nodeFileSystem;
    this.#host = {
      executors,
      clock,
      limits,
      log,
      catalog,
      folder,
      flusher,
      logs: { fileSystem, clock, log, failPoints, slots: new SealSlots(fileSystem, limits) },
      isCarried: options.sync !== undefined && options.remote !== undefined,
      files,
      requestWindowMs: settings.requestWindowMs,
      wantedCount: settings.autoMovement ? settings.requestCountThreshold : Number.POSITIVE_INFINITY,
      wanted: (database) => this.#placement.wanted(database),
      damaged: (database, failure) => this.#placement.damaged(database, failure),
      checkpoints: new Checkpoints(limits, clock, log),
      touched: (database) => this.#touched.add(database),
      row: (id) => this.#findRow(id),
      sync: () => this.#carrying.sync,
      bring: (row) => this.#placement.bring(row),
      mayDrop: ({ id }) => !this.#carrying.sync.isBusy(id),
      dropped: (database) => this.#dropped(database),
      nextHandle: () => ++handles,
      operationOf: (id) => this.#operations.lockedBy(id),
    };
    this.#handles = new Handles(this.#host);
    this.#carrying = openSync(options, {
      catalog,
      folder,
      enterHead: (id) => this.#handles.enterHead(id),
      writeCatalog: (write) => this.#writeCatalog(write),
    });
    this.#bootNonce = newLineage();
    this.#newLineage = newLineage;
    this.#pageSecret = catalog.secret("page_token_secret", () => random(32));
    const { operations: store } = catalog;
    this.#operations = new Operations({ store, clock, limits, log, random, pageSecret: this.#pageSecret });
    this.#placement = new Placement({
      ...this.#host,
      fileSystem,
      failPoints,
      directoryPath: options.directoryPath,
      handles: this.#handles,
      operations: this.#operations,
      sync: this.#carrying.sync,
      remote: options.remote,
      carriesByItself: options.sync?.isAutomatic ?? false,
      stages,
    });
    const isCarrying = options.remote !== undefined && options.sync !== undefined;
    const historic = historyHost({
      ...this.#host,
      fileSystem,
      failPoints,
      handles: this.#handles,
      lock: this.#lock,
      operations: this.#operations,
      placement: this.#placement,
      remote: isCarrying ? options.remote : undefined,
      sync: this.#carrying.sync,
      newLineage,
      etagOf,
      adopt: (found) => this.#carrying.adopt(found),
      graceMs: limits.deleteGraceMs,
    });
    this.#history = new History(historic, {
      retentionMs: options.sync?.limits.upkeep.retention.snapshotMs ?? 0,
      drainMsMax: settings.moveWaitMsMax,
      concurrencyMax: settings.moveConcurrencyMax,
    });
    this.#syncCalls = new SyncCalls({ ...historic, sync: this.#carrying.sync });
    this.#syncGraceMs = options.sync?.closeGraceMs ?? 0;
    this.#cancelTimer = clock.every(limits.tidyMs, () => this.#tidy());
  }

  /** Begins the work that no call asks for. */
  async start(): Promise<void> {
    await this.#placement.open();
    this.#resume();
    this.#carrying.start();
  }

  async createDatabase(input: CreateDatabaseInput): Promise<DatabaseInfo> {
    const { id, labels } = input;
    this.#checkCreate(input);
    return this.#lock.run(id, async () => {
      this.#refuseWhenClosing();
      const { clock } = this.#host;
      const row = await this.#find(id);
      if (row !== undefined) return this.#answerRepeatedCreate(input, row);
      const operation = this.#operations.lockedBy(id);
      // A fork is making that id.
      if (operation !== undefined) throw new Failure("OPERATION_CONFLICT", { operation }, { retryAfterMs });

      const wished = this.#placement.creationStage(input.initialStage);
      const empty = await this.#empty();
      const isAsked = input.initialStage !== undefined;
      const { stage, release } = await this.#placement.reserve(wished, isAsked, empty.length);
      const nowMs = clock.wallMs();
      const facts: Facts = {
        id,
        lineage: this.#newLineage(),
        createTimeMs: nowMs,
        labels: { ...labels },
        foreignKeys: input.foreignKeys,
        etagVersion: 1,
        createRecord: input.request && { ...input.request, labels: { ...labels }, foreignKeys: input.foreignKeys },
        stage,
        head: stage === "memory" ? "memory" : "local",
        baseTxid: 0,
        remotePrefix: "",
        pin: undefined,
        successor: undefined,
      };
      const created: CatalogRow = {
        ...facts,
        ...newRowColumns,
        state: "ready",
        sequence: 0,
        sizeBytes: empty.length,
        lastAccessTimeMs: nowMs,
      };
      const { folder, files } = this.#host;
      try {
        // The base of a head in memory is empty, as the head is.
        if (facts.head === "memory") await files.createMemory(facts, empty);
        await folder.create(facts, empty);
        await this.#enroll(created);
      } catch (error) {
        await files.removeMemory(id, facts.lineage);
        throw localStageFailure(error);
      } finally {
        release();
      }
      this.#carrying.sync.factsChanged(id);
      return infoOf(created);
    });
  }

  async getDatabase(id: string): Promise<DatabaseInfo> {
    this.#refuseWhenClosing();
    const row = await this.#findRow(id);
    return this.#presentInfo(row, this.#sizeBytes(row));
  }

  async listDatabases(
    input: ListDatabasesInput,
  ): Promise<{ readonly databases: readonly DatabaseInfo[]; readonly nextPageToken: string }> {
    this.#refuseWhenClosing();
    const { limits, catalog } = this.#host;
    const { filter, orderBy } = input;
    const pageSize = effectivePageSize(input.pageSize);
    const condition = filterCondition(parseFilter(filter, limits));
    const order = parseOrder(orderBy);
    let key: PageKey | undefined;
    if (input.pageToken !== "") key = readPageToken(this.#pageSecret, filter, orderBy, input.pageToken);

    const databases: DatabaseInfo[] = [];
    for (let scanned = 0; scanned < limits.listScanCountMax; scanned += scanSliceCount) {
      // A filter that few meet must not hold up the calls of others.
      if (scanned > 0) await new Promise(setImmediate);
      this.#refuseWhenClosing();
      const page = catalog.page(condition, order, key, pageSize - databases.length, scanSliceCount);
      for (const row of page.rows) databases.push(this.#presentInfo(row));
      key = page.key;
      if (key === undefined || databases.length === pageSize) break;
    }
    return { databases, nextPageToken: key === undefined ? "" : makePageToken(this.#pageSecret, filter, orderBy, key) };
  }

  async updateDatabase(input: UpdateDatabaseInput): Promise<DatabaseInfo> {
    const { id, etag, labels, foreignKeys } = input;
    if (labels !== undefined) {
      throwViolations(labelViolations(labels, this.#host.limits.labelCountMax, "database.labels"));
    }
    const changed = (facts: Facts): Facts => {
      const next = {
        ...facts,
        labels: labels === undefined ? facts.labels : { ...labels },
        foreignKeys: foreignKeys ?? facts.foreignKeys,
      };
      if (next.foreignKeys === facts.foreignKeys && sameLabels(next.labels, facts.labels)) return facts;
      return { ...next, etagVersion: facts.etagVersion + 1 };
    };
    const checkEtag = (facts: Facts) => {
      if (etag !== undefined && etag !== etagOf(facts)) throw new Failure("ETAG_MISMATCH", { database: id });
    };
    return this.#lock.run(id, async () => {
      this.#refuseWhenClosing();
      const row = await this.#findRow(id);
      let isChecked = false;
      if (row.head === "none" && this.#carrying.sync.isCarrying && this.#placement.bringing(id) === undefined) {
        checkEtag(row);
        isChecked = true;
        if (await this.#updateHeadless(row, changed)) return this.#presentInfo(this.#row(id));
      }
      const database = await this.#handles.enter(id, undefined);
      try {
        await database.changeFacts((facts) => {
          if (!isChecked) checkEtag(facts);
          return changed(facts);
        });
        this.#carrying.sync.factsChanged(id);
        return this.#presentInfo(this.#row(id), database.sizeBytes);
      } finally {
        database.leave();
      }
    });
  }

  /** Facts of a database that only the remote stage has. False when it has got a head meanwhile, which has facts of its own. */
  async #updateHeadless(row: CatalogRow, change: (facts: Facts) => Facts): Promise<boolean> {
    const { id } = row;
    const facts = change(factsOf(row));
    if (facts.etagVersion === row.etagVersion) return true;
    await this.#carrying.sync.publish({ ...row, ...facts });
    const now = this.#host.catalog.get(id);
    if (now?.head !== "none" || this.#placement.bringing(id) !== undefined) return false;
    this.#writeCatalog(() => this.#host.catalog.put({ ...now, ...facts, manifestVersion: facts.etagVersion }));
    return true;
  }

  async deleteDatabase(id: string, etag: string | undefined, allowMissing: boolean): Promise<void> {
    // It may hold the database for long, or keep others from it.
    if (this.#operations.lockedBy(id) !== undefined) await this.#operations.evict(id);
    await this.#lock.run(id, async () => {
      this.#refuseWhenClosing();
      const row = await this.#find(id);
      if (row === undefined) {
        if (allowMissing && isDatabaseId(id)) return;
        throw databaseNotFound(id);
      }
      if (etag !== undefined && etag !== etagOf(row)) throw new Failure("ETAG_MISMATCH", { database: id });
      await this.#handles.deleting(id, () => this.#delete(id));
    });
  }

  execute(
    id: string,
    statement: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer> {
    return this.#write(id, "execute", statement, durability, options, record);
  }

  batch(
    id: string,
    request: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer> {
    return this.#write(id, "batch", request, durability, options, record);
  }

  script(
    id: string,
    text: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer> {
    return this.#write(id, "script", text, durability, options, record);
  }

  read(
    id: string,
    statement: Uint8Array,
    minPosition: Position | undefined,
    options: CallOptions,
  ): Promise<EngineAnswer> {
    return this.#with(id, options, (database) => database.read(statement, minPosition, options));
  }

  async query(
    id: string,
    statement: Uint8Array,
    minPosition: Position | undefined,
    options: QueryOptions,
  ): Promise<EngineQuery> {
    const entered = this.#handles.enter(id, options);
    const database = entered instanceof HostedDatabase ? entered : await entered;
    return database.query(statement, minPosition, options);
  }

  async begin(
    id: string,
    readWrite: boolean,
    idleTimeoutMs: number,
    minPosition: Position | undefined,
    options: CallOptions,
  ): Promise<EngineTransaction> {
    const { limits, clock, log } = this.#host;
    const database = await this.#handles.enter(id, options);
    try {
      const { snapshot, transaction, hold } = await database.begin(readWrite, minPosition, options);
      const held = new HeldTransaction({
        database,
        transaction,
        hold,
        readWrite,
        snapshot,
        idleMs: idleTimeoutMs > 0 ? Math.min(idleTimeoutMs, limits.transactionIdleMsMax) : limits.transactionIdleMsMax,
        totalMs: limits.transactionTotalMsMax,
        clock,
        log,
        onEnd: (ended) => this.#transactions.delete(ended),
      });
      this.#transactions.add(held);
      // One that may write holds the write lock: it is not what a growing log waits for.
      if (!readWrite) hold.expire = (failure) => void held.expire(failure);
      return held;
    } catch (error) {
      database.leave();
      throw database.causeOf(error, options);
    }
  }

  position(id: string): Position {
    const database = this.#handles.get(id);
    if (database !== undefined) return database.position;
    const row = this.#row(id);
    return { lineage: row.lineage, sequence: BigInt(row.sequence) };
  }

  version(id: string): string {
    const database = this.#handles.get(id);
    if (database !== undefined) return `${this.#bootNonce}-${database.version}`;
    // Nobody counts the commits of a database without a handle; this text is given once and stands for nothing.
    return `${this.#bootNonce}-x${this.#host.nextHandle()}`;
  }

  async listStages(): Promise<readonly StageInfo[]> {
    this.#refuseWhenClosing();
    return this.#placement.listStages();
  }

  async getDatabaseStage(id: string): Promise<DatabaseStageInfo> {
    this.#refuseWhenClosing();
    return this.#placement.stageInfo(await this.#findRow(id));
  }

  async promote(input: MoveInput): Promise<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#placement.promote(await this.#findRow(input.id), input);
  }

  async demote(input: MoveInput): Promise<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#placement.demote(await this.#findRow(input.id), input);
  }

  async sync(
    input: SyncInput,
  ): Promise<{ readonly operation: OperationInfo; readonly durablePosition: Position | undefined }> {
    this.#refuseWhenClosing();
    return this.#syncCalls.sync(input);
  }

  async pin(id: string, pin: PinInfo): Promise<DatabaseStageInfo> {
    this.#refuseWhenClosing();
    await this.#placement.pin(await this.#findRow(id), pin);
    return this.#placement.stageInfo(await this.#findRow(id));
  }

  async unpin(id: string): Promise<DatabaseStageInfo> {
    this.#refuseWhenClosing();
    await this.#placement.unpin(await this.#findRow(id));
    return this.#placement.stageInfo(await this.#findRow(id));
  }

  async getOperation(id: string): Promise<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#operations.get(id);
  }

  async listOperations(
    input: ListOperationsInput,
  ): Promise<{ readonly operations: readonly OperationInfo[]; readonly nextPageToken: string }> {
    this.#refuseWhenClosing();
    return this.#operations.list(input);
  }

  watchOperation(id: string, cancel: Cancel | undefined): AsyncIterable<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#operations.watch(id, cancel);
  }

  async cancelOperation(id: string): Promise<void> {
    this.#refuseWhenClosing();
    this.#operations.cancel(id);
  }

  async restore(input: RestoreInput): Promise<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#history.restore(input);
  }

  async fork(input: ForkInput): Promise<OperationInfo> {
    this.#refuseWhenClosing();
    return this.#history.fork(input);
  }

  stats(): EngineStats {
    const { catalog, flusher, checkpoints } = this.#host;
    let walBytes = 0;
    for (const database of this.#handles.all()) walBytes += database.walBytes;
    return {
      databases: catalog.count,
      openDatabases: this.#handles.count,
      databaseBytes: catalog.bytes,
      walBytes,
      flushes: flusher.flushes,
      checkpoints: checkpoints.count,
      openTransactions: this.#transactions.size,
      sync: this.#carrying.sync.stats(),
      isRemoteHealthy: this.#carrying.sync.health.isHealthy,
      heads: { memory: catalog.use("memory"), local: catalog.use("local"), none: catalog.use("none") },
      moves: this.#placement.moveStats,
    };
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Goes on with what an earlier server left unfinished. */
  #resume(): void {
    const { catalog, log } = this.#host;
    this.#operations.recover((stored) => this.#history.resume(stored) ?? this.#syncCalls.resume(stored));
    for (const { id, successor } of catalog.successors()) {
      if (this.#operations.lockedBy(id) !== undefined) continue;
      if (this.#carrying.sync.isCarrying) this.#operations.start(this.#history.recovery(id, successor));
      else
        log("error", "a restore was cut off; only with its remote stage can it be brought to an end", { database: id });
    }
  }

  #write(
    id: string,
    kind: WriteKind,
    bytes: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer> {
    return this.#with(id, options, (database) => database.write(kind, bytes, durability, options, record));
  }

  /** Runs what leaves by itself. Not async: most databases are open, and a promise less counts on every call. */
  #with<T>(id: string, wait: CallWait, run: (database: HostedDatabase) => Promise<T>): Promise<T> {
    try {
      const entered = this.#handles.enter(id, wait);
      return entered instanceof HostedDatabase ? run(entered) : entered.then(run);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** The position that only the handle knows goes to the catalog. */
  #dropped(database: HostedDatabase): boolean {
    this.#touched.delete(database);
    return this.#writeCatalog(() => this.#host.catalog.touch([database.takeTouch()]));
  }

  /** The row of a database, which only the remote stage may know while it is looked through. */
  #findRow(id: string): CatalogRow | Promise<CatalogRow> {
    const { sync } = this.#carrying;
    if (!sync.isDiscovering || !isDatabaseId(id) || this.#host.catalog.get(id) !== undefined) return this.#row(id);
    return sync.lookUp(id).then(() => this.#row(id));
  }

  async #find(id: string): Promise<CatalogRow | undefined> {
    const { sync } = this.#carrying;
    const row = this.#host.catalog.get(id);
    if (row !== undefined || !sync.isDiscovering || !isDatabaseId(id)) return row;
    await sync.lookUp(id);
    return this.#host.catalog.get(id);
  }

  #row(id: string): CatalogRow {
    const row = this.#host.catalog.get(id);
    if (row === undefined) throw databaseNotFound(id);
    return row;
  }

  /** What is known of a database now: the catalog lags a little behind its handle. */
  #presentInfo(row: CatalogRow, sizeBytes = row.sizeBytes): DatabaseInfo {
    const info = infoOf({ ...row, sizeBytes });
    const database = this.#handles.get(row.id);
    if (this.#handles.isDeleting(row.id)) return { ...info, state: "deleting" };
    if (database === undefined) return info;
    const { state, position, durablePosition, lastAccessTimeMs } = database;
    return { ...info, state, position, durablePosition, lastAccessTimeMs };
  }

  /** As it is on the disk; of a database without a head, as it was. */
  #sizeBytes(row: CatalogRow): number {
    return this.#host.files.sizeBytes(row) || row.sizeBytes;
  }

  #checkCreate(input: CreateDatabaseInput): void {
    const violations = labelViolations(input.labels, this.#host.limits.labelCountMax);
    if (!isDatabaseId(input.id)) violations.unshift({ field: "database", description: idRule });
    throwViolations(violations);
  }

  #answerRepeatedCreate(input: CreateDatabaseInput, row: CatalogRow): DatabaseInfo {
    const { request } = input;
    const record = row.createRecord;
    const isFresh = this.#host.clock.wallMs() - row.createTimeMs < this.#host.limits.createRecordMs;
    if (request !== undefined && record?.id === request.id && isFresh) {
      if (record.method !== request.method || record.hash !== request.hash) {
        throw fieldInvalid("request_id", "was used for another request");
      }
      const { labels, foreignKeys } = record;
      return infoOf({
        ...row,
        labels,
        foreignKeys,
        etagVersion: 1,
        state: "ready",
        sequence: 0,
        lastAccessTimeMs: row.createTimeMs,
      });
    }
    if (!input.allowExisting) throw new Failure("DATABASE_EXISTS", { database: input.id });
    return this.#presentInfo(row);
  }

  /** Takes a database into the catalog, or takes its folder back. */
  async #enroll(created: CatalogRow): Promise<void> {
    try {
      this.#host.catalog.put(created);
    } catch (error) {
      const free = await this.#host.folder.drop(created.id);
      await free();
      throw error;
    }
  }

  /** The bytes of a database with nothing in it: made once by an executor, then copied. */
  #empty(): Promise<Buffer> {
    this.#emptyDatabase ??= this.#makeEmpty().catch((error: unknown) => {
      this.#emptyDatabase = undefined;
      throw error;
    });
    return this.#emptyDatabase;
  }

  async #makeEmpty(): Promise<Buffer> {
    const { folder, executors, limits } = this.#host;
    const scratch = await folder.scratch();
    try {
      // No database can have this id.
      const database = executors.open({ id: ".empty", path: scratch.filePath, foreignKeys: true });
      try {
        await database.create(limits.pageBytes);
        await database.checkpoint("truncate");
      } finally {
        await database.close(false);
      }
      const bytes = await scratch.read();
      if (bytes === undefined || bytes.length < limits.pageBytes) throw new Error("SQLite made no database file");
      return bytes;
    } finally {
      await scratch.remove();
    }
  }

  /** Under the lock of the id, while it counts as being deleted. */
  async #delete(id: string): Promise<void> {
    const { limits } = this.#host;
    const failure = databaseNotFound(id);
    await this.#operations.evict(id);
    await this.#placement.forget(id, failure);
    await this.#carrying.sync.forget(id, failure);
    const detachment = { graceMs: limits.deleteGraceMs, failure, force: true };
    let free: () => Promise<void>;
    try {
      free = await this.#handles.detach(id, detachment, async (database) => {
        // For the case that the files cannot be renamed: then the database goes on.
        if (database !== undefined) this.#dropped(database);
        return this.#takeAway(this.#row(id));
      });
    } catch (error) {
      this.#carrying.sync.suspect(id);
      throw error;
    }
    try {
      await free();
    } catch (error) {
      this.#host.log("warn", "files of a deleted database could not be removed; the next start tries again", {
        database: id,
        error,
      });
    }
  }

  /** Takes a database's name away, here and in the remote stage. Returns what frees its files. */
  async #takeAway(row: CatalogRow): Promise<() => Promise<void>> {
    const { folder, catalog, files } = this.#host;
    const { id, lineage } = row;
    const hasCopy = row.head === "none" || row.durableSequence > 0 || row.manifestVersion > 0;
    try {
      // What the remote stage has of a fenced database is another server's.
      if (row.isFenced || (!hasCopy && !this.#carrying.sync.isCarrying)) {
        const free = row.head === "none" ? undefined : await folder.drop(id);
        catalog.delete(id);
        return async () => {
          await files.removeMemory(id, lineage);
          await free?.();
        };
      }
      const trace = await folder.deleteKeepingTrace(factsOf(row));
      catalog.delete(id);
      return async () => {
        try {
          await files.removeMemory(id, lineage);
          await trace.free();
        } finally {
          this.#carrying.deleted(trace);
        }
      };
    } catch (error) {
      throw localStageFailure(error);
    }
  }

  #tidy(): void {
    const { catalog, flusher, checkpoints, executors } = this.#host;
    const touches: Touch[] = [];
    for (const database of this.#touched) {
      if (touches.length === touchCountMax) break;
      this.#touched.delete(database);
      // One that was taken away speaks of files, and maybe of a history, that the row is not about any more.
      if (this.#handles.get(database.id) !== database) continue;
      touches.push(database.takeTouch());
      this.#placement.written(database);
    }
    this.#writeCatalog(() => catalog.touch(touches));
    this.#placement.tidy();
    flusher.tidy();
    checkpoints.tidy();
    executors.tidy();
    this.#operations.tidy();
  }

  async #close(): Promise<void> {
    this.#isClosing = true;
    this.#handles.closeDoor();
    this.#cancelTimer();
    const { clock, limits, catalog } = this.#host;
    const settleUntilMs = clock.now() + 2 * limits.closeGraceMs;
    const inUse = [...this.#handles.all()].map((database) => database.whenIdle(limits.closeGraceMs));
    await Promise.all([...inUse, this.#operations.close(limits.closeGraceMs), this.#placement.close()]);
    await Promise.all([...this.#transactions].map((each) => each.expire(new Failure("SHUTTING_DOWN"))));
    await this.#carrying.sync.close(this.#syncGraceMs);
    this.#handles.end();
    const databases = [...this.#handles.all()];
    const isIdle = databases.map((database) => database.isIdle);

    let at = 0;
    const closeNext = async () => {
      for (let index = at++; index < databases.length; index = at++) {
        const database = databases[index];
        if (database !== undefined) await this.#closeOne(database, isIdle[index] === false, settleUntilMs);
      }
    };
    await Promise.all(Array.from({ length: closeConcurrency }, closeNext));
    await this.#handles.whenSettled();
    await this.#lock.whenIdle();
    await this.#host.flusher.close();
    this.#writeCatalog(() => catalog.touch(databases.map((database) => database.takeTouch())));
    this.#writeCatalog(() => catalog.close());
  }

  /** The catalog is a cache: when it cannot be written the next start asks the folders. False when it cannot. */
  #writeCatalog(write: () => void): boolean {
    try {
      write();
      return true;
    } catch (error) {
      this.#host.catalog.distrust();
      this.#host.log("error", "the catalog cannot be written", { error });
      return false;
    }
  }

  async #closeOne(database: HostedDatabase, force: boolean, settleUntilMs: number): Promise<void> {
    try {
      if (!force && this.#host.clock.now() < settleUntilMs) await database.settle();
      await database.close(force, new Failure("SHUTTING_DOWN"));
    } catch (error) {
      // Its log is whole all the same: the next start reads it.
      this.#host.log("error", "a database did not close in order", { database: database.id, error });
    }
  }

  #refuseWhenClosing(): void {
    if (this.#isClosing) throw new Failure("SHUTTING_DOWN");
  }
}

function infoOf(row: CatalogRow): DatabaseInfo {
  return {
    id: row.id,
    state: row.isFenced && row.state === "ready" ? "read_only" : row.state,
    stage: row.stage,
    sizeBytes: BigInt(row.sizeBytes),
    position: { lineage: row.lineage, sequence: BigInt(row.sequence) },
    durablePosition:
      row.durableSequence === 0 ? undefined : { lineage: row.lineage, sequence: BigInt(row.durableSequence) },
    createTimeMs: row.createTimeMs,
    lastAccessTimeMs: row.lastAccessTimeMs,
    labels: row.labels,
    etag: etagOf(row),
    foreignKeys: row.foreignKeys,
  };
}

/** Changes with labels and SQL options, and differs between two databases that had the same id one after the other. */
function etagOf(facts: Facts): string {
  return `${facts.lineage}-${facts.etagVersion}`;
}

function sameLabels(one: Readonly<Record<string, string>>, other: Readonly<Record<string, string>>): boolean {
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => one[key] === other[key]);
}

function throwViolations(violations: readonly FieldViolation[]): void {
  const [first, ...rest] = violations;
  if (first !== undefined) throw fieldInvalid(first.field, first.description, ...rest);
}
