/** Writes LTX files (ltx.md 4). */
import { Crc64 } from "./crc64.ts";
import { checksumFlag, completeHeader, encodeHeader, type LtxFileFacts, type LtxHeader } from "./header.ts";
import { type Pace, Pacer } from "./pace.ts";
import { encodePage, endMarker, type PageEncoding } from "./page-frame.ts";
import { indexLengthBytes, PageIndexWriter } from "./page-index.ts";
import { type Page, PageOrder, type PageSource } from "./pages.ts";
import { encodeTrailer, trailerBytes } from "./trailer.ts";
import { isSnapshot } from "./txid.ts";

/** How a file is written. */
export interface EncodeOptions extends Pace {
  /** Default `frame`. */
  readonly encoding?: PageEncoding;
  /** Size of the chunks that come out; default 64 KiB. */
  readonly chunkBytes?: number;
}

/** What was written. */
export interface LtxFileSummary {
  readonly header: LtxHeader;
  readonly byteCount: number;
  readonly pageCount: number;
  readonly fileChecksum: bigint;
}

const chunkBytesDefault = 65_536;

/**
 * A file in chunks, as its pages come; returns the summary. Of the file only the page index is kept in memory, about ten
 * bytes a page. Pages that break the order, or have the wrong size, are a defect of the caller and throw an Error; so does
 * a snapshot that lacks pages. The chunks belong to the reader.
 */
export async function* encodeLtx(
  facts: LtxFileFacts,
  pages: PageSource,
  options: EncodeOptions = {},
): AsyncGenerator<Buffer, LtxFileSummary, undefined> {
  const { chunkBytes = chunkBytesDefault } = options;
  const encoder = await LtxEncoder.open(facts, options.encoding);
  const pacer = new Pacer(options);
  for await (const page of pages) {
    encoder.add(page);
    if (encoder.pendingBytes >= chunkBytes) yield encoder.take();
    await pacer.step();
  }
  const summary = encoder.end();
  yield encoder.take();
  return summary;
}

/** The same as a machine that is driven page by page: `open`, `add`…, `end`, with `take` in between and at the end. */
export class LtxEncoder {
  readonly #header: LtxHeader;
  readonly #encoding: PageEncoding;
  readonly #order: PageOrder;
  readonly #checksum: Crc64;
  readonly #indexChunks: Buffer[] = [];
  readonly #index = new PageIndexWriter((chunk) => this.#indexChunks.push(chunk));
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #byteCount = 0;
  #pageCount = 0;

  private constructor(header: LtxHeader, encoding: PageEncoding, checksum: Crc64) {
    this.#header = header;
    this.#encoding = encoding;
    this.#order = new PageOrder({ ...header, isSnapshot: isSnapshot(header) });
    this.#checksum = checksum;
    this.#write(encodeHeader(header));
  }

  /** Throws an Error when the facts break a rule of the header. */
  static async open(facts: LtxFileFacts, encoding: PageEncoding = "frame"): Promise<LtxEncoder> {
    const header = completeHeader(facts);
    return new LtxEncoder(header, encoding, await Crc64.open());
  }

  /** Bytes that `take` would give. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** The next page; its bytes may change afterwards. */
  add(page: Page): void {
    const problem = this.#order.take(page.number);
    if (problem !== undefined) throw new Error(`LTX pages: ${problem}`);
    if (page.bytes.length !== this.#header.pageSize) {
      throw new Error(`LTX pages: page ${page.number} has ${page.bytes.length} bytes, not ${this.#header.pageSize}`);
    }
    const offset = this.#byteCount;
    const { head, payload } = encodePage(page, this.#encoding);
    this.#write(head);
    this.#checksum.update(page.bytes);
    this.#put(payload);
    this.#index.add(page.number, { offset, byteCount: this.#byteCount - offset });
    this.#pageCount++;
  }

  /** Everything written since the last call. */
  take(): Buffer {
    const bytes = Buffer.concat(this.#pending, this.#pendingBytes);
    this.#pending = [];
    this.#pendingBytes = 0;
    return bytes;
  }

  /** Completes the file. */
  end(): LtxFileSummary {
    const problem = this.#order.end();
    if (problem !== undefined) throw new Error(`LTX pages: ${problem}`);
    this.#write(endMarker);
    const indexBytes = this.#index.end();
    for (const chunk of this.#indexChunks) this.#write(chunk);
    const lengthField = Buffer.alloc(indexLengthBytes);
    lengthField.writeBigUInt64BE(BigInt(indexBytes));
    this.#write(lengthField);
    const postApplyChecksum = 0n;
    this.#checksum.update(Buffer.alloc(trailerBytes / 2));
    const fileChecksum = checksumFlag | this.#checksum.digest();
    this.#put(encodeTrailer({ postApplyChecksum, fileChecksum }));
    return { header: this.#header, byteCount: this.#byteCount, pageCount: this.#pageCount, fileChecksum };
  }

  #write(bytes: Buffer): void {
    this.#checksum.update(bytes);
    this.#put(bytes);
  }

  #put(bytes: Buffer): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    this.#byteCount += bytes.length;
  }
}
