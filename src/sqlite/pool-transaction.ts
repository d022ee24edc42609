import type { Call } from "./call.ts";
import type { CallOptions, CallResult, ExecutorTransaction } from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { Pool } from "./pool.ts";
import type { PoolDatabase } from "./pool-database.ts";
import { OP_COMMIT, OP_ROLLBACK_TO, OP_SAVEPOINT, OP_TRANSACTION_EXECUTE } from "./protocol.ts";

/** A transaction that lives in one executor. */
export class PoolTransaction implements ExecutorTransaction {
  readonly id: number;
  readonly database: PoolDatabase;
  readonly pipeline: Pipeline;
  readonly readWrite: boolean;
  readonly openedAtMs: number;
  isOpen = true;
  /** Commands sent and not answered. */
  readonly commands = new Set<Call>();
  readonly #pool: Pool;

  constructor(
    pool: Pool,
    id: number,
    database: PoolDatabase,
    pipeline: Pipeline,
    readWrite: boolean,
    openedAtMs: number,
  ) {
    this.#pool = pool;
    this.id = id;
    this.database = database;
    this.pipeline = pipeline;
    this.readWrite = readWrite;
    this.openedAtMs = openedAtMs;
  }

  execute(statement: Uint8Array, options: CallOptions): Promise<CallResult> {
    return this.#pool.command(this, OP_TRANSACTION_EXECUTE, statement, options, "execute");
  }

  async savepoint(id: string, options: CallOptions): Promise<void> {
    await this.#pool.command(this, OP_SAVEPOINT, Buffer.from(id), options, "savepoint");
  }

  async rollbackTo(id: string, options: CallOptions): Promise<void> {
    await this.#pool.command(this, OP_ROLLBACK_TO, Buffer.from(id), options, "rollback_to");
  }

  commit(options: CallOptions): Promise<CallResult> {
    return this.#pool.command(this, OP_COMMIT, new Uint8Array(0), options, "commit");
  }

  rollback(): Promise<void> {
    return this.#pool.rollback(this);
  }
}
