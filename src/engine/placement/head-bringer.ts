/** Gives a database a head that has none: from the remote stage, or, after a loss of the memory, from its base and its log. */
import { dirname } from "node:path";
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { Manifest } from "../../stages/manifest.ts";
import type { RemoteStage } from "../../stages/remote.ts";
import type { Batch, Restored, StageCall } from "../../stages/stage.ts";
import type { Catalog, CatalogRow } from "../catalog.ts";
import { type Facts, factsOf } from "../facts.ts";
import { stageFailure } from "../failures.ts";
import type { Folder } from "../folder.ts";
import { type FoundBatch, LogFolder } from "../log/log-folder.ts";
import type { EngineLog } from "../options.ts";
import { prefixOf } from "../sync/publish.ts";
import type { HeadFiles } from "./head-files.ts";

export interface HeadBringerHost {
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly fileSystem: FileSystem;
  readonly catalog: Catalog;
  readonly folder: Folder;
  readonly files: HeadFiles;
  readonly remote: RemoteStage | undefined;
  /** Takes the room for the database on the local stage; throws STAGE_FULL. */
  room(row: CatalogRow, signal: AbortSignal | undefined): Promise<() => void>;
}

/** Longest time that it may take. */
const bringMsMax = 6 * 3_600_000;
/** After which the answer to a read of a manifest counts as lost. */
const manifestMsMax = 60_000;
const retryAfterMs = 1_000;

export class HeadBringer {
  readonly #host: HeadBringerHost;

  constructor(host: HeadBringerHost) {
    this.#host = host;
  }

