import { describe, expect, it } from "vitest";
import { replicaKey } from "../../../src/ltx/replica.ts";
import { failureOf, until } from "../support.ts";
import { SyncScene, type TestDatabase } from "./scene.ts";

function batchKey(database: TestDatabase, txid: number): string {
  const file = { level: 0, minTxid: BigInt(txid), maxTxid: BigInt(txid) };
  return `${database.id}/${database.lineage}/${replicaKey(file)}`;
}

describe("syncing", () => {
  it("uploads the commits of an interval as one batch, then publishes the database", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    for (let commit = 0; commit < 20; commit++) {
      expect(scene.commit(database)).toBe(1n);
      await scene.pass(100, 100);
    }
    expect(scene.puts).toEqual([]);
    await scene.pass(5_000);
    expect(scene.puts).toEqual([`put ${batchKey(database, 1)}`, "put a/database.json"]);
    expect(database.durableTxid).toBe(1n);
    expect(database.log.pending()).toEqual([]);
    // Later batches are one put each, and nothing is asked for.
    scene.calls.length = 0;
    expect(scene.commit(database)).toBe(2n);
    await scene.pass(5_000);
    expect(scene.calls).toEqual([`put ${batchKey(database, 2)}`]);
    expect(scene.sync.stats()).toMatchObject({ uploads: 2, puts: 3, unsyncedDatabases: 0, unsyncedBytes: 0, lagMs: 0 });
    expect(scene.held).toBe(0);
  });

  it("spreads the uploads of databases that were written together", async () => {
    const scene = await SyncScene.open();
    for (let index = 0; index < 50; index++) scene.commit(scene.database(`d${index}`));
    const counts: number[] = [];
    for (let step = 0; step < 10; step++) {
      await scene.pass(500, 500);
      counts.push(scene.puts.length);
    }
    expect(counts[7]).toBe(0);
    expect(counts[8]).toBeGreaterThan(0);
    expect(counts[8]).toBeLessThan(100);
    expect(counts[9]).toBe(100);
  });

  it("runs no more uploads at one time than allowed, those first for whom somebody waits", async () => {
    const scene = await SyncScene.open();
    const ordinary = Array.from({ length: 10 }, (_, index) => scene.database(`ordinary${index}`));
    for (const each of ordinary) scene.commit(each);
    const urgent = scene.database("urgent");
    let running = 0;
    let most = 0;
    scene.faults = (operation) => {
      if (operation !== "put") return [];
      running++;
      most = Math.max(most, running);
      scene.clock.after(100, () => running--);
      return [{ kind: "delay", ms: 100 }];
    };
    scene.clock.advance(5_000);
    const position = scene.commit(urgent);
    const durable = scene.sync.durable(urgent, position, scene.wait());
    await scene.pass(3_000, 50);
    await durable;
    const order = scene.puts.filter((put) => put.includes("0000/")).map((put) => put.split(/[ /]/)[1]);
    expect(order.indexOf("urgent")).toBeLessThan(5);
    expect(most).toBe(4);
    expect(order).toHaveLength(11);
  });

  it("acknowledges a REMOTE write only when its object is there", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.faults = (operation) => (operation === "put" ? [{ kind: "delay", ms: 50 }] : []);
    const position = scene.commit(database);
    let isDone = false;
    const durable = scene.sync.durable(database, position, scene.wait()).then(() => {
      isDone = true;
    });
    await scene.settle();
    expect(scene.puts).toHaveLength(1);
    await scene.pass(49, 49);
    expect([isDone, scene.bucket.size]).toEqual([false, 0]);
    await scene.pass(1, 1);
    // The data is there; what publishes it is on its way.
    expect([isDone, scene.bucket.size]).toEqual([false, 1]);
    await scene.pass(50, 50);
    await durable;
    expect([...scene.bucket.keys()].sort()).toEqual([batchKey(database, 1), "a/database.json"].sort());
  });

  it("gathers who comes while an upload runs in the next one", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    scene.calls.length = 0;
    scene.faults = (operation) => (operation === "put" ? [{ kind: "delay", ms: 20 }] : []);
    const write = () => scene.sync.durable(database, scene.commit(database), scene.wait());
    const waiting = [write()];
    await scene.settle();
    for (let index = 0; index < 10; index++) waiting.push(write());
    await scene.pass(20, 20);
    await waiting[0];
    await scene.pass(20, 20);
    await Promise.all(waiting);
    expect(scene.puts).toHaveLength(2);
    expect(database.durableTxid).toBe(3n);
  });

  it("carries a position that was given out after its batch was closed, though nothing else comes", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    scene.faults = () => {
      // The batch is closed by now: this answer names the next one.
      if (database.log.position === 1n) scene.commit(database);
      return [];
    };
    await scene.pass(5_000);
    expect(database.log.position).toBe(2n);
    await scene.pass(5_000);
    expect(database.durableTxid).toBe(2n);
  });

  it("tells a REMOTE write at its deadline that it is committed and not yet remote", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.storeIsAway();
    const position = scene.commit(database);
    const refused = failureOf(scene.sync.durable(database, position, scene.wait(2_000)), "REMOTE_NOT_REACHED");
    await scene.pass(2_000);
    expect((await refused).facts).toEqual({ database: "a", sequence: "1", durableSequence: "0" });
    scene.storeIsBack();
    await scene.pass(60_000);
    expect(database.durableTxid).toBe(1n);
  });

  it("uploads a created database that nothing was written to", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.sync.factsChanged("a");
    await scene.pass(5_000);
    expect(database.durableTxid).toBe(1n);
    expect(scene.bucket.has("a/database.json")).toBe(true);
  });

  it("does not wait with what is large", async () => {
    const scene = await SyncScene.open({ limits: { unsyncedBytesMax: 2 ** 30 } });
    const database = scene.database("a");
    scene.commit(database);
    database.log.unsyncedBytes = 20 * 2 ** 20;
    scene.commit(database);
    await scene.settle();
    expect(database.durableTxid).toBe(1n);
  });
});

