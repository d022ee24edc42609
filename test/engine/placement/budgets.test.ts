import { describe, expect, it } from "vitest";
import { Budget, type StageUsage } from "../../../src/engine/placement/budgets.ts";
import type { FileSystem } from "../../../src/files/file-system.ts";
import { nodeFileSystem } from "../../../src/files/file-system.ts";
import { failureOf } from "../support.ts";

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
    if (missing === undefined) (await budget.reserve(sizeBytes))();
    else {
      const { facts } = await failureOf(budget.reserve(sizeBytes), "STAGE_FULL");
      expect(facts).toEqual({ stage: "memory", usedBytes: String(usage.bytes), capacityBytes: String(bytesMax) });
    }
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
    const release = await budget.reserve(6);
    expect(budget.usage).toEqual({ bytes: 6, count: 1 });
    await failureOf(budget.reserve(5), "STAGE_FULL");
    release();
    release();
    expect(budget.usage).toEqual({ bytes: 0, count: 0 });
    (await budget.reserve(5))();
  });

  it("refuses two that come at one time where one fits", async () => {
    const budget = await opened(10, 0, { bytes: 0, count: 0 });
    const results = await Promise.allSettled([budget.reserve(6), budget.reserve(6)]);
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
  });

  it("refuses what the file system has no room for, and keeps nothing of it", async () => {
    const budget = await opened(100 * mebibyte, 0, { bytes: 0, count: 0 }, disk(20 * mebibyte));
    (await budget.reserve(4 * mebibyte))();
    await failureOf(budget.reserve(5 * mebibyte), "STAGE_FULL");
    expect(budget.usage).toEqual({ bytes: 0, count: 0 });
  });

  it("tells what is too much of what is there already", async () => {
    expect((await opened(10, 2, { bytes: 12, count: 5 })).excess).toEqual({ bytes: 2, count: 3 });
    expect((await opened(10, 0, { bytes: 10, count: 5 })).excess).toEqual({ bytes: 0, count: 0 });
  });
});
