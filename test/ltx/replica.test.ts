import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkChain } from "../../src/ltx/merge.ts";
import { levelPrefix, parseReplicaKey, type ReplicaFile, replicaKey, snapshotLevel } from "../../src/ltx/replica.ts";
import { earliestTxid, isWhole, planRestore, type RestoreTarget } from "../../src/ltx/restore-plan.ts";
import { defaultRetention, expiredFiles, isLevelDue, planCompaction } from "../../src/ltx/retention.ts";
import { ltxFileName, parseLtxFileName } from "../../src/ltx/txid.ts";

const file = (level: number, min: number, max: number, createTimeMs = max * 1000): ReplicaFile => ({
  level,
  minTxid: BigInt(min),
  maxTxid: BigInt(max),
  createTimeMs,
  byteCount: 200,
});

const show = ({ level, minTxid, maxTxid }: ReplicaFile) => `${level}:${minTxid}-${maxTxid}`;

function planned(files: readonly ReplicaFile[], target?: RestoreTarget): string {
  const plan = planRestore(files, target);
  if (plan.kind === "plan") return plan.files.map(show).join(" ");
  return plan.kind === "hole" ? `hole at ${plan.missingTxid}` : `unavailable, from ${plan.earliestTxid ?? "nowhere"}`;
}

describe("names", () => {
  it("are sixteen lower-case digits twice", () => {
    expect(ltxFileName({ minTxid: 1n, maxTxid: 0xabcn })).toBe("0000000000000001-0000000000000abc.ltx");
    expect(parseLtxFileName("0000000000000001-0000000000000abc.ltx")).toEqual({ minTxid: 1n, maxTxid: 0xabcn });
    expect(replicaKey(file(0, 1, 1))).toBe("0000/0000000000000001-0000000000000001.ltx");
    expect(replicaKey(file(snapshotLevel, 1, 16))).toBe("0009/0000000000000001-0000000000000010.ltx");
    expect(parseReplicaKey("0009/0000000000000001-0000000000000010.ltx")).toEqual({
      level: 9,
      minTxid: 1n,
      maxTxid: 16n,
    });
    expect(levelPrefix(3)).toBe("0003/");
    expect(() => levelPrefix(10)).toThrow(RangeError);
  });

  it("go back and forth for every range", () => {
    const txid = fc.bigInt({ min: 1n, max: (1n << 64n) - 1n });
    fc.assert(
      fc.property(txid, txid, fc.nat(9), (a, b, level) => {
        const range = a < b ? { minTxid: a, maxTxid: b } : { minTxid: b, maxTxid: a };
        expect(parseReplicaKey(replicaKey({ ...range, level }))).toEqual({ ...range, level });
      }),
    );
  });

  it.each([
    "0000000000000001-0000000000000ABC.ltx",
    "000000000000001-0000000000000abc.ltx",
    "0000000000000001-0000000000000abc.ltx.tmp",
    "0000000000000000-0000000000000001.ltx",
    "0000000000000002-0000000000000001.ltx",
    "x0000000000000001-0000000000000001.ltx",
  ])("of others are none: %s", (name) => {
    expect(parseLtxFileName(name)).toBeUndefined();
    expect(parseReplicaKey(`0000/${name}`)).toBeUndefined();
  });

  it("lie directly in their level", () => {
    const name = "0000000000000001-0000000000000001.ltx";
    for (const key of [`000a/${name}`, `0/${name}`, `0000/x/${name}`, `/0000/${name}`, name]) {
      expect(parseReplicaKey(key)).toBeUndefined();
    }
  });
});

