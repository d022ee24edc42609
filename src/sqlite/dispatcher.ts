/** The way of calls: admitted, queued for the write lock or an executor, sent, settled; stopped or tried again where needed. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { Call, CallInput } from "./call.ts";
import { busy, errorOfNote, inDoubt, lost, neverSent, timeout } from "./call-failures.ts";
import { CallCancelled } from "./executor.ts";
import { FairQueue } from "./fair-queue.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import { CALL_RECORD, CALL_WRITES, DONE_OPEN, type FailureNote, OP_BEGIN, OP_EXECUTE } from "./protocol.ts";

export interface DispatcherOptions {
  readonly clock: Clock;
  readonly databaseCallsMax: number;
  readonly place: (call: Call) => Pipeline | undefined;
  /** A call is on its way. */
  readonly onBusy: () => void;
  /** A database has nothing running or waiting any more. */
  readonly onIdle: () => void;
}

export class Dispatcher {
  readonly #clock: Clock;
  readonly #databaseCallsMax: number;
  readonly #place: (call: Call) => Pipeline | undefined;
  readonly #onBusy: () => void;
  readonly #onIdle: () => void;
  #lastOrder = 0;
  /** Calls that no executor could take. */
  readonly #unplaced = new FairQueue<PoolDatabase, Call>();
  /** Calls that found their database busy, for the next look. */
  readonly #retries: Call[] = [];
  /** Databases with writes that wait for the lock. */
  readonly #locked = new Set<PoolDatabase>();
  #closing = false;

  constructor(options: DispatcherOptions) {
    this.#clock = options.clock;
    this.#databaseCallsMax = options.databaseCallsMax;
    this.#place = options.place;
    this.#onBusy = options.onBusy;
    this.#onIdle = options.onIdle;
  }

