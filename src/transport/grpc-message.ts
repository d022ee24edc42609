/** The one message of a gRPC request, gathered with its limit, and the frame of an answer. */
import { Code, ConnectError } from "@connectrpc/connect";

/** A flag byte and the length in four. */
export const prefixLength = 5;
const compressedFlag = 1;

export interface ReceivedMessage {
  readonly compressed: boolean;
  readonly bytes: Buffer;
}

/** Takes the pieces as they come. Allocates for what has arrived, never for what is claimed. */
export class MessageReceiver {
  readonly #bytesMax: number;
  #bytes: Buffer | undefined = undefined;
  #isOwn = false;
  #size = 0;
  #wholeSize = -1;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Throws as soon as the message is known to be too large, or not the only one. */
  push(chunk: Buffer): void {
    const size = this.#size + chunk.length;
    if (this.#bytes === undefined) this.#bytes = chunk;
    else this.#append(this.#bytes, chunk, size);
    this.#size = size;
    if (this.#wholeSize < 0 && size >= prefixLength) {
      const length = (this.#bytes as Buffer).readUInt32BE(1);
      if (length > this.#bytesMax) throw tooLarge(this.#bytesMax);
      this.#wholeSize = prefixLength + length;
    }
    if (this.#wholeSize >= 0 && size > this.#wholeSize) {
      throw new ConnectError("protocol error: more than one message", Code.Unimplemented);
    }
  }

  /** The message, when the request has ended. */
  take(): ReceivedMessage {
    const bytes = this.#bytes;
    if (bytes === undefined || this.#size === 0) {
      throw new ConnectError("protocol error: no message", Code.Unimplemented);
    }
    if (this.#size !== this.#wholeSize) {
      throw new ConnectError("protocol error: incomplete message", Code.InvalidArgument);
    }
    return {
      compressed: ((bytes[0] ?? 0) & compressedFlag) !== 0,
      bytes: bytes.subarray(prefixLength, this.#wholeSize),
    };
  }

  /** Many small pieces become one buffer, so that none keeps a whole read buffer alive. */
  #append(bytes: Buffer, chunk: Buffer, size: number): void {
    if (!this.#isOwn || bytes.length < size) {
      const grown = Buffer.allocUnsafeSlow(Math.max(size, Math.min(2 * bytes.length, prefixLength + this.#bytesMax)));
      bytes.copy(grown, 0, 0, this.#size);
      this.#bytes = grown;
      this.#isOwn = true;
    }
    chunk.copy(this.#bytes as Buffer, this.#size);
  }
}

export function tooLarge(bytesMax: number): ConnectError {
  return new ConnectError(`the message is larger than ${bytesMax} bytes`, Code.ResourceExhausted);
}

/** A frame of parts that follow each other. */
export function frameOf(parts: readonly Uint8Array[], length: number, compressed = false): Buffer {
  const frame = Buffer.allocUnsafe(prefixLength + length);
  writePrefix(frame, length, compressed);
  let offset = prefixLength;
  for (const part of parts) {
    frame.set(part, offset);
    offset += part.length;
  }
  return frame;
}

export function prefixOf(length: number, compressed: boolean): Buffer {
  const prefix = Buffer.allocUnsafe(prefixLength);
  writePrefix(prefix, length, compressed);
  return prefix;
}

export function lengthOf(parts: readonly Uint8Array[]): number {
  let length = 0;
  for (const part of parts) length += part.length;
  return length;
}

function writePrefix(target: Buffer, length: number, compressed: boolean): void {
  target[0] = compressed ? compressedFlag : 0;
  target.writeUInt32BE(length, 1);
}
