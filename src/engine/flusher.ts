/**
 * Group commit: WALs are flushed by the server's own descriptors, off the event loop. One flush at a time per WAL; who
 * arrives while one runs waits for the next, together with all others. No delay is added to gather more.
 */
import { dirname } from "node:path";
import type { Clock } from "../clock.ts";
import type { FileSystem } from "./file-system.ts";
import type { EngineLimits } from "./options.ts";

type FlusherLimits = Pick<EngineLimits, "flushConcurrencyMax" | "flushDescriptorCountMax" | "flushDescriptorIdleMs">;

/** The WAL of one database, as the flusher sees it. */
export interface WalFile {
  /**
   * Resolves when everything written to the WAL before the call is on the disk. After a rejection the WAL is never
   * flushed again: all later calls reject with the same error.
   */
  flush(): Promise<void>;
  /** Waits for a flush that runs and lets go of the descriptor; the next flush opens it again. */
  release(): Promise<void>;
}

/** Makes WAL files and bounds what they use together. */
export class Flusher {
  readonly fileSystem: FileSystem;
  readonly #clock: Clock;
  readonly #limits: FlusherLimits;
  /** Those with a descriptor, least recently flushed first. */
  readonly #open = new Set<Wal>();
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #flushes = 0;

  constructor(fileSystem: FileSystem, clock: Clock, limits: FlusherLimits) {
    this.fileSystem = fileSystem;
    this.#clock = clock;
    this.#limits = limits;
  }

  /** Flushes done. */
  get flushes(): number {
    return this.#flushes;
  }

  /** Descriptors held. */
  get openDescriptors(): number {
    return this.#open.size;
  }

  /** The WAL beside a database file. */
  wal(databasePath: string): WalFile {
    return new Wal(this, `${databasePath}-wal`);
  }

  /** To be called about once a second: lets go of descriptors that nobody used for a while. */
  tidy(): void {
    const before = this.#clock.now() - this.#limits.flushDescriptorIdleMs;
    for (const wal of this.#open) {
      if (wal.flushedAtMs > before) break;
      if (!wal.isBusy) this.#close(wal);
    }
  }

  /** For WALs only: takes one of the places for flushes, or a promise of it. */
  enter(): Promise<void> | undefined {
    if (this.#running < this.#limits.flushConcurrencyMax) {
      this.#running++;
      return undefined;
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** For WALs only: gives the place on. */
  leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#running--;
    else next();
  }

  /** For WALs only: `wal` has flushed with its descriptor. */
  used(wal: Wal): void {
    this.#flushes++;
    wal.flushedAtMs = this.#clock.now();
    this.#open.delete(wal);
    this.#open.add(wal);
    if (this.#open.size <= this.#limits.flushDescriptorCountMax) return;
    for (const other of this.#open) {
      if (other.isBusy || other === wal) continue;
      this.#close(other);
      return;
    }
  }

  /** For WALs only. */
  forget(wal: Wal): void {
    this.#open.delete(wal);
  }

  #close(wal: Wal): void {
    this.#open.delete(wal);
    wal.closeDescriptor();
  }
}

class Wal implements WalFile {
  flushedAtMs = 0;
  readonly #flusher: Flusher;
  readonly #path: string;
  #descriptor: number | undefined;
  #failure: Error | undefined;
  /** All who wait for the next flush; taken the moment it begins. */
  #pending: PromiseWithResolvers<void> | undefined;
  /** Ends when there is nobody left to flush for. */
  #work: Promise<void> | undefined;

  constructor(flusher: Flusher, path: string) {
    this.#flusher = flusher;
    this.#path = path;
  }

  get isBusy(): boolean {
    return this.#work !== undefined;
  }

  flush(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    this.#pending ??= Promise.withResolvers();
    const { promise } = this.#pending;
    this.#work ??= this.#run();
    return promise;
  }

  async release(): Promise<void> {
    while (this.#work !== undefined) await this.#work;
    this.#flusher.forget(this);
    this.closeDescriptor();
  }

  closeDescriptor(): void {
    if (this.#descriptor === undefined) return;
    this.#flusher.fileSystem.close(this.#descriptor);
    this.#descriptor = undefined;
  }

  async #run(): Promise<void> {
    const flusher = this.#flusher;
    while (this.#pending !== undefined) {
      const place = flusher.enter();
      if (place !== undefined) await place;
      let batch = this.#pending;
      try {
        const descriptor = await this.#openDescriptor();
        batch = this.#pending;
        this.#pending = undefined;
        await flusher.fileSystem.flush(descriptor);
        flusher.used(this);
        batch.resolve();
      } catch (error) {
        this.#failure = error as Error;
        batch.reject(error);
        this.#rejectPending(batch, error);
      } finally {
        flusher.leave();
      }
    }
    this.#work = undefined;
  }

  /** Those who came while the flush that failed was running are not flushed for any more. */
  #rejectPending(batch: PromiseWithResolvers<void>, error: unknown): void {
    if (this.#pending !== undefined && this.#pending !== batch) this.#pending.reject(error);
    this.#pending = undefined;
  }

  async #openDescriptor(): Promise<number> {
    const { fileSystem } = this.#flusher;
    if (this.#descriptor !== undefined && !fileSystem.isLinked(this.#descriptor)) this.closeDescriptor();
    if (this.#descriptor === undefined) {
      this.#descriptor = await fileSystem.openForFlush(this.#path);
      // The file may be as new as its first frame: its name has to be on the disk too.
      await fileSystem.flushFolder(dirname(this.#path));
    }
    return this.#descriptor;
  }
}
