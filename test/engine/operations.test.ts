import { randomBytes } from "node:crypto";
import { afterEach, describe, expect, it } from "vitest";
import { Catalog } from "../../src/engine/catalog.ts";
import type { OperationInfo } from "../../src/engine/engine.ts";
import { Operations, type OperationTask, type Progress } from "../../src/engine/operations.ts";
import { Failure } from "../../src/failure/failure.ts";
import { CallCancelled, type Cancel } from "../../src/sqlite/executor.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testLimits } from "./fixtures.ts";
import { failureOf } from "./support.ts";

const newFolder = temporaryFolders();
const startMs = Date.UTC(2026, 0, 1);

/** A registry on a catalog of its own, and the means to hold its tasks. */
class Bench {
  readonly folder: string;
  readonly clock: ManualClock;
  readonly lines: string[] = [];
  readonly limits: typeof testLimits;
  catalog: Catalog;
  operations: Operations;

  constructor(limits: Partial<typeof testLimits> = {}) {
    this.folder = newFolder();
    this.limits = { ...testLimits, ...limits };
    this.clock = new ManualClock(startMs);
    this.catalog = Catalog.open(this.folder);
    this.operations = this.#open();
    this.operations.recover(() => undefined);
  }

  /** As after a kill: nobody has told the operations of the end. */
  reopen(): void {
    this.catalog.close();
    this.catalog = Catalog.open(this.folder);
    this.operations = this.#open();
  }

  #open(): Operations {
    return new Operations({
      store: this.catalog.operations,
      clock: this.clock,
      limits: this.limits,
      log: (_, message) => this.lines.push(message),
      random: (byteCount) => randomBytes(byteCount),
      pageSecret: Buffer.alloc(32, 7),
    });
  }
}

let bench: Bench;
afterEach(() => bench.catalog.close());

/** A task that runs until it is let go. */
function held(database: string, change: Partial<OperationTask> = {}) {
  const gate = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<Progress>();
  const task: OperationTask = {
    database,
    kind: "promote",
    key: "memory",
    locks: [database],
    async run(progress) {
      begun.resolve(progress);
      await gate.promise;
      progress.check();
    },
    ...change,
  };
  return { task, end: gate.resolve, fail: gate.reject, begun: begun.promise };
}

const wait = (waitMs: number) => ({ waitMs, cancel: undefined });
const ids = (operations: readonly OperationInfo[]) => operations.map(({ id }) => id);

