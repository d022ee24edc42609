/** Page tokens: where a list goes on, sealed so that only this server's own tokens for the same list are taken. */
import { createHmac, timingSafeEqual } from "node:crypto";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import type { PageKey } from "./catalog.ts";

const sealBytes = 16;
const tokenCharactersMax = 1024;
const pageSizeDefault = 50;
const pageSizeMax = 1000;

/** The size that is meant: 50 for 0, at most 1,000. Throws FIELD_INVALID for a negative one. */
export function effectivePageSize(given: number): number {
  if (!Number.isInteger(given) || given < 0) throw fieldInvalid("page_size", "must not be negative");
  return given === 0 ? pageSizeDefault : Math.min(given, pageSizeMax);
}

/** A URL-safe token for the page behind `key` of the list that `filter` and `orderBy` describe. */
export function makePageToken(secret: Buffer, filter: string, orderBy: string, key: PageKey): string {
  const content = Buffer.from(JSON.stringify(key));
  return Buffer.concat([seal(secret, filter, orderBy, content), content]).toString("base64url");
}

/** What `makePageToken` was given. Throws PAGE_TOKEN_INVALID for a changed or forged token, and for one of another list. */
export function readPageToken(secret: Buffer, filter: string, orderBy: string, token: string): PageKey {
  const bytes = Buffer.from(token.slice(0, tokenCharactersMax), "base64url");
  const content = bytes.subarray(sealBytes);
  // Decoding forgives; the token has to be exactly what was given out.
  if (bytes.length <= sealBytes || bytes.toString("base64url") !== token) throw invalid();
  if (!timingSafeEqual(seal(secret, filter, orderBy, content), bytes.subarray(0, sealBytes))) throw invalid();
  return JSON.parse(content.toString()) as PageKey;
}

function seal(secret: Buffer, filter: string, orderBy: string, content: Buffer): Buffer {
  return createHmac("sha256", secret)
    .update(JSON.stringify([filter, orderBy]))
    .update("\0")
    .update(content)
    .digest()
    .subarray(0, sealBytes);
}

function invalid(): Failure {
  return new Failure("PAGE_TOKEN_INVALID", { field: "page_token" });
}
