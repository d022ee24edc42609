/**
 * The log of one database: what is committed to its WAL becomes a chain of batches, each one LTX file.
 *
 * One batch is open, those before it are closed and never change. A seal writes what is committed into the open batch's file,
 * or amends that file; the batch stays open. Closing one opens the next first, so that a commit which is answered meanwhile
 * names the next; when it lies in the closed one all the same, the next is owed, and written without pages if nothing else
 * comes. So every position that was given out becomes durable.
 */
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import { Failure } from "../../failure/failure.ts";
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import { LtxDecoder } from "../../ltx/decoder.ts";
import { encodeLtx, type LtxFileSummary } from "../../ltx/encoder.ts";
import type { LtxFileFacts } from "../../ltx/header.ts";
import { LtxFailure } from "../../ltx/ltx-failure.ts";
import type { PageSource } from "../../ltx/pages.ts";
import { sealedFileFacts } from "../../ltx/seal.ts";
import { frameHeaderBytes, walHeaderBytes } from "../../ltx/wal-format.ts";
import { readWalPages, scanWal, type WalCommits, type WalPosition } from "../../ltx/wal-reader.ts";
import { localStageFailure } from "../failures.ts";
import type { EngineLog } from "../options.ts";
import { amendedPages } from "./amend.ts";
import type { ClosedBatch, LogHead, LogSnapshot } from "./batch.ts";
import { CopyLock } from "./copy-lock.ts";
import { Image, readImageFacts } from "./image.ts";
import { isSealedTo, LogFolder, sealedEnd } from "./log-folder.ts";
import type { SealSlots } from "./seal-slots.ts";
import { openWal } from "./wal-file.ts";

/** What all logs share. */
export interface LogHost {
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  readonly slots: SealSlots;
}

export interface LogOptions {
  readonly id: string;
  /** `databases/<id>/log`; made at the first seal. */
  readonly folderPath: string;
  readonly head: LogHead;
  /** The highest position that was given out. */
  readonly position: bigint;
  /** The batch that the head was made at, when it came from another stage: 0 for a database that was made here. */
  readonly baseTxid: bigint;
  /** The batch up to which the remote stage is known to have everything. */
  readonly durableTxid: bigint;
  /** Whether batches are carried to a remote stage: files stay until they are released, and checkpoints need a seal. */
  readonly isCarried: boolean;
  /** The database cannot go on: its files could not be read, or a flush failed. Disk full is no such case. */
  readonly onFault: (problem: string, cause: unknown) => void;
}

/** A file below this is amended however little is new. */
const amendBytesMin = 256 * 1024;
/** A file is amended while it is not larger than this many times what is new: each byte is written about so many times. */
const amendFactor = 8;
const scanTriesMax = 4;

/** The open batch's file. */
interface OpenBatch {
  readonly byteCount: number;
}

export class DatabaseLog {
  readonly #host: LogHost;
  readonly #options: LogOptions;
  readonly #folder: LogFolder;
  readonly #copyLock = new CopyLock();
  readonly #holds = new Set<{ readonly txid: bigint }>();
  #head: LogHead;
  #loading: Promise<void> | undefined;
  #isLoaded = false;
  #isStopped = false;
  /** Everything that reads or writes the log, in order. */
  #tail: Promise<unknown> = Promise.resolve();
  /** A seal that has not begun: who asks now shares it. */
  #nextSeal: Promise<void> | undefined;
  #removals: Promise<void> = Promise.resolve();

  #position: bigint;
  #openTxid = 0n;
  #closedTxid = 0n;
  #isDirty = false;
  /** Those with a file, ascending. */
  #batches: ClosedBatch[] = [];
  #open: OpenBatch | undefined;
  /** Up to where the WAL is sealed; undefined: nothing of the present head's. */
  #end: WalPosition | undefined;
  /** Of the database after the newest file. */
  #pageSize = 0;
  #commit = 0;
  #timestampMs = 0;
  /** The next file has to hold the whole database. */
  #hasGap = false;
  #uploadedTxid: bigint;
  #baseTxid: bigint | undefined;
  #walFrames = 0;
  #sealedFrames = 0;
  #problem: Failure | undefined;

