/** Where databases live: the interface between the API and everything below. Speaks plain values, no protobuf messages. */
import type { Failure } from "../failure/failure.ts";
import type {
  CallOptions,
  Cancel,
  ExecutorTransaction,
  QueryCursor,
  QueryOptions,
  RequestRecord,
} from "../sqlite/executor.ts";
import type { SyncStats } from "./sync/sync.ts";

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

/** A tier and its use; see persisto.v1.StageStatus. */
export interface StageInfo {
  readonly stage: StageName;
  /** As the settings name it. */
  readonly displayName: string;
  /** What it may hold: the budget of the settings, or what the disk has; undefined when it has no known bound. */
  readonly capacityBytes: bigint | undefined;
  readonly usedBytes: bigint;
  /** Databases that the policy has placed there. */
  readonly databaseCount: bigint;
  /** False while the tier does not answer, or takes nothing more. */
  readonly healthy: boolean;
}

/** Bytes of one database in one tier. */
export interface StageResidencyInfo {
  readonly stage: StageName;
  readonly residentBytes: bigint;
  /** Up to where this copy goes. */
  readonly position: Position;
}

/** Keeps a database in a tier. */
export interface PinInfo {
  readonly stage: StageName;
  /** Milliseconds since 1970; undefined: until UnpinDatabase. */
  readonly expireTimeMs: number | undefined;
}

/** Where a database lives, and why; see persisto.v1.DatabaseStage. */
export interface DatabaseStageInfo {
  readonly database: string;
  readonly stage: StageName;
  /** Id of the operation that works on it. */
  readonly operation: string | undefined;
  /** Every tier that holds bytes of it, closest first. */
  readonly residencies: readonly StageResidencyInfo[];
  /** A pin whose time is over is none. */
  readonly pin: PinInfo | undefined;
  /** One sentence. */
  readonly placementReason: string;
}

export type OperationKindName = "promote" | "demote" | "sync" | "restore" | "fork";

/** A piece of work as it stood at one moment; see persisto.v1.Operation. */
export interface OperationInfo {
  /** Ids of later operations are greater. */
  readonly id: string;
  /** The database worked on; of a fork, its source. */
  readonly database: string;
  readonly kind: OperationKindName;
  readonly bytesDone: number;
  /** 0 while it is not known. */
  readonly bytesTotal: number;
  /** Milliseconds since 1970. */
  readonly createTimeMs: number;
  /** Set with `done`. */
  readonly endTimeMs: number | undefined;
  readonly done: boolean;
  /** Set when done without success. */
  readonly error: Failure | undefined;
}

/** How long a call waits for the operation that it began or joined. Its end does not end the operation. */
export interface OperationWait {
  /** 0: only begins it. */
  readonly waitMs: number;
  /** Ends the wait early: the caller is gone. */
  readonly cancel: Cancel | undefined;
}

export interface MoveInput {
  readonly id: string;
  /** Undefined: one tier closer (promote) or farther (demote). */
  readonly target: StageName | undefined;
  readonly wait: OperationWait;
}

export interface SyncInput {
  readonly id: string;
  /** Undefined: what is committed now. */
  readonly upTo: Position | undefined;
  /** `local`: on the local disk and flushed; `remote`: in the farthest tier. */
  readonly durability: Exclude<DurabilityLevel, "committed">;
  readonly wait: OperationWait;
}

/** A point in a database's history: a position, or what was stored at a time (milliseconds since 1970). */
export type HistoryTarget =
  | { readonly position: Position; readonly timeMs?: undefined }
  | { readonly timeMs: number; readonly position?: undefined };

export interface RestoreInput {
  readonly id: string;
  readonly target: HistoryTarget;
  /** Undefined: whatever it is. */
  readonly etag: string | undefined;
  readonly request: RequestRecord | undefined;
  readonly wait: OperationWait;
}

export interface ForkInput {
  readonly id: string;
  readonly newId: string;
  /** Undefined: the newest state. */
  readonly source: HistoryTarget | undefined;
  readonly request: RequestRecord | undefined;
  readonly wait: OperationWait;
}

