import { describe, expect, it } from "vitest";
import { Budget, type StageUsage } from "../../../src/engine/placement/budgets.ts";
import { Room } from "../../../src/engine/placement/rooms.ts";
import type { FileSystem } from "../../../src/files/file-system.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { failureOf, testRow, until } from "../support.ts";

const mebibyte = 1024 * 1024;

function disk(freeBytes: number, totalBytes = 1000 * mebibyte): FileSystem {
  return { ...nodeFileSystem, space: async () => ({ totalBytes, freeBytes, isMemory: true }) };
}

async function opened(
  bytesMax: number,
  databaseCountMax: number,
  usage: StageUsage,
  fileSystem = disk(500 * mebibyte),
) {
  const budget = new Budget("memory", { bytesMax, databaseCountMax }, "/", fileSystem, () => usage);
  await budget.open();
  return budget;
}

describe("a budget", () => {
  it.each([
    ["of bytes that fits exactly", 10, 0, { bytes: 6, count: 1 }, 4, undefined],
    ["of bytes that is one over", 10, 0, { bytes: 6, count: 1 }, 5, { bytes: 1, count: 0 }],
    ["of databases that fits exactly", 100, 3, { bytes: 6, count: 2 }, 5, undefined],
    ["of databases that is one over", 100, 3, { bytes: 6, count: 3 }, 5, { bytes: 0, count: 1 }],
    ["of both that is over", 10, 1, { bytes: 10, count: 1 }, 5, { bytes: 5, count: 1 }],
  ] as const)("%s", async (_, bytesMax, countMax, usage, sizeBytes, missing) => {
    const budget = await opened(bytesMax, countMax, usage);
    expect(budget.missing(sizeBytes)).toEqual(missing ?? { bytes: 0, count: 0 });
    expect(budget.tryReserve(sizeBytes) === undefined).toBe(missing !== undefined);
    expect(budget.full().facts).toMatchObject({ stage: "memory", capacityBytes: String(bytesMax) });
  });

  it("is a part of the file system where the settings name none", async () => {
    expect((await opened(0, 0, { bytes: 0, count: 0 })).capacityBytes).toBe(500 * mebibyte);
    const local = new Budget("local", { bytesMax: 0, databaseCountMax: 0 }, "/", disk(1), () => ({
      bytes: 0,
      count: 0,
    }));
    await local.open();
    expect(local.capacityBytes).toBe(900 * mebibyte);
  });

  it("counts what is about to come, until it is there or did not come", async () => {
    const budget = await opened(10, 2, { bytes: 0, count: 0 });
    const release = budget.tryReserve(6);
    expect(budget.usage).toEqual({ bytes: 6, count: 1 });
    expect(budget.tryReserve(5)).toBeUndefined();
    release?.();
    release?.();
    expect(budget.usage).toEqual({ bytes: 0, count: 0 });
    expect(budget.tryReserve(5)).toBeDefined();
  });

  it("refuses what the file system has no room for", async () => {
    const budget = await opened(100 * mebibyte, 0, { bytes: 0, count: 0 }, disk(20 * mebibyte));
    const release = budget.tryReserve(4 * mebibyte);
    await budget.requireDisk();
    release?.();
    budget.tryReserve(5 * mebibyte);
    await failureOf(budget.requireDisk(), "STAGE_FULL");
  });

  it("tells what is too much of what is there already", async () => {
    expect((await opened(10, 2, { bytes: 12, count: 5 })).above(1)).toEqual({ bytes: 2, count: 3 });
    expect((await opened(10, 0, { bytes: 10, count: 5 })).above(1)).toEqual({ bytes: 0, count: 0 });
    expect((await opened(10, 10, { bytes: 10, count: 10 })).above(0.9)).toEqual({ bytes: 1, count: 1 });
  });
});

