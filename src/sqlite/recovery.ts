/**
 * What becomes of the calls of an executor that died. Each is told the truth: it runs again when it had no effect, fails as
 * lost when it ran and nothing was committed, and is unknown only when neither the WAL nor a request id can tell.
 */

import { Failure } from "../failure/failure.ts";
import type { Call } from "./call.ts";
import { lost, lostRunning } from "./call-failures.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase, WalState } from "./pool-database.ts";
import { CALL_RECORD, DONE_COMMITTED, DONE_SALT, OP_CLOSE, OP_COMMIT, OP_ROLLBACK } from "./protocol.ts";

/** Deaths that a call may see before it is given up. */
const DEATHS_MAX = 3;

/** What recovery needs of the pool. */
export interface RecoveryPool {
  readonly dispatcher: Dispatcher;
  /** Opens the database in another executor, which recovers its WAL; undefined when that cannot be done. */
  inspect(database: PoolDatabase, done: (wal: WalState | undefined) => void): void;
  /** Writes may start again. */
  unseal(database: PoolDatabase): void;
  endTransactions(pipeline: Pipeline, cause: Error): void;
  /** Nothing runs again: the pool is being closed. */
  readonly isClosing: boolean;
}

interface Doubt {
  readonly call: Call;
  readonly wasRunning: boolean;
}

export class Recovery {
  readonly #pool: RecoveryPool;

  constructor(pool: RecoveryPool) {
    this.#pool = pool;
  }

  /** Decides about everything that a dead executor had. */
  bury(pipeline: Pipeline, how: string): void {
    const pool = this.#pool;
    const { unbegun, finished, running } = pipeline.remains();
    const waiting = pipeline.waiting.drain();
    for (const call of [...unbegun, ...finished, ...(running === undefined ? [] : [running])]) {
      pool.dispatcher.unsend(call);
      call.deaths++;
    }

    const doubts = new Map<PoolDatabase, Doubt[]>();
    const doubt = (call: Call, wasRunning: boolean): void => {
      const { database } = call.input;
      const others = doubts.get(database);
      if (others === undefined) doubts.set(database, [{ call, wasRunning }]);
      else others.push({ call, wasRunning });
    };
    for (const call of finished) if (call.mayCommit) doubt(call, false);
    if (running !== undefined) {
      if (running.mayCommit) doubt(running, true);
      else pool.dispatcher.fail(running, lostRunning(running, pipeline.wasKilled, how), 0);
    }
    // Before anything else runs: no new write may be taken for one of these.
    for (const [database, calls] of doubts) this.#inquire(database, calls, pipeline.wasKilled, how);

    for (const query of [...pipeline.queries.values()]) {
      pipeline.queries.delete(query.input.id);
      query.lose(lost(how));
    }
    pool.endTransactions(pipeline, lost(how));
    for (const call of finished) if (!call.mayCommit) this.#runAgain(call, how);
    for (const call of [...unbegun, ...waiting]) this.#runAgain(call, how);
  }

  /** For a call without effect. */
  #runAgain(call: Call, how: string): void {
    if (call.settled) return;
    const { op, pinned } = call.input;
    const isOver = op === OP_CLOSE || op === OP_ROLLBACK;
    if (isOver || pinned !== undefined || call.deaths > DEATHS_MAX || this.#pool.isClosing)
      this.#pool.dispatcher.fail(call, lost(how), 0);
    else this.#pool.dispatcher.requeue(call);
  }

  /** Finds out whether anything was committed, and settles the calls that hang on it. */
  #inquire(database: PoolDatabase, doubts: readonly Doubt[], wasKilled: boolean, how: string): void {
    const before = database.wal;
    database.sealed = true;
    this.#pool.inspect(database, (after) => {
      if (after !== undefined) database.wal = after;
      const isUnchanged =
        after !== undefined &&
        before.salt !== undefined &&
        after.salt === before.salt &&
        after.frames === before.frames;
      const alone = after !== undefined && before.salt !== undefined && doubts.length === 1;
      for (const { call, wasRunning } of doubts) {
        if (call.settled) continue;
        if (!isUnchanged) this.#changed(call, alone, how);
        else if (call.input.op === OP_COMMIT) this.#pool.dispatcher.fail(call, lost(how), 0);
        else if (wasRunning) this.#pool.dispatcher.fail(call, lostRunning(call, wasKilled, how), 0);
        // It had come to its end without a commit.
        else this.#runAgain(call, how);
      }
      this.#pool.unseal(database);
    });
  }

  /** Something was committed, or nobody can tell. */
  #changed(call: Call, alone: boolean, how: string): void {
    const { input } = call;
    if (
      input.flags & CALL_RECORD &&
      call.deaths <= DEATHS_MAX &&
      call.stopCause === undefined &&
      !this.#pool.isClosing
    ) {
      // Its record in the database tells whether it was this one.
      call.doubt = how;
      this.#pool.dispatcher.requeue(call);
    } else if (input.op === OP_COMMIT && alone) {
      // Only the holder of the lock can have committed.
      const { salt = "", frames } = input.database.wal;
      this.#pool.dispatcher.succeed(call, DONE_COMMITTED | DONE_SALT, frames, Buffer.from(salt, "latin1"));
    } else this.#pool.dispatcher.fail(call, new Failure("OUTCOME_UNKNOWN", { signal: how }), 0);
  }
}
