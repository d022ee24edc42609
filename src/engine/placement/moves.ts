/**
 * Moving a database between stages while it is used. Each step leaves the database serving from where it was until its facts
 * name the new place; what was made by then is removed when a step fails.
 */
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import { Failure } from "../../failure/failure.ts";
import { planRestore } from "../../ltx/restore-plan.ts";
import type { FileReplica } from "../../stages/file-replica.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { Snapshot, StageCall } from "../../stages/stage.ts";
import type { Catalog } from "../catalog.ts";
import type { HostedDatabase } from "../database.ts";
import type { StageName } from "../engine.ts";
import type { Facts } from "../facts.ts";
import { stageFailure } from "../failures.ts";
import type { Folder } from "../folder.ts";
import type { Handles } from "../handles.ts";
import type { Progress } from "../operations.ts";
import type { EngineLog } from "../options.ts";
import { prefixOf } from "../sync/publish.ts";
import type { Sync, SyncWait } from "../sync/sync.ts";
import type { HeadFiles } from "./head-files.ts";

export interface MovesHost {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly handles: Handles;
  readonly files: HeadFiles;
  readonly sync: Sync;
  readonly remote: RemoteStage | undefined;
  /** How long a move waits for the writes that run, and for reads in a file that it needs. */
  readonly moveWaitMsMax: number;
}

/** Longest time of a move, uploads and all. */
const moveMsMax = 6 * 3_600_000;

/** Rounds of following the writes before they are paused all the same. */
const followRoundMax = 8;

/** What is left to apply when writes are paused; less than this takes a few milliseconds. */
const lastBatchBytesMax = 128 * 1024;

/** Batches that may be owed at the end: the open one, and two after an unclean end. */
const lastBatchCountMax = 4;

/** For the last batches of a database that goes, while calls wait. */
const lastUploadMsMax = 30_000;
const retryAfterMs = 1_000;

export class Moves {
  readonly #host: MovesHost;

  constructor(host: MovesHost) {
    this.#host = host;
  }

