/**
 * Named immutable bytes, far away: what the remote stage is built on. Every implementation passes the contract suite in
 * test/objects.
 */

/** What a call may take: when it must have ended, and who may end it before. */
export interface ObjectCall {
  /** By the clock's `now()`; a call that has not ended by then fails with `unavailable`. */
  readonly deadlineAtMs: number;
  /** A call ends with the signal's reason. Whether a change was made by then is unknown. */
  readonly signal?: AbortSignal | undefined;
}

/** What is known of an object without its bytes. */
export interface ObjectInfo {
  readonly key: string;
  readonly sizeBytes: number;
  /**
   * Names this version of the object; opaque, to be given back in `ifMatch` as it is. Stores make it of the bytes: what is
   * put with `ifMatch` must hold something that no other version has, or an old etag may fit again.
   */
  readonly etag: string;
  /**
   * The timestamp that the object was put with; else when the store wrote it. Milliseconds since 1970. A list does not read
   * the timestamps of all its objects: there the store may give its own time.
   */
  readonly timestampMs: number;
}

/** Bytes to be put that need not be in memory at one time. Reads may overlap and repeat, and give the same each time. */
export interface ObjectSource {
  readonly sizeBytes: number;
  /** Exactly so many bytes from there on; always inside of the size. */
  read(offsetBytes: number, byteCount: number): Promise<Uint8Array>;
}

/** On what a put depends. */
export type PutCondition =
  /** Only if there is no object of that key. */
  | { readonly ifNoneMatch: "*"; readonly ifMatch?: undefined }
  /** Only if the object is there with this etag. */
  | { readonly ifMatch: string; readonly ifNoneMatch?: undefined };

export interface PutOptions extends ObjectCall {
  /** Without it an object of that key is replaced. */
  readonly condition?: PutCondition | undefined;
  /** When what the object holds was true; Litestream restores to a time by it. Milliseconds since 1970. */
  readonly timestampMs?: number | undefined;
}

/** Part of an object, cut at its end: beyond it there are no bytes, and no failure. */
export type ByteRange =
  | { readonly offsetBytes: number; readonly byteCount?: number | undefined; readonly lastByteCount?: undefined }
  /** The end of the object, all of it when it is shorter. At least 1. */
  | { readonly lastByteCount: number; readonly offsetBytes?: undefined; readonly byteCount?: undefined };

export interface GetOptions extends ObjectCall {
  readonly range?: ByteRange | undefined;
}

export interface GetBytesOptions extends GetOptions {
  /** What would be longer is not read, and fails with `corrupt`: it is not what was put there. */
  readonly bytesMax: number;
}

/** An object, or the asked part of it, whole. */
export interface ObjectBytes {
  readonly info: ObjectInfo;
  readonly bytes: Uint8Array;
}

/** An object, or the asked part of it, as it comes. */
export interface ObjectStream {
  readonly info: ObjectInfo;
  /** Bytes that will come. */
  readonly byteCount: number;
  /**
   * Once; leaving the loop early gives everything back. A read that breaks off goes on by itself where that is possible. The
   * chunks belong to the reader.
   */
  readonly chunks: AsyncIterable<Uint8Array>;
  /** For a stream that nobody reads. May be called at any time and more than once. */
  close(): void;
}

export interface ListOptions extends ObjectCall {
  /**
   * Only keys after this one. To be relied upon inside of one folder, that is among keys that differ after their last slash
   * alone: not every store orders folders by bytes.
   */
  readonly startAfter?: string | undefined;
}

/** What a probe looked for and did not find. */
export type MissingAbility = "endpoint" | "bucket" | "credentials" | "permission" | "conditional_put";

/**
 * Objects by key. A key is a path: names of at most 240 bytes with slashes between them, 900 bytes in all (`checkKey`); no
 * name may be an object and a folder. An object appears whole or not at all, and an answered put or delete is durable and
 * seen by every later call.
 *
 * Every call can fail with an ObjectStoreError; see its kinds.
 */
export interface ObjectStore {
  /** For messages: what store this is. */
  readonly name: string;

