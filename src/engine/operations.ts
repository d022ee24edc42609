/** Operations: work that outlives the call that began it. One registry for all kinds, kept in the catalog. */
import type { Clock } from "../clock.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { type Reason, reasons } from "../failure/reasons.ts";
import { CallCancelled, type Cancel, type RequestRecord } from "../sqlite/executor.ts";
import type { PageKey } from "./catalog.ts";
import type { ListOperationsInput, OperationInfo, OperationKindName, OperationWait } from "./engine.ts";
import { stageFailure } from "./failures.ts";
import { type FieldRule, type FilterLimits, type Grammar, globOf, readTerms, type Term } from "./filter-language.ts";
import { kindCodes, type OperationStore, type StoredFailure, type StoredOperation } from "./operation-store.ts";
import type { EngineLog } from "./options.ts";
import { effectivePageSize, makePageToken, readPageToken } from "./page-token.ts";

/** Bounds of operations; each has a setting of the same name. */
export interface OperationLimits extends FilterLimits {
  /** Operations that run or wait for their turn. */
  readonly operationRunningCountMax: number;
  /** Operations remembered. */
  readonly operationCountMax: number;
  /** How long an operation that has ended is remembered. */
  readonly operationRecordMs: number;
  /** Calls of WatchOperation at one time. */
  readonly operationWatchCountMax: number;
}

/** A piece of work to begin. */
export interface OperationTask {
  readonly database: string;
  readonly kind: OperationKindName;
  /** A task of the same database, kind and key as one that runs is that one. */
  readonly key: string;
  /** Ids of the databases that nothing else may work on meanwhile. */
  readonly locks: readonly string[];
  /** Nobody has asked for it: it is stopped for what a caller asks for, which begins when it is over. */
  readonly isBackground?: boolean;
  /** A repeat with the same one gets this operation, also when it has ended. */
  readonly request?: RequestRecord | undefined;
  /** JSON that the next start needs to go on with it; see `recover`. */
  readonly input?: Readonly<Record<string, unknown>> | undefined;
  /** Does it. What it throws is the operation's error; anything but a Failure is logged, and INTERNAL. */
  run(progress: Progress): Promise<void>;
}

/** What a running operation tells and is told. */
export interface Progress {
  readonly operation: string;
  /** Fires when the operation is to stop. For calls of the object store, and of executors. */
  readonly signal: AbortSignal;
  readonly cancel: Cancel;
  /** Bytes to do in all, when that is known. */
  total(bytes: number): void;
  /** More bytes are done. */
  add(bytes: number): void;
  /** Throws when the operation is to stop. */
  check(): void;
  /**
   * Throws as `check` does; after it nothing cancels the operation any more: its last step begins. Only the end of the server
   * still fires `signal`; a step that cannot go on then throws SHUTTING_DOWN, and the next server is asked to end it.
   */
  commit(): void;
}

interface Live {
  stored: StoredOperation;
  readonly task: OperationTask;
  readonly controller: AbortController;
  readonly end: PromiseWithResolvers<void>;
  readonly changed: Set<() => void>;
  bytesDone: number;
  bytesTotal: number;
  isCommitted: boolean;
  isBackground: boolean;
  /** Why it was asked to stop. */
  stop: Failure | undefined;
}

export interface OperationsContext {
  readonly store: OperationStore;
  readonly clock: Clock;
  readonly limits: OperationLimits;
  readonly log: EngineLog;
  readonly random: (byteCount: number) => Uint8Array;
  readonly pageSecret: Buffer;
}

const retryAfterMs = 1_000;
const pruneMs = 60_000;

/** Digits of the time at the start of an id, and random bytes behind it. */
const timeDigits = 12;
const idRandomBytes = 6;

export class Operations {
  readonly #context: OperationsContext;
  readonly #live = new Map<string, Live>();
  /** Database id to the operation that alone may work on it. */
  readonly #locks = new Map<string, Live>();
  #watchers = 0;
  #lastIdMs = 0;
  #lastPruneMs = 0;
  #hasEnded = true;
  #isClosed = false;

