/** What a replica in the remote stage needs and when, as pure functions of its files: levels, snapshots, retention. */
import { lastTxid, type ReplicaFile, snapshotLevel } from "../../ltx/replica.ts";
import { expiredFiles, planCompaction, type RetentionRules } from "../../ltx/retention.ts";

export interface UpkeepRules {
  /** How often each level is made from the one below, and, by `snapshotLevel`, how old the newest snapshot may be. */
  readonly levelIntervalsMs: ReadonlyMap<number, number>;
  readonly retention: RetentionRules;
  /** Files that are compacted at one time. */
  readonly compactionFilesMax: number;
}

/** One step. */
export type UpkeepStep =
  | { readonly kind: "compact"; readonly level: number }
  | { readonly kind: "snapshot" }
  | { readonly kind: "expire" };

/** The next step and when it is due (milliseconds since 1970); undefined when there is nothing to do until the next write. */
export interface Upkeep {
  readonly atMs: number;
  readonly step: UpkeepStep;
}

/**
 * The step that is due first. Files that are alone in what a level lacks stay where they are: a database that was written
 * once is not copied level by level. The first compaction that would write the whole database a second time makes a
 * snapshot in its place, and the levels go on above it.
 */
export function nextUpkeep(files: readonly ReplicaFile[], rules: UpkeepRules): Upkeep | undefined {
  let next: Upkeep | undefined;
  for (const upkeep of [...compactions(files, rules), snapshot(files, rules), expiry(files, rules)]) {
    if (upkeep !== undefined && (next === undefined || upkeep.atMs < next.atMs)) next = upkeep;
  }
  return next;
}

function* compactions(files: readonly ReplicaFile[], rules: UpkeepRules): Iterable<Upkeep> {
  const aboveTxid = lastTxid(files.filter(({ level }) => level === snapshotLevel));
  for (const [level, intervalMs] of rules.levelIntervalsMs) {
    if (level === snapshotLevel) continue;
    const plan = planCompaction(files, level, { aboveTxid, filesMax: rules.compactionFilesMax });
    const second = plan?.files[1];
    if (plan === undefined || second === undefined) continue;
    const atMs = boundaryAfter(Math.max(second.createTimeMs, newestTimeMs(files, level)), intervalMs);
    const isWholeAgain = plan.minTxid === 1n && level > 1;
    yield { atMs, step: isWholeAgain ? { kind: "snapshot" } : { kind: "compact", level } };
  }
}

function snapshot(files: readonly ReplicaFile[], rules: UpkeepRules): Upkeep | undefined {
  const intervalMs = rules.levelIntervalsMs.get(snapshotLevel);
  if (intervalMs === undefined) return undefined;
  const snapshots = files.filter(({ level }) => level === snapshotLevel);
  if (snapshots.length > 0) {
    if (lastTxid(files) <= lastTxid(snapshots)) return undefined;
    return { atMs: newestTimeMs(files, snapshotLevel) + intervalMs, step: { kind: "snapshot" } };
  }
  // A single file that begins at 1 is as good as a snapshot of it.
  const whole = files.filter(({ minTxid }) => minTxid === 1n);
  if (whole.length === 0 || lastTxid(whole) === lastTxid(files)) return undefined;
  return { atMs: Math.min(...whole.map(({ createTimeMs }) => createTimeMs)) + intervalMs, step: { kind: "snapshot" } };
}

/** The first moment at which retention lets go of something: only ages change it, so it is one of a few. */
function expiry(files: readonly ReplicaFile[], { retention }: UpkeepRules): Upkeep | undefined {
  let atMs: number | undefined;
  const consider = (candidate: ReplicaFile | undefined, keptMs: number) => {
    if (candidate === undefined) return;
    const candidateMs = candidate.createTimeMs + keptMs + 1;
    if (atMs !== undefined && candidateMs >= atMs) return;
    if (expiredFiles(files, candidateMs, retention).length > 0) atMs = candidateMs;
  };
  consider(oldest(files.filter(({ level }) => level === 0)), retention.levelZeroMs);
  const snapshots = files
    .filter(({ level }) => level === snapshotLevel)
    .sort((a, b) => a.createTimeMs - b.createTimeMs);
  for (const file of snapshots) consider(file, retention.snapshotMs);
  return atMs === undefined ? undefined : { atMs, step: { kind: "expire" } };
}

function oldest(files: readonly ReplicaFile[]): ReplicaFile | undefined {
  let first: ReplicaFile | undefined;
  for (const file of files) if (first === undefined || file.maxTxid < first.maxTxid) first = file;
  return first;
}

function newestTimeMs(files: readonly ReplicaFile[], level: number): number {
  let newest = 0;
  for (const file of files) if (file.level === level && file.createTimeMs > newest) newest = file.createTimeMs;
  return newest;
}

/** Intervals are aligned to the clock, as Litestream's are. */
function boundaryAfter(timeMs: number, intervalMs: number): number {
  return (Math.floor(timeMs / intervalMs) + 1) * intervalMs;
}
