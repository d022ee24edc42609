/** The catalog's row of a database that only the remote stage has. */
import { type CatalogRow, newRowColumns } from "./catalog.ts";
import type { Discovered } from "./sync/sync.ts";

/** It has no head until it is called. `nowMs` is when it counts as used last. */
export function adoptedRow({ manifest, txid, sizeBytes, upkeepAtMs }: Discovered, nowMs: number): CatalogRow {
  const { id, lineage, prefix, createTimeMs, labels, foreignKeys, etagVersion, createRecord } = manifest;
  const sequence = Number(txid);
  return {
    ...newRowColumns,
    id,
    lineage,
    createTimeMs,
    labels,
    foreignKeys,
    etagVersion,
    createRecord,
    stage: "remote",
    head: "none",
    baseTxid: 0,
    remotePrefix: prefix,
    pin: undefined,
    successor: undefined,
    state: "ready",
    sequence,
    durableSequence: sequence,
    manifestVersion: etagVersion,
    upkeepAtMs,
    sizeBytes,
    lastAccessTimeMs: nowMs,
  };
}
