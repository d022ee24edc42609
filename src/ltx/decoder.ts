/** Reads LTX files from start to end and checks everything in them (ltx.md 5, the stricter column). */
import { createHash } from "node:crypto";
import { ByteReader, type ByteSource } from "./byte-reader.ts";
import { Crc64 } from "./crc64.ts";
import { DatabaseChecksum } from "./database-checksum.ts";
import { checksumFlag, decodeHeader, headerBytes, type LtxHeader } from "./header.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { type Pace, Pacer } from "./pace.ts";
import { readPage } from "./page-frame.ts";
import { indexLengthBytes, PageIndexWriter } from "./page-index.ts";
import { type Page, PageOrder } from "./pages.ts";
import { decodeTrailer, type LtxTrailer, trailerBytes } from "./trailer.ts";
import { isSnapshot } from "./txid.ts";

/**
 * A file that is being read: `header`, then `next` until it is undefined, then `trailer`. Everything wrong is an LtxFailure.
 * Pages are not proven before the end: the file's checksum comes last. Memory does not depend on the size of the file.
 */
export class LtxDecoder {
  readonly header: LtxHeader;
  readonly #reader: ByteReader;
  readonly #checksum: Crc64;
  readonly #order: PageOrder;
  readonly #databaseChecksum: DatabaseChecksum | undefined;
  /** The index that has to follow the pages, as a hash. */
  readonly #expectedIndex = createHash("sha256");
  readonly #index = new PageIndexWriter((chunk) => this.#expectedIndex.update(chunk));
  #trailer: LtxTrailer | undefined;

  private constructor(reader: ByteReader, header: LtxHeader, checksum: Crc64) {
    const snapshot = isSnapshot(header);
    this.header = header;
    this.#reader = reader;
    this.#checksum = checksum;
    this.#order = new PageOrder({ ...header, isSnapshot: snapshot });
    this.#databaseChecksum = snapshot && header.tracksChecksum ? new DatabaseChecksum(header.pageSize) : undefined;
  }

  /** Reads the header. A failure ends the source. */
  static async open(source: ByteSource): Promise<LtxDecoder> {
    const reader = new ByteReader(source);
    try {
      const bytes = await reader.exactly(headerBytes);
      const header = decodeHeader(bytes);
      const checksum = await Crc64.open();
      return new LtxDecoder(reader, header, checksum.update(bytes));
    } catch (error) {
      await reader.close();
      throw error;
    }
  }

  /** The next page, which belongs to the caller; undefined after the last, when all of the file is proven. */
  async next(): Promise<Page | undefined> {
    if (this.#trailer !== undefined) return undefined;
    const offset = this.#reader.offset;
    const page = await readPage(this.#reader, this.header.pageSize, this.#checksum);
    if (page === undefined) {
      this.#trailer = await this.#end();
      return undefined;
    }
    const problem = this.#order.take(page.number);
    if (problem !== undefined) throw new LtxFailure("order", problem);
    this.#index.add(page.number, { offset, byteCount: this.#reader.offset - offset });
    this.#databaseChecksum?.toggle(page);
    return page;
  }

  /** The pages that are left; ends the source when its reader stops. */
  async *pages(): AsyncGenerator<Page, void, undefined> {
    try {
      for (let page = await this.next(); page !== undefined; page = await this.next()) yield page;
    } finally {
      await this.close();
    }
  }

  /** Known after the last page. */
  get trailer(): LtxTrailer {
    if (this.#trailer === undefined) throw new Error("the file was not read to its end");
    return this.#trailer;
  }

  /** Lets go of the source; needed unless the file was read to its end. */
  close(): Promise<void> {
    return this.#reader.close();
  }

  async #end(): Promise<LtxTrailer> {
    const problem = this.#order.end();
    if (problem !== undefined) throw new LtxFailure("incomplete", problem);
    const reader = this.#reader;
    const indexBytes = this.#index.end();
    const found = createHash("sha256");
    for (let left = indexBytes; left > 0; ) {
      const chunk = await reader.exactly(Math.min(left, 65_536));
      this.#checksum.update(chunk);
      found.update(chunk);
      left -= chunk.length;
    }
    if (!found.digest().equals(this.#expectedIndex.digest())) {
      throw new LtxFailure("index", "the page index does not agree with the pages");
    }
    const lengthField = Buffer.from(await reader.exactly(indexLengthBytes));
    this.#checksum.update(lengthField);
    if (lengthField.readBigUInt64BE() !== BigInt(indexBytes)) {
      throw new LtxFailure("index", "the length of the page index is wrong");
    }
    const bytes = await reader.exactly(trailerBytes);
    const trailer = decodeTrailer(bytes, this.header);
    const checksum = checksumFlag | this.#checksum.update(bytes.subarray(0, trailerBytes / 2)).digest();
    if (checksum !== trailer.fileChecksum) throw new LtxFailure("checksum", "the checksum of the file is wrong");
    if (!(await reader.isAtEnd())) throw new LtxFailure("trailing", "bytes follow the end of the file");
    if (this.#databaseChecksum !== undefined && this.#databaseChecksum.value !== trailer.postApplyChecksum) {
      throw new LtxFailure("checksum", "the checksum of the database is wrong");
    }
    return trailer;
  }
}

/** What is known of a file that is good. */
export interface VerifiedFile extends LtxHeader, LtxTrailer {
  readonly pageCount: number;
}

/** Reads a whole file for its checks alone; throws LtxFailure. */
export async function verifyLtx(source: ByteSource, pace: Pace = {}): Promise<VerifiedFile> {
  const decoder = await LtxDecoder.open(source);
  const pacer = new Pacer(pace);
  let pageCount = 0;
  for await (const _ of decoder.pages()) {
    pageCount++;
    await pacer.step();
  }
  return { ...decoder.header, ...decoder.trailer, pageCount };
}
