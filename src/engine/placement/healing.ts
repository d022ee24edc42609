/**
 * Heals a head whose file SQLite finds damaged. Batches come from WAL frames and never from the file, so the remote stage and
 * the log hold everything that was answered: a file made of them takes its place. Until then nothing is made from the damaged
 * one. A step that fails leaves the database as it was, with what can still be read in it.
 */
import { dirname } from "node:path";
import type { Clock } from "../../clock.ts";
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { FileReplica } from "../../stages/file-replica.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { StageCall } from "../../stages/stage.ts";
import type { Catalog, CatalogRow } from "../catalog.ts";
import type { HostedDatabase } from "../database.ts";
import { stageFailure } from "../failures.ts";
import type { Folder } from "../folder.ts";
import type { Handles } from "../handles.ts";
import type { Operations, Progress } from "../operations.ts";
import type { EngineLog } from "../options.ts";
import type { Sync, SyncWait } from "../sync/sync.ts";
import type { HeadBringer } from "./head-bringer.ts";
import type { HeadFiles } from "./head-files.ts";
import type { Moves } from "./moves.ts";

export interface HealingHost {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly fileSystem: FileSystem;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly handles: Handles;
  readonly files: HeadFiles;
  readonly operations: Operations;
  readonly sync: Sync;
  readonly remote: RemoteStage | undefined;
  readonly bringer: Pick<HeadBringer, "fetch">;
  readonly moves: Pick<Moves, "toLocal">;
  /** How long calls that run may take to end. */
  readonly drainMsMax: number;
  /** Takes the room for another file of the database on the local stage; throws STAGE_FULL. */
  room(row: CatalogRow, signal: AbortSignal | undefined): Promise<() => void>;
  /** Runs it as one of the moves, of which so many may run at one time. */
  inTurn(id: string, progress: Progress, run: () => Promise<void>): Promise<void>;
}

/** A database is healed at most so often: what is damaged again by then was damaged in what it was made of. */
const coolDownMs = 600_000;
/** Until what could not be healed is tried again, if it is called. */
const restMs = 30_000;
/** Of those that were damaged lately. */
const rememberedCountMax = 1_000;

const healMsMax = 6 * 3_600_000;
/** After which a store counts as away: others wait for their turn. Uploads go on all the same. */
const uploadMsMax = 60_000;
/** For the last batches, while calls wait. */
const lastUploadMsMax = 30_000;
const retryAfterMs = 1_000;

/** Damage of the file. The others are content that a statement does not like: a virtual table's, sqlite_sequence's. */
const damageCodes: ReadonlySet<string | undefined> = new Set([
  "SQLITE_CORRUPT",
  "SQLITE_CORRUPT_INDEX",
  "SQLITE_NOTADB",
]);

interface Case {
  readonly lineage: string;
  readonly head: "memory" | "local";
  isHealed: boolean;
  untilMs: number;
}

export class Healing {
  readonly #host: HealingHost;
  /** Oldest first. */
  readonly #cases = new Map<string, Case>();

  constructor(host: HealingHost) {
    this.#host = host;
  }

