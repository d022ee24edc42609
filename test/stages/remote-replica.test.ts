import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { Failure } from "../../src/failure/failure.ts";
import { parseReplicaKey, type ReplicaFile } from "../../src/ltx/replica.ts";
import { type Fault, type FaultyOperation, FaultyStore, seededFaults, seededRandom } from "../../src/objects/faulty.ts";
import { isObjectStoreError } from "../../src/objects/object-store.ts";
import { FencedError, type RemoteReplica, type RemoteStage } from "../../src/stages/remote.ts";
import type { Batch, StageCall } from "../../src/stages/stage.ts";
import { call, keysOf } from "../objects/helpers.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { type MemoryBucket, MemoryObjectStore } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { reasonOf } from "./contract.ts";
import {
  damagedCopy,
  type History,
  makeBatch,
  makeHistory,
  openStage,
  restored,
  snapshotOf,
  startMs,
} from "./support.ts";

const temporaryFolder = temporaryFolders();
const prefix = "notes/0123456789abcdef";
let folder: string;
let history: History;
/** Batches that another server could have made in place of those of the history. */
let foreign: readonly Batch[];

beforeAll(async () => {
  folder = temporaryFolder();
  history = await makeHistory(folder);
  const elsewhere = temporaryFolder();
  foreign = await Promise.all(
    history.states.map((state, index) => {
      const other = Buffer.from(state);
      other[other.length - 1] = 0x7f;
      return makeBatch(elsewhere, BigInt(index + 1), 4096, history.states[index - 1], other);
    }),
  );
});

const batch = (txid: number) => history.batches[txid - 1] as Batch;
const state = (txid: number) => history.states[txid - 1] as Buffer;

interface Scene {
  readonly store: MemoryObjectStore;
  /** Calls that reached the store. */
  readonly calls: { operation: FaultyOperation; key: string }[];
  /** Faults that the next calls of an operation meet, one call each. */
  readonly faults: Map<FaultyOperation, Fault[]>;
  stage(): Promise<RemoteStage>;
  /** Of a stage of its own. */
  replica(options?: { isNew?: boolean }): Promise<RemoteReplica>;
  filled(count?: number): Promise<RemoteReplica>;
}

function scene(
  options: { clock?: ManualClock; compactionFilesMax?: number; bucket?: MemoryBucket; retentionMs?: number } = {},
): Scene {
  const { clock = systemClock, compactionFilesMax, bucket, retentionMs } = options;
  const store = new MemoryObjectStore(clock, bucket);
  const calls: Scene["calls"] = [];
  const faults: Scene["faults"] = new Map();
  const faulty = new FaultyStore({
    store,
    clock,
    faults: (operation, key) => {
      calls.push({ operation, key });
      const fault = faults.get(operation)?.shift();
      return fault === undefined ? [] : [fault];
    },
  });
  const retention = retentionMs === undefined ? undefined : { levelZeroMs: 300_000, snapshotMs: retentionMs };
  const stage = () => openStage(faulty, folder, { clock, compactionFilesMax, retention });
  const replica = async (made?: { isNew?: boolean }) => (await stage()).replica(prefix, made);
  return {
    stage,
    store,
    calls,
    faults,
    replica,
    async filled(count = history.batches.length) {
      const made = await replica();
      for (let txid = 1; txid <= count; txid++) await made.append(batch(txid), call());
      calls.length = 0;
      return made;
    },
  };
}

const count = ({ calls }: Scene, operation: FaultyOperation) =>
  calls.filter((each) => each.operation === operation).length;
const ranges = (files: readonly ReplicaFile[], level: number) =>
  files
    .filter((file) => file.level === level)
    .map(({ minTxid, maxTxid }) => `${minTxid}-${maxTxid}`)
    .sort();

async function harm(store: MemoryObjectStore, key: string, until: StageCall = call()): Promise<void> {
  const { bytes } = await store.get(key, { ...until, bytesMax: 1e9 });
  const at = bytes.length >> 1;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await store.put(key, bytes, until);
}