describe("without automatic sync", () => {
  it("carries when it is asked to, and at the end", async () => {
    const scene = await SyncScene.open({ isAutomatic: false });
    const [asked, left] = [scene.database("asked"), scene.database("left")];
    scene.commit(asked);
    scene.commit(left);
    await scene.pass(100_000, 10_000);
    expect(scene.calls).toEqual([]);
    expect(scene.timerCount).toBe(0);
    await scene.sync.durable(asked, 1n, scene.wait());
    expect([asked.durableTxid, left.durableTxid]).toEqual([1n, 0n]);
    expect(await scene.sync.uploadAll(asked, scene.wait())).toBe(1n);
    await scene.sync.close(1_000);
    expect([asked.durableTxid, left.durableTxid]).toEqual([1n, 1n]);
  });
});

describe("facts", () => {
  it("are brought to the manifest, also of a database without a head", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    scene.databases.delete("a");
    scene.change("a", { labels: { team: "blue" }, etagVersion: 2 });
    scene.calls.length = 0;
    scene.sync.factsChanged("a");
    await scene.pass(5_000);
    expect(scene.calls).toEqual(["get a/database.json", "put a/database.json"]);
    const stored = JSON.parse(Buffer.from(scene.bucket.get("a/database.json")?.bytes ?? []).toString());
    expect(stored).toMatchObject({ id: "a", lineage: database.lineage, labels: { team: "blue" }, etagVersion: 2 });
    expect(scene.rows.get("a")?.manifestVersion).toBe(2);
    // Nothing has changed: nothing is asked.
    scene.calls.length = 0;
    scene.sync.factsChanged("a");
    await scene.pass(5_000);
    expect(scene.calls).toEqual([]);
  });
});

