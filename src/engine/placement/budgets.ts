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

  /** How much more there is than a part of the budget, in bytes and databases. */
  above(part: number): StageUsage {
    const { bytes, count } = this.usage;
    return {
      bytes: Math.max(0, bytes - this.capacityBytes * part),
      count: Math.max(0, count - Math.floor(this.#countMax * part)),
    };
  }

  /** What has to go before a database of that size may come. */
  missing(sizeBytes: number): StageUsage {
    const { bytes, count } = this.usage;
    return {
      bytes: Math.max(0, bytes + sizeBytes - this.capacityBytes),
      count: Math.max(0, count + 1 - this.#countMax),
    };
  }

  get #countMax(): number {
    return this.#budget.databaseCountMax || Number.POSITIVE_INFINITY;
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

  /** Takes the room for a database that is about to come, if there is any; to be given back when it is there, or not. */
  tryReserve(sizeBytes: number): (() => void) | undefined {
    const { bytes, count } = this.missing(sizeBytes);
    if (bytes > 0 || count > 0) return undefined;
    this.#reservedBytes += sizeBytes;
    this.#reservedCount++;
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      this.#reservedBytes -= sizeBytes;
      this.#reservedCount--;
    };
  }

  /** Throws STAGE_FULL when the file system has no room for what is reserved. */
  async requireDisk(): Promise<void> {
    const { freeBytes } = await this.#fileSystem.space(this.#path);
    // What others have reserved may be written already, or not: the more careful reading.
    if (freeBytes < this.#reservedBytes + freeBytesMin) throw this.full();
  }
}
