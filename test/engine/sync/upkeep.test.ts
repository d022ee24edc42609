import { describe, expect, it } from "vitest";
import { nextUpkeep, type UpkeepRules } from "../../../src/engine/sync/upkeep.ts";
import { type ReplicaFile, snapshotLevel } from "../../../src/ltx/replica.ts";
import { defaultLevelIntervalsMs, defaultRetention } from "../../../src/ltx/retention.ts";

const rules: UpkeepRules = {
  levelIntervalsMs: defaultLevelIntervalsMs,
  retention: defaultRetention,
  compactionFilesMax: 256,
};
const second = 1_000;
const minute = 60 * second;
const hour = 60 * minute;
const start = Date.UTC(2026, 0, 1);

function file(level: number, min: number, max: number, atMs: number): ReplicaFile {
  return { level, minTxid: BigInt(min), maxTxid: BigInt(max), createTimeMs: start + atMs, byteCount: 100 };
}

function next(...files: ReplicaFile[]) {
  const upkeep = nextUpkeep(files, rules);
  return upkeep && { ...upkeep.step, atMs: upkeep.atMs - start };
}

describe("the upkeep of a replica", () => {
  it("is none for nothing, and none for a database that was written once", () => {
    expect(next()).toBeUndefined();
    expect(next(file(0, 1, 1, 7 * second))).toBeUndefined();
  });

  it("compacts a level at the boundary of its interval after the second file", () => {
    expect(next(file(0, 1, 1, 7 * second), file(0, 2, 2, 12 * second))).toEqual({
      kind: "compact",
      level: 1,
      atMs: 30 * second,
    });
    expect(next(file(0, 1, 1, 7 * second), file(0, 2, 2, 31 * second))).toMatchObject({ atMs: 60 * second });
  });

  it("makes each level once in its interval, however many files come", () => {
    const files = [file(1, 1, 5, 31 * second), file(0, 6, 6, 32 * second)];
    // A file that is alone is not copied. It waits for another, or for the end of the day.
    expect(next(...files)).toMatchObject({ kind: "snapshot" });
    expect(next(...files, file(0, 7, 7, 33 * second))).toEqual({ kind: "compact", level: 1, atMs: 60 * second });
  });

  it("makes a snapshot where the second level would hold the whole database once more", () => {
    const files = [file(1, 1, 5, 30 * second), file(1, 6, 9, 60 * second)];
    expect(next(...files)).toEqual({ kind: "snapshot", atMs: 5 * minute });
    const above = [...files, file(snapshotLevel, 1, 9, 5 * minute)];
    expect(
      next(...above, file(1, 10, 12, 6 * minute), file(1, 13, 14, 7 * minute), file(0, 14, 14, 7 * minute)),
    ).toEqual({
      kind: "compact",
      level: 2,
      atMs: 10 * minute,
    });
  });

  it("makes a snapshot a day after the last one, if there is anything new", () => {
    const snapshot = file(snapshotLevel, 1, 9, hour);
    expect(next(snapshot, file(0, 9, 9, hour))).toBeUndefined();
    expect(next(snapshot, file(0, 10, 10, 2 * hour))).toEqual({ kind: "snapshot", atMs: 25 * hour });
  });

  it("lets go of files that a level has taken over, of old snapshots, and of what is before them", () => {
    const merged = [file(0, 1, 1, 5 * second), file(0, 2, 2, 10 * second), file(1, 1, 2, 30 * second)];
    expect(next(...merged)).toEqual({ kind: "expire", atMs: 5 * minute + 5 * second + 1 });

    const [first, second_, third] = [1, 2, 3].map((day) => file(snapshotLevel, 1, day * 10, day * 24 * hour));
    const aged = [first, second_, third, file(0, 30, 30, 72 * hour)].filter((each) => each !== undefined);
    // The first goes when the second is older than the span; the second stays as the way to what comes after it.
    expect(next(...aged)).toEqual({ kind: "expire", atMs: 72 * hour + 1 });
    expect(next(...aged.slice(1))).toEqual({ kind: "expire", atMs: 96 * hour + 1 });
  });
});