  constructor(host: LogHost, options: LogOptions) {
    this.#host = host;
    this.#options = options;
    this.#folder = new LogFolder(host.fileSystem, options.folderPath);
    this.#head = options.head;
    this.#position = options.position;
    this.#uploadedTxid = options.durableTxid;
    this.#baseTxid = options.head.isVolatile ? options.baseTxid : undefined;
  }

  /** The batch that commits go into now. Known when it is loaded, as all numbers. */
  get openTxid(): bigint {
    return this.#openTxid;
  }

  get closedTxid(): bigint {
    return this.#closedTxid;
  }

  /** The highest position that was given out. */
  get position(): bigint {
    return this.#position;
  }

  /** True while something was committed that no file holds. */
  get isDirty(): boolean {
    return this.#isDirty;
  }

  /** True while `close` would give a batch: commits, or positions that were given out, that no closed batch holds. */
  get hasOpen(): boolean {
    return this.#isDirty || this.#open !== undefined || this.#position > this.#closedTxid || this.#closedTxid === 0n;
  }

  /** Whether a checkpoint has to seal first; if not, what it copies may be missing in the log. */
  get mustSeal(): boolean {
    return this.#options.isCarried || this.#head.isVolatile;
  }

  /** Bytes on the local disk that only wait for their upload, frames of the WAL among them. */
  get unsyncedBytes(): number {
    if (!this.#options.isCarried) return 0;
    let bytes = this.#open?.byteCount ?? 0;
    for (const { txid, byteCount } of this.#batches) if (txid > this.#uploadedTxid) bytes += byteCount;
    const isRestarted = this.#walFrames < this.#sealedFrames;
    const frames = isRestarted ? this.#walFrames : this.#walFrames - this.#sealedFrames;
    return bytes + frames * (frameHeaderBytes + (this.#pageSize || defaultPageBytes));
  }

  /** Why the last seal failed for want of room; undefined when it did not. */
  get problem(): Failure | undefined {
    return this.#problem;
  }

  /** Looks at the folder; undefined when that was done. To be awaited before the first commit is sent. */
  load(): Promise<void> | undefined {
    if (this.#isLoaded) return undefined;
    this.#loading ??= this.#load().catch((error: unknown) => {
      this.#loading = undefined;
      throw localStageFailure(error);
    });
    return this.#loading;
  }

  /**
   * Something was committed, or may have been; `walFrames` are then in the WAL, if that is known. Returns the position that
   * covers it: the number of the open batch.
   */
  committed(walFrames: number | undefined): bigint {
    this.#isDirty = true;
    if (walFrames !== undefined) this.#walFrames = walFrames;
    if (this.#position < this.#openTxid) this.#position = this.#openTxid;
    return this.#position;
  }

  /**
   * Resolves when all that was committed before the call is in a file of the log, on the disk; the batch stays open. All who
   * ask before it begins share it. Rejects with STAGE_FULL, to be tried again, or after `onFault` was called.
   */
  seal(): Promise<void> {
    this.#nextSeal ??= this.#sealNext();
    return this.#nextSeal;
  }

  /**
   * Closes the open batch: everything that was answered with its number, or a lower one, is in closed batches then.
   * Undefined when there is nothing to close. After an unclean end several may be owed. Rejects as `seal` does.
   */
  close(): Promise<ClosedBatch | undefined> {
    return this.#run(async () => (this.hasOpen ? this.#close() : undefined));
  }

  /** Closed batches that the remote stage is not known to have, ascending. */
  pending(): readonly ClosedBatch[] {
    return this.#batches.filter(({ txid }) => txid > this.#uploadedTxid);
  }

  /** Closed batches that have a file, ascending. */
  files(): readonly ClosedBatch[] {
    return [...this.#batches];
  }

  /** The remote stage has everything up to `txid`. */
  release(txid: bigint): void {
    if (txid > this.#uploadedTxid) this.#uploadedTxid = txid;
    this.#prune();
  }

  /** The head is in memory, and its base on the disk has everything up to `txid`; undefined: there is no base. */
  setBase(txid: bigint | undefined): void {
    this.#baseTxid = txid;
    this.#prune();
  }

  /** Keeps the files of closed batches above `txid` until the result is called. */
  keepFrom(txid: bigint): () => void {
    const hold = { txid };
    this.#holds.add(hold);
    return () => {
      this.#holds.delete(hold);
      this.#prune();
    };
  }

  /** The state at the end of the last closed batch, which is closed for that if anything is new. Rejects as `seal` does. */
  snapshot(): Promise<LogSnapshot> {
    return this.#run(async () => {
      const letGo = await this.#copyLock.image();
      try {
        if (this.hasOpen) await this.#close();
        const { fileSystem } = this.#host;
        const image = await Image.open(fileSystem, this.#head.path, this.#end ?? "file", { turn });
        let isHeld = true;
        return {
          txid: this.#closedTxid,
          pageSize: image.pageSize,
          pageCount: image.pageCount,
          timestampMs: this.#timestampMs || this.#host.clock.wallMs(),
          pages: () => image.pages(),
          release: () => {
            if (!isHeld) return;
            isHeld = false;
            letGo();
            image.close().catch((error: unknown) => this.#warn("a file did not close", error));
          },
        };
      } catch (error) {
        letGo();
        throw error;
      }
    });
  }

  /** Runs what copies frames back into the database file; undefined when the file is being read, and must stay as it is. */
  copy<T>(run: () => Promise<T>): Promise<T> | undefined {
    return this.#copyLock.copy(run);
  }

  /** To be awaited before frames are copied back that were not sealed: the next file will hold the whole database. */
  skip(): Promise<void> | undefined {
    if (this.#hasGap || (this.#closedTxid === 0n && this.#open === undefined)) return undefined;
    return this.#run(async () => {
      await this.#folder.markGap();
      this.#hasGap = true;
    });
  }

  /**
   * The head is another file now, which holds exactly the closed batches, and whose WAL is new. Writes are paused, and
   * nothing is open.
   */
  rebase(head: LogHead): void {
    if (this.#isDirty || this.#open !== undefined) throw new Error("a head is switched at the end of a closed batch");
    this.#head = head;
    this.#end = undefined;
    this.#walFrames = 0;
    this.#sealedFrames = 0;
  }

  /** Waits for what is under way; everything that is asked for afterwards rejects. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#tail;
    await this.#removals;
  }

  async #load(): Promise<void> {
    const { fileSystem, log } = this.#host;
    const { baseTxid, id } = this.#options;
    const found = await this.#folder.read();
    for (const name of found.damaged) {
      log("error", "a file of a database's log was damaged and is put aside; the next one holds everything", {
        database: id,
        name,
      });
    }
    this.#batches = found.batches.map(({ txid, path, byteCount, header }) => {
      const { pageSize, commit, timestampMs } = header;
      return { txid, path, byteCount, pageSize, commit, timestampMs };
    });
    this.#hasGap = found.hasGap;
    this.#closedTxid = baseTxid;
    if (found.lastTxid > baseTxid) this.#closedTxid = found.lastTxid;
    this.#openTxid = this.#closedTxid + 1n;
    if (this.#position < this.#closedTxid) this.#position = this.#closedTxid;
    const newest = found.batches.at(-1);
    if (newest !== undefined && newest.txid >= this.#closedTxid) this.#followOn(newest.header);
    else if (newest !== undefined) this.#hasGap ||= found.lastTxid > newest.txid;
    const { path } = this.#head;
    const hasWal = fileSystem.sizeBytes(`${path}-wal`) > walHeaderBytes;
    this.#isDirty = hasWal && (this.#end === undefined || !(await isSealedTo(fileSystem, path, this.#end)));
    this.#isLoaded = true;
  }

  #followOn(header: LtxFileSummary["header"]): void {
    const { pageSize, commit, timestampMs } = header;
    this.#end = sealedEnd(header);
    this.#pageSize = pageSize;
    this.#commit = commit;
    this.#timestampMs = timestampMs;
    this.#sealedFrames = Math.max(
      0,
      Math.floor((this.#end.endOffset - walHeaderBytes) / (frameHeaderBytes + pageSize)),
    );
  }

  #sealNext(): Promise<void> {
    const begun = (): void => {
      this.#nextSeal = undefined;
    };
    const sealed = this.#run(async () => {
      begun();
      if (this.#isAmendable) await this.#write(false);
      else await this.#close();
    });
    sealed.catch(begun);
    return sealed;
  }

  /** Runs after everything that was asked for before. */
  #run<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#tail.then(async () => {
      if (this.#isStopped) throw new Failure("SHUTTING_DOWN");
      await this.load();
      try {
        const result = await work();
        this.#problem = undefined;
        return result;
      } catch (error) {
        throw this.#failed(error);
      }
    });
    this.#tail = run.catch(() => undefined);
    return run;
  }

  #failed(error: unknown): unknown {
    // What was scanned may be in no file.
    this.#isDirty = true;
    if (error instanceof Failure && error.reason === "STAGE_FULL") {
      this.#problem = error;
      return error;
    }
    const failure = localStageFailure(error);
    if (failure.reason === "STAGE_FULL") {
      this.#problem = failure;
      return failure;
    }
    this.#options.onFault("its log could not be written", error);
    return error;
  }

  /** Whether what is new may go into the open batch's file without writing much of it again and again. */
  get #isAmendable(): boolean {
    const { batchBytesMax } = this.#host.slots.limits;
    const newBytes = Math.abs(this.#walFrames - this.#sealedFrames) * this.#pageSize;
    const bytesMax = Math.min(batchBytesMax, Math.max(amendBytesMin, amendFactor * newBytes));
    return this.#open === undefined || this.#open.byteCount < bytesMax;
  }

  async #close(): Promise<ClosedBatch> {
    const txid = this.#closedTxid + 1n;
    const { failPoints } = this.#host;
    this.#openTxid = txid + 1n;
    failPoints.reach("batch.opened");
    try {
      await this.#write(true);
    } catch (error) {
      // Commits that were answered with the next number are in this batch then, and the next is owed.
      this.#openTxid = txid;
      throw error;
    }
    const batch = {
      txid,
      path: this.#folder.batchPath(txid),
      byteCount: this.#open?.byteCount ?? 0,
      pageSize: this.#pageSize,
      commit: this.#commit,
      timestampMs: this.#timestampMs,
    };
    this.#open = undefined;
    this.#closedTxid = txid;
    if (this.#position < txid) this.#position = txid;
    this.#batches.push(batch);
    failPoints.reach("batch.closed");
    this.#prune();
    return batch;
  }

  /** Writes what is new into the open batch's file. `isNeeded`: also when nothing is new, if the batch has no file. */
  #write(isNeeded: boolean): Promise<void> {
    return this.#host.slots.run(async () => {
      this.#isDirty = false;
      for (let tries = 1; ; tries++) {
        try {
          await this.#writeOnce(isNeeded);
          return;
        } catch (error) {
          const isRestart = error instanceof LtxFailure && error.problem === "wal";
          if (!isRestart || tries === scanTriesMax) throw error;
        }
      }
    });
  }

