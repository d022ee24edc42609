/**
 * The log of one database: what is committed to its WAL becomes a chain of batches, each one LTX file.
 *
 * One batch is open, those before it are closed and never change. A seal writes what is committed as a part of the open
 * batch, which stays open. Closing one opens the next first, so that a commit which is answered meanwhile names the next; when
 * it lies in the closed one all the same, the next is owed, and written without pages if nothing else comes. So every position
 * that was given out becomes durable. Then the parts become the batch's file.
 *
 * Seals, and the first step of closing, run one after another and take as long as what is new is large. Merging parts takes
 * as long as the batch is large, and runs beside them: writes may be held back until a seal is over.
 */
import type { Clock } from "../../clock.ts";
import type { FailPoints } from "../../fail-points.ts";
import { Failure } from "../../failure/failure.ts";
import type { FileSystem } from "../../files/file-system.ts";
import type { LtxFileFacts, LtxHeader } from "../../ltx/header.ts";
import { LtxFailure } from "../../ltx/ltx-failure.ts";
import type { Page, PageSource } from "../../ltx/pages.ts";
import { sealedFileFacts } from "../../ltx/seal.ts";
import { frameHeaderBytes, walHeaderBytes } from "../../ltx/wal-format.ts";
import { readWalPages, scanWal, type WalCommits, type WalPosition } from "../../ltx/wal-reader.ts";
import { localStageFailure } from "../failures.ts";
import type { EngineLog } from "../options.ts";
import type { ClosedBatch, LogHead, LogSnapshot } from "./batch.ts";
import { CopyLock } from "./copy-lock.ts";
import { Image, readImageFacts } from "./image.ts";
import { isSealedTo, LogFolder, type OpenBatch, sealedEnd } from "./log-folder.ts";
import { type Part, partTxid, turn, writeLtx } from "./parts.ts";
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

/** Above this many parts of a batch the newest are merged. */
const partCountMax = 8;
const scanTriesMax = 4;

/** A batch that takes nothing more, and has no file of its own yet. */
interface ClosingBatch {
  readonly txid: bigint;
  readonly parts: Part[];
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
  /** Everything that reads the WAL or adds a part, in order. */
  #tail: Promise<unknown> = Promise.resolve();
  /** Everything that closes a batch, in order. */
  #closingTail: Promise<unknown> = Promise.resolve();
  #merging: Promise<void> | undefined;
  /** A seal that has not begun: who asks now shares it. */
  #nextSeal: Promise<void> | undefined;
  #removals: Promise<void> = Promise.resolve();