function cancelSource(): Cancel & { cancel(): void } {
  const listeners = new Set<() => void>();
  return {
    cancelled: false,
    onCancel(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    cancel() {
      (this as { cancelled: boolean }).cancelled = true;
      for (const listener of listeners) listener();
    },
  };
}

describe("operations", () => {
  it("run to their end, which a wait sees, with what they have done", async () => {
    bench = new Bench();
    const { task, end, begun } = held("a");
    const started = bench.operations.start(task);
    expect(started).toMatchObject({ database: "a", kind: "promote", done: false, createTimeMs: startMs });
    expect(bench.operations.lockedBy("a")).toBe(started.id);
    const progress = await begun;
    progress.total(100);
    progress.add(40);
    expect(bench.operations.get(started.id)).toMatchObject({ bytesDone: 40, bytesTotal: 100, done: false });
    const ended = bench.operations.wait(started.id, wait(1000));
    bench.clock.advance(10);
    progress.add(60);
    end();
    expect(await ended).toMatchObject({
      id: started.id,
      bytesDone: 100,
      done: true,
      endTimeMs: startMs + 10,
      error: undefined,
    });
    expect(bench.operations.lockedBy("a")).toBeUndefined();
    expect(bench.operations.running).toBe(0);
  });

  it("go on when a wait is over, or its caller is gone", async () => {
    bench = new Bench();
    const { task, end } = held("a");
    const { id } = bench.operations.start(task);
    expect((await bench.operations.wait(id, wait(0))).done).toBe(false);
    const short = bench.operations.wait(id, wait(50));
    bench.clock.advance(50);
    expect((await short).done).toBe(false);
    const caller = cancelSource();
    const gone = bench.operations.wait(id, { waitMs: 50, cancel: caller });
    caller.cancel();
    await expect(gone).rejects.toBeInstanceOf(CallCancelled);
    end();
    expect((await bench.operations.wait(id, wait(50))).done).toBe(true);
  });

  it("keep their failure, and hide what nobody foresaw", async () => {
    bench = new Bench();
    const first = held("a");
    const { id } = bench.operations.start(first.task);
    first.fail(new Failure("STAGE_FULL", { stage: "memory" }));
    const failed = await bench.operations.wait(id, wait(1000));
    expect(failed.error).toMatchObject({ reason: "STAGE_FULL", facts: { stage: "memory" } });
    const second = held("a");
    const other = bench.operations.start(second.task);
    second.fail(new TypeError("secret"));
    const broken = await bench.operations.wait(other.id, wait(1000));
    expect(broken.error).toMatchObject({ reason: "INTERNAL", facts: { errorId: other.id } });
    expect(bench.lines).toEqual(["an operation failed for an unforeseen reason"]);
  });

  it("are joined by the same task, and keep every other one off their databases", async () => {
    bench = new Bench();
    const first = held("a");
    const { id } = bench.operations.start(first.task);
    expect(bench.operations.start(held("a").task).id).toBe(id);
    for (const other of [held("a", { key: "local" }), held("a", { kind: "demote" }), held("b", { locks: ["a"] })]) {
      const { facts } = await failureOf(() => bench.operations.start(other.task), "OPERATION_CONFLICT");
      expect(facts).toEqual({ operation: id });
    }
    const sync = held("a", { kind: "sync", key: "7", locks: [] });
    const synced = bench.operations.start(sync.task);
    expect(bench.operations.start(held("a", { kind: "sync", key: "7", locks: [] }).task).id).toBe(synced.id);
    expect(bench.operations.start(held("a", { kind: "sync", key: "8", locks: [] }).task).id).not.toBe(synced.id);
    first.end();
    await bench.operations.wait(id, wait(1000));
    expect(bench.operations.start(held("a", { kind: "demote" }).task).id).not.toBe(id);
  });

  it("that nobody has asked for give way to what a caller wants, and to nothing else", async () => {
    bench = new Bench();
    const policy = held("a", { isBackground: true });
    const first = bench.operations.start(policy.task);
    const other = held("a", { kind: "demote", isBackground: true });
    await failureOf(() => bench.operations.start(other.task), "OPERATION_CONFLICT");
    (await policy.begun).cancel.onCancel(policy.end);
    const caller = held("a", { kind: "restore" });
    const second = bench.operations.start(caller.task);
    expect(bench.operations.lockedBy("a")).toBe(second.id);
    await caller.begun;
    expect(bench.operations.get(first.id).error?.reason).toBe("OPERATION_CANCELLED");
    expect(bench.operations.lockedBy("a")).toBe(second.id);
    await failureOf(() => bench.operations.start(other.task), "OPERATION_CONFLICT");
    caller.end();
    expect((await bench.operations.wait(second.id, wait(1000))).error).toBeUndefined();
    expect(bench.operations.lockedBy("a")).toBeUndefined();
  });

  it("that a caller has joined give way no more", async () => {
    bench = new Bench();
    const { id } = bench.operations.start(held("a", { isBackground: true }).task);
    expect(bench.operations.start(held("a").task).id).toBe(id);
    await failureOf(() => bench.operations.start(held("a", { kind: "restore" }).task), "OPERATION_CONFLICT");
  });

  it("wait for the last step of what gives way, and can be cancelled meanwhile", async () => {
    bench = new Bench();
    const policy = held("a", { isBackground: true });
    const first = bench.operations.start(policy.task);
    (await policy.begun).commit();
    const caller = held("a", { kind: "restore" });
    const second = bench.operations.start(caller.task);
    bench.operations.cancel(second.id);
    policy.end();
    expect((await bench.operations.wait(first.id, wait(1000))).error).toBeUndefined();
    const { error } = await bench.operations.wait(second.id, wait(1000));
    expect(error?.reason).toBe("OPERATION_CANCELLED");
  });

  it("are bounded in number", async () => {
    bench = new Bench({ operationRunningCountMax: 2 });
    bench.operations.start(held("a").task);
    const { task, end } = held("b");
    const { id } = bench.operations.start(task);
    const refused = await failureOf(() => bench.operations.start(held("c").task), "RATE_LIMITED");
    expect(refused.retryAfterMs).toBeGreaterThan(0);
    end();
    await bench.operations.wait(id, wait(1000));
    bench.operations.start(held("c").task);
  });

  it("that have nothing to do are kept as done", () => {
    bench = new Bench();
    const info = bench.operations.done({ database: "a", kind: "demote" });
    expect(info).toMatchObject({ database: "a", kind: "demote", done: true, endTimeMs: startMs });
    expect(bench.operations.get(info.id)).toEqual(info);
  });

  it("that are not known are OPERATION_NOT_FOUND", async () => {
    bench = new Bench();
    await failureOf(() => bench.operations.get("0"), "OPERATION_NOT_FOUND");
    await failureOf(() => bench.operations.cancel("0"), "OPERATION_NOT_FOUND");
    await failureOf(bench.operations.wait("0", wait(10)), "OPERATION_NOT_FOUND");
    await failureOf(bench.operations.watch("0", undefined).next(), "OPERATION_NOT_FOUND");
  });
});

describe("cancel", () => {
  it("ends an operation with OPERATION_CANCELLED, once it has noticed", async () => {
    bench = new Bench();
    const { task, end, begun } = held("a");
    const { id } = bench.operations.start(task);
    const progress = await begun;
    let heard = 0;
    progress.cancel.onCancel(() => heard++);
    bench.operations.cancel(id);
    bench.operations.cancel(id);
    expect([heard, progress.signal.aborted, progress.cancel.cancelled]).toEqual([1, true, true]);
    expect(bench.operations.get(id).done).toBe(false);
    end();
    const ended = await bench.operations.wait(id, wait(1000));
    expect(ended.error).toMatchObject({ reason: "OPERATION_CANCELLED", facts: { operation: id } });
    bench.operations.cancel(id);
  });

  it("comes too late for the last step", async () => {
    bench = new Bench();
    const { task, end, begun } = held("a");
    const { id } = bench.operations.start(task);
    (await begun).commit();
    bench.operations.cancel(id);
    end();
    expect((await bench.operations.wait(id, wait(1000))).error).toBeUndefined();
  });

  it("before the last step keeps it from beginning", async () => {
    bench = new Bench();
    const { task, begun, end } = held("a");
    const { id } = bench.operations.start(task);
    const progress = await begun;
    bench.operations.cancel(id);
    await failureOf(() => progress.commit(), "OPERATION_CANCELLED");
    end();
  });

  it("clears the way for a deletion", async () => {
    bench = new Bench();
    const { task, begun, end } = held("a");
    const { id } = bench.operations.start(task);
    (await begun).cancel.onCancel(end);
    await bench.operations.evict("a");
    expect(bench.operations.get(id).error?.reason).toBe("OPERATION_CANCELLED");
    await bench.operations.evict("b");
  });
});

describe("watch", () => {
  it("sends the operation now, at changes, and at its end", async () => {
    bench = new Bench();
    const { task, end, begun } = held("a");
    const { id } = bench.operations.start(task);
    const watch = bench.operations.watch(id, undefined);
    expect((await watch.next()).value).toMatchObject({ bytesDone: 0, done: false });
    const progress = await begun;
    const next = watch.next();
    progress.add(1);
    expect((await next).value).toMatchObject({ bytesDone: 1 });
    // What changes while nobody asks is told once, as it stands then.
    progress.add(1);
    progress.add(1);
    expect((await watch.next()).value).toMatchObject({ bytesDone: 3 });
    end();
    expect((await watch.next()).value).toMatchObject({ bytesDone: 3, done: true });
    expect((await watch.next()).done).toBe(true);
    const late = bench.operations.watch(id, undefined);
    expect((await late.next()).value).toMatchObject({ done: true });
    expect((await late.next()).done).toBe(true);
  });

  it("ends with its caller, and gives its place back", async () => {
    bench = new Bench({ operationWatchCountMax: 1 });
    const { id } = bench.operations.start(held("a").task);
    const caller = cancelSource();
    const watch = bench.operations.watch(id, caller);
    await watch.next();
    await failureOf(bench.operations.watch(id, undefined).next(), "RATE_LIMITED");
    const next = watch.next();
    caller.cancel();
    await expect(next).rejects.toBeInstanceOf(CallCancelled);
    const second = bench.operations.watch(id, undefined);
    await second.next();
    await second.return(undefined);
    expect((await bench.operations.watch(id, undefined).next()).done).toBe(false);
  });
});

describe("a restart", () => {
  it("finds what was done, and fails what was not", async () => {
    bench = new Bench();
    const first = held("a");
    const done = bench.operations.start(first.task);
    first.end();
    await bench.operations.wait(done.id, wait(1000));
    const cut = bench.operations.start(held("b").task);
    bench.reopen();
    bench.operations.recover(() => undefined);
    expect(bench.operations.get(done.id)).toMatchObject({ done: true, error: undefined });
    expect(bench.operations.get(cut.id)).toMatchObject({
      done: true,
      error: { reason: "OPERATION_INTERRUPTED", facts: { operation: cut.id } },
    });
    expect(bench.operations.lockedBy("b")).toBeUndefined();
  });

  it("resumes what it can, under the same id", async () => {
    bench = new Bench();
    const { id } = bench.operations.start(held("a", { kind: "restore", input: { lineage: "x" } }).task);
    bench.reopen();
    const again = held("a", { kind: "restore" });
    bench.operations.recover((stored) => {
      expect(stored).toMatchObject({ id, input: { lineage: "x" } });
      return again.task;
    });
    expect(bench.operations.get(id).done).toBe(false);
    expect(bench.operations.lockedBy("a")).toBe(id);
    again.end();
    expect(await bench.operations.wait(id, wait(1000))).toMatchObject({ done: true, error: undefined });
  });

  it("in good order leaves to the next server what was stopped, and refuses new ones", async () => {
    bench = new Bench();
    const { task, begun, end } = held("a");
    const { id } = bench.operations.start(task);
    const watch = bench.operations.watch(id, undefined);
    await watch.next();
    const next = watch.next();
    (await begun).cancel.onCancel(end);
    await bench.operations.close(1000);
    await failureOf(next, "SHUTTING_DOWN");
    await failureOf(() => bench.operations.start(held("b").task), "SHUTTING_DOWN");
    bench.reopen();
    bench.operations.recover(() => undefined);
    expect(bench.operations.get(id).error?.reason).toBe("OPERATION_INTERRUPTED");
  });

  it("does not wait for ever for what does not stop", async () => {
    bench = new Bench();
    bench.operations.start(held("a").task);
    const closed = bench.operations.close(200);
    bench.clock.advance(200);
    await closed;
  });
});

describe("a request id", () => {
  const request = { id: "0".repeat(32), method: "RestoreDatabase", hash: "h" };

  it("finds its operation, running, ended and after a restart", async () => {
    bench = new Bench();
    expect(bench.operations.repeated("a", request)).toBeUndefined();
    const { task, end } = held("a", { request });
    const { id } = bench.operations.start(task);
    expect(bench.operations.repeated("a", request)).toMatchObject({ id, done: false });
    expect(bench.operations.repeated("b", request)).toBeUndefined();
    expect(bench.operations.repeated("a", undefined)).toBeUndefined();
    end();
    await bench.operations.wait(id, wait(1000));
    bench.reopen();
    expect(bench.operations.repeated("a", request)).toMatchObject({ id, done: true });
  });

  it("of another call is refused", async () => {
    bench = new Bench();
    bench.operations.start(held("a", { request }).task);
    await failureOf(() => bench.operations.repeated("a", { ...request, hash: "other" }), "FIELD_INVALID");
    await failureOf(() => bench.operations.repeated("a", { ...request, method: "ForkDatabase" }), "FIELD_INVALID");
  });
});

describe("the list", () => {
  const list = (filter = "", pageSize = 0, pageToken = "") => bench.operations.list({ filter, pageSize, pageToken });

  it("is newest first, in pages, also of one millisecond", () => {
    bench = new Bench();
    const made = Array.from({ length: 5 }, (_, at) => bench.operations.done({ database: `d${at}`, kind: "sync" }));
    const expected = ids(made).reverse();
    expect(ids(list().operations)).toEqual(expected);
    const first = list("", 2);
    const second = list("", 2, first.nextPageToken);
    // One that is new does not move the pages behind it.
    bench.operations.done({ database: "new", kind: "sync" });
    const third = list("", 2, second.nextPageToken);
    expect([first, second, third].flatMap(({ operations }) => ids(operations))).toEqual(expected);
    expect(third.nextPageToken).toBe("");
  });

  it.each([
    ["database = a", ["a"]],
    ["database : a*", ["ab", "a"]],
    ["kind = OPERATION_KIND_FORK", ["b"]],
    ["kind != OPERATION_KIND_FORK AND done = true", ["ab", "a"]],
    ["done = false", ["running"]],
    [`create_time > "2026-01-01T00:00:00Z"`, ["running", "b"]],
    [`end_time < "2026-01-01T00:00:01Z"`, ["ab", "a"]],
  ])("takes the filter %s", (filter, databases) => {
    bench = new Bench();
    bench.operations.done({ database: "a", kind: "sync" });
    bench.operations.done({ database: "ab", kind: "promote" });
    bench.clock.advance(2000);
    bench.operations.done({ database: "b", kind: "fork" });
    bench.operations.start(held("running").task);
    expect(list(filter).operations.map(({ database }) => database)).toEqual(databases);
  });

  it("refuses what it does not know", async () => {
    bench = new Bench();
    for (const filter of ["x = 1", "kind = FORK", "kind > OPERATION_KIND_FORK", "done : true", "done = yes"]) {
      await failureOf(() => list(filter), "FIELD_INVALID");
    }
    await failureOf(() => list("", -1), "FIELD_INVALID");
    bench.operations.done({ database: "a", kind: "sync" });
    bench.operations.done({ database: "a", kind: "sync" });
    const { nextPageToken } = list("", 1);
    await failureOf(() => list("done = true", 1, nextPageToken), "PAGE_TOKEN_INVALID");
  });

  it("forgets by age and by number, never what runs", async () => {
    bench = new Bench({ operationCountMax: 3, operationRecordMs: 3_600_000 });
    const { id } = bench.operations.start(held("running").task);
    for (const database of ["a", "b", "c", "d"]) bench.operations.done({ database, kind: "sync" });
    bench.clock.advance(60_000);
    bench.operations.tidy();
    expect(list().operations.map(({ database }) => database)).toEqual(["d", "c", "b", "running"]);
    bench.operations.done({ database: "e", kind: "sync" });
    bench.clock.advance(3_590_000);
    bench.operations.done({ database: "f", kind: "sync" });
    bench.operations.tidy();
    expect(list().operations.map(({ database }) => database)).toEqual(["f", "e", "running"]);
    expect(bench.operations.get(id).done).toBe(false);
  });
});
