/**
 * Syncing: carries what databases have committed to the remote stage, and keeps what is there in order. One scheduler for
 * all databases; one that has nothing to carry costs nothing.
 */
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import type { Failure } from "../../failure/failure.ts";
import type { CallOptions } from "../../sqlite/executor.ts";
import type { Manifest } from "../../stages/manifest.ts";
import type { Batch, Snapshot } from "../../stages/stage.ts";
import type { CatalogRow } from "../catalog.ts";
import type { DurabilityLevel } from "../engine.ts";
import type { EngineLog } from "../options.ts";
import type { BackOff } from "./store-health.ts";
import type { UpkeepRules } from "./upkeep.ts";

/** What syncing uses of a database's log; see `DatabaseLog`. */
export interface SyncLog {
  /** The batch that commits go into now. */
  readonly openTxid: bigint;
  readonly closedTxid: bigint;
  /** Commits, or positions that were given out, that no closed batch holds. */
  readonly hasOpen: boolean;
  /** Bytes on the local disk that only wait for their upload, WAL frames that are not sealed among them. */
  readonly unsyncedBytes: number;
  /** Closes the open batch; undefined when there is nothing in it and nothing owed. */
  close(): Promise<Batch | undefined>;
  /** Closed batches that are not released, in order. */
  pending(): readonly Batch[];
  /** The remote stage holds everything up to there. */
  release(txid: bigint): void;
  /** The database at the end of a closed batch; given back by its `release`. */
  snapshot(): Promise<Snapshot & { release(): void }>;
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
}

/** What the engine does for syncing. */
export interface SyncHost {
  readonly clock: Clock;
  /** From 0 to below 1. */
  readonly random: () => number;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  /** What the catalog knows of a database. */
  row(id: string): CatalogRow | undefined;
  /**
   * The handle of a database that has a head, opened where it is not, and held until `release`. Undefined when there is no
   * such database any more, or it has no head.
   */
  hold(id: string): Promise<SyncedDatabase | undefined>;
  release(database: SyncedDatabase): void;
  /** Takes a database that only the remote stage knows into the catalog; false when the id is known by now. */
  discovered(found: Discovered): Promise<boolean>;
  /** The catalog has everything that the remote stage has. */
  complete(): void;
  /** Keeps what syncing knows of a database; harmless when it is gone. */
  save(id: string, facts: SyncFacts): void;
}

/** A database that was found in the remote stage. */
export interface Discovered {
  readonly manifest: Manifest;
  readonly txid: bigint;
  /** Of what is stored, history and all. */
  readonly sizeBytes: number;
  /** When the replica needs upkeep, milliseconds since 1970; 0: it needs none. */
  readonly upkeepAtMs: number;
}

/** What the catalog keeps for syncing. */
export interface SyncFacts {
  readonly durableSequence?: number;
  /** The `etagVersion` that the manifest has. */
  readonly manifestVersion?: number;
  /** When the replica needs upkeep, milliseconds since 1970; 0: it needs none. */
  readonly upkeepAtMs?: number;
  readonly isFenced?: boolean;
}

/** Bounds of syncing; each has a setting of the same name. */
export interface SyncLimits {
  /** Time from the first commit that is not uploaded to its upload, at most. */
  readonly intervalMs: number;
  /** Databases that are uploaded at one time. */
  readonly uploadConcurrencyMax: number;
  /** Compactions, snapshots and deletions at one time. */
  readonly compactionConcurrencyMax: number;
  /** Bytes that may wait for the remote stage, over all databases. */
  readonly unsyncedBytesMax: number;
  /** Pauses before what failed is tried again. */
  readonly backOff: BackOff;
  /** Longest that one call of the store may take, and more for what carries many bytes. */
  readonly storeCallMs: number;
  /** How far chance puts off compactions and snapshots, so that not all databases have theirs at one time. */
  readonly upkeepJitterMs: number;
  readonly upkeep: UpkeepRules;
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
  /** Labels or SQL options have changed: brings the manifest in step. */
  factsChanged(id: string): void;
  /**
   * Brings the manifest of a database without a head in step with facts that it is about to have: there its manifest is what
   * keeps them.
   */
  publish(row: CatalogRow): Promise<void>;
  /**
   * Uploads everything that a database has, its facts too, for a move outward. As `durable`; `signal` ends it early. Resolves with the
   * TXID up to which the remote stage holds it.
   */
  uploadAll(database: SyncedDatabase, wait: SyncWait): Promise<bigint>;

  /** Something of a database may not be uploaded, though nobody commits just now. */
  suspect(id: string): void;

  /** True while the handle must be kept: something of it is not uploaded, or being uploaded. */
  isBusy(id: string): boolean;
  /**
   * The database is being deleted, or gets another history: ends what is under way for it, and rejects those who wait with
   * the failure. Resolves when nothing of it runs any more. Its handle must be there until then.
   */
  forget(id: string, failure: Failure): Promise<void>;
  /** The remote copy of a deleted database is to go. The trace of it is on the disk already. */
  deleted(tombstone: Tombstone): void;
  /** A restore has replaced a history; its manifest keeps it until then (milliseconds since 1970). */
  retired(id: string, untilMs: number): void;

  /** True while an unknown id may be in the remote stage all the same: `lookUp` tells. */
  readonly isDiscovering: boolean;
  /**
   * Looks an unknown id up in the remote stage. True when it is in the catalog now. Rejects with STAGE_UNAVAILABLE when that
   * cannot be found out and the catalog is not known to be complete.
   */
  lookUp(id: string): Promise<boolean>;

  /** To be called once, when the engine serves. */
  start(found: FoundAtStart): void;
  stats(): SyncStats;
  /** Uploads what is left, for at most `graceMs`; then ends all work. */
  close(graceMs: number): Promise<void>;
}

/** What an earlier server has left to do. */
export interface FoundAtStart {
  /** Databases of which the catalog does not know that the remote stage holds all. */
  readonly unsynced: Iterable<string>;
  /** Databases whose replicas need upkeep, and when; milliseconds since 1970. */
  readonly upkeeps: Iterable<{ readonly id: string; readonly atMs: number }>;
  readonly tombstones: Iterable<Tombstone>;
  /** `SyncHost.complete` was called once, and the catalog has kept everything since. */
  readonly isCatalogComplete: boolean;
}

export interface SyncWait extends Pick<CallOptions, "deadlineAtMs" | "cancel"> {
  /**
   * Rejects with what stands in the way on this side, such as a full disk, in place of waiting for it to clear up: for work
   * that holds others up. A store that is away is waited for all the same.
   */
  readonly isImpatient?: boolean;
}

/** A deleted database whose remote copy is not gone yet. */
export interface Tombstone {
  readonly id: string;
  readonly lineage: string;
  /** Of its replica. */
  readonly prefix: string;
  /** Something that was put there may still arrive: then it is looked at again. */
  readonly mayGrow?: boolean;
  /** Called when nothing is left in the remote stage: removes the local trace. */
  done(): Promise<void>;
}
