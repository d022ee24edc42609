/** Reads exact numbers of bytes from a stream of chunks, without holding more of it than one chunk and one answer. */
import { LtxFailure } from "./ltx-failure.ts";

/** Chunks of a file in order: a file's stream, the body of an object, or an array. */
export type ByteSource = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

const empty: Uint8Array = new Uint8Array(0);

export class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array> | Iterator<Uint8Array>;
  #chunk: Uint8Array = empty;
  #position = 0;
  #offset = 0;
  #ended = false;

  constructor(source: ByteSource) {
    this.#chunks = Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
  }

  /** Bytes given out so far. */
  get offset(): number {
    return this.#offset;
  }

  /** The next bytes if all of them are here already. Valid until the next call. */
  take(byteCount: number): Uint8Array | undefined {
    const end = this.#position + byteCount;
    if (end > this.#chunk.length) return undefined;
    const bytes = this.#chunk.subarray(this.#position, end);
    this.#position = end;
    this.#offset += byteCount;
    return bytes;
  }

  /** The next bytes, valid until the next call; LtxFailure "truncated" when the stream ends before. */
  async exactly(byteCount: number): Promise<Uint8Array> {
    const here = this.take(byteCount);
    if (here !== undefined) return here;
    const bytes = Buffer.allocUnsafe(byteCount);
    let filled = 0;
    while (filled < byteCount) {
      const part = this.#chunk.subarray(this.#position, this.#position + byteCount - filled);
      bytes.set(part, filled);
      filled += part.length;
      this.#position += part.length;
      if (filled < byteCount && !(await this.#next())) {
        throw new LtxFailure("truncated", `the file ends after ${this.#offset + filled} bytes`);
      }
    }
    this.#offset += byteCount;
    return bytes;
  }

  /** True when no byte is left. */
  async isAtEnd(): Promise<boolean> {
    while (this.#position === this.#chunk.length) {
      if (!(await this.#next())) return true;
    }
    return false;
  }

  /** Ends the stream; needed when it was not read to its end. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#chunk = empty;
    this.#position = 0;
    await this.#chunks.return?.();
  }

  async #next(): Promise<boolean> {
    if (this.#ended) return false;
    const { done, value } = await this.#chunks.next();
    this.#position = 0;
    this.#chunk = done === true ? empty : value;
    this.#ended = done === true;
    return !this.#ended;
  }
}