describe("requests", () => {
  it("are one list before the first batch, then one put for each", async () => {
    const at = scene();
    const replica = await at.replica();
    await replica.append(batch(1), call());
    await replica.append(batch(2), call());
    await replica.append(batch(3), call());
    expect(at.calls.map(({ operation }) => operation)).toEqual(["list", "put", "put", "put"]);
  });

  it("are a put alone where nothing can be yet", async () => {
    const at = scene();
    const replica = await at.replica({ isNew: true });
    await replica.append(batch(1), call());
    expect(at.calls.map(({ operation }) => operation)).toEqual(["put"]);
  });

  it("are one list and a get for each file when a database is restored", async () => {
    const at = scene();
    await at.filled(4);
    await restored(await at.replica(), folder, call());
    expect([count(at, "list"), count(at, "get"), at.calls.length]).toEqual([1, 4, 5]);
  });
});

describe("a database that this server knows", () => {
  const twice = async (change: (at: Scene) => Promise<unknown>) => {
    const at = scene();
    const stage = await at.stage();
    const replica = stage.replica(prefix);
    for (const txid of [1, 2, 3, 4]) await replica.append(batch(txid), call());
    await change(at);
    at.calls.length = 0;
    const other = stage.replica(prefix);
    const { bytes, txid } = await restored(other, folder, call());
    expect(bytes.equals(state(Number(txid)))).toBe(true);
    return { at, txid, other };
  };

  it("is fetched while the list is on its way", async () => {
    const { at, txid, other } = await twice(async () => undefined);
    expect(at.calls.map(({ operation }) => operation).sort()).toEqual(["get", "get", "get", "get", "list"]);
    expect(txid).toBe(4n);
    await other.append(batch(5), call());
    expect(count(at, "list")).toBe(1);
  });

  it("is fetched again when another has written meanwhile", async () => {
    const { at, txid } = await twice(async (at) => {
      const elsewhere = await at.replica();
      await elsewhere.append(batch(5), call());
    });
    expect(txid).toBe(5n);
    expect(count(at, "list")).toBe(1);
  });

  it("is fetched again when another has merged it meanwhile", async () => {
    const { at, txid } = await twice(async (at) => {
      await (await at.replica()).compact(1, call());
      await at.store.delete([`${prefix}/0000/0000000000000002-0000000000000002.ltx`], call());
    });
    expect(txid).toBe(4n);
    expect(count(at, "list")).toBe(1);
  });
});

describe("the keys", () => {
  it("are Litestream's for buckets", async () => {
    const at = scene();
    const replica = await at.filled(2);
    await replica.compact(1, call());
    await replica.compact(9, call());
    expect(await keysOf(at.store, "")).toEqual([
      `${prefix}/0000/0000000000000001-0000000000000001.ltx`,
      `${prefix}/0000/0000000000000002-0000000000000002.ltx`,
      `${prefix}/0001/0000000000000001-0000000000000002.ltx`,
      `${prefix}/0009/0000000000000001-0000000000000002.ltx`,
    ]);
  });

  it("are Litestream's for folders", async () => {
    const store = new MemoryObjectStore(systemClock);
    const replica = (await openStage(store, folder, { layout: "folder" })).replica("a/b");
    await replica.append(batch(1), call());
    await replica.append(batch(2), call());
    await replica.compact(1, call());
    expect(await keysOf(store, "")).toEqual([
      "a/b/ltx/0/0000000000000001-0000000000000001.ltx",
      "a/b/ltx/0/0000000000000002-0000000000000002.ltx",
      "a/b/ltx/1/0000000000000001-0000000000000002.ltx",
    ]);
  });

  it("that are not of a replica are left alone", async () => {
    const at = scene();
    const replica = await at.filled(2);
    const strange = `${prefix}/0000/readme.txt`;
    await at.store.put(strange, Buffer.from("hello"), call());
    await replica.load(call());
    expect(replica.files()).toHaveLength(2);
    await replica.remove(call());
    expect(await keysOf(at.store, "")).toEqual([strange]);
  });
});

