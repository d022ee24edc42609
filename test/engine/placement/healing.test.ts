/** A database file that the local disk has lost comes back from the remote stage and the log, or not at all. */
import { cpSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { Failure } from "../../../src/failure/failure.ts";
import type { MemoryBucket } from "../../support/memory-object-store.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { until } from "../../support/until.ts";
import { failureOf } from "../support.ts";
import { openStages, type StagesScene } from "./stages.ts";

const newFolder = temporaryFolders();

/** What an unclean end leaves: nobody says that the catalog is right. */
function distrustCatalog(folder: string): void {
  const catalog = new Database(join(folder, "local", "catalog.sqlite"));
  catalog.prepare("UPDATE meta SET value = x'00' WHERE key = 'clean'").run();
  catalog.close();
}

const fileOf = (folder: string, id: string) => join(folder, "local", "databases", id, "db.sqlite");

const damages: readonly (readonly [string, (path: string) => void])[] = [
  ["gone", (path) => rmSync(path)],
  ["empty", (path) => truncateSync(path, 0)],
  ["something else", (path) => writeFileSync(path, Buffer.alloc(8192, 7))],
];

async function values(scene: StagesScene, id: string): Promise<unknown[]> {
  return (await scene.rows(id, "SELECT x FROM t ORDER BY x")).flat();
}

async function make(scene: StagesScene, id: string): Promise<void> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (x)");
  await scene.run(id, "INSERT INTO t VALUES (1)", "remote");
}

describe("a local file that is", () => {
  it.each(damages)("%s comes back from the remote stage", async (_, damage) => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    const { position } = await scene.run("a", "INSERT INTO t VALUES (2)", "remote");
    await scene.close();
    distrustCatalog(folder);
    damage(fileOf(folder, "a"));

    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2]);
    const found = await scene.engine.getDatabase("a");
    expect(found).toMatchObject({ state: "ready", stage: "local" });
    expect(found.position.lineage).toBe(position.lineage);
    expect(found.position.sequence).toBeGreaterThanOrEqual(position.sequence);
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    await scene.close();

    rmSync(join(folder, "local"), { recursive: true });
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("gone comes back with what the log has besides", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    scene.faults = (operation) => (operation === "put" ? [{ kind: "fail_before" }] : []);
    scene.calls.length = 0;
    await scene.run("a", "INSERT INTO t VALUES (2)");
    await until("its upload was tried", () => scene.calls.some((call) => call.startsWith("put a/")));
    await scene.close();
    distrustCatalog(folder);
    rmSync(fileOf(folder, "a"));

    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2]);
    const { durableSequence, sequence } =
      scene.lines.find(({ message }) => message.includes("made again"))?.facts ?? {};
    expect(sequence).toBe(Number(durableSequence) + 1);
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    await scene.close();

    rmSync(join(folder, "local"), { recursive: true });
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("gone comes back when the memory that it was the base of is gone too", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.move("promote", "a", "memory");
    await scene.run("a", "INSERT INTO t VALUES (2)", "remote");
    await scene.close();
    distrustCatalog(folder);
    rmSync(fileOf(folder, "a"));
    rmSync(join(folder, "memory"), { recursive: true });

    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2]);
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("gone can be deleted, and stays away", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.close();
    distrustCatalog(folder);
    rmSync(fileOf(folder, "a"));

    scene = await openStages({ folder, bucket });
    await scene.engine.deleteDatabase("a", undefined, false);
    await until("nothing of it is stored", () => bucket.size === 0);
    await scene.close();
    distrustCatalog(folder);
    expect(readdirSync(join(folder, "local", "databases"))).toEqual([]);
    scene = await openStages({ folder, bucket });
    await failureOf(scene.engine.getDatabase("a"), "DATABASE_NOT_FOUND");
    await scene.close();
  });

  it("gone is no part of what a restore in place brings", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    const { position } = await scene.engine.getDatabase("a");
    for (const x of [2, 3, 4]) await scene.run("a", `INSERT INTO t VALUES (${x})`, "remote");
    await scene.close();
    distrustCatalog(folder);
    rmSync(fileOf(folder, "a"));

    scene = await openStages({ folder, bucket });
    const { error } = await scene.engine.restore({
      id: "a",
      target: { position },
      etag: undefined,
      request: undefined,
      wait: { waitMs: 15_000, cancel: undefined },
    });
    expect(error).toBeUndefined();
    expect(await values(scene, "a")).toEqual([1]);
    await scene.run("a", "INSERT INTO t VALUES (9)", "remote");
    await scene.close();
    distrustCatalog(folder);
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 9]);
    await scene.close();
  });

  it("gone, with commits in the WAL that nothing else has, waits for an operator", async () => {
    const folder = newFolder();
    const image = newFolder();
    const bucket: MemoryBucket = new Map();
    const scene = await openStages({ folder, bucket, intervalMs: 3_600_000 });
    await make(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (2)", "local");
    // As the disk is when the machine dies now.
    cpSync(join(folder, "local"), join(image, "local"), { recursive: true });
    await scene.close();
    rmSync(fileOf(image, "a"));

    const after = await openStages({ folder: image, bucket: new Map(bucket) });
    expect((await after.engine.getDatabase("a")).state).toBe("faulted");
    await failureOf(after.rows("a", "SELECT x FROM t"), "DATABASE_FAULTED");
    await after.close();
  });

  it("gone comes back as soon as the remote stage answers", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.close();
    distrustCatalog(folder);
    rmSync(fileOf(folder, "a"));

    scene = await openStages({ folder, bucket });
    scene.faults = () => [{ kind: "fail_before" }];
    await failureOf(scene.rows("a", "SELECT x FROM t"), "STAGE_UNAVAILABLE");
    scene.faults = () => [];
    expect(await values(scene, "a")).toEqual([1]);
    await scene.close();
  });
});

describe("a file that SQLite finds damaged", () => {
  /** Overwrites the pages behind the first, which the database cannot do without. */
  function damage(path: string): void {
    const bytes = readFileSync(path);
    bytes.fill(0x5a, 4096);
    writeFileSync(path, bytes);
  }

  it("is made again from the remote stage while the server runs, with everything", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (2)", "local");
    await scene.close();
    damage(fileOf(folder, "a"));
    scene = await openStages({ folder, bucket });
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    const rows = await until("it is made again", async () => {
      const answer = await scene.rows("a", "SELECT x FROM t ORDER BY x").then(
        (found) => found.flat(),
        (error: Failure) => error,
      );
      return answer instanceof Failure ? undefined : answer;
    });
    expect(rows).toEqual([1, 2]);
    expect(await scene.stageOf("a")).toBe("local");
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("in memory is made again from its base and its log", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.move("promote", "a", "memory");
    await scene.run("a", "INSERT INTO t VALUES (2)");
    const [name = ""] = scene.memoryFiles();
    await scene.close();
    damage(join(folder, "memory", "databases", name, "db.sqlite"));
    scene = await openStages({ folder, bucket });
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    const rows = await until("it is made again", async () => {
      const answer = await scene.rows("a", "SELECT x FROM t ORDER BY x").then(
        (found) => found.flat(),
        (error: Failure) => error,
      );
      return answer instanceof Failure ? undefined : answer;
    });
    expect(rows).toEqual([1, 2]);
    await scene.close();
  });
});
