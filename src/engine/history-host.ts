/** What history needs of the engine, made of the engine's parts. */
import type { Clock } from "../clock.ts";
import type { FailPoints } from "../fail-points.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import type { RemoteStage } from "../stages/remote.ts";
import type { Catalog, CatalogRow } from "./catalog.ts";
import type { HostedDatabase } from "./database.ts";
import type { Facts } from "./facts.ts";
import { localStageFailure } from "./failures.ts";
import type { Flusher } from "./flusher.ts";
import type { Folder } from "./folder.ts";
import type { Handles } from "./handles.ts";
import type { HistoryHost, NewHistory } from "./history.ts";
import type { KeyedLock } from "./keyed-lock.ts";
import { redoKey } from "./log/redo.ts";
import type { Operations } from "./operations.ts";
import type { EngineLog } from "./options.ts";
import type { HeadFiles } from "./placement/head-files.ts";
import type { Placement } from "./placement/placement.ts";
import type { Discovered, Sync } from "./sync/sync.ts";

export interface HistoryHostParts {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly fileSystem: FileSystem;
  readonly folder: Folder;
  readonly flusher: Pick<Flusher, "forgetLife">;
  readonly catalog: Catalog;
  readonly handles: Handles;
  readonly lock: KeyedLock;
  readonly operations: Operations;
  readonly remote: RemoteStage | undefined;
  readonly sync: Sync;
  readonly newLineage: () => string;
  readonly etagOf: (facts: Facts) => string;
  /** The row of a database; throws DATABASE_NOT_FOUND. A promise while only the remote stage may know. */
  readonly row: (id: string) => CatalogRow | Promise<CatalogRow>;
  readonly adopt: (found: Discovered) => Promise<boolean>;
  readonly placement: Pick<Placement, "bringing" | "warm">;
  readonly files: Pick<HeadFiles, "removeMemory">;
  /** How long calls on a history that is replaced may go on. */
  readonly graceMs: number;
}

/** Facts of a history that never became one: only its name matters. */
const unpublished = {
  labels: {},
  foreignKeys: true,
  etagVersion: 1,
  createRecord: undefined,
  stage: "remote",
  head: "none",
  baseTxid: 0,
  remotePrefix: "",
  pin: undefined,
  successor: undefined,
} as const;

export function historyHost(parts: HistoryHostParts): HistoryHost {
  const { catalog, handles, lock, row, folder, log, placement } = parts;
  const present = (id: string): CatalogRow => {
    const found = catalog.get(id);
    if (found === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
    return found;
  };

  return {
    ...parts,
    find: async (id) => row(id),
    async get(id) {
      try {
        return await row(id);
      } catch (error) {
        if (error instanceof Failure && error.reason === "DATABASE_NOT_FOUND") return undefined;
        throw error;
      }
    },
    exclusively: (id, work) => lock.run(id, work),

    async open(id) {
      const database = await handles.enterHead(id);
      try {
        // Its numbers are not known before.
        await database?.log.load();
      } catch (error) {
        database?.leave();
        throw error;
      }
      return database;
    },

    async setSuccessor(id, successor) {
      const database = await enterWhole(id);
      if (database === undefined) {
        catalog.put({ ...present(id), successor });
        return;
      }
      try {
        await database.changeFacts((facts) => (facts.successor === successor ? facts : { ...facts, successor }));
      } finally {
        database.leave();
      }
    },

    async replaceHistory(id, next) {
      const failure = new Failure("LINEAGE_CHANGED", { lineage: next.lineage });
      const detachment = { graceMs: parts.graceMs, failure, force: true };
      await handles.detach(id, detachment, (database) => switchRow(id, next, database));
    },

    async discard(id, lineage) {
      const { remote } = parts;
      if (remote === undefined) return;
      const trace = await folder.keepTrace({ ...unpublished, id, lineage, createTimeMs: parts.clock.wallMs() });
      const prefix = remote.prefixOf(id, lineage);
      parts.sync.deleted({ id, lineage, prefix, mayGrow: true, done: () => trace.remove() });
    },

    async warm(id) {
      const found = present(id);
      if (found.stage !== "remote") await placement.warm(found);
    },
  };

  /** A handle, or undefined when there is no head, and none on its way either. */
  async function enterWhole(id: string): Promise<HostedDatabase | undefined> {
    for (;;) {
      const database = await handles.enterHead(id);
      const bringing = database === undefined ? placement.bringing(id) : undefined;
      if (bringing === undefined) return database;
      // How it ended shows in the next look.
      await bringing.catch(() => undefined);
    }
  }

  /** With the handle closed. The row is the switch: what is left of the old files after it is swept. */
  async function switchRow(id: string, next: NewHistory, database: HostedDatabase | undefined): Promise<void> {
    const before = present(id);
    let free: (() => Promise<void>) | undefined;
    try {
      if (before.head !== "none") {
        // The WAL goes: nothing of it may be put beside a later file.
        await parts.flusher.forgetLife(redoKey(id, before.lineage));
        free = await folder.drop(id);
      }
    } catch (error) {
      // Gone already, where an earlier try came that far.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw localStageFailure(error);
    }
    catalog.put({
      ...before,
      ...next,
      successor: undefined,
      head: "none",
      baseTxid: 0,
      sequence: 1,
      durableSequence: 1,
      state: "ready",
      isFenced: false,
      lastAccessTimeMs: database?.lastAccessTimeMs ?? before.lastAccessTimeMs,
    });
    if (before.etagVersion !== next.manifestVersion) parts.sync.factsChanged(id);
    try {
      if (before.head === "memory") await parts.files.removeMemory(id, before.lineage);
      await free?.();
    } catch (error) {
      log("warn", "files of a replaced history could not be removed; the next start tries again", {
        database: id,
        error,
      });
    }
  }
}
