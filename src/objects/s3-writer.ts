/** Objects of a bucket as they are put: whole or in parts, under their conditions. */
import { bounded } from "./bounded.ts";
import { Limiter } from "./limiter.ts";
import {
  checkKey,
  isObjectStoreError,
  type ObjectCall,
  type ObjectInfo,
  type ObjectSource,
  ObjectStoreError,
  type PutOptions,
  readSource,
  sourceOf,
  unwrapSource,
} from "./object-store.ts";
import { REPEAT_COUNT_MAX, type S3Connection, type Sending } from "./s3-connection.ts";
import { isAbsence, isConflict, readS3Error } from "./s3-errors.ts";
import type { S3Reader } from "./s3-reader.ts";
import {
  CRC_METADATA,
  checksum,
  conditionHeaders,
  md5,
  PUT_METADATA,
  TIMESTAMP_METADATA,
  unquoted,
} from "./s3-wire.ts";

const PART_COUNT_MAX = 10_000;
/** What is done after a call has failed may take this long. */
const CLEANUP_MS = 10_000;

interface Uploaded {
  readonly etag: string;
}

export class S3Writer {
  readonly #connection: S3Connection;
  readonly #reader: S3Reader;
  readonly #partLimiter: Limiter;
  readonly #cleanups = new Set<Promise<void>>();

  constructor(connection: S3Connection, reader: S3Reader) {
    this.#connection = connection;
    this.#reader = reader;
    const { partConcurrencyMax: concurrencyMax, waitingCountMax } = connection.limits;
    this.#partLimiter = new Limiter({ clock: connection.clock, concurrencyMax, waitingCountMax });
  }

