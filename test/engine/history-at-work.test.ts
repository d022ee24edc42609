import { describe, expect, it, onTestFinished } from "vitest";
import type { HistoryTarget, OperationInfo, Position } from "../../src/engine/engine.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import type { MemoryBucket } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { statement } from "./fixtures.ts";
import { openStages, type StagesScene, type StagesSceneOptions } from "./placement/stages.ts";
import { failureOf } from "./support.ts";

const newFolder = temporaryFolders();
const wait = { waitMs: 20_000, cancel: undefined };

async function open(change: Partial<StagesSceneOptions> = {}): Promise<StagesScene> {
  const scene = await openStages({
    folder: newFolder(),
    settings: { autoMovement: false, defaultCreationStage: 2 },
    intervalMs: 3_600_000,
    ...change,
  });
  onTestFinished(() => scene.close());
  return scene;
}

/** A database whose one row says 1, then 2, each in a batch of its own that is stored. */
async function historic(scene: StagesScene, id: string): Promise<readonly [Position, Position]> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (a)");
  await scene.run(id, "INSERT INTO t VALUES (0)");
  const positions: Position[] = [];
  for (const value of [1, 2]) positions.push((await scene.run(id, `UPDATE t SET a = ${value}`, "remote")).position);
  const [one, two] = positions;
  if (one === undefined || two === undefined) throw new Error("there are no positions");
  return [one, two];
}

const restore = (scene: StagesScene, id: string, target: HistoryTarget, waitMs = wait.waitMs) =>
  scene.engine.restore({ id, target, etag: undefined, request: undefined, wait: { ...wait, waitMs } });

const fork = (scene: StagesScene, id: string, newId: string, source?: HistoryTarget) =>
  scene.engine.fork({ id, newId, source, request: undefined, wait });

const value = async (scene: StagesScene, id: string) => (await scene.rows(id, "SELECT a FROM t"))[0]?.[0];

function expectDone({ done, error }: OperationInfo): void {
  expect({ done, error }).toEqual({ done: true, error: undefined });
}

