/** The index of a file's pages: number, offset and size of each page frame, ascending (ltx.md 2.5). */

import { headerBytes } from "./header.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { PageOrder, type PageOrderFacts } from "./pages.ts";
import { VarintReader, varintBytesMax, writeVarint } from "./varint.ts";

/** Where a page lies in its file. */
export interface PageFrameRange {
  /** Of the page's header, from the start of the file. */
  readonly offset: number;
  readonly byteCount: number;
}

/** The end of the index: a varint 0. The number of bytes up to and with it follows in `indexLengthBytes`. */
export const indexEnd = Buffer.from([0]);
export const indexLengthBytes = 8;

const chunkBytes = 4_096;
const entryBytesMax = 3 * varintBytesMax;

/** Writes the entries of an index in chunks, about ten bytes a page. */
export class PageIndexWriter {
  readonly #emit: (chunk: Buffer) => void;
  #chunk = Buffer.allocUnsafe(chunkBytes);
  #position = 0;
  #emitted = 0;

  /** `emit` keeps the chunks it gets. */
  constructor(emit: (chunk: Buffer) => void) {
    this.#emit = emit;
  }

  add(pageNumber: number, { offset, byteCount }: PageFrameRange): void {
    if (this.#position + entryBytesMax > chunkBytes) this.#flush();
    let at = writeVarint(this.#chunk, this.#position, pageNumber);
    at = writeVarint(this.#chunk, at, offset);
    this.#position = writeVarint(this.#chunk, at, byteCount);
  }

  /** Emits what is left, with the end; returns the bytes of the whole. */
  end(): number {
    this.#flush();
    this.#emit(indexEnd);
    return this.#emitted + indexEnd.length;
  }

  #flush(): void {
    if (this.#position === 0) return;
    this.#emit(this.#chunk.subarray(0, this.#position));
    this.#emitted += this.#position;
    this.#chunk = Buffer.allocUnsafe(chunkBytes);
    this.#position = 0;
  }
}

/** An index in memory, 16 bytes a page. */
export class PageIndex {
  readonly #numbers: Uint32Array;
  readonly #offsets: Float64Array;
  readonly #byteCounts: Uint32Array;

  private constructor(numbers: Uint32Array, offsets: Float64Array, byteCounts: Uint32Array) {
    this.#numbers = numbers;
    this.#offsets = offsets;
    this.#byteCounts = byteCounts;
  }

  /**
   * Reads the bytes of an index up to and with its end. Pages have to obey the order of `facts`, and their frames to lie
   * without gaps between the header and `framesEnd`. Throws LtxFailure.
   */
  static parse(bytes: Uint8Array, facts: PageOrderFacts, framesEnd: number): PageIndex {
    // An entry takes three bytes or more.
    const countMax = Math.floor(bytes.length / 3);
    const numbers = new Uint32Array(countMax);
    const offsets = new Float64Array(countMax);
    const byteCounts = new Uint32Array(countMax);
    const order = new PageOrder(facts);
    const reader = new VarintReader(bytes);
    let count = 0;
    let expectedOffset = headerBytes;
    for (let number = reader.next(); number !== 0; number = reader.next()) {
      const offset = reader.next();
      const byteCount = reader.next();
      const problem = order.take(number);
      if (problem !== undefined) throw new LtxFailure("index", problem);
      if (offset !== expectedOffset || byteCount === 0 || byteCount > framesEnd - offset) {
        throw new LtxFailure("index", `the index has page ${number} in a wrong place`);
      }
      expectedOffset += byteCount;
      numbers[count] = number;
      offsets[count] = offset;
      byteCounts[count] = byteCount;
      count++;
    }
    const problem = order.end();
    if (problem !== undefined) throw new LtxFailure("index", problem);
    if (reader.position !== bytes.length || expectedOffset !== framesEnd) {
      throw new LtxFailure("index", "the index does not end where it should");
    }
    return new PageIndex(numbers.slice(0, count), offsets.slice(0, count), byteCounts.slice(0, count));
  }

  /** Pages in the file. */
  get pageCount(): number {
    return this.#numbers.length;
  }

  /** Page numbers, ascending. */
  pageNumbers(): Iterable<number> {
    return this.#numbers.values();
  }

  find(pageNumber: number): PageFrameRange | undefined {
    let low = 0;
    let high = this.#numbers.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const number = this.#numbers[middle] as number;
      if (number === pageNumber) {
        return { offset: this.#offsets[middle] as number, byteCount: this.#byteCounts[middle] as number };
      }
      if (number < pageNumber) low = middle + 1;
      else high = middle - 1;
    }
    return undefined;
  }
}
