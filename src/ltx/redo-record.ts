/**
 * Records of the redo log, little-endian: u32 CRC-32 of the rest, u8 kind, u8 length of the key, u16 version, u64 generation,
 * u32 length of the bytes, u64 offset in the WAL, u32 salt 1, u32 salt 2, the key, the bytes.
 */
import { crc32 } from "node:zlib";
import type { WalSalts } from "./wal-format.ts";

/** What a WAL gained, or that a life of it is over. */
export interface RedoRecord extends WalSalts {
  readonly kind: "frames" | "forget";
  /** Names the WAL. */
  readonly key: string;
  /** Grows with every turn of the log's files; 1 or more. */
  readonly generation: bigint;
  readonly walOffset: number;
  /** Empty in a "forget". */
  readonly bytes: Uint8Array;
}

export const keyBytesMax = 255;

const fixedBytes = 36;
const version = 1;
const kinds = ["frames", "forget"] as const;

export function redoRecordBytes(key: string, byteCount: number): number {
  return fixedBytes + Buffer.byteLength(key) + byteCount;
}

/** Where the bytes of a record begin within it: they may be put there before `writeRedoRecord`. */
export function redoBytesOffset(key: string): number {
  return redoRecordBytes(key, 0);
}

/** Completes a record at `offset` whose bytes are in their place already; returns the offset behind it. */
export function writeRedoRecord(
  target: Buffer,
  offset: number,
  record: Omit<RedoRecord, "bytes">,
  byteCount: number,
): number {
  const keyBytes = target.write(record.key, offset + fixedBytes);
  target.writeUInt8(kinds.indexOf(record.kind), offset + 4);
  target.writeUInt8(keyBytes, offset + 5);
  target.writeUInt16LE(version, offset + 6);
  target.writeBigUInt64LE(record.generation, offset + 8);
  target.writeUInt32LE(byteCount, offset + 16);
  target.writeBigUInt64LE(BigInt(record.walOffset), offset + 20);
  target.writeUInt32LE(record.walSalt1, offset + 28);
  target.writeUInt32LE(record.walSalt2, offset + 32);
  const end = offset + fixedBytes + keyBytes + byteCount;
  target.writeUInt32LE(crc32(target.subarray(offset + 4, end)), offset);
  return end;
}

/** The whole records from the start of a file, all of one generation; what follows is of an earlier turn, or was cut. */
export function* readRedoRecords(file: Buffer): Generator<RedoRecord, void, undefined> {
  let generation: bigint | undefined;
  for (let offset = 0; offset + fixedBytes <= file.length; ) {
    const kind = kinds[file.readUInt8(offset + 4)];
    const keyBytes = file.readUInt8(offset + 5);
    const byteCount = file.readUInt32LE(offset + 16);
    const end = offset + fixedBytes + keyBytes + byteCount;
    if (kind === undefined || end > file.length || file.readUInt16LE(offset + 6) !== version) return;
    if (crc32(file.subarray(offset + 4, end)) !== file.readUInt32LE(offset)) return;
    const found = file.readBigUInt64LE(offset + 8);
    generation ??= found;
    if (found !== generation) return;
    const bytesOffset = offset + fixedBytes + keyBytes;
    yield {
      kind,
      key: file.toString("utf8", offset + fixedBytes, bytesOffset),
      generation,
      walOffset: Number(file.readBigUInt64LE(offset + 20)),
      walSalt1: file.readUInt32LE(offset + 28),
      walSalt2: file.readUInt32LE(offset + 32),
      bytes: file.subarray(bytesOffset, end),
    };
    offset = end;
  }
}
