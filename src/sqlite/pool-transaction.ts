import { Failure } from "../failure/failure.ts";
import { Call } from "./call.ts";
import type { CallOptions, CallResult, ExecutorTransaction } from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import {
  CALL_COLUMNS,
  DONE_OPEN,
  OP_COMMIT,
  OP_ROLLBACK,
  OP_ROLLBACK_TO,
  OP_SAVEPOINT,
  OP_TRANSACTION_EXECUTE,
} from "./protocol.ts";

const nothing = new Uint8Array(0);

/** A transaction that lives in one executor. */
export class PoolTransaction implements ExecutorTransaction {
  readonly id: number;
  readonly database: PoolDatabase;
  readonly pipeline: Pipeline;
  readonly openedAtMs: number;
  /** Commands sent and not answered. */
  readonly commands = new Set<Call>();
  #isOpen = true;
  #cause: Error | undefined;

  /** Has just begun; counts as one of its database's calls until it is over. */
  constructor(database: PoolDatabase, id: number, pipeline: Pipeline) {
    this.id = id;
    this.database = database;
    this.pipeline = pipeline;
    this.openedAtMs = database.pool.clock.now();
    database.callCount++;
    pipeline.transactions.set(id, this);
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  execute(statement: Uint8Array, options: CallOptions): Promise<CallResult> {
    return this.#command(OP_TRANSACTION_EXECUTE, "execute", statement, options);
  }

  async savepoint(id: string, options: CallOptions): Promise<void> {
    await this.#command(OP_SAVEPOINT, "savepoint", Buffer.from(id), options);
  }

  async rollbackTo(id: string, options: CallOptions): Promise<void> {
    await this.#command(OP_ROLLBACK_TO, "rollback_to", Buffer.from(id), options);
  }

  commit(options: CallOptions): Promise<CallResult> {
    return this.#command(OP_COMMIT, "commit", nothing, options);
  }

  rollback(): Promise<void> {
    if (!this.#isOpen) return Promise.resolve();
    const { dispatcher } = this.database.pool;
    for (const command of this.commands) dispatcher.stop(command, "cancel");
    return new Promise((resolve) => {
      const over = (): void => {
        this.end();
        resolve();
      };
      const call = new Call({
        ...this.database.ownInput(OP_ROLLBACK),
        target: this.id,
        pinned: this.pipeline,
        // It holds the lock until the executor has seen this, however long that takes.
        deadlineAtMs: Number.POSITIVE_INFINITY,
        onDone: over,
        // The only failure is the executor's death, and that rolls back.
        onFailed: over,
      });
      dispatcher.submit(call, false);
    });
  }

  /** It is over, whoever ended it. `cause`: what later commands are told, when its end was nobody's wish. */
  end(cause?: Error): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#cause = cause;
    this.pipeline.transactions.delete(this.id);
    const { dispatcher } = this.database.pool;
    if (this.database.lockHolder === this) dispatcher.unlock(this.database);
    dispatcher.uncount(this.database);
  }

  #command(op: number, name: string, payload: Uint8Array, options: CallOptions): Promise<CallResult> {
    if (!this.#isOpen) return Promise.reject(this.#cause ?? new Failure("TRANSACTION_NOT_OPEN", { command: name }));
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.database.ownInput(op),
        flags: (options.columns ? CALL_COLUMNS : 0) | (op === OP_COMMIT ? this.database.saltFlag : 0),
        scope: options.scope,
        target: this.id,
        resultBytesMax: options.resultBytesMax,
        payload,
        deadlineAtMs: options.deadlineAtMs,
        deadlineSource: options.deadlineSource,
        cancel: options.cancel,
        pinned: this.pipeline,
        onDone: (done, flags, walFrames, body) => {
          this.commands.delete(done);
          const result = this.database.resultOf(flags, walFrames, body);
          if (!(flags & DONE_OPEN)) this.end();
          resolve(result);
        },
        onFailed: (failed, error, flags) => {
          this.commands.delete(failed);
          if (!(flags & DONE_OPEN)) this.end();
          reject(error);
        },
      });
      this.commands.add(call);
      this.database.pool.dispatcher.submit(call, false);
    });
  }
}
