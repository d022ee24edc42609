/** What the log of a database gives to others: closed batches, and the state at the end of one. */
import type { Batch, Snapshot } from "../../stages/stage.ts";

/** A batch that never changes any more: one LTX file of one TXID in the log's folder, on the disk. */
export type ClosedBatch = Batch;

/** The database at the end of a closed batch. Its WAL is not copied back while it is held: release it soon. */
export interface LogSnapshot extends Snapshot {
  /** Lets checkpoints go on; harmless when called again. */
  release(): void;
}

/** The file that executes, as its log sees it. */
export interface LogHead {
  /** Absolute path of the database file; its -wal lies beside it. */
  readonly path: string;
  /** True when the file ends with the machine: then LOCAL durability, and what a checkpoint may copy, need a seal. */
  readonly isVolatile: boolean;
  /** Flushes the WAL; not called for a volatile head. */
  flush(): Promise<void>;
}
