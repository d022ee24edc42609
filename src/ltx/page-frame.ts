/** A page with its 6 bytes of header, in either of the two encodings (ltx.md 2.2). */
import type { ByteReader } from "./byte-reader.ts";
import { loadCodecs } from "./codecs.ts";
import type { Crc64 } from "./crc64.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { blockBytesMax, compressBlock, decompressBlock } from "./lz4-block.ts";
import { decodeFrame, encodeFrame } from "./lz4-frame.ts";
import type { Page } from "./pages.ts";

/** Frames are read by every Litestream 0.5, blocks are 15 bytes shorter and read from 0.5.16 on. */
export type PageEncoding = "frame" | "block";

export const pageHeaderBytes = 6;
/** Follows the last page. */
export const endMarker = Buffer.alloc(pageHeaderBytes);

const flagBlock = 1;
const lengthBytes = 4;

/** A page as stored. */
export interface EncodedPage {
  /** Header and, before a block, its length: the part that the file's checksum covers as it is. */
  readonly head: Buffer;
  readonly payload: Buffer;
}

export function encodePage({ number, bytes }: Page, encoding: PageEncoding): EncodedPage {
  if (encoding === "frame") {
    const head = Buffer.alloc(pageHeaderBytes);
    head.writeUInt32BE(number, 0);
    return { head, payload: encodeFrame(bytes) };
  }
  const payload = compressBlock(bytes);
  const head = Buffer.alloc(pageHeaderBytes + lengthBytes);
  head.writeUInt32BE(number, 0);
  head.writeUInt16BE(flagBlock, 4);
  head.writeUInt32BE(payload.length, pageHeaderBytes);
  return { head, payload };
}

/**
 * Reads the next page, or the end marker, then undefined. What it reads goes into `checksum` as the file's checksum wants
 * it. Throws LtxFailure.
 */
export async function readPage(reader: ByteReader, pageSize: number, checksum?: Crc64): Promise<Page | undefined> {
  const header = reader.take(pageHeaderBytes) ?? (await reader.exactly(pageHeaderBytes));
  checksum?.update(header);
  const view = new DataView(header.buffer, header.byteOffset, pageHeaderBytes);
  const number = view.getUint32(0);
  const flags = view.getUint16(4);
  if (number === 0 && flags === 0) return undefined;
  if (number === 0) throw new LtxFailure("page", "a page has the number 0");
  if ((flags & ~flagBlock) !== 0) throw new LtxFailure("page", `page ${number} has unknown flags ${flags}`);
  if (checksum === undefined) await loadCodecs();
  const bytes = flags === 0 ? await decodeFrame(reader, pageSize) : await decodeBlock(reader, pageSize, checksum);
  checksum?.update(bytes);
  return { number, bytes };
}

async function decodeBlock(reader: ByteReader, pageSize: number, checksum: Crc64 | undefined): Promise<Buffer> {
  const lengthField = reader.take(lengthBytes) ?? (await reader.exactly(lengthBytes));
  checksum?.update(lengthField);
  const length = new DataView(lengthField.buffer, lengthField.byteOffset, lengthBytes).getUint32(0);
  if (length > blockBytesMax(pageSize)) throw new LtxFailure("page", `a page's block has ${length} bytes`);
  return decompressBlock(reader.take(length) ?? (await reader.exactly(length)), pageSize);
}
