/** Between our words and S3's headers. */
import { createHash } from "node:crypto";
import type { Readable } from "node:stream";
import { crc32 } from "node:zlib";
import type * as Sdk from "@aws-sdk/client-s3";
import { type GetOptions, type ObjectInfo, ObjectStoreError, type PutCondition } from "./object-store.ts";

/** Litestream's, for restoring to a time. */
export const TIMESTAMP_METADATA = "litestream-timestamp";
/** Tells a put's own object from another's, when the answer to a first attempt was lost. */
export const PUT_METADATA = "persisto-put";
/** Checksum of all bytes, where they were in memory when they were put. */
export const CRC_METADATA = "persisto-crc32";

export function conditionHeaders(condition: PutCondition | undefined): { IfNoneMatch?: string; IfMatch?: string } {
  if (condition === undefined) return {};
  if (condition.ifMatch !== undefined) return { IfMatch: quoted(condition.ifMatch) };
  return { IfNoneMatch: "*" };
}

/** The header; undefined for all bytes, null for none: headers cannot say that. */
export function rangeHeader(range: GetOptions["range"]): string | undefined | null {
  if (range === undefined) return undefined;
  if (range.lastByteCount !== undefined) return `bytes=-${range.lastByteCount}`;
  if (range.byteCount === undefined) return `bytes=${range.offsetBytes}-`;
  return range.byteCount === 0 ? null : `bytes=${range.offsetBytes}-${range.offsetBytes + range.byteCount - 1}`;
}

/** Where the bytes of an answer lie in the object. */
export function placed(answer: Sdk.GetObjectCommandOutput, wanted: string | undefined, what: string) {
  const byteCount = answer.ContentLength;
  if (byteCount === undefined) throw new ObjectStoreError("unavailable", `${what}: the answer does not say its length`);
  if (wanted === undefined) return { offsetBytes: 0, byteCount, sizeBytes: byteCount };
  const [, first, size] = /^bytes (\d+)-\d+\/(\d+)$/.exec(answer.ContentRange ?? "") ?? [];
  if (first === undefined || size === undefined) {
    (answer.Body as Readable | undefined)?.destroy();
    throw new ObjectStoreError("unavailable", `${what}: the store does not say which part of the object it gives`);
  }
  return { offsetBytes: Number(first), byteCount, sizeBytes: Number(size) };
}

export function infoOf(
  key: string,
  answer: { ETag?: string | undefined; LastModified?: Date | undefined; Metadata?: Record<string, string> | undefined },
  sizeBytes: number | undefined,
): ObjectInfo {
  const given = Date.parse(answer.Metadata?.[TIMESTAMP_METADATA] ?? "");
  return {
    key,
    sizeBytes: sizeBytes ?? 0,
    etag: unquoted(answer.ETag),
    timestampMs: Number.isNaN(given) ? (answer.LastModified?.getTime() ?? 0) : given,
  };
}

/** Stores differ in where they write the quotes. */
export function unquoted(etag: string | undefined): string {
  return etag?.replace(/^"|"$/g, "") ?? "";
}

export function quoted(etag: string): string {
  return `"${etag}"`;
}

export function checksum(bytes: Uint8Array): string {
  return crc32(bytes).toString(16).padStart(8, "0");
}

export function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("base64");
}
