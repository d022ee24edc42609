/**
 * Frames on a byte stream: a length (32 bits, little-endian, itself not counted) and that many bytes.
 * Reading costs no copy for frames that arrive whole; one that arrives in pieces is put together in a buffer of its size.
 */

export const FRAME_LENGTH_BYTES = 4;

/** Sees one frame's bytes without the length; they stay valid as long as they are referenced. */
export type OnFrame = (buffer: Buffer, start: number, end: number) => void;

/** Takes a stream's chunks and calls `onFrame` for every whole frame, in order. */
export class FrameReader {
  readonly #onFrame: OnFrame;
  readonly #frameBytesMax: number;
  readonly #length = Buffer.alloc(FRAME_LENGTH_BYTES);
  #lengthFilled = 0;
  #partial: Buffer | undefined;
  #partialFilled = 0;

  constructor(frameBytesMax: number, onFrame: OnFrame) {
    this.#frameBytesMax = frameBytesMax;
    this.#onFrame = onFrame;
  }

  /** The chunk belongs to the reader from now on. Throws when a length is over the bound; the stream is then useless. */
  push(chunk: Buffer): void {
    let at = this.#finish(chunk);
    while (chunk.length - at >= FRAME_LENGTH_BYTES) {
      const length = this.#checked(chunk.readUInt32LE(at));
      const start = at + FRAME_LENGTH_BYTES;
      if (chunk.length - start < length) {
        this.#begin(length);
        at = this.#fill(chunk, start);
        return;
      }
      at = start + length;
      this.#onFrame(chunk, start, at);
    }
    if (at < chunk.length) this.#lengthFilled = chunk.copy(this.#length, 0, at);
  }

  /** Completes what earlier chunks began; returns where the next frame of this chunk starts. */
  #finish(chunk: Buffer): number {
    let at = 0;
    if (this.#lengthFilled > 0) {
      at = chunk.copy(this.#length, this.#lengthFilled, 0, FRAME_LENGTH_BYTES - this.#lengthFilled);
      this.#lengthFilled += at;
      if (this.#lengthFilled < FRAME_LENGTH_BYTES) return at;
      this.#lengthFilled = 0;
      this.#begin(this.#checked(this.#length.readUInt32LE(0)));
    }
    return this.#partial === undefined ? at : this.#fill(chunk, at);
  }

  #checked(length: number): number {
    if (length > this.#frameBytesMax) throw new RangeError(`a frame of ${length} bytes`);
    return length;
  }

  #begin(length: number): void {
    this.#partial = Buffer.allocUnsafeSlow(length);
    this.#partialFilled = 0;
  }

  #fill(chunk: Buffer, from: number): number {
    const partial = this.#partial as Buffer;
    const copied = chunk.copy(partial, this.#partialFilled, from);
    this.#partialFilled += copied;
    if (this.#partialFilled === partial.length) {
      this.#partial = undefined;
      this.#onFrame(partial, 0, partial.length);
    }
    return from + copied;
  }
}

/** Where a writer's bytes go: all parts of a turn at once. */
export type WriteParts = (parts: readonly Buffer[]) => void;

/** Gathers what is written in one turn. Small pieces are copied together; large ones are passed on as they are. */
export class FrameWriter {
  readonly #arena: Buffer;
  readonly #write: WriteParts;
  #sealed = 0;
  #at = 0;
  #parts: Buffer[] = [];

  constructor(arenaBytes: number, write: WriteParts) {
    this.#arena = Buffer.allocUnsafeSlow(arenaBytes);
    this.#write = write;
  }

  /** The buffer to write into, at the position that `claim` returned. */
  get buffer(): Buffer {
    return this.#arena;
  }

  get isEmpty(): boolean {
    return this.#at === 0 && this.#parts.length === 0;
  }

  /** A place for `bytes` (far fewer than the arena has); the caller fills all of it. */
  claim(bytes: number): number {
    if (this.#at + bytes > this.#arena.length) {
      this.#seal();
      // What was sealed is copied, so the arena starts over.
      this.#sealed = 0;
      this.#at = 0;
    }
    const at = this.#at;
    this.#at += bytes;
    return at;
  }

  /** Appends bytes that nobody changes until they are written. */
  append(bytes: Uint8Array): void {
    if (bytes.length <= this.#arena.length >> 4) {
      this.#arena.set(bytes, this.claim(bytes.length));
      return;
    }
    this.#seal();
    this.#parts.push(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length));
  }

  flush(): void {
    if (this.isEmpty) return;
    this.#seal();
    const parts = this.#parts;
    this.#parts = [];
    this.#sealed = 0;
    this.#at = 0;
    this.#write(parts);
  }

  #seal(): void {
    if (this.#at > this.#sealed) this.#parts.push(Buffer.from(this.#arena.subarray(this.#sealed, this.#at)));
    this.#sealed = this.#at;
  }
}
