/** What may be deleted, and what is compacted when (ltx.md 8), as pure functions of what is stored. */
import { compareFiles, lastTxid, type ReplicaFile, snapshotLevel } from "./replica.ts";

/** How long things are kept. */
export interface RetentionRules {
  /** Files of level 0 stay this long after level 1 has taken them over. */
  readonly levelZeroMs: number;
  /** How far back the history can be restored: the snapshots of this span and the one before it stay, and all between. */
  readonly snapshotMs: number;
}

/** Litestream's own. */
export const defaultRetention: RetentionRules = { levelZeroMs: 5 * 60_000, snapshotMs: 24 * 3_600_000 };

/** How often each level is made from the one below, and how often there is a snapshot. */
export const defaultLevelIntervalsMs: ReadonlyMap<number, number> = new Map([
  [1, 30_000],
  [2, 5 * 60_000],
  [3, 3_600_000],
  [snapshotLevel, 24 * 3_600_000],
]);

/**
 * Files that retention lets go of, in the order to delete them. Never the newest of a level, so that level 0 tells every
 * other writer where the history stands; never what a restore of the kept span, or one that is planned now, needs.
 */
export function expiredFiles(
  files: readonly ReplicaFile[],
  nowMs: number,
  rules: RetentionRules = defaultRetention,
): readonly ReplicaFile[] {
  const levels = Map.groupBy([...files].sort(compareFiles), ({ level }) => level);
  const expired = expiredLevelZero(levels.get(0) ?? [], lastTxid(levels.get(1) ?? []), nowMs - rules.levelZeroMs);
  const { snapshots, floorTxid } = expiredSnapshots(levels.get(snapshotLevel) ?? [], nowMs - rules.snapshotMs);
  const below = [...levels]
    .filter(([level]) => level >= 1 && level < snapshotLevel)
    .flatMap(([, inLevel]) => {
      const last = lastTxid(inLevel);
      return inLevel.filter(({ maxTxid }) => maxTxid < floorTxid && maxTxid !== last);
    });
  return [...expired, ...snapshots, ...below];
}

/** Those that level 1 covers and that are old enough, up to the first that is not: what stays has no hole. */
function expiredLevelZero(files: readonly ReplicaFile[], coveredTxid: bigint, beforeMs: number): ReplicaFile[] {
  const kept = files.findIndex(({ maxTxid, createTimeMs }) => maxTxid > coveredTxid || createTimeMs >= beforeMs);
  if (kept >= 0) return files.slice(0, kept);
  const last = lastTxid(files);
  return files.filter(({ maxTxid }) => maxTxid !== last);
}

/**
 * Old snapshots, and the TXID before which the other levels are needed no more. The youngest of the old ones stays, more
 * than Litestream keeps: without it nothing leads to the time between it and the first one within the span.
 */
function expiredSnapshots(files: readonly ReplicaFile[], beforeMs: number) {
  const base = files.findLast(({ createTimeMs }) => createTimeMs < beforeMs);
  const expired = files.filter(
    (file) => file.createTimeMs < beforeMs && file !== base && file.maxTxid < (base?.maxTxid ?? 0n),
  );
  return { snapshots: expired, floorTxid: base?.maxTxid ?? 0n };
}

/** True when an interval that is aligned to the clock has begun since the newest file of a level was made. */
export function isLevelDue(newestTimeMs: number | undefined, intervalMs: number, nowMs: number): boolean {
  return newestTimeMs === undefined || newestTimeMs < Math.floor(nowMs / intervalMs) * intervalMs;
}

/** A compaction to run: these files, in this order, become one of `level`. */
export interface CompactionPlan {
  readonly level: number;
  readonly files: readonly ReplicaFile[];
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
}

/**
 * What level `level` lacks of the level below; undefined when that is nothing. It goes on where the level ends, or, while
 * the level is empty, behind `aboveTxid`: a snapshot that holds the beginning makes it needless to write the whole database
 * once more. A file below that straddles the beginning is taken rather than leaving a hole; files after a hole wait.
 */
export function planCompaction(
  files: readonly ReplicaFile[],
  level: number,
  { aboveTxid = 0n, filesMax = Number.POSITIVE_INFINITY }: { aboveTxid?: bigint; filesMax?: number } = {},
): CompactionPlan | undefined {
  const inLevel = files.filter((file) => file.level === level);
  const start = inLevel.length === 0 ? aboveTxid : lastTxid(inLevel);
  const below = files.filter((file) => file.level === level - 1 && file.maxTxid > start).sort(compareFiles);
  const chosen: ReplicaFile[] = [];
  let end = start;
  for (const file of below) {
    if (file.minTxid > end + 1n || chosen.length === filesMax) break;
    if (file.maxTxid <= end) continue;
    chosen.push(file);
    end = file.maxTxid;
  }
  const first = chosen[0];
  return first && { level, files: chosen, minTxid: first.minTxid, maxTxid: end };
}
