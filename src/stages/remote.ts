/**
 * The remote stage: for each database a replica as Litestream 0.5 keeps them, in an object store, and a manifest. Whoever has
 * the bucket can restore the databases without this server.
 */
import { Failure } from "../failure/failure.ts";
import type { ReplicaFile } from "../ltx/replica.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { Manifests } from "./manifest.ts";
import type { Replica, Snapshot, Stage, StageCall } from "./stage.ts";

/**
 * How the keys of a replica are made: `bucket` is Litestream's layout on S3 (`<prefix>/0000/…`), `folder` that of its file
 * replicas (`<prefix>/ltx/0/…`).
 */
export type ReplicaLayout = "bucket" | "folder";

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
  /** The replica under a prefix, whoever wrote it. Nothing is read yet; each call makes one that knows nothing. */
  replica(prefix: string): RemoteReplica;
}

export interface RemoteReplica extends Replica {
  readonly stage: "remote";
  readonly prefix: string;
  /** The last batch that is stored, as far as is known; 0 before `load`. */
  readonly txid: bigint;
  /** The same. */
  readonly lastTxid: bigint;
  /** True after `load`, or the first `append` to a prefix that has nothing. */
  readonly isLoaded: boolean;
  /** What is stored, as far as is known: kept in step with what this object does, never asked for again. In no order. */
  files(): readonly ReplicaFile[];
  /** Asks the store what there is: one list. The others do it themselves when they need to. */
  load(call: StageCall): Promise<void>;
  /**
   * Makes the times of all files exact, as Litestream has them for a restore to a time: a list of S3 gives the times of the
   * uploads, and each file's own time is in its metadata. One small request a file, once. `restore` to a time does it itself.
   */
  loadTimes(call: StageCall): Promise<void>;
  /**
   * Stores the batch unless its number is taken; when the answer is lost it looks whose batch is there. Throws FencedError
   * when it is another's. An answer `unavailable` or `throttled` leaves it open whether it is stored: repeat the call.
   */
  append(batch: Parameters<Replica["append"]>[0], call: StageCall): Promise<void>;
  /** Stores a file of the snapshot level, which ends with a batch that is stored already. */
  putSnapshot(snapshot: Snapshot, call: StageCall): Promise<void>;
  /**
   * Brings a level in step with the one below, or, for the snapshot level, makes a snapshot out of what is stored, without a
   * head. Undefined when there is nothing to do; else what was stored.
   */
  compact(level: number, nowMs: number, call: StageCall): Promise<ReplicaFile | undefined>;
  /** Deletes what retention lets go of at that time (milliseconds since 1970); returns how many files. */
  expire(nowMs: number, call: StageCall): Promise<number>;
  /**
   * Takes the history over: stores the next batch without a change, so that whoever wrote before is fenced. Loads anew first.
   * Returns its number. Throws FencedError when another was faster. The replica must hold a database.
   */
  claim(nowMs: number, call: StageCall): Promise<bigint>;
}
