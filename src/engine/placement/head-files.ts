/** Where the files of heads lie, and how a base on the local disk follows a head in memory. */
import { dirname, join } from "node:path";
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { Executors } from "../../sqlite/executor.ts";
import { FileReplica } from "../../stages/file-replica.ts";
import type { Batch, StageCall } from "../../stages/stage.ts";
import type { Facts, HeadPlace } from "../facts.ts";
import type { Folder } from "../folder.ts";

export interface HeadFilesOptions {
  readonly fileSystem: FileSystem;
  readonly folder: Folder;
  readonly executors: Executors;
  readonly clock: Clock;
  readonly failPoints: FailPoints;
  /** Of the memory stage; undefined: there is none. */
  readonly memoryPath: string | undefined;
}

/** Enough of a database to say where its head is. */
export type HeadOwner = Pick<Facts, "id" | "lineage"> & { readonly head: HeadPlace };

export class HeadFiles {
  readonly #options: HeadFilesOptions;

  constructor(options: HeadFilesOptions) {
    this.#options = options;
  }

  /** Path of the file that the calls of a database run in. */
  path({ id, lineage, head }: HeadOwner): string {
    return head === "memory" ? this.memoryPath(id, lineage) : this.#options.folder.filePath(id);
  }

  /**
   * In memory there may be the files of an earlier database of the same name, because nothing there is flushed: the lineage
   * keeps them apart.
   */
  memoryPath(id: string, lineage: string): string {
    const { memoryPath } = this.#options;
    if (memoryPath === undefined) throw new Error("there is no memory stage");
    return join(memoryPath, "databases", `${id}.${lineage}`, "db.sqlite");
  }

  /** False when the machine has lost what was in memory. */
  exists(owner: HeadOwner): boolean {
    if (owner.head === "none") return false;
    if (owner.head === "memory" && this.#options.memoryPath === undefined) return false;
    return this.#options.fileSystem.sizeBytes(this.path(owner)) > 0;
  }

  /** Bytes of the head's file and of its WAL; 0 when there is none. */
  sizeBytes(owner: HeadOwner): number {
    return this.exists(owner) ? this.#options.folder.sizeBytesOf(this.path(owner)) : 0;
  }

  /** Makes the file in memory of a database that is new. */
  async createMemory({ id, lineage }: HeadOwner, bytes: Uint8Array): Promise<void> {
    const { fileSystem } = this.#options;
    const path = this.memoryPath(id, lineage);
    await fileSystem.makeFolder(dirname(path));
    await fileSystem.writeFlushed(path, bytes);
  }

  /** A database file as a replica that batches can be appended to. */
  replica(stage: "memory" | "local", path: string, txid: bigint): FileReplica {
    const { fileSystem, clock } = this.#options;
    return new FileReplica({ stage, path, txid, fileSystem, clock });
  }

  /** Removes what a database has in memory; harmless when there is nothing. */
  async removeMemory(id: string, lineage: string): Promise<void> {
    if (this.#options.memoryPath === undefined) return;
    await this.#options.fileSystem.remove(dirname(this.memoryPath(id, lineage)));
  }

  /** Removes what is in memory and no head of `owners`. To be called before anything is opened. */
  async sweepMemory(isHead: (name: string) => boolean): Promise<void> {
    const { memoryPath, fileSystem } = this.#options;
    if (memoryPath === undefined) return;
    const root = join(memoryPath, "databases");
    await fileSystem.makeFolder(root);
    for (const name of await fileSystem.list(root)) if (!isHead(name)) await fileSystem.remove(join(root, name));
  }

  /** Puts the WAL of a database file that nobody uses into the file, flushed, and removes it. */
  async fold(id: string, path: string): Promise<void> {
    const { executors, fileSystem } = this.#options;
    if (fileSystem.sizeBytes(`${path}-wal`) > 0) {
      const database = executors.open({ id, path, foreignKeys: false });
      try {
        const { frames, done } = await database.checkpoint("truncate");
        if (done < frames) throw new Error(`${path}: ${frames - done} frames of the log were not copied back`);
      } finally {
        await database.close(false);
      }
    }
    for (const ending of ["-wal", "-shm"]) await fileSystem.remove(`${path}${ending}`);
  }

  /**
   * Applies batches to a base in the local folder, which nobody has open and whose WAL is folded; those that it holds are
   * passed over. Flushed when it resolves with the batch that it holds then. Throws an Error when one is missing in between.
   */
  async applyToBase(replica: FileReplica, batches: readonly Batch[], call: StageCall): Promise<bigint> {
    const { failPoints } = this.#options;
    failPoints.reach("base.apply.begin");
    for (const batch of batches) await replica.append(batch, call);
    failPoints.reach("base.apply.flushed");
    return replica.txid;
  }
}
