/** Pages as raw LZ4 blocks. */
import { codecs } from "./codecs.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { pageBytesMax } from "./pages.ts";

/** The library puts the length of the content before each block. */
const lengthBytes = 4;

/** The largest block that a page can become. */
export function blockBytesMax(pageSize: number): number {
  return pageSize + Math.floor(pageSize / 255) + 16;
}

export function compressBlock(page: Uint8Array): Buffer {
  const bytes = Buffer.from(page.buffer, page.byteOffset, page.length);
  return codecs().compressBlock(bytes).subarray(lengthBytes);
}

const input = Buffer.alloc(lengthBytes + blockBytesMax(pageBytesMax));

/** A block of at most `blockBytesMax`; throws LtxFailure unless it holds exactly one page. */
export function decompressBlock(block: Uint8Array, pageSize: number): Buffer {
  if (block.length > blockBytesMax(pageSize)) throw new LtxFailure("page", "a compressed page is too long");
  input.writeUInt32LE(pageSize, 0);
  input.set(block, lengthBytes);
  let page: Buffer;
  try {
    page = codecs().uncompressBlock(input.subarray(0, lengthBytes + block.length));
  } catch (error) {
    throw new LtxFailure("page", "a compressed page is damaged", error);
  }
  if (page.length !== pageSize) throw new LtxFailure("page", `a page has ${page.length} bytes, not ${pageSize}`);
  return page;
}