  async #writeOnce(isNeeded: boolean): Promise<void> {
    const isFirst = this.#closedTxid === 0n && this.#open === undefined;
    if (isFirst || this.#hasGap) {
      await this.#writeWhole();
      return;
    }
    const { fileSystem } = this.#host;
    const wal = await openWal(fileSystem, this.#head.path);
    try {
      // What is committed now lies in what there is now: a writer that is faster than the scan is not followed.
      const endOffsetMax = fileSystem.sizeBytes(`${this.#head.path}-wal`);
      const scan = await scanWal(wal, this.#end, { turn, frameCountMax: Number.POSITIVE_INFINITY, endOffsetMax });
      this.#host.failPoints.reach("seal.scanned");
      if (scan.kind === "nothing") {
        if (isNeeded && this.#open === undefined) await this.#writeEmpty();
        return;
      }
      if (scan.kind === "lost") {
        this.#warn("frames of a WAL are gone that no file holds; the next file holds the whole database", scan.reason);
        await this.#writeWhole();
        return;
      }
      if (this.#commit === 0) await this.#readFacts();
      const last = { txid: this.#closedTxid, commit: this.#commit, pageSize: this.#pageSize };
      const facts = sealedFileFacts(scan, last, this.#now());
      if (facts === undefined) {
        this.#warn("a WAL does not follow what was sealed; the next file holds the whole database", undefined);
        await this.#writeWhole();
      } else if (this.#open === undefined) await this.#writeFile(facts, readWalPages(wal, scan), scan);
      else await this.#amend(facts, scan, readWalPages(wal, scan));
    } finally {
      await wal.close();
    }
  }

  async #writeWhole(): Promise<void> {
    const letGo = await this.#copyLock.image();
    try {
      const { fileSystem, failPoints } = this.#host;
      const endOffsetMax = fileSystem.sizeBytes(`${this.#head.path}-wal`);
      const image = await Image.open(fileSystem, this.#head.path, "wal", { turn, endOffsetMax });
      failPoints.reach("seal.scanned");
      try {
        const { pageSize, pageCount, commits } = image;
        const range = commits ?? noWal;
        await this.#writeFile(this.#facts(pageSize, pageCount, range), image.pages(), commits);
      } finally {
        await image.close();
      }
    } finally {
      letGo();
    }
    if (!this.#hasGap) return;
    await this.#folder.closeGap();
    this.#hasGap = false;
  }

  /** For a batch that is owed: a file that changes nothing. */
  async #writeEmpty(): Promise<void> {
    if (this.#commit === 0) await this.#readFacts();
    const end = this.#end;
    const range = end === undefined ? noWal : { ...end, startOffset: end.endOffset };
    await this.#writeFile(this.#facts(this.#pageSize, this.#commit, range), [], undefined);
  }

  /** Of the head as it came here: nothing was copied back into it before it was sealed. */
  async #readFacts(): Promise<void> {
    const file = await this.#host.fileSystem.openFile(this.#head.path, "read");
    try {
      const { pageSize, pageCount } = await readImageFacts(file);
      this.#pageSize = pageSize;
      this.#commit = pageCount;
    } finally {
      await file.close();
    }
  }

  #facts(pageSize: number, commit: number, range: WalRangeOf): LtxFileFacts {
    const txid = this.#closedTxid + 1n;
    const { startOffset, endOffset, walSalt1, walSalt2 } = range;
    return {
      pageSize,
      commit,
      minTxid: txid,
      maxTxid: txid,
      timestampMs: this.#now(),
      walOffset: startOffset,
      walBytes: endOffset - startOffset,
      walSalt1,
      walSalt2,
    };
  }

  /** A time of a file never lies before that of the one before. */
  #now(): number {
    return Math.max(this.#timestampMs, this.#host.clock.wallMs());
  }

  async #amend(facts: LtxFileFacts, commits: WalCommits, pages: PageSource): Promise<void> {
    const { fileSystem } = this.#host;
    const file = await fileSystem.openFile(this.#folder.batchPath(facts.maxTxid), "read");
    try {
      const before = await LtxDecoder.open(chunksOf(file));
      // The range goes on where it began, unless the WAL has started over since.
      const isSameLife = before.header.walSalt1 === facts.walSalt1 && before.header.walSalt2 === facts.walSalt2;
      const walOffset = isSameLife ? before.header.walOffset : walHeaderBytes;
      const amended = { ...facts, walOffset, walBytes: commits.endOffset - walOffset };
      const pageNumberMax = Math.min(before.header.commit, commits.commitMin, commits.commit);
      await this.#writeFile(amended, amendedPages(before, pageNumberMax, pages), commits);
    } finally {
      await file.close();
    }
  }

  /** Writes the open batch's file, in place of an earlier one. On the disk when it resolves. */
  async #writeFile(facts: LtxFileFacts, pages: PageSource, commits: WalCommits | undefined): Promise<void> {
    const { fileSystem, failPoints, slots } = this.#host;
    const txid = facts.maxTxid;
    await this.#folder.make();
    const pageCountMax = commits === undefined || this.#closedTxid === 0n ? facts.commit : commits.frames.size;
    await slots.requireRoom(this.#folder.path, pageCountMax * facts.pageSize + (this.#open?.byteCount ?? 0));
    const temporaryPath = this.#folder.temporaryPath(txid);
    // The WAL first: a log that is ahead of its database after a loss of power would fork.
    // Without commits there is nothing new in it, and there may be none.
    const flushed = this.#head.isVolatile || commits === undefined ? Promise.resolve() : this.#head.flush();
    flushed.catch(() => undefined);
    try {
      const summary = await writeChunks(fileSystem, temporaryPath, encodeLtx(facts, pages, { turn }));
      await flushed;
      failPoints.reach("seal.written");
      await fileSystem.rename(temporaryPath, this.#folder.batchPath(txid));
      failPoints.reach("seal.named");
      await fileSystem.flushFolder(this.#folder.path);
      this.#open = { byteCount: summary.byteCount };
      this.#followOn(summary.header);
      slots.count();
      failPoints.reach("seal.end");
    } catch (error) {
      await flushed.catch(() => undefined);
      await fileSystem.remove(temporaryPath).catch(() => undefined);
      throw error;
    }
  }

  /** Removes files that nobody needs, one after another; the newest stays. */
  #prune(): void {
    const removable = this.#batches.slice(0, -1).filter(({ txid }) => !this.#isNeeded(txid));
    if (removable.length === 0) return;
    this.#batches = this.#batches.filter((batch) => !removable.includes(batch));
    const { fileSystem, failPoints } = this.#host;
    this.#removals = this.#removals.then(async () => {
      for (const { path } of removable) {
        failPoints.reach("batch.release.begin");
        try {
          await fileSystem.remove(path);
        } catch (error) {
          this.#warn("a file of the log could not be removed; the next start tries again", error);
        }
        failPoints.reach("batch.release.end");
      }
    });
  }

  #isNeeded(txid: bigint): boolean {
    if (this.#options.isCarried && txid > this.#uploadedTxid) return true;
    if (this.#baseTxid !== undefined && txid > this.#baseTxid) return true;
    for (const hold of this.#holds) if (txid > hold.txid) return true;
    return false;
  }

  #warn(message: string, error: unknown): void {
    this.#host.log("warn", message, { database: this.#options.id, ...(error === undefined ? {} : { error }) });
  }
}

type WalRangeOf = WalPosition & { readonly startOffset: number };

/** What Litestream takes as "not from a WAL". */
const noWal: WalRangeOf = { walSalt1: 0, walSalt2: 0, startOffset: walHeaderBytes, endOffset: walHeaderBytes };

/** Until the page size is known. */
const defaultPageBytes = 4096;
const readBytes = 256 * 1024;

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function* chunksOf(file: OpenFile): AsyncGenerator<Buffer, void, undefined> {
  for (let offset = 0; ; offset += readBytes) {
    const chunk = await file.read(offset, readBytes);
    if (chunk.length > 0) yield chunk;
    if (chunk.length < readBytes) return;
  }
}

/** Writes a new file and flushes it. */
async function writeChunks(
  fileSystem: FileSystem,
  path: string,
  chunks: AsyncGenerator<Buffer, LtxFileSummary, undefined>,
): Promise<LtxFileSummary> {
  const file = await fileSystem.openFile(path, "make");
  try {
    let offset = 0;
    for (let next = await chunks.next(); ; next = await chunks.next()) {
      if (next.done === true) {
        await file.flush();
        return next.value;
      }
      await file.write(offset, next.value);
      offset += next.value.length;
    }
  } finally {
    await file.close();
  }
}
