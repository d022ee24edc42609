/** Makes the catalog and the folders agree at the start, whatever happened before. The folders are right. */
import { type Catalog, type CatalogRow, newRowColumns } from "./catalog.ts";
import type { Facts } from "./facts.ts";
import type { Folder, FoundDatabase } from "./folder.ts";
import type { EngineLog } from "./options.ts";

export interface ReconcileContext {
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly log: EngineLog;
  readonly newLineage: () => string;
  readonly nowMs: number;
}

/** After a clean end only names are compared; otherwise the facts of every folder are read. */
export async function reconcile(context: ReconcileContext): Promise<void> {
  const { catalog, folder, log } = context;
  if (catalog.damage !== undefined) {
    log("warn", "the catalog was damaged and is made again from the folders", { problem: catalog.damage });
  }
  const ids = await folder.open((name) =>
    log("warn", "the local folder holds something that is not a database", { name }),
  );
  const found = new Set(ids);
  const known = new Set(catalog.ids());
  const gone = [...known].filter((id) => !found.has(id));
  // A database that was stopped gets another chance with every start.
  const stopped = new Set(catalog.faultedIds());
  const toInspect = catalog.wasClean ? ids.filter((id) => !known.has(id) || stopped.has(id)) : ids;

  const rows: CatalogRow[] = [];
  for (const id of toInspect) rows.push(await inspected(context, id, await folder.inspect(id)));

  catalog.inTransaction(() => {
    for (const id of gone) {
      log("warn", "a database's folder is gone; it is taken out of the catalog", { database: id });
      catalog.delete(id);
    }
    for (const row of rows) catalog.put(row);
  });
}

async function inspected(context: ReconcileContext, id: string, found: FoundDatabase): Promise<CatalogRow> {
  const { catalog, folder, log } = context;
  const known = catalog.get(id);
  let facts = found.facts;
  if (facts === undefined) {
    facts = repairedFacts(context, id, found, known);
    log("warn", "database.json was missing or damaged and has been made again, with a new lineage", {
      database: id,
      lineage: facts.lineage,
    });
    await folder.writeFacts(facts);
  }
  if (!found.hasData) {
    log("error", "a folder holds no database file; its database is stopped", { database: id });
  }
  return {
    ...newRowColumns,
    ...known,
    ...facts,
    state: found.hasData ? "ready" : "faulted",
    // What was given out after the last word in the catalog is not known, but it was not more than this.
    sequence: facts.sequenceReserved,
    sizeBytes: found.sizeBytes,
    lastAccessTimeMs: Math.max(known?.lastAccessTimeMs ?? 0, facts.createTimeMs),
  };
}

function repairedFacts(
  context: ReconcileContext,
  id: string,
  found: FoundDatabase,
  known: CatalogRow | undefined,
): Facts {
  return {
    id,
    lineage: context.newLineage(),
    createTimeMs: known?.createTimeMs ?? (found.createTimeMs || context.nowMs),
    labels: known?.labels ?? {},
    foreignKeys: known?.foreignKeys ?? true,
    etagVersion: (known?.etagVersion ?? 0) + 1,
    sequenceReserved: known?.sequenceReserved ?? 0,
    createRecord: undefined,
    stage: "local",
    head: "local",
    baseTxid: 0,
    remotePrefix: "",
    pin: known?.pin,
    successor: undefined,
  };
}
