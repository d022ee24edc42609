import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Catalog } from "../../../src/engine/catalog.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { until } from "../../support/until.ts";
import { failureOf, testRow } from "../support.ts";
import { openStages, type StagesScene, type StagesSceneOptions } from "./stages.ts";

const newFolder = temporaryFolders();

/** Everything by itself, within what a test waits for. */
function automatic(change: Partial<StagesSceneOptions> = {}): StagesSceneOptions {
  return {
    folder: newFolder(),
    ...change,
    settings: { autoMovement: true, defaultCreationStage: 3, ...change.settings },
  };
}

async function make(scene: StagesScene, id: string): Promise<void> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (x)");
}

async function isOn(scene: StagesScene, id: string, stage: string): Promise<boolean> {
  const info = await scene.engine.getDatabaseStage(id);
  return info.stage === stage && info.operation === undefined;
}

function isSoonOn(scene: StagesScene, id: string, stage: string): Promise<true> {
  return until(`${id} is on ${stage}`, () => isOn(scene, id, stage));
}

describe("the policy", () => {
  it("brings a database closer stage by stage while it is used, and farther when it is not", async () => {
    const scene = await openStages(automatic());
    await make(scene, "a");
    expect(await scene.stageOf("a")).toBe("remote");
    for (let call = 0; call < 3; call++) await scene.run("a", `INSERT INTO t VALUES (${call})`);
    await isSoonOn(scene, "a", "local");
    // At rest after a move, however much it is used.
    for (let call = 0; call < 10; call++) await scene.run("a", "SELECT 1");
    expect((await scene.engine.getDatabaseStage("a")).placementReason).toMatch(/rests there for 60 s/);
    scene.clock.jump(60_000);
    for (let call = 0; call < 4; call++) await scene.run("a", "SELECT 1");
    await isSoonOn(scene, "a", "memory");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[3]]);

    scene.clock.jump(300_000);
    await isSoonOn(scene, "a", "local");
    scene.clock.jump(60_000);
    await isSoonOn(scene, "a", "remote");
    await until("it has moved", async () => (await scene.placesOf("a")).join() === "remote");
    expect(scene.localFiles("a")).toEqual([]);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[3]]);
    await scene.close();
  });

  it("drops the head of a remote database that is not used any more, and keeps it remote", async () => {
    const scene = await openStages(automatic({ settings: { requestCountThreshold: 100 } }));
    await make(scene, "a");
    expect((await scene.placesOf("a"))[0]).toBe("local");
    scene.clock.jump(300_000);
    await until("it has moved", async () => (await scene.placesOf("a")).join() === "remote");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    expect(await scene.placesOf("a")).toEqual(["local", "remote"]);
    await scene.close();
  });

  it("moves nothing when it is off", async () => {
    const scene = await openStages(automatic({ settings: { autoMovement: false, defaultCreationStage: 2 } }));
    await make(scene, "a");
    for (let call = 0; call < 10; call++) await scene.run("a", "SELECT 1");
    scene.clock.jump(1_000_000);
    await scene.run("a", "SELECT 1", "remote");
    await scene.clock.rounds(10);
    expect(await scene.stageOf("a")).toBe("local");
    expect((await scene.engine.listOperations({ pageSize: 0, pageToken: "", filter: "" })).operations).toEqual([]);
    await scene.close();
  });

  it("leaves a pinned database where it is, brings one that is pinned elsewhere there, and heeds the end of a pin", async () => {
    const scene = await openStages(automatic({ settings: { defaultCreationStage: 2 } }));
    await make(scene, "a");
    await make(scene, "b");
    const expireTimeMs = scene.clock.wallMs() + 1_000_000;
    await scene.engine.pin("a", { stage: "memory", expireTimeMs });
    await scene.engine.pin("b", { stage: "local", expireTimeMs: undefined });
    await isSoonOn(scene, "a", "memory");
    for (let call = 0; call < 10; call++) await scene.run("b", "SELECT 1");
    scene.clock.jump(500_000);
    await scene.clock.rounds(10);
    expect([await scene.stageOf("a"), await scene.stageOf("b")]).toEqual(["memory", "local"]);
    scene.clock.jump(600_000);
    await isSoonOn(scene, "a", "local");
    expect((await scene.engine.getDatabaseStage("a")).pin).toBeUndefined();
    expect(await scene.engine.unpin("b")).toMatchObject({ pin: undefined });
    await isSoonOn(scene, "b", "remote");
    await scene.close();
  });

  it("keeps a pin over a restart, also of a database without a head", async () => {
    const given = automatic({ settings: { defaultCreationStage: 2 } });
    let scene = await openStages({ ...given, bucket: new Map() });
    const { bucket } = scene;
    await make(scene, "a");
    await scene.engine.pin("a", { stage: "local", expireTimeMs: undefined });
    await scene.close();
    scene = await openStages({ ...given, bucket });
    expect((await scene.engine.getDatabaseStage("a")).pin).toEqual({ stage: "local", expireTimeMs: undefined });
    await scene.close();
  });
});

