/** Unsigned LEB128: seven bits a byte, low ones first, the high bit says that more follow. */
import { LtxFailure } from "./ltx-failure.ts";

/** Bytes of the largest safe integer. */
export const varintBytesMax = 8;

/** Writes a safe integer and returns the offset behind it. */
export function writeVarint(target: Uint8Array, offset: number, value: number): number {
  let rest = value;
  let at = offset;
  while (rest >= 128) {
    target[at++] = (rest % 128) | 128;
    rest = Math.floor(rest / 128);
  }
  target[at++] = rest;
  return at;
}

/** Reads varints one after the other; LtxFailure "index" for those that are cut, too large, or longer than needed. */
export class VarintReader {
  readonly #bytes: Uint8Array;
  #position = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get position(): number {
    return this.#position;
  }

  next(): number {
    let value = 0;
    let factor = 1;
    for (let count = 1; count <= varintBytesMax; count++) {
      const byte = this.#bytes[this.#position++];
      if (byte === undefined) throw new LtxFailure("index", "the page index is cut");
      value += (byte & 127) * factor;
      if (byte < 128) {
        if (byte === 0 && count > 1) break;
        if (!Number.isSafeInteger(value)) break;
        return value;
      }
      factor *= 128;
    }
    throw new LtxFailure("index", "the page index holds a number that is not well-formed");
  }
}
