import { describe, expect, it } from "vitest";
import { backOffMs, StoreHealth } from "../../../src/engine/sync/store-health.ts";
import { ObjectStoreError } from "../../../src/objects/object-store.ts";
import { ManualClock } from "../../support/manual-clock.ts";

function scene() {
  const clock = new ManualClock();
  const events: string[] = [];
  const health = new StoreHealth(
    clock,
    () => 1,
    { startMs: 500, maxMs: 30_000 },
    {
      away: (problem) => events.push(`away: ${problem}`),
      back: () => events.push("back"),
    },
  );
  const fail = () => health.failed(new ObjectStoreError("unavailable", "no answer"));
  return { clock, health, events, fail };
}

describe("the health of the store", () => {
  it("is not doubted for single failures", () => {
    const { health, events, fail } = scene();
    for (let round = 0; round < 10; round++) {
      fail();
      fail();
      health.succeeded();
    }
    expect(health.isAway).toBe(false);
    expect(events).toEqual([]);
  });

  it("is away after several in a row: then one tries from time to time, less and less often", () => {
    const { clock, health, events, fail } = scene();
    fail();
    fail();
    fail();
    expect(events).toEqual(["away: no answer"]);
    const pauses: number[] = [];
    for (let round = 0; round < 8; round++) {
      const atMs = health.nextTryAtMs ?? Number.NaN;
      pauses.push(atMs - clock.now());
      clock.advance(atMs - clock.now());
      health.began();
      expect(health.nextTryAtMs).toBeUndefined();
      fail();
      health.settled();
    }
    expect(pauses).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    health.succeeded();
    expect(events).toEqual(["away: no answer", "back"]);
    expect(health.nextTryAtMs).toBe(0);
  });

  it("counts as one what was under way together", () => {
    const { clock, health, fail } = scene();
    for (let call = 0; call < 64; call++) fail();
    expect((health.nextTryAtMs ?? 0) - clock.now()).toBe(500);
  });

  it("takes an answer that says no for an answer", () => {
    const { health, events, fail } = scene();
    fail();
    fail();
    fail();
    health.answered(new ObjectStoreError("precondition", "taken"));
    expect(events.at(-1)).toBe("back");
    fail();
    fail();
    health.answered(new Error("a local file is gone"));
    fail();
    expect(health.isAway).toBe(true);
  });

  it("spreads pauses by chance between half and whole", () => {
    const backOff = { startMs: 1_000, maxMs: 30_000 };
    expect(backOffMs(1, backOff, () => 0)).toBe(500);
    expect(backOffMs(3, backOff, () => 0)).toBe(2_000);
    expect(backOffMs(1_000, backOff, () => 1)).toBe(30_000);
  });
});
