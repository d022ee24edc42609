/**
 * The connections of one executor: per database a writing connection, reading connections on demand, and those that a
 * transaction or a query holds. Above a bound the least recently used databases are closed; they open again by themselves.
 */
import type Database from "better-sqlite3";
import type { DatabaseFile, ExecutorLimits } from "./executor.ts";
import { busyNote, NotedFailure } from "./failure-notes.ts";
import { LIMIT_COUNT, type Native, type NativeConnection } from "./native.ts";
import type { RecordStatements } from "./records.ts";

type DatabaseConstructor = typeof Database;

/** One open connection. */
export interface Connection {
  readonly database: Database.Database;
  readonly native: NativeConnection;
  readonly readOnly: boolean;
  /** Commits and frames as of the last look: a change tells that a call committed. */
  commits: number;
  frames: number;
  records: RecordStatements | undefined;
  /** The options of the database it was opened with; older ones are not used again. */
  readonly generation: number;
}

/** A database as this executor knows it. */
export interface OpenDatabase {
  file: DatabaseFile;
  generation: number;
  writer: Connection | undefined;
  /** Connections that nobody uses at the moment. */
  readonly freeReaders: Connection[];
  readonly freeWriters: Connection[];
  /** How many connections transactions and queries hold. */
  held: number;
  lastUsedMs: number;
  shrunk: boolean;
}

/** Connections kept beside the writing one of a database that is in use. */
const FREE_READERS_MAX = 2;
const FREE_WRITERS_MAX = 1;

/** A database that was not used for this long gives memory back. */
const SHRINK_AFTER_MS = 2_000;

export class Connections {
  readonly #Database: DatabaseConstructor;
  readonly #native: Native;
  readonly #limits: ExecutorLimits;
  readonly #sqliteLimits: Int32Array;
  readonly #databases = new Map<number, OpenDatabase>();
  #openCount = 0;

  constructor(Database: DatabaseConstructor, native: Native, limits: ExecutorLimits) {
    this.#Database = Database;
    this.#native = native;
    this.#limits = limits;
    this.#sqliteLimits = sqliteLimits(limits);
  }

  get openCount(): number {
    return this.#openCount;
  }

