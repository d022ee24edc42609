/**
 * Group commit: WALs are flushed by the server's own descriptors, off the event loop. One flush at a time per WAL; who
 * arrives while one runs waits for the next, together with all others. No delay is added to gather more. When several WALs
 * are flushed at one time, what they gained goes into the redo log together.
 */
import { dirname } from "node:path";
import type { Clock } from "../clock.ts";
import type { FailPoints } from "../fail-points.ts";
import type { FileSystem } from "../files/file-system.ts";
import { isPageSize } from "../ltx/pages.ts";
import type { RedoLog, RedoWal } from "../ltx/redo-log.ts";
import { frameHeaderBytes, type WalSalts, walHeaderBytes } from "../ltx/wal-format.ts";
import type { Redo } from "./log/redo.ts";
import type { EngineLimits } from "./options.ts";

type FlusherLimits = Pick<EngineLimits, "flushConcurrencyMax" | "flushDescriptorCountMax" | "flushDescriptorIdleMs">;

/** The WAL of one database, as the flusher sees it. */
export interface WalFile {
  /**
   * Resolves when everything written to the WAL before the call is on the disk; with `walFrames`, when the commits up to
   * that frame are. After a rejection the WAL is never flushed again: all later calls reject with the same error.
   */
  flush(walFrames?: number): Promise<void>;
  /**
   * To be awaited before frames are copied back: what the redo log has of an earlier life of the WAL must not come back.
   * Rejects when that cannot be made sure, and then nothing may be copied.
   */
  beforeCopy(): Promise<void>;
  /**
   * To be awaited before the WAL is truncated or removed: everything in it was copied back, or is not needed, and nothing is
   * written. Rejects as `beforeCopy`.
   */
  forget(): Promise<void>;
  /** Waits for a flush that runs and lets go of the descriptor; the next flush opens it again. */
  release(): Promise<void>;
}

/** Above this many, lives that the redo log holds nothing of are forgotten. */
const livesMax = 1_000;

/** Makes WAL files and bounds what they use together. */
export class Flusher {
  readonly fileSystem: FileSystem;
  readonly failPoints: FailPoints;
  readonly #redo: Redo | undefined;
  readonly #clock: Clock;
  readonly #limits: FlusherLimits;
  /** Those with a descriptor, least recently flushed first. */
  readonly #open = new Set<Wal>();
  readonly #waiting: (() => void)[] = [];
  /** Of each WAL the life that was logged last, by its key, longer than its database is open. */
  readonly #lives = new Map<string, WalSalts>();
  #running = 0;
  #flushes = 0;

