/**
 * Finds what was committed to a WAL since the last seal (ltx.md 11.3, 11.4), without a lock and while SQLite writes to it.
 *
 * A frame counts only if its salts are those of the header, the checksum that runs through all frames before it is right,
 * and a commit follows that is right too; so neither a torn transaction nor one that is not committed is ever seen.
 */
import { LtxFailure } from "./ltx-failure.ts";
import { decodeWalHeader, frameHeaderBytes, type WalHeader, type WalSalts, walHeaderBytes } from "./wal-format.ts";

/** A WAL to read from; any process may, for the file carries no locks. */
export interface WalSource {
  /** Fills `target` from `offset` and returns the bytes that were there: fewer only at the end of the file. */
  read(offset: number, target: Uint8Array): number | Promise<number>;
}

/** How far a WAL was sealed: behind its header at first. Comes from the header of the last LTX file after a restart. */
export interface WalPosition extends WalSalts {
  /** The end of a committed frame, or of the header. */
  readonly endOffset: number;
}

/** What a look at the WAL gives. */
export type WalScan =
  | { readonly kind: "nothing" }
  | WalCommits
  /** Frames may have gone that were never sealed: only a snapshot goes on from here. */
  | { readonly kind: "lost"; readonly reason: string };

/** Committed frames that were not sealed. */
export interface WalCommits extends WalPosition {
  readonly kind: "commits";
  readonly pageSize: number;
  readonly startOffset: number;
  /** Pages of the database after the last commit. */
  readonly commit: number;
  /** The least that it had after one of the commits. */
  readonly commitMin: number;
  /** Offset of the frame that holds the newest version of each page; none beyond `commit`. */
  readonly frames: ReadonlyMap<number, number>;
  /** Frames read, older versions among them. */
  readonly frameCount: number;
  /** The WAL started over since the last seal. */
  readonly isRestarted: boolean;
  /** False when it ended at `frameCountMax`: there may be more. */
  readonly isComplete: boolean;
}

/** Bounds of one scan. */
export interface WalScanOptions {
  /**
   * The scan ends at the first commit at or after so many frames, for a writer may be as fast as the reader. By itself
   * after 64 MiB of WAL, as Litestream does.
   */
  readonly frameCountMax?: number;
  /** Commits behind this offset are left out: the end of an earlier scan of the same life. */
  readonly endOffsetMax?: number;
  /** Frames read at one time; by itself 256, one or two milliseconds of work. */
  readonly framesPerRead?: number;
  /** Awaited between two reads, so that others get their turn on the event loop. */
  readonly turn?: () => Promise<void>;
}

const scanBytesMax = 64 * 1024 * 1024;
const framesPerReadDefault = 256;
const framesPerFirstRead = 8;
const readBytesMax = 4 * 1024 * 1024;

/**
 * Scans for commits behind `from`; from the start of the WAL without it. Throws LtxFailure "wal" for a file that is no WAL,
 * and whatever the source throws.
 */
export async function scanWal(wal: WalSource, from?: WalPosition, options: WalScanOptions = {}): Promise<WalScan> {
  const headerBuffer = aligned(walHeaderBytes);
  const header = decodeWalHeader(headerBuffer.subarray(0, await wal.read(0, headerBuffer)));
  if (header === undefined) return { kind: "nothing" };
  const start = await findStart(wal, header, from);
  if (start.kind === "lost") return start;
  const commits = await new Scan(wal, header, start.offset, options).run();
  if (from !== undefined && start.isRestarted) {
    const reason = await overwritten(wal, header, from, commits.endOffset);
    if (reason !== undefined) return { kind: "lost", reason };
  }
  if (commits.endOffset === start.offset) return { kind: "nothing" };
  return { ...commits, startOffset: start.offset, isRestarted: start.isRestarted };
}

type Start =
  | { readonly kind: "start"; readonly offset: number; readonly isRestarted: boolean }
  | { readonly kind: "lost"; readonly reason: string };

/** Where to begin; leaves the checksum of the header at what is stored there. */
async function findStart(wal: WalSource, header: WalHeader, from: WalPosition | undefined): Promise<Start> {
  const beginning = { kind: "start", offset: walHeaderBytes, isRestarted: from !== undefined } as const;
  if (from === undefined) return beginning;
  if (!hasSalts(from, header)) return beginning;
  const offset = Math.max(from.endOffset, walHeaderBytes);
  if (offset > walHeaderBytes) {
    const frameBytes = frameHeaderBytes + header.pageSize;
    if ((offset - walHeaderBytes) % frameBytes !== 0) {
      return { kind: "lost", reason: "the WAL was sealed up to an offset at which no frame ends" };
    }
    const frame = await readFrameHeader(wal, offset - frameBytes);
    if (frame === undefined || !hasSalts(frame, header)) {
      return { kind: "lost", reason: "the last sealed frame is gone" };
    }
    header.checksum.resume(frame.bytes, 16);
  }
  return { kind: "start", offset, isRestarted: false };
}

