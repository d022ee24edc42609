import { describe, expect, it } from "vitest";
import { Limiter } from "../../src/objects/limiter.ts";
import { isObjectStoreError } from "../../src/objects/object-store.ts";
import { ManualClock } from "../support/manual-clock.ts";

const never = new AbortController().signal;
const limiterOf = (concurrencyMax: number, waitingCountMax = 100, clock = new ManualClock()) =>
  new Limiter({ clock, concurrencyMax, waitingCountMax });

describe("Limiter", () => {
  it("halves when the store complains, once for complaints that come together, and grows back", () => {
    const clock = new ManualClock();
    const limiter = limiterOf(20, 100, clock);
    expect(limiter.concurrency).toBe(16);
    limiter.throttled();
    limiter.throttled();
    expect(limiter.concurrency).toBe(8);
    clock.advance(1000);
    for (let complaint = 0; complaint < 20; complaint++) {
      limiter.throttled();
      clock.advance(1000);
    }
    expect(limiter.concurrency).toBe(1);
    for (let answer = 0; answer < 20; answer++) limiter.succeeded();
    expect(limiter.concurrency).toBeGreaterThan(4);
    for (let answer = 0; answer < 10_000; answer++) limiter.succeeded();
    expect(limiter.concurrency).toBe(20);
  });

  it("admits in turn, and gives back once however often it is told", async () => {
    const limiter = limiterOf(1);
    const order: number[] = [];
    const first = await limiter.acquire(never);
    const waiting = [1, 2, 3].map(async (index) => {
      const release = await limiter.acquire(never);
      order.push(index);
      release();
      release();
    });
    expect(order).toEqual([]);
    first();
    first();
    await Promise.all(waiting);
    expect(order).toEqual([1, 2, 3]);
  });

  it("forgets who no longer waits", async () => {
    const limiter = limiterOf(1);
    const first = await limiter.acquire(never);
    const controller = new AbortController();
    const leaving = limiter.acquire(controller.signal);
    const staying = limiter.acquire(never);
    controller.abort(new Error("left"));
    await expect(leaving).rejects.toThrow("left");
    first();
    (await staying)();
  });

  it("refuses when too many wait", async () => {
    const limiter = limiterOf(1, 2);
    const first = await limiter.acquire(never);
    const waiting = [limiter.acquire(never), limiter.acquire(never)];
    const refused = await limiter.acquire(never).catch((error: unknown) => error);
    expect(isObjectStoreError(refused, "throttled")).toBe(true);
    first();
    for (const turn of waiting) (await turn)();
  });
});
