/** What seals of all databases share: how many are written at one time, and a disk that must not be filled by them. */
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";

export interface SealLimits {
  /** Files of the log written at one time, over all databases; as many again are merged. */
  readonly sealConcurrencyMax: number;
  /** Size of a batch on the disk from which the next commits go into a new one. */
  readonly batchBytesMax: number;
}

/** Left free, so that the small files of the engine find room. */
const reserveBytes = 16 * 1024 * 1024;

export class SealSlots {
  readonly limits: SealLimits;
  readonly #fileSystem: FileSystem;
  readonly #seals: Places;
  /** Merging takes long, and no seal is to wait for it. */
  readonly #merges: Places;

  constructor(fileSystem: FileSystem, limits: SealLimits) {
    this.limits = limits;
    this.#fileSystem = fileSystem;
    this.#seals = new Places(limits.sealConcurrencyMax);
    this.#merges = new Places(limits.sealConcurrencyMax);
  }

  /** Runs when its turn comes. */
  seal<T>(write: () => Promise<T>): Promise<T> {
    return this.#seals.run(write);
  }

  /** The same for what nobody waits for with writes held back. */
  merge<T>(write: () => Promise<T>): Promise<T> {
    return this.#merges.run(write);
  }

  /** Throws STAGE_FULL when the disk has no room for a file of at most so many bytes. */
  async requireRoom(folderPath: string, byteCountMax: number): Promise<void> {
    const { freeBytes } = await this.#fileSystem.space(folderPath);
    if (freeBytes < byteCountMax + reserveBytes) throw new Failure("STAGE_FULL", { stage: "local" });
  }
}

class Places {
  readonly #count: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(count: number) {
    this.#count = count;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running < this.#count) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }
}