describe("room", () => {
  /** A stage with room for so many databases of one byte, and what may leave it. */
  async function scene(countMax: number) {
    const inside = new Map<string, number>();
    const clock = new ManualClock();
    const evicted: string[] = [];
    const busy = new Set<string>();
    const ends = new Map<string, (isGone: boolean) => void>();
    const budget = new Budget(
      "local",
      { bytesMax: 1_000_000, databaseCountMax: countMax },
      "/",
      disk(500 * mebibyte),
      () => ({
        bytes: inside.size,
        count: inside.size,
      }),
    );
    await budget.open();
    const room = new Room(budget, {
      clock,
      victims: ({ count }, worthMax) => {
        const able = [...inside].filter(([, value]) => value < worthMax);
        const rows = able.filter(([id]) => !busy.has(id) && !ends.has(id)).slice(0, count);
        return { rows: rows.map(([id]) => testRow(id, { sizeBytes: 1 })), hasBusy: able.some(([id]) => busy.has(id)) };
      },
      evict: ({ id }) => {
        evicted.push(id);
        return new Promise((resolve, reject) => {
          ends.set(id, (isGone) => {
            ends.delete(id);
            if (isGone) inside.delete(id);
            if (isGone) resolve();
            else reject(new Error("it stays"));
          });
        });
      },
    });
    const enter = async (id: string, worthMax = Number.POSITIVE_INFINITY, value = 1) => {
      const release = await room.take(1, worthMax);
      inside.set(id, value);
      release();
    };
    return { room, clock, inside, evicted, busy, ends, enter };
  }

  it("is taken at once while there is some", async () => {
    const { enter, evicted } = await scene(2);
    await enter("a");
    await enter("b");
    expect(evicted).toEqual([]);
  });

  it("is waited for while others leave, in the order of coming", async () => {
    const { enter, evicted, ends, inside } = await scene(2);
    for (const id of ["a", "b"]) await enter(id);
    const order: string[] = [];
    const coming = ["c", "d"].map((id) => enter(id).then(() => order.push(id)));
    expect(evicted).toEqual(["a", "b"]);
    ends.get("b")?.(true);
    await coming[0];
    expect(order).toEqual(["c"]);
    ends.get("a")?.(true);
    await Promise.all(coming);
    expect([...inside.keys()]).toEqual(["c", "d"]);
  });

  it("is refused at once when nothing may leave that is worth less", async () => {
    const { enter, evicted } = await scene(1);
    await enter("a", undefined, 5);
    await failureOf(enter("b", 5), "STAGE_FULL");
    expect(evicted).toEqual([]);
    void enter("c", 6);
    expect(evicted).toEqual(["a"]);
  });

  it("is looked for again when one that should have left stays, and refused when no other can", async () => {
    const { enter, ends, room } = await scene(1);
    await enter("a");
    const coming = enter("b");
    ends.get("a")?.(false);
    await until(() => ends.has("a"));
    ends.get("a")?.(true);
    await coming;
    expect(room.waiting).toBe(0);
  });

  it("is waited for while all is in use, and refused when that goes on", async () => {
    const { enter, busy, clock, ends, evicted, room } = await scene(1);
    await enter("a");
    busy.add("a");
    const first = enter("b");
    clock.advance(100);
    expect(evicted).toEqual([]);
    busy.clear();
    clock.advance(25);
    ends.get("a")?.(true);
    await first;
    busy.add("b");
    const refused = failureOf(enter("c"), "STAGE_FULL");
    clock.advance(30_000);
    await refused;
    expect(room.waiting).toBe(0);
  });

  it("is given up by who does not want it any more", async () => {
    const { room, enter } = await scene(1);
    await enter("a");
    const controller = new AbortController();
    const coming = room.take(1, Number.POSITIVE_INFINITY, controller.signal);
    controller.abort(new Error("gone"));
    await expect(coming).rejects.toThrow("gone");
    expect(room.waiting).toBe(0);
  });

  it("is kept free before somebody comes", async () => {
    const { room, enter, evicted } = await scene(10);
    for (let index = 0; index < 10; index++) await enter(`d${index}`);
    room.relieve();
    expect(evicted).toEqual([]);
    room.keepFree();
    room.keepFree();
    expect(evicted).toEqual(["d0"]);
  });
});
