/** What syncing does with remote copies besides uploads: upkeep, deletions, discovery. */
import { describe, expect, it } from "vitest";
import type { FoundAtStart, Tombstone } from "../../../src/engine/sync/sync.ts";
import { failureOf } from "../support.ts";
import { SyncScene, type TestDatabase } from "./scene.ts";

const nothingFound: FoundAtStart = { unsynced: [], upkeeps: [], tombstones: [], isCatalogComplete: true };
const minute = 60_000;
const hour = 60 * minute;

function keysOf(scene: SyncScene, id: string): string[] {
  return [...scene.bucket.keys()].filter((key) => key.startsWith(`${id}/`));
}

function levelsOf(scene: SyncScene, { id, lineage }: TestDatabase): Record<string, number> {
  const levels: Record<string, number> = {};
  for (const key of keysOf(scene, id)) {
    const level = key.slice(`${id}/${lineage}/`.length).split("/")[0];
    if (level !== undefined && /^\d{4}$/.test(level)) levels[level] = (levels[level] ?? 0) + 1;
  }
  return levels;
}

describe("upkeep", () => {
  it("keeps the copy of a database that is written all day short, and stops when the writes do", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    for (let passed = 0; passed < 2 * hour; passed += 20_000) {
      scene.commit(database);
      await scene.pass(20_000, 10_000);
      if (passed % (10 * minute) === 0 && passed > 0) {
        const levels = levelsOf(scene, database);
        // Five minutes of batches and what is not merged yet.
        expect(levels["0000"]).toBeLessThan(25);
      }
    }
    const levels = levelsOf(scene, database);
    expect(levels["0001"]).toBeGreaterThan(0);
    expect(levels["0002"]).toBeGreaterThan(0);
    expect(levels["0009"]).toBe(1);
    expect(scene.sync.stats()).toMatchObject({ snapshots: 1, unsyncedDatabases: 0 });
    expect(scene.sync.stats().compactions).toBeGreaterThan(100);
    // The last snapshot comes a day later, then retention; after that nothing is asked any more.
    await scene.pass(72 * hour, 10 * minute);
    expect(scene.rows.get("a")?.upkeepAtMs).toBe(0);
    scene.calls.length = 0;
    await scene.pass(48 * hour, hour);
    expect(scene.calls).toEqual([]);
    expect(scene.timerCount).toBe(0);
  });

  it("goes on after a restart, from what the catalog has kept", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    for (let round = 0; round < 5; round++) {
      scene.commit(database);
      await scene.pass(6_000);
    }
    await scene.pass(minute);
    const atMs = scene.rows.get("a")?.upkeepAtMs ?? 0;
    expect(atMs).toBeGreaterThan(scene.clock.wallMs());
    await scene.sync.close(1_000);
    const next = await SyncScene.open({ bucket: scene.bucket, clock: scene.clock });
    next.rows.set("a", { ...(scene.rows.get("a") ?? database), head: "none" } as never);
    next.sync.start({ ...nothingFound, upkeeps: [{ id: "a", atMs }] });
    await next.pass(10 * minute, 10_000);
    expect(levelsOf(next, database)["0000"]).toBe(1);
    expect(next.rows.get("a")?.upkeepAtMs).not.toBe(atMs);
  });

  it("runs for no more databases at one time than allowed, and tries again what failed", async () => {
    const scene = await SyncScene.open({ limits: { compactionConcurrencyMax: 2, uploadConcurrencyMax: 64 } });
    const databases = Array.from({ length: 20 }, (_, index) => scene.database(`d${index}`));
    for (let round = 0; round < 2; round++) {
      for (const each of databases) scene.commit(each);
      await scene.pass(6_000);
    }
    let running = 0;
    let most = 0;
    let isBroken = true;
    scene.faults = (operation, key) => {
      if (operation !== "put" || !key.includes("0001/")) return [];
      if (isBroken) {
        isBroken = false;
        return [{ kind: "fail_before" }];
      }
      running++;
      most = Math.max(most, running);
      scene.clock.after(500, () => running--);
      return [{ kind: "delay", ms: 500 }];
    };
    await scene.pass(2 * minute);
    expect(most).toBe(2);
    expect(scene.sync.stats().compactions).toBe(20);
  });

  it("lets go of a history that a restore has replaced when its time is over", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    const key = "a/database.json";
    const stored = JSON.parse(Buffer.from(scene.bucket.get(key)?.bytes ?? []).toString());
    const untilMs = scene.clock.wallMs() + hour;
    const old = { lineage: "00000000000000aa", prefix: "a/00000000000000aa", retiredAtMs: 0, keepUntilMs: untilMs };
    const bytes = Buffer.from(JSON.stringify({ ...stored, retired: [old] }));
    scene.bucket.set(key, { info: { key, sizeBytes: bytes.length, etag: "changed", timestampMs: 0 }, bytes });
    const file = `${old.prefix}/0000/0000000000000001-0000000000000001.ltx`;
    scene.bucket.set(file, { info: { key: file, sizeBytes: 1, etag: "x", timestampMs: 0 }, bytes: Buffer.alloc(1) });
    scene.sync.retired("a", untilMs);
    await scene.pass(hour - minute, minute);
    expect(scene.bucket.has(file)).toBe(true);
    await scene.pass(3 * minute, 2_000);
    expect(scene.bucket.has(file)).toBe(false);
    expect(JSON.parse(Buffer.from(scene.bucket.get(key)?.bytes ?? []).toString()).retired).toEqual([]);
    expect(keysOf(scene, "a")).toHaveLength(2);
  });
});

