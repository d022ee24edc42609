/** A transaction with its limits: rolled back when it is idle for too long, or open for too long. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { CallOptions, CallResult, ExecutorTransaction } from "../sqlite/executor.ts";
import type { CursorHolder } from "./cursor.ts";
import type { HostedDatabase } from "./database.ts";
import type { DurabilityLevel, EngineAnswer, EngineTransaction, Position } from "./engine.ts";
import type { EngineLog } from "./options.ts";

export interface TransactionContext {
  readonly database: HostedDatabase;
  /** What it keeps in use until its end. */
  readonly hold: CursorHolder;
  readonly transaction: ExecutorTransaction;
  readonly readWrite: boolean;
  readonly snapshot: Position;
  readonly idleMs: number;
  readonly totalMs: number;
  readonly clock: Clock;
  readonly log: EngineLog;
  /** Called once, when the transaction is over and uses nothing any more. */
  readonly onEnd: (transaction: HeldTransaction) => void;
}

const noBytes = new Uint8Array(0);

export class HeldTransaction implements EngineTransaction {
  readonly snapshot: Position;
  readonly expireTimeMs: number;
  readonly #context: TransactionContext;
  readonly #totalAtMs: number;
  #idleAtMs: number;
  #cancelTimer: () => void = () => undefined;
  /** The command that runs now. */
  #running: Promise<unknown> | undefined;
  #isCommitting = false;
  #isOver = false;
  /** Why the engine has ended it. */
  #expired: Failure | undefined;
  #listener: ((failure: Error) => void) | undefined;

  constructor(context: TransactionContext) {
    const { clock } = context;
    this.#context = context;
    this.snapshot = context.snapshot;
    this.expireTimeMs = clock.wallMs() + context.totalMs;
    this.#totalAtMs = clock.now() + context.totalMs;
    this.#idleAtMs = clock.now() + context.idleMs;
    this.#arm();
  }

  get isOpen(): boolean {
    return !this.#isOver && this.#expired === undefined && this.#context.transaction.isOpen;
  }

  execute(statement: Uint8Array, options: CallOptions): Promise<CallResult> {
    return this.#command("execute", options, (bounded) => this.#context.transaction.execute(statement, bounded));
  }

  savepoint(id: string, options: CallOptions): Promise<void> {
    return this.#command("savepoint", options, (bounded) => this.#context.transaction.savepoint(id, bounded));
  }

  rollbackTo(id: string, options: CallOptions): Promise<void> {
    return this.#command("rollback_to", options, (bounded) => this.#context.transaction.rollbackTo(id, bounded));
  }

  async commit(durability: DurabilityLevel, options: CallOptions): Promise<EngineAnswer> {
    const { database, transaction } = this.#context;
    database.requireDurability(durability);
    let result: CallResult;
    this.#isCommitting = true;
    try {
      result = await this.#command("commit", options, (bounded) => transaction.commit(bounded));
    } catch (error) {
      // A deferred constraint leaves it open, everything else does not.
      this.#isCommitting = false;
      if (!transaction.isOpen) this.#end();
      throw this.#context.readWrite ? database.writeFailed(error) : error;
    }
    // The flush is the caller's to wait for, not the next writer's.
    database.enter();
    this.#end();
    try {
      return await database.acknowledge(result, durability, options);
    } finally {
      database.leave();
    }
  }

  async rollback(): Promise<EngineAnswer> {
    if (this.#expired !== undefined) throw this.#expired;
    const { database, transaction } = this.#context;
    if (!this.#isOver) {
      // The caller may be gone in the middle of a command: that one is over first.
      await this.#settled();
      try {
        if (transaction.isOpen) await transaction.rollback();
      } finally {
        this.#end();
      }
    }
    return { body: noBytes, position: database.position, durablePosition: database.durablePosition };
  }

  onExpired(listener: (failure: Error) => void): void {
    this.#listener = listener;
    if (this.#expired !== undefined && this.#isOver) listener(this.#expired);
  }

  /** Rolls back, after the command that runs; later commands fail with `failure`. A commit goes on. Never rejects. */
  async expire(failure: Failure): Promise<void> {
    if (this.#isOver || this.#isCommitting || this.#expired !== undefined) return;
    this.#expired = failure;
    this.#cancelTimer();
    await this.#settled();
    const { transaction, log, database } = this.#context;
    try {
      if (transaction.isOpen) await transaction.rollback();
    } catch (error) {
      // It is over with its executor then.
      log("warn", "a transaction could not be rolled back in order", { database: database.id, error });
    }
    this.#end();
    this.#listener?.(failure);
  }

  async #command<T>(name: string, options: CallOptions, run: (options: CallOptions) => Promise<T>): Promise<T> {
    if (this.#expired !== undefined) throw this.#expired;
    // One that its executor has lost says so itself.
    if (this.#isOver) throw new Failure("TRANSACTION_NOT_OPEN", { command: name });
    if (this.#running !== undefined) throw new Error("commands of a transaction run one at a time");
    const isClamped = options.deadlineAtMs > this.#totalAtMs;
    try {
      this.#running = run(
        isClamped ? { ...options, deadlineAtMs: this.#totalAtMs, deadlineSource: "server" } : options,
      );
      return (await this.#running) as T;
    } catch (error) {
      const isTimeout = error instanceof Failure && error.reason === "STATEMENT_TIMEOUT";
      if (!isClamped || !isTimeout) throw this.#context.database.causeOf(error, options);
      const expired = this.#totalFailure();
      // Not awaited: it waits for this command.
      this.#isCommitting = false;
      void this.expire(expired);
      throw expired;
    } finally {
      this.#running = undefined;
      this.#idleAtMs = this.#context.clock.now() + this.#context.idleMs;
      // A commit ends it when its answer has been taken into the position.
      if (!this.#isCommitting && !this.#context.transaction.isOpen) this.#end();
    }
  }

  async #settled(): Promise<void> {
    while (this.#running !== undefined) await Promise.allSettled([this.#running]);
  }

  /** One timer at a time; commands move the time without touching it. */
  #arm(): void {
    const { clock } = this.#context;
    const at = Math.min(this.#idleAtMs, this.#totalAtMs);
    this.#cancelTimer = clock.after(Math.max(1, at - clock.now()), () => this.#onTimer());
  }

  #onTimer(): void {
    if (this.#isOver) return;
    const { clock, idleMs } = this.#context;
    const now = clock.now();
    if (this.#running !== undefined) this.#idleAtMs = now + idleMs;
    if (this.#isCommitting) this.#cancelTimer = clock.after(idleMs, () => this.#onTimer());
    else if (now >= this.#totalAtMs) void this.expire(this.#totalFailure());
    else if (now >= this.#idleAtMs) void this.expire(expiredFailure("idle", idleMs));
    else this.#arm();
  }

  #totalFailure(): Failure {
    return expiredFailure("total", this.#context.totalMs);
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#cancelTimer();
    const { database, hold, readWrite, onEnd } = this.#context;
    if (readWrite) database.endWrite();
    hold.leave();
    onEnd(this);
  }
}

function expiredFailure(limit: "idle" | "total", limitMs: number): Failure {
  return new Failure("TRANSACTION_EXPIRED", { limit: `${limit}_timeout`, limitMs: String(limitMs) });
}
