/**
 * A database page by page while it is being written to: its file, and over it the frames of the WAL's present life up to a
 * commit. Nothing may be copied back into the file meanwhile. When the WAL starts over, all of its frames had been copied
 * back before, so the file alone is the same state.
 */
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import { LtxFailure } from "../../ltx/ltx-failure.ts";
import { isPageSize, lockPageNumber, type Page } from "../../ltx/pages.ts";
import { frameHeaderBytes, type WalSalts } from "../../ltx/wal-format.ts";
import { scanWal, type WalCommits, type WalPosition, type WalScanOptions } from "../../ltx/wal-reader.ts";
import { type OpenWal, openWal, readWalHeader } from "./wal-file.ts";

/** Bytes of the file read at one time. */
const chunkBytes = 256 * 1024;
const fileHeaderBytes = 100;
const scanTriesMax = 8;

/** Which commits an image holds: all that are in the WAL, those up to a position, or none that the WAL has. */
export type ImageEnd = "wal" | WalPosition | "file";

export interface ImageFacts {
  readonly pageSize: number;
  readonly pageCount: number;
}

export class Image implements ImageFacts {
  readonly pageSize: number;
  readonly pageCount: number;
  /** The commits of the WAL that it holds. */
  readonly commits: WalCommits | undefined;
  readonly #file: OpenFile;
  readonly #wal: OpenWal;
  /** The WAL has started over: everything is in the file. */
  #isCopied = false;

  private constructor(file: OpenFile, wal: OpenWal, facts: ImageFacts, commits: WalCommits | undefined) {
    this.#file = file;
    this.#wal = wal;
    this.pageSize = facts.pageSize;
    this.pageCount = facts.pageCount;
    this.commits = commits;
  }

  /** Throws LtxFailure when the files are no database. */
  static async open(fileSystem: FileSystem, path: string, end: ImageEnd, scan: WalScanOptions): Promise<Image> {
    const file = await fileSystem.openFile(path, "read");
    let wal: OpenWal | undefined;
    try {
      wal = await openWal(fileSystem, path);
      const ofFile = await readImageFacts(file);
      const commits = end === "file" ? undefined : await commitsUpTo(wal, end, scan);
      const facts = commits === undefined ? ofFile : { pageSize: commits.pageSize, pageCount: commits.commit };
      return new Image(file, wal, facts, commits);
    } catch (error) {
      await file.close();
      await wal?.close();
      throw error;
    }
  }

  /** Every page but the lock page, ascending. May be asked for again. */
  async *pages(): AsyncGenerator<Page, void, undefined> {
    const { pageSize, pageCount } = this;
    const lockPage = lockPageNumber(pageSize);
    const pagesPerChunk = Math.max(1, Math.floor(chunkBytes / pageSize));
    for (let first = 1; first <= pageCount; first += pagesPerChunk) {
      const count = Math.min(pagesPerChunk, pageCount - first + 1);
      for (const page of await this.#chunk(first, count)) if (page.number !== lockPage) yield page;
    }
  }

  async close(): Promise<void> {
    await this.#file.close();
    await this.#wal.close();
  }

  async #chunk(first: number, count: number): Promise<Page[]> {
    const fromWal = await this.#framesOf(first, count);
    const { pageSize } = this;
    const bytes = await this.#file.read((first - 1) * pageSize, count * pageSize);
    return Array.from({ length: count }, (_, index) => {
      const number = first + index;
      const framed = fromWal.get(number);
      if (framed !== undefined) return { number, bytes: framed };
      const end = (index + 1) * pageSize;
      if (end > bytes.length && number !== lockPageNumber(pageSize)) {
        throw new LtxFailure("incomplete", `the database file ends before page ${number} of ${this.pageCount}`);
      }
      return { number, bytes: bytes.subarray(index * pageSize, end) };
    });
  }

  /** Pages that the WAL has; none when it has started over since. */
  async #framesOf(first: number, count: number): Promise<ReadonlyMap<number, Uint8Array>> {
    const found = new Map<number, Uint8Array>();
    const { commits } = this;
    if (commits === undefined || this.#isCopied) return found;
    const frame = Buffer.alloc(frameHeaderBytes + this.pageSize);
    for (let number = first; number < first + count; number++) {
      const offset = commits.frames.get(number);
      if (offset === undefined) continue;
      if ((await this.#wal.read(offset, frame)) < frame.length || frame.readUInt32BE(0) !== number) {
        return this.#startedOver();
      }
      found.set(number, Buffer.from(frame.subarray(frameHeaderBytes)));
    }
    // SQLite writes the new header before the first frame of a WAL that starts over.
    if (found.size > 0 && !hasSalts(await readWalHeader(this.#wal), commits)) return this.#startedOver();
    return found;
  }

  #startedOver(): ReadonlyMap<number, Uint8Array> {
    this.#isCopied = true;
    return new Map();
  }
}

/** What the header of a database file says. Throws LtxFailure when it is none. */
export async function readImageFacts(file: OpenFile): Promise<ImageFacts> {
  const bytes = await file.read(0, fileHeaderBytes);
  if (bytes.length < fileHeaderBytes || bytes.toString("latin1", 0, 15) !== "SQLite format 3") {
    throw new LtxFailure("page", "the file is no database");
  }
  const stored = bytes.readUInt16BE(16);
  const pageSize = stored === 1 ? 65_536 : stored;
  if (!isPageSize(pageSize)) throw new LtxFailure("page", `${pageSize} is no page size`);
  // The count is good only if the writer that set it also made the last change.
  const counted = bytes.readUInt32BE(24) === bytes.readUInt32BE(92) ? bytes.readUInt32BE(28) : 0;
  return { pageSize, pageCount: counted || Math.floor((await file.sizeBytes()) / pageSize) };
}

async function commitsUpTo(
  wal: OpenWal,
  end: "wal" | WalPosition,
  options: WalScanOptions,
): Promise<WalCommits | undefined> {
  for (let tries = 0; tries < scanTriesMax; tries++) {
    const header = await readWalHeader(wal);
    if (header === undefined || (end !== "wal" && !hasSalts(header, end))) return undefined;
    const scan = await scanWal(wal, undefined, {
      ...options,
      frameCountMax: Number.POSITIVE_INFINITY,
      ...(end === "wal" ? {} : { endOffsetMax: end.endOffset }),
    });
    // One that started over under the scan was scanned in part; what it was is in the file now.
    if (!hasSalts(await readWalHeader(wal), header)) continue;
    return scan.kind === "commits" ? scan : undefined;
  }
  throw new LtxFailure("wal", "the WAL started over again and again while it was read");
}

function hasSalts(found: WalSalts | undefined, wanted: WalSalts): boolean {
  return found?.walSalt1 === wanted.walSalt1 && found.walSalt2 === wanted.walSalt2;
}
