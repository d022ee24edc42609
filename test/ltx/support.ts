/** What tests of the log share. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as fc from "fast-check";
import type { ByteSource } from "../../src/ltx/byte-reader.ts";
import { LtxDecoder } from "../../src/ltx/decoder.ts";
import { type EncodeOptions, encodeLtx, type LtxFileSummary } from "../../src/ltx/encoder.ts";
import type { LtxFileFacts, LtxHeader } from "../../src/ltx/header.ts";
import { LtxFailure, type LtxProblem } from "../../src/ltx/ltx-failure.ts";
import { lockPageNumber, type Page, type PageSource } from "../../src/ltx/pages.ts";
import type { RangedSource } from "../../src/ltx/ranged-file.ts";
import type { LtxTrailer } from "../../src/ltx/trailer.ts";

const fixtures = join(import.meta.dirname, "..", "fixtures", "ltx");

export const fixture = (name: string): Buffer => readFileSync(join(fixtures, name));

export const pageSizes = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/** All chunks, and what the generator returned. */
export async function collect<Result>(
  chunks: AsyncGenerator<Uint8Array, Result, undefined>,
): Promise<{ bytes: Buffer; result: Result }> {
  const all: Uint8Array[] = [];
  for (;;) {
    const { done, value } = await chunks.next();
    if (done === true) return { bytes: Buffer.concat(all), result: value };
    all.push(value);
  }
}

export async function encode(facts: LtxFileFacts, pages: PageSource, options?: EncodeOptions): Promise<Buffer> {
  return (await encodeWithSummary(facts, pages, options)).bytes;
}

export function encodeWithSummary(
  facts: LtxFileFacts,
  pages: PageSource,
  options?: EncodeOptions,
): Promise<{ bytes: Buffer; result: LtxFileSummary }> {
  return collect(encodeLtx(facts, pages, options));
}

export interface Decoded {
  readonly header: LtxHeader;
  readonly trailer: LtxTrailer;
  readonly pages: readonly Page[];
}

export async function decode(source: ByteSource): Promise<Decoded> {
  const decoder = await LtxDecoder.open(source);
  const pages: Page[] = [];
  for await (const page of decoder.pages()) pages.push(page);
  return { header: decoder.header, trailer: decoder.trailer, pages };
}

/** The problem that reading ends with; everything else fails the test. */
export async function problemOf(reading: Promise<unknown>): Promise<LtxProblem | "none"> {
  try {
    await reading;
    return "none";
  } catch (error) {
    if (error instanceof LtxFailure) return error.problem;
    throw error;
  }
}

/** Bytes cut into chunks of odd sizes. */
export function* cut(bytes: Uint8Array, sizes: readonly number[]): Generator<Uint8Array, void, undefined> {
  for (let offset = 0, turn = 0; offset < bytes.length; turn++) {
    const size = sizes[turn % sizes.length] ?? 1;
    yield bytes.subarray(offset, offset + size);
    offset += size;
  }
}

/** A buffer as something that is read in ranges; counts the reads. */
export function ranged(bytes: Buffer): RangedSource & { reads: number } {
  const source = {
    byteCount: bytes.length,
    reads: 0,
    async read(offset: number, byteCount: number) {
      source.reads++;
      return bytes.subarray(offset, offset + byteCount);
    },
  };
  return source;
}

export const snapshotFacts = (pageSize: number, commit: number, maxTxid = 1n): LtxFileFacts => ({
  pageSize,
  commit,
  minTxid: 1n,
  maxTxid,
  timestampMs: 1_700_000_000_000,
});

export const incrementFacts = (pageSize: number, commit: number, txid: bigint): LtxFileFacts => ({
  pageSize,
  commit,
  minTxid: txid,
  maxTxid: txid,
  timestampMs: 1_700_000_000_000 + Number(txid),
});

/** Kinds of content: zeros, text that repeats, ramps, noise. */
export function pageContent(pageSize: number, kind: number, seed: number): Buffer {
  const bytes = Buffer.alloc(pageSize);
  if (kind % 4 === 1) bytes.fill(`row ${seed}, `);
  if (kind % 4 === 2) for (let index = 0; index < pageSize; index++) bytes[index] = (index + seed) & 255;
  if (kind % 4 === 3) {
    let state = (seed * 2_654_435_761 + 1) >>> 0;
    for (let index = 0; index < pageSize; index++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      bytes[index] = state >>> 24;
    }
  }
  return bytes;
}

/** A file's facts and pages that obey every rule. */
export interface FileCase {
  readonly facts: LtxFileFacts;
  readonly pages: readonly Page[];
}

export const fileCases: fc.Arbitrary<FileCase> = fc
  .record({
    pageSize: fc.constantFrom(...pageSizes),
    commit: fc.integer({ min: 1, max: 24 }),
    isSnapshot: fc.boolean(),
    numbers: fc.uniqueArray(fc.integer({ min: 1, max: 24 }), { maxLength: 12 }),
    kind: fc.nat(3),
    seed: fc.nat(1_000_000),
    span: fc.nat(5),
    wal: fc.option(fc.record({ walOffset: fc.integer({ min: 32, max: 2 ** 40 }), walBytes: fc.nat(2 ** 30) })),
  })
  .map(({ pageSize, commit, isSnapshot, numbers, kind, seed, span, wal }) => {
    const all = Array.from({ length: commit }, (_, index) => index + 1);
    const chosen = isSnapshot ? all : numbers.filter((number) => number <= commit).sort((a, b) => a - b);
    const minTxid = isSnapshot ? 1n : 2n + BigInt(seed);
    return {
      facts: { pageSize, commit, minTxid, maxTxid: minTxid + BigInt(span), timestampMs: seed, ...(wal ?? {}) },
      pages: chosen.map((number) => ({ number, bytes: pageContent(pageSize, kind + number, seed + number) })),
    };
  });

/** What a chain of files should lead to, kept as plain pages. */
export class ModelDatabase {
  readonly pageSize: number;
  readonly pages = new Map<number, Buffer>();
  commit = 0;

  constructor(pageSize: number) {
    this.pageSize = pageSize;
  }

  /** Sets the size and changes pages; new ones are all changed. Returns the changed pages, ascending. */
  apply(commit: number, changed: readonly number[], seed: number): Page[] {
    const grown = Array.from({ length: Math.max(0, commit - this.commit) }, (_, index) => this.commit + 1 + index);
    for (const number of this.pages.keys()) if (number > commit) this.pages.delete(number);
    this.commit = commit;
    const lockPage = lockPageNumber(this.pageSize);
    const numbers = [...new Set([...changed, ...grown])].filter((number) => number <= commit && number !== lockPage);
    return numbers
      .sort((a, b) => a - b)
      .map((number) => {
        const bytes = pageContent(this.pageSize, seed + number, seed * 31 + number);
        this.pages.set(number, bytes);
        return { number, bytes };
      });
  }

  bytes(): Buffer {
    const all = Array.from(
      { length: this.commit },
      (_, index) => this.pages.get(index + 1) ?? Buffer.alloc(this.pageSize),
    );
    return Buffer.concat(all);
  }
}
