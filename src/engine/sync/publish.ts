/** Keeps a database's manifest in step with its facts. */
import type { ObjectCall } from "../../objects/object-store.ts";
import type { Manifest } from "../../stages/manifest.ts";
import { FencedError, type RemoteStage } from "../../stages/remote.ts";
import type { CatalogRow } from "../catalog.ts";
import type { Facts } from "../facts.ts";

/** Others may write the manifest at the same time; each round sees what they did. */
const roundCountMax = 4;

/** Where the replica of a database is kept: in its own place, unless it was adopted from another. */
export function prefixOf(remote: RemoteStage, { id, lineage, remotePrefix }: Facts): string {
  return remotePrefix === "" ? remote.prefixOf(id, lineage) : remotePrefix;
}

/** What the manifest of a database says. What only the manifest knows is taken over from the one that is stored. */
function manifestOf(row: CatalogRow, prefix: string, stored?: Manifest): Manifest {
  const { id, lineage, createTimeMs, labels, foreignKeys, etagVersion, createRecord } = row;
  return {
    id,
    lineage,
    prefix,
    createTimeMs,
    labels,
    foreignKeys,
    etagVersion,
    pageBytes: stored?.pageBytes ?? 0,
    createRecord,
    retired: stored?.retired ?? [],
  };
}

/** In what may change of one history. The version alone says too little: a change whose answer was lost may have used it. */
function isSame(one: Manifest, other: Manifest): boolean {
  const parts = ({ etagVersion, prefix, foreignKeys, labels }: Manifest) =>
    JSON.stringify([etagVersion, prefix, foreignKeys, Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1))]);
  return parts(one) === parts(other);
}

/**
 * Creates or changes the manifest of a database. Rejects with FencedError when the one that is stored is of another database, or
 * of a history that another server has begun.
 */
export async function publish(remote: RemoteStage, row: CatalogRow, call: ObjectCall): Promise<void> {
  const { manifests } = remote;
  const prefix = prefixOf(remote, row);
  let isNew = row.manifestVersion === 0;
  for (let round = 0; round < roundCountMax; round++) {
    if (isNew && (await manifests.create(manifestOf(row, prefix), call)) !== undefined) return;
    const stored = await manifests.read(row.id, call);
    isNew = stored === undefined;
    if (stored === undefined) continue;
    if (stored.manifest.lineage !== row.lineage) throw new FencedError(1n);
    const wanted = manifestOf(row, prefix, stored.manifest);
    if (isSame(wanted, stored.manifest)) return;
    if ((await manifests.replace(wanted, stored.etag, call)) !== undefined) return;
  }
  throw new Error(`the manifest of ${row.id} changes all the time`);
}
