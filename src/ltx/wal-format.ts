/** SQLite's write-ahead log on disk (ltx.md 11.2): a header of 32 bytes, then frames of 24 bytes and a page each. */
import { endianness } from "node:os";
import { LtxFailure } from "./ltx-failure.ts";
import { isPageSize } from "./pages.ts";

export const walHeaderBytes = 32;
export const frameHeaderBytes = 24;

const magicLittleEndian = 0x377f_0682;
const magicBigEndian = 0x377f_0683;
const walVersion = 3_007_000;
const isHostLittleEndian = endianness() === "LE";

/** Tells one life of a WAL from the next: drawn anew whenever the WAL starts over, and in no order. */
export interface WalSalts {
  readonly walSalt1: number;
  readonly walSalt2: number;
}

/** A header whose checksum is right. */
export interface WalHeader extends WalSalts {
  readonly pageSize: number;
  /** Whether checksums are over big-endian words. */
  readonly isBigEndian: boolean;
  readonly checksum: WalChecksum;
}

/**
 * Undefined when there are no frames yet: the header is cut, or its checksum is wrong because it is being written.
 * LtxFailure "wal" for a file that is no WAL of this format.
 */
export function decodeWalHeader(from: Uint8Array): WalHeader | undefined {
  if (from.length < walHeaderBytes) return undefined;
  const bytes = Buffer.from(from.subarray(0, walHeaderBytes));
  const magic = bytes.readUInt32BE(0);
  if (magic === 0 && bytes.every((byte) => byte === 0)) return undefined;
  if (magic !== magicLittleEndian && magic !== magicBigEndian) throw new LtxFailure("wal", "the file is no WAL");
  const isBigEndian = magic === magicBigEndian;
  const checksum = new WalChecksum(isBigEndian);
  checksum.update(bytes, 0, 24);
  if (!checksum.equalsStored(bytes, 24)) return undefined;
  const version = bytes.readUInt32BE(4);
  if (version !== walVersion) throw new LtxFailure("wal", `WALs of version ${version} are unknown`);
  const pageSize = bytes.readUInt32BE(8);
  if (!isPageSize(pageSize)) throw new LtxFailure("wal", `${pageSize} is no page size`);
  const walSalt1 = bytes.readUInt32BE(16);
  const walSalt2 = bytes.readUInt32BE(20);
  return { pageSize, isBigEndian, walSalt1, walSalt2, checksum };
}

/** The running checksum of a WAL: two sums over pairs of words, from the header on through all frames. */
export class WalChecksum {
  readonly #isSwapped: boolean;
  #sum0 = 0;
  #sum1 = 0;

  constructor(isBigEndian: boolean) {
    this.#isSwapped = isBigEndian === isHostLittleEndian;
  }

  /** Takes up the sums that are stored at `offset`; they are big-endian always. */
  resume(bytes: Buffer, offset: number): void {
    this.#sum0 = bytes.readInt32BE(offset);
    this.#sum1 = bytes.readInt32BE(offset + 4);
  }

  copy(): WalChecksum {
    const copy = new WalChecksum(this.#isSwapped === isHostLittleEndian);
    copy.#sum0 = this.#sum0;
    copy.#sum1 = this.#sum1;
    return copy;
  }

  /** Takes in whole pairs of words. Fast when they are aligned to four bytes in memory. */
  update(bytes: Buffer, offset: number, byteCount: number): void {
    const start = bytes.byteOffset + offset;
    const words =
      start % 4 === 0
        ? new Int32Array(bytes.buffer, start, byteCount / 4)
        : new Int32Array(Uint8Array.from(bytes.subarray(offset, offset + byteCount)).buffer);
    let sum0 = this.#sum0;
    let sum1 = this.#sum1;
    if (this.#isSwapped) {
      for (let index = 0; index < words.length; index += 2) {
        sum0 = (sum0 + swap(words[index] as number) + sum1) | 0;
        sum1 = (sum1 + swap(words[index + 1] as number) + sum0) | 0;
      }
    } else {
      for (let index = 0; index < words.length; index += 2) {
        sum0 = (sum0 + (words[index] as number) + sum1) | 0;
        sum1 = (sum1 + (words[index + 1] as number) + sum0) | 0;
      }
    }
    this.#sum0 = sum0;
    this.#sum1 = sum1;
  }

  /** Whether the sums stored at `offset` are these. */
  equalsStored(bytes: Buffer, offset: number): boolean {
    return bytes.readInt32BE(offset) === this.#sum0 && bytes.readInt32BE(offset + 4) === this.#sum1;
  }
}

function swap(word: number): number {
  return (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24);
}