  #position: bigint;
  #openTxid = 0n;
  #closedTxid = 0n;
  /** The batch that parts are added to. */
  #partTxid = 0n;
  #parts: Part[] = [];
  /** Grows with every part. */
  #partIndex = 0;
  #closing: ClosingBatch | undefined;
  #isDirty = false;
  /** Those with a file, ascending. */
  #batches: ClosedBatch[] = [];
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
  /** What is answered to whoever wants the head's file, which is damaged. */
  #damage: Failure | undefined;
  /** A sound file of the state after the last closed batch, where no batch tells its size. */
  #soundPath: string | undefined;

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
    return this.#isDirty || this.#hasParts || this.#position > this.#closedTxid || this.#closedTxid === 0n;
  }

  /** Whether a checkpoint has to seal first; if not, what it copies may be missing in the log. */
  get mustSeal(): boolean {
    return this.#options.isCarried || this.#head.isVolatile;
  }

  /** Bytes on the local disk that only wait for their upload, frames of the WAL among them. */
  get unsyncedBytes(): number {
    if (!this.#options.isCarried) return 0;
    let bytes = bytesOf(this.#parts) + bytesOf(this.#closing?.parts ?? []);
    for (const { txid, byteCount } of this.#batches) if (txid > this.#uploadedTxid) bytes += byteCount;
    const isRestarted = this.#walFrames < this.#sealedFrames;
    const frames = isRestarted ? this.#walFrames : this.#walFrames - this.#sealedFrames;
    return bytes + frames * (frameHeaderBytes + (this.#pageSize || defaultPageBytes));
  }

  /** Why the last seal failed for want of room; undefined when it did not. */
  get problem(): Failure | undefined {
    return this.#problem;
  }

  /** True when the next file has to hold the whole database. Known when it is loaded. */
  get needsFile(): boolean {
    return (this.#closedTxid === 0n && !this.#hasParts) || this.#hasGap;
  }

  /**
   * The head's file is damaged: until the next head nothing is read from it. Batches of the WAL's frames go on; what needs the
   * file (`snapshot`, a file of the whole database) rejects with DATA_CORRUPT.
   */
  distrustFile(): void {
    this.#damage ??= new Failure("DATA_CORRUPT", {
      database: this.#options.id,
      stage: this.#head.isVolatile ? "memory" : "local",
      sqliteMessage: "the file is damaged, and what was asked for would have to be made from it",
    });
  }

  /** Where the head's file is damaged: one that holds the state after the last closed batch. */
  setSoundFile(path: string | undefined): void {
    this.#soundPath = path;
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
    return this.#inClosingTurn(async () => {
      // One whose parts could not be merged is first.
      if (this.#closing === undefined) await this.#run(async () => (this.hasOpen ? this.#freeze() : undefined));
      return this.#finish();
    });
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
    return this.#inClosingTurn(async () => {
      this.#requireSound();
      if (this.#closing !== undefined) await this.#finish();
      const letGo = await this.#copyLock.image();
      let image: Image | undefined;
      try {
        // What it holds ends where the batch does: nothing is sealed between the two.
        const taken = await this.#run(async () => {
          if (this.hasOpen) await this.#freeze();
          const { fileSystem } = this.#host;
          image = await Image.open(fileSystem, this.#head.path, this.#end ?? "file", { turn });
          const timestampMs = this.#timestampMs || this.#host.clock.wallMs();
          return { image, txid: this.#partTxid - 1n, timestampMs };
        });
        await this.#finish();
        return this.#snapshotOf(taken.image, taken.txid, taken.timestampMs, letGo);
      } catch (error) {
        await image?.close();
        letGo();
        throw error;
      }
    });
  }

  #snapshotOf(image: Image, txid: bigint, timestampMs: number, letGo: () => void): LogSnapshot {
    let isHeld = true;
    return {
      txid,
      pageSize: image.pageSize,
      pageCount: image.pageCount,
      timestampMs,
      pages: () => this.#soundPages(image),
      release: () => {
        if (!isHeld) return;
        isHeld = false;
        letGo();
        image.close().catch((error: unknown) => this.#warn("a file did not close", error));
      },
    };
  }

  /** Runs what copies frames back into the database file; undefined when the file is being read, and must stay as it is. */
  copy<T>(run: () => Promise<T>): Promise<T> | undefined {
    return this.#copyLock.copy(run);
  }

  /** To be awaited before frames are copied back that were not sealed: the next file will hold the whole database. */
  skip(): Promise<void> | undefined {
    if (this.#hasGap || (this.#closedTxid === 0n && !this.#hasParts)) return undefined;
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
    if (this.#isDirty || this.#hasParts) throw new Error("a head is switched at the end of a closed batch");
    this.#head = head;
    this.#damage = undefined;
    this.#soundPath = undefined;
    this.#end = undefined;
    this.#walFrames = 0;
    this.#sealedFrames = 0;
  }

  /** Waits for what is under way; everything that is asked for afterwards rejects. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#closingTail;
    await this.#tail;
    await this.#merging;
    await this.#removals;
  }

  async #load(): Promise<void> {
    const { fileSystem, log } = this.#host;
    const { baseTxid, id } = this.#options;
    const { path } = this.#head;
    const hasWal = fileSystem.sizeBytes(`${path}-wal`) > walHeaderBytes;
    // What the WAL has besides its parts may have been answered with the number of the open batch: it belongs to it.
    const found = await this.#folder.read(
      async (txid, end) => txid > baseTxid && hasWal && !(await isSealedTo(fileSystem, path, end)),
    );
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
    this.#partTxid = this.#openTxid;
    if (this.#position < this.#closedTxid) this.#position = this.#closedTxid;
    const newest = found.batches.at(-1);
    if (newest !== undefined && newest.txid >= this.#closedTxid) this.#followOn(newest.header);
    else if (newest !== undefined) this.#hasGap ||= found.lastTxid > newest.txid;
    if (found.open !== undefined) this.#goOnWith(found.open);
    this.#isDirty = hasWal && (this.#end === undefined || !(await isSealedTo(fileSystem, path, this.#end)));
    this.#isLoaded = true;
  }

  #goOnWith({ txid, part, nextIndex }: OpenBatch): void {
    this.#closedTxid = txid - 1n;
    this.#openTxid = txid;
    this.#partTxid = txid;
    this.#parts = [part];
    this.#partIndex = nextIndex;
    this.#followOn(part.header);
  }

  #followOn(header: LtxHeader): void {
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
      await this.#write(this.#folder.partPath(this.#partTxid, this.#partIndex), false);
      this.#tidyParts();
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
        return await this.#writing(work);
      } catch (error) {
        // What was scanned may be in no file.
        this.#isDirty = true;
        throw error;
      }
    });
    // Whoever asked for it is told; the next one has its turn all the same.
    this.#tail = run.catch(() => undefined);
    return run;
  }

  /** A WAL whose flush failed is never flushed again, also when the disk was only full: nothing more can be sealed. */
  async #flushHead(): Promise<void> {
    try {
      await this.#head.flush();
    } catch (error) {
      // Of other failures it is told like of any other.
      if (localStageFailure(error).reason === "STAGE_FULL") this.#options.onFault("a flush of its log failed", error);
      throw error;
    }
  }

  /** Runs what writes to the folder, and notes how it ended. */
  async #writing<T>(work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      this.#problem = undefined;
      return result;
    } catch (error) {
      throw this.#failed(error);
    }
  }

  #requireSound(): void {
    if (this.#damage !== undefined) throw this.#damage;
  }

  /** The damage may be found while they are read. */
  async *#soundPages(image: Image): AsyncGenerator<Page> {
    for await (const page of image.pages()) {
      this.#requireSound();
      yield page;
    }
    this.#requireSound();
  }

  #failed(error: unknown): unknown {
    if (error === this.#damage) return error;
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

  get #hasParts(): boolean {
    return this.#parts.length > 0 || this.#closing !== undefined;
  }

  #inClosingTurn<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#closingTail.then(work);
    // As above.
    this.#closingTail = run.catch(() => undefined);
    return run;
  }

  /** The first step of closing: the next batch is open, and everything that named this one is in its parts. */
  async #freeze(): Promise<void> {
    const txid = this.#partTxid;
    this.#openTxid = txid + 1n;
    this.#host.failPoints.reach("batch.opened");
    try {
      const isOnly = this.#parts.length === 0;
      const path = isOnly ? this.#folder.batchPath(txid) : this.#folder.partPath(txid, this.#partIndex);
      await this.#write(path, isOnly);
    } catch (error) {
      // Commits that were answered with the next number are in this batch then, and the next is owed.
      this.#openTxid = txid;
      throw error;
    }
    this.#closing = { txid, parts: this.#parts };
    this.#parts = [];
    this.#partIndex = 0;
    this.#partTxid = this.#openTxid;
  }

  /** The second step: one file. */
  async #finish(): Promise<ClosedBatch | undefined> {
    const closing = this.#closing;
    if (closing === undefined) return undefined;
    const { txid, parts } = closing;
    const batch = await this.#writing(async () => {
      await this.#merging;
      if (parts.length === 1) return this.#folder.close(txid, parts);
      return this.#host.slots.merge(async () => {
        await this.#host.slots.requireRoom(this.#folder.path, bytesOf(parts));
        return this.#folder.close(txid, parts);
      });
    });
    const { path, byteCount, header } = batch;
    const { pageSize, commit, timestampMs } = header;
    const closed = { txid, path, byteCount, pageSize, commit, timestampMs };
    this.#closing = undefined;
    this.#closedTxid = txid;
    if (this.#position < txid) this.#position = txid;
    this.#batches.push(closed);
    this.#host.failPoints.reach("batch.closed");
    this.#prune();
    return closed;
  }

  /** Keeps the number of parts small, and the batch; in the background. */
  #tidyParts(): void {
    const { batchBytesMax } = this.#host.slots.limits;
    // What goes wrong is known by then, and tried again by whoever closes next.
    if (bytesOf(this.#parts) >= batchBytesMax) this.close().catch(() => undefined);
    else if (this.#parts.length > partCountMax && this.#merging === undefined) this.#merging = this.#mergeNewest();
  }

  /** Merges the newest parts with one that is not much larger than they are together, so that each byte is merged seldom. */
  async #mergeNewest(): Promise<void> {
    const parts = this.#parts;
    let first = parts.length - 2;
    let bytes = bytesOf(parts.slice(first));
    while (first > 0 && (parts[first - 1]?.byteCount ?? 0) <= 2 * bytes) bytes += parts[--first]?.byteCount ?? 0;
    const { slots } = this.#host;
    const old = parts.slice(first);
    try {
      const merged = await this.#writing(() =>
        slots.merge(async () => {
          await slots.requireRoom(this.#folder.path, bytes);
          return this.#folder.merge(old);
        }),
      );
      parts.splice(first, old.length, merged);
    } catch (error) {
      this.#warn("parts of a log could not be merged; that is tried again", error);
    } finally {
      this.#merging = undefined;
    }
  }

  /** Writes what is new as a part of the open batch. `isNeeded`: also when nothing is new. */
  #write(path: string, isNeeded: boolean): Promise<void> {
    return this.#host.slots.seal(async () => {
      this.#isDirty = false;
      for (let tries = 1; ; tries++) {
        try {
          await this.#writeOnce(path, isNeeded);
          return;
        } catch (error) {
          const isRestart = error instanceof LtxFailure && error.problem === "wal";
          if (!isRestart || tries === scanTriesMax) throw error;
        }
      }
    });
  }

  async #writeOnce(path: string, isNeeded: boolean): Promise<void> {
    if (this.needsFile) {
      await this.#writeWhole(path);
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
        if (isNeeded) await this.#writeEmpty(path);
        return;
      }
      if (scan.kind === "lost") {
        this.#warn("frames of a WAL are gone that no file holds; the next file holds the whole database", scan.reason);
        await this.#writeWhole(path);
        return;
      }
      if (this.#commit === 0) await this.#readFacts();
      const last = { txid: this.#partTxid - 1n, commit: this.#commit, pageSize: this.#pageSize };
      const facts = sealedFileFacts(scan, last, this.#now());
      if (facts !== undefined) await this.#writePart(path, { ...facts, ...this.#txids }, readWalPages(wal, scan), scan);
      else {
        this.#warn("a WAL does not follow what was sealed; the next file holds the whole database", undefined);
        await this.#writeWhole(path);
      }
    } finally {
      await wal.close();
    }
  }

  async #writeWhole(path: string): Promise<void> {
    this.#requireSound();
    const letGo = await this.#copyLock.image();
    try {
      const { fileSystem, failPoints } = this.#host;
      const endOffsetMax = fileSystem.sizeBytes(`${this.#head.path}-wal`);
      const image = await Image.open(fileSystem, this.#head.path, "wal", { turn, endOffsetMax });
      failPoints.reach("seal.scanned");
      try {
        const { pageSize, pageCount, commits } = image;
        await this.#writePart(
          path,
          this.#facts(pageSize, pageCount, commits ?? noWal),
          this.#soundPages(image),
          commits,
        );
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
  async #writeEmpty(path: string): Promise<void> {
    if (this.#commit === 0) await this.#readFacts();
    const end = this.#end;
    const range = end === undefined ? noWal : { ...end, startOffset: end.endOffset };
    await this.#writePart(path, this.#facts(this.#pageSize, this.#commit, range), [], undefined);
  }

  /** Of the head as it came here: nothing was copied back into it before it was sealed. */
  async #readFacts(): Promise<void> {
    if (this.#soundPath === undefined) this.#requireSound();
    const file = await this.#host.fileSystem.openFile(this.#soundPath ?? this.#head.path, "read");
    try {
      const { pageSize, pageCount } = await readImageFacts(file);
      this.#pageSize = pageSize;
      this.#commit = pageCount;
    } finally {
      await file.close();
    }
  }

  get #txids(): { readonly minTxid: bigint; readonly maxTxid: bigint } {
    const txid = partTxid(this.#partTxid, this.#partIndex);
    return { minTxid: txid, maxTxid: txid };
  }

  #facts(pageSize: number, commit: number, range: WalRangeOf): LtxFileFacts {
    const { startOffset, endOffset, walSalt1, walSalt2 } = range;
    return {
      pageSize,
      commit,
      ...this.#txids,
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

  /** On the disk when it resolves. */
  async #writePart(
    path: string,
    facts: LtxFileFacts,
    pages: PageSource,
    commits: WalCommits | undefined,
  ): Promise<void> {
    const { fileSystem, failPoints, slots } = this.#host;
    await this.#folder.make();
    const isWhole = commits === undefined || facts.minTxid === 1n;
    await slots.requireRoom(this.#folder.path, (isWhole ? facts.commit : commits.frames.size) * facts.pageSize);
    const temporaryPath = this.#folder.temporaryPath(path);
    // The WAL first: a log that is ahead of its database after a loss of power would fork.
    // Without commits there is nothing new in it, and there may be none.
    const needsFlush = !this.#head.isVolatile && commits !== undefined;
    const flushed = needsFlush ? this.#flushHead() : Promise.resolve();
    // Awaited below; until then it must not count as unhandled.
    flushed.catch(() => undefined);
    try {
      const { header, byteCount } = await writeLtx(fileSystem, temporaryPath, facts, pages);
      await flushed;
      failPoints.reach("seal.written");
      await fileSystem.rename(temporaryPath, path);
      failPoints.reach("seal.named");
      await fileSystem.flushFolder(this.#folder.path);
      this.#parts.push({ path, byteCount, header });
      this.#partIndex++;
      this.#followOn(header);
      failPoints.reach("seal.end");
    } catch (error) {
      // What has failed first is what is told.
      await flushed.catch(() => undefined);
      // A name that may not last must not be found by the next start.
      for (const each of [temporaryPath, path]) await fileSystem.remove(each).catch(() => undefined);
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

function bytesOf(parts: readonly Part[]): number {
  return parts.reduce((sum, { byteCount }) => sum + byteCount, 0);
}
