/** Creating, reading, listing, changing and deleting databases. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Failure } from "../../src/failure/failure.ts";
import type { FileSystem } from "../../src/files/file-system.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { statement } from "./fixtures.ts";
import { openScene } from "./scene.ts";
import { failureOf, until } from "./support.ts";

const newFolder = temporaryFolders();
const request = (hash = "h") => ({ id: "0".repeat(32), method: "CreateDatabase", hash });

describe("create", () => {
  it("makes an empty database that is there after a restart", async () => {
    const directoryPath = newFolder();
    const clock = new ManualClock();
    const first = await openScene({ directoryPath, clock });
    const made = await first.create("acme.orders", { labels: { team: "billing" }, foreignKeys: false });
    expect(made).toMatchObject({
      id: "acme.orders",
      state: "ready",
      stage: "local",
      durablePosition: undefined,
      createTimeMs: clock.wallMs(),
      lastAccessTimeMs: clock.wallMs(),
      labels: { team: "billing" },
      foreignKeys: false,
    });
    expect(made.position).toEqual({ lineage: expect.stringMatching(/^[0-9a-f]{16}$/), sequence: 0n });
    expect(await first.engine.getDatabase("acme.orders")).toEqual(made);
    expect(
      await first.rows("acme.orders", "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE '\\_%' ESCAPE '\\'"),
    ).toEqual([[0]]);
    await first.close();
    const second = await openScene({ directoryPath, clock });
    expect(await second.engine.getDatabase("acme.orders")).toMatchObject({ ...made, sizeBytes: expect.anything() });
    await second.close();
  });

  it("refuses what breaks the rules, all of them at once", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const failure = await failureOf(
      scene.create("../x", { labels: { A: "x", long: "x".repeat(257) } }),
      "FIELD_INVALID",
    );
    expect(failure.violations.map((each) => each.field)).toEqual(["database", "labels.A", "labels.long"]);
    for (const initialStage of ["memory", "remote"] as const) {
      const missing = await failureOf(scene.create("a", { initialStage }), "STAGE_NOT_CONFIGURED");
      expect(missing.facts).toEqual({ stage: initialStage });
    }
    expect((await scene.create("a", { initialStage: "local" })).stage).toBe("local");
    await scene.close();
  });

  it("of a name that is there fails, or with allow_existing changes nothing", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const made = await scene.create("a", { labels: { x: "1" } });
    await failureOf(scene.create("a"), "DATABASE_EXISTS");
    expect(await scene.create("a", { labels: { x: "2" }, allowExisting: true })).toEqual(made);
    await scene.close();
  });

  it("repeated with the same request_id gives the first answer, for as long as it is kept", async () => {
    const directoryPath = newFolder();
    const clock = new ManualClock();
    const limits = { createRecordMs: 60_000 };
    let scene = await openScene({ directoryPath, clock, limits });
    const made = await scene.create("a", { labels: { x: "1" }, request: request() });
    await scene.engine.updateDatabase({ id: "a", etag: undefined, labels: { x: "2" }, foreignKeys: false });
    await scene.run("a", "CREATE TABLE t (x)");
    const repeat = () => scene.create("a", { labels: { x: "1" }, request: request() });
    expect(await repeat()).toMatchObject({ ...made, sizeBytes: expect.anything() });
    await failureOf(scene.create("a", { request: request("other") }), "FIELD_INVALID");
    await failureOf(scene.create("a", { request: { ...request(), id: "1".repeat(32) } }), "DATABASE_EXISTS");
    // The scope of a request_id is the database, over all methods.
    const failure = await failureOf(scene.run("a", "SELECT 1", "committed", request()), "FIELD_INVALID");
    expect(failure.facts["field"]).toBe("request_id");
    await scene.close();
    scene = await openScene({ directoryPath, clock, limits });
    expect(await repeat()).toMatchObject({ etag: made.etag, labels: { x: "1" }, foreignKeys: true });
    clock.advance(60_000);
    await failureOf(repeat(), "DATABASE_EXISTS");
    await scene.close();
  });

  it("of one name by many makes it once", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const results = await Promise.allSettled(Array.from({ length: 20 }, () => scene.create("a")));
    expect(results.filter((result) => result.status === "fulfilled")).toHaveLength(1);
    await scene.close();
  });

  it.each([
    ["EIO", "STAGE_UNAVAILABLE"],
    ["ENOSPC", "STAGE_FULL"],
  ] as const)("that meets %s fails with %s, leaves nothing, and succeeds later", async (code, reason) => {
    const directoryPath = newFolder();
    let broken = false;
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async flushFolder(path) {
        if (broken) throw Object.assign(new Error(code), { code });
        await nodeFileSystem.flushFolder(path);
      },
    };
    const scene = await openScene({ directoryPath, fileSystem });
    broken = true;
    const failure = await failureOf(scene.create("a"), reason);
    expect(failure.facts["stage"]).toBe("local");
    expect(readdirSync(join(directoryPath, "databases"))).toEqual([]);
    await failureOf(scene.engine.getDatabase("a"), "DATABASE_NOT_FOUND");
    broken = false;
    await scene.create("a");
    await scene.close();
  });
});

describe("get", () => {
  it("tells what is there now", async () => {
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath: newFolder(), clock });
    const made = await scene.create("a");
    clock.advance(500);
    const { position } = await scene.run("a", "CREATE TABLE t (x)");
    const info = await scene.engine.getDatabase("a");
    expect(info).toMatchObject({ position, etag: made.etag, lastAccessTimeMs: made.createTimeMs + 500 });
    expect(info.sizeBytes).toBeGreaterThan(made.sizeBytes);
    await scene.close();
  });

  it("tells a missing name from an impossible one", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    await failureOf(scene.engine.getDatabase("a"), "DATABASE_NOT_FOUND");
    await failureOf(scene.run("a", "SELECT 1"), "DATABASE_NOT_FOUND");
    await failureOf(() => scene.engine.position("a"), "DATABASE_NOT_FOUND");
    const failure = await failureOf(scene.engine.getDatabase("x".repeat(1_000_000)), "FIELD_INVALID");
    expect(failure.message.length).toBeLessThan(1000);
    await scene.close();
  });
});

describe("list", () => {
  it("pages in order, with filter, until the token is empty", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    for (let number = 0; number < 12; number++)
      await scene.create(`d${number}`, { labels: { odd: String(number % 2) } });
    const input = { pageSize: 2, filter: "labels.odd = 1 AND stage = STAGE_LOCAL", orderBy: "id desc" };
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await scene.list({ ...input, pageToken });
      seen.push(...page.databases.map((database) => database.id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).toEqual(["d9", "d7", "d5", "d3", "d11", "d1"]);
    const { nextPageToken } = await scene.list(input);
    await failureOf(scene.list({ ...input, orderBy: "", pageToken: nextPageToken }), "PAGE_TOKEN_INVALID");
    await failureOf(scene.list({ pageSize: -1 }), "FIELD_INVALID");
    expect((await scene.list()).databases).toHaveLength(12);
    await scene.close();
  });

  it("hears of use from the one timer", async () => {
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath: newFolder(), clock });
    await scene.create("a");
    await scene.create("b");
    clock.advance(5000);
    await scene.run("a", "CREATE TABLE t (x)");
    expect((await scene.list({ orderBy: "last_access_time desc" })).databases.map((each) => each.id)).toEqual([
      "b",
      "a",
    ]);
    clock.advance(1000);
    expect((await scene.list({ orderBy: "last_access_time desc" })).databases.map((each) => each.id)).toEqual([
      "a",
      "b",
    ]);
    expect((await scene.list({ filter: "size_bytes > 4096" })).databases.map((each) => each.id)).toEqual(["a"]);
    await scene.close();
  });
});

describe("update", () => {
  it("changes labels and options, and with them the etag; data does not change it", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const made = await scene.create("a", { labels: { x: "1" } });
    const update = (change: object) =>
      scene.engine.updateDatabase({ id: "a", etag: undefined, labels: undefined, foreignKeys: undefined, ...change });
    expect((await update({ labels: { x: "1" } })).etag).toBe(made.etag);
    await scene.run("a", "CREATE TABLE t (x)");
    expect((await update({})).etag).toBe(made.etag);
    const second = await update({ labels: { y: "2" }, etag: made.etag });
    expect(second.labels).toEqual({ y: "2" });
    expect(second.etag).not.toBe(made.etag);
    await failureOf(update({ labels: {}, etag: made.etag }), "ETAG_MISMATCH");
    const third = await update({ foreignKeys: false, etag: second.etag });
    expect(third).toMatchObject({ foreignKeys: false, labels: { y: "2" } });
    expect(third.etag).not.toBe(second.etag);
    await failureOf(update({ labels: { Bad: "" } }), "FIELD_INVALID");
    await scene.close();
  });

  it("loses no change when many come at once", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    const { etag } = await scene.create("a");
    const guarded = Array.from({ length: 10 }, (_, number) =>
      scene.engine.updateDatabase({ id: "a", etag, labels: { n: String(number) }, foreignKeys: undefined }),
    );
    expect((await Promise.allSettled(guarded)).filter((each) => each.status === "fulfilled")).toHaveLength(1);
    await scene.close();
    const facts = JSON.parse(readFileSync(join(directoryPath, "databases", "a", "database.json"), "utf8"));
    expect(facts).toMatchObject({ etagVersion: 2, labels: { n: "0" } });
  });

  it("of a missing database fails", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const input = { id: "a", etag: undefined, labels: {}, foreignKeys: undefined };
    await failureOf(scene.engine.updateDatabase(input), "DATABASE_NOT_FOUND");
    await scene.close();
  });
});

describe("delete", () => {
  it("frees the files; the same name can be made again, with another lineage and nothing in it", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath });
    const first = await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)", "local");
    await scene.engine.deleteDatabase("a", undefined, false);
    expect(readdirSync(join(directoryPath, "databases"))).toEqual([]);
    await failureOf(scene.run("a", "SELECT 1"), "DATABASE_NOT_FOUND");
    await failureOf(scene.engine.deleteDatabase("a", undefined, false), "DATABASE_NOT_FOUND");
    await scene.engine.deleteDatabase("a", undefined, true);
    await failureOf(scene.engine.deleteDatabase("A", undefined, true), "FIELD_INVALID");
    const second = await scene.create("a");
    expect(second.position.lineage).not.toBe(first.position.lineage);
    expect(second.etag).not.toBe(first.etag);
    await scene.run("a", "CREATE TABLE t (x)", "local");
    expect(scene.engine.stats()).toMatchObject({ databases: 1 });
    await scene.close();
  });

  it("asks for the right etag", async () => {
    const scene = await openScene({ directoryPath: newFolder() });
    const { etag } = await scene.create("a");
    await failureOf(scene.engine.deleteDatabase("a", `${etag}x`, false), "ETAG_MISMATCH");
    await scene.engine.deleteDatabase("a", etag, false);
    await scene.close();
  });

  it("waits for a query that runs, and lets nothing new in", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath, limits: { deleteGraceMs: 60_000 } });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", "INSERT INTO t VALUES (1), (2)");
    const { cursor } = await scene.engine.query("a", statement("SELECT x FROM t"), undefined, {
      ...scene.options(),
      chunkRowsMax: 1,
      chunkBytesMax: 65_536,
    });
    const deleted = scene.engine.deleteDatabase("a", undefined, false);
    const created = scene.create("a");
    while ((await scene.engine.getDatabase("a")).state !== "deleting") await new Promise(setImmediate);
    await failureOf(scene.run("a", "SELECT 1"), "DATABASE_NOT_FOUND");
    expect(existsSync(join(directoryPath, "databases", "a", "db.sqlite"))).toBe(true);
    while ((await cursor.next()) !== undefined);
    await deleted;
    await created;
    expect(await scene.rows("a", "SELECT count(*) FROM sqlite_schema WHERE name = 't'")).toEqual([[0]]);
    await scene.close();
  });

  it("ends a transaction that does not end by itself", async () => {
    const clock = new ManualClock();
    const scene = await openScene({ directoryPath: newFolder(), clock });
    await scene.create("a");
    const transaction = await scene.engine.begin("a", true, 0, undefined, scene.options());
    let deleted = false;
    const done = scene.engine.deleteDatabase("a", undefined, false).then(() => (deleted = true));
    await until(() => scene.engine.stats().openDatabases === 0);
    expect(deleted).toBe(false);
    clock.advance(500);
    await done;
    expect(transaction.isOpen).toBe(false);
    await scene.close();
  });

  it("ends statements that do not end by themselves, and tells their callers why", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath, limits: { deleteGraceMs: 20 } });
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    await scene.run("a", `INSERT INTO t SELECT value FROM json_each('[${Array(1000).fill(1)}]')`);
    const { cursor } = await scene.engine.query("a", statement("SELECT x FROM t"), undefined, {
      ...scene.options(),
      chunkRowsMax: 1,
      chunkBytesMax: 65_536,
    });
    await scene.engine.deleteDatabase("a", undefined, false);
    const left = async () => {
      while ((await cursor.next()) !== undefined);
    };
    await failureOf(left(), "DATABASE_NOT_FOUND");
    await scene.create("a");
    await scene.run("a", "CREATE TABLE t (x)");
    expect(scene.lines).toEqual([]);
    await scene.close();
  });

  it("that cannot rename leaves the database as it was", async () => {
    let broken = false;
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async rename(from, to) {
        if (broken) throw Object.assign(new Error("EIO"), { code: "EIO" });
        await nodeFileSystem.rename(from, to);
      },
    };
    const scene = await openScene({ directoryPath: newFolder(), fileSystem });
    await scene.create("a");
    const { position } = await scene.run("a", "CREATE TABLE t (x)");
    broken = true;
    await failureOf(scene.engine.deleteDatabase("a", undefined, false), "STAGE_UNAVAILABLE");
    broken = false;
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    expect(scene.engine.position("a")).toEqual(position);
    await scene.engine.deleteDatabase("a", undefined, false);
    await scene.close();
  });

  it("and create and use of the same names by many at once end in order", async () => {
    const directoryPath = newFolder();
    const scene = await openScene({ directoryPath, limits: { openDatabaseCountMax: 2 } });
    const allowed = ["DATABASE_EXISTS", "DATABASE_NOT_FOUND", "DATABASE_BUSY"];
    let worked = 0;
    await Promise.all(
      Array.from({ length: 12 }, async (_, worker) => {
        for (let step = 0; worked < 25; step++) {
          const id = `d${(worker + step) % 4}`;
          try {
            const kind = (worker * 31 + step * 17) % 5;
            if (kind === 0) await scene.engine.deleteDatabase(id, undefined, false);
            else if (kind === 1) await scene.create(id);
            else {
              await scene.run(id, "CREATE TABLE IF NOT EXISTS t (x)", "local");
              worked++;
            }
          } catch (error) {
            expect(error).toBeInstanceOf(Failure);
            expect(allowed).toContain((error as Failure).reason);
            await new Promise(setImmediate);
          }
        }
      }),
    );
    const { databases } = await scene.list();
    expect(readdirSync(join(directoryPath, "databases")).sort()).toEqual(databases.map((each) => each.id));
    await scene.close();
  });
});