describe("a restore", () => {
  it("leaves a database where it was: in memory, on the disk, in the bucket", async () => {
    const scene = await open();
    for (const stage of ["memory", "local", "remote"] as const) {
      const id = `on-${stage}`;
      const [one] = await historic(scene, id);
      if (stage === "memory") await scene.move("promote", id, "memory");
      if (stage === "remote") await scene.move("demote", id, "remote");
      expectDone(await restore(scene, id, { position: one }));
      expect((await scene.engine.getDatabaseStage(id)).stage).toBe(stage);
      expect(await value(scene, id)).toBe(1);
      await scene.run(id, "UPDATE t SET a = 5", "remote");
      expect(await value(scene, id)).toBe(5);
    }
  });

  it("lets reads go on and takes no writes, until it is over", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    const gate = Promise.withResolvers<void>();
    scene.faults = (operation, key) => {
      if (operation === "put" && key.startsWith("d/")) gate.resolve();
      return operation === "put" && key.endsWith("-0000000000000001.ltx") ? [{ kind: "delay", ms: 300 }] : [];
    };
    const { id } = await restore(scene, "d", { position: one }, 0);
    await gate.promise;
    expect((await scene.engine.getDatabase("d")).state).toBe("read_only");
    const refused = await failureOf(scene.run("d", "UPDATE t SET a = 9"), "DATABASE_READ_ONLY");
    expect(refused.facts).toEqual({ database: "d", operation: id });
    await failureOf(scene.engine.begin("d", true, 0, undefined, scene.options()), "DATABASE_READ_ONLY");
    expect(await value(scene, "d")).toBe(2);
    await failureOf(scene.move("promote", "d", "memory"), "OPERATION_CONFLICT");
    for await (const { done, error } of scene.engine.watchOperation(id, undefined))
      if (done) expect(error).toBeUndefined();
    expect(await value(scene, "d")).toBe(1);
    expect((await scene.engine.getDatabase("d")).state).toBe("ready");
    await scene.run("d", "UPDATE t SET a = 9");
  });

  it("waits for an open write transaction, for a while, and leaves all as it was when that does not end", async () => {
    const scene = await open({ settings: { autoMovement: false, defaultCreationStage: 2, moveWaitMsMax: 50 } });
    const [one] = await historic(scene, "d");
    const transaction = await scene.engine.begin("d", true, 0, undefined, scene.options());
    await transaction.execute(statement("UPDATE t SET a = 7"), scene.options());
    const failed = await restore(scene, "d", { position: one });
    expect(failed.error).toMatchObject({ reason: "DATABASE_BUSY", facts: { database: "d" } });
    await transaction.commit("committed", scene.options());
    await scene.run("d", "UPDATE t SET a = a + 1");
    expect(await value(scene, "d")).toBe(8);
    expectDone(await restore(scene, "d", { position: one }));
    expect(await value(scene, "d")).toBe(1);
  });

  it("keeps what was committed and not uploaded, to go back to", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    const { position } = await scene.run("d", "UPDATE t SET a = 3");
    expectDone(await restore(scene, "d", { position: one }));
    expectDone(await restore(scene, "d", { position }));
    expect(await value(scene, "d")).toBe(3);
  });

  it("that cannot upload what is committed, because the store is away, fails and changes nothing", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    await scene.run("d", "UPDATE t SET a = 3");
    scene.faults = (operation) => (operation === "put" ? [{ kind: "fail_before" }] : []);
    const { id } = await restore(scene, "d", { position: one }, 0);
    await scene.engine.cancelOperation(id);
    for await (const info of scene.engine.watchOperation(id, undefined)) {
      if (info.done) expect(info.error?.reason).toBe("OPERATION_CANCELLED");
    }
    scene.faults = () => [];
    expect((await scene.engine.getDatabase("d")).state).toBe("ready");
    await scene.run("d", "UPDATE t SET a = a + 1");
    expect(await value(scene, "d")).toBe(4);
  });

  it("that failed leaves nothing in the bucket, however long the store will not delete", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    let isAway = true;
    scene.faults = (operation, key) => {
      if (operation === "put" && key.endsWith("/0000/0000000000000001-0000000000000001.ltx")) {
        return [{ kind: "fail_after" }];
      }
      return operation === "delete" && isAway ? [{ kind: "fail_before" }] : [];
    };
    expect((await restore(scene, "d", { position: one })).error?.reason).toBe("STAGE_UNAVAILABLE");
    const strays = () => [...scene.bucket.keys()].filter((key) => !key.startsWith(`d/${one.lineage}/`));
    expect(strays()).toHaveLength(2);
    expect((await scene.engine.getDatabase("d")).state).toBe("ready");
    isAway = false;
    for (let round = 0; round < 500 && strays().length > 1; round++) await scene.clock.rounds(1);
    expect(strays()).toEqual(["d/database.json"]);
  });

  it("ends calls that read the old history, and never mixes both", async () => {
    const scene = await open({ limits: { deleteGraceMs: 20 } });
    const [one] = await historic(scene, "d");
    const transaction = await scene.engine.begin("d", false, 0, undefined, scene.options());
    expectDone(await restore(scene, "d", { position: one }));
    await failureOf(transaction.execute(statement("SELECT a FROM t"), scene.options()), "TRANSACTION_NOT_OPEN");
    expect(transaction.isOpen).toBe(false);
    expect(await value(scene, "d")).toBe(1);
  });

  it("brings a database back that is stopped, without what it had not uploaded", async () => {
    let isBroken = false;
    const flush = async (descriptor: number) => {
      if (isBroken) throw Object.assign(new Error("the disk is broken"), { code: "EIO", syscall: "fdatasync" });
      await nodeFileSystem.flush(descriptor);
    };
    const scene = await open({ fileSystem: { ...nodeFileSystem, flush } });
    const [, two] = await historic(scene, "d");
    isBroken = true;
    await failureOf(scene.run("d", "UPDATE t SET a = 7", "local"), "DATABASE_FAULTED");
    isBroken = false;
    expect((await scene.engine.getDatabase("d")).state).toBe("faulted");
    expectDone(await restore(scene, "d", { position: two }));
    expect((await scene.engine.getDatabase("d")).state).toBe("ready");
    expect(await value(scene, "d")).toBe(2);
    await scene.run("d", "UPDATE t SET a = 8", "local");
  });

  it("gives way to the deletion of its database", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    const { id } = await restore(scene, "d", { position: one }, 0);
    await scene.engine.deleteDatabase("d", undefined, false);
    const ended = await scene.engine.getOperation(id);
    expect(ended.done).toBe(true);
    await failureOf(scene.engine.getDatabase("d"), "DATABASE_NOT_FOUND");
    await scene.create("d");
    expect(await scene.rows("d", "SELECT name FROM sqlite_schema")).toEqual([]);
  });

  it("is the history that everyone finds who has nothing but the bucket", async () => {
    const bucket: MemoryBucket = new Map();
    const first = await open({ bucket });
    const [one, two] = await historic(first, "d");
    expectDone(await restore(first, "d", { position: one }));
    await first.run("d", "UPDATE t SET a = 4", "remote");
    expectDone(await fork(first, "d", "f", { position: two }));
    await first.close();
    const second = await open({ bucket });
    expect(await value(second, "d")).toBe(4);
    expect(await value(second, "f")).toBe(2);
    expectDone(await restore(second, "d", { position: two }));
    expect(await value(second, "d")).toBe(2);
  });
});

