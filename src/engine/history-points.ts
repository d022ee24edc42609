/** Which points of a history can be gone back to, as pure functions of what is stored. */
import { Failure } from "../failure/failure.ts";
import { compareFiles, lastTxid, type ReplicaFile } from "../ltx/replica.ts";
import { earliestTxid, planRestore } from "../ltx/restore-plan.ts";

/** A point of one history, by its batch or by a time (milliseconds since 1970). */
export type Point = { readonly txid: bigint; readonly timeMs?: undefined } | { readonly timeMs: number };

/** A point that can be restored. */
export interface FoundPoint {
  readonly txid: bigint;
  /** Of the files that lead there. */
  readonly byteCount: number;
}

/**
 * The batch that a point stands for. A batch is restored exactly or not at all: where files were merged, those inside are
 * gone. A time stands for the last batch that was closed at or before it and is still the end of a file. Throws
 * HISTORY_OUT_OF_RANGE, which names the ends of what there is, and the nearest batches on both sides.
 */
export function findPoint(database: string, files: readonly ReplicaFile[], point: Point): FoundPoint {
  const target = point.timeMs === undefined ? { txid: point.txid } : { beforeMs: point.timeMs + 1 };
  const plan = planRestore(files, target);
  if (plan.kind === "plan" && (point.timeMs !== undefined || plan.maxTxid === point.txid)) {
    return { txid: plan.maxTxid, byteCount: plan.files.reduce((sum, { byteCount }) => sum + byteCount, 0) };
  }
  throw outOfRange(database, files, point);
}

/** HISTORY_OUT_OF_RANGE for a point that none of these files, or no history, leads to. */
export function outOfRange(
  database: string,
  files: readonly ReplicaFile[],
  point: Point,
  problem = problemOf(files, point),
): Failure {
  const earliest = earliestTxid(files);
  const latest = latestTxid(files);
  const wanted = point.timeMs === undefined ? `position ${point.txid}` : timeText(point.timeMs);
  const { before, after } = point.timeMs === undefined ? nearest(files, point.txid) : {};
  return new Failure("HISTORY_OUT_OF_RANGE", {
    database,
    wanted,
    problem,
    earliestSequence: earliest === undefined ? "none" : String(earliest),
    earliestTime: timeOf(files, earliest),
    latestSequence: latest === undefined ? "none" : String(latest),
    latestTime: timeOf(files, latest),
    ...(before === undefined ? {} : { nearestBefore: String(before) }),
    ...(after === undefined ? {} : { nearestAfter: String(after) }),
  });
}

function problemOf(files: readonly ReplicaFile[], point: Point): string {
  const earliest = earliestTxid(files);
  if (earliest === undefined) return "nothing is stored yet";
  if (point.timeMs !== undefined || point.txid < earliest) return "the history does not reach back that far";
  if (point.txid > lastTxid(files)) return "it is not stored yet";
  return "it was merged with its neighbours";
}

/** The closest batches that can be restored, on both sides of one that cannot. */
function nearest(files: readonly ReplicaFile[], txid: bigint) {
  const ends = [...new Set(files.map(({ maxTxid }) => maxTxid))].sort((a, b) => (a < b ? -1 : 1));
  return {
    before: ends.findLast((end) => end < txid && isReachable(files, end)),
    after: ends.find((end) => end > txid && isReachable(files, end)),
  };
}

function isReachable(files: readonly ReplicaFile[], txid: bigint): boolean {
  const plan = planRestore(files, { txid });
  return plan.kind === "plan" && plan.maxTxid === txid;
}

/** Behind a hole nothing can be restored. */
function latestTxid(files: readonly ReplicaFile[]): bigint | undefined {
  const last = lastTxid(files);
  if (last === 0n || isReachable(files, last)) return last === 0n ? undefined : last;
  return nearest(files, last).before;
}

/** When a batch was closed, as the file that ends with it tells. */
function timeOf(files: readonly ReplicaFile[], txid: bigint | undefined): string {
  const file = [...files].sort(compareFiles).find(({ maxTxid }) => maxTxid === txid);
  return file === undefined ? "never" : timeText(file.createTimeMs);
}

function timeText(timeMs: number): string {
  const isDate = Math.abs(timeMs) <= 8.64e15;
  return isDate ? new Date(timeMs).toISOString() : String(timeMs);
}