describe("a store that is away", () => {
  it("is tried by one database from time to time; all catch up by themselves when it is back", async () => {
    const scene = await SyncScene.open();
    const databases = Array.from({ length: 30 }, (_, index) => scene.database(`d${index}`));
    for (const each of databases) scene.commit(each);
    scene.storeIsAway();
    await scene.pass(10 * 60_000, 5_000);
    expect(scene.sync.health).toMatchObject({ isHealthy: false });
    // 10 minutes at up to 30 s each, and the first few.
    expect(scene.calls.length).toBeLessThan(80);
    expect(scene.sync.stats()).toMatchObject({ uploads: 0, unsyncedDatabases: 30 });
    // What was committed meanwhile goes up with it: one more batch at most.
    for (const each of databases) for (let commit = 0; commit < 10; commit++) scene.commit(each);
    expect(scene.sync.stats().lagMs).toBe(10 * 60_000);
    scene.storeIsBack();
    await scene.pass(60_000);
    expect(scene.sync.health).toEqual({ isHealthy: true, problem: undefined });
    expect(scene.sync.stats()).toMatchObject({ unsyncedDatabases: 0, unsyncedBytes: 0 });
    for (const { durableTxid, log } of databases) {
      expect(durableTxid).toBe(log.position);
      expect(log.closes).toBeLessThanOrEqual(2);
    }
    const said = scene.lines.map(({ message }) => message);
    expect(said.filter((message) => message.includes("does not answer"))).toHaveLength(1);
    expect(said.filter((message) => message.includes("answers again"))).toHaveLength(1);
    expect(said.length).toBeLessThan(40);
  });

  it("refuses writes beyond the budget clearly; REMOTE ones wait for room until their deadline", async () => {
    const scene = await SyncScene.open({ limits: { unsyncedBytesMax: 1024 } });
    const database = scene.database("a");
    scene.storeIsAway();
    expect(scene.sync.admit("committed", scene.callOptions())).toBeUndefined();
    scene.commit(database);
    scene.commit(database);
    await scene.pass(5_000);
    const refused = await failureOf(() => scene.sync.admit("local", scene.callOptions()), "SYNC_BACKLOG_FULL");
    expect(refused.facts).toEqual({ unsyncedBytes: "1024", limitBytes: "1024" });
    expect(refused.retryAfterMs).toBeGreaterThan(0);
    const late = failureOf(Promise.resolve(scene.sync.admit("remote", scene.callOptions(1_000))), "SYNC_BACKLOG_FULL");
    await scene.pass(1_000);
    await late;
    let isAdmitted = false;
    const admitted = Promise.resolve(scene.sync.admit("remote", scene.callOptions(100_000))).then(() => {
      isAdmitted = true;
    });
    await scene.pass(10_000);
    expect(isAdmitted).toBe(false);
    scene.storeIsBack();
    await scene.pass(60_000);
    await admitted;
    expect(scene.sync.admit("committed", scene.callOptions())).toBeUndefined();
  });

  it("uploads what is there when half of the budget is used", async () => {
    const scene = await SyncScene.open({ limits: { unsyncedBytesMax: 2048 } });
    const [first, second] = [scene.database("a"), scene.database("b")];
    scene.commit(first);
    await scene.settle();
    expect(scene.puts).toEqual([]);
    scene.commit(second);
    await scene.settle();
    expect([first.durableTxid, second.durableTxid]).toEqual([1n, 1n]);
  });

  it("does not hold up the end of the server longer than it takes to see it", async () => {
    const scene = await SyncScene.open();
    const databases = Array.from({ length: 10 }, (_, index) => scene.database(`d${index}`));
    for (const each of databases) scene.commit(each);
    scene.storeIsAway();
    await scene.sync.close(15_000);
    expect(scene.calls.length).toBeLessThanOrEqual(10);
    expect(scene.lines.at(-1)).toMatchObject({ level: "warn", facts: { databases: 10 } });
    expect(scene.timerCount).toBe(0);
  });

  it("ends after the grace when it does not answer at all", async () => {
    const scene = await SyncScene.open();
    scene.commit(scene.database("a"));
    scene.faults = () => [{ kind: "lose_answer" }];
    let isClosed = false;
    const closed = scene.sync.close(3_000).then(() => {
      isClosed = true;
    });
    await scene.pass(2_900, 100);
    expect(isClosed).toBe(false);
    await scene.pass(200, 100);
    await closed;
  });
});