  /** Brings the head of a database that has one into memory. */
  async toMemory(id: string, progress: Progress): Promise<void> {
    await this.#withHead(id, async (database) => {
      if (database.headStage === "memory") {
        await this.#relabel(database, "memory");
        return;
      }
      await this.#requireFolded(database);
      const { files, failPoints } = this.#host;
      const { log } = database;
      failPoints.reach("move.begin");
      const path = files.memoryPath(id, database.lineage);
      const replica = files.replica("memory", path, 0n);
      await log.load();
      const letGo = log.keepFrom(log.closedTxid);
      try {
        const snapshot = await log.snapshot();
        try {
          progress.total(snapshot.pageSize * snapshot.pageCount);
          await replica.putSnapshot(counted(snapshot, progress), this.#call(progress));
        } finally {
          snapshot.release();
        }
        failPoints.reach("move.copied");
        await this.#switch(database, replica, progress, {
          stage: "memory",
          path,
          // What is in the base by then is in its WAL, flushed: every batch was sealed.
          facts: (txid) => ({ stage: "memory", head: "memory", baseTxid: Number(txid) }),
        });
      } catch (error) {
        await this.#host.files.removeMemory(id, database.lineage);
        throw stageFailure("memory", error);
      } finally {
        letGo();
      }
    });
  }

  /** Brings the head of a database back from memory, onto its base. */
  async toLocal(id: string, progress: Progress): Promise<void> {
    await this.#withHead(id, async (database) => {
      if (database.headStage === "local") {
        await this.#relabel(database, "local");
        return;
      }
      const { files, folder, failPoints } = this.#host;
      await this.#requireFolded(database);
      failPoints.reach("move.begin");
      await database.log.load();
      const path = folder.filePath(id);
      progress.total(database.sizeBytes);
      // What has been applied is noted, so that a move that fails leaves less to the next.
      await this.followWithBase(database);
      await files.fold(id, path);
      const replica = files.replica("local", path, BigInt(database.facts.baseTxid));
      await this.#requireBase(database, replica, this.#call(progress));
      failPoints.reach("move.copied");
      try {
        await this.#switch(database, replica, progress, {
          stage: "local",
          path,
          facts: (txid) => ({ stage: "local", head: "local", baseTxid: Number(txid) }),
        });
      } catch (error) {
        // The base is a base as before, with more in it than it is known to have.
        throw stageFailure("local", error);
      }
    });
  }

  /** Sees to it that the remote stage has everything, and takes the head away. */
  async toRemote(id: string, progress: Progress, uploadMsMax = moveMsMax): Promise<void> {
    const { catalog } = this.#host;
    if (catalog.get(id)?.head === "memory") await this.toLocal(id, progress);
    await this.#leave(id, progress, uploadMsMax);
    const row = catalog.get(id);
    // Where there was no head, only the label is left to be changed.
    if (row?.head === "none" && row.stage !== "remote") catalog.put({ ...row, stage: "remote" });
  }

  async #leave(id: string, progress: Progress, uploadMsMax: number): Promise<void> {
    const { handles, sync } = this.#host;
    const database = await handles.enterHead(id);
    if (database === undefined) return;
    try {
      // Nearly everything, while calls go on.
      progress.total(database.sizeBytes);
      await database.log.load();
      await sync.durable(database, database.position.sequence, this.#wait(uploadMsMax, progress));
    } finally {
      database.leave();
    }
    progress.check();
    await this.#dropHead(id, progress);
  }

  /** Applies closed batches to the base of a head in memory, so that their files can go. */
  async followWithBase(database: HostedDatabase): Promise<void> {
    const { files, failPoints, folder, clock } = this.#host;
    const path = folder.filePath(database.id);
    if (database.headStage !== "memory" || !(await database.whenRetired(0))) return;
    const { log } = database;
    const baseTxid = BigInt(database.facts.baseTxid);
    const batches = log.files().filter(({ txid }) => txid > baseTxid);
    if (batches.length === 0) return;
    await files.fold(database.id, path);
    const call = { deadlineAtMs: clock.now() + moveMsMax };
    const replica = files.replica("local", path, baseTxid);
    await this.#requireBase(database, replica, call);
    const txid = await files.applyToBase(replica, batches, call);
    await database.changeFacts((facts) => (facts.head === "memory" ? { ...facts, baseTxid: Number(txid) } : facts));
    failPoints.reach("base.apply.noted");
    log.setBase(txid);
  }

  /** A base that the disk has lost is made again from the head. */
  async #requireBase(database: HostedDatabase, replica: FileReplica, call: StageCall): Promise<void> {
    const { damaged, isWhole } = await replica.verify(call);
    if (isWhole) return;
    this.#host.log("warn", "the base of a database in memory is damaged, or gone; it is made again", {
      database: database.id,
      ...(damaged[0] === undefined ? {} : { error: damaged[0].failure }),
    });
    const snapshot = await database.log.snapshot();
    try {
      await replica.putSnapshot(snapshot, call);
    } finally {
      snapshot.release();
    }
  }

  /** Follows with `replica` what is committed, pauses writes for the last batch, and makes the replica the head. */
  async #switch(
    database: HostedDatabase,
    replica: FileReplica,
    progress: Progress,
    next: {
      readonly stage: "memory" | "local";
      readonly path: string;
      readonly facts: (txid: bigint) => Partial<Facts>;
    },
  ): Promise<void> {
    const { failPoints, moveWaitMsMax } = this.#host;
    const { log } = database;
    const follow = async () => {
      let byteCount = 0;
      for (const batch of log.files()) {
        if (batch.txid <= replica.txid) continue;
        await replica.append(batch, this.#call(progress));
        byteCount += batch.byteCount;
      }
      return byteCount;
    };
    for (let round = 0; round < followRoundMax; round++) {
      progress.check();
      if (log.hasOpen) await log.close();
      if ((await follow()) <= lastBatchBytesMax) break;
    }
    failPoints.reach("move.followed");
    try {
      if (!(await database.pauseWrites(moveWaitMsMax))) throw busy(database.id, "a write transaction is open");
      for (let batch = 0; log.hasOpen; batch++) {
        if (batch === lastBatchCountMax) throw new Error("a log has batches without end");
        await log.close();
      }
      await follow();
      if (replica.txid !== log.closedTxid) throw new Error(`the copy is at ${replica.txid}, not at ${log.closedTxid}`);
      failPoints.reach("move.paused");
      progress.commit();
      await this.#note(database, next.facts(replica.txid));
      failPoints.reach("move.noted");
      try {
        database.switchHead(next.stage, next.path);
      } catch (error) {
        // The facts name a head that nobody works in.
        throw database.stop("its head could not be switched", error);
      }
      log.setBase(next.stage === "memory" ? replica.txid : undefined);
      failPoints.reach("move.switched");
    } finally {
      database.resumeWrites();
    }
    failPoints.reach("move.end");
  }

  /** Writes facts that name another head, or leaves the old ones. */
  async #note(database: HostedDatabase, change: Partial<Facts>): Promise<void> {
    const before = database.facts;
    try {
      await database.changeFacts((facts) => ({ ...facts, ...change }));
      database.moved();
    } catch (error) {
      // The new ones may be on the disk although their name could not be flushed. Nothing may be written until that is clear.
      try {
        await this.#host.folder.writeFacts(before);
      } catch (again) {
        throw database.stop("its facts could not be written", again);
      }
      throw error;
    }
  }

  /** Asks the store itself, not what is known of it. */
  async #verify(database: HostedDatabase, progress: Progress): Promise<void> {
    const { remote, catalog } = this.#host;
    const row = catalog.get(database.id);
    if (remote === undefined) throw new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
    if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: database.id });
    const replica = remote.replica(prefixOf(remote, row));
    try {
      await replica.load(this.#call(progress));
    } catch (error) {
      throw stageFailure("remote", error);
    }
    // Not the last file alone: all that leads there.
    const plan = planRestore(replica.files());
    const reached = plan.kind === "plan" ? plan.maxTxid : 0n;
    if (reached < database.durableTxid) {
      this.#host.log("error", "the remote stage holds less than it said; a database stays where it is", {
        database: database.id,
        found: String(reached),
        expected: String(database.durableTxid),
      });
      throw new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, { retryAfterMs });
    }
  }

  /** Holds new calls back until the rest is uploaded and the local copy is gone. */
  async #dropHead(id: string, progress: Progress): Promise<void> {
    const { handles, sync, failPoints, log, moveWaitMsMax } = this.#host;
    const beforeClose = async (database: HostedDatabase) => {
      await sync.uploadAll(database, this.#wait(lastUploadMsMax, progress));
      await this.#verify(database, progress);
      failPoints.reach("drop.verified");
    };
    const failure = busy(id, "calls go on in it");
    const free = await handles.detach(
      id,
      { graceMs: moveWaitMsMax, failure, force: false, beforeClose },
      (database) => {
        return this.#takeHead(id, database, progress);
      },
    );
    try {
      await free();
    } catch (error) {
      log("warn", "files of a database that moved could not be removed; the next start tries again", {
        database: id,
        error,
      });
    }
    failPoints.reach("drop.end");
  }

  /** With the handle closed: nothing is added to it any more. */
  async #takeHead(id: string, database: HostedDatabase | undefined, progress: Progress): Promise<() => Promise<void>> {
    const { catalog, folder, failPoints, clock } = this.#host;
    if (database === undefined) throw busy(id, "it was closed meanwhile");
    // Only the handle knows them, and it is closed: for the case that the database stays.
    catalog.touch([database.takeTouch()]);
    const row = catalog.get(id);
    if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
    const { log, durableTxid, sizeBytes } = database;
    if (log.hasOpen || durableTxid < log.closedTxid) throw busy(id, "it was written meanwhile");
    failPoints.reach("drop.paused");
    progress.commit();
    const txid = Number(log.closedTxid);
    try {
      await database.forgetWal();
      // While it can still be taken back: a catalog that cannot be written must not speak of a folder that is gone.
      catalog.put({
        ...row,
        stage: "remote",
        head: "none",
        baseTxid: txid,
        sequence: txid,
        durableSequence: txid,
        sizeBytes,
        movedAtMs: row.stage === "remote" ? row.movedAtMs : clock.wallMs(),
      });
    } catch (error) {
      throw stageFailure("local", error);
    }
    try {
      const free = await folder.drop(id);
      failPoints.reach("drop.noted");
      return free;
    } catch (error) {
      catalog.put(row);
      throw stageFailure("local", error);
    }
  }

  /** Only the label: the head is there already. */
  async #relabel(database: HostedDatabase, stage: StageName): Promise<void> {
    if (database.facts.stage === stage) return;
    await database.changeFacts((facts) => ({ ...facts, stage }));
    database.moved();
  }

  async #withHead(id: string, work: (database: HostedDatabase) => Promise<void>): Promise<void> {
    const database = await this.#host.handles.enterHead(id);
    if (database === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
    try {
      await work(database);
    } finally {
      database.leave();
    }
  }

  /** Reads may still be in the file of the head before. */
  async #requireFolded(database: HostedDatabase): Promise<void> {
    if (await database.whenRetired(this.#host.moveWaitMsMax)) return;
    throw busy(database.id, "long reads use the file that it was moved from");
  }

  #wait(msMax: number, { cancel }: Progress): SyncWait {
    return { deadlineAtMs: this.#host.clock.now() + msMax, cancel, isImpatient: true };
  }

  #call(progress: Progress): StageCall {
    return { deadlineAtMs: this.#host.clock.now() + moveMsMax, signal: progress.signal };
  }
}

function busy(database: string, problem: string): Failure {
  return new Failure("DATABASE_BUSY", { database, problem }, { retryAfterMs });
}

/** The same snapshot, its pages counted as progress. */
function counted(snapshot: Snapshot, progress: Progress): Snapshot {
  const { txid, pageSize, pageCount, timestampMs } = snapshot;
  return {
    txid,
    pageSize,
    pageCount,
    timestampMs,
    async *pages() {
      for await (const page of snapshot.pages()) {
        yield page;
        progress.add(pageSize);
      }
    },
  };
}