describe("a damaged file", () => {
  async function damaged() {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    for (let round = 0; round < 3; round++) {
      scene.commit(database);
      await scene.pass(6_000);
    }
    const key = keysOf(scene, "a").find((each) => each.includes("0000/"));
    const stored = scene.bucket.get(key ?? "");
    if (stored === undefined) throw new Error("no batch");
    const bytes = Uint8Array.from(stored.bytes);
    bytes[150] = (bytes[150] ?? 0) ^ 1;
    scene.bucket.set(stored.info.key, { ...stored, bytes });
    return { scene, database };
  }

  it("is healed by a snapshot of the head", async () => {
    const { scene, database } = await damaged();
    await scene.pass(10 * minute, 5_000);
    expect(levelsOf(scene, database)["0009"]).toBe(1);
    expect(scene.lines.filter(({ message }) => message.includes("was damaged"))).toHaveLength(1);
    scene.commit(database);
    await scene.pass(minute, 5_000);
    expect(database.durableTxid).toBe(4n);
  });

  it("is told of once where there is no head, and waits for the next batch", async () => {
    const { scene } = await damaged();
    scene.databases.delete("a");
    await scene.pass(hour, 10_000);
    expect(scene.lines.filter(({ level }) => level === "error")).toHaveLength(1);
    scene.calls.length = 0;
    await scene.pass(hour, minute);
    expect(scene.calls).toEqual([]);
  });
});

describe("a deleted database", () => {
  function tombstone(database: TestDatabase, onDone: () => void): Tombstone {
    const { id, lineage } = database;
    return { id, lineage, prefix: `${id}/${lineage}`, done: async () => onDone() };
  }

  async function deleted(scene: SyncScene, database: TestDatabase, onDone: () => void) {
    await scene.sync.forget(database.id, new Error("gone") as never);
    scene.rows.delete(database.id);
    scene.databases.delete(database.id);
    scene.sync.deleted(tombstone(database, onDone));
  }

  it("loses its manifest first, then its files, then its trace; others keep theirs", async () => {
    const scene = await SyncScene.open();
    const [database, other] = [scene.database("a"), scene.database("a.b")];
    scene.commit(database);
    scene.commit(other);
    await scene.pass(5_000);
    const kept = keysOf(scene, "a.b");
    let isDone = false;
    scene.calls.length = 0;
    await deleted(scene, database, () => {
      isDone = true;
    });
    await scene.pass(1_000);
    expect(isDone).toBe(true);
    expect([...scene.bucket.keys()]).toEqual(kept);
    const order = scene.calls.filter((call) => call.startsWith("delete"));
    expect(order[0]).toContain("database.json");
  });

  it("is removed when the store is back, though it was away for an hour and the server ended meanwhile", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    scene.storeIsAway();
    let isDone = false;
    await deleted(scene, database, () => {
      isDone = true;
    });
    await scene.pass(hour, minute);
    expect(scene.sync.stats().deletionsPending).toBe(1);
    expect(scene.calls.length).toBeLessThan(200);
    await scene.sync.close(1_000);
    const next = await SyncScene.open({ bucket: scene.bucket, clock: scene.clock });
    const found = tombstone(database, () => {
      isDone = true;
    });
    next.sync.start({ ...nothingFound, tombstones: [found] });
    await next.pass(minute);
    expect(isDone).toBe(true);
    expect([...next.bucket.keys()]).toEqual([]);
    expect(next.discovered).toEqual([]);
  });

  it("makes way for a new one of its id, made while the store was away", async () => {
    const scene = await SyncScene.open();
    const first = scene.database("a");
    scene.commit(first);
    await scene.pass(5_000);
    scene.storeIsAway();
    await deleted(scene, first, () => undefined);
    const second = scene.database("a");
    scene.commit(second);
    await scene.pass(minute);
    scene.storeIsBack();
    await scene.pass(minute);
    expect(second.fenced).toBeUndefined();
    expect(second.durableTxid).toBe(1n);
    expect(keysOf(scene, "a").every((key) => key.endsWith(".json") || key.includes(second.lineage))).toBe(true);
  });

  it("leaves the database alone that another server has made of its id", async () => {
    const scene = await SyncScene.open();
    const ours = scene.database("a");
    scene.commit(ours);
    await scene.pass(5_000);
    const theirs = await SyncScene.open({ bucket: new Map(), clock: scene.clock });
    const other = theirs.database("a", {}, "they");
    theirs.commit(other);
    await theirs.pass(5_000);
    for (const [key, object] of theirs.bucket) scene.bucket.set(key, object);
    await deleted(scene, ours, () => undefined);
    await scene.pass(minute);
    expect(keysOf(scene, "a").sort()).toEqual([...theirs.bucket.keys()].sort());
  });
});