describe("a lost answer", () => {
  it("to the put of a batch is not taken for another server's", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    const position = scene.commit(database);
    let puts = 0;
    scene.faults = (operation) => (operation === "put" && ++puts === 1 ? [{ kind: "fail_after" }] : []);
    const durable = scene.sync.durable(database, position, scene.wait());
    await scene.pass(5_000, 500);
    await durable;
    expect(database.fenced).toBeUndefined();
    expect(scene.sync.stats()).toMatchObject({ fencedDatabases: 0, uploadFailures: 1 });
    expect(database.log.closes).toBe(1);
  });

  it("is not taken so either when a bit flips while what is there is compared", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    const position = scene.commit(database);
    let puts = 0;
    let gets = 0;
    scene.faults = (operation) => {
      if (operation === "put" && ++puts === 1) return [{ kind: "fail_after" }];
      return operation === "get" && ++gets === 1 ? [{ kind: "flip_bit", at: 0.5 }] : [];
    };
    const durable = scene.sync.durable(database, position, scene.wait());
    await scene.pass(5_000, 500);
    await durable;
    expect(gets).toBeGreaterThan(1);
    expect(database.fenced).toBeUndefined();
  });

  it("to the put of a manifest is not either", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    const position = scene.commit(database);
    let isLost = false;
    scene.faults = (operation, key) => {
      if (isLost || operation !== "put" || !key.endsWith(".json")) return [];
      isLost = true;
      return [{ kind: "fail_after" }];
    };
    const durable = scene.sync.durable(database, position, scene.wait());
    await scene.pass(5_000, 500);
    await durable;
    expect(isLost).toBe(true);
    expect(database.fenced).toBeUndefined();
  });
});

describe("fencing", () => {
  async function twoServers() {
    const first = await SyncScene.open();
    const ours = first.database("a");
    first.commit(ours);
    await first.pass(5_000);
    const second = await SyncScene.open({ bucket: first.bucket, clock: first.clock });
    const theirs = second.database("a", { ...first.rows.get("a") }, "they");
    theirs.log.startAt(1n);
    theirs.durableTxid = 1n;
    return { first, ours, second, theirs };
  }

  it("stops writes of who comes second, says so, and loses nothing that was acknowledged REMOTE", async () => {
    const { first, ours, second, theirs } = await twoServers();
    await second.sync.durable(theirs, second.commit(theirs), second.wait());
    first.commit(ours);
    const refused = await failureOf(first.sync.durable(ours, 2n, first.wait()), "DATABASE_FENCED");
    expect(refused.facts).toEqual({ database: "a", sequence: "2" });
    expect(ours.fenced?.reason).toBe("DATABASE_FENCED");
    expect(first.rows.get("a")?.isFenced).toBe(true);
    expect(first.sync.stats()).toMatchObject({ fencedDatabases: 1, unsyncedDatabases: 0, unsyncedBytes: 0 });
    expect(first.lines.some(({ level, message }) => level === "error" && message.includes("another server"))).toBe(
      true,
    );
    // It stays so, and the other one goes on.
    first.calls.length = 0;
    await failureOf(first.sync.durable(ours, 3n, first.wait()), "DATABASE_FENCED");
    await first.pass(60_000, 5_000);
    expect(first.puts).toEqual([]);
    await second.sync.durable(theirs, second.commit(theirs), second.wait());
    expect(theirs.durableTxid).toBe(3n);
  });

  it("is seen at the first upload after a start, when the history has gone on elsewhere", async () => {
    const { first, second, theirs } = await twoServers();
    for (let commit = 0; commit < 3; commit++) {
      await second.sync.durable(theirs, second.commit(theirs), second.wait());
    }
    const restarted = await SyncScene.open({ bucket: first.bucket, clock: first.clock });
    const ours = restarted.database("a", { ...first.rows.get("a") });
    ours.log.startAt(1n);
    ours.durableTxid = 1n;
    const position = restarted.commit(ours);
    await failureOf(restarted.sync.durable(ours, position, restarted.wait()), "DATABASE_FENCED");
    expect(restarted.puts).toEqual([]);
  });

  it("meets a database whose id another server has published", async () => {
    const first = await SyncScene.open();
    const ours = first.database("a");
    first.commit(ours);
    await first.pass(5_000);
    const second = await SyncScene.open({ bucket: first.bucket, clock: first.clock });
    const theirs = second.database("a", {}, "they");
    await failureOf(second.sync.durable(theirs, second.commit(theirs), second.wait()), "DATABASE_FENCED");
    expect(JSON.parse(Buffer.from(first.bucket.get("a/database.json")?.bytes ?? []).toString())).toMatchObject({
      lineage: ours.lineage,
    });
  });
});

