/** Syncing of an engine: what the options ask for, and what the engine does for it. */
import { type FailPoints, noFailPoints } from "../../fail-points.ts";
import { adoptedRow } from "../adopted-row.ts";
import type { Catalog } from "../catalog.ts";
import type { DeletedTrace, Folder } from "../folder.ts";
import type { EngineOptions } from "../options.ts";
import { noSync } from "./no-sync.ts";
import { prefixOf } from "./publish.ts";
import { RemoteSync } from "./remote-sync.ts";
import type { Discovered, Sync, SyncedDatabase, SyncLog, Tombstone } from "./sync.ts";

/** A handle in use. */
export interface HeldDatabase extends SyncedDatabase {
  readonly log: SyncLog & { load(): Promise<void> | undefined };
  leave(): void;
}

/** The engine, as its syncing sees it. */
export interface SyncEngine {
  readonly catalog: Catalog;
  readonly folder: Folder;
  /** The handle of a database with a head, in use until it is left; undefined when there is none. */
  enterHead(id: string): Promise<HeldDatabase | undefined>;
  /** Writes to the catalog, which may fail: then the next start asks the folders. */
  writeCatalog(write: () => void): void;
}

export interface OpenedSync {
  readonly sync: Sync;
  /** To be called once, when the engine serves. */
  start(): void;
  /** The remote copy of a deleted database goes, and then its trace. */
  deleted(trace: DeletedTrace): void;
  /** Takes a database that only the remote stage has into the catalog; false when the id is known. */
  adopt(found: Discovered): Promise<boolean>;
}

export function openSync(options: EngineOptions, engine: SyncEngine): OpenedSync {
  const { remote, sync: settings } = options;
  if (remote === undefined || settings === undefined) {
    return { sync: noSync, start: () => undefined, deleted: () => undefined, adopt: async () => false };
  }
  const { catalog, folder } = engine;
  const adopt = async (found: Discovered) => {
    if (catalog.get(found.manifest.id) !== undefined) return false;
    catalog.put(adoptedRow(found, options.clock.wallMs()));
    return true;
  };
  const failPoints: FailPoints = options.failPoints ?? noFailPoints;
  const sync = new RemoteSync({
    remote,
    limits: settings.limits,
    isAutomatic: settings.isAutomatic,
    host: {
      clock: options.clock,
      random: () => Buffer.from(options.random(4)).readUInt32LE() / 2 ** 32,
      log: options.log,
      failPoints,
      row: (id) => catalog.get(id),
      hold: (id) => holdOf(engine, id),
      release: (database) => (database as HeldDatabase).leave(),
      discovered: adopt,
      complete: () => engine.writeCatalog(() => catalog.noteComplete()),
      save: (id, facts) => engine.writeCatalog(() => catalog.setSync(id, facts)),
    },
  });
  const tombstoneOf = (trace: DeletedTrace): Tombstone => ({
    id: trace.facts.id,
    lineage: trace.facts.lineage,
    prefix: prefixOf(remote, trace.facts),
    done: async () => {
      // Until then the trace says that what a dying machine brings back is deleted.
      catalog.flushDeletions();
      failPoints.reach("catalog.flushed");
      await trace.remove();
    },
  });
  return {
    sync,
    start() {
      const isCatalogComplete = catalog.useStore(remote.store.name);
      const tombstones = folder.traces.map(tombstoneOf);
      sync.start({ unsynced: catalog.unsynced(), upkeeps: catalog.upkeeps(), tombstones, isCatalogComplete });
    },
    deleted: (trace) => sync.deleted(tombstoneOf(trace)),
    adopt,
  };
}

/** With its log read, so that its numbers are known. */
async function holdOf(engine: SyncEngine, id: string): Promise<HeldDatabase | undefined> {
  const database = await engine.enterHead(id);
  try {
    await database?.log.load();
  } catch (error) {
    database?.leave();
    throw error;
  }
  return database;
}
