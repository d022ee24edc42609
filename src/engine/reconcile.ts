/** Makes the catalog and the folders agree at the start, whatever happened before. The folders are right. */
import type { FileSystem } from "../files/file-system.ts";
import { type Catalog, type CatalogRow, newRowColumns } from "./catalog.ts";
import type { Facts } from "./facts.ts";
import type { Folder, FoundDatabase } from "./folder.ts";
import { inspectLog } from "./log/log-folder.ts";
import type { EngineLog } from "./options.ts";
import type { HeadFiles } from "./placement/head-files.ts";

export interface ReconcileContext {
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly files: HeadFiles;
  readonly fileSystem: FileSystem;
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
  const headless = new Set(catalog.headlessIds());
  const gone = [...known].filter((id) => !found.has(id) && !headless.has(id));
  // A database that was stopped gets another chance with every start.
  const stopped = new Set(catalog.faultedIds());
  const isNews = (id: string) => !known.has(id) || stopped.has(id) || headless.has(id);
  const toInspect = catalog.wasClean ? ids.filter(isNews) : ids;

  const rows: CatalogRow[] = [];
  for (const id of toInspect) rows.push(await inspected(context, id, await folder.inspect(id)));

  catalog.inTransaction(() => {
    // Rows that a dying machine has brought back.
    for (const { facts } of folder.traces) {
      if (!found.has(facts.id) && catalog.get(facts.id)?.lineage === facts.lineage) catalog.delete(facts.id);
    }
    for (const id of gone) withoutFolder(context, id);
    for (const row of rows) catalog.put(row);
  });
}

/** What the remote stage has can be brought back. */
function withoutFolder({ catalog, log }: ReconcileContext, id: string): void {
  const row = catalog.get(id);
  if (row === undefined) return;
  if (row.durableSequence === 0) {
    log("warn", "a database's folder is gone; it is taken out of the catalog", { database: id });
    catalog.delete(id);
    return;
  }
  log("warn", "a database's folder is gone; what the remote stage has of it is brought back when it is called", {
    database: id,
    sequence: row.durableSequence,
    lostSequences: Math.max(0, row.sequence - row.durableSequence),
  });
  const { durableSequence: sequence } = row;
  catalog.put({ ...row, state: "ready", stage: "remote", head: "none", sequence, baseTxid: sequence });
}

async function inspected(context: ReconcileContext, id: string, found: FoundDatabase): Promise<CatalogRow> {
  const { catalog, folder, files, fileSystem, log } = context;
  const known = catalog.get(id);
  let facts = found.facts;
  if (facts === undefined) {
    facts = repairedFacts(context, id, found, known);
    log("warn", "database.json was missing or damaged and has been made again, with a new lineage", {
      database: id,
      lineage: facts.lineage,
    });
    // What it has of the lineage before is no beginning of this one's.
    await context.fileSystem.remove(folder.logPath(id));
    await folder.writeFacts(facts);
  }
  // Of a head in memory that is lost there is the base.
  const hasHead = facts.head === "memory" && files.exists(facts);
  const before = known?.lineage === facts.lineage ? known : undefined;
  const headPath = hasHead ? files.path(facts) : folder.filePath(id);
  const { txid, isSealed } = await inspectLog(fileSystem, folder.logPath(id), headPath, BigInt(facts.baseTxid));
  const hasFile = hasHead || found.hasData;
  // Where the WAL has more than the log, or may have, an operator has to decide what is lost.
  const canBeRepaired = !hasFile && isSealed && (before?.durableSequence ?? 0) > 0;
  if (canBeRepaired) {
    log("warn", "a folder has lost its database file; the remote stage and the log give it back when it is called", {
      database: id,
      sequence: Number(txid),
    });
  } else if (!hasFile) {
    log("error", "a folder holds no database file; its database is stopped", { database: id });
  }
  // What was given out after the last word in the catalog is not known, but it was not more than this.
  const sequence = Number(txid) + (isSealed && before !== undefined ? 1 : 2);
  return {
    ...newRowColumns,
    // What its remote copy needs, or still keeps of a history that was replaced, nobody knows any more: it is looked at.
    ...(before ?? { upkeepAtMs: context.nowMs }),
    ...facts,
    ...(canBeRepaired ? { head: "none" as const } : {}),
    state: hasFile || canBeRepaired ? "ready" : "faulted",
    sequence: Math.max(before?.sequence ?? 0, sequence),
    sizeBytes: hasHead ? files.sizeBytes(facts) : found.sizeBytes,
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
    createRecord: undefined,
    stage: "local",
    head: "local",
    baseTxid: 0,
    remotePrefix: "",
    pin: known?.pin,
    successor: undefined,
  };
}