  /** Makes a database known under a number, or gives it new options. */
  define(number: number, file: DatabaseFile): void {
    const known = this.#databases.get(number);
    if (known === undefined) {
      this.#databases.set(number, {
        file,
        generation: 0,
        writer: undefined,
        freeReaders: [],
        freeWriters: [],
        held: 0,
        lastUsedMs: 0,
        shrunk: true,
      });
      return;
    }
    known.file = file;
    known.generation++;
    this.#closeFree(known);
  }

  get(number: number): OpenDatabase {
    const database = this.#databases.get(number);
    if (database === undefined) throw new Error(`database number ${number} was never defined`);
    return database;
  }

  /** The writing connection of autocommit calls. */
  writer(database: OpenDatabase, nowMs: number): Connection {
    database.lastUsedMs = nowMs;
    database.shrunk = false;
    database.writer ??= this.#open(database, false, nowMs);
    return database.writer;
  }

  /** A connection for a caller who gives it back by `giveBack`. */
  take(database: OpenDatabase, readOnly: boolean, nowMs: number): Connection {
    database.lastUsedMs = nowMs;
    database.shrunk = false;
    const connection =
      (readOnly ? database.freeReaders : database.freeWriters).pop() ?? this.#open(database, readOnly, nowMs);
    database.held++;
    return connection;
  }

  giveBack(database: OpenDatabase, connection: Connection): void {
    database.held--;
    const free = connection.readOnly ? database.freeReaders : database.freeWriters;
    const most = connection.readOnly ? FREE_READERS_MAX : FREE_WRITERS_MAX;
    if (free.length >= most || connection.generation !== database.generation) this.#close(connection);
    else free.push(connection);
  }

  /** Closes what nobody uses: all of a database, when it is idle. */
  release(number: number): void {
    const database = this.#databases.get(number);
    if (database !== undefined) this.#closeFree(database);
  }

  /** Forgets a database; the caller has given all of its connections back. */
  forget(number: number): void {
    this.release(number);
    this.#databases.delete(number);
  }

  /** Closes connections that were idle for long, and takes memory back from those idle for a while. */
  tidy(nowMs: number): void {
    let trim = false;
    for (const database of this.#databases.values()) {
      const idleMs = nowMs - database.lastUsedMs;
      if (idleMs > this.#limits.connectionIdleMs) {
        if (database.writer || database.freeReaders.length > 0 || database.freeWriters.length > 0) {
          this.#closeFree(database);
          trim = true;
        }
      } else if (idleMs > SHRINK_AFTER_MS && !database.shrunk) {
        database.shrunk = true;
        trim = true;
        if (database.writer) this.#native.shrink(database.writer.native);
        for (const connection of database.freeReaders) this.#native.shrink(connection.native);
        for (const connection of database.freeWriters) this.#native.shrink(connection.native);
      }
    }
    if (trim) this.#native.trim();
  }

  closeAll(): void {
    for (const database of this.#databases.values()) this.#closeFree(database);
  }

  /** A connection outside of all limits and caches, for a task of the server's own; the caller closes it. */
  openPlain(database: OpenDatabase): Connection {
    return this.#connect(database, false);
  }

  closePlain(connection: Connection): void {
    connection.database.close();
  }

  #open(database: OpenDatabase, readOnly: boolean, nowMs: number): Connection {
    if (this.#openCount >= this.#limits.connectionCountMax) this.#evict(database, nowMs);
    const connection = this.#connect(database, readOnly);
    this.#openCount++;
    return connection;
  }

  #connect(database: OpenDatabase, readOnly: boolean): Connection {
    const { file } = database;
    const opened = new this.#Database(file.path, { readonly: readOnly, fileMustExist: true, timeout: 0 });
    try {
      const native = this.#native.connect(this.#limits.statementCacheCount);
      opened.exec(
        `PRAGMA foreign_keys=${file.foreignKeys ? "ON" : "OFF"}; PRAGMA cell_size_check=ON; PRAGMA temp_store=MEMORY; ` +
          `PRAGMA synchronous=NORMAL${readOnly ? "; PRAGMA query_only=ON" : ""}`,
      );
      if (!readOnly) {
        const pageBytes = opened.pragma("page_size", { simple: true }) as number;
        opened.exec(`PRAGMA max_page_count=${Math.max(1, Math.floor(this.#limits.databaseBytesMax / pageBytes))}`);
      }
      this.#native.guard(native, this.#sqliteLimits, readOnly);
      return {
        database: opened,
        native,
        readOnly,
        commits: this.#native.commits(native),
        frames: 0,
        records: undefined,
        generation: database.generation,
      };
    } catch (error) {
      opened.close();
      throw error;
    }
  }

  /** Makes room by closing the databases that were idle for longest, an eighth of the bound at once. */
  #evict(wanted: OpenDatabase, nowMs: number): void {
    const idle = [...this.#databases.values()]
      .filter((database) => database !== wanted && hasFree(database))
      .sort((a, b) => a.lastUsedMs - b.lastUsedMs);
    const target = this.#limits.connectionCountMax - Math.max(1, this.#limits.connectionCountMax >> 3);
    for (const database of idle) {
      if (this.#openCount <= target) return;
      this.#closeFree(database);
    }
    if (this.#openCount < this.#limits.connectionCountMax) return;
    wanted.lastUsedMs = nowMs;
    throw new NotedFailure(busyNote(wanted.file.id, "all connections are in use"));
  }

  #closeFree(database: OpenDatabase): void {
    if (database.writer) this.#close(database.writer);
    database.writer = undefined;
    for (const connection of database.freeReaders.splice(0)) this.#close(connection);
    for (const connection of database.freeWriters.splice(0)) this.#close(connection);
  }

  #close(connection: Connection): void {
    this.#openCount--;
    connection.database.close();
  }
}

function hasFree(database: OpenDatabase): boolean {
  return database.writer !== undefined || database.freeReaders.length > 0 || database.freeWriters.length > 0;
}

/** In the order of SQLITE_LIMIT_* numbers. */
function sqliteLimits(limits: ExecutorLimits): Int32Array {
  const values = new Int32Array(LIMIT_COUNT).fill(-1);
  values.set([
    limits.valueBytesMax,
    limits.sqlBytesMax,
    limits.columnCountMax,
    limits.expressionDepthMax,
    limits.compoundSelectCountMax,
    limits.vdbeOpCountMax,
    limits.functionArgumentCountMax,
    0,
    limits.likePatternBytesMax,
    limits.parameterCountMax,
    limits.triggerDepthMax,
    0,
  ]);
  return values;
}