describe("discovery", () => {
  async function fullBucket(count: number) {
    const scene = await SyncScene.open({ limits: { uploadConcurrencyMax: 64 } });
    for (let index = 0; index < count; index++) scene.commit(scene.database(`d${index}`));
    await scene.pass(10_000);
    await scene.sync.close(0);
    return scene;
  }

  it("brings everything that only the bucket knows into an empty catalog, once", async () => {
    const before = await fullBucket(30);
    const scene = await SyncScene.open({ bucket: before.bucket, clock: before.clock });
    scene.sync.start({ ...nothingFound, isCatalogComplete: false });
    expect(scene.sync.isDiscovering).toBe(true);
    await scene.pass(5_000);
    expect(scene.sync.isDiscovering).toBe(false);
    expect(scene.isComplete).toBe(true);
    expect(scene.discovered.map(({ manifest }) => manifest.id).sort()).toEqual([...before.rows.keys()].sort());
    for (const { manifest, txid } of scene.discovered) {
      expect(txid).toBe(1n);
      expect(manifest.lineage).toBe(before.rows.get(manifest.id)?.lineage);
    }
    expect(scene.puts).toEqual([]);
  });

  it("looks a single id up while it runs", async () => {
    const before = await fullBucket(3);
    const scene = await SyncScene.open({ bucket: before.bucket, clock: before.clock });
    scene.faults = (operation) => (operation === "list" ? [{ kind: "delay", ms: 5_000 }] : []);
    scene.sync.start({ ...nothingFound, isCatalogComplete: false });
    const [known, unknown] = [scene.sync.lookUp("d1"), scene.sync.lookUp("nobody")];
    expect(await unknown).toBe(false);
    await scene.pass(6_000);
    expect(await known).toBe(true);
    expect(scene.rows.has("d1")).toBe(true);
    await scene.pass(20_000);
    expect(scene.discovered).toHaveLength(3);
  });

  it("says that the store is away rather than that there is no such database; a complete catalog knows better", async () => {
    const before = await fullBucket(1);
    for (const isCatalogComplete of [false, true]) {
      const scene = await SyncScene.open({ bucket: before.bucket, clock: before.clock });
      scene.storeIsAway();
      scene.sync.start({ ...nothingFound, isCatalogComplete });
      await scene.pass(1_000);
      if (isCatalogComplete) expect(await scene.sync.lookUp("d0")).toBe(false);
      else await failureOf(scene.sync.lookUp("d0"), "STAGE_UNAVAILABLE");
      scene.storeIsBack();
      await scene.pass(minute);
      expect(scene.discovered).toHaveLength(1);
      expect(scene.isComplete).toBe(true);
    }
  });

  it("takes a manifest that was damaged on its way for what it is, the next time", async () => {
    const before = await fullBucket(1);
    const scene = await SyncScene.open({ bucket: before.bucket, clock: before.clock });
    let gets = 0;
    scene.faults = (operation) => (operation === "get" && ++gets === 1 ? [{ kind: "flip_bit", at: 0 }] : []);
    scene.sync.start({ ...nothingFound, isCatalogComplete: false });
    await scene.pass(5_000, 500);
    expect(scene.discovered).toHaveLength(1);
    expect(scene.isComplete).toBe(true);
  });

  it("passes over what is no database, and what is damaged, and finds the others", async () => {
    const before = await fullBucket(2);
    const put = (key: string, text: string) => {
      const bytes = Buffer.from(text);
      before.bucket.set(key, { info: { key, sizeBytes: bytes.length, etag: key, timestampMs: 0 }, bytes });
    };
    put("Not An Id/database.json", "{}");
    put("damaged/database.json", "{");
    put("a-litestream-replica/0000/0000000000000001-0000000000000001.ltx", "x");
    const scene = await SyncScene.open({ bucket: before.bucket, clock: before.clock });
    scene.sync.start({ ...nothingFound, isCatalogComplete: false });
    await scene.pass(5_000);
    expect(scene.discovered).toHaveLength(2);
    expect(scene.lines.filter(({ level }) => level === "error")).toHaveLength(1);
    // Nobody gets its id meanwhile; it is looked at again, seldom, until somebody has seen to it.
    await failureOf(scene.sync.lookUp("damaged"), "DATA_CORRUPT");
    expect(await scene.sync.lookUp("nobody")).toBe(false);
    expect(scene.isComplete).toBe(false);
    scene.calls.length = 0;
    await scene.pass(hour, 5_000);
    expect(scene.calls.length).toBeLessThan(30);
    before.bucket.delete("damaged/database.json");
    await scene.pass(15 * minute, 5_000);
    expect(scene.isComplete).toBe(true);
    expect(scene.sync.isDiscovering).toBe(false);
  });
});