/** The frames of a WAL from an offset on. */
class Scan {
  readonly #wal: WalSource;
  readonly #header: WalHeader;
  readonly #frameCountMax: number;
  readonly #endOffsetMax: number;
  readonly #readBytes: number;
  readonly #turn: (() => Promise<void>) | undefined;
  readonly #frames = new Map<number, number>();
  #pending = new Map<number, number>();
  #commit = 0;
  #commitMin = Number.POSITIVE_INFINITY;
  /** No frame is of a page beyond. */
  #pageNumberMax = 0;
  #endOffset: number;
  #frameCount = 0;
  #isComplete = true;

  constructor(wal: WalSource, header: WalHeader, offset: number, options: WalScanOptions) {
    const { framesPerRead = framesPerReadDefault } = options;
    const frameBytes = frameHeaderBytes + header.pageSize;
    this.#wal = wal;
    this.#header = header;
    this.#frameCountMax = options.frameCountMax ?? Math.floor(scanBytesMax / frameBytes);
    this.#endOffsetMax = options.endOffsetMax ?? Number.POSITIVE_INFINITY;
    this.#turn = options.turn;
    this.#endOffset = offset;
    this.#readBytes = frameBytes * Math.max(1, Math.min(framesPerRead, Math.floor(readBytesMax / frameBytes)));
  }

