/**
 * The packages that compress and hash pages. Loading them takes 15 ms, and a start needs none of them: they come with the
 * first file that is written or read.
 */
import type { IHasher } from "hash-wasm";

export interface Codecs {
  readonly compressBlock: (bytes: Buffer) => Buffer;
  readonly uncompressBlock: (bytes: Buffer) => Buffer;
  readonly xxHash32: IHasher;
  readonly crc64: IHasher;
  readonly newCrc64: () => Promise<IHasher>;
}

/** CRC-64/GO-ISO: polynomial 0x1B, reflected (ltx.md 3.1). */
const reflectedPolynomial = "d800000000000000";

let loading: Promise<Codecs> | undefined;
let loaded: Codecs | undefined;

/** To be awaited before `codecs()`; at once from the second time on. */
export async function loadCodecs(): Promise<Codecs> {
  if (loaded !== undefined) return loaded;
  loading ??= load();
  loaded = await loading;
  return loaded;
}

/** For code that runs after `loadCodecs`. */
export function codecs(): Codecs {
  if (loaded === undefined) throw new Error("the codecs are not loaded yet");
  return loaded;
}

async function load(): Promise<Codecs> {
  const [{ createCRC64, createXXHash32 }, { compressSync, uncompressSync }] = await Promise.all([
    import("hash-wasm"),
    import("lz4-napi"),
  ]);
  const newCrc64 = () => createCRC64(reflectedPolynomial);
  const [crc64, xxHash32] = await Promise.all([newCrc64(), createXXHash32(0)]);
  return { compressBlock: compressSync, uncompressBlock: uncompressSync, xxHash32, crc64, newCrc64 };
}
