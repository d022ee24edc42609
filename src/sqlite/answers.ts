/**
 * The answers of an executor on their way out. Results are written by the native library straight into the outbox, memory that
 * the server sees too: what a long statement keeps from being sent it takes from there. Only what does not fit is carried
 * beside it.
 */
import type { WriteParts } from "./frames.ts";
import { FRAME_LENGTH_BYTES } from "./frames.ts";
import {
  ANSWER_FLAGS,
  ANSWER_HEADER_BYTES,
  ANSWER_ID,
  ANSWER_KIND,
  ANSWER_WAL_FRAMES,
  DONE_SALT,
  OUTBOX_BYTES,
  OUTBOX_SLACK_BYTES,
  SALT_BYTES,
  WORD_OUTBOX_END,
  WORD_OUTBOX_TURN,
  WORDS_BYTES,
} from "./protocol.ts";
import { varintSize, writeVarint } from "./wire.ts";

/** Sent when less than this is left, so that an average result has its place. */
const ROOM_BYTES = 128 * 1024;

const PREFIX_BYTES = FRAME_LENGTH_BYTES + ANSWER_HEADER_BYTES;
/** Tag and length of a short result; longer ones move. */
const SHORT_WRAP_BYTES = 2;
/** Tag of field 1, length-delimited: `result` and `results`. */
const RESULT_TAG = 0x0a;

export class Answers {
  readonly #buffer: Buffer;
  readonly #words: Int32Array;
  readonly #write: WriteParts;
  /** Where the frame that is being written begins. */
  #frame = 0;
  /** Where its body ends so far. */
  #end = PREFIX_BYTES;
  /** Parts of the body that did not fit. */
  #spilt: Buffer[] = [];
  #spiltBytes = 0;

  /** `page`: the memory shared with the server, see protocol.ts. */
  constructor(page: ArrayBufferLike, write: WriteParts) {
    this.#buffer = Buffer.from(page, WORDS_BYTES, OUTBOX_BYTES + OUTBOX_SLACK_BYTES);
    this.#words = new Int32Array(page, 0, WORDS_BYTES / Int32Array.BYTES_PER_ELEMENT);
    this.#write = write;
  }

  /** What native code may write to. */
  get lent(): Buffer {
    return this.#buffer.subarray(0, OUTBOX_BYTES);
  }

  get buffer(): Buffer {
    return this.#buffer;
  }

  /** Begins a body; an unfinished one is dropped. */
  begin(): void {
    if (this.#frame > OUTBOX_BYTES - ROOM_BYTES) this.flush();
    this.#end = this.#frame + PREFIX_BYTES;
    if (this.#spilt.length > 0) this.#spilt = [];
    this.#spiltBytes = 0;
  }

  /** Where the next bytes of the body go. */
  get at(): number {
    return this.#end;
  }

  /** Where a result goes that `wrap` will take. */
  get resultAt(): number {
    return this.#end + SHORT_WRAP_BYTES;
  }

  /** Bytes of the body so far. */
  get bodyBytes(): number {
    return this.#end - this.#frame - PREFIX_BYTES + this.#spiltBytes;
  }

  /** The body so far, valid until it goes on. */
  body(): Buffer {
    const here = this.#buffer.subarray(this.#frame + PREFIX_BYTES, this.#end);
    return this.#spilt.length === 0 ? here : Buffer.concat([...this.#spilt, here]);
  }

  /** Takes what native code wrote at `at`, or gave as a buffer of its own. */
  take(written: number | Buffer): void {
    if (typeof written === "number") this.#end += written;
    else this.#spill(written);
  }

  /** Takes a result that native code wrote at `resultAt`, or gave as a buffer of its own, as `result = 1`. */
  wrap(result: number | Buffer): void {
    const length = typeof result === "number" ? result : result.length;
    const width = varintSize(length);
    const at = this.#end;
    if (typeof result === "number" && width > 1)
      this.#buffer.copyWithin(at + 1 + width, at + SHORT_WRAP_BYTES, at + SHORT_WRAP_BYTES + length);
    this.#buffer[at] = RESULT_TAG;
    this.#end = writeVarint(this.#buffer, at + 1, length);
    if (typeof result === "number") {
      this.#end += length;
      // Native code needs room for the next one.
      if (this.#end > OUTBOX_BYTES - ROOM_BYTES) this.#spill(undefined);
    } else this.#spill(result);
  }

  append(bytes: Uint8Array): void {
    if (this.#end + bytes.length > OUTBOX_BYTES) this.#spill(Buffer.from(bytes));
    else {
      this.#buffer.set(bytes, this.#end);
      this.#end += bytes.length;
    }
  }

  /** Ends the frame. With `salt` the body is preceded by it. */
  finish(id: number, kind: number, flags: number, walFrames: number, salt: Buffer | undefined): void {
    const start = this.#frame;
    if (salt !== undefined) {
      if (this.#spilt.length > 0) {
        this.#spilt.unshift(salt);
        this.#spiltBytes += SALT_BYTES;
      } else {
        this.#buffer.copyWithin(start + PREFIX_BYTES + SALT_BYTES, start + PREFIX_BYTES, this.#end);
        this.#buffer.set(salt, start + PREFIX_BYTES);
        this.#end += SALT_BYTES;
      }
    }
    const header = start + FRAME_LENGTH_BYTES;
    this.#buffer.writeUInt32LE(ANSWER_HEADER_BYTES + this.bodyBytes, start);
    this.#buffer.writeInt32LE(id, header + ANSWER_ID);
    this.#buffer[header + ANSWER_KIND] = kind;
    this.#buffer[header + ANSWER_FLAGS] = salt === undefined ? flags : flags | DONE_SALT;
    this.#buffer.writeUInt32LE(walFrames, header + ANSWER_WAL_FRAMES);
    if (this.#spilt.length === 0) {
      this.#frame = this.#end;
      Atomics.store(this.#words, WORD_OUTBOX_END, this.#end);
      return;
    }
    const parts = [
      Buffer.from(this.#buffer.subarray(0, start + PREFIX_BYTES)),
      ...this.#spilt,
      Buffer.from(this.#buffer.subarray(start + PREFIX_BYTES, this.#end)),
    ];
    this.#write(parts);
    this.#empty();
    this.begin();
  }

  /** Sends all finished frames. */
  flush(): void {
    if (this.#frame === 0) return;
    this.#write([Buffer.from(this.#buffer.subarray(0, this.#frame))]);
    this.#empty();
  }

  /** After everything was handed over: the server sees an answer in the outbox, on the socket, or on both. */
  #empty(): void {
    this.#frame = 0;
    Atomics.store(this.#words, WORD_OUTBOX_END, 0);
    Atomics.add(this.#words, WORD_OUTBOX_TURN, 1);
  }

  #spill(then: Buffer | undefined): void {
    const bodyAt = this.#frame + PREFIX_BYTES;
    if (this.#end > bodyAt) {
      this.#spilt.push(Buffer.from(this.#buffer.subarray(bodyAt, this.#end)));
      this.#spiltBytes += this.#end - bodyAt;
    }
    if (then !== undefined) {
      this.#spilt.push(then);
      this.#spiltBytes += then.length;
    }
    this.#end = bodyAt;
  }
}
