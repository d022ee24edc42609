/** Makes a database of a replica that Litestream wrote. */
import type { ObjectSource } from "../objects/object-store.ts";
import { fetchPart } from "./fetch.ts";
import type { Manifest } from "./manifest.ts";
import type { RemoteReplica, RemoteStage } from "./remote.ts";
import type { StageCall } from "./stage.ts";

export interface AdoptInput {
  /** The stage that is to have the database. */
  readonly to: RemoteStage;
  /** What is known of the database but its prefix and the size of its pages. */
  readonly facts: Omit<Manifest, "prefix" | "pageBytes" | "retired">;
  /**
   * Where the replica is: under a prefix of the same store, which then is the database's own and must have no other writer
   * any more; or, with `stage`, in another store or layout: then its files are copied.
   */
  readonly from: { readonly prefix: string; readonly stage?: RemoteStage | undefined };
  /** Milliseconds since 1970. */
  readonly nowMs: number;
}

export type Adoption =
  | {
      readonly kind: "adopted";
      readonly manifest: Manifest;
      /** The last batch. */
      readonly txid: bigint;
      readonly fileCount: number;
      readonly byteCount: number;
    }
  /** Nothing was published. `problem` is a sentence for an operator. */
  | { readonly kind: "refused"; readonly problem: string };

/** Copies at one time. */
const copiesMax = 8;

/**
 * Checks every byte first. In place, it then claims the next number, so that the history goes on from what was checked. The
 * manifest comes last: until then nobody sees the database, and the call may be repeated.
 */
export async function adoptReplica(input: AdoptInput, call: StageCall): Promise<Adoption> {
  const { to, facts, from, nowMs } = input;
  const source = (from.stage ?? to).replica(from.prefix);
  const { isWhole, problems, damaged, fileCount, byteCount } = await source.verify(call);
  const [harmed] = damaged;
  if (!isWhole) return { kind: "refused", problem: problems[0] ?? `the replica under ${from.prefix} is not whole` };
  if (harmed !== undefined) {
    return { kind: "refused", problem: `${harmed.name} is damaged; what is good would be lost with its history` };
  }
  if ((await to.manifests.read(facts.id, call)) !== undefined) {
    return { kind: "refused", problem: `there is a database ${facts.id} already` };
  }
  const { pageSize } = await source.shape(call);
  const isCopied = from.stage !== undefined;
  const prefix = isCopied ? to.prefixOf(facts.id, facts.lineage) : from.prefix;
  if (isCopied) await copyReplica(source, from.stage, to.replica(prefix), to, call);
  const txid = isCopied ? source.txid : await source.claim(nowMs, call);
  const manifest: Manifest = { ...facts, prefix, pageBytes: pageSize, retired: [] };
  if ((await to.manifests.create(manifest, call)) === undefined) {
    return { kind: "refused", problem: `there is a database ${facts.id} already` };
  }
  return { kind: "adopted", manifest, txid, fileCount, byteCount };
}

/** Every file with its time, under the keys of the other layout. Files that are there already are written again. */
async function copyReplica(
  source: RemoteReplica,
  from: RemoteStage,
  target: RemoteReplica,
  to: RemoteStage,
  call: StageCall,
): Promise<void> {
  await source.loadTimes(call);
  const files = [...source.files()];
  let next = 0;
  const copy = async () => {
    for (let file = files[next++]; file !== undefined; file = files[next++]) {
      const object = { key: source.key(file), byteCount: file.byteCount };
      const body: ObjectSource = {
        sizeBytes: file.byteCount,
        read: (offsetBytes, byteCount) => fetchPart(from.store, object, offsetBytes, byteCount, call),
      };
      await to.store.put(target.key(file), body, { ...call, timestampMs: file.createTimeMs });
    }
  };
  await Promise.all(Array.from({ length: Math.min(copiesMax, files.length) }, copy));
}
