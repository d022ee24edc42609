import { randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import { type Fault, type FaultSource, FaultyStore, seededFaults, seededRandom } from "../../src/objects/faulty.ts";
import { collect, ObjectStoreError } from "../../src/objects/object-store.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { bytesOf, call, failing, keysOf } from "./helpers.ts";

const temporaryFolder = temporaryFolders();

/** A store in a folder, and one over it that meets the faults which a test lines up. */
async function stores() {
  const store = await openDirectoryStore({ path: temporaryFolder(), clock: systemClock, random: randomBytes });
  const next: Fault[][] = [];
  const met: string[] = [];
  const faulty = new FaultyStore({
    store,
    clock: systemClock,
    faults: () => next.shift() ?? [],
    onFault: ({ kind }, operation) => met.push(`${operation} ${kind}`),
  });
  return { store, faulty, next, met };
}

describe("a faulty store", () => {
  it("fails before or after the effect", async () => {
    const { store, faulty, next, met } = await stores();
    next.push([{ kind: "fail_before" }], [{ kind: "throttle" }], [{ kind: "fail_after" }]);
    expect(await failing(faulty.put("a", bytesOf(1), call()))).toBe("unavailable");
    expect(await failing(faulty.put("a", bytesOf(1), call()))).toBe("throttled");
    expect(await keysOf(store, "")).toEqual([]);
    expect(await failing(faulty.put("a", bytesOf(1), call()))).toBe("unavailable");
    expect(await keysOf(store, "")).toEqual(["a"]);
    expect(met).toEqual(["put fail_before", "put throttle", "put fail_after"]);
  });

  it("loses an answer: the call ends at its deadline or by its signal", async () => {
    const { store, faulty, next } = await stores();
    next.push([{ kind: "lose_answer" }], [{ kind: "lose_answer" }]);
    expect(await failing(faulty.put("a", bytesOf(1), call(50)))).toBe("unavailable");
    expect(await keysOf(store, "")).toEqual(["a"]);
    const controller = new AbortController();
    const head = faulty.head("a", { ...call(), signal: controller.signal });
    controller.abort(new Error("the caller left"));
    await expect(head).rejects.toThrow("the caller left");
  });

  it("delays", async () => {
    const { faulty, next } = await stores();
    next.push([{ kind: "delay", ms: 30 }], [{ kind: "delay", ms: 60_000 }]);
    const beginMs = systemClock.now();
    await faulty.put("a", bytesOf(1), call());
    expect(systemClock.now() - beginMs).toBeGreaterThanOrEqual(29);
    expect(await failing(faulty.head("a", call(20)))).toBe("unavailable");
  });

  it("deletes some of many", async () => {
    const { store, faulty, next } = await stores();
    for (const key of ["a", "b", "c", "d"]) await faulty.put(key, bytesOf(1), call());
    next.push([{ kind: "delete_part", at: 0.5 }]);
    expect(await failing(faulty.delete(["a", "b", "c", "d"], call()))).toBe("unavailable");
    expect(await keysOf(store, "")).toEqual(["c", "d"]);
  });

  it("lists what was there some changes ago", async () => {
    const { faulty, next } = await stores();
    for (const key of ["a", "b", "d"]) await faulty.put(key, bytesOf(1), call());
    await faulty.delete(["b"], call());
    await faulty.put("c", bytesOf(1), call());
    await faulty.put("d", bytesOf(5), call());
    next.push([{ kind: "old_list", at: 0.5 }]);
    expect(await keysOf(faulty, "")).toEqual(["a", "b", "d"]);
    next.push([{ kind: "old_list", at: 0.99 }]);
    expect(await keysOf(faulty, "")).toEqual([]);
    expect(await keysOf(faulty, "")).toEqual(["a", "c", "d"]);
  });

  it("cuts reads and flips one bit of them", async () => {
    const { faulty, next } = await stores();
    const bytes = bytesOf(1_000_000);
    await faulty.put("a", bytes, call());
    const cut = { kind: "cut_read", at: 0.7 } as const;
    next.push([cut], [cut]);
    expect(await failing(faulty.get("a", { ...call(), bytesMax: bytes.length }))).toBe("unavailable");
    const stream = await faulty.open("a", call());
    let length = 0;
    const read = async () => {
      for await (const chunk of stream.chunks) length += chunk.length;
    };
    expect(await failing(read())).toBe("unavailable");
    expect(length).toBe(700_000);
    const flip = { kind: "flip_bit", at: 0.7 } as const;
    next.push([flip], [flip]);
    const whole = (await faulty.get("a", { ...call(), bytesMax: bytes.length })).bytes;
    const streamed = await collect(await faulty.open("a", call()));
    expect(Buffer.from(whole).equals(streamed)).toBe(true);
    expect(bytes.reduce((count, byte, index) => count + Number(byte !== whole[index]), 0)).toBe(1);
  });
});

/** What a key may hold, as far as a caller can know: values, or undefined for nothing. */
type Possible = Set<string | undefined>;

describe("a store under faults", () => {
  it("never shows what nobody can have put, whatever a caller was told", async () => {
    const chances = { fail_before: 0.1, fail_after: 0.15, throttle: 0.05, delete_part: 0.2, cut_read: 0.1 };
    for (let seed = 1; seed <= 40; seed++) {
      const random = seededRandom(seed);
      const store = new FaultyStore({
        store: new MemoryObjectStore(systemClock),
        clock: systemClock,
        faults: seededFaults(seed, chances),
      });
      const model = new Map<string, Possible>();
      const etags = new Map<string, string>();
      for (let step = 0; step < 80; step++) {
        const key = `k${Math.floor(random() * 3)}`;
        const possible: Possible = model.get(key) ?? new Set([undefined]);
        model.set(key, possible);
        const value = `v${step}`;
        const etag = etags.get(key);
        const action = Math.floor(random() * 5);
        try {
          if (action === 0) {
            await store.delete([key], call());
            model.set(key, new Set([undefined]));
          } else if (action === 1) {
            const { info, bytes } = await store.get(key, { ...call(), bytesMax: 100 });
            const seen = Buffer.from(bytes).toString();
            expect([seed, step, possible.has(seen)]).toEqual([seed, step, true]);
            model.set(key, new Set([seen]));
            etags.set(key, info.etag);
          } else {
            const condition =
              action === 2 ? undefined : action === 3 || !etag ? ({ ifNoneMatch: "*" } as const) : { ifMatch: etag };
            const info = await store.put(key, Buffer.from(value), { ...call(), condition });
            if (condition?.ifNoneMatch) expect([seed, step, possible.has(undefined)]).toEqual([seed, step, true]);
            model.set(key, new Set([value]));
            etags.set(key, info.etag);
          }
        } catch (error) {
          if (!(error instanceof ObjectStoreError)) throw error;
          if (error.kind === "not_found") expect([seed, step, possible.has(undefined)]).toEqual([seed, step, true]);
          if (error.kind === "unavailable" && action !== 1) possible.add(action === 0 ? undefined : value);
        }
      }
    }
  });
});

describe("faults by seed", () => {
  const drawn = (source: FaultSource, count: number) => Array.from({ length: count }, () => source("put", "a"));

  it("are the same for the same seed, and others for another", () => {
    const chances = { fail_before: 0.1, fail_after: 0.1, delay: 0.5, delayMsMax: 20 };
    expect(drawn(seededFaults(1, chances), 200)).toEqual(drawn(seededFaults(1, chances), 200));
    expect(drawn(seededFaults(1, chances), 200)).not.toEqual(drawn(seededFaults(2, chances), 200));
  });

  it("come as often as they are meant to", () => {
    const faults = drawn(seededFaults(7, { fail_before: 0.1, delay: 0.5, delayMsMax: 20 }), 10_000).flat();
    const counted = (kind: Fault["kind"]) => faults.filter((fault) => fault.kind === kind).length;
    expect(counted("fail_before")).toBeGreaterThan(850);
    expect(counted("fail_before")).toBeLessThan(1150);
    expect(counted("delay")).toBeGreaterThan(4700);
    expect(counted("delay")).toBeLessThan(5300);
    expect(counted("flip_bit")).toBe(0);
    expect(Math.max(...faults.map((fault) => (fault.kind === "delay" ? fault.ms : 0)))).toBeLessThan(20);
  });
});
