/** Where databases live: the interface between the API and everything below. Speaks plain values, no protobuf messages. */
import type { CallOptions, ExecutorTransaction, QueryCursor, QueryOptions, RequestRecord } from "../sqlite/executor.ts";

/** A point in a database's history; see persisto.v1.Position. */
export interface Position {
  readonly lineage: string;
  readonly sequence: bigint;
}

export type StageName = "memory" | "local" | "remote";
export type DurabilityLevel = "committed" | "local" | "remote";
export type DatabaseStateName = "creating" | "ready" | "read_only" | "deleting" | "faulted";

/** One database's metadata. */
export interface DatabaseInfo {
  readonly id: string;
  readonly state: DatabaseStateName;
  readonly stage: StageName;
  readonly sizeBytes: bigint;
  readonly position: Position;
  readonly durablePosition: Position | undefined;
  /** Milliseconds since 1970. */
  readonly createTimeMs: number;
  readonly lastAccessTimeMs: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly etag: string;
  readonly foreignKeys: boolean;
}

export interface CreateDatabaseInput {
  readonly id: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly initialStage: StageName | undefined;
  readonly foreignKeys: boolean;
  readonly allowExisting: boolean;
  readonly request: RequestRecord | undefined;
}

export interface UpdateDatabaseInput {
  readonly id: string;
  readonly etag: string | undefined;
  /** Undefined: unchanged. */
  readonly labels: Readonly<Record<string, string>> | undefined;
  readonly foreignKeys: boolean | undefined;
}

export interface ListDatabasesInput {
  readonly pageSize: number;
  readonly pageToken: string;
  readonly filter: string;
  readonly orderBy: string;
}

/** The answer of a statement, batch or script; `body` are protobuf fields as sqlite/executor.ts says. */
export interface EngineAnswer {
  readonly body: Uint8Array;
  readonly position: Position;
  readonly durablePosition: Position | undefined;
}

export interface EngineQuery {
  /** The snapshot is at least this position. */
  readonly position: Position;
  readonly cursor: QueryCursor;
}

export interface EngineTransaction {
  readonly snapshot: Position;
  /** When the server rolls back at the latest, milliseconds since 1970. */
  readonly expireTimeMs: number;
  readonly isOpen: boolean;
  execute(statement: Uint8Array, options: CallOptions): ReturnType<ExecutorTransaction["execute"]>;
  savepoint(id: string, options: CallOptions): Promise<void>;
  rollbackTo(id: string, options: CallOptions): Promise<void>;
  commit(durability: DurabilityLevel, options: CallOptions): Promise<EngineAnswer>;
  rollback(): Promise<EngineAnswer>;
  /** Called when the idle or total time is over and the engine has rolled back. */
  onExpired(listener: (failure: Error) => void): void;
}

export interface Engine {
  readonly sqliteVersion: string;
  createDatabase(input: CreateDatabaseInput): Promise<DatabaseInfo>;
  getDatabase(id: string): Promise<DatabaseInfo>;
  listDatabases(
    input: ListDatabasesInput,
  ): Promise<{ readonly databases: readonly DatabaseInfo[]; readonly nextPageToken: string }>;
  updateDatabase(input: UpdateDatabaseInput): Promise<DatabaseInfo>;
  deleteDatabase(id: string, etag: string | undefined, allowMissing: boolean): Promise<void>;

  execute(
    id: string,
    statement: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer>;
  batch(
    id: string,
    request: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer>;
  script(
    id: string,
    text: Uint8Array,
    durability: DurabilityLevel,
    options: CallOptions,
    record: RequestRecord | undefined,
  ): Promise<EngineAnswer>;
  read(
    id: string,
    statement: Uint8Array,
    minPosition: Position | undefined,
    options: CallOptions,
  ): Promise<EngineAnswer>;
  query(
    id: string,
    statement: Uint8Array,
    minPosition: Position | undefined,
    options: QueryOptions,
  ): Promise<EngineQuery>;
  /** `idleTimeoutMs` is cut to the server's own bound; 0 means that bound. */
  begin(
    id: string,
    readWrite: boolean,
    idleTimeoutMs: number,
    minPosition: Position | undefined,
    options: CallOptions,
  ): Promise<EngineTransaction>;
  /** Where the database is now, without running anything: for ETags. DATABASE_NOT_FOUND as the others. */
  position(id: string): Position;

  stats(): EngineStats;
  /** Refuses new calls, flushes, checkpoints and closes everything; leaves the catalog clean. */
  close(): Promise<void>;
}

export interface EngineStats {
  readonly databases: number;
  readonly openDatabases: number;
  readonly databaseBytes: number;
  readonly walBytes: number;
  readonly flushes: number;
  readonly checkpoints: number;
  readonly openTransactions: number;
}
