/** Which files lead to a point of a history (ltx.md 9), as a pure function of what is stored. */
import { compareFiles, lastTxid, type ReplicaFile, snapshotLevel } from "./replica.ts";

/** A point to restore: the newest, a TXID, or the last one before a time. */
export type RestoreTarget = { readonly txid: bigint } | { readonly beforeMs: number } | undefined;

/** A plan, or why there is none. */
export type RestorePlan =
  /** Files in order, the first a snapshot; `compactLtx` and `restoreDatabase` take them as they are. */
  | { readonly kind: "plan"; readonly files: readonly ReplicaFile[]; readonly maxTxid: bigint }
  /** Nothing that is stored leads there. `earliestTxid` is the first point that can be restored, if there is one. */
  | { readonly kind: "unavailable"; readonly earliestTxid: bigint | undefined }
  /** Without a target: files lie behind a hole, and the state before it is not the newest one. */
  | { readonly kind: "hole"; readonly missingTxid: bigint };

/**
 * Plans as Litestream does. Files may overlap and be in any order. A TXID can be reached only where a file ends; a time is
 * compared strictly with `createTimeMs`. When a planned file is gone at the time it is read (retention), list and plan anew.
 */
export function planRestore(files: Iterable<ReplicaFile>, target?: RestoreTarget): RestorePlan {
  const all = [...files].sort(compareFiles);
  const isWanted = filterOf(target);
  const targetTxid = target !== undefined && "txid" in target ? target.txid : undefined;
  const levels = new Levels(all.filter(({ level }) => level !== snapshotLevel));
  const snapshot = all.findLast((file) => file.level === snapshotLevel && file.minTxid === 1n && isWanted(file));
  const plan: ReplicaFile[] = snapshot === undefined ? [] : [snapshot];
  let current = snapshot?.maxTxid ?? 0n;
  while (targetTxid === undefined || current < targetTxid) {
    const next = levels.best(current, isWanted);
    if (next === undefined) break;
    plan.push(next);
    current = next.maxTxid;
  }
  const isMissed = targetTxid !== undefined && current < targetTxid;
  if (plan.length === 0 || isMissed) return { kind: "unavailable", earliestTxid: earliestTxid(all) };
  if (target === undefined && levels.hasBehind(current)) return { kind: "hole", missingTxid: current + 1n };
  return { kind: "plan", files: plan, maxTxid: current };
}

/** The first point that can be restored: the end of the shortest file that begins at 1. */
export function earliestTxid(files: Iterable<ReplicaFile>): bigint | undefined {
  let earliest: bigint | undefined;
  for (const { minTxid, maxTxid } of files) {
    if (minTxid === 1n && (earliest === undefined || maxTxid < earliest)) earliest = maxTxid;
  }
  return earliest;
}

function filterOf(target: RestoreTarget): (file: ReplicaFile) => boolean {
  if (target === undefined) return () => true;
  if ("txid" in target) return ({ maxTxid }) => maxTxid <= target.txid;
  return ({ createTimeMs }) => createTimeMs < target.beforeMs;
}

/** One level, read forward once. */
interface Cursor {
  readonly files: readonly ReplicaFile[];
  next: number;
  /** The best of those read that were not used. */
  best: ReplicaFile | undefined;
}

/** The levels below the snapshots. */
class Levels {
  readonly #cursors: readonly Cursor[];

  constructor(files: readonly ReplicaFile[]) {
    const numbers = [...new Set(files.map(({ level }) => level))].sort((a, b) => b - a);
    this.#cursors = numbers.map((level) => ({
      files: files.filter((file) => file.level === level),
      next: 0,
      best: undefined,
    }));
  }

  /** The file that goes on from `current` and carries farthest; it is not given again. */
  best(current: bigint, isWanted: (file: ReplicaFile) => boolean): ReplicaFile | undefined {
    let found: Cursor | undefined;
    for (const cursor of this.#cursors) {
      if (cursor.best !== undefined && cursor.best.maxTxid <= current) cursor.best = undefined;
      for (let file = cursor.files[cursor.next]; file !== undefined; file = cursor.files[++cursor.next]) {
        if (file.minTxid > current + 1n) break;
        if (file.maxTxid > current && isWanted(file) && isBetter(file, cursor.best)) cursor.best = file;
      }
      if (cursor.best !== undefined && isBetter(cursor.best, found?.best)) found = cursor;
    }
    const best = found?.best;
    if (found !== undefined) found.best = undefined;
    return best;
  }

  /** Whether files begin behind a hole after `current`. */
  hasBehind(current: bigint): boolean {
    return this.#cursors.some(({ files, next }) => (files[next]?.minTxid ?? 0n) > current + 1n);
  }
}

function isBetter(a: ReplicaFile, b: ReplicaFile | undefined): boolean {
  if (b === undefined) return true;
  if (a.maxTxid !== b.maxTxid) return a.maxTxid > b.maxTxid;
  if (a.minTxid !== b.minTxid) return a.minTxid < b.minTxid;
  if (a.level !== b.level) return a.level > b.level;
  return a.createTimeMs < b.createTimeMs;
}

/** Whether every TXID up to the last is held by some file, so that the newest state can be restored. */
export function isWhole(files: readonly ReplicaFile[]): boolean {
  const plan = planRestore(files);
  return plan.kind === "plan" && plan.maxTxid === lastTxid(files);
}
