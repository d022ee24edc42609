/** One database as the pool sees it: the door for its callers, and where its calls may run. */
import type { Call } from "./call.ts";
import type {
  CallOptions,
  CallResult,
  DatabaseFile,
  ExecutorDatabase,
  ExecutorTransaction,
  QueryCursor,
  QueryOptions,
  RequestRecord,
} from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { Pool } from "./pool.ts";
import { OP_BATCH, OP_EXECUTE, OP_READ, OP_SCRIPT } from "./protocol.ts";

/** The state of a WAL that an executor reported last; `salt` undefined: not known. */
export interface WalState {
  readonly salt: string | undefined;
  readonly frames: number;
}

export class PoolDatabase implements ExecutorDatabase {
  readonly number: number;
  /** Grows when the file's options change; executors that know an older one are told. */
  generation = 0;
  readonly knownBy = new Map<Pipeline, number>();
  /** The executor with the writing connection. */
  home: Pipeline | undefined;
  /** Calls, transactions and queries, running and waiting. */
  callCount = 0;
  /** Writes sent and not answered: they hold the home where it is. */
  writesSent = 0;
  /** Who has the write lock for longer than a call: a transaction, a checkpoint. */
  lockHolder: object | undefined;
  /** No write may start: the pool finds out what a dead executor had committed. */
  sealed = false;
  /** Writes that wait for the lock, in order. */
  lockQueue: Call[] = [];
  wal: WalState = { salt: undefined, frames: 0 };
  lastUsedMs = 0;
  closing = false;
  onIdle: (() => void) | undefined;

  #file: DatabaseFile;
  readonly #pool: Pool;

  constructor(pool: Pool, number: number, file: DatabaseFile) {
    this.#pool = pool;
    this.number = number;
    this.#file = file;
  }

  get file(): DatabaseFile {
    return this.#file;
  }

  execute(statement: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#pool.run(OP_EXECUTE, this, statement, options, record);
  }

  read(statement: Uint8Array, options: CallOptions): Promise<CallResult> {
    return this.#pool.run(OP_READ, this, statement, options, undefined);
  }

  batch(request: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#pool.run(OP_BATCH, this, request, options, record);
  }

  script(text: Uint8Array, options: CallOptions, record?: RequestRecord): Promise<CallResult> {
    return this.#pool.run(OP_SCRIPT, this, text, options, record);
  }

  query(statement: Uint8Array, options: QueryOptions): Promise<QueryCursor> {
    return this.#pool.query(this, statement, options);
  }

  begin(readWrite: boolean, options: CallOptions): Promise<ExecutorTransaction> {
    return this.#pool.begin(this, readWrite, options);
  }

  checkpoint(mode: "passive" | "truncate"): Promise<{ readonly frames: number; readonly done: number }> {
    return this.#pool.checkpoint(this, mode === "truncate");
  }

  create(pageBytes: number): Promise<void> {
    return this.#pool.create(this, pageBytes);
  }

  reconfigure(file: DatabaseFile): void {
    this.#file = file;
    this.generation++;
  }

  close(force: boolean): Promise<void> {
    return this.#pool.closeDatabase(this, force);
  }
}
