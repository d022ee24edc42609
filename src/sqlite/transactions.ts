/** Transactions that stay open between calls, each on a connection of its own. */
import type { Connection, OpenDatabase } from "./connections.ts";
import type { Execution } from "./execution.ts";
import { NotedFailure } from "./failure-notes.ts";
import { RUN_READ_ONLY, RUN_TRANSACTION_PRAGMAS } from "./native.ts";
import { ANSWER_DONE, CALL_WRITES, DONE_OPEN } from "./protocol.ts";

interface Transaction {
  readonly number: number;
  readonly database: OpenDatabase;
  readonly connection: Connection;
}

export class Transactions {
  readonly #execution: Execution;
  /** By the id of the call that began them. */
  readonly #open = new Map<number, Transaction>();

  constructor(execution: Execution) {
    this.#execution = execution;
  }

  begin(): void {
    const execution = this.#execution;
    const { call, connections } = execution;
    const database = execution.database();
    const writes = (call.flags & CALL_WRITES) !== 0;
    const connection = connections.take(database, !writes, execution.nowMs);
    try {
      execution.control(connection, writes ? "beginImmediate" : "begin");
      // A snapshot is taken by the first read.
      if (!writes) execution.touch(connection);
    } catch (error) {
      execution.rollBack(connection);
      connections.giveBack(database, connection);
      throw error;
    }
    this.#open.set(call.id, { number: call.number, database, connection });
    execution.answers.finish(call.id, ANSWER_DONE, DONE_OPEN, 0, undefined);
  }

  execute(): void {
    const { answers, call } = this.#execution;
    const transaction = this.#get();
    const flags = RUN_TRANSACTION_PRAGMAS | (transaction.connection.readOnly ? RUN_READ_ONLY : 0);
    answers.take(this.#execution.runAt(answers.at, transaction.connection, flags, call.start, call.end));
    this.#done(transaction);
  }

  savepoint(what: "savepoint" | "rollbackTo"): void {
    const { call, native } = this.#execution;
    const transaction = this.#get();
    if (!native.savepoint(transaction.connection.native, what, call.text())) throw this.#execution.failure();
    this.#done(transaction);
  }

  commit(): void {
    const transaction = this.#get();
    this.#execution.control(transaction.connection, "commit");
    this.#done(transaction);
  }

  /** Also of one that is over. */
  rollback(): void {
    const { answers, call } = this.#execution;
    const transaction = this.#open.get(call.target);
    if (transaction !== undefined) this.#end(call.target, transaction);
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  /** After a call failed: true when it belongs to a transaction that goes on. */
  outlivesFailure(): boolean {
    const { call, native } = this.#execution;
    const transaction = this.#open.get(call.target);
    if (transaction === undefined) return false;
    if (native.inTransaction(transaction.connection.native)) return true;
    this.#end(call.target, transaction);
    return false;
  }

  /** Ends those of a database, or all. */
  close(number?: number): void {
    for (const [id, transaction] of [...this.#open])
      if (number === undefined || transaction.number === number) this.#end(id, transaction);
  }

  #get(): Transaction {
    const transaction = this.#open.get(this.#execution.call.target);
    if (transaction === undefined)
      throw new NotedFailure({ reason: "TRANSACTION_NOT_OPEN", facts: { command: "this command" } });
    transaction.database.lastUsedMs = this.#execution.nowMs;
    return transaction;
  }

  #done(transaction: Transaction): void {
    const { answers, call, native } = this.#execution;
    const { connection, database } = transaction;
    if (native.inTransaction(connection.native)) {
      answers.finish(call.id, ANSWER_DONE, DONE_OPEN, 0, undefined);
      return;
    }
    this.#execution.done(database, connection, 0);
    this.#end(call.target, transaction);
  }

  #end(id: number, transaction: Transaction): void {
    const { connections, native } = this.#execution;
    const { connection, database } = transaction;
    this.#open.delete(id);
    this.#execution.rollBack(connection);
    native.resetPragmas(connection.native);
    connections.giveBack(database, connection);
  }
}
