/** CRC-64/GO-ISO: polynomial 0x1B, reflected, all ones before and after (ltx.md 3.1). */
import type { IHasher } from "hash-wasm";
import { codecs, loadCodecs } from "./codecs.ts";

const idleHashersMax = 16;

const idle: IHasher[] = [];

/** A running checksum. */
export class Crc64 {
  #hasher: IHasher | undefined;

  private constructor(hasher: IHasher) {
    this.#hasher = hasher.init();
  }

  static async open(): Promise<Crc64> {
    const { newCrc64 } = await loadCodecs();
    return new Crc64(idle.pop() ?? (await newCrc64()));
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

/** Of bytes that are all there. The codecs must be loaded. */
export function crc64(...parts: readonly Uint8Array[]): bigint {
  const { crc64: oneShot } = codecs();
  oneShot.init();
  for (const part of parts) oneShot.update(part);
  return sumOf(oneShot);
}

function sumOf(hasher: IHasher): bigint {
  const { buffer, byteOffset } = hasher.digest("binary");
  return new DataView(buffer, byteOffset, 8).getBigUint64(0);
}