describe("a number", () => {
  it("belongs to whoever stores it first", async () => {
    const at = scene();
    const ours = await at.filled(3);
    const theirs = await at.replica();
    await theirs.append(foreign[3] as Batch, call());
    const refused = await ours.append(batch(4), call()).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(FencedError);
    expect(refused).toMatchObject({ reason: "DATABASE_FENCED", txid: 4n });
    expect(ours.txid).toBe(3n);
  });

  it.each(["fail_after", "lose_answer"] as const)("is ours when only the answer was lost: %s", async (kind) => {
    const at = scene();
    const replica = await at.filled(3);
    at.faults.set("put", [{ kind, at: 0 } as Fault]);
    const first = await replica.append(batch(4), call(300)).catch((error: unknown) => error);
    expect(isObjectStoreError(first, "unavailable")).toBe(true);
    expect(replica.txid).toBe(3n);
    await replica.append(batch(4), call());
    expect(replica.txid).toBe(4n);
    expect((await restored(replica, folder, call())).bytes.equals(state(4))).toBe(true);
  });

  it("stays open when nothing was stored", async () => {
    const at = scene();
    const replica = await at.filled(3);
    at.faults.set("put", [{ kind: "fail_before" }]);
    expect(isObjectStoreError(await replica.append(batch(4), call()).catch((error) => error), "unavailable")).toBe(
      true,
    );
    await replica.append(batch(4), call());
    expect(replica.txid).toBe(4n);
  });

  it("that is stored already is compared", async () => {
    const at = scene();
    await at.filled(3);
    const replica = await at.replica();
    await replica.append(batch(2), call());
    await expect(replica.append(foreign[1] as Batch, call())).rejects.toBeInstanceOf(FencedError);
    expect(count(at, "put")).toBe(0);
  });

  it("that was free only because retention removed it is not taken by who slept", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock });
    const sleeper = await at.replica();
    for (const txid of [1, 2, 3]) await sleeper.append(batch(txid), until);
    const other = await at.replica();
    for (const txid of [3, 4, 5]) await other.append(foreign[txid] as Batch, until);
    await other.compact(1, until);
    clock.advance(3_600_000);
    expect(await other.expire(clock.wallMs(), until)).toBe(5);
    await expect(sleeper.append(batch(4), until)).rejects.toBeInstanceOf(FencedError);
    // What it stored meanwhile is no part of that history.
    await other.load(until);
    expect(ranges(other.files(), 0)).toEqual(["6-6"]);
  });

  it("that is ours stays ours when another went on behind it", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock });
    const ours = await at.replica();
    for (const txid of [1, 2]) await ours.append(batch(txid), until);
    at.faults.set("put", [{ kind: "fail_after" }]);
    expect(isObjectStoreError(await ours.append(batch(3), until).catch((error) => error), "unavailable")).toBe(true);
    const other = await at.replica();
    await other.claim(startMs, until);
    clock.advance(3_600_000);
    await expect(ours.append(batch(3), until)).rejects.toBeInstanceOf(FencedError);
    await other.load(until);
    expect(ranges(other.files(), 0)).toEqual(["1-1", "2-2", "3-3", "4-4"]);
  });

  it("costs a list when the end of the history has not been seen for long, and no other time", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock });
    const replica = await at.filled(2);
    clock.advance(60_000);
    await replica.append(batch(3), until);
    expect(count(at, "list")).toBe(0);
    clock.advance(600_000);
    await replica.append(batch(4), until);
    expect(count(at, "list")).toBe(1);
  });

  it("is claimed by who takes over, and the others write no more", async () => {
    const at = scene();
    const old = await at.filled(4);
    const replica = await at.replica();
    expect(await replica.claim(startMs + 60_000, call())).toBe(5n);
    expect((await restored(replica, folder, call())).bytes.equals(state(4))).toBe(true);
    await expect(old.append(batch(5), call())).rejects.toBeInstanceOf(FencedError);
  });

  it("is claimed by one of two in the same millisecond", async () => {
    const at = scene();
    await at.filled(2);
    const [a, b] = [await at.replica(), await at.replica()];
    const results = await Promise.allSettled([a.claim(startMs, call()), b.claim(startMs, call())]);
    const refused = results.filter((result) => result.status === "rejected");
    expect(refused).toHaveLength(1);
    expect(refused[0]?.reason).toBeInstanceOf(FencedError);
  });
});

