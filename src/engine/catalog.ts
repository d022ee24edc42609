/**
 * The catalog: what databases there are, in a SQLite database of the server's own. It is a cache of facts that live with
 * the data, and its lock is the lock of the folder.
 */
import { renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { catalogSteps } from "./catalog-schema.ts";
import type { DatabaseStateName, PinInfo, StageName } from "./engine.ts";
import type { Facts, HeadPlace } from "./facts.ts";
import { OperationStore } from "./operation-store.ts";
import { StatementCache } from "./statement-cache.ts";

/** Another server, or another engine of this process, works on the folder. */
export class FolderInUseError extends Error {
  override readonly name = "FolderInUseError";
}

/** The catalog was written by a newer version of Persisto. */
export class CatalogVersionError extends Error {
  override readonly name = "CatalogVersionError";
}

/** One database as the catalog knows it. */
export interface CatalogRow extends Facts {
  readonly state: DatabaseStateName;
  readonly stage: StageName;
  /** Exact after a clean end; never below what was given out. */
  readonly sequence: number;
  readonly sizeBytes: number;
  readonly lastAccessTimeMs: number;
  /** Up to where the remote stage is known to hold it. */
  readonly durableSequence: number;
  /** The etagVersion that its manifest in the remote stage is known to have; 0: not known. */
  readonly manifestVersion: number;
  /** Another server writes its history. */
  readonly isFenced: boolean;
  /** When its files in the remote stage are to be looked after, milliseconds since 1970; 0: nothing is due. */
  readonly upkeepAtMs: number;
  /** When it was moved between stages last, milliseconds since 1970; 0: never. */
  readonly movedAtMs: number;
}

/** What syncing knows; what is left out stays. */
export type SyncColumns = Partial<
  Pick<CatalogRow, "durableSequence" | "manifestVersion" | "upkeepAtMs" | "isFenced" | "remotePrefix">
>;

/** What there is on one stage. */
export interface StageUse {
  readonly count: number;
  readonly bytes: number;
}

/** What changes while a database is used, written in batches. */
export interface Touch {
  readonly id: string;
  readonly sequence: number;
  readonly sizeBytes: number;
  readonly lastAccessTimeMs: number;
  readonly durableSequence: number;
}

/** What syncing and moves know of a database that is new to the catalog. */
export const newRowColumns = {
  durableSequence: 0,
  manifestVersion: 0,
  isFenced: false,
  upkeepAtMs: 0,
  movedAtMs: 0,
} as const;

/** A page of rows that match; `key` is where to go on, undefined at the end of the list. */
export interface CatalogPage {
  readonly rows: readonly CatalogRow[];
  readonly key: PageKey | undefined;
}

/** Where a page ended: the value it is ordered by, and the id. */
export type PageKey = readonly [value: number | string, id: string];

/** A filter as SQL over the columns of `databases`. */
export interface SqlCondition {
  readonly sql: string;
  readonly parameters: readonly (number | string)[];
}

/** An order, by a column and then by id. */
export interface PageOrder {
  readonly column: "id" | "create_time_ms" | "last_access_time_ms" | "size_bytes";
  readonly descending: boolean;
}

/** Stages and states by their numbers in the catalog: stages count from the closest outward. */
export const stageCodes: Readonly<Record<StageName, number>> = { memory: 1, local: 2, remote: 3 };
export const stateCodes: Readonly<Record<DatabaseStateName, number>> = {
  creating: 1,
  ready: 2,
  read_only: 3,
  deleting: 4,
  faulted: 5,
};
/** 0 so that a partial index leaves out what has no file. */
const headCodes: Readonly<Record<HeadPlace, number>> = { none: 0, memory: 1, local: 2 };
const stageNames = namesByCode(stageCodes);
const headNames = namesByCode(headCodes);
const stateNames = namesByCode(stateCodes);

const columns =
  "id, state, stage, lineage, sequence, size_bytes, create_time_ms, last_access_time_ms, labels," +
  " etag_version, foreign_keys, create_record, head, base_txid, durable_sequence, remote_prefix, manifest_version, fenced," +
  " upkeep_at_ms, successor, pin_stage, pin_expire_ms, moved_at_ms";
const values = columns.replace(/[a-z_]+/g, "@$&");

interface Stored {
  readonly id: string;
  readonly state: number;
  readonly stage: number;
  readonly lineage: string;
  readonly sequence: number;
  readonly size_bytes: number;
  readonly create_time_ms: number;
  readonly last_access_time_ms: number;
  readonly labels: string;
  readonly etag_version: number;
  readonly foreign_keys: number;
  readonly create_record: string | null;
  readonly head: number;
  readonly base_txid: number;
  readonly durable_sequence: number;
  readonly remote_prefix: string;
  readonly manifest_version: number;
  readonly fenced: number;
  readonly upkeep_at_ms: number;
  readonly successor: string | null;
  readonly pin_stage: number;
  readonly pin_expire_ms: number;
  readonly moved_at_ms: number;
}

export class Catalog {
  /** True when the last server ended in good order: then the catalog agrees with the folders. */
  readonly wasClean: boolean;
  /** Why the catalog had to be made anew, or undefined. */
  readonly damage: string | undefined;
  readonly operations: OperationStore;
  readonly #database: Database.Database;
  readonly #get: Database.Statement;
  readonly #put: Database.Statement;
  readonly #delete: Database.Statement;
  readonly #touch: Database.Statement;
  readonly #setSync: Database.Statement;
  readonly #pages: StatementCache;
  /** By head. */
  readonly #use: Readonly<Record<HeadPlace, { count: number; bytes: number }>> = {
    none: { count: 0, bytes: 0 },
    memory: { count: 0, bytes: 0 },
    local: { count: 0, bytes: 0 },
  };
  #agrees = true;
  /** Since the last flush. */
  #hasDeletions = false;

  private constructor(database: Database.Database, wasClean: boolean, damage: string | undefined) {
    this.#database = database;
    this.#pages = new StatementCache(database, pageStatementCountMax);
    this.wasClean = wasClean;
    this.damage = damage;
    this.operations = new OperationStore(database);
    this.#get = database.prepare(`SELECT ${columns} FROM databases WHERE id = ?`);
    this.#put = database.prepare(`INSERT OR REPLACE INTO databases (${columns}) VALUES (${values})`);
    this.#delete = database.prepare("DELETE FROM databases WHERE id = ? RETURNING head, size_bytes");
    this.#touch = database.prepare(
      "UPDATE databases SET sequence = @sequence, size_bytes = @sizeBytes," +
        " last_access_time_ms = max(last_access_time_ms, @lastAccessTimeMs), durable_sequence = @durableSequence" +
        " WHERE id = @id",
    );
    this.#setSync = database.prepare(
      "UPDATE databases SET durable_sequence = @durableSequence, manifest_version = @manifestVersion," +
        " upkeep_at_ms = @upkeepAtMs, fenced = @isFenced, remote_prefix = @remotePrefix WHERE id = @id",
    );
    const totals = database
      .prepare("SELECT head, count(*) AS count, total(size_bytes) AS bytes FROM databases GROUP BY head")
      .all() as { readonly head: number; readonly count: number; readonly bytes: number }[];
    for (const { head, count, bytes } of totals) Object.assign(this.#use[headNames[head] ?? "local"], { count, bytes });
  }

  /**
   * Opens the catalog of a folder and takes the folder's lock, which the end of the process gives back, however it ends.
   * A damaged catalog is put aside as `catalog.sqlite.damaged` and an empty one takes its place.
   * Throws FolderInUseError or CatalogVersionError.
   */
  static open(directoryPath: string): Catalog {
    const path = join(directoryPath, "catalog.sqlite");
    try {
      return Catalog.#openFile(path, undefined);
    } catch (error) {
      if (!isDamage(error)) throw error;
      renameSync(path, `${path}.damaged`);
      for (const suffix of ["-wal", "-shm", "-journal"]) rmSync(path + suffix, { force: true });
      return Catalog.#openFile(path, (error as Error).message);
    }
  }

  static #openFile(path: string, damage: string | undefined): Catalog {
    const database = new Database(path, { timeout: 0 });
    try {
      // EXCLUSIVE before anything else: then no -shm file is used, and the lock is held until the end.
      database.pragma("locking_mode = EXCLUSIVE");
      database.pragma("journal_mode = WAL");
      database.pragma("synchronous = FULL");
      migrate(database);
      const wasClean = damage === undefined && readMeta(database, "clean")?.[0] === 1;
      if (!wasClean) {
        const problem = database.pragma("integrity_check(1)", { simple: true });
        if (problem !== "ok") throw new DamageError(String(problem));
      }
      writeMeta(database, "clean", Buffer.of(0));
      // The mark has to be in the file itself, flushed: from here on the catalog is written without flushes, because
      // they would hold up the event loop, and because whatever a dying machine loses is made again from the folders.
      database.pragma("wal_checkpoint(TRUNCATE)");
      database.pragma("synchronous = OFF");
      return new Catalog(database, wasClean, damage);
    } catch (error) {
      database.close();
      if (error instanceof Database.SqliteError && error.code.startsWith("SQLITE_BUSY")) {
        throw new FolderInUseError(
          `another server works on the folder of ${path}; stop it, or give this one another STORAGE_LOCAL_DIRECTORY_PATH`,
          { cause: error },
        );
      }
      throw error;
    }
  }

  get count(): number {
    const { none, memory, local } = this.#use;
    return none.count + memory.count + local.count;
  }

  /** Sum of the sizes of all databases. */
  get bytes(): number {
    const { none, memory, local } = this.#use;
    return none.bytes + memory.bytes + local.bytes;
  }

  /** The databases whose head is there. */
  use(head: HeadPlace): StageUse {
    return this.#use[head];
  }

  /** How many databases have been placed on each stage. Counts them: not for every call. */
  placed(): Readonly<Record<StageName, StageUse>> {
    const placed: Record<StageName, StageUse> = {
      memory: { count: 0, bytes: 0 },
      local: { count: 0, bytes: 0 },
      remote: { count: 0, bytes: 0 },
    };
    const found = this.#pages
      .prepare("SELECT stage, count(*) AS count, total(size_bytes) AS bytes FROM databases GROUP BY stage")
      .all() as { readonly stage: number; readonly count: number; readonly bytes: number }[];
    for (const { stage, count, bytes } of found) placed[stageNames[stage] ?? "local"] = { count, bytes };
    return placed;
  }

  /**
   * Rows whose head is there and that were not used after `beforeMs`, least recently used first, behind `after` (a time of
   * last access and an id); at most `countMax`.
   */
  idle(head: Exclude<HeadPlace, "none">, after: PageKey, beforeMs: number, countMax: number): CatalogRow[] {
    const stored = this.#pages
      .prepare(
        `SELECT ${columns} FROM databases WHERE head = ? AND head <> 0 AND (last_access_time_ms, id) > (?, ?)` +
          " AND last_access_time_ms <= ? ORDER BY last_access_time_ms, id LIMIT ?",
      )
      .all(headCodes[head], ...after, beforeMs, countMax) as Stored[];
    return stored.map(rowOf);
  }

  /** A secret of this catalog: made by `make` the first time it is asked for. */
  secret(key: string, make: () => Uint8Array): Buffer {
    const found = readMeta(this.#database, key);
    if (found !== undefined) return found;
    const made = Buffer.from(make());
    writeMeta(this.#database, key, made);
    return made;
  }

  get(id: string): CatalogRow | undefined {
    const stored = this.#get.get(id) as Stored | undefined;
    return stored && rowOf(stored);
  }

  ids(): string[] {
    return this.#database.prepare("SELECT id FROM databases").pluck().all() as string[];
  }

  /** Databases that have no file here. */
  headlessIds(): string[] {
    return this.#database.prepare("SELECT id FROM databases WHERE head = 0").pluck().all() as string[];
  }

  /** Databases that a restore is, or was, about to give another history. */
  successors(): readonly { readonly id: string; readonly successor: string }[] {
    const found = this.#database.prepare("SELECT id, successor FROM databases WHERE successor IS NOT NULL").all();
    return found as { readonly id: string; readonly successor: string }[];
  }

  faultedIds(): string[] {
    return this.#database
      .prepare("SELECT id FROM databases WHERE state = ?")
      .pluck()
      .all(stateCodes.faulted) as string[];
  }

  /** Databases of which the remote stage is not known to hold everything, or the newest facts. */
  unsynced(): string[] {
    return this.#database
      .prepare(
        "SELECT id FROM databases WHERE fenced = 0 AND (head <> 0 AND (sequence > durable_sequence OR durable_sequence = 0)" +
          " OR durable_sequence > 0 AND manifest_version <> etag_version)",
      )
      .pluck()
      .all() as string[];
  }

  /** Databases whose files in the remote stage are to be looked after, and when. */
  upkeeps(): { readonly id: string; readonly atMs: number }[] {
    return this.#database
      .prepare("SELECT id, upkeep_at_ms AS atMs FROM databases WHERE upkeep_at_ms <> 0 AND fenced = 0")
      .all() as { readonly id: string; readonly atMs: number }[];
  }

  /**
   * Says which object store is used from now on. Of another one than before nothing is known. Returns whether the catalog has
   * everything that the store has: `noteComplete` was called once for it, and nothing was lost since.
   */
  useStore(name: string): boolean {
    const known = readMeta(this.#database, "store")?.toString();
    if (known === name) return this.wasClean && readMeta(this.#database, "store_complete")?.[0] === 1;
    this.inTransaction(() => {
      if (known !== undefined) {
        this.#database
          .prepare(
            "UPDATE databases SET durable_sequence = 0, manifest_version = 0, upkeep_at_ms = 0, fenced = 0 WHERE head <> 0",
          )
          .run();
      }
      writeMeta(this.#database, "store", Buffer.from(name));
      writeMeta(this.#database, "store_complete", Buffer.of(0));
    });
    return false;
  }

  noteComplete(): void {
    this.#write(() => writeMeta(this.#database, "store_complete", Buffer.of(1)));
  }

  put(row: CatalogRow): void {
    const before = this.#get.get(row.id) as Stored | undefined;
    this.#write(() => this.#put.run(storedOf(row)));
    if (before !== undefined) this.#count(before, -1);
    this.#count(storedOf(row), 1);
  }

  /** Changes what syncing knows of a database, if it is there. */
  setSync(id: string, change: SyncColumns): void {
    const row = this.get(id);
    if (row === undefined) return;
    const { durableSequence, manifestVersion, upkeepAtMs, isFenced, remotePrefix } = { ...row, ...change };
    const changed = { id, durableSequence, manifestVersion, upkeepAtMs, isFenced: isFenced ? 1 : 0, remotePrefix };
    this.#write(() => this.#setSync.run(changed));
  }

  #count({ head, size_bytes }: Pick<Stored, "head" | "size_bytes">, sign: 1 | -1): void {
    const use = this.#use[headNames[head] ?? "local"];
    use.count += sign;
    use.bytes += sign * size_bytes;
  }

  delete(id: string): void {
    const gone = this.#write(() => this.#delete.get(id)) as Pick<Stored, "head" | "size_bytes"> | undefined;
    if (gone === undefined) return;
    this.#count(gone, -1);
    this.#hasDeletions = true;
  }

  /**
   * What was deleted stays so when the machine dies; otherwise a dying machine may bring rows back. One flush for all that
   * were deleted since the last one.
   */
  flushDeletions(): void {
    if (!this.#hasDeletions) return;
    this.#write(() => {
      this.#database.pragma("synchronous = FULL");
      try {
        this.#database.pragma("wal_checkpoint(PASSIVE)");
      } finally {
        this.#database.pragma("synchronous = OFF");
      }
    });
    this.#hasDeletions = false;
  }

  /** All of them in one transaction. Ids that are gone are passed over. */
  touch(touches: readonly Touch[]): void {
    if (touches.length === 0) return;
    this.inTransaction(() => {
      for (const touch of touches) {
        const before = this.#get.get(touch.id) as Stored | undefined;
        if (before === undefined) continue;
        this.#touch.run(touch);
        this.#use[headNames[before.head] ?? "local"].bytes += touch.sizeBytes - before.size_bytes;
      }
    });
  }

  inTransaction(run: () => void): void {
    this.#write(this.#database.transaction(run));
  }

  /**
   * The next rows in `order` behind `after` that meet `condition`, at most `countMax`, looking at no more than
   * `scanCountMax` rows: at the end of those there may be a key though `rows` is short.
   */
  page(
    condition: SqlCondition,
    order: PageOrder,
    after: PageKey | undefined,
    countMax: number,
    scanCountMax: number,
  ): CatalogPage {
    const by = order.column;
    const direction = order.descending ? "DESC" : "ASC";
    const sorted = by === "id" ? `id ${direction}` : `${by} ${direction}, id ${direction}`;
    const compare = order.descending ? "<" : ">";
    const behind = after === undefined ? "" : `WHERE (${by}, id) ${compare} (?, ?)`;
    const start = after === undefined ? [] : [...after];
    const end = this.#pages
      .prepare(`SELECT ${by} AS value, id FROM databases ${behind} ORDER BY ${sorted} LIMIT 1 OFFSET ?`)
      .get(...start, scanCountMax - 1) as { readonly value: number | string; readonly id: string } | undefined;
    const scanned = `SELECT ${columns} FROM databases ${behind} ORDER BY ${sorted} LIMIT ?`;
    const stored = this.#pages
      .prepare(
        condition.sql === ""
          ? scanned
          : `SELECT * FROM (${scanned}) WHERE ${condition.sql} ORDER BY ${sorted} LIMIT ${countMax + 1}`,
      )
      .all(
        ...start,
        condition.sql === "" ? Math.min(scanCountMax, countMax + 1) : scanCountMax,
        ...condition.parameters,
      ) as Stored[];
    const rows = stored.slice(0, countMax).map(rowOf);
    const last = stored[countMax - 1];
    if (stored.length > countMax && last !== undefined) return { rows, key: [last[by], last.id] };
    return { rows, key: end && [end.value, end.id] };
  }

  /** To be called when the catalog may not agree with the folders: then the next start compares them. */
  distrust(): void {
    this.#agrees = false;
  }

  /** Marks the catalog as agreeing with the folders, unless something has failed, and gives the lock back. */
  close(): void {
    try {
      this.#database.pragma("synchronous = FULL");
      this.#database.pragma("wal_checkpoint(TRUNCATE)");
      if (!this.#agrees) return;
      writeMeta(this.#database, "clean", Buffer.of(1));
      this.#database.pragma("wal_checkpoint(TRUNCATE)");
    } finally {
      this.#database.close();
    }
  }

  #write<T>(run: () => T): T {
    try {
      return run();
    } catch (error) {
      this.#agrees = false;
      throw error;
    }
  }
}

const pageStatementCountMax = 64;

class DamageError extends Error {
  override readonly name = "DamageError";
}

function isDamage(error: unknown): boolean {
  if (error instanceof DamageError) return true;
  if (!(error instanceof Database.SqliteError)) return false;
  return error.code.startsWith("SQLITE_CORRUPT") || error.code === "SQLITE_NOTADB";
}

function migrate(database: Database.Database): void {
  const run = database.transaction(() => {
    const version = database.pragma("user_version", { simple: true }) as number;
    if (version > catalogSteps.length) {
      throw new CatalogVersionError(
        `${database.name} has version ${version} and this server knows ${catalogSteps.length}; ` +
          "start the newer version of Persisto that wrote it",
      );
    }
    for (let step = version; step < catalogSteps.length; step++) {
      const sql = catalogSteps[step];
      if (sql !== undefined) database.exec(sql);
    }
    database.pragma(`user_version = ${catalogSteps.length}`);
  });
  // Two servers that start at one moment: one of them takes the lock, the other one gets SQLITE_BUSY here.
  run.immediate();
}

function readMeta(database: Database.Database, key: string): Buffer | undefined {
  return database.prepare("SELECT value FROM meta WHERE key = ?").pluck().get(key) as Buffer | undefined;
}

function writeMeta(database: Database.Database, key: string, value: Buffer): void {
  database.prepare("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)").run(key, value);
}

function rowOf(stored: Stored): CatalogRow {
  return {
    id: stored.id,
    state: stateNames[stored.state] ?? "faulted",
    stage: stageNames[stored.stage] ?? "local",
    lineage: stored.lineage,
    sequence: stored.sequence,
    sizeBytes: stored.size_bytes,
    createTimeMs: stored.create_time_ms,
    lastAccessTimeMs: stored.last_access_time_ms,
    labels: JSON.parse(stored.labels),
    etagVersion: stored.etag_version,
    foreignKeys: stored.foreign_keys !== 0,
    createRecord: stored.create_record === null ? undefined : JSON.parse(stored.create_record),
    head: headNames[stored.head] ?? "local",
    baseTxid: stored.base_txid,
    durableSequence: stored.durable_sequence,
    remotePrefix: stored.remote_prefix,
    manifestVersion: stored.manifest_version,
    isFenced: stored.fenced !== 0,
    upkeepAtMs: stored.upkeep_at_ms,
    successor: stored.successor ?? undefined,
    pin: pinOf(stored),
    movedAtMs: stored.moved_at_ms,
  };
}

function storedOf(row: CatalogRow): Stored {
  return {
    id: row.id,
    state: stateCodes[row.state],
    stage: stageCodes[row.stage],
    lineage: row.lineage,
    sequence: row.sequence,
    size_bytes: row.sizeBytes,
    create_time_ms: row.createTimeMs,
    last_access_time_ms: row.lastAccessTimeMs,
    labels: JSON.stringify(row.labels),
    etag_version: row.etagVersion,
    foreign_keys: row.foreignKeys ? 1 : 0,
    create_record: row.createRecord === undefined ? null : JSON.stringify(row.createRecord),
    head: headCodes[row.head],
    base_txid: row.baseTxid,
    durable_sequence: row.durableSequence,
    remote_prefix: row.remotePrefix,
    manifest_version: row.manifestVersion,
    fenced: row.isFenced ? 1 : 0,
    upkeep_at_ms: row.upkeepAtMs,
    successor: row.successor ?? null,
    pin_stage: row.pin === undefined ? 0 : stageCodes[row.pin.stage],
    pin_expire_ms: row.pin?.expireTimeMs ?? 0,
    moved_at_ms: row.movedAtMs,
  };
}

function pinOf({ pin_stage, pin_expire_ms }: Stored): PinInfo | undefined {
  const stage = stageNames[pin_stage];
  return stage && { stage, expireTimeMs: pin_expire_ms === 0 ? undefined : pin_expire_ms };
}

function namesByCode<Name extends string>(codes: Readonly<Record<Name, number>>): readonly (Name | undefined)[] {
  const names: (Name | undefined)[] = [];
  for (const name of Object.keys(codes) as Name[]) names[codes[name]] = name;
  return names;
}
