/** The stages that are folders: memory (on a tmpfs) and local. The same code, but that only local flushes. */
import { join } from "node:path";
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import { FileReplica } from "./file-replica.ts";
import type { Stage, StageCall, StageSpace } from "./stage.ts";

export interface FileStageOptions {
  readonly name: "memory" | "local";
  readonly displayName: string;
  /** Databases lie below it: `databases/<id>/db.sqlite`. */
  readonly directoryPath: string;
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
}

export class FileStage implements Stage {
  readonly name: "memory" | "local";
  readonly displayName: string;
  readonly directoryPath: string;
  readonly #fileSystem: FileSystem;
  readonly #clock: Clock;

  constructor({ name, displayName, directoryPath, fileSystem, clock }: FileStageOptions) {
    this.name = name;
    this.displayName = displayName;
    this.directoryPath = directoryPath;
    this.#fileSystem = fileSystem;
    this.#clock = clock;
  }

  /** Path of a database's file. */
  filePath(id: string): string {
    return join(this.directoryPath, "databases", id, "db.sqlite");
  }

  /** The database file at a path, which holds what was committed up to `txid`; 0: there is none yet. */
  replica(path: string, txid: bigint): FileReplica {
    return new FileReplica({ stage: this.name, path, txid, fileSystem: this.#fileSystem, clock: this.#clock });
  }

  async space(): Promise<StageSpace> {
    const { totalBytes, freeBytes } = await this.#fileSystem.space(this.directoryPath);
    return { totalBytes, freeBytes };
  }

  /** Makes the folder. Rejects with STAGE_NOT_CONFIGURED when the memory stage would lie on a disk. */
  async probe(_call: StageCall): Promise<void> {
    await this.#fileSystem.makeFolder(this.directoryPath);
    if (this.name !== "memory") return;
    const { isMemory } = await this.#fileSystem.space(this.directoryPath);
    if (isMemory) return;
    const cause = new Error(`${this.directoryPath} is not on a tmpfs: STORAGE_MEMORY_DIRECTORY_PATH must be`);
    throw new Failure("STAGE_NOT_CONFIGURED", { stage: "memory" }, { cause });
  }
}