  async put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo> {
    checkKey(key);
    const source = sourceOf(body);
    const putId = Buffer.from(this.#connection.random(12)).toString("hex");
    const metadata: Record<string, string> = { [PUT_METADATA]: putId };
    if (options.timestampMs !== undefined) {
      metadata[TIMESTAMP_METADATA] = new Date(options.timestampMs).toISOString();
    }
    if (body instanceof Uint8Array) metadata[CRC_METADATA] = checksum(body);
    const whole = source.sizeBytes <= this.#connection.limits.partBytes;
    const { etag } = await unwrapSource(
      whole ? this.#putWhole(key, source, metadata, options) : this.#putParts(key, source, metadata, options),
    );
    return {
      key,
      sizeBytes: source.sizeBytes,
      etag,
      timestampMs: options.timestampMs ?? this.#connection.clock.wallMs(),
    };
  }

  /** When nothing is left to be taken back. */
  async cleanedUp(): Promise<void> {
    await Promise.all(this.#cleanups);
  }

  async #putWhole(
    key: string,
    source: ObjectSource,
    metadata: Record<string, string>,
    options: PutOptions,
  ): Promise<Uploaded> {
    return this.#conditionally("PutObject", key, metadata, options, async (condition, send) => {
      const body = await readSource(source, 0, source.sizeBytes);
      return this.#connection.client.send(
        new this.#connection.sdk.PutObjectCommand({
          Bucket: this.#connection.bucket,
          Key: key,
          Body: body,
          ContentLength: body.length,
          ...this.#integrity(body),
          Metadata: metadata,
          ...condition,
        }),
        send,
      );
    });
  }

  async #putParts(
    key: string,
    source: ObjectSource,
    metadata: Record<string, string>,
    options: PutOptions,
  ): Promise<Uploaded> {
    const target = { Bucket: this.#connection.bucket, Key: key };
    let uploadId: string | undefined;
    try {
      const created = await this.#connection.call(
        "PutObject",
        key,
        options,
        (send) =>
          this.#connection.client.send(
            new this.#connection.sdk.CreateMultipartUploadCommand({ ...target, Metadata: metadata }),
            send,
          ),
        { dropped: ({ UploadId }) => this.#abandon(key, UploadId) },
      );
      uploadId = created.UploadId;
      const upload = { ...target, UploadId: uploadId };
      const parts = await this.#sendParts(upload, source, options);
      return await this.#conditionally("PutObject", key, metadata, options, (condition, send) =>
        this.#connection.client.send(
          new this.#connection.sdk.CompleteMultipartUploadCommand({
            ...upload,
            MultipartUpload: { Parts: parts },
            ...condition,
          }),
          send,
        ),
      );
    } catch (error) {
      this.#abandon(key, uploadId);
      throw error;
    }
  }

  async #sendParts(
    upload: { Bucket: string; Key: string; UploadId: string | undefined },
    source: ObjectSource,
    options: PutOptions,
  ): Promise<{ PartNumber: number; ETag: string | undefined }[]> {
    const partBytes = Math.max(this.#connection.limits.partBytes, Math.ceil(source.sizeBytes / PART_COUNT_MAX));
    const partCount = Math.ceil(source.sizeBytes / partBytes);
    const parts: { PartNumber: number; ETag: string | undefined }[] = [];
    // One part that fails ends the others.
    const failed = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal;
    const call = { deadlineAtMs: options.deadlineAtMs, signal };
    let next = 0;
    const sendSome = async () => {
      while (next < partCount) {
        const index = next++;
        const ETag = await this.#sendPart(upload, source, index, partBytes, call);
        parts[index] = { PartNumber: index + 1, ETag };
      }
    };
    const senders = Array.from({ length: Math.min(partCount, this.#connection.limits.partConcurrencyMax) }, () =>
      sendSome().catch((error: unknown) => {
        failed.abort(error);
        throw error;
      }),
    );
    await Promise.all(senders);
    return parts;
  }

  async #sendPart(
    upload: { Bucket: string; Key: string; UploadId: string | undefined },
    source: ObjectSource,
    index: number,
    partBytes: number,
    call: ObjectCall,
  ): Promise<string | undefined> {
    const release = await bounded(this.#connection.clock, call, (signal) => this.#partLimiter.acquire(signal), {
      dropped: (free) => free(),
    });
    try {
      const offset = index * partBytes;
      const body = await readSource(source, offset, Math.min(partBytes, source.sizeBytes - offset));
      const part = { ...upload, PartNumber: index + 1, Body: body, ContentLength: body.length };
      const { ETag } = await this.#connection.call("PutObject", `${upload.Key}, part ${index + 1}`, call, (send) =>
        this.#connection.client.send(
          new this.#connection.sdk.UploadPartCommand({ ...part, ...this.#integrity(body) }),
          send,
        ),
      );
      this.#partLimiter.succeeded();
      return ETag;
    } finally {
      release();
    }
  }

  /** Takes back the parts of an upload that came to nothing; what waits for them is `close` alone. */
  #abandon(key: string, uploadId: string | undefined): void {
    if (uploadId === undefined) return;
    const upload = { Bucket: this.#connection.bucket, Key: key, UploadId: uploadId };
    const call = { deadlineAtMs: this.#connection.clock.now() + CLEANUP_MS };
    const cleanup = bounded(this.#connection.clock, call, (abortSignal) =>
      this.#connection.client.send(new this.#connection.sdk.AbortMultipartUploadCommand(upload), { abortSignal }),
    ).then(
      () => undefined,
      (error: unknown) => {
        if (readS3Error(error).name === "NoSuchUpload") return;
        this.#connection.onProblem(`parts of ${key} are left over in ${this.#connection.name}`, error);
      },
    );
    this.#cleanups.add(cleanup);
    cleanup.finally(() => this.#cleanups.delete(cleanup));
  }

  /**
   * Sends what makes an object, under its condition. A refusal of a repeated attempt may come from the first one, whose
   * answer was lost: then the object says who put it.
   */
  async #conditionally(
    action: string,
    key: string,
    metadata: Record<string, string>,
    options: PutOptions,
    send: (
      condition: { IfNoneMatch?: string; IfMatch?: string },
      options: Sending,
    ) => Promise<{ ETag?: string | undefined }>,
  ): Promise<Uploaded> {
    const condition = conditionHeaders(options.condition);
    for (let repeat = 0; ; repeat++) {
      try {
        const { ETag } = await this.#connection.call(action, key, options, (call) => send(condition, call));
        return { etag: unquoted(ETag) };
      } catch (error) {
        const cause = error instanceof ObjectStoreError ? error.cause : undefined;
        const found = readS3Error(cause);
        if (isConflict(found) && repeat < REPEAT_COUNT_MAX) {
          await this.#connection.pause(repeat, options);
          continue;
        }
        // An upload is gone when an attempt before has completed it.
        const isGone = found.name === "NoSuchUpload" || isAbsence(found);
        if (found.status !== 412 && !isGone) throw error;
        if (found.attemptCount > 1 || repeat > 0) {
          const own = await this.#ownObject(key, metadata[PUT_METADATA], options);
          if (own !== undefined) return own;
        }
        // Some stores say of what should match that it is not there.
        const isUnmet = found.status === 412 || (options.condition?.ifMatch !== undefined && isAbsence(found));
        if (isUnmet) throw new ObjectStoreError("precondition", (error as Error).message, { cause });
        throw new ObjectStoreError("unavailable", (error as Error).message, { cause });
      }
    }
  }

  async #ownObject(key: string, putId: string | undefined, call: ObjectCall): Promise<Uploaded | undefined> {
    try {
      const { info, metadata } = await this.#reader.head(key, call);
      return metadata[PUT_METADATA] === putId ? info : undefined;
    } catch (error) {
      if (isObjectStoreError(error, "not_found")) return undefined;
      throw error;
    }
  }

  /** AWS takes the SDK's own checksums; others know this one. */
  #integrity(body: Uint8Array): { ContentMD5?: string } {
    return this.#connection.hasEndpoint ? { ContentMD5: md5(body) } : {};
  }
}
