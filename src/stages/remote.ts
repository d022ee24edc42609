/**
 * The remote stage: for each database a replica as Litestream 0.5 keeps them, in an object store, and a manifest. Whoever has
 * the bucket can restore the databases without this server.
 */
import { Failure } from "../failure/failure.ts";
import type { ReplicaFile, ReplicaLayout } from "../ltx/replica.ts";
import type { TxidRange } from "../ltx/txid.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { Manifests } from "./manifest.ts";
import type { Replica, Snapshot, Stage, StageCall } from "./stage.ts";

/** Somebody else has stored a batch of that number: this server may not write the history any more. */
export class FencedError extends Failure {
  /** The first batch that is not ours. */
  readonly txid: bigint;

  constructor(txid: bigint, cause?: unknown) {
    super("DATABASE_FENCED", { sequence: String(txid) }, cause === undefined ? {} : { cause });
    this.name = "FencedError";
    this.txid = txid;
  }
}

export interface RemoteStage extends Stage {
  readonly name: "remote";
  readonly store: ObjectStore;
  readonly layout: ReplicaLayout;
  readonly manifests: Manifests;
  /** Where a history is kept: `<id>/<lineage>`. */
  prefixOf(id: string, lineage: string): string;
  /**
   * The replica under a prefix, whoever wrote it. Nothing is read yet; each call makes one that knows nothing. `isNew`: nobody
   * can have written there, because its lineage was just made; then there is nothing to ask for before the first batch.
   */
  replica(prefix: string, options?: { readonly isNew?: boolean }): RemoteReplica;
}

export interface RemoteReplica extends Replica {
  readonly stage: "remote";
  readonly prefix: string;
  /** The last batch that is stored, as far as is known; 0 before `load`. */
  readonly txid: bigint;
  /** The same. */
  readonly lastTxid: bigint;
  /** True once it is known what is stored. */
  readonly isLoaded: boolean;
  /** What is stored, as far as is known: kept in step with what this object does, never asked for again. In no order. */
  files(): readonly ReplicaFile[];
  /** Key of a file of this replica. */
  key(file: TxidRange & { readonly level: number }): string;
  /** Asks the store what there is: one list. The others do it themselves when they need to. */
  load(call: StageCall): Promise<void>;
  /**
   * Makes the times of all files exact, as Litestream has them for a restore to a time: a list of S3 gives the times of the
   * uploads, and each file's own time is in its metadata. One small request a file, once. `restore` to a time does it itself.
   */
  loadTimes(call: StageCall): Promise<void>;
  /**
   * Stores the batch unless its number is taken; then, and when it is said to be stored, what is there is compared with it,
   * and FencedError thrown when it is another's. One that is stored in merged files alone cannot be compared and passes. A
   * failure `unavailable` or `throttled` leaves it open whether it is stored: repeat the call.
   */
  append(batch: Parameters<Replica["append"]>[0], call: StageCall): Promise<void>;
  /**
   * Stores a file of the snapshot level, in place of one of that name. It may end behind what is stored, where the store has
   * lost batches; then the next batch is the one after it.
   */
  putSnapshot(snapshot: Snapshot, call: StageCall): Promise<void>;
  /**
   * Brings a level in step with the one below, or, for the snapshot level, makes a snapshot out of what is stored, without a
   * head. Undefined when there is nothing to do; else what was stored.
   */
  compact(level: number, call: StageCall): Promise<ReplicaFile | undefined>;
  /** Size and number of the pages of the newest state. Asks for the beginning of one file. Throws DATA_CORRUPT when there is none. */
  shape(call: StageCall): Promise<{ readonly pageSize: number; readonly pageCount: number }>;
  /** Deletes what retention lets go of at that time (milliseconds since 1970); returns how many files. */
  expire(nowMs: number, call: StageCall): Promise<number>;
  /**
   * Takes the history over: stores the next batch without a change, so that whoever wrote before is fenced. Loads anew first.
   * Returns its number. Throws FencedError when another was faster. The replica must hold a database.
   */
  claim(nowMs: number, call: StageCall): Promise<bigint>;
}
