/** What seals of all databases share: how many are written at one time, and a disk that must not be filled by them. */
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";

export interface SealLimits {
  /** Files of the log written at one time, over all databases. */
  readonly sealConcurrencyMax: number;
  /** Size of a batch's file from which the next commits go into a new one. */
  readonly batchBytesMax: number;
}

/** Left free, so that the small files of the engine find room. */
const reserveBytes = 16 * 1024 * 1024;

export class SealSlots {
  readonly limits: SealLimits;
  readonly #fileSystem: FileSystem;
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #seals = 0;

  constructor(fileSystem: FileSystem, limits: SealLimits) {
    this.#fileSystem = fileSystem;
    this.limits = limits;
  }

  /** Files written. */
  get seals(): number {
    return this.#seals;
  }

  /** Runs when its turn comes. */
  async run<T>(write: () => Promise<T>): Promise<T> {
    if (this.#running < this.limits.sealConcurrencyMax) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await write();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }

  /** A file was written. */
  count(): void {
    this.#seals++;
  }

  /** Throws STAGE_FULL when the disk has no room for a file of at most so many bytes. */
  async requireRoom(folderPath: string, byteCountMax: number): Promise<void> {
    const { freeBytes } = await this.#fileSystem.space(folderPath);
    if (freeBytes < byteCountMax + reserveBytes) throw new Failure("STAGE_FULL", { stage: "local" });
  }
}
