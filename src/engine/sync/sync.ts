/**
 * Syncing: carries what databases have committed to the remote stage, and keeps what is there in order. One scheduler for
 * all databases; one that has nothing to carry costs nothing.
 */
import type { Clock } from "../../clock.ts";
import type { Failure } from "../../failure/failure.ts";
import type { CallOptions } from "../../sqlite/executor.ts";
import type { CatalogRow } from "../catalog.ts";
import type { DurabilityLevel } from "../engine.ts";
import type { EngineLog } from "../options.ts";

/** A batch that is closed and not yet released: one LTX file in the local folder. */
export interface SyncBatch {
  readonly txid: bigint;
  readonly path: string;
  readonly byteCount: number;
  readonly pageSize: number;
  /** Pages of the database after it. */
  readonly commit: number;
  readonly timestampMs: number;
}

/** What syncing uses of a database's log; see `DatabaseLog`. */
export interface SyncLog {
  /** The batch that commits go into now. */
  readonly openTxid: bigint;
  readonly closedTxid: bigint;
  /** Commits, or positions that were given out, that no closed batch holds. */
  readonly hasOpen: boolean;
  /** Bytes on the local disk that only wait for their upload, WAL frames that are not sealed among them. */
  readonly unsyncedBytes: number;
  close(): Promise<SyncBatch | undefined>;
  pending(): readonly SyncBatch[];
  release(txid: bigint): void;
}

/** A hosted database, as syncing sees it. */
export interface SyncedDatabase {
  readonly id: string;
  readonly lineage: string;
  readonly log: SyncLog;
  /** Up to where the remote stage is known to hold it; 0: nothing, or not known. */
  readonly durableTxid: bigint;
  /** The remote stage holds it up to there now. Never called with less than before. */
  uploaded(txid: bigint): void;
  /** Takes no writes any more, and answers them with the failure; reads go on. */
  fence(failure: Failure): void;
  /** Stops it: its files cannot be read. */
  stop(problem: string, cause: unknown): void;
}

/** What the engine does for syncing. */
export interface SyncHost {
  readonly clock: Clock;
  /** From 0 to below 1. */
  readonly random: () => number;
  readonly log: EngineLog;
  /** What the catalog knows of a database. */
  row(id: string): CatalogRow | undefined;
  /**
   * The handle of a database that has a head, opened where it is not, and held until `release`. Undefined when there is no
   * such database any more, or it has no head.
   */
  hold(id: string): Promise<SyncedDatabase | undefined>;
  release(database: SyncedDatabase): void;
  /** Takes a database that only the remote stage knows into the catalog, unless the id is known. */
  discovered(row: CatalogRow): Promise<void>;
}

export interface SyncStats {
  /** Batches uploaded. */
  readonly uploads: number;
  /** Objects put: batches, compactions, snapshots, manifests. */
  readonly puts: number;
  readonly uploadedBytes: number;
  /** Uploads that failed and are tried again. */
  readonly uploadFailures: number;
  readonly compactions: number;
  readonly snapshots: number;
  /** Databases with something that is not uploaded. */
  readonly unsyncedDatabases: number;
  readonly unsyncedBytes: number;
  /** Age of the oldest commit that is not uploaded; 0 when all are. */
  readonly lagMs: number;
  readonly fencedDatabases: number;
  /** Deletions whose remote part is still to be done. */
  readonly deletionsPending: number;
}

/** How the remote stage is. */
export interface RemoteHealth {
  readonly isHealthy: boolean;
  /** What is wrong, for people; undefined while it is healthy. */
  readonly problem: string | undefined;
}

export interface Sync {
  /** False when nothing is ever carried to a remote stage: the persistence stage is a closer one. */
  readonly isCarrying: boolean;
  readonly health: RemoteHealth;

  /**
   * To be called after every commit, when its position has been taken. O(1). The first commit since the last upload makes
   * the database due after the sync interval.
   */
  committed(database: SyncedDatabase): void;
  /**
   * Before a write runs: undefined when it may. Throws SYNC_BACKLOG_FULL for COMMITTED and LOCAL while more bytes wait for
   * the remote stage than the budget allows; gives REMOTE a promise that waits for room until the call's deadline. Throws
   * STAGE_NOT_CONFIGURED for REMOTE when nothing is carried.
   */
  admit(durability: DurabilityLevel, options: CallOptions): Promise<void> | undefined;
  /**
   * Resolves when the remote stage holds the database up to `txid`. At the deadline it rejects with
   * REMOTE_NOT_REACHED: the commit is there and will be carried all the same. Rejects with DATABASE_FENCED when it never
   * will be, with CallCancelled, or with STAGE_NOT_CONFIGURED.
   */
  durable(database: SyncedDatabase, txid: bigint, options: SyncWait): Promise<void>;
  /** Labels or SQL options have changed: brings the manifest in step, also of a database without a head. */
  factsChanged(id: string): void;
  /**
   * Uploads everything that a database has, for a move outward. As `durable`; `signal` ends it early. Resolves with the
   * TXID up to which the remote stage holds it.
   */
  uploadAll(database: SyncedDatabase, wait: SyncWait): Promise<bigint>;

  /** True while the handle must be kept: something of it is not uploaded, or being uploaded. */
  isBusy(id: string): boolean;
  /** The handle is being closed, or the database deleted: resolves when nothing of it is under way any more. */
  forget(id: string): Promise<void>;
  /** The remote copy of a deleted database is to go. The tombstone is on the disk already. */
  deleted(tombstone: Tombstone): void;

  /**
   * What the remote stage knows of an id that the catalog does not know. Resolves true when it is in the catalog now.
   * Rejects with STAGE_UNAVAILABLE when that cannot be found out and the catalog is not known to be complete.
   */
  lookUp(id: string): Promise<boolean>;
  /** Undefined when an unknown id needs no `lookUp`: everything in the bucket is known. */
  readonly isDiscovering: boolean;

  /** To be called once, when the engine serves: discovery, tombstones, and what an earlier server left unsynced. */
  start(): void;
  stats(): SyncStats;
  /** Seals and uploads what is left, for at most `graceMs`; then ends all work. */
  close(graceMs: number): Promise<void>;
}

export type SyncWait = Pick<CallOptions, "deadlineAtMs" | "cancel">;

/** A deleted database whose remote copy is not gone yet. */
export interface Tombstone {
  readonly id: string;
  readonly lineage: string;
  readonly prefixes: readonly string[];
  /** Called when nothing is left in the remote stage: removes the local trace. */
  done(): Promise<void>;
}
