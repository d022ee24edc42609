/** What a bucket holds, looked at from outside. */
import type { MemoryBucket } from "../support/memory-object-store.ts";

export interface StoredFile {
  readonly key: string;
  readonly level: number;
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
}

const fileName = /^(?<prefix>.+)\/(?<level>[0-9a-f]{4})\/(?<min>[0-9a-f]{16})-(?<max>[0-9a-f]{16})\.ltx$/;

/** The LTX files of one replica. */
export function filesUnder(bucket: MemoryBucket, prefix: string): StoredFile[] {
  return [...bucket.keys()].flatMap((key) => {
    const groups = fileName.exec(key)?.groups;
    if (groups?.["prefix"] !== prefix) return [];
    const { level = "", min = "", max = "" } = groups;
    return [{ key, level: Number.parseInt(level, 16), minTxid: BigInt(`0x${min}`), maxTxid: BigInt(`0x${max}`) }];
  });
}

/** Up to where a replica can be restored: the end of a chain of files without a gap, from the first batch on. */
export function restorableTxid(files: readonly StoredFile[]): bigint {
  let reached = 0n;
  for (;;) {
    let next = reached;
    for (const { minTxid, maxTxid } of files) if (minTxid <= reached + 1n && maxTxid > next) next = maxTxid;
    if (next === reached) return reached;
    reached = next;
  }
}

interface ManifestJson {
  readonly lineage: string;
  readonly prefix: string;
  readonly retired?: readonly { readonly prefix: string; readonly keepUntilMs: number }[];
}

/** The manifests that are there, by id. */
export function manifests(bucket: MemoryBucket): Map<string, ManifestJson> {
  const found = new Map<string, ManifestJson>();
  for (const [key, { bytes }] of bucket) {
    const id = /^([^/]+)\/database\.json$/.exec(key)?.[1];
    if (id !== undefined) found.set(id, JSON.parse(Buffer.from(bytes).toString("utf8")) as ManifestJson);
  }
  return found;
}

/** Objects that nothing leads to: of no published database, or of a history whose time is over. */
export function strayKeys(bucket: MemoryBucket, nowMs: number): string[] {
  const prefixes = [...manifests(bucket).values()].flatMap(({ prefix, retired = [] }) => [
    prefix,
    ...retired.filter(({ keepUntilMs }) => keepUntilMs >= nowMs).map((each) => each.prefix),
  ]);
  return [...bucket.keys()].filter(
    (key) => !/^[^/]+\/database\.json$/.test(key) && !prefixes.some((prefix) => key.startsWith(`${prefix}/`)),
  );
}
