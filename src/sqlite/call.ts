/** One call of the server to an executor, from its caller to its answer, over as many executors as it takes. */
import type { Cancel } from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import { CALL_WRITES, OP_BATCH, OP_BEGIN, OP_COMMIT, OP_EXECUTE, OP_SCRIPT } from "./protocol.ts";

/** How an answer reaches the caller; `body` may share memory with other answers and is never changed. */
export type OnDone = (call: Call, flags: number, walFrames: number, body: Buffer) => void;
export type OnFailed = (call: Call, error: Error, flags: number) => void;

/** What a call is made of. */
export interface CallInput {
  readonly op: number;
  readonly flags: number;
  readonly database: PoolDatabase;
  readonly scope: number;
  readonly target: number;
  readonly resultBytesMax: number;
  readonly first: number;
  readonly second: number;
  /** Goes before the payload: a request record, a query's window. */
  readonly head: Uint8Array | undefined;
  readonly payload: Uint8Array;
  readonly submittedAtMs: number;
  readonly deadlineAtMs: number;
  readonly deadlineSource: "client" | "server";
  readonly cancel: Cancel | undefined;
  /** The only executor that can run it. */
  readonly pinned: Pipeline | undefined;
  readonly onDone: OnDone;
  readonly onFailed: OnFailed;
}

export class Call {
  readonly input: CallInput;
  /** Needs the database's write lock: an autocommit write, or the begin of a transaction that may write. */
  readonly takesLock: boolean;
  /** Where it was sent, and under which id; undefined while it waits. */
  pipeline: Pipeline | undefined;
  id = 0;
  /** Where it was sent last. */
  ranIn: Pipeline | undefined;
  settled = false;
  /** Calls in the order of their arrival. */
  order = 0;
  /** The server wants it to end: it was cancelled, or its time is over. */
  stopCause: "cancel" | "deadline" | undefined;
  stoppedAtMs = 0;
  /** Executors that died under it. */
  deaths = 0;
  /** How an executor died that may have committed the call, which runs again to find its record. */
  doubt: string | undefined;
  /** Counts against its database's bound. */
  counted = false;
  /** Takes back the listener on the caller's Cancel. */
  uncancel: (() => void) | undefined;

  constructor(input: CallInput) {
    this.input = input;
    this.takesLock = isWrite(input.op) || (input.op === OP_BEGIN && (input.flags & CALL_WRITES) !== 0);
  }

  get bytes(): number {
    return this.input.payload.length + (this.input.head?.length ?? 0);
  }

  /** May have committed something once it has begun. */
  get mayCommit(): boolean {
    return this.input.op === OP_COMMIT || isWrite(this.input.op);
  }
}

function isWrite(op: number): boolean {
  return op === OP_EXECUTE || op === OP_BATCH || op === OP_SCRIPT;
}
