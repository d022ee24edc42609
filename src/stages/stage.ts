/**
 * A stage is a tier of storage, a replica one database's copy on it at one position. Moving data between stages is only ever
 * one of: write a snapshot, append a batch that follows, restore into a file. Every implementation passes the contract suite
 * in test/stages.
 */
import type { LtxFailure } from "../ltx/ltx-failure.ts";
import type { PageSource } from "../ltx/pages.ts";
import type { RestoreTarget } from "../ltx/restore-plan.ts";
import type { ObjectCall } from "../objects/object-store.ts";

export type StageName = "memory" | "local" | "remote";

/** When the work must have ended, by the clock's `now()`, and who may end it before. */
export type StageCall = ObjectCall;

/** What a stage has room for; undefined where nobody knows. */
export interface StageSpace {
  readonly totalBytes: number;
  readonly freeBytes: number;
}

export interface Stage {
  readonly name: StageName;
  /** As the settings name it. */
  readonly displayName: string;
  space(): Promise<StageSpace | undefined>;
  /** Tries what the stage relies on. Rejects with what an operator has to do. */
  probe(call: StageCall): Promise<void>;
}

/** A database at one position, to be read page by page. */
export interface Snapshot {
  /** The batch that it ends with. */
  readonly txid: bigint;
  readonly pageSize: number;
  readonly pageCount: number;
  /** When its last commit was made, at the latest. Milliseconds since 1970. */
  readonly timestampMs: number;
  /** Every page but the lock page, ascending. May be asked for again. */
  pages(): PageSource;
}

/** A closed batch: an LTX file of one TXID in the local folder that does not change any more. */
export interface Batch {
  readonly txid: bigint;
  readonly path: string;
  readonly byteCount: number;
  readonly pageSize: number;
  /** Pages of the database after it. */
  readonly commit: number;
  readonly timestampMs: number;
}

/** Where a restore goes, and to which point. */
export interface RestoreInput {
  /** A file that is made, in place of one of that name. Good only when the restore resolves: give it its name then. */
  readonly path: string;
  /** False leaves the file unflushed: for a tmpfs. */
  readonly flush: boolean;
  /** The newest point unless told otherwise. */
  readonly target?: RestoreTarget;
  /** Told, as they come, how many bytes have come and how many there are in all (which may change). */
  readonly onProgress?: ((byteCount: number, bytesTotal: number) => void) | undefined;
}

/** What a restore has made. */
export interface Restored {
  readonly txid: bigint;
  readonly pageSize: number;
  readonly pageCount: number;
  /** When the state was committed. Milliseconds since 1970. */
  readonly timestampMs: number;
  /** Bytes that came from the stage. */
  readonly readBytes: number;
  /** Files that turned out to be damaged and that others stood in for: the stage should be healed. */
  readonly damaged: readonly DamagedFile[];
}

/** A stored file that is not what was put there. */
export interface DamagedFile {
  /** Path or key. */
  readonly name: string;
  readonly failure: LtxFailure;
}

/** What `verify` found. Only what can be checked without SQLite: see the replica. */
export interface Verified {
  readonly txid: bigint;
  readonly fileCount: number;
  readonly byteCount: number;
  readonly damaged: readonly DamagedFile[];
  /** True when the newest state can be restored from what is good. */
  readonly isWhole: boolean;
  /** What is wrong besides, in sentences for an operator. */
  readonly problems: readonly string[];
}

/** One database's copy on one stage. Changes are made one after another; the caller sees to that. */
export interface Replica {
  readonly stage: StageName;
  /** For messages: path, or key. */
  readonly name: string;
  /** The batch up to which it goes; 0 when it holds nothing. */
  readonly txid: bigint;
  /**
   * Makes it hold the snapshot, durably when it resolves (in memory: there). In a replica of files it takes the place of what
   * was there, in the object store it joins it.
   */
  putSnapshot(snapshot: Snapshot, call: StageCall): Promise<void>;
  /**
   * Takes in the batch that follows: `txid + 1`. One that it holds already does no harm; one behind a gap is a defect of the
   * caller and throws an Error. The batch is proven before anything is changed.
   */
  append(batch: Batch, call: StageCall): Promise<void>;
  /** Copies it into a file. Throws Failure DATA_CORRUPT when a byte is not right and nothing stands in for it. */
  restore(input: RestoreInput, call: StageCall): Promise<Restored>;
  verify(call: StageCall): Promise<Verified>;
  /** Removes all of it; harmless when it is gone. */
  remove(call: StageCall): Promise<void>;
}