describe("a restore plan", () => {
  const l0 = [1, 2, 3, 4, 5, 6].map((txid) => file(0, txid, txid));

  it.each<[string, readonly ReplicaFile[], RestoreTarget, string]>([
    ["nothing there", [], undefined, "unavailable, from nowhere"],
    ["a single first file", [file(0, 1, 1)], undefined, "0:1-1"],
    ["a snapshot alone", [file(9, 1, 7)], undefined, "9:1-7"],
    ["the newest snapshot", [file(9, 1, 3), file(9, 1, 7)], undefined, "9:1-7"],
    ["no snapshot, a chain from 1", l0.slice(0, 3), undefined, "0:1-1 0:2-2 0:3-3"],
    ["a chain that does not begin at 1", l0.slice(1), undefined, "unavailable, from nowhere"],
    ["a hole", [file(9, 1, 2), file(0, 4, 4)], undefined, "hole at 3"],
    ["files before a hole, to a TXID", [file(9, 1, 2), file(0, 3, 3), file(0, 5, 5)], { txid: 3n }, "9:1-2 0:3-3"],
    ["the longest step", [file(9, 1, 2), ...l0, file(1, 1, 4), file(2, 1, 5)], undefined, "9:1-2 2:1-5 0:6-6"],
    ["a straddling file", [file(9, 1, 4), file(1, 3, 6), file(0, 5, 5)], undefined, "9:1-4 1:3-6"],
    ["overlaps that end alike: the longer", [file(9, 1, 2), file(0, 3, 4), file(1, 2, 4)], undefined, "9:1-2 1:2-4"],
    ["alike in all but level: the higher", [file(9, 1, 2), file(0, 3, 4), file(1, 3, 4)], undefined, "9:1-2 1:3-4"],
    ["contained files", [file(9, 1, 6), file(1, 1, 4), file(0, 5, 5)], undefined, "9:1-6"],
    ["to the TXID of a snapshot", [file(9, 1, 3), file(9, 1, 6), ...l0], { txid: 3n }, "9:1-3"],
    ["to a TXID behind a snapshot", [file(9, 1, 3), file(9, 1, 6), ...l0], { txid: 5n }, "9:1-3 0:4-4 0:5-5"],
    ["to a TXID within a file", [file(9, 1, 3), file(1, 4, 8)], { txid: 6n }, "unavailable, from 3"],
    ["to a TXID that is to come", [file(9, 1, 3)], { txid: 9n }, "unavailable, from 3"],
    ["to a TXID long gone", [file(9, 1, 3)], { txid: 2n }, "unavailable, from 3"],
    ["before a time", [file(9, 1, 3), ...l0], { beforeMs: 5_000 }, "9:1-3 0:4-4"],
    ["before the time itself", [file(9, 1, 3), ...l0], { beforeMs: 5_001 }, "9:1-3 0:4-4 0:5-5"],
    ["before everything", [file(9, 1, 3), ...l0], { beforeMs: 0 }, "unavailable, from 1"],
    ["after everything", [file(9, 1, 3), ...l0], { beforeMs: 1e9 }, "9:1-3 0:4-4 0:5-5 0:6-6"],
    ["levels that nobody uses", [file(9, 1, 1), file(8, 2, 4), file(4, 5, 6)], undefined, "9:1-1 8:2-4 4:5-6"],
    ["a file in level 9 that is no snapshot", [file(9, 2, 4), file(0, 1, 1)], undefined, "0:1-1"],
  ])("%s", (_, files, target, expected) => {
    expect(planned(files, target)).toBe(expected);
    expect(planned(files.toReversed(), target)).toBe(expected);
  });

  it("is a chain that can be merged, whatever is stored", () => {
    const files = fc.array(
      fc
        .record({
          level: fc.constantFrom(0, 1, 2, 3, 9),
          min: fc.integer({ min: 1, max: 30 }),
          span: fc.nat(10),
          time: fc.nat(50),
        })
        .map(({ level, min, span, time }) =>
          level === 9 ? file(9, 1, min + span, time) : file(level, min, min + span, time),
        ),
      { maxLength: 25 },
    );
    const targets = fc.oneof(
      fc.constant(undefined),
      fc.record({ txid: fc.bigInt({ min: 1n, max: 40n }) }),
      fc.record({ beforeMs: fc.nat(60) }),
    );
    fc.assert(
      fc.property(files, targets, (all, target) => {
        const plan = planRestore(all, target);
        if (plan.kind !== "plan") return;
        checkChain(plan.files.map((each) => ({ ...each, pageSize: 512 })));
        expect(plan.files[0]?.minTxid).toBe(1n);
        expect(plan.files.at(-1)?.maxTxid).toBe(plan.maxTxid);
        if (target !== undefined && "txid" in target) expect(plan.maxTxid).toBe(target.txid);
        if (target !== undefined && "beforeMs" in target) {
          expect(plan.files.every(({ createTimeMs }) => createTimeMs < target.beforeMs)).toBe(true);
        }
      }),
      { numRuns: 500 },
    );
  });

  it("knows the first point that can be reached", () => {
    expect(earliestTxid([file(9, 1, 9), file(9, 1, 4), file(0, 2, 3)])).toBe(4n);
    expect(earliestTxid([])).toBeUndefined();
  });
});

describe("a compaction", () => {
  const l0 = [1, 2, 3, 4].map((txid) => file(0, txid, txid));
  const planText = (files: readonly ReplicaFile[], level: number, options?: Parameters<typeof planCompaction>[2]) => {
    const plan = planCompaction(files, level, options);
    return plan && `${plan.files.map(show).join(" ")} → ${plan.level}:${plan.minTxid}-${plan.maxTxid}`;
  };

  it("goes on where its level ends", () => {
    expect(planText(l0, 1)).toBe("0:1-1 0:2-2 0:3-3 0:4-4 → 1:1-4");
    expect(planText([...l0, file(1, 1, 2)], 1)).toBe("0:3-3 0:4-4 → 1:3-4");
    expect(planText([...l0, file(1, 1, 4)], 1)).toBeUndefined();
    expect(planText([file(1, 1, 2), file(1, 3, 4)], 2)).toBe("1:1-2 1:3-4 → 2:1-4");
    expect(planText([], 1)).toBeUndefined();
  });

  it("starts behind a snapshot, and no larger than asked for", () => {
    expect(planText(l0, 1, { aboveTxid: 2n })).toBe("0:3-3 0:4-4 → 1:3-4");
    expect(planText(l0, 1, { filesMax: 2 })).toBe("0:1-1 0:2-2 → 1:1-2");
  });

  it("stops at a hole, and takes a file that straddles its beginning", () => {
    expect(planText([file(0, 1, 1), file(0, 3, 3)], 1)).toBe("0:1-1 → 1:1-1");
    expect(planText([file(1, 1, 2), file(1, 3, 6), file(2, 1, 4)], 2)).toBe("1:3-6 → 2:3-6");
    expect(planText([file(0, 5, 5), file(1, 1, 3)], 1)).toBeUndefined();
  });

  it("is due once in each interval of the clock", () => {
    expect(isLevelDue(undefined, 30_000, 1)).toBe(true);
    expect(isLevelDue(29_999, 30_000, 30_000)).toBe(true);
    expect(isLevelDue(30_000, 30_000, 59_999)).toBe(false);
    expect(isLevelDue(59_999, 30_000, 60_000)).toBe(true);
  });
});