describe("compaction", () => {
  it("brings a level in step with the one below, and leaves every state restorable", async () => {
    const at = scene();
    const replica = await at.filled(4);
    const made = await replica.compact(1, call());
    expect(made).toMatchObject({ level: 1, minTxid: 1n, maxTxid: 4n });
    for (const txid of [5, 6, 7]) await replica.append(batch(txid), call());
    expect(await replica.compact(1, call())).toMatchObject({ minTxid: 5n, maxTxid: 7n });
    expect(await replica.compact(2, call())).toMatchObject({ level: 2, minTxid: 1n, maxTxid: 7n });
    expect(await replica.compact(3, call())).toMatchObject({ level: 3, minTxid: 1n, maxTxid: 7n });
    expect(await replica.compact(3, call())).toBeUndefined();
    for (let txid = 1; txid <= 7; txid++) {
      const { bytes } = await restored(await at.replica(), folder, call(), { txid: BigInt(txid) });
      expect(bytes.equals(state(txid))).toBe(true);
    }
    expect((await replica.verify(call())).isWhole).toBe(true);
  });

  it("makes a snapshot out of what is stored", async () => {
    const at = scene();
    const replica = await at.filled(5);
    expect(await replica.compact(9, call())).toMatchObject({ level: 9, minTxid: 1n, maxTxid: 5n });
    expect(await replica.compact(9, call())).toBeUndefined();
    at.calls.length = 0;
    expect((await restored(replica, folder, call())).bytes.equals(state(5))).toBe(true);
    expect(count(at, "get")).toBe(1);
    for (const txid of [6, 7]) await replica.append(batch(txid), call());
    await replica.compact(1, call());
    expect(ranges(replica.files(), 1)).toEqual(["6-7"]);
    expect((await restored(await at.replica(), folder, call())).bytes.equals(state(7))).toBe(true);
  });

  it("goes step by step when a chain is too long", async () => {
    const at = scene({ compactionFilesMax: 3 });
    const replica = await at.filled(7);
    await replica.compact(9, call());
    expect(ranges(replica.files(), 9)).toEqual(["1-3"]);
    while ((await replica.compact(9, call())) !== undefined);
    expect(ranges(replica.files(), 9)).toEqual(["1-3", "1-5", "1-7"]);
    expect((await restored(replica, folder, call())).bytes.equals(state(7))).toBe(true);
  });

  it("stores nothing out of damaged files", async () => {
    const at = scene();
    const replica = await at.filled(4);
    await harm(at.store, `${prefix}/0000/0000000000000002-0000000000000002.ltx`);
    expect(await reasonOf(replica.compact(1, call()))).toBe("DATA_CORRUPT");
    expect(await reasonOf(replica.compact(9, call()))).toBe("DATA_CORRUPT");
    expect(await keysOf(at.store, "")).toHaveLength(4);
  });

  it("goes on above a snapshot that has healed what is damaged", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock });
    const replica = await at.replica();
    for (const txid of [1, 2]) await replica.append(batch(txid), until);
    await replica.compact(1, until);
    for (const txid of [3, 4, 5]) await replica.append(batch(txid), until);
    await harm(at.store, `${prefix}/0000/0000000000000004-0000000000000004.ltx`, until);
    expect(await reasonOf(replica.compact(1, until))).toBe("DATA_CORRUPT");
    await replica.putSnapshot(snapshotOf(state(5), 4096, 5n), until);
    // Nothing lies above it yet.
    expect(await reasonOf(replica.compact(1, until))).toBe("DATA_CORRUPT");
    for (const txid of [6, 7]) await replica.append(batch(txid), until);
    expect(await replica.compact(1, until)).toMatchObject({ minTxid: 6n, maxTxid: 7n });
    clock.advance(3_600_000);
    await replica.expire(clock.wallMs(), until);
    expect(ranges(replica.files(), 0)).toEqual(["7-7"]);
    const path = join(folder, "above");
    await (await at.replica()).restore({ path, flush: false }, until);
    expect(readFileSync(path).equals(state(7))).toBe(true);
  });

  it("sees what another has done meanwhile", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock });
    const ours = await at.replica();
    for (const txid of [1, 2, 3, 4]) await ours.append(batch(txid), until);
    const theirs = await at.replica();
    await theirs.compact(1, until);
    clock.advance(3_600_000);
    await theirs.expire(clock.wallMs(), until);
    expect(await ours.compact(1, until)).toBeUndefined();
    expect(ranges(ours.files(), 0)).toEqual(["4-4"]);
  });
});

