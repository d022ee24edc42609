/** The files of a replica: which there are, where they lie (ltx.md 7), how levels are named (ltx.md 8). */
import { ltxFileName, parseLtxFileName, type TxidRange } from "./txid.ts";

/** Levels 0 to 8 hold what was sealed and its compactions, 9 the snapshots. */
export const snapshotLevel = 9;
export const levelCount = 10;

/** A file of a replica, as a listing tells of it. */
export interface ReplicaFile extends TxidRange {
  readonly level: number;
  /** When it was stored; for a restore to a time, the time that its data is of. Milliseconds since 1970. */
  readonly createTimeMs: number;
  readonly byteCount: number;
}

/**
 * Where Litestream keeps the files of a replica below its prefix: `bucket` in S3 and what is like it, `folder` in folders. A
 * replica that is copied from one kind to the other has to be given new keys.
 */
export type ReplicaLayout = "bucket" | "folder";

/** `0000/<min>-<max>.ltx`, or `ltx/0/<min>-<max>.ltx`, below the prefix of a replica. */
export function replicaKey(file: TxidRange & { readonly level: number }, layout: ReplicaLayout = "bucket"): string {
  return `${levelPrefix(file.level, layout)}${ltxFileName(file)}`;
}

/** What the keys of a level begin with: `0000/`, or `ltx/0/`. */
export function levelPrefix(level: number, layout: ReplicaLayout = "bucket"): string {
  if (!Number.isInteger(level) || level < 0 || level >= levelCount) throw new RangeError(`${level} is no level`);
  return layout === "folder" ? `ltx/${level}/` : `${level.toString(16).padStart(4, "0")}/`;
}

const keyPatterns: Readonly<Record<ReplicaLayout, RegExp>> = {
  bucket: /^000([0-9])\/([^/]+)$/,
  folder: /^ltx\/([0-9])\/([^/]+)$/,
};

/** The reverse of `replicaKey`; undefined for every other key. */
export function parseReplicaKey(
  key: string,
  layout: ReplicaLayout = "bucket",
): (TxidRange & { readonly level: number }) | undefined {
  const [, digits, name] = keyPatterns[layout].exec(key) ?? [];
  const range = name === undefined ? undefined : parseLtxFileName(name);
  return range && { ...range, level: Number(digits) };
}

/** As listings are ordered: by first TXID, then by last. */
export function compareFiles(a: TxidRange, b: TxidRange): number {
  return compareTxids(a.minTxid, b.minTxid) || compareTxids(a.maxTxid, b.maxTxid);
}

/** The largest last TXID; 0 when there is no file. */
export function lastTxid(files: Iterable<TxidRange>): bigint {
  let last = 0n;
  for (const { maxTxid } of files) if (maxTxid > last) last = maxTxid;
  return last;
}

function compareTxids(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