  /**
   * Stores an object. Its own first attempt never makes a repeated put fail with `precondition`. What a source throws passes
   * through as it is.
   */
  put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo>;

  /** The bytes in memory. Those of an object put from memory are checked against a checksum where they are read whole. */
  get(key: string, options: GetBytesOptions): Promise<ObjectBytes>;

  /** The bytes as they come. */
  open(key: string, options: GetOptions): Promise<ObjectStream>;

  head(key: string, call: ObjectCall): Promise<ObjectInfo>;

  /**
   * Removes objects, any number of them; those that are not there do not matter. When it fails, any of them may be gone, and
   * the call may be repeated.
   */
  delete(keys: readonly string[], call: ObjectCall): Promise<void>;

  /**
   * All objects whose keys start with the prefix, each once, asked for page by page as they are taken, all before the
   * deadline. In one folder they come in the order of bytes. What is put or deleted meanwhile may be seen or not.
   */
  list(prefix: string, options: ListOptions): AsyncIterable<ObjectInfo>;

  /**
   * Names of the folders directly under a prefix that is empty or ends with a slash, in the same way; without slashes. One
   * that has just lost its last object may be among them.
   */
  listFolders(prefix: string, call: ObjectCall): AsyncIterable<string>;

  /**
   * Tries what the others rely on, conditional puts above all. Rejects with an ObjectStoreError whose `missing` and message
   * say what an operator has to provide.
   */
  probe(call: ObjectCall): Promise<void>;

  /** Gives connections back. Calls under way fail with `unavailable`. */
  close(): Promise<void>;
}

/**
 * - `not_found`: there is no such object.
 * - `precondition`: the condition of the put does not hold; what is there now is not of this call.
 * - `throttled`: the store, or our own bound before it, takes no more calls; later the same call may pass.
 * - `unavailable`: no answer, or one without meaning; a change may have been made or not.
 * - `corrupt`: bytes that are not those which were put.
 * - `denied`: the store refuses this caller, or this key; repeating is of no use.
 */
export type ObjectStoreErrorKind = "not_found" | "precondition" | "throttled" | "unavailable" | "corrupt" | "denied";

/** The one error of object stores. */
export class ObjectStoreError extends Error {
  override readonly name = "ObjectStoreError";
  readonly kind: ObjectStoreErrorKind;
  /** Set by a probe. */
  readonly missing: MissingAbility | undefined;

  constructor(
    kind: ObjectStoreErrorKind,
    message: string,
    options: { readonly cause?: unknown; readonly missing?: MissingAbility | undefined } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = kind;
    this.missing = options.missing;
  }
}

/** True for an ObjectStoreError of that kind. */
export function isObjectStoreError(error: unknown, kind: ObjectStoreErrorKind): error is ObjectStoreError {
  return error instanceof ObjectStoreError && error.kind === kind;
}

const KEY_BYTES_MAX = 900;
const KEY_NAME_BYTES_MAX = 240;
/** Lists of S3 are XML, which cannot say these. */
const unfitCharacters = /[\p{Cc}\ufffe\uffff\\]/u;

/** Throws a RangeError for what cannot be a key: callers check names that come from outside before they build keys of them. */
export function checkKey(key: string): void {
  if (!isKey(key)) throw unfit(key);
}

/** True for what `checkKey` lets pass. */
export function isKey(key: string): boolean {
  return hasFitCharacters(key) && Buffer.byteLength(key) <= KEY_BYTES_MAX && key.split("/").every(isName);
}

function isName(name: string): boolean {
  return name !== "" && name !== "." && name !== ".." && Buffer.byteLength(name) <= KEY_NAME_BYTES_MAX;
}

/** Like `checkKey`, for the beginning of a key: it may be empty, end with a slash or in the middle of a name. */
export function checkPrefix(prefix: string): void {
  const folders = prefix.split("/").slice(0, -1);
  const isPrefix = hasFitCharacters(prefix) && Buffer.byteLength(prefix) <= KEY_BYTES_MAX && folders.every(isName);
  if (!isPrefix) throw unfit(prefix);
}