describe("retention", () => {
  it("removes what is merged and old, and keeps the history of its span", async () => {
    const clock = new ManualClock(startMs);
    const until = { deadlineAtMs: Number.POSITIVE_INFINITY };
    const at = scene({ clock, retentionMs: 3_600_000 });
    const replica = await at.replica();
    const aged = (txid: number): Batch => ({ ...batch(txid), timestampMs: clock.wallMs() });
    for (const txid of [1, 2, 3]) await replica.append(aged(txid), until);
    await replica.compact(9, until);
    expect(await replica.expire(clock.wallMs(), until)).toBe(0);
    clock.advance(7_200_000);
    for (const txid of [4, 5]) await replica.append(aged(txid), until);
    await replica.compact(1, until);
    clock.advance(600_000);
    await replica.expire(clock.wallMs(), until);
    const kept: unknown[] = [];
    for await (const { key } of at.store.list("", until)) kept.push(parseReplicaKey(key.slice(prefix.length + 1)));
    expect(kept).toEqual([
      { level: 0, minTxid: 5n, maxTxid: 5n },
      { level: 1, minTxid: 4n, maxTxid: 5n },
      { level: 9, minTxid: 1n, maxTxid: 3n },
    ]);
    const path = join(folder, "kept");
    await (await at.replica()).restore({ path, flush: false }, until);
    expect(readFileSync(path).equals(state(5))).toBe(true);
  });
});

