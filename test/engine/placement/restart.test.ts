import { rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { MemoryBucket } from "../../support/memory-object-store.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { failureOf } from "../support.ts";
import { openStages, type StagesScene } from "./stages.ts";

const newFolder = temporaryFolders();

/** What a loss of the machine's memory leaves: the local folder. */
function loseMemory(folder: string): void {
  rmSync(join(folder, "memory"), { recursive: true });
}

/** What an unclean end leaves: nothing says that the catalog is right. */
function loseCatalog(folder: string): void {
  for (const ending of ["", "-wal"]) rmSync(join(folder, "local", `catalog.sqlite${ending}`), { force: true });
}

async function values(scene: StagesScene, id: string): Promise<unknown[]> {
  return (await scene.rows(id, "SELECT x FROM t ORDER BY x")).flat();
}

async function make(scene: StagesScene, id: string): Promise<void> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (x)");
  await scene.run(id, "INSERT INTO t VALUES (1)");
}

describe("a new start finds a database", () => {
  it.each([
    ["in memory", ["memory"]],
    ["on the local disk", []],
    ["on the remote stage", ["remote"]],
    ["on the local disk, back from memory", ["memory", "local"]],
    ["in memory, back from the remote stage", ["remote", "memory"]],
  ] as const)("%s, with and without the catalog", async (_, moves) => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    for (const target of moves) {
      const { stage } = await scene.engine.getDatabaseStage("a");
      const order = ["memory", "local", "remote"];
      await scene.move(order.indexOf(target) < order.indexOf(stage) ? "promote" : "demote", "a", target);
      if (target !== "remote") await scene.run("a", `INSERT INTO t VALUES (2)`);
    }
    const expected = await values(scene, "a");
    const { position } = await scene.engine.getDatabase("a");
    const [place] = await scene.placesOf("a");
    await scene.close();

    scene = await openStages({ folder, bucket });
    expect((await scene.placesOf("a"))[0]).toBe(place);
    expect((await scene.engine.getDatabase("a")).position).toEqual(position);
    expect(await values(scene, "a")).toEqual(expected);
    await scene.close();

    loseCatalog(folder);
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual(expected);
    const again = await scene.engine.getDatabase("a");
    expect(again.position.lineage).toBe(position.lineage);
    expect(again.position.sequence).toBeGreaterThanOrEqual(position.sequence);
    await scene.run("a", "INSERT INTO t VALUES (3)", "local");
    expect(await values(scene, "a")).toEqual([...expected, 3]);
    await scene.close();
  });

  it("whose memory is gone: what was sealed is there, and goes on to the remote stage", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.move("promote", "a");
    await scene.run("a", "INSERT INTO t VALUES (2)");
    await scene.run("a", "INSERT INTO t VALUES (3)", "local");
    const { position } = await scene.run("a", "INSERT INTO t VALUES (4)", "remote");
    await scene.close();
    loseMemory(folder);

    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2, 3, 4]);
    expect(await scene.stageOf("a")).toBe("local");
    await scene.run("a", "INSERT INTO t VALUES (5)", "remote");
    expect((await scene.engine.getDatabase("a")).position.sequence).toBeGreaterThan(position.sequence);
    await scene.move("demote", "a");
    expect(await values(scene, "a")).toEqual([1, 2, 3, 4, 5]);
    await scene.close();
  });

  it("made in memory, whose memory is gone: what was LOCAL is there, without a remote stage too", async () => {
    const folder = newFolder();
    let scene = await openStages({ folder, remote: false });
    await scene.create("a", { initialStage: "memory" });
    expect(scene.memoryFiles()).toHaveLength(1);
    await scene.run("a", "CREATE TABLE t (x)", "local");
    await scene.run("a", "INSERT INTO t VALUES (1)", "local");
    await scene.close();
    loseMemory(folder);
    scene = await openStages({ folder, remote: false });
    expect(await values(scene, "a")).toEqual([1]);
    await scene.close();
  });

  it("without its folder: brought back from the remote stage when it is called", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (2)", "remote");
    await scene.close();
    rmSync(join(folder, "local", "databases", "a"), { recursive: true });
    scene = await openStages({ folder, bucket });
    expect(await scene.stageOf("a")).toBe("remote");
    expect(await values(scene, "a")).toEqual([1, 2]);
    await scene.close();
  });

  it("whose remote stage is not configured any more: says so, and finds it later", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.move("demote", "a");
    await scene.close();
    scene = await openStages({ folder, remote: false });
    await failureOf(scene.run("a", "SELECT 1"), "STAGE_NOT_CONFIGURED");
    await scene.close();
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1]);
    await scene.close();
  });

  it("leaves nothing in memory of databases that are not there", async () => {
    const folder = newFolder();
    let scene = await openStages({ folder });
    await make(scene, "a");
    await make(scene, "b");
    await scene.move("promote", "a");
    await scene.move("promote", "b");
    await scene.close();
    rmSync(join(folder, "local", "databases", "a"), { recursive: true });
    scene = await openStages({ folder, bucket: new Map() });
    expect(scene.memoryFiles().map((name) => name.slice(0, 2))).toEqual(["b."]);
    expect(await values(scene, "b")).toEqual([1]);
    await scene.close();
  });
});

describe("a new database", () => {
  it.each([
    [1, 3, true, "memory"],
    [2, 3, true, "local"],
    [3, 3, true, "remote"],
    [3, 2, true, "local"],
    [1, 3, false, "local"],
  ] as const)(
    "with creation stage %i, persistence stage %i, memory %s lives on %s",
    async (defaultCreationStage, persistenceStage, hasMemory, stage) => {
      const scene = await openStages({
        folder: newFolder(),
        settings: { defaultCreationStage, persistenceStage },
        ...(hasMemory ? {} : { memory: false }),
      });
      expect((await scene.create("a")).stage).toBe(stage);
      await scene.run("a", "CREATE TABLE t (x)");
      expect(await scene.stageOf("a")).toBe(stage);
      expect(
        (await scene.list({ filter: `stage = STAGE_${stage.toUpperCase()}` })).databases.map(({ id }) => id),
      ).toEqual(["a"]);
      await scene.close();
    },
  );

  it("lives where it is asked for, or is refused", async () => {
    const scene = await openStages({ folder: newFolder(), memory: { databaseCountMax: 1 } });
    for (const initialStage of ["memory", "local", "remote"] as const) {
      expect((await scene.create(initialStage, { initialStage })).stage).toBe(initialStage);
      await scene.run(initialStage, "CREATE TABLE t (x)");
    }
    await failureOf(scene.create("more", { initialStage: "memory" }), "STAGE_FULL");
    await failureOf(scene.engine.getDatabase("more"), "DATABASE_NOT_FOUND");
    await scene.close();
  });

  it("goes to the local stage where memory is full and nobody asked for it", async () => {
    const scene = await openStages({
      folder: newFolder(),
      settings: { defaultCreationStage: 1 },
      memory: { databaseCountMax: 1 },
    });
    expect((await scene.create("a")).stage).toBe("memory");
    expect((await scene.create("b")).stage).toBe("local");
    await scene.close();
  });

  it("is deleted with everything it has in memory, and the name can be taken again", async () => {
    const scene = await openStages({ folder: newFolder() });
    await scene.create("a", { initialStage: "memory" });
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.engine.deleteDatabase("a", undefined, false);
    expect(scene.memoryFiles()).toEqual([]);
    await scene.create("a", { initialStage: "memory" });
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.close();
  });
});
