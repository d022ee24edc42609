/** What the closer stages may hold, and what is about to come there. */
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { StageBudget } from "../options.ts";

/** What a stage holds. */
export interface StageUsage {
  readonly bytes: number;
  readonly count: number;
}

/** Of the file system of a stage without a budget in bytes. */
const memoryShare = 0.5;
const localShare = 0.9;

/** What has to stay free on a file system, whatever the budget says: others write there too. */
const freeBytesMin = 16 * 1024 * 1024;

export class Budget {
  readonly stage: "memory" | "local";
  readonly #budget: StageBudget;
  readonly #path: string;
  readonly #fileSystem: FileSystem;
  readonly #usage: () => StageUsage;
  #totalBytes: number | undefined;
  #reservedBytes = 0;
  #reservedCount = 0;

  /** `path`: a folder of the stage, which is there. `usage` is asked often. */
  constructor(
    stage: "memory" | "local",
    budget: StageBudget,
    path: string,
    fileSystem: FileSystem,
    usage: () => StageUsage,
  ) {
    this.stage = stage;
    this.#budget = budget;
    this.#path = path;
    this.#fileSystem = fileSystem;
    this.#usage = usage;
  }

  /** Looks at the file system; to be called once before the others. */
  async open(): Promise<void> {
    this.#totalBytes = (await this.#fileSystem.space(this.#path)).totalBytes;
  }

  get capacityBytes(): number {
    const { bytesMax } = this.#budget;
    if (bytesMax > 0) return bytesMax;
    return Math.floor((this.#totalBytes ?? 0) * (this.stage === "memory" ? memoryShare : localShare));
  }

  get usage(): StageUsage {
    const { bytes, count } = this.#usage();
    return { bytes: bytes + this.#reservedBytes, count: count + this.#reservedCount };
  }

  /** How much there is too much, in bytes and databases; none when it is within its budget. */
  get excess(): StageUsage {
    const { bytes, count } = this.usage;
    const countMax = this.#budget.databaseCountMax || Number.POSITIVE_INFINITY;
    return { bytes: Math.max(0, bytes - this.capacityBytes), count: Math.max(0, count - countMax) };
  }

  /** What has to go before a database of that size may come. */
  missing(sizeBytes: number): StageUsage {
    const { bytes, count } = this.usage;
    const countMax = this.#budget.databaseCountMax || Number.POSITIVE_INFINITY;
    return { bytes: Math.max(0, bytes + sizeBytes - this.capacityBytes), count: Math.max(0, count + 1 - countMax) };
  }

  /** Larger than the stage ever has room for. */
  isTooLarge(sizeBytes: number): boolean {
    return sizeBytes > this.capacityBytes;
  }

  full(): Failure {
    return new Failure("STAGE_FULL", {
      stage: this.stage,
      usedBytes: String(this.usage.bytes),
      capacityBytes: String(this.capacityBytes),
    });
  }

  /**
   * Takes the room for a database that is about to come; to be given back when it is there, or did not come. Throws
   * STAGE_FULL. Nothing is written before it.
   */
  async reserve(sizeBytes: number): Promise<() => void> {
    const { bytes, count } = this.missing(sizeBytes);
    if (bytes > 0 || count > 0) throw this.full();
    // Before the look at the disk: those who come meanwhile have to see it.
    this.#reservedBytes += sizeBytes;
    this.#reservedCount++;
    let isHeld = true;
    const release = () => {
      if (!isHeld) return;
      isHeld = false;
      this.#reservedBytes -= sizeBytes;
      this.#reservedCount--;
    };
    try {
      const { freeBytes } = await this.#fileSystem.space(this.#path);
      // What others have reserved may be written already, or not: the more careful reading.
      if (freeBytes < this.#reservedBytes + freeBytesMin) throw this.full();
    } catch (error) {
      release();
      throw error;
    }
    return release;
  }
}