  constructor(context: OperationsContext) {
    this.#context = context;
  }

  /** Operations under way. */
  get running(): number {
    return this.#live.size;
  }

  /** The operation that alone works on a database now. */
  lockedBy(database: string): string | undefined {
    return this.#locks.get(database)?.stored.id;
  }

  /**
   * The operation that a call with this request id began on the database, running or ended. FIELD_INVALID when that call
   * was another one. To be asked before anything else of a repeated call is looked at.
   */
  repeated(database: string, request: RequestRecord | undefined): OperationInfo | undefined {
    if (request === undefined) return undefined;
    const found = this.#context.store.ofRequest(database, request.id);
    if (found === undefined) return undefined;
    if (found.request?.method !== request.method || found.request.hash !== request.hash) {
      throw fieldInvalid("request_id", "was used for another request");
    }
    return this.#info(found.id, found);
  }

  /**
   * Begins a task, or joins the same one. Throws OPERATION_CONFLICT when another operation has one of its locks that will
   * not give way, RATE_LIMITED when too many run, SHUTTING_DOWN.
   */
  start(task: OperationTask): OperationInfo {
    if (this.#isClosed) throw new Failure("SHUTTING_DOWN");
    const same = this.#same(task);
    if (same !== undefined) {
      same.isBackground &&= task.isBackground === true;
      return infoOf(same);
    }
    this.#checkLocks(task);
    this.#checkRoom();
    return infoOf(this.#begin(task, this.#newStored(task)));
  }

  /** An operation that has nothing to do: kept like one that has succeeded. */
  done(task: Pick<OperationTask, "database" | "kind">): OperationInfo {
    const stored = this.#newStored({ ...task, request: undefined, input: undefined });
    const ended = { ...stored, endTimeMs: stored.createTimeMs };
    this.#context.store.put(ended);
    this.#hasEnded = true;
    return storedInfo(ended);
  }

  /** The operation at its end, or as it is when the wait is over. */
  async wait(id: string, { waitMs, cancel }: OperationWait): Promise<OperationInfo> {
    const live = this.#live.get(id);
    if (live === undefined || waitMs <= 0) return this.get(id);
    if (cancel?.cancelled) throw new CallCancelled();
    const over = Promise.withResolvers<void>();
    const cancelTimer = this.#context.clock.after(waitMs, over.resolve);
    const forgetCancel = cancel?.onCancel(() => over.reject(new CallCancelled()));
    try {
      await Promise.race([live.end.promise, over.promise]);
    } finally {
      cancelTimer();
      forgetCancel?.();
    }
    return this.get(id);
  }

  /** OPERATION_NOT_FOUND for one that never was, or that is forgotten. */
  get(id: string): OperationInfo {
    return this.#info(id, this.#context.store.get(id));
  }

  /** Newest first; see persisto.v1.OperationService. */
  list(input: ListOperationsInput): {
    readonly operations: readonly OperationInfo[];
    readonly nextPageToken: string;
  } {
    const { store, limits, pageSecret } = this.#context;
    const pageSize = effectivePageSize(input.pageSize);
    const condition = conditionOf(readTerms(input.filter, limits, grammar));
    let after: PageKey | undefined;
    if (input.pageToken !== "") after = readPageToken(pageSecret, input.filter, listOrder, input.pageToken);
    const { operations, key } = store.page(condition, after, pageSize);
    return {
      operations: operations.map((stored) => this.#info(stored.id, stored)),
      nextPageToken: key === undefined ? "" : makePageToken(pageSecret, input.filter, listOrder, key),
    };
  }

  /** See `Engine.watchOperation`. */
  async *watch(id: string, cancel: Cancel | undefined): AsyncGenerator<OperationInfo> {
    const live = this.#live.get(id);
    if (live === undefined) {
      yield this.get(id);
      return;
    }
    const { operationWatchCountMax } = this.#context.limits;
    if (this.#watchers >= operationWatchCountMax) {
      throw new Failure(
        "RATE_LIMITED",
        { limit: String(operationWatchCountMax), scope: "WatchOperation" },
        { retryAfterMs },
      );
    }
    this.#watchers++;
    let wake = Promise.withResolvers<void>();
    const change = () => wake.resolve();
    live.changed.add(change);
    const forgetCancel = cancel?.onCancel(change);
    try {
      for (;;) {
        if (cancel?.cancelled) throw new CallCancelled();
        wake = Promise.withResolvers();
        const info = infoOf(live);
        yield info;
        if (info.done) return;
        await wake.promise;
        if (this.#isClosed && live.stored.endTimeMs === undefined) throw new Failure("SHUTTING_DOWN");
      }
    } finally {
      this.#watchers--;
      live.changed.delete(change);
      forgetCancel?.();
    }
  }

  /** Asks an operation to stop; harmless when it has ended, or when its last step has begun. */
  cancel(id: string): void {
    const live = this.#live.get(id);
    if (live !== undefined) this.#stop(live, new Failure("OPERATION_CANCELLED", { operation: id }));
    else this.get(id);
  }

  /** Stops what has a lock on a database, and resolves when it is over: the database is about to go. */
  async evict(database: string): Promise<void> {
    const live = this.#locks.get(database);
    if (live === undefined) return;
    this.#stop(live, new Failure("OPERATION_CANCELLED", { operation: live.stored.id }));
    await live.end.promise;
  }

  /**
   * To be called once, before anything is started: goes on with what an earlier server left unfinished, with the task that
   * `resume` makes of it; without one it has failed with OPERATION_INTERRUPTED.
   */
  recover(resume: (stored: StoredOperation) => OperationTask | undefined): void {
    const { store } = this.#context;
    for (const stored of store.unfinished()) {
      const task = resume(stored);
      if (task?.locks.every((database) => !this.#locks.has(database))) this.#begin(task, stored);
      else store.put(this.#ended(stored, failureOf("OPERATION_INTERRUPTED", { operation: stored.id })));
    }
    this.#prune();
  }

  /** To be called now and then: forgets what is old. */
  tidy(): void {
    if (this.#hasEnded && this.#context.clock.now() - this.#lastPruneMs >= pruneMs) this.#prune();
  }

  /**
   * Stops all operations and waits for them, at most `graceMs`. Those that do not come to their end are left unfinished, for
   * the next server to see to.
   */
  async close(graceMs: number): Promise<void> {
    this.#isClosed = true;
    const running = [...this.#live.values()];
    for (const live of running) {
      this.#stop(live, new Failure("SHUTTING_DOWN"));
      // A last step that cannot come to its end hears of it, and is left to the next server.
      if (live.isCommitted) live.controller.abort(new Failure("SHUTTING_DOWN"));
    }
    for (const live of running) for (const change of live.changed) change();
    if (running.length === 0) return;
    const over = Promise.withResolvers<void>();
    const cancelTimer = this.#context.clock.after(graceMs, over.resolve);
    await Promise.race([Promise.all(running.map((live) => live.end.promise)), over.promise]);
    cancelTimer();
  }

  #same(task: OperationTask): Live | undefined {
    const held = task.locks.map((database) => this.#locks.get(database)).find((live) => live !== undefined);
    const candidates = held === undefined && task.locks.length === 0 ? this.#live.values() : held ? [held] : [];
    for (const live of candidates) {
      const { database, kind, key } = live.task;
      if (database === task.database && kind === task.kind && key === task.key) return live;
    }
    return undefined;
  }

  #checkLocks(task: OperationTask): void {
    for (const database of task.locks) {
      const holder = this.#locks.get(database);
      const givesWay = holder?.isBackground === true && task.isBackground !== true;
      if (holder !== undefined && !givesWay) {
        throw new Failure("OPERATION_CONFLICT", { operation: holder.stored.id }, { retryAfterMs });
      }
    }
  }

  #checkRoom(): void {
    const { operationRunningCountMax } = this.#context.limits;
    if (this.#live.size < operationRunningCountMax) return;
    throw new Failure(
      "RATE_LIMITED",
      { limit: String(operationRunningCountMax), scope: "operations at one time" },
      { retryAfterMs },
    );
  }

  #newStored(task: Pick<OperationTask, "database" | "kind" | "request" | "input">): StoredOperation {
    const { clock, random } = this.#context;
    const nowMs = clock.wallMs();
    // Two of one millisecond, or of a clock that was set back, are still in order.
    this.#lastIdMs = Math.max(Math.floor(nowMs), this.#lastIdMs + 1);
    const id =
      this.#lastIdMs.toString(16).padStart(timeDigits, "0") + Buffer.from(random(idRandomBytes)).toString("hex");
    const { database, kind, request, input } = task;
    return {
      id,
      database,
      kind,
      bytesDone: 0,
      bytesTotal: 0,
      createTimeMs: nowMs,
      endTimeMs: undefined,
      error: undefined,
      request,
      input,
    };
  }

  #begin(task: OperationTask, stored: StoredOperation): Live {
    const live: Live = {
      stored,
      task,
      controller: new AbortController(),
      end: Promise.withResolvers(),
      changed: new Set(),
      bytesDone: 0,
      bytesTotal: stored.bytesTotal,
      isCommitted: false,
      isBackground: task.isBackground === true,
      stop: undefined,
    };
    this.#context.store.put(stored);
    this.#live.set(stored.id, live);
    const before = task.locks.flatMap((database) => this.#locks.get(database) ?? []);
    for (const database of task.locks) this.#locks.set(database, live);
    void this.#run(live, before);
    return live;
  }

  /** When those that give way are over. */
  async #run(live: Live, before: readonly Live[]): Promise<void> {
    const { store, log } = this.#context;
    let error: StoredFailure | undefined;
    try {
      const progress = progressOf(live);
      for (const { stored, end } of before) {
        this.cancel(stored.id);
        await end.promise;
      }
      progress.check();
      await live.task.run(progress);
    } catch (thrown) {
      // What fails after it was told to stop fails for that reason.
      error = this.#storedFailure(live, live.stop ?? thrown);
    }
    this.#live.delete(live.stored.id);
    for (const database of live.task.locks) {
      if (this.#locks.get(database) === live) this.#locks.delete(database);
    }
    const isInterrupted = error?.reason === "SHUTTING_DOWN";
    try {
      if (!isInterrupted) {
        live.stored = this.#ended({ ...live.stored, bytesDone: live.bytesDone, bytesTotal: live.bytesTotal }, error);
        store.put(live.stored);
      }
    } catch (thrown) {
      log("error", "the end of an operation could not be kept", { operation: live.stored.id, error: thrown });
    }
    for (const change of live.changed) change();
    live.end.resolve();
  }

  #ended(stored: StoredOperation, error: StoredFailure | undefined): StoredOperation {
    this.#hasEnded = true;
    return { ...stored, endTimeMs: this.#context.clock.wallMs(), error };
  }

  #storedFailure(live: Live, thrown: unknown): StoredFailure {
    const { id, database, kind } = live.stored;
    if (thrown instanceof Failure && thrown.reason !== "INTERNAL") return failureOf(thrown.reason, thrown.facts);
    this.#context.log("error", "an operation failed for an unforeseen reason", {
      operation: id,
      database,
      kind,
      error: thrown,
    });
    // What disks and stores say is no defect of the server.
    const known = stageFailure("local", thrown);
    return known instanceof Failure ? failureOf(known.reason, known.facts) : failureOf("INTERNAL", { errorId: id });
  }

  #stop(live: Live, failure: Failure): void {
    if (live.isCommitted || live.stop !== undefined) return;
    live.stop = failure;
    live.controller.abort(failure);
  }

  #info(id: string, stored: StoredOperation | undefined): OperationInfo {
    const live = this.#live.get(id);
    if (live !== undefined) return infoOf(live);
    if (stored === undefined) throw new Failure("OPERATION_NOT_FOUND", { operation: id });
    return storedInfo(stored);
  }

  #prune(): void {
    const { store, clock, limits } = this.#context;
    store.prune(clock.wallMs() - limits.operationRecordMs, limits.operationCountMax);
    this.#lastPruneMs = clock.now();
    this.#hasEnded = false;
  }
}

/** Part of every page token: operations have one order. */
const listOrder = "operations";

const kinds = new Map(Object.entries(kindCodes).map(([name, code]) => [`OPERATION_KIND_${name.toUpperCase()}`, code]));
const truth = new Map([
  ["false", 0],
  ["true", 1],
]);

const fields: Readonly<Record<string, { readonly rule: FieldRule; readonly sql: string }>> = {
  id: { rule: { type: "text" }, sql: "id" },
  database: { rule: { type: "text" }, sql: "database" },
  kind: { rule: { type: "code", codes: kinds, ordered: false }, sql: "kind" },
  done: { rule: { type: "code", codes: truth, ordered: true }, sql: "(end_time_ms IS NOT NULL)" },
  create_time: { rule: { type: "time" }, sql: "create_time_ms" },
  end_time: { rule: { type: "time" }, sql: "end_time_ms" },
};

const grammar: Grammar = {
  ruleOf: (field) => (Object.hasOwn(fields, field) ? fields[field]?.rule : undefined),
  fieldNames: Object.keys(fields).join(", "),
  textNames: "id and database",
};

function conditionOf(terms: readonly Term[]) {
  const parts: string[] = [];
  const parameters: (number | string)[] = [];
  for (const { field, operator, value } of terms) {
    const sql = fields[field]?.sql ?? "id";
    parts.push(operator === ":" ? `${sql} GLOB ?` : `${sql} ${operator} ?`);
    parameters.push(operator === ":" ? globOf(String(value)) : value);
  }
  return { sql: parts.join(" AND "), parameters };
}

function progressOf(live: Live): Progress {
  const { controller } = live;
  const tell = () => {
    for (const change of live.changed) change();
  };
  const check = () => {
    if (live.stop !== undefined) throw live.stop;
  };
  return {
    operation: live.stored.id,
    signal: controller.signal,
    cancel: {
      get cancelled() {
        return controller.signal.aborted;
      },
      onCancel(listener) {
        controller.signal.addEventListener("abort", listener, { once: true });
        return () => controller.signal.removeEventListener("abort", listener);
      },
    },
    total(bytes) {
      live.bytesTotal = bytes;
      tell();
    },
    add(bytes) {
      live.bytesDone += bytes;
      tell();
    },
    check,
    commit() {
      check();
      live.isCommitted = true;
    },
  };
}

function infoOf(live: Live): OperationInfo {
  const info = storedInfo(live.stored);
  return info.done ? info : { ...info, bytesDone: live.bytesDone, bytesTotal: live.bytesTotal };
}

function storedInfo(stored: StoredOperation): OperationInfo {
  const { id, database, kind, bytesDone, bytesTotal, createTimeMs, endTimeMs, error } = stored;
  return {
    id,
    database,
    kind,
    bytesDone,
    bytesTotal,
    createTimeMs,
    endTimeMs,
    done: endTimeMs !== undefined,
    error: error && new Failure(knownReason(error.reason), error.facts),
  };
}

function failureOf(reason: Reason, facts: Readonly<Record<string, string>>): StoredFailure {
  return { reason, facts };
}

/** A newer server may have kept a reason that this one does not know. */
function knownReason(reason: string): Reason {
  return Object.hasOwn(reasons, reason) ? (reason as Reason) : "INTERNAL";
}
