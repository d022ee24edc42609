/** An object store behind the S3 API: AWS, R2, MinIO and the others. */
import type * as Sdk from "@aws-sdk/client-s3";
import {
  checkFolderPrefix,
  checkKey,
  checkPrefix,
  checkSize,
  collect,
  compareKeys,
  type GetBytesOptions,
  type GetOptions,
  isKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectCall,
  type ObjectInfo,
  type ObjectSource,
  type ObjectStore,
  ObjectStoreError,
  type ObjectStream,
  type PutOptions,
} from "./object-store.ts";
import { probeStore } from "./probe.ts";
import { S3Connection, type S3StoreOptions } from "./s3-connection.ts";
import { s3Failure } from "./s3-errors.ts";
import { S3Reader } from "./s3-reader.ts";
import { checksum, unquoted } from "./s3-wire.ts";
import { S3Writer } from "./s3-writer.ts";

/** Loads the SDK, which takes a third of a second, and makes a client. Nothing is sent yet: see `probe`. */
export async function openS3Store(options: S3StoreOptions): Promise<ObjectStore> {
  return new S3Store(options, await import("@aws-sdk/client-s3"));
}

const DELETE_COUNT_MAX = 1000;

class S3Store implements ObjectStore {
  readonly name: string;
  readonly #connection: S3Connection;
  readonly #reader: S3Reader;
  readonly #writer: S3Writer;

  constructor(options: S3StoreOptions, sdk: typeof Sdk) {
    this.#connection = new S3Connection(options, sdk);
    this.name = this.#connection.name;
    this.#reader = new S3Reader(this.#connection);
    this.#writer = new S3Writer(this.#connection, this.#reader);
  }

  put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo> {
    return this.#writer.put(key, body, options);
  }

  async get(key: string, options: GetBytesOptions): Promise<ObjectBytes> {
    const { stream, crc } = await this.#reader.open(key, options);
    checkSize(stream, options.bytesMax);
    const bytes = await collect(stream);
    if (options.range === undefined && crc !== undefined && crc !== checksum(bytes)) {
      throw new ObjectStoreError("corrupt", `${this.name}: the bytes of ${key} do not match their checksum`);
    }
    return { info: stream.info, bytes };
  }

  async open(key: string, options: GetOptions): Promise<ObjectStream> {
    return (await this.#reader.open(key, options)).stream;
  }

  async head(key: string, call: ObjectCall): Promise<ObjectInfo> {
    return (await this.#reader.head(key, call)).info;
  }

  async delete(keys: readonly string[], call: ObjectCall): Promise<void> {
    for (const key of keys) checkKey(key);
    for (let index = 0; index < keys.length; index += DELETE_COUNT_MAX) {
      const batch = keys.slice(index, index + DELETE_COUNT_MAX).map((key) => ({ Key: key }));
      const { Errors = [] } = await this.#connection.call("DeleteObject", `${batch.length} objects`, call, (options) =>
        this.#connection.client.send(
          new this.#connection.sdk.DeleteObjectsCommand({
            Bucket: this.#connection.bucket,
            Delete: { Objects: batch, Quiet: true },
          }),
          options,
        ),
      );
      const refused = Errors.find(({ Code }) => Code !== "NoSuchKey");
      if (refused === undefined) continue;
      const { Code: name = "Error", Message: message = "no reason given", Key: key = "" } = refused;
      const $metadata = name === "AccessDenied" ? { httpStatusCode: 403 } : {};
      throw s3Failure({ name, message, $metadata }, "DeleteObject", `${this.name}: ${key}`);
    }
  }

  async *list(prefix: string, options: ListOptions): AsyncIterable<ObjectInfo> {
    checkPrefix(prefix);
    const { startAfter } = options;
    for await (const { Contents = [] } of this.#pages({ Prefix: prefix, StartAfter: startAfter }, options)) {
      for (const { Key: key, Size: sizeBytes, ETag: etag, LastModified: modified } of Contents) {
        // Others put objects into buckets too, such as markers of empty folders.
        if (key === undefined || sizeBytes === undefined || !key.startsWith(prefix) || !isKey(key)) continue;
        if (startAfter !== undefined && compareKeys(key, startAfter) <= 0) continue;
        yield { key, sizeBytes, etag: unquoted(etag), timestampMs: modified?.getTime() ?? 0 };
      }
    }
  }

  async *listFolders(prefix: string, call: ObjectCall): AsyncIterable<string> {
    checkFolderPrefix(prefix);
    for await (const { CommonPrefixes = [] } of this.#pages({ Prefix: prefix, Delimiter: "/" }, call)) {
      for (const { Prefix: folder } of CommonPrefixes) {
        const name = folder?.slice(prefix.length, -1) ?? "";
        if (isKey(`${prefix}${name}`) && !name.includes("/")) yield name;
      }
    }
  }

  probe(call: ObjectCall): Promise<void> {
    const { clock, random } = this.#connection;
    return probeStore(this, clock, Buffer.from(random(12)).toString("hex"), call);
  }

  async close(): Promise<void> {
    this.#connection.end();
    await this.#writer.cleanedUp();
    this.#connection.destroy();
  }

  async *#pages(
    query: { Prefix: string; StartAfter?: string | undefined; Delimiter?: string },
    call: ObjectCall,
  ): AsyncGenerator<Sdk.ListObjectsV2CommandOutput> {
    let token: string | undefined;
    do {
      const input = {
        Bucket: this.#connection.bucket,
        MaxKeys: this.#connection.limits.listPageCount,
        ...query,
        ContinuationToken: token,
      };
      const page = await this.#connection.call("ListBucket", `list of ${query.Prefix}`, call, (send) =>
        this.#connection.client.send(new this.#connection.sdk.ListObjectsV2Command(input), send),
      );
      yield page;
      if (page.IsTruncated && page.NextContinuationToken === undefined) {
        throw new ObjectStoreError("unavailable", `${this.name}: a list has no way to go on`);
      }
      token = page.IsTruncated ? page.NextContinuationToken : undefined;
    } while (token !== undefined);
  }
}