  /** SQLite says that the file of the head is damaged. Begins to heal it, in the background. */
  damaged(database: HostedDatabase, failure: Failure): void {
    if (!damageCodes.has(failure.facts["sqliteCode"])) return;
    database.log.distrustFile();
    const { clock, log } = this.#host;
    const { id, lineage, headStage: head } = database;
    const known = this.#cases.get(id);
    const isKnown = known?.lineage === lineage && known.head === head && clock.now() < known.untilMs;
    if (isKnown) {
      if (known.isHealed)
        database.stop("it is damaged again after it was healed: restore it to an earlier position", failure);
      return;
    }
    const obstacle = this.#obstacle(database);
    if (obstacle !== undefined) {
      this.#note(database, coolDownMs);
      log("error", "a database's file is damaged, and cannot be healed", {
        database: id,
        problem: obstacle,
        error: failure,
      });
      return;
    }
    const present = this.#note(database, Number.POSITIVE_INFINITY);
    log("warn", "a database's file is damaged; it is made again from what is stored, and calls may be tried again", {
      database: id,
      error: failure,
    });
    try {
      this.#host.operations.start({
        database: id,
        kind: "demote",
        key: "heal",
        locks: [id],
        isBackground: true,
        run: (progress) => this.#run(database, present, progress),
      });
    } catch (error) {
      // Something else works on it: a later call that finds the damage tries again.
      present.untilMs = clock.now() + retryAfterMs;
      log("warn", "the healing of a database could not be begun", { database: id, error });
    }
  }

  /** Why there is nothing to heal from. */
  #obstacle(database: HostedDatabase): string | undefined {
    const { remote, sync } = this.#host;
    if (database.state !== "ready") return `it is ${database.state}`;
    if (database.headStage === "memory") return undefined;
    if (remote === undefined || !sync.isCarrying) return "there is no remote copy";
    return undefined;
  }

  #note({ id, lineage, headStage: head }: HostedDatabase, forMs: number): Case {
    const noted = { lineage, head, isHealed: false, untilMs: this.#host.clock.now() + forMs };
    this.#cases.delete(id);
    this.#cases.set(id, noted);
    for (const [oldest, { untilMs }] of this.#cases) {
      if (this.#cases.size <= rememberedCountMax) break;
      if (untilMs !== Number.POSITIVE_INFINITY) this.#cases.delete(oldest);
    }
    return noted;
  }

  async #run(database: HostedDatabase, present: Case, progress: Progress): Promise<void> {
    const { clock, log, inTurn } = this.#host;
    const { id } = database;
    let forMs = coolDownMs;
    try {
      await inTurn(id, progress, () =>
        present.head === "memory" ? this.#healMemory(id, progress) : this.#healLocal(id, progress),
      );
      present.isHealed = true;
    } catch (error) {
      const isHopeless = error instanceof Failure && error.reason === "DATA_CORRUPT";
      if (!isHopeless) forMs = restMs;
      const message = isHopeless
        ? "a damaged database cannot be healed: what it would be made of is damaged, or has a gap; restore an earlier position"
        : "a damaged database is not healed yet; that is tried again when it is called";
      log("error", message, { database: id, error });
      throw error;
    } finally {
      present.untilMs = clock.now() + forMs;
    }
  }

  /** Its base and the log make the head on the local disk; calls go on. */
  async #healMemory(id: string, progress: Progress): Promise<void> {
    const { handles, moves, drainMsMax, log } = this.#host;
    const database = await handles.enterHead(id);
    if (database === undefined) throw busy(id, "it has gone");
    try {
      await database.log.load();
      if (database.log.needsFile) throw corrupt(id, "memory", "its log does not hold all of it");
      await moves.toLocal(id, progress);
      // Reads that began before may still find the damage.
      if (!(await database.whenRetired(drainMsMax))) throw busy(id, "reads go on in the file that is damaged");
    } finally {
      database.leave();
    }
    log("warn", "a damaged database was made again on the local stage from its base and its log", { database: id });
  }

  /** The remote stage and the log make another file beside the damaged one; calls wait while it takes its place. */
  async #healLocal(id: string, progress: Progress): Promise<void> {
    const { catalog, folder, handles, sync, fileSystem, drainMsMax, log, room } = this.#host;
    const row = catalog.get(id);
    const database = row && (await handles.enterHead(id));
    if (row === undefined || database === undefined) throw busy(id, "it has gone");
    const newPath = `${folder.filePath(id)}.new`;
    let letGo: (() => void) | undefined;
    let release: (() => void) | undefined;
    let replica: FileReplica;
    try {
      try {
        release = await room(row, progress.signal);
        await database.log.load();
        if (database.log.needsFile) throw corrupt(id, "local", "its log does not hold all of it");
        const upload = () => sync.durable(database, database.position.sequence, this.#wait(uploadMsMax, progress));
        // First the file: a log without batches has to ask one for its size.
        if (database.durableTxid === 0n) await upload();
        const stopKeeping = database.log.keepFrom(database.durableTxid);
        letGo = () => {
          stopKeeping();
          database.log.setSoundFile(undefined);
        };
        replica = await this.#restore(database, row, newPath, progress);
        // Nearly everything, while calls go on.
        await upload();
        await this.#follow(database, replica, progress);
      } finally {
        database.leave();
      }
      const beforeClose = async (parting: HostedDatabase) => {
        if (parting !== database) throw busy(id, "it was closed meanwhile");
        await sync.uploadAll(database, this.#wait(lastUploadMsMax, progress));
        await this.#follow(database, replica, progress);
      };
      const failure = busy(id, "calls go on in it");
      await handles.detach(id, { graceMs: drainMsMax, failure, force: false, beforeClose }, (detached) => {
        // The log is closed with it, and the next one keeps what it needs.
        letGo = undefined;
        return this.#replace(id, detached, replica, progress);
      });
    } catch (error) {
      letGo?.();
      await fileSystem.remove(newPath);
      throw stageFailure("local", error);
    } finally {
      release?.();
    }
    log("warn", "a damaged database was made again from the remote stage and its log; the damaged file is gone", {
      database: id,
      sequence: Number(replica.txid),
    });
  }

  async #restore(database: HostedDatabase, row: CatalogRow, path: string, progress: Progress): Promise<FileReplica> {
    const { remote, bringer, files } = this.#host;
    const { id } = row;
    if (remote === undefined) throw new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
    const { durableTxid } = database;
    const { manifest, restored } = await bringer.fetch(row, remote, path, this.#call(progress));
    const isWhole = manifest.lineage === row.lineage && restored.txid >= durableTxid;
    if (!isWhole) throw corrupt(id, "remote", `it ends at ${restored.txid}, and was stored up to ${durableTxid}`);
    if (restored.txid === database.log.closedTxid) database.log.setSoundFile(path);
    return files.replica("local", path, restored.txid);
  }

  async #follow({ log }: HostedDatabase, replica: FileReplica, progress: Progress): Promise<void> {
    for (const batch of log.files()) if (batch.txid > replica.txid) await replica.append(batch, this.#call(progress));
  }

  /** With the handle closed: nothing is added to it any more. */
  async #replace(
    id: string,
    database: HostedDatabase | undefined,
    replica: FileReplica,
    progress: Progress,
  ): Promise<void> {
    const { catalog, folder, fileSystem } = this.#host;
    if (database === undefined) throw busy(id, "it was closed meanwhile");
    // Only the handle knows them, and it is closed.
    catalog.touch([database.takeTouch()]);
    const { log, durableTxid } = database;
    const isWhole = !log.hasOpen && durableTxid === log.closedTxid && replica.txid === log.closedTxid;
    if (!isWhole) throw busy(id, "it was written meanwhile");
    progress.commit();
    const path = folder.filePath(id);
    await database.forgetWal();
    // The file first: with its WAL, which ends where it does and is flushed, it is the same state.
    await fileSystem.rename(replica.name, path);
    await fileSystem.flushFolder(dirname(path));
    for (const ending of ["-wal", "-shm"]) await fileSystem.remove(`${path}${ending}`);
  }

  #wait(msMax: number, { cancel }: Progress): SyncWait {
    return { deadlineAtMs: this.#host.clock.now() + msMax, cancel, isImpatient: true };
  }

  #call({ signal }: Progress): StageCall {
    return { deadlineAtMs: this.#host.clock.now() + healMsMax, signal };
  }
}

function corrupt(database: string, stage: "memory" | "local" | "remote", sqliteMessage: string): Failure {
  return new Failure("DATA_CORRUPT", { database, stage, sqliteMessage });
}

function busy(database: string, problem: string): Failure {
  return new Failure("DATABASE_BUSY", { database, problem }, { retryAfterMs });
}