describe("retention", () => {
  const rules = { levelZeroMs: 100, snapshotMs: 1_000 };
  const expired = (files: readonly ReplicaFile[], nowMs: number) =>
    expiredFiles(files, nowMs, rules).map(show).join(" ");

  it("lets old files of level 0 go when level 1 has them, but never the newest", () => {
    const l0 = [1, 2, 3].map((txid) => file(0, txid, txid, txid));
    expect(expired(l0, 1e6)).toBe("");
    expect(expired([...l0, file(1, 1, 2, 1)], 1e6)).toBe("0:1-1 0:2-2");
    expect(expired([...l0, file(1, 1, 3, 1)], 1e6)).toBe("0:1-1 0:2-2");
    expect(expired([...l0, file(1, 1, 3, 1)], 102)).toBe("0:1-1");
    expect(expired([...l0, file(1, 1, 3, 1)], 101)).toBe("");
  });

  it("stops in level 0 at the first that is too young, so that no hole comes", () => {
    const l0 = [file(0, 1, 1, 1), file(0, 2, 2, 500), file(0, 3, 3, 1), file(0, 4, 4, 1)];
    expect(expired([...l0, file(1, 1, 4, 1)], 550)).toBe("0:1-1");
  });

  it("keeps the snapshot before its span, and the history from there", () => {
    const snapshots = [file(9, 1, 10, 0), file(9, 1, 20, 600), file(9, 1, 30, 1_200)];
    const l1 = [file(1, 1, 5, 0), file(1, 6, 10, 0), file(1, 11, 15, 0), file(1, 16, 30, 0)];
    expect(expired([...snapshots, ...l1], 1_000)).toBe("");
    expect(expired([...snapshots, ...l1], 1_100)).toBe("1:1-5");
    expect(expired([...snapshots, ...l1], 1_700)).toBe("9:1-10 1:1-5 1:6-10 1:11-15");
    expect(expired([...snapshots, ...l1], 1e6)).toBe("9:1-10 9:1-20 1:1-5 1:6-10 1:11-15");
    expect(expired([file(9, 1, 10, 0)], 1e6)).toBe("");
  });

  it("never takes what a restore of the kept time needs, in any history of seals and compactions", () => {
    const events = fc.array(fc.constantFrom("seal", "seal", "seal", "level1", "level2", "snapshot", "retain"), {
      minLength: 1,
      maxLength: 120,
    });
    fc.assert(
      fc.property(events, fc.integer({ min: 1, max: 60 }), (all, stepMs) => {
        let files: ReplicaFile[] = [];
        let txid = 0n;
        let nowMs = 10_000;
        let firstSnapshotMs = Number.POSITIVE_INFINITY;
        const add = (level: number, minTxid: bigint, maxTxid: bigint) =>
          files.push({ level, minTxid, maxTxid, createTimeMs: nowMs, byteCount: 200 });
        for (const event of all) {
          nowMs += stepMs;
          if (event === "seal" || txid === 0n) {
            txid++;
            add(0, txid, txid);
          } else if (event === "snapshot") {
            add(snapshotLevel, 1n, txid);
            firstSnapshotMs = Math.min(firstSnapshotMs, nowMs);
          } else if (event === "retain") {
            const gone = new Set(expiredFiles(files, nowMs, rules));
            files = files.filter((each) => !gone.has(each));
          } else {
            const plan = planCompaction(files, event === "level1" ? 1 : 2);
            if (plan !== undefined) add(plan.level, plan.minTxid, plan.maxTxid);
          }
          expect(isWhole(files)).toBe(true);
          const plan = planRestore(files);
          expect(plan.kind === "plan" && plan.maxTxid).toBe(txid);
          expect(files.some(({ level, maxTxid }) => level === 0 && maxTxid === txid)).toBe(true);
          for (const beforeMs of [nowMs - rules.snapshotMs, nowMs - rules.snapshotMs / 2, nowMs]) {
            if (firstSnapshotMs < beforeMs) expect(planRestore(files, { beforeMs }).kind).toBe("plan");
          }
        }
      }),
      { numRuns: 200 },
    );
  });

  it("has Litestream's times by itself", () => {
    expect(defaultRetention).toEqual({ levelZeroMs: 300_000, snapshotMs: 86_400_000 });
  });
});
