/**
 * The pool of executors, put together: databases and their calls (dispatcher), where they run (placement), executors
 * (executor-set), their long work (overseer) and their deaths (recovery). DESIGN.md says why it is so.
 */
import type { Clock } from "../clock.ts";
import { Call } from "./call.ts";
import { errorOfNote } from "./call-failures.ts";
import { Dispatcher } from "./dispatcher.ts";
import type { DatabaseFile, ExecutorDatabase, ExecutorLimits, ExecutorStats, Executors } from "./executor.ts";
import type { OpenLink } from "./executor-link.ts";
import { processLinks } from "./executor-process.ts";
import { ExecutorSet } from "./executor-set.ts";
import { loadSharedPages } from "./load-native.ts";
import type { ExecutorLog, ExecutorsOptions } from "./options.ts";
import { Overseer } from "./overseer.ts";
import type { Pipeline, PipelineEvents } from "./pipeline.ts";
import { Placement } from "./placement.ts";
import { type DatabasePool, PoolDatabase, type WalState } from "./pool-database.ts";
import { type FailureNote, type Hello, OP_COMMIT, OP_INSPECT, SALT_BYTES } from "./protocol.ts";
import { Recovery, type RecoveryPool } from "./recovery.ts";

/** Starts the executor processes; resolves when the first one takes calls. */
export async function startExecutors(options: ExecutorsOptions): Promise<Executors> {
  const pool = new Pool(options, processLinks(options, loadSharedPages(options.nativePath)));
  try {
    await pool.start();
  } catch (error) {
    await pool.close(0);
    throw error;
  }
  return pool;
}

/** How often the pool looks for calls that take too long, while any call is on its way. */
const TICK_MS = 5;

/** How often the pool tries to look at the WAL of a database whose executor died. */
const INSPECTIONS_MAX = 4;

export class Pool implements Executors, DatabasePool, PipelineEvents, RecoveryPool {
  sqliteVersion = "";
  readonly clock: Clock;
  readonly limits: ExecutorLimits;
  readonly dispatcher: Dispatcher;
  readonly #log: ExecutorLog;
  readonly #executors: ExecutorSet;
  readonly #placement: Placement;
  readonly #overseer: Overseer;
  readonly #recovery: Recovery;
  readonly #databases = new Set<PoolDatabase>();
  #lastNumber = 0;
  #stopTicking: (() => void) | undefined;
  #closing = false;
  #onIdle: (() => void) | undefined;