  async run() {
    const { pageSize, walSalt1, walSalt2 } = this.#header;
    const frameBytes = frameHeaderBytes + pageSize;
    // Most scans find a few frames: the first read is small.
    let buffer = aligned(Math.min(this.#readBytes, framesPerFirstRead * frameBytes));
    let count = 0;
    for (let offset = this.#endOffset, isOver = false; !isOver; offset += buffer.length) {
      if (count > 0) {
        if (buffer.length < this.#readBytes) buffer = aligned(Math.min(this.#readBytes, 8 * buffer.length));
        await this.#turn?.();
      }
      const length = await this.#wal.read(offset, buffer);
      isOver = length < buffer.length;
      for (let at = 0; at + frameBytes <= length; at += frameBytes) {
        if (offset + at + frameBytes > this.#endOffsetMax || !this.#isGood(buffer, at)) {
          isOver = true;
          break;
        }
        count++;
        this.#pending.set(buffer.readUInt32BE(at), offset + at);
        const commit = buffer.readUInt32BE(at + 4);
        if (commit === 0) continue;
        this.#take(commit, offset + at + frameBytes, count);
        if (count < this.#frameCountMax) continue;
        this.#isComplete = false;
        isOver = true;
        break;
      }
    }
    return {
      kind: "commits" as const,
      pageSize,
      walSalt1,
      walSalt2,
      commit: this.#commit,
      commitMin: this.#commitMin,
      endOffset: this.#endOffset,
      frames: this.#frames as ReadonlyMap<number, number>,
      frameCount: this.#frameCount,
      isComplete: this.#isComplete,
    };
  }

  #isGood(buffer: Buffer, at: number): boolean {
    const { pageSize, walSalt1, walSalt2, checksum } = this.#header;
    if (buffer.readUInt32BE(at + 8) !== walSalt1 || buffer.readUInt32BE(at + 12) !== walSalt2) return false;
    checksum.update(buffer, at, 8);
    checksum.update(buffer, at + frameHeaderBytes, pageSize);
    // SQLite writes no page 0; a page of that number would end an LTX file.
    return checksum.equalsStored(buffer, at + 16) && buffer.readUInt32BE(at) !== 0;
  }

  #take(commit: number, endOffset: number, frameCount: number): void {
    for (const [number, frame] of this.#pending) {
      this.#frames.set(number, frame);
      this.#pageNumberMax = Math.max(this.#pageNumberMax, number);
    }
    this.#pending.clear();
    // What was cut off is not there any more when the database grows again.
    if (commit < this.#pageNumberMax) {
      for (const number of this.#frames.keys()) if (number > commit) this.#frames.delete(number);
      this.#pageNumberMax = commit;
    }
    this.#commit = commit;
    this.#commitMin = Math.min(this.#commitMin, commit);
    this.#endOffset = endOffset;
    this.#frameCount = frameCount;
  }
}

/**
 * After a restart: whether what is left of the old WAL shows that frames were lost. That it shows nothing proves nothing,
 * when the new frames reach beyond the old ones; what guarantees it is the order of sealing and checkpoints.
 */
async function overwritten(
  wal: WalSource,
  header: WalHeader,
  from: WalPosition,
  endOffset: number,
): Promise<string | undefined> {
  const frameBytes = frameHeaderBytes + header.pageSize;
  let offset = endOffset;
  let frame = await readFrameHeader(wal, offset);
  // Frames of a transaction that is being written.
  while (frame !== undefined && hasSalts(frame, header)) {
    offset += frameBytes;
    frame = await readFrameHeader(wal, offset);
  }
  if (offset >= from.endOffset) return undefined;
  // The file was cut, or page sizes differ: nothing to compare.
  if (frame === undefined || (from.endOffset - walHeaderBytes) % frameBytes !== 0) return undefined;
  if (!hasSalts(frame, from)) return "the WAL started over more than once";
  return (await hasCommit(wal, header, from)) ? "commits were overwritten before they were sealed" : undefined;
}

/** Whether a commit of the old life of the WAL follows its sealed end. */
async function hasCommit(wal: WalSource, header: WalHeader, from: WalPosition): Promise<boolean> {
  const frameBytes = frameHeaderBytes + header.pageSize;
  const last = await readFrameHeader(wal, from.endOffset - frameBytes);
  // Without the frame before there is no checksum to go on from.
  if (last === undefined || !hasSalts(last, from)) return false;
  const checksum = header.checksum.copy();
  checksum.resume(last.bytes, 16);
  const buffer = aligned(frameBytes);
  for (let offset = from.endOffset; (await wal.read(offset, buffer)) === frameBytes; offset += frameBytes) {
    if (buffer.readUInt32BE(8) !== from.walSalt1 || buffer.readUInt32BE(12) !== from.walSalt2) return false;
    checksum.update(buffer, 0, 8);
    checksum.update(buffer, frameHeaderBytes, header.pageSize);
    if (!checksum.equalsStored(buffer, 16)) return false;
    if (buffer.readUInt32BE(4) !== 0) return true;
  }
  return false;
}

interface FrameHeader extends WalSalts {
  readonly pageNumber: number;
  readonly bytes: Buffer;
}

async function readFrameHeader(wal: WalSource, offset: number): Promise<FrameHeader | undefined> {
  const bytes = Buffer.alloc(frameHeaderBytes);
  if (offset < walHeaderBytes || (await wal.read(offset, bytes)) < frameHeaderBytes) return undefined;
  return decodeFrameHeader(bytes);
}

function decodeFrameHeader(bytes: Buffer): FrameHeader {
  return {
    pageNumber: bytes.readUInt32BE(0),
    walSalt1: bytes.readUInt32BE(8),
    walSalt2: bytes.readUInt32BE(12),
    bytes,
  };
}

function hasSalts(a: WalSalts, b: WalSalts): boolean {
  return a.walSalt1 === b.walSalt1 && a.walSalt2 === b.walSalt2;
}

/** A buffer of its own, which starts at a whole word. */
function aligned(byteCount: number): Buffer {
  return Buffer.from(new ArrayBuffer(byteCount));
}

/** A batch of reads that wait together. */
const pagesPerBatch = 64;

/**
 * The pages that a scan found, ascending. Throws LtxFailure "wal" when the WAL started over since the scan: what it gave
 * is then worth nothing, and a scan has to begin anew.
 */
export async function* readWalPages(
  wal: WalSource,
  commits: WalCommits,
): AsyncGenerator<{ readonly number: number; readonly bytes: Buffer }, void, undefined> {
  const frames = [...commits.frames].sort(([a], [b]) => a - b);
  const frameBytes = frameHeaderBytes + commits.pageSize;
  const startedOver = () => new LtxFailure("wal", "the WAL started over while it was read");
  for (let start = 0; start < frames.length; start += pagesPerBatch) {
    const batch = frames.slice(start, start + pagesPerBatch).map(async ([number, offset]) => {
      const bytes = Buffer.allocUnsafe(frameBytes);
      if ((await wal.read(offset, bytes)) < frameBytes) throw startedOver();
      const frame = decodeFrameHeader(bytes);
      if (frame.pageNumber !== number || !hasSalts(frame, commits)) throw startedOver();
      return { number, bytes: bytes.subarray(frameHeaderBytes) };
    });
    yield* await Promise.all(batch);
  }
  // SQLite writes the new header before the first frame of a WAL that starts over.
  const header = Buffer.alloc(walHeaderBytes);
  await wal.read(0, header);
  const salts = { walSalt1: header.readUInt32BE(16), walSalt2: header.readUInt32BE(20) };
  if (!hasSalts(salts, commits)) throw startedOver();
}