  /** Without a redo log every WAL is flushed by itself. */
  constructor(fileSystem: FileSystem, clock: Clock, limits: FlusherLimits, failPoints: FailPoints, redo?: Redo) {
    this.fileSystem = fileSystem;
    this.failPoints = failPoints;
    this.#redo = redo;
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

  /** The WAL beside a database file; `redoKey` names it in the redo log, which is not for files in memory. */
  wal(databasePath: string, redoKey: string | undefined): WalFile {
    return new Wal(this, `${databasePath}-wal`, redoKey);
  }

  /** After the last flush. */
  async close(): Promise<void> {
    await this.#redo?.close();
  }

  /** For WALs only: undefined while there is none. */
  get redo(): RedoLog | undefined {
    return this.#redo?.log;
  }

  /** To be called about once a second: lets go of descriptors that nobody used for a while. */
  tidy(): void {
    const before = this.#clock.now() - this.#limits.flushDescriptorIdleMs;
    for (const wal of this.#open) {
      if (wal.flushedAtMs > before) break;
      if (!wal.isBusy) this.#close(wal);
    }
    const { redo } = this;
    for (const key of this.#lives.keys()) {
      if (this.#lives.size <= livesMax) break;
      if (redo?.holds(key) !== true) this.#lives.delete(key);
    }
  }

  /** For WALs only: takes one of the places for flushes, or a promise of it. */
  enter(): Promise<void> | undefined {
    if (this.#running > 0) this.#redo?.begin();
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
    this.#touch(wal);
    if (this.#open.size <= this.#limits.flushDescriptorCountMax) return;
    for (const other of this.#open) {
      if (other.isBusy || other === wal) continue;
      this.#close(other);
      return;
    }
  }

  /** For WALs only. */
  closed(wal: Wal, redoKey: string | undefined): void {
    this.#open.delete(wal);
    if (redoKey !== undefined) this.redo?.release(redoKey);
  }

  /** For WALs only: the redo log gets what this life of `wal` has gained. */
  logged(wal: Wal, redoKey: string, life: WalSalts): void {
    this.#lives.set(redoKey, life);
    this.#touch(wal);
  }

  /** For WALs only: the life that the redo log may have records of. */
  loggedLife(redoKey: string): WalSalts | undefined {
    return this.#lives.get(redoKey);
  }

  /**
   * What the redo log has of a database's WAL must not come back: the WAL is about to be truncated or removed, and nothing is
   * written to it. Rejects when that cannot be made sure: then it has to stay.
   */
  async forgetLife(redoKey: string): Promise<void> {
    const life = this.#lives.get(redoKey);
    if (life === undefined || this.redo === undefined) return;
    await this.redo.forget(redoKey, life);
    this.failPoints.reach("redo.forgotten");
    if (this.#lives.get(redoKey) === life) this.#lives.delete(redoKey);
  }

  #touch(wal: Wal): void {
    wal.flushedAtMs = this.#clock.now();
    this.#open.delete(wal);
    this.#open.add(wal);
  }

  #close(wal: Wal): void {
    this.#open.delete(wal);
    wal.closeDescriptor();
  }
}

class Wal implements WalFile, RedoWal {
  flushedAtMs = 0;
  readonly #flusher: Flusher;
  readonly #path: string;
  readonly #redoKey: string | undefined;
  #descriptor: number | undefined;
  #frameBytes = 0;
  #failure: Error | undefined;
  /** Something was committed to it: it has to be there. */
  #isWritten = false;
  /** All who wait for the next flush; taken the moment it begins. */
  #pending: PromiseWithResolvers<void> | undefined;
  /** Ends when there is nobody left to flush for. */
  #work: Promise<void> | undefined;

  constructor(flusher: Flusher, path: string, redoKey: string | undefined) {
    this.#flusher = flusher;
    this.#path = path;
    this.#redoKey = redoKey;
  }

  get isBusy(): boolean {
    return this.#work !== undefined;
  }

  get key(): string {
    return this.#redoKey ?? "";
  }

  get frameBytes(): number {
    return this.#frameBytes;
  }

  flush(walFrames?: number): Promise<void> {
    const { redo } = this.#flusher;
    this.#isWritten ||= walFrames !== undefined && walFrames > 0;
    if (redo === undefined || walFrames === undefined || walFrames === 0) return this.#flushFile();
    if (this.#redoKey === undefined) return this.#flushFile();
    return this.#flushByRedo(redo, walFrames) ?? this.#flushFile();
  }

  async beforeCopy(): Promise<void> {
    if (this.#redoKey === undefined) return;
    if (this.#flusher.loggedLife(this.#redoKey) === undefined) return;
    const life = (await this.#open()) === undefined ? undefined : this.#life();
    // Looked at after the wait: what is forgotten must not be the life that a commit has just begun to log.
    const logged = this.#flusher.loggedLife(this.#redoKey);
    if (logged === undefined) return;
    // While it goes on, a replay gives no more than it has.
    if (life === undefined || !hasSalts(life, logged)) await this.#flusher.forgetLife(this.#redoKey);
  }

  async forget(): Promise<void> {
    if (this.#redoKey !== undefined) await this.#flusher.forgetLife(this.#redoKey);
  }

  /** For the redo log. */
  read(offset: number, target: Uint8Array): number {
    if (this.#descriptor === undefined) throw new Error("the WAL is not open");
    return this.#flusher.fileSystem.readNow(this.#descriptor, offset, target);
  }

  async release(): Promise<void> {
    while (this.#work !== undefined) await this.#work;
    this.#flusher.closed(this, this.#redoKey);
    this.closeDescriptor();
  }

  closeDescriptor(): void {
    if (this.#descriptor === undefined) return;
    this.#flusher.fileSystem.close(this.#descriptor);
    this.#descriptor = undefined;
  }

  /** Undefined when the WAL has to be flushed itself. */
  #flushByRedo(redo: RedoLog, walFrames: number): Promise<void> | undefined {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    // With its first flush it is opened, and its name goes to the disk.
    if (this.#descriptor === undefined) return undefined;
    const life = this.#life();
    if (life === undefined) return undefined;
    this.#flusher.logged(this, this.#redoKey as string, life);
    const endOffset = walHeaderBytes + walFrames * this.#frameBytes;
    return redo.commit(this, { ...life, endOffset });
  }

  /** What the header on the disk, or on its way there, says. */
  #life(): WalSalts | undefined {
    if (this.read(0, headerBytes) < walHeaderBytes) return undefined;
    const pageSize = headerBytes.readUInt32BE(8);
    if (!isPageSize(pageSize)) return undefined;
    this.#frameBytes = frameHeaderBytes + pageSize;
    return { walSalt1: headerBytes.readUInt32BE(16), walSalt2: headerBytes.readUInt32BE(20) };
  }

  #flushFile(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    this.#pending ??= Promise.withResolvers();
    const { promise } = this.#pending;
    this.#work ??= this.#run();
    return promise;
  }

  async #run(): Promise<void> {
    const flusher = this.#flusher;
    while (this.#pending !== undefined) {
      const place = flusher.enter();
      if (place !== undefined) await place;
      let batch = this.#pending;
      try {
        const descriptor = await this.#open();
        batch = this.#pending;
        this.#pending = undefined;
        if (descriptor !== undefined) {
          flusher.failPoints.reach("wal.flush.begin");
          await flusher.fileSystem.flush(descriptor);
          flusher.failPoints.reach("wal.flush.end");
          flusher.used(this);
        }
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

  /** Undefined for a database that has no WAL, because nothing was ever written to it. */
  async #open(): Promise<number | undefined> {
    const { fileSystem } = this.#flusher;
    if (this.#descriptor !== undefined && !fileSystem.isLinked(this.#descriptor)) this.closeDescriptor();
    if (this.#descriptor === undefined) {
      try {
        this.#descriptor = await fileSystem.openForFlush(this.#path);
      } catch (error) {
        if (this.#isWritten || (error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
        return undefined;
      }
      this.#isWritten = true;
      // The file may be as new as its first frame: its name has to be on the disk too.
      await fileSystem.flushFolder(dirname(this.#path));
    }
    return this.#descriptor;
  }
}

const headerBytes = Buffer.alloc(walHeaderBytes);

function hasSalts(a: WalSalts, b: WalSalts): boolean {
  return a.walSalt1 === b.walSalt1 && a.walSalt2 === b.walSalt2;
}
