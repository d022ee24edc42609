/** Objects as byte sources: read in parts, several at one time, handed out in order. */
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { type ObjectStore, ObjectStoreError } from "../objects/object-store.ts";
import type { StageCall } from "./stage.ts";

/** A bound on parts in memory that readers share. First come, first served: whoever holds a part can hand it out. */
export class PartBudget {
  readonly #waiting: (() => void)[] = [];
  #free: number;

  constructor(countMax: number) {
    this.#free = countMax;
  }

  /** A part that may be fetched; undefined, when there is no room just now. */
  tryTake(): boolean {
    if (this.#free === 0 || this.#waiting.length > 0) return false;
    this.#free--;
    return true;
  }

  async take(): Promise<void> {
    if (this.tryTake()) return;
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}

export interface FetchOptions {
  readonly partBytes: number;
  /** Parts of one reader that are on their way, or wait to be read. At least 1. */
  readonly aheadCount: number;
  readonly budget: PartBudget;
  readonly onBytes?: ((byteCount: number) => void) | undefined;
}

/** An object of a size that a list has told. */
export interface FetchedObject {
  readonly key: string;
  readonly byteCount: number;
}

interface Part {
  /** Settled, whatever comes of it, and never rejecting. */
  readonly result: Promise<{ readonly bytes: Uint8Array } | { readonly error: unknown }>;
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
      const part = this.#parts.shift();
      if (part === undefined) throw new Error("objects are read in the order in which they were given");
      const result = await part.result;
      this.#options.budget.give();
      if ("error" in result) throw result.error;
      done += result.bytes.length;
      this.#options.onBytes?.(result.bytes.length);
      this.#fillSome();
      yield result.bytes;
    }
  }

  /** Ends what is on its way. Needed in any case. */
  async close(): Promise<void> {
    this.#detach();
    this.#ended.abort(new ObjectStoreError("unavailable", "nobody reads it any more"));
    for (const { result } of this.#parts.splice(0)) {
      await result;
      this.#options.budget.give();
    }
  }

  /** At least one part. */
  async #fill(): Promise<void> {
    if (this.#parts.length === 0 && this.#hasMore) {
      await this.#options.budget.take();
      this.#begin();
    }
    this.#fillSome();
  }

  #fillSome(): void {
    while (this.#parts.length < this.#options.aheadCount && this.#hasMore && this.#options.budget.tryTake()) {
      this.#begin();
    }
  }

  get #hasMore(): boolean {
    return this.#object < this.#objects.length;
  }

  #begin(): void {
    const object = this.#objects[this.#object] as FetchedObject;
    const byteCount = Math.min(this.#options.partBytes, object.byteCount - this.#offset);
    const result = fetchPart(this.#store, object, this.#offset, byteCount, this.#call).then(
      (bytes) => ({ bytes }),
      (error: unknown) => ({ error }),
    );
    this.#parts.push({ result });
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
    throw new LtxFailure("truncated", `${key} has ${info.sizeBytes} bytes where there were ${sizeBytes}`);
  }
  return bytes;
}
