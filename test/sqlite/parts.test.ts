import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { forEachStep, rowsAffected } from "../../src/sqlite/batch.ts";
import { FairQueue } from "../../src/sqlite/fair-queue.ts";
import { FrameReader, FrameWriter } from "../../src/sqlite/frames.ts";
import { isFrom, nextId } from "../../src/sqlite/protocol.ts";
import { rendezvous } from "../../src/sqlite/rendezvous.ts";
import { encodeBatch } from "./support.ts";

describe("frames", () => {
  const framed = (payloads: readonly Uint8Array[]): Buffer =>
    Buffer.concat(
      payloads.flatMap((payload) => {
        const length = Buffer.alloc(4);
        length.writeUInt32LE(payload.length);
        return [length, payload];
      }),
    );

  it("are read whole however the stream is cut", () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 60 }), { maxLength: 30 }),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 }),
        (payloads, cuts) => {
          const stream = framed(payloads);
          const read: Buffer[] = [];
          const reader = new FrameReader(100, (buffer, start, end) => read.push(buffer.subarray(start, end)));
          for (let at = 0, turn = 0; at < stream.length; turn++) {
            const next = at + (cuts[turn % cuts.length] as number);
            reader.push(Buffer.from(stream.subarray(at, next)));
            at = next;
          }
          expect(read.map((frame) => [...frame])).toEqual(payloads.map((payload) => [...payload]));
        },
      ),
    );
  });

  it("over the bound are refused before anything is allocated for them", () => {
    const reader = new FrameReader(100, () => undefined);
    expect(() => reader.push(Buffer.from([0xff, 0xff, 0xff, 0xff, 1]))).toThrow(RangeError);
  });

  it("are written in one go, small ones together and large ones as they are", () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 40 }), (payloads) => {
        const written: Buffer[] = [];
        const writer = new FrameWriter(256, (parts) => written.push(...parts));
        for (const payload of payloads) {
          const at = writer.claim(4);
          writer.buffer.writeUInt32LE(payload.length, at);
          writer.append(payload);
        }
        writer.flush();
        expect(writer.isEmpty).toBe(true);
        expect(Buffer.concat(written).equals(framed(payloads))).toBe(true);
      }),
    );
  });
});

describe("ids", () => {
  it("go around, and know what is later", () => {
    expect(nextId(1)).toBe(2);
    expect(nextId(-1)).toBe(1);
    expect(nextId(0x7fffffff)).toBe(-0x80000000);
    expect(isFrom(5, 5)).toBe(true);
    expect(isFrom(4, 5)).toBe(false);
    expect(isFrom(-0x80000000, 0x7fffffff)).toBe(true);
    expect(isFrom(1, -1)).toBe(true);
  });
});

describe("a fair queue", () => {
  const [a, b, c] = [{}, {}, {}];

  it("serves owners in turn, each in order", () => {
    const queue = new FairQueue<object, number>();
    for (const item of [1, 2, 3]) queue.push(a, item);
    queue.push(b, 10);
    queue.push(c, 20);
    queue.push(c, 21);
    expect(queue.size).toBe(6);
    expect([...Array(7)].map(() => queue.shift())).toEqual([1, 10, 20, 2, 21, 3, undefined]);
    expect(queue.size).toBe(0);
  });

  it("serves an owner again whose queue was empty", () => {
    const queue = new FairQueue<object, number>();
    queue.push(a, 1);
    expect(queue.shift()).toBe(1);
    queue.push(b, 10);
    queue.push(a, 2);
    expect([queue.shift(), queue.shift(), queue.shift()]).toEqual([10, 2, undefined]);
  });

  it("gives back what is not wanted, and keeps the rest in order", () => {
    const queue = new FairQueue<object, number>();
    for (const item of [1, 2, 3, 4]) queue.push(item > 2 ? b : a, item);
    queue.push(c, 6);
    expect(queue.remove((item) => item % 2 === 0)).toEqual([2, 4, 6]);
    expect(queue.size).toBe(2);
    queue.push(c, 5);
    expect(queue.drain()).toEqual([1, 3, 5]);
    expect(queue.size).toBe(0);
  });
});

describe("rendezvous hashing", () => {
  const names = Array.from({ length: 2_000 }, (_, index) => `database-${index}`);

  it("spreads names evenly", () => {
    const counts = [0, 0, 0, 0];
    for (const name of names) counts[rendezvous(name, 4)] = (counts[rendezvous(name, 4)] ?? 0) + 1;
    for (const count of counts) expect(count).toBeGreaterThan(350);
  });

  it("moves only names that belong to a new place", () => {
    const moved = names.filter((name) => rendezvous(name, 4) !== rendezvous(name, 5));
    expect(moved.length).toBeLessThan(600);
    for (const name of moved) expect(rendezvous(name, 5)).toBe(4);
  });
});

describe("a batch", () => {
  it("is walked step by step, and damaged ones are refused", () => {
    const request = encodeBatch({ sql: "a", expected: 3n }, { sql: "b" }, { sql: "c", expected: -1n });
    const steps: (bigint | undefined)[] = [];
    forEachStep(request, 0, request.length, ({ start, end, expected }) => {
      expect(end - start).toBe(3);
      steps.push(expected);
    });
    expect(steps).toEqual([3n, undefined, -1n]);
    fc.assert(
      fc.property(fc.nat(request.length - 1), fc.nat(255), (at, byte) => {
        const damaged = Buffer.from(request);
        damaged[at] = byte;
        try {
          forEachStep(damaged, 0, damaged.length, ({ start, end }) => {
            expect(start).toBeLessThanOrEqual(end);
            expect(end).toBeLessThanOrEqual(damaged.length);
          });
        } catch (error) {
          expect(error).toMatchObject({ note: { reason: "FIELD_INVALID" } });
        }
      }),
    );
  });

  it("knows how many rows a result says were changed", () => {
    expect(rowsAffected(Buffer.from([0x12, 0x00, 0x20, 0x96, 0x01]), 0, 5)).toBe(150n);
    expect(rowsAffected(Buffer.from([0x12, 0x00]), 0, 2)).toBe(0n);
  });
});
