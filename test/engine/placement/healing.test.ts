/** A database file that the local disk has lost comes back from the remote stage and the log, or not at all. */
import {
  closeSync,
  cpSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import type { FileSystem } from "../../../src/files/file-system.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
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

/** Overwrites the pages behind the first, which the database cannot do without, in place. */
function overwrite(path: string): void {
  const file = openSync(path, "r+");
  const { size } = fstatSync(file);
  writeSync(file, Buffer.alloc(size - 4096, 0x5a), 0, size - 4096, 4096);
  closeSync(file);
}

/** Puts everything into the database file, as a checkpoint does; nobody has it open. */
function fold(path: string): void {
  const database = new Database(path);
  database.pragma("wal_checkpoint(TRUNCATE)");
  database.close();
}

/** The rows, as soon as it is healed; every call before says that the file is damaged. */
function healed(scene: StagesScene, id: string): Promise<unknown[]> {
  return until("it is healed", async () => {
    try {
      return await values(scene, id);
    } catch (error) {
      expect(error).toMatchObject({ reason: "DATA_CORRUPT" });
      return undefined;
    }
  });
}

const linesOf = (scene: StagesScene, text: string) => scene.lines.filter(({ message }) => message.includes(text));

describe("a file that SQLite finds damaged", () => {
  /** Damaged while nobody has it open, and opened again. */
  async function damaged(folder: string, bucket: MemoryBucket): Promise<StagesScene> {
    const scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (2)", "local");
    await scene.close();
    overwrite(fileOf(folder, "a"));
    return openStages({ folder, bucket });
  }

  it("is made again from the remote stage while the server runs, with everything", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await damaged(folder, bucket);
    const { position } = await scene.engine.getDatabase("a");
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    expect(await healed(scene, "a")).toEqual([1, 2]);
    const found = await scene.engine.getDatabase("a");
    expect(found).toMatchObject({ state: "ready", stage: "local", position: { lineage: position.lineage } });
    expect(found.position.sequence).toBeGreaterThanOrEqual(position.sequence);
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    expect(scene.localFiles("a")).not.toContain("db.sqlite.new");
    await scene.close();

    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
    rmSync(join(folder, "local"), { recursive: true });
    scene = await openStages({ folder, bucket });
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("while it is open, with commits that only its WAL has, is made again with them", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.run("a", "CREATE TABLE u (x)");
    await scene.close();
    fold(fileOf(folder, "a"));
    const image = newFolder();
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async rename(from, to) {
        await nodeFileSystem.rename(from, to);
        // As the disk is when the machine dies now.
        if (from.endsWith("db.sqlite.new")) cpSync(join(folder, "local"), join(image, "local"), { recursive: true });
      },
    };
    // Nothing is uploaded by itself.
    scene = await openStages({ folder, bucket, processes: true, intervalMs: 3_600_000, fileSystem });
    await scene.run("a", "INSERT INTO u VALUES (7)");
    overwrite(fileOf(folder, "a"));
    await scene.run("a", "INSERT INTO u VALUES (8)");
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    await scene.run("a", "INSERT INTO u VALUES (9)");
    expect(await healed(scene, "a")).toEqual([1]);
    expect(await scene.rows("a", "SELECT x FROM u")).toEqual([[7], [8], [9]]);
    expect(readdirSync(join(image, "local", "databases", "a"))).toContain("db.sqlite-wal");
    const after = await openStages({ folder: image, bucket: new Map(bucket) });
    expect(await values(after, "a")).toEqual([1]);
    expect(await after.rows("a", "SELECT x FROM u")).toEqual([[7], [8], [9]]);
    await after.close();

    await scene.run("a", "INSERT INTO t VALUES (2)");
    expect(await values(scene, "a")).toEqual([1, 2]);

    // What it was made of is no better: that is for people.
    overwrite(fileOf(folder, "a"));
    await until("it is stopped", async () => {
      // What they say does not matter here.
      await Promise.allSettled([scene.run("a", "INSERT INTO u VALUES (10)")]);
      await Promise.allSettled([scene.rows("a", "SELECT x FROM t")]);
      return (await scene.engine.getDatabase("a")).state === "faulted";
    });
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATABASE_FAULTED");
    await scene.close();
  });

  it("and was brought from the remote stage just before, is made again with what came since", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, bucket });
    await make(scene, "a");
    await scene.run("a", "CREATE TABLE u (x)", "remote");
    await scene.close();
    rmSync(join(folder, "local"), { recursive: true });
    scene = await openStages({ folder, bucket, processes: true, intervalMs: 3_600_000 });
    await scene.run("a", "INSERT INTO u VALUES (7)");
    overwrite(fileOf(folder, "a"));
    await scene.run("a", "INSERT INTO u VALUES (8)");
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    expect(await healed(scene, "a")).toEqual([1]);
    expect(await scene.rows("a", "SELECT x FROM u")).toEqual([[7], [8]]);
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
    overwrite(join(folder, "memory", "databases", name, "db.sqlite"));
    scene = await openStages({ folder, bucket });
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    expect(await healed(scene, "a")).toEqual([1, 2]);
    expect(await scene.stageOf("a")).toBe("local");
    await scene.run("a", "INSERT INTO t VALUES (3)", "remote");
    expect(await values(scene, "a")).toEqual([1, 2, 3]);
    await scene.close();
  });

  it("is made again when the remote stage is there again", async () => {
    const scene = await damaged(newFolder(), new Map());
    scene.faults = () => [{ kind: "fail_before" }];
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    await until("it was tried", () => linesOf(scene, "is not healed yet").length === 1);
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    scene.faults = () => [];
    scene.clock.jump(31_000);
    expect(await healed(scene, "a")).toEqual([1, 2]);
    await scene.close();
  });

  it("stays as it is when the remote copy is damaged too, and is not tried again and again", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    const scene = await damaged(folder, bucket);
    const before = readFileSync(fileOf(folder, "a"));
    for (const [key, object] of bucket) {
      if (key.endsWith(".ltx")) object.bytes.fill(0x33, 100);
    }
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    await until("it was tried", () => linesOf(scene, "cannot be healed").length === 1);
    scene.calls.length = 0;
    for (let call = 0; call < 5; call++) await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    expect(scene.calls.filter((call) => call.includes(".ltx"))).toEqual([]);
    expect(linesOf(scene, "damaged database cannot be healed")).toHaveLength(1);
    expect((await scene.engine.getDatabase("a")).state).toBe("ready");
    expect(readFileSync(fileOf(folder, "a"))).toEqual(before);
    expect(scene.localFiles("a")).not.toContain("db.sqlite.new");
    await scene.close();
  });

  it("is never uploaded where the log does not hold all of it", async () => {
    const folder = newFolder();
    const bucket: MemoryBucket = new Map();
    let scene = await openStages({ folder, remote: false });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", "INSERT INTO t VALUES (1)");
    await scene.close();
    fold(fileOf(folder, "a"));
    overwrite(fileOf(folder, "a"));
    scene = await openStages({ folder, bucket, intervalMs: 3_600_000 });
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    await until("it was tried", () => linesOf(scene, "cannot be healed").length === 1);
    await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    await scene.close();
    expect([...bucket.keys()].filter((key) => key.endsWith(".ltx"))).toEqual([]);
  });

  it("without a remote stage says so, and goes on", async () => {
    const folder = newFolder();
    let scene = await openStages({ folder, remote: false });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", "INSERT INTO t VALUES (1)");
    await scene.close();
    fold(fileOf(folder, "a"));
    overwrite(fileOf(folder, "a"));
    scene = await openStages({ folder, remote: false });
    for (let call = 0; call < 3; call++) await failureOf(scene.rows("a", "SELECT x FROM t"), "DATA_CORRUPT");
    expect(linesOf(scene, "cannot be healed").map(({ facts }) => facts["problem"])).toEqual([
      "there is no remote copy",
    ]);
    expect((await scene.engine.getDatabase("a")).state).toBe("ready");
    await scene.close();
  });
});
