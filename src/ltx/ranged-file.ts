/** Single pages of a file that lies elsewhere, by its index (ltx.md 2.7). */
import { ByteReader } from "./byte-reader.ts";
import { decodeHeader, headerBytes, type LtxHeader } from "./header.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { pageHeaderBytes, readPage } from "./page-frame.ts";
import { indexLengthBytes, PageIndex } from "./page-index.ts";
import type { Page } from "./pages.ts";
import { decodeTrailer, type LtxTrailer, trailerBytes } from "./trailer.ts";
import { isSnapshot } from "./txid.ts";

/** Ranged reads of something that does not change: an object, a file. */
export interface RangedSource {
  readonly byteCount: number;
  /** Exactly these bytes; rejects when they cannot be had. Never asked for bytes beyond the end. */
  read(offset: number, byteCount: number): Promise<Uint8Array>;
}

/** Limits on what a file can make its reader hold. */
export interface RangedFileLimits {
  /** Default 64 MiB, an index of about five million pages. */
  readonly indexBytesMax?: number;
}

/** Fetched with the first request: the whole index of most files. */
const tailBytes = 32_768;
const indexBytesMaxDefault = 64 * 1024 * 1024;
const afterIndexBytes = indexLengthBytes + trailerBytes;
const bytesMin = headerBytes + pageHeaderBytes + 1 + afterIndexBytes;

/**
 * A file with its header and index in memory. The file's own checksum covers the whole and is not looked at; what a single
 * page is checked by is its frame (the encoding `frame` has a checksum, `block` has none), its number and its place.
 */
export class LtxRangedFile {
  readonly header: LtxHeader;
  readonly trailer: LtxTrailer;
  readonly index: PageIndex;
  readonly #source: RangedSource;

  private constructor(source: RangedSource, header: LtxHeader, trailer: LtxTrailer, index: PageIndex) {
    this.#source = source;
    this.header = header;
    this.trailer = trailer;
    this.index = index;
  }

  /** Two or three reads: the header, the tail, and the index if it is longer than that. Throws LtxFailure. */
  static async open(source: RangedSource, limits: RangedFileLimits = {}): Promise<LtxRangedFile> {
    const { indexBytesMax = indexBytesMaxDefault } = limits;
    const { byteCount } = source;
    if (byteCount < bytesMin) throw new LtxFailure("truncated", `the file has ${byteCount} bytes`);
    const tailLength = Math.min(tailBytes, byteCount - headerBytes);
    const [headBytes, tail] = await Promise.all([
      read(source, 0, headerBytes),
      read(source, byteCount - tailLength, tailLength),
    ]);
    const header = decodeHeader(headBytes);
    const trailer = decodeTrailer(tail.subarray(tailLength - trailerBytes), header);
    const indexBytes = Number(tail.readBigUInt64BE(tailLength - afterIndexBytes));
    if (indexBytes > byteCount - (bytesMin - 1))
      throw new LtxFailure("index", "the page index is longer than its file");
    if (indexBytes > indexBytesMax) throw new LtxFailure("too-large", `the page index has ${indexBytes} bytes`);
    const indexOffset = byteCount - afterIndexBytes - indexBytes;
    const inTail = indexOffset - (byteCount - tailLength);
    const bytes =
      inTail >= 0 ? tail.subarray(inTail, inTail + indexBytes) : await read(source, indexOffset, indexBytes);
    const facts = { ...header, isSnapshot: isSnapshot(header) };
    const index = PageIndex.parse(bytes, facts, indexOffset - pageHeaderBytes);
    return new LtxRangedFile(source, header, trailer, index);
  }

  /** One page in one read, or undefined when the file does not hold it. Throws LtxFailure. */
  async page(pageNumber: number): Promise<Page | undefined> {
    const range = this.index.find(pageNumber);
    if (range === undefined) return undefined;
    if (range.byteCount > 2 * this.header.pageSize + 64) {
      throw new LtxFailure("too-large", `page ${pageNumber} takes ${range.byteCount} bytes`);
    }
    const reader = new ByteReader([await read(this.#source, range.offset, range.byteCount)]);
    const page = await readPage(reader, this.header.pageSize);
    if (page?.number !== pageNumber || reader.offset !== range.byteCount) {
      throw new LtxFailure("index", `the index names a wrong place for page ${pageNumber}`);
    }
    return page;
  }
}

async function read(source: RangedSource, offset: number, byteCount: number): Promise<Buffer> {
  const bytes = await source.read(offset, byteCount);
  if (bytes.length !== byteCount) throw new LtxFailure("truncated", `${bytes.length} of ${byteCount} bytes came`);
  return Buffer.from(bytes.buffer, bytes.byteOffset, byteCount);
}