  constructor(options: ExecutorsOptions, openLink: OpenLink) {
    this.clock = options.clock;
    this.limits = options.limits;
    this.#log = options.log;
    this.#executors = new ExecutorSet({
      limits: options.limits,
      clock: options.clock,
      random: options.random,
      log: options.log,
      openLink,
      events: this,
      onRetired: (pipeline) => this.#leave(pipeline),
      onCountChanged: () => this.#placement.reconsider(this.#databases),
    });
    this.#placement = new Placement(this.#executors);
    this.dispatcher = new Dispatcher({
      clock: options.clock,
      databaseCallsMax: options.limits.databaseCallsMax,
      place: (call) => this.#placement.place(call),
      onBusy: () => {
        if (this.#stopTicking !== undefined) return;
        this.#overseer.begin(this.clock.now());
        this.#stopTicking = this.clock.every(TICK_MS, () => this.#tick());
      },
      onIdle: () => this.#onIdle?.(),
    });
    this.#overseer = new Overseer(options.limits, options.log, this.dispatcher);
    this.#recovery = new Recovery(this);
  }

  start(): Promise<void> {
    return this.#executors.start();
  }

  // Executors

  open(file: DatabaseFile): ExecutorDatabase {
    const database = new PoolDatabase(this, ++this.#lastNumber, file);
    this.#databases.add(database);
    return database;
  }

  stats(): ExecutorStats {
    const living = [...this.#executors.living];
    const sum = (count: (pipeline: Pipeline) => number): number =>
      living.reduce((total, pipeline) => total + count(pipeline), 0);
    return {
      executors: living.length,
      busy: living.filter(({ count }) => count > 0).length,
      waitingCalls: this.dispatcher.waitingCount + sum(({ waiting }) => waiting.size),
      runningCalls: sum(({ count }) => count),
      openConnections: sum(({ openConnections }) => openConnections),
      restarts: this.#executors.restarts,
      residentBytes: sum(({ residentBytes }) => residentBytes),
    };
  }

  tidy(): void {
    if (this.#closing) return;
    const nowMs = this.clock.now();
    this.#executors.tidy(nowMs);
    this.#placement.bringHome(nowMs);
  }

  async close(graceMs: number): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    this.dispatcher.refuse();
    await this.#idle(graceMs);
    await this.#executors.close(this.limits.executorGraceMs);
    this.dispatcher.failAll();
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

  // DatabasePool

  abort(database: PoolDatabase): void {
    const isMine = (call: Call): boolean => call.input.database === database;
    this.dispatcher.abort(database);
    for (const pipeline of this.#executors.living) {
      for (const call of [...pipeline.sentCalls().filter(isMine), ...pipeline.waiting.remove(isMine)])
        this.dispatcher.stop(call, "cancel");
      for (const query of pipeline.queries.values()) if (query.input.database === database) query.close();
      // Nobody waits for this rollback: the transaction's end is what counts, and it is counted.
      for (const transaction of pipeline.transactions.values())
        if (transaction.database === database) void transaction.rollback();
    }
  }

  forget(database: PoolDatabase): void {
    this.#databases.delete(database);
    this.#placement.forget(database);
  }

  // PipelineEvents

  done(call: Call, flags: number, walFrames: number, body: Buffer): void {
    this.dispatcher.unsend(call);
    this.dispatcher.succeed(call, flags, walFrames, body);
  }

  failed(call: Call, note: FailureNote, flags: number): void {
    this.dispatcher.unsend(call);
    if (note.busy && call.input.pinned === undefined) this.dispatcher.retry(call, note);
    else this.dispatcher.fail(call, errorOfNote(note, call, this.clock.now()), flags);
  }

  revoked(call: Call): void {
    this.dispatcher.unsend(call);
    this.dispatcher.requeue(call);
  }

  turn(pipeline: Pipeline): void {
    if (pipeline.waiting.size > 0) this.dispatcher.pump(pipeline);
  }

  ready(pipeline: Pipeline, hello: Hello): void {
    this.sqliteVersion = hello.sqliteVersion;
    this.dispatcher.pump(pipeline);
    this.dispatcher.placeUnplaced();
    this.#executors.ready(pipeline);
  }

  unfit(_pipeline: Pipeline, message: string): void {
    this.#executors.unfit(message);
  }

  dead(pipeline: Pipeline, how: string): void {
    this.#leave(pipeline);
    this.#executors.dead(pipeline, how);
    this.#recovery.bury(pipeline, how);
  }

  broken(pipeline: Pipeline, error: unknown): void {
    this.#log("error", "an executor broke the protocol and is killed", {
      slot: pipeline.slot,
      error: error instanceof Error ? (error.stack ?? error.message) : `${error}`,
    });
    pipeline.kill();
  }

  // RecoveryPool

  get isClosing(): boolean {
    return this.#closing;
  }

  inspect(database: PoolDatabase, done: (wal: WalState | undefined) => void, tries = 1): void {
    const call = new Call({
      ...database.ownInput(OP_INSPECT),
      onDone: (_call, _flags, frames, body) => done({ salt: body.toString("latin1", 0, SALT_BYTES), frames }),
      onFailed: (_call, error) => {
        if (tries < INSPECTIONS_MAX && !this.#closing) {
          this.inspect(database, done, tries + 1);
          return;
        }
        this.#log("error", "a database could not be inspected after its executor's death", {
          database: database.file.id,
          error: error.message,
        });
        done(undefined);
      },
    });
    this.dispatcher.submit(call, false);
  }

  unseal(database: PoolDatabase): void {
    database.sealed = false;
    this.dispatcher.drainLockQueue(database);
  }

  /** A commit that is in doubt keeps its transaction until that is settled. */
  endTransactions(pipeline: Pipeline, cause: Error): void {
    for (const transaction of [...pipeline.transactions.values()])
      if (![...transaction.commands].some(({ input, settled }) => input.op === OP_COMMIT && !settled))
        transaction.end(cause);
  }

  /** The executor is gone: nothing is open there, and nothing is sent there. */
  #leave(pipeline: Pipeline): void {
    for (const database of this.#databases) {
      database.knownBy.delete(pipeline);
      if (database.home === pipeline) this.#placement.forget(database);
    }
  }

  #tick(): void {
    const nowMs = this.clock.now();
    const isBusy = this.#overseer.watch(this.#executors.living, nowMs);
    if (this.dispatcher.look(nowMs) || isBusy) return;
    this.#stopTicking?.();
    this.#stopTicking = undefined;
  }

  /** Waits until no caller has anything running or waiting; what is left after the grace is ended. */
  #idle(graceMs: number): Promise<void> {
    return new Promise((resolve) => {
      const stopTimer = this.clock.after(graceMs, () => {
        for (const database of this.#databases) this.abort(database);
      });
      this.#onIdle = () => {
        if ([...this.#databases].some(({ callCount }) => callCount > 0)) return;
        this.#onIdle = undefined;
        stopTimer();
        resolve();
      };
      this.#onIdle();
    });
  }
}
