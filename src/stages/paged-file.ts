/** Pages on their way into a database file: those that follow one another are written together. */
import type { OpenFile } from "../files/file-system.ts";
import type { Page } from "../ltx/pages.ts";

/** What takes the pages of LTX files in, one file after another. */
export interface PageSink {
  /** Ascending within a file. The bytes may change afterwards, once this resolves. */
  write(page: Page): Promise<void> | undefined;
  /** The end of a file: the database has so many pages now. */
  end(pageCount: number): Promise<void>;
}

const runBytesMax = 1024 * 1024;
/** Writes under way at one time. */
const writesMax = 4;
/** The disk begins with what is there already, so that the last flush is a short one. */
const flushEveryBytes = 32 * 1024 * 1024;

/** Writes into a file. Pages that are never written are zeros, the lock page among them. */
export class PagedFile implements PageSink {
  readonly #file: OpenFile;
  readonly #pageSize: number;
  readonly #runPagesMax: number;
  readonly #isFlushed: boolean;
  readonly #writes = new Set<Promise<void>>();
  /** Of writes that are over. */
  readonly #spare: Buffer[] = [];
  #run: Buffer | undefined;
  #runStart = 0;
  #runCount = 0;
  #writtenBytes = 0;
  #flush: Promise<void> | undefined;
  #problem: { readonly error: unknown } | undefined;

  /** `isFlushed`: `finish` leaves it on the disk. */
  constructor(file: OpenFile, pageSize: number, isFlushed: boolean) {
    this.#file = file;
    this.#pageSize = pageSize;
    this.#runPagesMax = Math.max(1, Math.floor(runBytesMax / pageSize));
    this.#isFlushed = isFlushed;
  }

  write({ number, bytes }: Page): Promise<void> | undefined {
    const follows = this.#run !== undefined && number === this.#runStart + this.#runCount;
    if (follows && this.#runCount < this.#runPagesMax) {
      this.#put(bytes);
      return undefined;
    }
    const room = this.#endRun();
    if (room === undefined) {
      this.#begin(number, bytes);
      return undefined;
    }
    // The page is copied now: its bytes are the caller's.
    const copy = Uint8Array.prototype.slice.call(bytes);
    return room.then(() => this.#begin(number, copy));
  }

  async end(pageCount: number): Promise<void> {
    await this.#endRun();
    await this.#drain();
    await this.#file.truncate(pageCount * this.#pageSize);
  }

  /** After the last `end`. */
  async finish(): Promise<void> {
    await this.#drain();
    if (this.#isFlushed) await this.#file.flush();
  }

  /** Resolves when nothing is under way any more, whatever became of it; the file can be closed then. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#flush === undefined ? this.#writes : [...this.#writes, this.#flush]);
  }

  #begin(number: number, bytes: Uint8Array): void {
    this.#run = this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.#runPagesMax * this.#pageSize);
    this.#runStart = number;
    this.#runCount = 0;
    this.#put(bytes);
  }

  #put(bytes: Uint8Array): void {
    this.#run?.set(bytes, this.#runCount * this.#pageSize);
    this.#runCount++;
  }

  /** Sends what was gathered; a promise when its caller has to wait for room. */
  #endRun(): Promise<void> | undefined {
    if (this.#problem !== undefined) throw this.#problem.error;
    const run = this.#run;
    if (run === undefined) return undefined;
    this.#run = undefined;
    const bytes = run.subarray(0, this.#runCount * this.#pageSize);
    const write: Promise<void> = this.#file
      .write((this.#runStart - 1) * this.#pageSize, bytes)
      .catch((error: unknown) => {
        this.#problem ??= { error };
      })
      .finally(() => {
        this.#writes.delete(write);
        this.#spare.push(run);
      });
    this.#writes.add(write);
    this.#writtenBytes += bytes.length;
    if (this.#isFlushed && this.#writtenBytes >= flushEveryBytes && this.#flush === undefined) this.#flushSome();
    return this.#writes.size < writesMax ? undefined : Promise.race(this.#writes);
  }

  #flushSome(): void {
    this.#writtenBytes = 0;
    this.#flush = this.#file
      .flush()
      .catch((error: unknown) => {
        this.#problem ??= { error };
      })
      .finally(() => {
        this.#flush = undefined;
      });
  }

  async #drain(): Promise<void> {
    await this.settle();
    if (this.#problem !== undefined) throw this.#problem.error;
  }
}

/** Takes pages and keeps none: for checks. */
export const noPages: PageSink = {
  write: () => undefined,
  end: async () => undefined,
};