describe("a restore", () => {
  it("goes to a time: the last state before it", async () => {
    const at = scene();
    await at.filled(5);
    const replica = await at.replica();
    const to = async (beforeMs: number) => (await restored(replica, folder, call(), { beforeMs })).txid;
    expect(await to(startMs + 3001)).toBe(3n);
    expect(await to(startMs + 3000)).toBe(2n);
    expect(await to(startMs + 3_600_000)).toBe(5n);
    expect(await reasonOf(to(startMs))).toBe("HISTORY_OUT_OF_RANGE");
  });

  it("says that it does not reach so far", async () => {
    const at = scene();
    const replica = await at.filled(3);
    const failure = await restored(replica, folder, call(), { txid: 9n }).catch((error: unknown) => error);
    expect(failure).toMatchObject({
      reason: "HISTORY_OUT_OF_RANGE",
      facts: { wanted: "position 9", earliestSequence: "1" },
    });
  });

  it("plans anew when files vanish under it", async () => {
    const at = scene();
    const reader = await at.filled(5);
    const keeper = await at.replica();
    await keeper.compact(1, call());
    await at.store.delete(
      [1, 2, 3, 4].map((txid) => `${prefix}/0000/000000000000000${txid}-000000000000000${txid}.ltx`),
      call(),
    );
    expect((await restored(reader, folder, call())).bytes.equals(state(5))).toBe(true);
    expect(count(at, "list")).toBe(2);
  });

  it("fails plainly when files are gone for good", async () => {
    const at = scene();
    const replica = await at.filled(5);
    await at.store.delete([`${prefix}/0000/0000000000000003-0000000000000003.ltx`], call());
    expect(await reasonOf(restored(replica, folder, call()))).toBe("DATA_CORRUPT");
    const { isWhole, problems } = await replica.verify(call());
    expect({ isWhole, problems }).toEqual({ isWhole: false, problems: ["nothing holds TXID 3"] });
  });

  it("reads a file again when the way was at fault", async () => {
    const at = scene();
    const replica = await at.filled(5);
    at.faults.set("get", [{ kind: "flip_bit", at: 0.5 }]);
    const path = join(folder, "again");
    const { damaged } = await replica.restore({ path, flush: false }, call());
    expect(damaged).toEqual([]);
    expect(readFileSync(path).equals(state(5))).toBe(true);
  });

  it("lets others stand in for a damaged file, and names it", async () => {
    const at = scene();
    const replica = await at.filled(5);
    await replica.compact(1, call());
    const key = `${prefix}/0001/0000000000000001-0000000000000005.ltx`;
    await harm(at.store, key);
    const path = join(folder, "stood-in");
    const { damaged, txid } = await replica.restore({ path, flush: false }, call());
    expect(txid).toBe(5n);
    expect(damaged.map(({ name }) => name)).toEqual([key]);
    expect(readFileSync(path).equals(state(5))).toBe(true);
    const verified = await replica.verify(call());
    expect(verified.damaged.map(({ name }) => name)).toEqual([key]);
    expect(verified.isWhole).toBe(true);
  });

  it("gives no older state in place of a damaged one", async () => {
    const at = scene();
    const replica = await at.filled(5);
    await harm(at.store, `${prefix}/0000/0000000000000005-0000000000000005.ltx`);
    expect(await reasonOf(restored(replica, folder, call()))).toBe("DATA_CORRUPT");
  });

  it("never gives wrong bytes, wherever a bit of what is stored is another", async () => {
    const at = scene();
    const replica = await at.filled(7);
    await replica.compact(1, call());
    await replica.compact(9, call());
    const random = seededRandom(11);
    const keys = await keysOf(at.store, "");
    const outcomes = { right: 0, corrupt: 0 };
    for (let round = 0; round < 150; round++) {
      const key = keys[Math.floor(random() * keys.length)] as string;
      const { bytes } = await at.store.get(key, { ...call(), bytesMax: 1e9 });
      const harmed = Uint8Array.from(bytes);
      const at8 = Math.floor(random() * harmed.length * 8);
      harmed[at8 >> 3] = (harmed[at8 >> 3] ?? 0) ^ (1 << (at8 & 7));
      await at.store.put(key, harmed, call());
      const txid = 1 + Math.floor(random() * 7);
      try {
        const { bytes: found } = await restored(await at.replica(), folder, call(), { txid: BigInt(txid) });
        expect(found.equals(state(txid)), `bit ${at8} of ${key}, state ${txid}`).toBe(true);
        outcomes.right++;
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        expect(error.reason).toBe("DATA_CORRUPT");
        outcomes.corrupt++;
      }
      await at.store.put(key, bytes, call());
    }
    expect(outcomes.right).toBeGreaterThan(20);
    expect(outcomes.corrupt).toBeGreaterThan(5);
  });

  it("is healed by a snapshot of what serves", async () => {
    const at = scene();
    const replica = await at.filled(5);
    await harm(at.store, `${prefix}/0000/0000000000000003-0000000000000003.ltx`);
    expect((await replica.verify(call())).isWhole).toBe(false);
    await replica.putSnapshot(snapshotOf(state(5), 4096, 5n), call());
    const { isWhole, damaged } = await replica.verify(call());
    expect([isWhole, damaged.length]).toEqual([true, 1]);
    expect((await restored(await at.replica(), folder, call())).bytes.equals(state(5))).toBe(true);
  });

  it("believes no file with another's name", async () => {
    const at = scene();
    const replica = await at.filled(2);
    const { bytes } = await at.store.get(`${prefix}/0000/0000000000000002-0000000000000002.ltx`, {
      ...call(),
      bytesMax: 1e6,
    });
    await at.store.put(`${prefix}/0000/0000000000000003-0000000000000003.ltx`, bytes, call());
    await replica.load(call());
    expect(await reasonOf(restored(replica, folder, call()))).toBe("DATA_CORRUPT");
  });

  it("notices pages that are missing from where the database grew", async () => {
    const at = scene();
    const replica = await at.filled(1);
    const first = Buffer.from(state(2));
    first[4095] = (first[4095] ?? 0) ^ 1;
    const skipped = await makeBatch(temporaryFolder(), 2n, 4096, first, state(2));
    expect(skipped.commit).toBeGreaterThan(batch(1).commit + 1);
    await replica.append(skipped, call());
    expect(await reasonOf(restored(replica, folder, call()))).toBe("DATA_CORRUPT");
    expect((await replica.verify(call())).isWhole).toBe(false);
  });
});

