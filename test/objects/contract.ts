/** What every object store promises; run on each implementation. */
import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { collect, type ObjectInfo, type ObjectStore } from "../../src/objects/object-store.ts";
import { bytesOf, call, failing, keysOf, take } from "./helpers.ts";

export interface ContractOptions {
  /** Makes one more store on the same objects each time. */
  readonly open: () => Promise<ObjectStore>;
  /** Objects above this size go up in parts, where the store does that. */
  readonly partBytes?: number;
  readonly skip?: boolean;
}

/** Adds the suite to the file that calls it. */
export function describeObjectStore(name: string, { open, partBytes = 0, skip = false }: ContractOptions): void {
  describe.skipIf(skip)(`the contract of object stores: ${name}`, () => {
    let store: ObjectStore;
    let folderCount = 0;
    /** A folder of its own for each test. */
    const folder = () => `contract/f${++folderCount}`;

    beforeAll(async () => {
      store = await open();
    });
    afterAll(async () => {
      await store?.close();
    });

    it("gives back what was put", async () => {
      const key = `${folder()}/a.ltx`;
      for (const size of [0, 1, 70_000]) {
        const put = await store.put(key, bytesOf(size, size), call());
        const got = await store.get(key, { ...call(), bytesMax: size });
        expect(bytesOf(size, size).equals(got.bytes)).toBe(true);
        expect([got.info.key, got.info.sizeBytes, got.info.etag]).toEqual([key, size, put.etag]);
        const { etag, sizeBytes } = await store.head(key, call());
        expect([etag, sizeBytes]).toEqual([put.etag, size]);
      }
    });

    it("keeps the timestamp, to the millisecond", async () => {
      const key = `${folder()}/a.ltx`;
      for (const timestampMs of [Date.UTC(2023, 10, 14, 22, 13, 20), Date.UTC(2026, 1, 3) + 123, 86_400_000]) {
        const put = await store.put(key, bytesOf(10), { ...call(), timestampMs });
        expect(put.timestampMs).toBe(timestampMs);
        expect((await store.head(key, call())).timestampMs).toBe(timestampMs);
        expect((await store.get(key, { ...call(), bytesMax: 10 })).info.timestampMs).toBe(timestampMs);
      }
    });

    it("says when an object without a timestamp was put", async () => {
      const key = `${folder()}/a.ltx`;
      const beforeMs = Date.now();
      await store.put(key, bytesOf(10), call());
      // Stores that tell time in whole seconds cut them.
      expect((await store.head(key, call())).timestampMs).toBeGreaterThan(beforeMs - 2000);
      expect((await store.head(key, call())).timestampMs).toBeLessThan(Date.now() + 2000);
    });

    it("answers not_found for what is not there", async () => {
      const key = `${folder()}/absent`;
      expect(await failing(store.get(key, { ...call(), bytesMax: 10 }))).toBe("not_found");
      expect(await failing(store.get(key, { ...call(), bytesMax: 10, range: { offsetBytes: 3, byteCount: 0 } }))).toBe(
        "not_found",
      );
      expect(await failing(store.open(key, call()))).toBe("not_found");
      expect(await failing(store.head(key, call()))).toBe("not_found");
      await store.put(`${key}/inner`, bytesOf(1), call());
      expect(await failing(store.head(key, call()))).toBe("not_found");
      expect(await failing(store.get(key, { ...call(), bytesMax: 10 }))).toBe("not_found");
    });

    it("puts only where nothing is, if asked to", async () => {
      const key = `${folder()}/a.ltx`;
      const condition = { ifNoneMatch: "*" } as const;
      const first = await store.put(key, bytesOf(10, 1), { ...call(), condition });
      expect(await failing(store.put(key, bytesOf(10, 2), { ...call(), condition }))).toBe("precondition");
      const got = await store.get(key, { ...call(), bytesMax: 10 });
      expect([got.info.etag, bytesOf(10, 1).equals(got.bytes)]).toEqual([first.etag, true]);
      await store.delete([key], call());
      await store.put(key, bytesOf(10, 3), { ...call(), condition });
    });

    it("puts only over the version that the caller knows, if asked to", async () => {
      const key = `${folder()}/owner.json`;
      const first = await store.put(key, bytesOf(10, 1), call());
      const second = await store.put(key, bytesOf(10, 2), { ...call(), condition: { ifMatch: first.etag } });
      expect(second.etag).not.toBe(first.etag);
      expect(await failing(store.put(key, bytesOf(10, 3), { ...call(), condition: { ifMatch: first.etag } }))).toBe(
        "precondition",
      );
      expect(bytesOf(10, 2).equals((await store.get(key, { ...call(), bytesMax: 10 })).bytes)).toBe(true);
      await store.delete([key], call());
      expect(await failing(store.put(key, bytesOf(10, 4), { ...call(), condition: { ifMatch: second.etag } }))).toBe(
        "precondition",
      );
      expect(await failing(store.head(key, call()))).toBe("not_found");
    });

    it("lets one of many win that put on the same condition, from two stores", async () => {
      const other = await open();
      const key = `${folder()}/fence`;
      const race = async (round: number, condition: { ifNoneMatch: "*" } | { ifMatch: string }) => {
        const bytes = (index: number) => bytesOf(100, 100 * round + index);
        const puts = Array.from({ length: 8 }, (_, index) =>
          (index % 2 === 0 ? store : other)
            .put(key, bytes(index), { ...call(), condition })
            .then((info) => ({ info, index })),
        );
        const settled = await Promise.allSettled(puts);
        const lost = settled
          .filter(({ status }) => status === "rejected")
          .map((each) => (each as { reason: unknown }).reason);
        expect(lost.map((reason) => (reason as { kind?: string }).kind)).toEqual(Array(7).fill("precondition"));
        const [won] = settled.filter((each) => each.status === "fulfilled").map(({ value }) => value);
        const got = await store.get(key, { ...call(), bytesMax: 100 });
        expect([got.info.etag, bytes(won!.index).equals(got.bytes)]).toEqual([won!.info.etag, true]);
        return won!.info;
      };
      let { etag } = await race(0, { ifNoneMatch: "*" });
      for (let round = 1; round < 3; round++) etag = (await race(round, { ifMatch: etag })).etag;
      await other.close();
    });

    it("reads parts: from an offset, of a length, the end; and nothing beyond it", async () => {
      const key = `${folder()}/a.ltx`;
      const bytes = bytesOf(1000);
      await store.put(key, bytes, call());
      const part = async (range: Parameters<ObjectStore["get"]>[1]["range"]) => {
        const got = await store.get(key, { ...call(), bytesMax: 1000, range });
        expect(got.info.sizeBytes).toBe(1000);
        return Buffer.from(got.bytes);
      };
      expect((await part({ offsetBytes: 0 })).equals(bytes)).toBe(true);
      expect((await part({ offsetBytes: 990 })).equals(bytes.subarray(990))).toBe(true);
      expect((await part({ offsetBytes: 10, byteCount: 20 })).equals(bytes.subarray(10, 30))).toBe(true);
      expect((await part({ offsetBytes: 990, byteCount: 20 })).equals(bytes.subarray(990))).toBe(true);
      expect((await part({ lastByteCount: 32 })).equals(bytes.subarray(968))).toBe(true);
      expect((await part({ lastByteCount: 5000 })).equals(bytes)).toBe(true);
      expect((await part({ offsetBytes: 10, byteCount: 0 })).length).toBe(0);
      expect((await part({ offsetBytes: 1000 })).length).toBe(0);
      expect((await part({ offsetBytes: 5000, byteCount: 5 })).length).toBe(0);
    });

    it("reads nothing larger than its caller allows", async () => {
      const key = `${folder()}/a.ltx`;
      await store.put(key, bytesOf(1000), call());
      expect(await failing(store.get(key, { ...call(), bytesMax: 999 }))).toBe("corrupt");
      const range = { offsetBytes: 1, byteCount: 999 };
      expect((await store.get(key, { ...call(), bytesMax: 999, range })).bytes.length).toBe(999);
    });

    it("streams large objects, and lets go of a stream that is left", async () => {
      const key = `${folder()}/large`;
      const bytes = bytesOf(3_000_000);
      await store.put(key, bytes, call());
      const stream = await store.open(key, call());
      expect(stream.byteCount).toBe(bytes.length);
      expect(bytes.equals(await collect(stream))).toBe(true);
      for await (const chunk of (await store.open(key, call())).chunks) {
        expect(bytes.subarray(0, chunk.length).equals(chunk)).toBe(true);
        break;
      }
      const unread = await store.open(key, call());
      unread.close();
      unread.close();
      expect(await failing(collect(unread))).toBe("unavailable");
    });

    it("ends a stream at the deadline and by the signal", async () => {
      const key = `${folder()}/large`;
      await store.put(key, bytesOf(6_000_000), call());
      const controller = new AbortController();
      const read = async (stream: { chunks: AsyncIterable<Uint8Array> }) => {
        for await (const _ of stream.chunks) controller.abort(new Error("enough"));
      };
      const stream = await store.open(key, { ...call(), signal: controller.signal });
      await expect(read(stream)).rejects.toThrow("enough");
    });

    it("puts from a source that is never whole in memory", async () => {
      const key = `${folder()}/large`;
      const bytes = bytesOf(partBytes > 0 ? 2 * partBytes + 12_345 : 2_500_000);
      const source = {
        sizeBytes: bytes.length,
        read: async (offset: number, count: number) => bytes.subarray(offset, offset + count),
      };
      const timestampMs = Date.UTC(2026, 4, 5) + 6;
      const condition = { ifNoneMatch: "*" } as const;
      const put = await store.put(key, source, { ...call(), condition, timestampMs });
      expect(await failing(store.put(key, source, { ...call(), condition }))).toBe("precondition");
      const got = await store.get(key, { ...call(), bytesMax: bytes.length });
      expect([got.info.etag, got.info.timestampMs, got.info.sizeBytes]).toEqual([put.etag, timestampMs, bytes.length]);
      expect(sha256(got.bytes)).toBe(sha256(bytes));
      const again = await store.put(key, source, { ...call(), condition: { ifMatch: put.etag } });
      expect((await store.head(key, call())).etag).toBe(again.etag);
    });

    it("leaves nothing of a put whose source fails", async () => {
      const at = folder();
      const sizeBytes = Math.max(4_000_000, 3 * partBytes);
      const source = {
        sizeBytes,
        read: async (offset: number, count: number) => {
          if (offset + count === sizeBytes) throw new Error("the source broke");
          return bytesOf(count);
        },
      };
      await expect(store.put(`${at}/a`, source, call())).rejects.toThrow("the source broke");
      const short = { sizeBytes: 10, read: async () => bytesOf(9) };
      await expect(store.put(`${at}/a`, short, call())).rejects.toThrow(RangeError);
      expect(await keysOf(store, `${at}/`)).toEqual([]);
    });

    it("deletes any number of objects, there or not", async () => {
      const at = folder();
      const keys = Array.from({ length: 30 }, (_, index) => `${at}/${index}`);
      await Promise.all(keys.map((key) => store.put(key, bytesOf(1), call())));
      const more = Array.from({ length: 1100 }, (_, index) => `${at}/absent-${index}`);
      await store.delete([...keys.slice(0, 10), ...more, ...keys.slice(10, 29)], call());
      expect(await keysOf(store, `${at}/`)).toEqual([`${at}/29`]);
      await store.delete([], call());
      await store.delete(keys, call());
      expect(await keysOf(store, `${at}/`)).toEqual([]);
    });

    it("lists by prefix, from a key on, in the order of bytes inside of a folder", async () => {
      const at = folder();
      const names = ["0000000000000001", "0000000000000002", "00000000000000ff", "B", "a", "a b+c=@~", "é", "｡", "😀"];
      const sizes = new Map(names.map((name, index) => [`${at}/0000/${name}`, index + 1]));
      await Promise.all([...sizes].map(([key, size]) => store.put(key, bytesOf(size), call())));
      await store.put(`${at}/0001/x`, bytesOf(1), call());
      const infos: ObjectInfo[] = [];
      for await (const info of store.list(`${at}/0000/`, call())) infos.push(info);
      expect(infos.map(({ key }) => key)).toEqual([...sizes.keys()]);
      expect(infos.map(({ sizeBytes }) => sizeBytes)).toEqual([...sizes.values()]);
      for (const info of infos.slice(0, 2)) expect(info.etag).toBe((await store.head(info.key, call())).etag);
      expect(await keysOf(store, `${at}/0000/0000`)).toEqual(names.slice(0, 3).map((name) => `${at}/0000/${name}`));
      expect(await keysOf(store, `${at}/0000/`, `${at}/0000/0000000000000002`)).toEqual(
        names.slice(2).map((name) => `${at}/0000/${name}`),
      );
      expect(await keysOf(store, `${at}/0000/`, `${at}/0000/0000000000000002x`)).toEqual(
        names.slice(2).map((name) => `${at}/0000/${name}`),
      );
      expect((await keysOf(store, `${at}/`)).length).toBe(10);
      expect(await keysOf(store, `${at}/nothing`)).toEqual([]);
      expect(await keysOf(store, "contract/no such folder/")).toEqual([]);
    });

    it("lists more than a page, and only as far as somebody looks", async () => {
      const at = folder();
      const keys = Array.from({ length: 305 }, (_, index) => `${at}/${String(index).padStart(16, "0")}`);
      for (let index = 0; index < keys.length; index += 100) {
        await Promise.all(keys.slice(index, index + 100).map((key) => store.put(key, bytesOf(1), call())));
      }
      expect(await keysOf(store, `${at}/`)).toEqual(keys);
      expect((await keysOf(store, `${at}/`, keys[102])).length).toBe(202);
      expect(await take(store.list(`${at}/`, call()), 3)).toEqual(keys.slice(0, 3));
      await store.delete(keys, call());
    });

    it("lists the folders under a prefix", async () => {
      const at = folder();
      const names = ["a", "a-b", "a.c", "b"];
      for (const name of names) {
        await store.put(`${at}/${name}/0000/x`, bytesOf(1), call());
        await store.put(`${at}/${name}/0009/y`, bytesOf(1), call());
      }
      await store.put(`${at}/file`, bytesOf(1), call());
      const found: string[] = [];
      for await (const name of store.listFolders(`${at}/`, call())) found.push(name);
      expect(found.sort()).toEqual(names);
    });

    it("takes no key that is none", async () => {
      const hostile = [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "./a",
        "a\\b",
        "a\0b",
        "a\nb",
        "\ud800",
      ];
      for (const key of [...hostile, "a".repeat(241), `${"a/".repeat(450)}a`]) {
        await expect(store.put(key, bytesOf(1), call())).rejects.toThrow(RangeError);
        await expect(store.get(key, { ...call(), bytesMax: 1 })).rejects.toThrow(RangeError);
        await expect(store.open(key, call())).rejects.toThrow(RangeError);
        await expect(store.head(key, call())).rejects.toThrow(RangeError);
        await expect(store.delete([key], call())).rejects.toThrow(RangeError);
      }
      await expect(take(store.list("../", call()), 1)).rejects.toThrow(RangeError);
      await expect(take(store.listFolders("a", call()), 1)).rejects.toThrow(RangeError);
      await expect(store.get("a", { ...call(), bytesMax: 1, range: { offsetBytes: -1 } })).rejects.toThrow(RangeError);
      await expect(store.get("a", { ...call(), bytesMax: 1, range: { lastByteCount: 0 } })).rejects.toThrow(RangeError);
    });

    it("keeps strange names that are keys", async () => {
      const at = folder();
      const keys = [".hidden", "...", "%2e%2e", "%", "a b", "a:b?c*d|e<f>g\"h'i&j", "#", "+", "ü", "n".repeat(200)];
      for (const [index, name] of keys.entries()) await store.put(`${at}/${name}`, bytesOf(1, index), call());
      for (const [index, name] of keys.entries()) {
        const { bytes } = await store.get(`${at}/${name}`, { ...call(), bytesMax: 1 });
        expect(bytesOf(1, index).equals(bytes)).toBe(true);
      }
      expect((await keysOf(store, `${at}/`)).sort()).toEqual(keys.map((name) => `${at}/${name}`).sort());
    });

    it("ends at the deadline and by the signal", async () => {
      const key = `${folder()}/a`;
      await store.put(key, bytesOf(1), call());
      const over = { deadlineAtMs: systemClock.now() - 1 };
      expect(await failing(store.put(key, bytesOf(2), over))).toBe("unavailable");
      expect(await failing(store.get(key, { ...over, bytesMax: 1 }))).toBe("unavailable");
      expect(await failing(store.head(key, over))).toBe("unavailable");
      expect(await failing(store.delete([key], over))).toBe("unavailable");
      expect(await failing(take(store.list("", over), 1))).toBe("unavailable");
      const gone = { ...call(), signal: AbortSignal.abort(new Error("the caller left")) };
      await expect(store.put(key, bytesOf(2), gone)).rejects.toThrow("the caller left");
      await expect(store.head(key, gone)).rejects.toThrow("the caller left");
      await expect(take(store.list("", gone), 1)).rejects.toThrow("the caller left");
      expect((await store.get(key, { ...call(), bytesMax: 1 })).info.sizeBytes).toBe(1);
    });

    it("passes its own probe, and leaves nothing of it", async () => {
      await store.probe(call());
      expect(await keysOf(store, "persisto-probe/")).toEqual([]);
    });

    it("takes no calls after its end", async () => {
      const closed = await open();
      await closed.close();
      expect(await failing(closed.head("a", call()))).toBe("unavailable");
      expect(await failing(closed.put("a", bytesOf(1), call()))).toBe("unavailable");
    });
  });
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