export interface ListOperationsInput {
  readonly pageSize: number;
  readonly pageToken: string;
  readonly filter: string;
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
  /** Where the database is now, without running anything. DATABASE_NOT_FOUND as the others. */
  position(id: string): Position;
  /**
   * Text that differs whenever a read could give another answer: the lineage, this engine's own nonce, and a count of the
   * commits. Many commits share a position, so positions cannot stand for contents. Of an id that is not open, or that
   * there is none of, a text that is never given again. Without running anything.
   */
  version(id: string): string;

  /** The tiers that this server has, closest first. */
  listStages(): Promise<readonly StageInfo[]>;
  getDatabaseStage(id: string): Promise<DatabaseStageInfo>;
  /**
   * Moves a database closer (promote) or farther (demote), and pins nothing: the policy may move it on later.
   * Done at once when it is there already. A move of the same database to the same tier that runs is joined; any other
   * operation that works on it is OPERATION_CONFLICT. FIELD_INVALID when `target` lies in the other direction,
   * STAGE_NOT_CONFIGURED when there is no such tier, STAGE_FULL when it has no room. A move that fails, is cancelled or is
   * cut off by the end of the server leaves the database serving from where it was.
   */
  promote(input: MoveInput): Promise<OperationInfo>;
  demote(input: MoveInput): Promise<OperationInfo>;
  /**
   * Makes everything up to a position durable. `durablePosition`: up to where the farthest tier holds the data when the
   * wait was over. LINEAGE_CHANGED for a position of another history. STAGE_NOT_CONFIGURED for `remote` when nothing is
   * carried there.
   */
  sync(
    input: SyncInput,
  ): Promise<{ readonly operation: OperationInfo; readonly durablePosition: Position | undefined }>;
  /** Begins the move to the pin's tier where one is needed, and does not wait for it. Replaces an earlier pin. */
  pin(id: string, pin: PinInfo): Promise<DatabaseStageInfo>;
  /** Harmless without a pin. */
  unpin(id: string): Promise<DatabaseStageInfo>;

  /** OPERATION_NOT_FOUND for one that never was, or whose time is over. */
  getOperation(id: string): Promise<OperationInfo>;
  /** Newest first. */
  listOperations(
    input: ListOperationsInput,
  ): Promise<{ readonly operations: readonly OperationInfo[]; readonly nextPageToken: string }>;
  /**
   * The operation now, and at its changes until it is done: a slow reader gets the newest state and misses those between.
   * Ends with the state that is done, or by `cancel`. RATE_LIMITED when too many watch.
   */
  watchOperation(id: string, cancel: Cancel | undefined): AsyncIterable<OperationInfo>;
  /**
   * Asks an operation to stop, and returns. It ends with OPERATION_CANCELLED and the database as it was, unless its last
   * step has begun: then it ends as if nobody had asked. Harmless when it is done.
   */
  cancelOperation(id: string): Promise<void>;

  /**
   * Takes a database back to a point of its history, in place: a new lineage, on the tier where it was. What it held is
   * kept in the remote stage until the retention is over and can be restored or forked by its old position. While the
   * operation runs the database is `read_only`. OUT_OF_RANGE (HISTORY_OUT_OF_RANGE) when the point is not restorable,
   * HISTORY_NOT_KEPT when nothing is carried to a remote stage, ETAG_MISMATCH, OPERATION_CONFLICT. A repeat with the same
   * request id gets the operation of the first call.
   */
  restore(input: RestoreInput): Promise<OperationInfo>;
  /** Makes a new database of a point of another's history; as `restore`, and DATABASE_EXISTS for the new id. */
  fork(input: ForkInput): Promise<OperationInfo>;

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
  readonly sync: SyncStats;
  /** False while the object store does not answer. */
  readonly isRemoteHealthy: boolean;
  /** Databases by where the file is that their calls run in; `none`: they are in the remote stage alone. */
  readonly heads: Readonly<Record<"memory" | "local" | "none", { readonly count: number; readonly bytes: number }>>;
  readonly moves: MoveStats;
}

/** Moves of databases between stages. */
export interface MoveStats {
  readonly running: number;
  readonly waiting: number;
  /** Databases that are being brought from the remote stage for a call. */
  readonly hydrations: number;
  /** Since the start: how many were brought, moved closer, moved farther, and moves that failed or were cancelled. */
  readonly hydrated: number;
  readonly promotions: number;
  readonly demotions: number;
  readonly failures: number;
}
