/** CRC-64/GO-ISO: polynomial 0x1B, reflected, all ones before and after (ltx.md 3.1). */
import { createCRC64, type IHasher } from "hash-wasm";

const reflectedPolynomial = "d800000000000000";
const idleHashersMax = 16;

const oneShot = await createCRC64(reflectedPolynomial);
const idle: IHasher[] = [];

/** A running checksum. */
export class Crc64 {
  #hasher: IHasher | undefined;

  private constructor(hasher: IHasher) {
    this.#hasher = hasher.init();
  }

  static async open(): Promise<Crc64> {
    return new Crc64(idle.pop() ?? (await createCRC64(reflectedPolynomial)));
  }

  update(bytes: Uint8Array): this {
    this.#take().update(bytes);
    return this;
  }

  /** Ends it: nothing can follow. */
  digest(): bigint {
    const hasher = this.#take();
    this.#hasher = undefined;
    const value = sumOf(hasher);
    if (idle.length < idleHashersMax) idle.push(hasher);
    return value;
  }

  #take(): IHasher {
    if (this.#hasher === undefined) throw new Error("the checksum was taken already");
    return this.#hasher;
  }
}

/** Of bytes that are all there. */
export function crc64(...parts: readonly Uint8Array[]): bigint {
  oneShot.init();
  for (const part of parts) oneShot.update(part);
  return sumOf(oneShot);
}

function sumOf(hasher: IHasher): bigint {
  const { buffer, byteOffset } = hasher.digest("binary");
  return new DataView(buffer, byteOffset, 8).getBigUint64(0);
}
