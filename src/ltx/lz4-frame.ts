/**
 * Pages as LZ4 frames of one block (ltx.md 2.2): what all Litestream versions read. Little-endian. Written always with the
 * same seven bytes in front and with the checksum of the content, without which some of their decoders fail.
 */
import type { ByteReader } from "./byte-reader.ts";
import { codecs } from "./codecs.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { blockBytesMax, compressBlock, decompressBlock } from "./lz4-block.ts";

const magic = Buffer.from([0x04, 0x22, 0x4d, 0x18]);
/** Version 1, independent blocks, checksum of the content; blocks of at most 64 KiB; checksum of both. */
const start = Buffer.from([...magic, 0x64, 0x40, 0xa7]);
const flagBits = {
  version: 0xc0,
  blockChecksum: 0x10,
  contentBytes: 0x08,
  contentChecksum: 0x04,
  reserved: 0x02,
  dictionary: 0x01,
};
const version1 = 0x40;
const blockOf64KiB = 0x40;
const storedBit = 0x8000_0000;

export function encodeFrame(page: Uint8Array): Buffer {
  const block = compressBlock(page);
  const isStored = block.length >= page.length;
  const payload = isStored ? page : block;
  const frame = Buffer.allocUnsafe(start.length + 4 + payload.length + 8);
  frame.set(start, 0);
  frame.writeUInt32LE(isStored ? (payload.length | storedBit) >>> 0 : payload.length, start.length);
  frame.set(payload, start.length + 4);
  const end = start.length + 4 + payload.length;
  frame.writeUInt32LE(0, end);
  frame.writeUInt32LE(hashOf(page), end + 4);
  return frame;
}

/** Reads one frame to its end; throws LtxFailure unless it holds exactly one page. */
export async function decodeFrame(reader: ByteReader, pageSize: number): Promise<Buffer> {
  const flags = await readStart(reader);
  const length = uint32(reader.take(4) ?? (await reader.exactly(4)));
  const blockBytes = length % storedBit;
  if (blockBytes === 0 || blockBytes > blockBytesMax(pageSize)) {
    throw new LtxFailure("page", `a frame's block has ${blockBytes} bytes`);
  }
  const block = reader.take(blockBytes) ?? (await reader.exactly(blockBytes));
  if (length >= storedBit && blockBytes !== pageSize) {
    throw new LtxFailure("page", `a page has ${blockBytes} bytes, not ${pageSize}`);
  }
  const blockHash = flags & flagBits.blockChecksum ? hashOf(block) : undefined;
  const page = length >= storedBit ? Buffer.from(block) : decompressBlock(block, pageSize);
  if (blockHash !== undefined && uint32(await reader.exactly(4)) !== blockHash) {
    throw new LtxFailure("page", "the checksum of a frame's block is wrong");
  }
  if (uint32(reader.take(4) ?? (await reader.exactly(4))) !== 0) {
    throw new LtxFailure("page", "a frame holds more than one block");
  }
  if (flags & flagBits.contentChecksum) {
    const expected = uint32(reader.take(4) ?? (await reader.exactly(4)));
    if (hashOf(page) !== expected) throw new LtxFailure("page", "the checksum of a frame's content is wrong");
  }
  return page;
}

/** The flags of the frame. */
async function readStart(reader: ByteReader): Promise<number> {
  const seven = reader.take(start.length) ?? (await reader.exactly(start.length));
  if (start.equals(seven)) return start[4] as number;
  const bytes = Buffer.from(seven);
  const flags = bytes[4] as number;
  if (!magic.equals(bytes.subarray(0, 4))) throw new LtxFailure("page", "a page is no LZ4 frame");
  if ((flags & flagBits.version) !== version1 || flags & (flagBits.reserved | flagBits.dictionary)) {
    throw new LtxFailure("page", `a frame has unknown flags 0x${flags.toString(16)}`);
  }
  if (bytes[5] !== blockOf64KiB) throw new LtxFailure("page", "a frame's blocks may be longer than a page");
  let descriptor = bytes.subarray(4, 6);
  let expected = bytes[6];
  if (flags & flagBits.contentBytes) {
    const rest = await reader.exactly(8);
    descriptor = Buffer.concat([bytes.subarray(4, 7), rest.subarray(0, 7)]);
    expected = rest[7];
  }
  if (((hashOf(descriptor) >>> 8) & 0xff) !== expected) {
    throw new LtxFailure("page", "the checksum of a frame's header is wrong");
  }
  return flags;
}

function hashOf(bytes: Uint8Array): number {
  const { buffer, byteOffset } = codecs().xxHash32.init().update(bytes).digest("binary");
  return new DataView(buffer, byteOffset, 4).getUint32(0);
}

function uint32(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
}