  /** Calls that wait outside of executors' queues. */
  get waitingCount(): number {
    let count = this.#unplaced.size + this.#retries.length;
    for (const database of this.#locked) count += database.lockQueue.length;
    return count;
  }

  /** True while calls wait for which there is no executor. */
  get hasUnplaced(): boolean {
    return this.#unplaced.size > 0;
  }

  /** `counted`: a caller's call, which may be refused for there being too many. */
  submit(call: Call, counted: boolean): void {
    const { input } = call;
    const { database } = input;
    if (counted) {
      const refusal = this.#refusal(database);
      if (refusal !== undefined) {
        call.settled = true;
        input.onFailed(call, refusal, 0);
        return;
      }
      database.callCount++;
    }
    call.counted = counted;
    call.order = ++this.#lastOrder;
    database.lastUsedMs = input.submittedAtMs;
    if (input.cancel !== undefined) {
      if (input.cancel.cancelled) {
        this.fail(call, new CallCancelled(), stillOpen(input));
        return;
      }
      call.uncancel = input.cancel.onCancel(() => this.stop(call, "cancel"));
    }
    if (input.deadlineAtMs <= input.submittedAtMs) {
      this.fail(call, timeout(input), stillOpen(input));
      return;
    }
    this.#onBusy();
    if (this.#mustQueue(call)) this.#queueForLock(call);
    else this.#route(call);
  }

  /** Places a call again that an executor had: it did not begin there, had no effect, or has a record that tells. */
  requeue(call: Call): void {
    if (call.settled) return;
    if (call.stopCause !== undefined) {
      this.fail(call, neverSent(call, this.#clock.now()), stillOpen(call.input));
      return;
    }
    const { database } = call.input;
    if (!database.sealed || !call.takesLock) {
      this.#route(call);
      return;
    }
    // It waits for the lock like others: a holder that waits would wait for itself.
    if (database.lockHolder === call) database.lockHolder = undefined;
    this.#queueForLock(call);
  }

  /** The database was busy: once more when the lock is free, or a little later. */
  retry(call: Call, note: FailureNote): void {
    if (call.settled) return;
    const nowMs = this.#clock.now();
    if (call.stopCause !== undefined || call.input.deadlineAtMs <= nowMs) {
      this.fail(call, call.stopCause === "cancel" ? new CallCancelled() : errorOfNote(note, call, nowMs), 0);
      return;
    }
    const { database } = call.input;
    if (database.lockHolder === call) database.lockHolder = undefined;
    if (call.takesLock && (database.lockHolder !== undefined || database.sealed)) this.#queueForLock(call);
    else this.#retries.push(call);
  }

  /** Sends what waits for this executor, as far as it takes it. */
  pump(pipeline: Pipeline): void {
    while (pipeline.hasRoom) {
      const call = pipeline.waiting.shift();
      if (call === undefined) return;
      if (!call.settled) this.#send(pipeline, call);
    }
  }

  /** The call is not at an executor any more. */
  unsend(call: Call): void {
    if (call.takesLock) call.input.database.writesSent--;
  }

  succeed(call: Call, flags: number, walFrames: number, body: Buffer): void {
    this.#settle(call);
    call.input.onDone(call, flags, walFrames, body);
  }

  fail(call: Call, error: Error, flags: number): void {
    if (call.settled) return;
    this.#settle(call);
    call.input.onFailed(call, call.doubt === undefined ? error : inDoubt(error, call.doubt), flags);
  }

  /** Ends a call: at once when it was not sent, else as soon as its executor can. */
  stop(call: Call, cause: "cancel" | "deadline"): void {
    if (call.settled || call.stopCause !== undefined) return;
    call.stopCause = cause;
    call.stoppedAtMs = this.#clock.now();
    if (call.pipeline !== undefined) call.pipeline.stop(call);
    else this.fail(call, neverSent(call, call.stoppedAtMs), stillOpen(call.input));
  }

  /** True for a waiting call that waits for nothing any more; its time may be over just now. */
  isOver(call: Call, nowMs: number): boolean {
    if (call.input.deadlineAtMs <= nowMs) this.stop(call, "deadline");
    return call.settled;
  }

  /** One of those that count against the database's bound is over. */
  uncount(database: PoolDatabase): void {
    database.callCount--;
    if (database.callCount > 0) return;
    database.onIdle?.();
    database.onIdle = undefined;
    this.#onIdle();
  }

  /** The write lock is free. */
  unlock(database: PoolDatabase): void {
    database.lockHolder = undefined;
    this.drainLockQueue(database);
  }

  drainLockQueue(database: PoolDatabase): void {
    while (database.lockHolder === undefined && !database.sealed) {
      const call = database.lockQueue.shift();
      if (call === undefined) {
        this.#locked.delete(database);
        return;
      }
      if (!call.settled) this.#route(call);
    }
  }

  /** An executor has started. */
  placeUnplaced(): void {
    for (const call of this.#unplaced.drain()) if (!call.settled) this.#route(call);
  }

  /** Looks at everything that waits outside of executors; true when there is anything. */
  look(nowMs: number): boolean {
    const isBusy = this.#unplaced.size > 0 || this.#retries.length > 0 || this.#locked.size > 0;
    for (const database of this.#locked) {
      database.lockQueue = database.lockQueue.filter((call) => !this.isOver(call, nowMs));
      this.drainLockQueue(database);
    }
    for (const call of this.#unplaced.drain()) if (!this.isOver(call, nowMs)) this.#route(call);
    for (const call of this.#retries.splice(0)) if (!this.isOver(call, nowMs)) this.requeue(call);
    return isBusy;
  }

  /** Cancels a database's calls that wait outside of executors. */
  abort(database: PoolDatabase): void {
    const isMine = (call: Call): boolean => call.input.database === database;
    const calls = [...database.lockQueue, ...this.#unplaced.remove(isMine), ...this.#retries.filter(isMine)];
    for (const call of calls) this.stop(call, "cancel");
  }

  /** Callers get SHUTTING_DOWN from now on. */
  refuse(): void {
    this.#closing = true;
  }

  /** There are no executors any more. */
  failAll(): void {
    const calls = [...this.#unplaced.drain(), ...this.#retries.splice(0)];
    for (const database of this.#locked) calls.push(...database.lockQueue.splice(0));
    for (const call of calls) this.fail(call, new Failure("SHUTTING_DOWN"), 0);
  }

  #refusal(database: PoolDatabase): Failure | undefined {
    if (this.#closing) return new Failure("SHUTTING_DOWN");
    if (database.closing) return busy(database, "it is being closed", 0);
    if (database.callCount < this.#databaseCallsMax) return undefined;
    return busy(database, `${this.#databaseCallsMax} calls run or wait`, 0);
  }

  /** True for writes that cannot have the lock now. Execute may be a read, so it tries, unless it must not. */
  #mustQueue(call: Call): boolean {
    const { database, op, flags } = call.input;
    if (!call.takesLock) return false;
    if (database.sealed) return true;
    if (database.lockHolder === undefined) return database.lockQueue.length > 0;
    return op !== OP_EXECUTE || (flags & CALL_RECORD) !== 0;
  }

  #queueForLock(call: Call): void {
    const { database } = call.input;
    const { lockQueue } = database;
    let place = lockQueue.length;
    // One that had tried first is older than those that queued at once.
    while (place > 0 && (lockQueue[place - 1] as Call).order > call.order) place--;
    lockQueue.splice(place, 0, call);
    this.#locked.add(database);
  }

  /** Sends a call to an executor, or lets it wait for one. */
  #route(call: Call): void {
    const { input } = call;
    if (input.op === OP_BEGIN && input.flags & CALL_WRITES) input.database.lockHolder = call;
    if (input.pinned?.state === "dead") {
      this.fail(call, lost("its executor has ended"), 0);
      return;
    }
    const pipeline = input.pinned ?? this.#place(call);
    if (pipeline === undefined) this.#unplaced.push(input.database, call);
    else if (pipeline.hasRoom && pipeline.waiting.size === 0) this.#send(pipeline, call);
    else pipeline.waiting.push(input.database, call);
  }

  #send(pipeline: Pipeline, call: Call): void {
    if (call.takesLock) call.input.database.writesSent++;
    pipeline.send(call, this.#clock.now());
  }

  #settle(call: Call): void {
    call.settled = true;
    call.uncancel?.();
    call.uncancel = undefined;
    if (call.counted) this.uncount(call.input.database);
  }
}

/** A command that never ran leaves its transaction as it was. */
function stillOpen(input: CallInput): number {
  return input.target === 0 ? 0 : DONE_OPEN;
}
