/** Watches executors while they work: deadlines, stalls, and statements that no interrupt reaches. */
import type { Call } from "./call.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { ExecutorLimits } from "./executor.ts";
import type { ExecutorLog } from "./options.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import type { PoolQuery } from "./pool-query.ts";

/** After this many times the stall's limit a statement has to let others have the processor first. */
const BACKGROUND_FACTOR = 8;

/** A look that comes this late says that the server itself was busy: time that says nothing about executors. */
const LATE_LOOK_MS = 15;

export class Overseer {
  readonly #limits: ExecutorLimits;
  readonly #log: ExecutorLog;
  readonly #dispatcher: Dispatcher;
  #lastLookMs = 0;

  constructor(limits: ExecutorLimits, log: ExecutorLog, dispatcher: Dispatcher) {
    this.#limits = limits;
    this.#log = log;
    this.#dispatcher = dispatcher;
  }

  /** Looks begin again after a pause. */
  begin(nowMs: number): void {
    this.#lastLookMs = nowMs;
  }

  /** Looks at all executors; true when one of them has something to do. */
  watch(executors: Iterable<Pipeline>, nowMs: number): boolean {
    const sinceMs = nowMs - this.#lastLookMs;
    const blindMs = sinceMs > LATE_LOOK_MS ? sinceMs : 0;
    this.#lastLookMs = nowMs;
    let busyCount = 0;
    for (const pipeline of executors) {
      if (pipeline.frontSinceMs !== 0) pipeline.frontSinceMs += blindMs;
      if (this.#watchOne(pipeline, nowMs)) busyCount++;
    }
    if (busyCount > 1) for (const pipeline of executors) this.#letOthersFirst(pipeline, nowMs);
    return busyCount > 0;
  }

  #watchOne(pipeline: Pipeline, nowMs: number): boolean {
    pipeline.avoided = false;
    if (pipeline.isIdle) return false;
    pipeline.waiting.remove((call) => this.#dispatcher.isOver(call, nowMs));
    if (pipeline.state !== "ready") return true;
    for (const { openedAtMs } of pipeline.transactions.values())
      if (nowMs - openedAtMs > this.#limits.executorStallMs) pipeline.avoided = true;
    for (const query of pipeline.queries.values()) this.#watchQuery(pipeline, query, nowMs);
    pipeline.collect();
    const isLate = this.#endLateCalls(pipeline, nowMs);
    if (pipeline.count > 0) {
      if (pipeline.frontSinceMs === 0) pipeline.frontSinceMs = nowMs;
      const isStalled = nowMs - pipeline.frontSinceMs > this.#limits.executorStallMs && pipeline.isFrontUnfinished;
      if (isLate || isStalled) this.#stall(pipeline, nowMs);
    }
    return true;
  }

  #letOthersFirst(pipeline: Pipeline, nowMs: number): void {
    // When nobody takes the others' calls, the executor that is about to should start fast.
    const patience = this.#dispatcher.hasUnplaced ? 1 : BACKGROUND_FACTOR;
    if (pipeline.stalled && nowMs - pipeline.frontSinceMs > patience * this.#limits.executorStallMs)
      pipeline.goToBackground();
  }

  /** Stops calls whose time is over; true when one of them has not even begun. */
  #endLateCalls(pipeline: Pipeline, nowMs: number): boolean {
    let isLate = false;
    for (const call of pipeline.sentCalls()) {
      if (call.stopCause === undefined && call.input.deadlineAtMs <= nowMs) {
        if (pipeline.hasBegun(call)) this.#dispatcher.stop(call, "deadline");
        else isLate = true;
      }
      const isBeyondGrace = call.stopCause !== undefined && nowMs - call.stoppedAtMs > this.#limits.executorGraceMs;
      if (isBeyondGrace && pipeline.isRunning(call.id)) this.#kill(pipeline, call.input.database);
    }
    return isLate;
  }

  #watchQuery(pipeline: Pipeline, query: PoolQuery, nowMs: number): void {
    const { database, deadlineAtMs, id, openedAtMs } = query.input;
    if (nowMs - openedAtMs > this.#limits.executorStallMs) pipeline.avoided = true;
    if (query.closedAtMs === undefined) {
      if (deadlineAtMs <= nowMs) query.expire();
      else query.watchExecution(pipeline.isRunning(id), nowMs);
      return;
    }
    pipeline.interrupt(id);
    const isBeyondGrace = nowMs - query.closedAtMs > this.#limits.executorGraceMs;
    if (isBeyondGrace && pipeline.isRunning(id)) this.#kill(pipeline, database);
  }

  #kill(pipeline: Pipeline, database: PoolDatabase): void {
    if (pipeline.wasKilled) return;
    this.#log("warn", "an executor is killed: its statement cannot be interrupted", {
      slot: pipeline.slot,
      database: database.file.id,
      graceMs: this.#limits.executorGraceMs,
    });
    pipeline.kill();
  }

  /** Moves what waits behind a long statement to executors that are free. */
  #stall(pipeline: Pipeline, nowMs: number): void {
    pipeline.stalled = true;
    const moved = pipeline.revoke();
    for (const call of moved) this.#dispatcher.unsend(call);
    for (const call of [...moved, ...pipeline.waiting.drain()])
      if (!this.#dispatcher.isOver(call, nowMs)) this.#move(pipeline, call);
  }

  #move(pipeline: Pipeline, call: Call): void {
    // What can run nowhere else waits here, in its order.
    if (call.input.pinned !== undefined && call.stopCause === undefined)
      pipeline.waiting.push(call.input.database, call);
    else this.#dispatcher.requeue(call);
  }
}
