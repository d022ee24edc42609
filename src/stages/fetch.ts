/** Objects as byte sources: read in parts, several at one time, handed out in order. */
import type { Clock } from "../clock.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { type ObjectStore, ObjectStoreError } from "../objects/object-store.ts";
import { within } from "./calls.ts";
import type { StageCall } from "./stage.ts";

/** A bound on bytes in memory that readers share. First come, first served: whoever holds a part can hand it out. */
export class FetchBudget {
  readonly #bytesMax: number;
  readonly #waiting: { readonly byteCount: number; readonly start: () => void }[] = [];
  #takenBytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** True when there is room just now. A part that is larger than everything may be fetched alone. */
  tryTake(byteCount: number): boolean {
    if (this.#waiting.length > 0 || !this.#hasRoom(byteCount)) return false;
    this.#takenBytes += byteCount;
    return true;
  }

  async take(byteCount: number): Promise<void> {
    if (this.tryTake(byteCount)) return;
    await new Promise<void>((start) => this.#waiting.push({ byteCount, start }));
  }

  give(byteCount: number): void {
    this.#takenBytes -= byteCount;
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      if (!this.#hasRoom(first.byteCount)) return;
      this.#waiting.shift();
      this.#takenBytes += first.byteCount;
      first.start();
    }
  }

  #hasRoom(byteCount: number): boolean {
    return this.#takenBytes === 0 || this.#takenBytes + byteCount <= this.#bytesMax;
  }
}

export interface FetchOptions {
  readonly clock: Clock;
  readonly budget: FetchBudget;
  readonly onBytes?: ((byteCount: number) => void) | undefined;
}

/** Parts of one reader that are on their way, or wait to be read. */
const aheadBytes = 16 * 1024 * 1024;
const aheadCount = 32;
/** Large enough that the time of a request does not count; the first ones small, so that there is work at once. */
const partBytesMax = 4 * 1024 * 1024;
const firstPartBytes = 512 * 1024;

/** After which a part counts as lost, with all that is ahead of it on a line of 64 KB a second. */
const partMsMax = 60_000 + aheadBytes / 64;

/** An object of a size that a list has told. */
export interface FetchedObject {
  readonly key: string;
  readonly byteCount: number;
}

/** Bytes that come, and wait to be read as they came: nothing is copied. */
class Part {
  readonly byteCount: number;
  /** Never rejects. */
  readonly whenOver: Promise<void>;
  #chunks: Uint8Array[] = [];
  #isOver = false;
  #problem: { readonly error: unknown } | undefined;
  #wake: () => void = () => undefined;

  constructor(byteCount: number, chunks: AsyncIterable<Uint8Array>) {
    this.byteCount = byteCount;
    this.whenOver = this.#receive(chunks);
  }

  /** What has come since the last call, at least something; undefined at the end. */
  async take(): Promise<readonly Uint8Array[] | undefined> {
    while (this.#chunks.length === 0) {
      if (this.#problem !== undefined) throw this.#problem.error;
      if (this.#isOver) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#chunks;
    this.#chunks = [];
    return taken;
  }

  async #receive(chunks: AsyncIterable<Uint8Array>): Promise<void> {
    try {
      for await (const chunk of chunks) {
        this.#chunks.push(chunk);
        this.#wake();
      }
    } catch (error) {
      this.#problem = { error };
    }
    this.#isOver = true;
    this.#wake();
  }
}

/**
 * Objects one after another, each to be read as a source, with parts of the next ones on their way already. Sources are read
 * in order, each once, to its end or not at all; `close` ends what is on its way.
 */
export class ObjectSequence {
  readonly #store: ObjectStore;
  readonly #objects: readonly FetchedObject[];
  readonly #options: FetchOptions;
  readonly #ended = new AbortController();
  readonly #call: StageCall;
  readonly #detach: () => void;
  /** On their way, or here, in order. */
  readonly #parts: Part[] = [];
  #aheadBytes = 0;
  #partBytes = firstPartBytes;
  #object = 0;
  #offset = 0;

  constructor(store: ObjectStore, objects: readonly FetchedObject[], call: StageCall, options: FetchOptions) {
    this.#store = store;
    this.#objects = objects;
    this.#options = options;
    const { signal } = call;
    const onAbort = () => this.#ended.abort(signal?.reason);
    if (signal?.aborted) onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#detach = () => signal?.removeEventListener("abort", onAbort);
    this.#call = { deadlineAtMs: call.deadlineAtMs, signal: this.#ended.signal };
  }

  /** The bytes of the next object. */
  async *next(object: FetchedObject): AsyncGenerator<Uint8Array, void, undefined> {
    for (let done = 0; done < object.byteCount; ) {
      await this.#fill();
      const part = this.#parts[0];
      if (part === undefined) throw new Error("objects are read in the order in which they were given");
      for (let chunks = await part.take(); chunks !== undefined; chunks = await part.take()) {
        for (const chunk of chunks) {
          done += chunk.length;
          this.#options.onBytes?.(chunk.length);
          yield chunk;
        }
      }
      this.#parts.shift();
      this.#give(part);
      this.#fillSome();
    }
  }

  /** Ends what is on its way. Needed in any case. */
  async close(): Promise<void> {
    this.#detach();
    this.#ended.abort(new ObjectStoreError("unavailable", "nobody reads it any more"));
    for (const part of this.#parts.splice(0)) {
      await part.whenOver;
      this.#give(part);
    }
  }

  #give({ byteCount }: Part): void {
    this.#aheadBytes -= byteCount;
    this.#options.budget.give(byteCount);
  }

  /** At least one part. */
  async #fill(): Promise<void> {
    const byteCount = this.#nextBytes;
    if (this.#parts.length === 0 && byteCount > 0) {
      await this.#options.budget.take(byteCount);
      this.#begin(byteCount);
    }
    this.#fillSome();
  }

