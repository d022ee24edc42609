/** The 16 bytes at the end of an LTX file; big-endian (ltx.md 2.6). */
import { checksumFlag, type LtxHeader } from "./header.ts";
import { LtxFailure } from "./ltx-failure.ts";

export const trailerBytes = 16;

/** A trailer as read. */
export interface LtxTrailer {
  /** Rolling checksum of the database after the file; 0 in files without. */
  readonly postApplyChecksum: bigint;
  /** Over the logical stream: header, page headers, pages as they are in the database, index, the field above. */
  readonly fileChecksum: bigint;
}

export function encodeTrailer({ postApplyChecksum, fileChecksum }: LtxTrailer): Buffer {
  const bytes = Buffer.alloc(trailerBytes);
  bytes.writeBigUInt64BE(postApplyChecksum, 0);
  bytes.writeBigUInt64BE(fileChecksum, 8);
  return bytes;
}

/** Reads and checks the form of a trailer; throws LtxFailure. */
export function decodeTrailer(from: Uint8Array, { tracksChecksum }: LtxHeader): LtxTrailer {
  const bytes = Buffer.from(from.buffer, from.byteOffset, trailerBytes);
  const trailer = { postApplyChecksum: bytes.readBigUInt64BE(0), fileChecksum: bytes.readBigUInt64BE(8) };
  if (!(trailer.fileChecksum & checksumFlag)) throw new LtxFailure("trailer", "the file has no checksum");
  if (tracksChecksum ? !(trailer.postApplyChecksum & checksumFlag) : trailer.postApplyChecksum !== 0n) {
    throw new LtxFailure("trailer", "the checksum of the state after does not agree with the flags");
  }
  return trailer;
}
