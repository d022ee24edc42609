import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import type { GetOptions, ObjectStream } from "../../src/objects/object-store.ts";
import { FetchBudget, ObjectSequence } from "../../src/stages/fetch.ts";
import { call } from "../objects/helpers.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { openStage, snapshotOf } from "./support.ts";

const temporaryFolder = temporaryFolders();

/** Tells how many bytes were asked for and had not come. */
class WatchedStore extends MemoryObjectStore {
  awaitedBytes = 0;
  awaitedBytesMax = 0;
  requests = 0;

  override async open(key: string, options: GetOptions): Promise<ObjectStream> {
    this.requests++;
    const stream = await super.open(key, options);
    this.awaitedBytes += stream.byteCount;
    this.awaitedBytesMax = Math.max(this.awaitedBytesMax, this.awaitedBytes);
    const came = (byteCount: number) => {
      this.awaitedBytes -= byteCount;
    };
    async function* chunks() {
      let left = stream.byteCount;
      try {
        for await (const chunk of stream.chunks) {
          left -= chunk.length;
          came(chunk.length);
          yield chunk;
        }
      } finally {
        came(left);
      }
    }
    return { ...stream, chunks: chunks() };
  }
}

describe("a budget", () => {
  it("serves in turn, and lets nobody past who waits", async () => {
    const budget = new FetchBudget(10);
    const order: string[] = [];
    expect(budget.tryTake(8)).toBe(true);
    const large = budget.take(6).then(() => order.push("large"));
    const small = budget.take(1).then(() => order.push("small"));
    expect(budget.tryTake(1)).toBe(false);
    budget.give(8);
    await Promise.all([large, small]);
    expect(order).toEqual(["large", "small"]);
    expect(budget.tryTake(4)).toBe(false);
    budget.give(7);
    expect(budget.tryTake(10)).toBe(true);
  });

  it("lets a part that is larger than it pass alone", async () => {
    const budget = new FetchBudget(10);
    expect(budget.tryTake(1)).toBe(true);
    const large = budget.take(50);
    budget.give(1);
    await large;
    expect(budget.tryTake(1)).toBe(false);
    budget.give(50);
    expect(budget.tryTake(1)).toBe(true);
  });
});

describe("objects in order", () => {
  it("come whole and in parts of bounded bytes, several at one time", async () => {
    const store = new WatchedStore(systemClock);
    const sizes = [100, 700_000, 9_000_000, 1, 3_000_000];
    const objects = await Promise.all(
      sizes.map(async (size, index) => {
        const bytes = randomBytes(size);
        await store.put(`o/${index}`, bytes, call());
        return { key: `o/${index}`, byteCount: size, bytes };
      }),
    );
    let seen = 0;
    const onBytes = (byteCount: number) => {
      seen += byteCount;
    };
    const sequence = new ObjectSequence(store, objects, call(), {
      clock: systemClock,
      budget: new FetchBudget(8_000_000),
      onBytes,
    });
    for (const object of objects) {
      const chunks: Uint8Array[] = [];
      for await (const chunk of sequence.next(object)) chunks.push(chunk);
      expect(Buffer.concat(chunks).equals(object.bytes)).toBe(true);
    }
    await sequence.close();
    expect(seen).toBe(sizes.reduce((sum, size) => sum + size));
    expect(store.awaitedBytesMax).toBeGreaterThan(4_500_000);
    expect(store.awaitedBytesMax).toBeLessThanOrEqual(8_000_000);
  });

  it("that nobody reads to the end give their room back", async () => {
    const store = new WatchedStore(systemClock);
    await store.put("o/1", randomBytes(6_000_000), call());
    const budget = new FetchBudget(4_000_000);
    const object = { key: "o/1", byteCount: 6_000_000 };
    const sequence = new ObjectSequence(store, [object], call(), { clock: systemClock, budget });
    for await (const _ of sequence.next(object)) break;
    await sequence.close();
    expect(store.awaitedBytes).toBe(0);
    expect(budget.tryTake(4_000_000)).toBe(true);
  });
});

it("restores share the room for what they fetch, and all of them end", async () => {
  const store = new WatchedStore(systemClock);
  const folder = temporaryFolder();
  const stage = await openStage(store, folder, { fetchBytesMax: 3_000_000 });
  const state = randomBytes(4096 * 2000);
  await stage.replica("a/1").putSnapshot(snapshotOf(state, 4096, 1n), call());
  const paths = [1, 2, 3, 4].map((number) => join(folder, `restored-${number}`));
  await Promise.all(paths.map((path) => stage.replica("a/1").restore({ path, flush: false }, call(60_000))));
  for (const path of paths) expect(readFileSync(path).equals(state)).toBe(true);
  expect(store.awaitedBytesMax).toBeLessThanOrEqual(4_200_000);
});