it("restores the vectors of the format, in both encodings", async () => {
  for (const encoding of ["frame", "block"]) {
    const at = scene();
    for (const txid of [1, 2, 3]) {
      const bytes = readFileSync(join(import.meta.dirname, "..", "fixtures", "ltx", `e-${encoding}-${txid}.ltx`));
      await at.store.put(`${prefix}/0000/000000000000000${txid}-000000000000000${txid}.ltx`, bytes, call());
    }
    for (const txid of [1, 2, 3]) {
      const { bytes } = await restored(await at.replica(), folder, call(), { txid: BigInt(txid) });
      expect(bytes.equals(readFileSync(join(import.meta.dirname, "..", "fixtures", "ltx", `e${txid}.db`)))).toBe(true);
    }
  }
});

it("keeps its promises while the store goes wrong in every way", async () => {
  const damaged = damagedCopy(batch(1));
  expect(damaged.path).not.toBe(batch(1).path);
  for (let seed = 1; seed <= 25; seed++) {
    const store = new MemoryObjectStore(systemClock);
    const faulty = new FaultyStore({
      store,
      clock: systemClock,
      faults: seededFaults(seed, {
        fail_before: 0.1,
        fail_after: 0.15,
        throttle: 0.1,
        cut_read: 0.1,
        delete_part: 0.2,
      }),
    });
    const stage = await openStage(faulty, temporaryFolder());
    const patiently = async <T>(work: () => Promise<T>): Promise<T> => {
      for (let tries = 1; ; tries++) {
        try {
          return await work();
        } catch (error) {
          const mayPass = isObjectStoreError(error, "unavailable") || isObjectStoreError(error, "throttled");
          if (!mayPass || tries === 200) throw error;
        }
      }
    };
    let replica = stage.replica(prefix);
    for (let txid = 1; txid <= 7; txid++) {
      await patiently(() => replica.append(batch(txid), call()));
      if (txid % 3 === seed % 3) await patiently(() => replica.compact(1, call()));
      if (txid === 5) await patiently(() => replica.compact(9, call()));
      if (txid % 2 === 0) replica = stage.replica(prefix);
      if (txid === 6) await patiently(() => replica.expire(startMs + 3_600_000, call()));
    }
    const path = join(folder, `faults-${seed}`);
    await patiently(() => replica.restore({ path, flush: false }, call()));
    expect(readFileSync(path).equals(state(7)), `seed ${seed}`).toBe(true);
  }
});