describe("after a start", () => {
  it("what an earlier server has left is found and carried without a call", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    const next = await SyncScene.open({ bucket: scene.bucket, clock: scene.clock });
    const reopened = next.database("a", { ...scene.rows.get("a") });
    // Batch 2 was closed and its upload's outcome is unknown; 3 and 4 may have been given out.
    reopened.log.startAt(2n, 4n);
    reopened.durableTxid = 1n;
    await reopened.log.reclose(2n);
    next.sync.start({ unsynced: ["a"], upkeeps: [], tombstones: [], isCatalogComplete: true });
    await next.pass(10_000);
    expect(reopened.durableTxid).toBe(4n);
    expect([...next.bucket.keys()].filter((key) => key.includes("0000/"))).toHaveLength(4);
  });

  it("who asks for it gets all that was left, also where nothing is carried by itself", async () => {
    const scene = await SyncScene.open({ isAutomatic: false });
    const database = scene.database("a");
    database.log.startAt(1n, 3n);
    await database.log.reclose(1n);
    scene.sync.start({ unsynced: ["a"], upkeeps: [], tombstones: [], isCatalogComplete: true });
    await scene.pass(10_000);
    expect(database.durableTxid).toBe(0n);
    await scene.sync.durable(database, 3n, scene.wait());
    expect(database.durableTxid).toBe(3n);
  });

  it("an upload that was stored though nobody learnt it is recognised", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    scene.commit(database);
    await scene.pass(5_000);
    scene.commit(database);
    await scene.pass(5_000);
    const next = await SyncScene.open({ bucket: scene.bucket, clock: scene.clock });
    const reopened = next.database("a", { ...scene.rows.get("a"), durableSequence: 1 });
    reopened.log.startAt(2n);
    reopened.durableTxid = 1n;
    await reopened.log.reclose(2n);
    next.sync.start({ unsynced: ["a"], upkeeps: [], tombstones: [], isCatalogComplete: true });
    await next.pass(10_000);
    expect(reopened.durableTxid).toBe(2n);
    expect(reopened.log.pending()).toEqual([]);
    expect(next.puts).toEqual([]);
  });

  it("a bucket that has lost its files gets a snapshot, and the history goes on behind it", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    for (let round = 0; round < 3; round++) {
      scene.commit(database);
      await scene.pass(5_000);
    }
    scene.bucket.clear();
    const next = await SyncScene.open({ bucket: scene.bucket, clock: scene.clock });
    const reopened = next.database("a", { ...scene.rows.get("a"), manifestVersion: 0 });
    reopened.log.startAt(3n);
    reopened.durableTxid = 3n;
    const position = next.commit(reopened);
    await next.sync.durable(reopened, position, next.wait());
    expect(reopened.durableTxid).toBe(4n);
    const kinds = [...next.bucket.keys()].map((key) => key.replace(/^a\/[0-9a-f]{16}\//, ""));
    expect(kinds.sort()).toEqual([
      "0000/0000000000000004-0000000000000004.ltx",
      "0009/0000000000000001-0000000000000003.ltx",
      "a/database.json",
    ]);
    expect(next.lines.some(({ message }) => message.includes("a snapshot takes their place"))).toBe(true);
  });
});

describe("idle databases", () => {
  it("cost no puts, no calls and no timers in a day", async () => {
    const scene = await SyncScene.open({ limits: { uploadConcurrencyMax: 64 } });
    for (let index = 0; index < 10_000; index++) {
      const database = scene.database(`d${index}`, { durableSequence: 1, manifestVersion: 1 });
      database.log.startAt(1n);
      database.durableTxid = 1n;
    }
    scene.sync.start({ unsynced: [], upkeeps: [], tombstones: [], isCatalogComplete: true });
    await until(() => !scene.sync.isDiscovering);
    scene.calls.length = 0;
    expect(scene.timerCount).toBe(0);
    await scene.pass(24 * 3_600_000, 3_600_000);
    expect(scene.calls).toEqual([]);
    expect(scene.timerCount).toBe(0);
  });

  it("cost nothing either once they have been written and synced", async () => {
    const scene = await SyncScene.open({ limits: { uploadConcurrencyMax: 64 } });
    for (let index = 0; index < 200; index++) scene.commit(scene.database(`d${index}`));
    await scene.pass(10_000, 2_500);
    expect(scene.puts).toHaveLength(400);
    scene.calls.length = 0;
    expect(scene.timerCount).toBe(0);
    await scene.pass(24 * 3_600_000, 3_600_000);
    expect(scene.calls).toEqual([]);
  });
});