/** For `listFolders`: a prefix that names a folder. */
export function checkFolderPrefix(prefix: string): void {
  checkPrefix(prefix);
  if (prefix !== "" && !prefix.endsWith("/")) throw unfit(prefix);
}

function hasFitCharacters(key: string): boolean {
  return !unfitCharacters.test(key) && key.isWellFormed();
}

function unfit(key: string): RangeError {
  return new RangeError(`${JSON.stringify(key.slice(0, 100))} is not a key of an object`);
}

/** Where a range lies in an object of that size. */
export function placeOf(range: ByteRange | undefined, sizeBytes: number): { offsetBytes: number; byteCount: number } {
  if (range === undefined) return { offsetBytes: 0, byteCount: sizeBytes };
  if (range.lastByteCount !== undefined) {
    const byteCount = Math.min(range.lastByteCount, sizeBytes);
    return { offsetBytes: sizeBytes - byteCount, byteCount };
  }
  const offsetBytes = Math.min(range.offsetBytes, sizeBytes);
  return { offsetBytes, byteCount: Math.min(range.byteCount ?? sizeBytes, sizeBytes - offsetBytes) };
}

/** Throws a RangeError for a range that no object can have. */
export function checkRange(range: ByteRange | undefined): void {
  const numbers =
    range?.lastByteCount !== undefined ? [range.lastByteCount - 1] : [range?.offsetBytes, range?.byteCount];
  for (const number of numbers) {
    if (number !== undefined && !(Number.isSafeInteger(number) && number >= 0))
      throw new RangeError("not a byte range");
  }
}

/** Text whose order by UTF-16 units is that by UTF-8 bytes. */
const plain = /^[^\ud800-\uffff]*$/;

/** Compares keys as stores do: by their bytes in UTF-8. */
export function compareKeys(a: string, b: string): number {
  if (!plain.test(a) || !plain.test(b)) return Buffer.compare(Buffer.from(a), Buffer.from(b));
  return a < b ? -1 : a > b ? 1 : 0;
}

/** All bytes of a stream, in one piece of exactly the promised length. */
export async function collect(stream: ObjectStream): Promise<Uint8Array> {
  const bytes = Buffer.allocUnsafeSlow(stream.byteCount);
  let filled = 0;
  for await (const chunk of stream.chunks) {
    if (filled + chunk.length > bytes.length) break;
    bytes.set(chunk, filled);
    filled += chunk.length;
  }
  if (filled !== bytes.length) {
    throw new ObjectStoreError("unavailable", `${stream.info.key}: its bytes broke off, or were more than promised`);
  }
  return bytes;
}

/** What `get` does when an object is longer than its caller allows. */
export function checkSize(stream: ObjectStream, bytesMax: number): void {
  if (stream.byteCount <= bytesMax) return;
  stream.close();
  throw new ObjectStoreError(
    "corrupt",
    `${stream.info.key} has ${stream.byteCount} bytes where at most ${bytesMax} were expected`,
  );
}

/** A source over bytes in memory; a source as it is. */
export function sourceOf(body: Uint8Array | ObjectSource): ObjectSource {
  if (!(body instanceof Uint8Array)) return body;
  return { sizeBytes: body.length, read: async (offset, count) => body.subarray(offset, offset + count) };
}

/** Carries what a source threw past those who read the errors of stores. */
export class SourceFailure extends Error {
  constructor(cause: unknown) {
    super("the source of a put failed", { cause });
  }
}

/** Reads from a source, and insists on its promise. Rejects with a SourceFailure. */
export async function readSource(source: ObjectSource, offsetBytes: number, byteCount: number): Promise<Uint8Array> {
  try {
    const bytes = await source.read(offsetBytes, byteCount);
    if (bytes.length === byteCount) return bytes;
    throw new RangeError(`a source gave ${bytes.length} bytes for ${byteCount}`);
  } catch (error) {
    throw new SourceFailure(error);
  }
}

/** Rejects with what the source itself threw. */
export async function unwrapSource<T>(put: Promise<T>): Promise<T> {
  try {
    return await put;
  } catch (error) {
    throw error instanceof SourceFailure ? error.cause : error;
  }
}