describe("a full stage", () => {
  it("lets the least valuable leave for one that is called more", async () => {
    const scene = await openStages(
      automatic({ settings: { defaultCreationStage: 2 }, memory: { databaseCountMax: 2 } }),
    );
    for (const id of ["old", "mid", "new"]) await make(scene, id);
    await scene.move("promote", "old");
    await scene.run("old", "SELECT 1");
    scene.clock.jump(120_000);
    await scene.move("promote", "mid");
    scene.clock.jump(70_000);
    for (let call = 0; call < 5; call++) await scene.run("mid", "SELECT 1");
    for (let call = 0; call < 5; call++) await scene.run("new", "SELECT 1");
    await isSoonOn(scene, "new", "memory");
    expect(await scene.stageOf("mid")).toBe("memory");
    expect(await scene.stageOf("old")).toBe("local");
    await scene.close();
  });

  it("refuses what is worth less than what is there, before it writes anything", async () => {
    const scene = await openStages({ folder: newFolder(), memory: { databaseCountMax: 1 } });
    for (const id of ["a", "b"]) await make(scene, id);
    await scene.engine.pin("a", { stage: "memory", expireTimeMs: undefined });
    await isSoonOn(scene, "a", "memory");
    scene.clock.jump(120_000);
    for (let call = 0; call < 100; call++) await scene.run("b", "SELECT 1");
    await failureOf(scene.move("promote", "b"), "STAGE_FULL");
    expect(scene.memoryFiles()).toHaveLength(1);
    await scene.engine.unpin("a");
    await scene.move("promote", "b");
    expect([await scene.stageOf("a"), await scene.stageOf("b")]).toEqual(["local", "memory"]);
    await scene.close();
  });

  it("refuses a database that is larger than all of it", async () => {
    const scene = await openStages({ folder: newFolder(), memory: { bytesMax: 100_000 } });
    await make(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (zeroblob(200000))");
    const { facts } = await failureOf(scene.move("promote", "a"), "STAGE_FULL");
    expect(facts).toMatchObject({ stage: "memory", capacityBytes: "100000" });
    expect(scene.memoryFiles()).toEqual([]);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[1]]);
    await scene.close();
  });

  it("in memory that has grown over its budget lets go by itself", async () => {
    const scene = await openStages(
      automatic({ settings: { defaultCreationStage: 1, cooldownMs: 0 }, memory: { bytesMax: 400_000 } }),
    );
    for (const id of ["a", "b"]) await make(scene, id);
    expect(await scene.stageOf("a")).toBe("memory");
    scene.clock.jump(100_000);
    await scene.run("b", "INSERT INTO t VALUES (zeroblob(600000))");
    await until("it has moved", async () => !(await isOn(scene, "a", "memory")) || !(await isOn(scene, "b", "memory")));
    expect(await scene.rows("b", "SELECT count(*) FROM t")).toEqual([[1]]);
    await scene.close();
  });

  it("on the local disk lets a walk over four times as many databases go on, and keeps the hot ones", async () => {
    const scene = await openStages(
      automatic({
        settings: { requestCountThreshold: 1000, hydrationConcurrencyMax: 4 },
        local: { databaseCountMax: 10 },
      }),
    );
    const ids = Array.from({ length: 40 }, (_, index) => `d${index}`);
    for (const id of ids) {
      await make(scene, id);
      await scene.run(id, "INSERT INTO t VALUES (1)");
      await scene.run("d0", "SELECT 1");
    }
    const heads = () => scene.engine.stats().heads.local.count;
    expect(heads()).toBeLessThanOrEqual(10);
    let hydrations = 0;
    for (let start = 0; start < ids.length; start += 4) {
      const some = ids.slice(start, start + 4);
      const rows = await Promise.all(some.map((id) => scene.rows(id, "SELECT count(*) FROM t")));
      for (const row of rows) expect(row).toEqual([[1]]);
      for (let call = 0; call < 5; call++) await scene.run("d0", "SELECT 1");
      if ((await scene.placesOf("d0"))[0] !== "local") hydrations++;
      expect(heads()).toBeLessThanOrEqual(10);
    }
    expect(hydrations).toBe(0);
    await scene.close();
  });

  it("on the local disk refuses when all is pinned", async () => {
    const scene = await openStages(
      automatic({ settings: { defaultCreationStage: 2 }, local: { databaseCountMax: 2 } }),
    );
    for (const id of ["a", "b"]) {
      await make(scene, id);
      await scene.engine.pin(id, { stage: "local", expireTimeMs: undefined });
    }
    const { facts } = await failureOf(scene.create("c"), "STAGE_FULL");
    expect(facts["stage"]).toBe("local");
    await scene.engine.unpin("a");
    await scene.create("c");
    await scene.close();
  });
});

describe("stages", () => {
  it("are listed with what they hold", async () => {
    const scene = await openStages({ folder: newFolder(), memory: { bytesMax: 1_000_000 } });
    await make(scene, "a");
    await make(scene, "b");
    await scene.move("promote", "a");
    await scene.move("demote", "b");
    expect(await scene.engine.listStages()).toMatchObject([
      { stage: "memory", displayName: "Memory", capacityBytes: 1_000_000n, databaseCount: 1n, healthy: true },
      { stage: "local", displayName: "Disk", databaseCount: 0n, healthy: true },
      { stage: "remote", displayName: "Bucket", capacityBytes: undefined, databaseCount: 1n, healthy: true },
    ]);
    await scene.close();
  });

  it("cost databases that are only known a row, and no time: 100,000 of them", async () => {
    const folder = newFolder();
    const first = await openStages(automatic({ folder }));
    await first.close();
    const catalog = Catalog.open(join(folder, "local"));
    catalog.inTransaction(() => {
      for (let index = 0; index < 100_000; index++) {
        const facts = { stage: "remote", head: "none", sequence: 1, durableSequence: 1, manifestVersion: 1 } as const;
        catalog.put(testRow(`d${index}`, facts));
      }
    });
    catalog.close();
    const scene = await openStages(automatic({ folder, limits: { tidyMs: 10 } }));
    await scene.clock.rounds(20);
    const before = process.cpuUsage();
    await scene.clock.rounds(50);
    const { user, system } = process.cpuUsage(before);
    // A round of one that looked at all of them would take a hundred milliseconds.
    expect((user + system) / 1000 / 50).toBeLessThan(5);
    expect(scene.timerCount()).toBeLessThanOrEqual(3);
    await scene.close();
  });
});
