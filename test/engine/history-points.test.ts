import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { findPoint, outOfRange } from "../../src/engine/history-points.ts";
import { type ReplicaFile, snapshotLevel } from "../../src/ltx/replica.ts";
import { failureOf } from "./support.ts";

const startMs = Date.UTC(2026, 0, 1);
const file = (level: number, min: number, max: number, atSecond: number, byteCount = 100): ReplicaFile => ({
  level,
  minTxid: BigInt(min),
  maxTxid: BigInt(max),
  createTimeMs: startMs + atSecond * 1000,
  byteCount,
});
const point = (files: readonly ReplicaFile[], txid: number) => findPoint("d", files, { txid: BigInt(txid) });
const at = (files: readonly ReplicaFile[], ms: number) => findPoint("d", files, { timeMs: startMs + ms });

/** Batches 1 to 6: the first four merged in pairs, the last two as they were. */
const merged = [file(1, 1, 2, 2), file(1, 3, 4, 4), file(0, 4, 4, 4), file(0, 5, 5, 5), file(0, 6, 6, 6)];

describe("points of a history", () => {
  it("are the ends of files, whatever their level", () => {
    for (const txid of [2, 4, 5, 6]) expect(point(merged, txid).txid).toBe(BigInt(txid));
    expect(point(merged, 5).byteCount).toBe(300);
  });

  it("inside a merged file are gone, and the nearest on both sides are named", async () => {
    const failure = await failureOf(() => point(merged, 3), "HISTORY_OUT_OF_RANGE");
    expect(failure.facts).toEqual({
      database: "d",
      wanted: "position 3",
      problem: "it was merged with its neighbours",
      earliestSequence: "2",
      earliestTime: "2026-01-01T00:00:02.000Z",
      latestSequence: "6",
      latestTime: "2026-01-01T00:00:06.000Z",
      nearestBefore: "2",
      nearestAfter: "4",
    });
    expect(failure.entry.code).toBe("OUT_OF_RANGE");
    expect(failure.message).toContain("from position 2 (2026-01-01T00:00:02.000Z) to 6");
  });

  it("before the first and behind the last are out of range", async () => {
    const early = await failureOf(() => point(merged, 1), "HISTORY_OUT_OF_RANGE");
    expect(early.facts).toMatchObject({ problem: "the history does not reach back that far", nearestAfter: "2" });
    expect(early.facts).not.toHaveProperty("nearestBefore");
    const late = await failureOf(() => point(merged, 7), "HISTORY_OUT_OF_RANGE");
    expect(late.facts).toMatchObject({ problem: "it is not stored yet", nearestBefore: "6" });
    const none = await failureOf(() => point([], 1), "HISTORY_OUT_OF_RANGE");
    expect(none.facts).toMatchObject({
      earliestSequence: "none",
      latestSequence: "none",
      problem: "nothing is stored yet",
    });
  });

  it("of a time are the last batches that were closed at it or before", async () => {
    expect(at(merged, 2000).txid).toBe(2n);
    expect(at(merged, 3999).txid).toBe(2n);
    expect(at(merged, 4000).txid).toBe(4n);
    expect(at(merged, 3_600_000).txid).toBe(6n);
    const failure = await failureOf(() => at(merged, 1999), "HISTORY_OUT_OF_RANGE");
    expect(failure.facts).toMatchObject({
      wanted: "2026-01-01T00:00:01.999Z",
      problem: "the history does not reach back that far",
      earliestTime: "2026-01-01T00:00:02.000Z",
    });
  });

  it("begin with a snapshot where retention has taken the rest", async () => {
    const kept = [file(snapshotLevel, 1, 4, 4), file(1, 3, 4, 4), file(0, 5, 5, 5)];
    expect(point(kept, 4).txid).toBe(4n);
    expect(point(kept, 5).txid).toBe(5n);
    const failure = await failureOf(() => point(kept, 2), "HISTORY_OUT_OF_RANGE");
    expect(failure.facts).toMatchObject({ earliestSequence: "4", nearestAfter: "4" });
  });

  it("behind a hole are not offered", async () => {
    const holed = [file(0, 1, 1, 1), file(0, 2, 2, 2), file(0, 4, 4, 4)];
    const failure = await failureOf(() => point(holed, 4), "HISTORY_OUT_OF_RANGE");
    expect(failure.facts).toMatchObject({ latestSequence: "2", nearestBefore: "2" });
  });

  it("carry a reason that lies outside the files", () => {
    const { facts } = outOfRange("d", merged, { timeMs: startMs + 9e9 }, "it lies in the future");
    expect(facts).toMatchObject({ problem: "it lies in the future", latestSequence: "6" });
    expect(outOfRange("d", merged, { timeMs: 1e300 }).facts["wanted"]).toBe("1e+300");
  });

  it("that are named as nearest can be restored, and none lies closer", async () => {
    const cut = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(cut, fc.integer({ min: 1, max: 60 }), async (lengths, wanted) => {
        const files: ReplicaFile[] = [];
        let end = 0;
        for (const length of lengths) {
          files.push(file(length > 1 ? 1 : 0, end + 1, end + length, end + length));
          end += length;
        }
        const ends = files.map(({ maxTxid }) => Number(maxTxid));
        if (ends.includes(wanted)) {
          expect(point(files, wanted).txid).toBe(BigInt(wanted));
          return;
        }
        const { facts } = await failureOf(() => point(files, wanted), "HISTORY_OUT_OF_RANGE");
        const text = (value: number | undefined) => value && String(value);
        expect(facts["nearestBefore"]).toBe(text(ends.findLast((each) => each < wanted)));
        expect(facts["nearestAfter"]).toBe(text(ends.find((each) => each > wanted)));
      }),
    );
  });
});
