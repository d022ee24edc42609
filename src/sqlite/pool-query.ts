import { executionTimeout } from "./call-failures.ts";
import { CallCancelled, type QueryCursor } from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import type { FailureNote } from "./protocol.ts";

interface Waiter {
  resolve(chunk: Uint8Array | undefined): void;
  reject(error: Error): void;
}

export interface PoolQueryInput {
  readonly id: number;
  readonly pipeline: Pipeline;
  readonly database: PoolDatabase;
  readonly columns: Uint8Array;
  readonly openedAtMs: number;
  now(): number;
  readonly deadlineAtMs: number;
  readonly executionMsMax: number;
  readonly windowChunks: number;
  errorOf(note: FailureNote): Error;
  /** Its life is over. */
  timeout(): Error;
  /** Called once, when the executor has ended the query. */
  onOver(): void;
}

/** A query's rows on the server's side: at most a window of chunks waits here for the reader. */
export class PoolQuery implements QueryCursor {
  readonly columns: Uint8Array;
  readonly input: PoolQueryInput;
  /** When the server asked the executor to end it. */
  closedAtMs: number | undefined;
  /** Since when SQLite works on the chunk that comes next, as far as the server has seen. */
  #runningSinceMs: number | undefined;
  /** Takes back the listener on the caller's Cancel. */
  uncancel: (() => void) | undefined;
  readonly #chunks: Uint8Array[] = [];
  #waiter: Waiter | undefined;
  #taken = 0;
  /** The executor has ended it. */
  #over = false;
  #error: Error | undefined;
  #rowCount = 0n;
  #elapsedNs = 0n;

  constructor(input: PoolQueryInput) {
    this.input = input;
    this.columns = input.columns;
  }

  next(): Promise<Uint8Array | undefined> {
    if (this.#error !== undefined) return Promise.reject(this.#error);
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) {
      this.#credit();
      return Promise.resolve(chunk);
    }
    if (this.#over) return Promise.resolve(undefined);
    if (this.#waiter !== undefined)
      return Promise.reject(new Error("next() was called before its last promise settled"));
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  summary(): { readonly rowCount: bigint; readonly elapsedNs: bigint } {
    return { rowCount: this.#rowCount, elapsedNs: this.#elapsedNs };
  }

  close(): void {
    if (!this.#over && this.closedAtMs === undefined) this.#end(new CallCancelled());
  }

  /** Ends it because its time is over. */
  expire(): void {
    if (!this.#over && this.closedAtMs === undefined) this.#end(this.input.timeout());
  }

  /** Looks at a query that may be running: ends it when one chunk takes all the time of its execution. */
  watchExecution(isRunning: boolean, nowMs: number): void {
    if (!isRunning) this.#runningSinceMs = undefined;
    else if (this.#runningSinceMs === undefined) this.#runningSinceMs = nowMs;
    else if (nowMs - this.#runningSinceMs > this.input.executionMsMax)
      this.#end(executionTimeout(this.input.executionMsMax));
  }

  receive(chunk: Uint8Array): void {
    this.#runningSinceMs = undefined;
    if (this.closedAtMs !== undefined) return;
    const waiter = this.#waiter;
    if (waiter === undefined) {
      this.#chunks.push(chunk);
      return;
    }
    this.#waiter = undefined;
    this.#credit();
    waiter.resolve(chunk);
  }

  finish(rowCount: bigint, elapsedNs: bigint): void {
    this.#rowCount = rowCount;
    this.#elapsedNs = elapsedNs;
    this.#settle(undefined);
  }

  fail(note: FailureNote): void {
    if (note.interrupted !== "deadline") this.#settle(this.input.errorOf(note));
    else this.#settle(note.ofExecution ? executionTimeout(this.input.executionMsMax) : this.input.timeout());
  }

  /** Its executor has died. */
  lose(error: Error): void {
    this.#settle(error);
  }

  /** The executor is told later: what it sends until then is dropped. */
  #end(error: Error): void {
    const { id, pipeline } = this.input;
    this.closedAtMs = this.input.now();
    pipeline.closeQuery(id);
    pipeline.interrupt(id);
    this.#reject(error);
  }

  #settle(error: Error | undefined): void {
    if (this.#over) return;
    this.#over = true;
    this.uncancel?.();
    this.input.onOver();
    if (error !== undefined && this.closedAtMs === undefined) this.#reject(error);
    const waiter = this.#waiter;
    this.#waiter = undefined;
    waiter?.resolve(undefined);
  }

  #reject(error: Error): void {
    this.#error ??= error;
    this.#chunks.length = 0;
    const waiter = this.#waiter;
    this.#waiter = undefined;
    waiter?.reject(this.#error);
  }

  /** Tells the executor that chunks were taken, half a window at a time. */
  #credit(): void {
    if (this.#over) return;
    this.#taken++;
    if (this.#taken < Math.max(1, this.input.windowChunks >> 1)) return;
    this.input.pipeline.credit(this.input.id, this.#taken);
    this.#taken = 0;
  }
}