  /** Whole and on the disk, and in the catalog, when it resolves; as before when it rejects. */
  async bring(id: string, signal: AbortSignal): Promise<void> {
    const row = this.#host.catalog.get(id);
    if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: id });
    if (row.head === "local" || this.#host.files.exists(row)) return;
    const call = { deadlineAtMs: this.#host.clock.now() + bringMsMax, signal };
    if (row.head === "memory") await this.#rebuild(row, call);
    else await this.#hydrate(row, call);
  }

  async #hydrate(row: CatalogRow, call: StageCall): Promise<void> {
    const { remote, failPoints, folder, catalog } = this.#host;
    const { id } = row;
    if (remote === undefined) throw new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
    failPoints.reach("hydrate.begin");
    const release = await this.#host.room(row, call.signal);
    try {
      const left = await this.#leftBehind(row);
      if (left === "all but the file") {
        await this.#repair(row, remote, call);
        return;
      }
      // Of a history that a restore in place has replaced.
      if (left === "another history") await (await folder.drop(id))();
      let facts: Facts | undefined;
      let manifestVersion = 0;
      await folder.make(
        id,
        async (path) => {
          const { manifest, restored } = await this.fetch(row, remote, path, call);
          const { txid, damaged } = restored;
          manifestVersion = manifest.etagVersion;
          for (const { name, failure } of damaged) {
            this.#host.log("error", "a file of the remote stage is damaged; another stood in for it", {
              database: id,
              name,
              error: failure,
            });
          }
          if (manifest.lineage === row.lineage && txid < BigInt(row.durableSequence)) {
            throw this.#missing(id, `it goes up to ${txid}, and was stored up to ${row.durableSequence}`);
          }
          facts = {
            ...factsOf(row),
            ...factsIn(manifest),
            head: "local",
            baseTxid: Number(txid),
            successor: undefined,
          };
          call.signal?.throwIfAborted();
          failPoints.reach("hydrate.written");
          return facts;
        },
        () => failPoints.reach("hydrate.named"),
      );
      if (facts === undefined) throw new Error("a database was made without facts");
      const isSame = facts.lineage === row.lineage;
      const sequence = isSame ? Math.max(row.sequence, facts.baseTxid) : facts.baseTxid;
      catalog.put({
        ...row,
        ...facts,
        sequence,
        durableSequence: facts.baseTxid,
        manifestVersion,
        sizeBytes: folder.sizeBytes(id),
      });
      failPoints.reach("hydrate.end");
    } catch (error) {
      throw stageFailure("local", error);
    } finally {
      release();
    }
  }

  /** What the local folder has of a database that has no head. */
  async #leftBehind({ id, lineage }: CatalogRow): Promise<"nothing" | "all but the file" | "another history"> {
    const { fileSystem, folder } = this.#host;
    if ((await fileSystem.list(dirname(folder.filePath(id)))).length === 0) return "nothing";
    const { facts, hasData } = await folder.inspect(id);
    if (facts?.lineage !== lineage) return "another history";
    if (!hasData) return "all but the file";
    throw new Error(`the folder of ${id} has a database that the catalog does not know of`);
  }

  /** The folder has lost its database file, and nothing else: what is stored, and the log behind it, make it again. */
  async #repair(row: CatalogRow, remote: RemoteStage, call: StageCall): Promise<void> {
    const { log, files, folder, fileSystem, catalog, failPoints } = this.#host;
    const { id } = row;
    const path = folder.filePath(id);
    const newPath = `${path}.new`;
    const { manifest, restored } = await this.fetch(row, remote, newPath, call);
    if (manifest.lineage !== row.lineage) throw this.#missing(id, "another history was published in its place");
    const { batches, hasGap } = await new LogFolder(fileSystem, folder.logPath(id)).read();
    const behind = batches.filter(({ txid }) => txid > restored.txid).map(batchOf);
    const next = behind[0]?.txid ?? restored.txid + 1n;
    if (hasGap || next !== restored.txid + 1n) {
      const sqliteMessage = `its file is lost, and nothing holds the batches from ${restored.txid + 1n} on`;
      throw new Failure("DATA_CORRUPT", { database: id, stage: "local", sqliteMessage });
    }
    const replica = files.replica("local", newPath, restored.txid);
    for (const batch of behind) await replica.append(batch, call);
    failPoints.reach("hydrate.written");
    for (const ending of ["-wal", "-shm"]) await fileSystem.remove(`${path}${ending}`);
    await fileSystem.rename(newPath, path);
    await fileSystem.flushFolder(dirname(path));
    failPoints.reach("hydrate.named");
    const facts: Facts = { ...factsOf(row), head: "local", baseTxid: Number(replica.txid) };
    await folder.writeFacts(facts);
    catalog.put({
      ...row,
      ...facts,
      sequence: Math.max(row.sequence, facts.baseTxid),
      durableSequence: Number(restored.txid),
      sizeBytes: folder.sizeBytes(id),
    });
    log("warn", "a lost database file was made again from the remote stage and the log", {
      database: id,
      durableSequence: Number(restored.txid),
      sequence: facts.baseTxid,
    });
    failPoints.reach("hydrate.end");
  }

  /**
   * Restores what the catalog knows of while the manifest is on its way: seldom has another server, or a restore that was cut
   * off, published another history, and then that one is restored.
   */
  async fetch(
    row: CatalogRow,
    remote: RemoteStage,
    path: string,
    call: StageCall,
  ): Promise<{ readonly manifest: Manifest; readonly restored: Restored }> {
    const prefix = prefixOf(remote, row);
    const restore = (from: string) => remote.replica(from).restore({ path, flush: true }, call);
    const manifestCall = { ...call, deadlineAtMs: Math.min(call.deadlineAtMs, this.#host.clock.now() + manifestMsMax) };
    const [stored, ahead] = await Promise.allSettled([remote.manifests.read(row.id, manifestCall), restore(prefix)]);
    if (stored.status === "rejected") throw stored.reason;
    const { manifest } = stored.value ?? { manifest: undefined };
    if (manifest === undefined) throw this.#missing(row.id, "its manifest is gone");
    if (manifest.prefix !== prefix) return { manifest, restored: await restore(manifest.prefix) };
    if (ahead.status === "rejected") throw ahead.reason;
    return { manifest, restored: ahead.value };
  }

  /** The machine has lost what was in memory: what was sealed is in the base and the log. */
  async #rebuild(row: CatalogRow, call: StageCall): Promise<void> {
    const { log, files, folder, fileSystem, catalog, failPoints } = this.#host;
    const { id } = row;
    log("warn", "the memory stage has lost a database; it is made again from its base and its log", { database: id });
    try {
      await files.fold(id, folder.filePath(id));
      const { batches, hasGap } = await new LogFolder(fileSystem, folder.logPath(id)).read();
      if (hasGap) throw new Failure("DATA_CORRUPT", { database: id, stage: "local" });
      const base = BigInt(row.baseTxid);
      const behind = batches.filter(({ txid }) => txid > base).map(batchOf);
      const txid = Number(await files.applyToBase(files.replica("local", folder.filePath(id), base), behind, call));
      const stage = row.stage === "memory" ? "local" : row.stage;
      const facts: Facts = { ...factsOf(row), stage, head: "local", baseTxid: txid };
      await folder.writeFacts(facts);
      failPoints.reach("base.apply.noted");
      catalog.put({
        ...row,
        ...facts,
        sequence: Math.max(row.sequence, txid),
        sizeBytes: folder.sizeBytes(id),
      });
    } catch (error) {
      throw stageFailure("local", error);
    }
  }

  #missing(database: string, problem: string): Failure {
    this.#host.log("error", "the remote stage has lost a part of a database", { database, problem });
    return new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, { retryAfterMs });
  }
}

function batchOf({ txid, path, byteCount, header }: FoundBatch): Batch {
  const { pageSize, commit, timestampMs } = header;
  return { txid, path, byteCount, pageSize, commit, timestampMs };
}

/** What a manifest says of a database. */
function factsIn(manifest: Manifest): Partial<Facts> {
  const { lineage, prefix, createTimeMs, labels, foreignKeys, etagVersion, createRecord } = manifest;
  return { lineage, remotePrefix: prefix, createTimeMs, labels, foreignKeys, etagVersion, createRecord };
}