describe("a fork", () => {
  it("goes on beside writes of its source, and holds what was committed when it began", async () => {
    const scene = await open();
    await historic(scene, "d");
    const forked = fork(scene, "d", "f");
    for (let round = 0; round < 20; round++) await scene.run("d", "UPDATE t SET a = a + 1");
    expectDone(await forked);
    expect(await value(scene, "f")).toBeGreaterThanOrEqual(2);
    expect(await value(scene, "d")).toBe(22);
    const info = await scene.engine.getDatabase("f");
    expect(info).toMatchObject({ stage: "remote", state: "ready" });
    expect(info.durablePosition).toBeDefined();
  });

  it("holds its id against others while it runs", async () => {
    const scene = await open();
    await historic(scene, "d");
    const source = undefined;
    const request = undefined;
    const begun = await scene.engine.fork({ id: "d", newId: "f", source, request, wait: { ...wait, waitMs: 0 } });
    const others = await Promise.allSettled([
      scene.create("f"),
      fork(scene, "d", "f", { timeMs: scene.clock.wallMs() }),
    ]);
    for await (const info of scene.engine.watchOperation(begun.id, undefined)) if (info.done) expectDone(info);
    for (const other of others) {
      expect(other.status).toBe("rejected");
      const { reason } = (other as PromiseRejectedResult).reason;
      expect(["OPERATION_CONFLICT", "DATABASE_EXISTS"]).toContain(reason);
    }
    expect(await value(scene, "f")).toBe(2);
  });

  it("of a database in the bucket needs no head", async () => {
    const scene = await open();
    const [one] = await historic(scene, "d");
    await scene.move("demote", "d", "remote");
    expectDone(await fork(scene, "d", "f", { position: one }));
    expectDone(await fork(scene, "d", "g"));
    expect(scene.localFiles("d")).toEqual([]);
    expect([await value(scene, "f"), await value(scene, "g")]).toEqual([1, 2]);
  });
});

describe("SyncDatabase", () => {
  const sync = (scene: StagesScene, id: string, durability: "local" | "remote" = "remote", upTo?: Position) =>
    scene.engine.sync({ id, upTo, durability, wait });

  it("carries a database that nobody has written", async () => {
    const scene = await open({ isAutomatic: false });
    const { position } = await scene.create("d");
    const { operation, durablePosition } = await sync(scene, "d");
    expectDone(operation);
    expect(durablePosition).toMatchObject({ lineage: position.lineage, sequence: 1n });
    expect(scene.bucket.has("d/database.json")).toBe(true);
  });

  it("joins one that runs for the same position, and goes on after a restart", async () => {
    const bucket: MemoryBucket = new Map();
    const folder = newFolder();
    const first = await open({ folder, bucket, isAutomatic: false });
    await first.create("d");
    await first.run("d", "CREATE TABLE t (a)");
    first.faults = (operation) => (operation === "put" ? [{ kind: "fail_before" }] : []);
    const ask = () =>
      first.engine.sync({ id: "d", upTo: undefined, durability: "remote", wait: { ...wait, waitMs: 0 } });
    const [one, two] = [await ask(), await ask()];
    expect(one.operation.done).toBe(false);
    expect(two.operation.id).toBe(one.operation.id);
    await first.close();
    const second = await open({ folder, bucket, isAutomatic: false });
    for await (const info of second.engine.watchOperation(one.operation.id, undefined)) if (info.done) expectDone(info);
    expect((await second.engine.getDatabase("d")).durablePosition?.sequence).toBeGreaterThan(0n);
  });

  it("to the disk is a seal where the head is in memory", async () => {
    const scene = await open({ isAutomatic: false });
    await scene.create("d", { initialStage: "memory" });
    await scene.run("d", "CREATE TABLE t (a)");
    const { operation, durablePosition } = await sync(scene, "d", "local");
    expectDone(operation);
    expect(durablePosition).toBeUndefined();
    expect(scene.localFiles("d")).toContain("log");
  });
});
