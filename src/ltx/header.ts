/** The 100 bytes at the start of an LTX file; big-endian (ltx.md 2.1). */
import { LtxFailure } from "./ltx-failure.ts";
import { isPageSize } from "./pages.ts";
import { isSnapshot, type TxidRange } from "./txid.ts";

export const headerBytes = 100;
/** Bit 63 of every checksum that is set. */
export const checksumFlag = 1n << 63n;

const magic = 0x4c54_5831;
const flagNoChecksum = 0x2;

/** Where the frames of a file lay in the WAL; all zero when it did not come from one. */
export interface WalRange {
  readonly walOffset: number;
  readonly walBytes: number;
  readonly walSalt1: number;
  readonly walSalt2: number;
}

/** What a writer says about a file. */
export interface LtxFileFacts extends TxidRange, Partial<WalRange> {
  readonly pageSize: number;
  /** Pages of the database after the file is applied; at least 1. */
  readonly commit: number;
  /** Milliseconds since 1970. */
  readonly timestampMs: number;
}

/** A header as read. */
export interface LtxHeader extends TxidRange, WalRange {
  readonly pageSize: number;
  readonly commit: number;
  readonly timestampMs: number;
  /** False for everything that Litestream and this server write: then both rolling checksums are 0. */
  readonly tracksChecksum: boolean;
  readonly preApplyChecksum: bigint;
  readonly nodeId: bigint;
}

/**
 * The header of a file to write, always without rolling checksums: Litestream refuses the others.
 * Throws an Error when the facts break a rule.
 */
export function completeHeader(facts: LtxFileFacts): LtxHeader {
  const header = {
    walOffset: 0,
    walBytes: 0,
    walSalt1: 0,
    walSalt2: 0,
    ...facts,
    tracksChecksum: false,
    preApplyChecksum: 0n,
    nodeId: 0n,
  };
  // Such a file can be written and read, but nothing can be restored from it.
  const problem = facts.commit === 0 ? "a database of no pages cannot be stored" : headerProblem(header);
  if (problem !== undefined) throw new Error(`LTX header: ${problem}`);
  return header;
}

export function encodeHeader(header: LtxHeader): Buffer {
  const bytes = Buffer.alloc(headerBytes);
  bytes.writeUInt32BE(magic, 0);
  bytes.writeUInt32BE(header.tracksChecksum ? 0 : flagNoChecksum, 4);
  bytes.writeUInt32BE(header.pageSize, 8);
  bytes.writeUInt32BE(header.commit, 12);
  bytes.writeBigUInt64BE(header.minTxid, 16);
  bytes.writeBigUInt64BE(header.maxTxid, 24);
  bytes.writeBigInt64BE(BigInt(header.timestampMs), 32);
  bytes.writeBigUInt64BE(header.preApplyChecksum, 40);
  bytes.writeBigInt64BE(BigInt(header.walOffset), 48);
  bytes.writeBigInt64BE(BigInt(header.walBytes), 56);
  bytes.writeUInt32BE(header.walSalt1, 64);
  bytes.writeUInt32BE(header.walSalt2, 68);
  bytes.writeBigUInt64BE(header.nodeId, 72);
  return bytes;
}

/** Reads and checks a header; throws LtxFailure. */
export function decodeHeader(from: Uint8Array): LtxHeader {
  if (from.length < headerBytes) throw new LtxFailure("truncated", "the file ends within its header");
  const bytes = Buffer.from(from.buffer, from.byteOffset, headerBytes);
  if (bytes.readUInt32BE(0) !== magic) throw new LtxFailure("header", "the file is no LTX file");
  const flags = bytes.readUInt32BE(4);
  if ((flags & ~flagNoChecksum) !== 0) throw new LtxFailure("header", `unknown flags 0x${flags.toString(16)}`);
  const header = {
    pageSize: bytes.readUInt32BE(8),
    commit: bytes.readUInt32BE(12),
    minTxid: bytes.readBigUInt64BE(16),
    maxTxid: bytes.readBigUInt64BE(24),
    timestampMs: integer(bytes, 32, "timestamp"),
    tracksChecksum: flags === 0,
    preApplyChecksum: bytes.readBigUInt64BE(40),
    walOffset: integer(bytes, 48, "WAL offset"),
    walBytes: integer(bytes, 56, "WAL size"),
    walSalt1: bytes.readUInt32BE(64),
    walSalt2: bytes.readUInt32BE(68),
    nodeId: bytes.readBigUInt64BE(72),
  };
  const problem = headerProblem(header);
  if (problem !== undefined) throw new LtxFailure("header", problem);
  return header;
}

function integer(bytes: Buffer, offset: number, name: string): number {
  const value = Number(bytes.readBigInt64BE(offset));
  if (!Number.isSafeInteger(value)) throw new LtxFailure("header", `the ${name} is out of range`);
  return value;
}

function headerProblem(header: LtxHeader): string | undefined {
  const { pageSize, minTxid, maxTxid, walOffset, walBytes, walSalt1, walSalt2, preApplyChecksum } = header;
  if (!isPageSize(pageSize)) return `${pageSize} is no page size`;
  if (minTxid < 1n || minTxid > maxTxid) return `${minTxid} to ${maxTxid} is no range of TXIDs`;
  if (walOffset < 0 || walBytes < 0) return "the WAL range is negative";
  if ((walSalt1 !== 0 || walSalt2 !== 0) && walOffset === 0) return "WAL salts without a WAL offset";
  if (walOffset === 0 && walBytes !== 0) return "a WAL size without a WAL offset";
  if (isSnapshot(header) || !header.tracksChecksum) {
    return preApplyChecksum === 0n ? undefined : "a checksum of the state before, where there must be none";
  }
  return preApplyChecksum & checksumFlag ? undefined : "no checksum of the state before";
}