  #fillSome(): void {
    for (let byteCount = this.#nextBytes; byteCount > 0; byteCount = this.#nextBytes) {
      const hasRoom = this.#parts.length < aheadCount && this.#aheadBytes + byteCount <= aheadBytes;
      if (!hasRoom || !this.#options.budget.tryTake(byteCount)) return;
      this.#begin(byteCount);
    }
  }

  /** Size of the part that comes next; 0 when there is none. */
  get #nextBytes(): number {
    const object = this.#objects[this.#object];
    return object === undefined ? 0 : Math.min(this.#partBytes, object.byteCount - this.#offset);
  }

  #begin(byteCount: number): void {
    const object = this.#objects[this.#object] as FetchedObject;
    const call = within(this.#options.clock, this.#call, partMsMax);
    this.#parts.push(new Part(byteCount, openPart(this.#store, object, this.#offset, byteCount, call)));
    this.#aheadBytes += byteCount;
    this.#partBytes = Math.min(partBytesMax, this.#partBytes * 2);
    this.#offset += byteCount;
    if (this.#offset < object.byteCount) return;
    this.#object++;
    this.#offset = 0;
  }
}

/** One object as a source of its own, which may wait long between two parts. */
export async function* fetchObject(
  store: ObjectStore,
  object: FetchedObject,
  call: StageCall,
  partBytes: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  for (let offset = 0; offset < object.byteCount; offset += partBytes) {
    yield await fetchPart(store, object, offset, Math.min(partBytes, object.byteCount - offset), call);
  }
}

/** Bytes of an object as they come. */
async function* openPart(
  store: ObjectStore,
  { key, byteCount: sizeBytes }: FetchedObject,
  offsetBytes: number,
  byteCount: number,
  call: StageCall,
): AsyncGenerator<Uint8Array, void, undefined> {
  const isWhole = offsetBytes === 0 && byteCount === sizeBytes;
  const stream = await store.open(key, { ...call, range: isWhole ? undefined : { offsetBytes, byteCount } });
  if (stream.info.sizeBytes !== sizeBytes || stream.byteCount !== byteCount) {
    stream.close();
    throw otherSize(key, stream.info.sizeBytes, sizeBytes);
  }
  yield* stream.chunks;
}

/** Bytes of an object, read whole where that is what is asked for: stores check more then. */
export async function fetchPart(
  store: ObjectStore,
  { key, byteCount: sizeBytes }: FetchedObject,
  offsetBytes: number,
  byteCount: number,
  call: StageCall,
): Promise<Uint8Array> {
  const isWhole = offsetBytes === 0 && byteCount === sizeBytes;
  const range = isWhole ? undefined : { offsetBytes, byteCount };
  const { info, bytes } = await store.get(key, { ...call, bytesMax: byteCount, range });
  if (info.sizeBytes !== sizeBytes || bytes.length !== byteCount) {
    throw otherSize(key, info.sizeBytes, sizeBytes);
  }
  return bytes;
}

function otherSize(key: string, foundBytes: number, sizeBytes: number): LtxFailure {
  return new LtxFailure("truncated", `${key} has ${foundBytes} bytes where there were ${sizeBytes}`);
}
