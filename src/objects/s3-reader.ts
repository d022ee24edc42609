/** Objects of a bucket as they are read. */
import type { Readable } from "node:stream";
import type * as Sdk from "@aws-sdk/client-s3";
import { bounded } from "./bounded.ts";
import {
  checkKey,
  checkRange,
  type GetOptions,
  isObjectStoreError,
  type ObjectCall,
  type ObjectInfo,
  ObjectStoreError,
  type ObjectStream,
} from "./object-store.ts";
import { REPEAT_COUNT_MAX, type S3Connection } from "./s3-connection.ts";
import { readS3Error } from "./s3-errors.ts";
import { CRC_METADATA, infoOf, placed, quoted, rangeHeader } from "./s3-wire.ts";

const TIMER_MS_MAX = 2 ** 31 - 1;

/** A stream, and what only `get` needs of its headers. */
export interface Opened {
  readonly stream: ObjectStream;
  readonly crc: string | undefined;
}

export class S3Reader {
  readonly #connection: S3Connection;

  constructor(connection: S3Connection) {
    this.#connection = connection;
  }

  /** With the metadata as they are. */
  async head(key: string, call: ObjectCall): Promise<{ info: ObjectInfo; metadata: Record<string, string> }> {
    checkKey(key);
    const answer = await this.#connection.call("GetObject", key, call, (send) =>
      this.#connection.client.send(
        new this.#connection.sdk.HeadObjectCommand({ Bucket: this.#connection.bucket, Key: key }),
        send,
      ),
    );
    return { info: infoOf(key, answer, answer.ContentLength), metadata: answer.Metadata ?? {} };
  }

  async open(key: string, options: GetOptions): Promise<Opened> {
    checkKey(key);
    checkRange(options.range);
    const wanted = rangeHeader(options.range);
    if (wanted === null) return this.#openNothing(key, options);
    const release = await this.#connection.acquire(options);
    try {
      const answer = await this.#fetch(key, options, { Range: wanted });
      const { offsetBytes, byteCount, sizeBytes } = placed(answer, wanted, `${this.#connection.name}: ${key}`);
      const info = infoOf(key, answer, sizeBytes);
      const stream = this.#stream(info, offsetBytes, byteCount, answer.Body as Readable, options, release);
      return { stream, crc: answer.Metadata?.[CRC_METADATA] };
    } catch (error) {
      release();
      // Nothing of the object lies in the range.
      if (error instanceof ObjectStoreError && readS3Error(error.cause).status === 416)
        return this.#openNothing(key, options);
      throw error;
    }
  }

  async #openNothing(key: string, call: ObjectCall): Promise<Opened> {
    const { info } = await this.head(key, call);
    return { stream: { info, byteCount: 0, chunks: none(), close: () => undefined }, crc: undefined };
  }

  /** The answer's headers; the caller holds the place in the line. */
  async #fetch(
    key: string,
    call: ObjectCall,
    more: { Range: string | undefined; IfMatch?: string },
  ): Promise<Sdk.GetObjectCommandOutput> {
    try {
      return await bounded(
        this.#connection.clock,
        call,
        (abortSignal) =>
          this.#connection.client.send(
            new this.#connection.sdk.GetObjectCommand({ Bucket: this.#connection.bucket, Key: key, ...more }),
            {
              abortSignal,
            },
          ),
        { ended: this.#connection.ended, dropped: ({ Body }) => (Body as Readable | undefined)?.destroy() },
      );
    } catch (error) {
      throw this.#connection.failure(error, "GetObject", key, call);
    }
  }

  #stream(
    info: ObjectInfo,
    offsetBytes: number,
    byteCount: number,
    firstBody: Readable,
    call: ObjectCall,
    release: () => void,
  ): ObjectStream {
    const ended = this.#connection.ended;
    const over = new AbortController();
    let body = firstBody;
    const close = (
      reason: unknown = new ObjectStoreError("unavailable", `${info.key} was closed while it was read`),
    ) => {
      if (over.signal.aborted) return;
      over.abort(reason);
      cancelTimer();
      call.signal?.removeEventListener("abort", onAbort);
      ended.removeEventListener("abort", onEnd);
      body.destroy();
      release();
    };
    const onAbort = () => close(call.signal?.reason);
    const onEnd = () => close(ended.reason);
    const cancelTimer = this.#connection.clock.after(
      Math.min(call.deadlineAtMs - this.#connection.clock.now(), TIMER_MS_MAX),
      () => close(new ObjectStoreError("unavailable", `${info.key} did not come before the deadline`)),
    );
    call.signal?.addEventListener("abort", onAbort, { once: true });
    ended.addEventListener("abort", onEnd, { once: true });
    // Whoever iterates sees the failure; without a listener it would end the process.
    body.on("error", () => undefined);

    const resume = async (done: number): Promise<void> => {
      const range = `bytes=${offsetBytes + done}-${offsetBytes + byteCount - 1}`;
      const answer = await this.#fetch(
        info.key,
        { ...call, signal: over.signal },
        { Range: range, IfMatch: quoted(info.etag) },
      );
      body = answer.Body as Readable;
      body.on("error", () => undefined);
    };
    const waitAfter = (repeat: number) => this.#connection.pause(repeat, { ...call, signal: over.signal });
    const failure = (error: unknown) => this.#connection.failure(error, "GetObject", info.key, call);

    async function* read(): AsyncGenerator<Uint8Array> {
      try {
        let done = 0;
        for (let repeat = 0; ; repeat++) {
          let problem: unknown = new ObjectStoreError("unavailable", `${info.key}: its bytes broke off`);
          try {
            for await (const chunk of body as AsyncIterable<Uint8Array>) {
              done += chunk.length;
              if (done > byteCount) throw new ObjectStoreError("corrupt", `${info.key} has more bytes than it says`);
              yield chunk;
            }
            if (done === byteCount) return;
          } catch (error) {
            problem = error;
          }
          over.signal.throwIfAborted();
          const failed = failure(problem);
          if (isObjectStoreError(failed, "corrupt") || done === byteCount || repeat === REPEAT_COUNT_MAX) throw failed;
          await waitAfter(repeat);
          await resume(done);
        }
      } catch (error) {
        if (isObjectStoreError(error, "precondition")) {
          throw new ObjectStoreError("unavailable", `${info.key} was replaced while it was read`, { cause: error });
        }
        throw error;
      } finally {
        close();
      }
    }
    return { info, byteCount, chunks: read(), close: () => close() };
  }
}

async function* none(): AsyncGenerator<Uint8Array> {
  yield* [];
}
