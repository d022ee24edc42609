/** An object store in memory: no files and no timers, so that a simulation on a manual clock runs the same each time. */
import type { Clock } from "../../src/clock.ts";
import { bounded } from "../../src/objects/bounded.ts";
import {
  checkFolderPrefix,
  checkKey,
  checkPrefix,
  checkRange,
  checkSize,
  collect,
  compareKeys,
  type GetBytesOptions,
  type GetOptions,
  type ListOptions,
  type ObjectBytes,
  type ObjectCall,
  type ObjectInfo,
  type ObjectSource,
  type ObjectStore,
  ObjectStoreError,
  type ObjectStream,
  type PutOptions,
  placeOf,
  readSource,
  sourceOf,
  unwrapSource,
} from "../../src/objects/object-store.ts";
import { probeStore } from "../../src/objects/probe.ts";

interface Stored {
  readonly info: ObjectInfo;
  readonly bytes: Uint8Array;
}

/** Objects that outlive a store, as a bucket outlives a server. */
export type MemoryBucket = Map<string, Stored>;

const CHUNK_BYTES = 64 * 1024;
let etagCount = 0;

export class MemoryObjectStore implements ObjectStore {
  readonly name = "memory";
  readonly #clock: Clock;
  readonly #bucket: MemoryBucket;
  readonly #ended = new AbortController();

  constructor(clock: Clock, bucket: MemoryBucket = new Map()) {
    this.#clock = clock;
    this.#bucket = bucket;
  }

  put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo> {
    const put = this.#run(key, options, async (signal) => {
      const source = sourceOf(body);
      const bytes = Uint8Array.from(await readSource(source, 0, source.sizeBytes));
      signal.throwIfAborted();
      const { condition, timestampMs = this.#clock.wallMs() } = options;
      const etag = this.#bucket.get(key)?.info.etag;
      const isMet = condition?.ifMatch !== undefined ? etag === condition.ifMatch : !condition || etag === undefined;
      if (!isMet) throw new ObjectStoreError("precondition", `${key} does not meet the condition`);
      const info = { key, sizeBytes: bytes.length, etag: `e${++etagCount}`, timestampMs };
      this.#bucket.set(key, { info, bytes });
      return info;
    });
    return unwrapSource(put);
  }

  async get(key: string, options: GetBytesOptions): Promise<ObjectBytes> {
    const stream = await this.open(key, options);
    checkSize(stream, options.bytesMax);
    return { info: stream.info, bytes: await collect(stream) };
  }

  async open(key: string, options: GetOptions): Promise<ObjectStream> {
    checkRange(options.range);
    const { info, bytes } = await this.#run(key, options, async () => this.#found(key));
    const { offsetBytes, byteCount } = placeOf(options.range, bytes.length);
    const part = bytes.subarray(offsetBytes, offsetBytes + byteCount);
    const closed = new AbortController();
    const run = this.#run.bind(this);
    async function* chunks(): AsyncGenerator<Uint8Array> {
      for (let done = 0; done < part.length; done += CHUNK_BYTES) {
        yield await run(key, options, async () => {
          closed.signal.throwIfAborted();
          return part.slice(done, done + CHUNK_BYTES);
        });
      }
    }
    const reason = new ObjectStoreError("unavailable", `${key} was closed while it was read`);
    return { info, byteCount, chunks: chunks(), close: () => closed.abort(reason) };
  }

  head(key: string, call: ObjectCall): Promise<ObjectInfo> {
    return this.#run(key, call, async () => this.#found(key).info);
  }

  async delete(keys: readonly string[], call: ObjectCall): Promise<void> {
    for (const key of keys) checkKey(key);
    await this.#run("all", call, async () => {
      for (const key of keys) this.#bucket.delete(key);
    });
  }

  async *list(prefix: string, options: ListOptions): AsyncIterable<ObjectInfo> {
    checkPrefix(prefix);
    const { startAfter = "" } = options;
    const keys = await this.#run("all", options, async () =>
      [...this.#bucket.keys()]
        .filter((key) => key.startsWith(prefix) && compareKeys(key, startAfter) > 0)
        .sort(compareKeys),
    );
    for (const key of keys) {
      const stored = this.#bucket.get(key);
      if (stored !== undefined) yield stored.info;
    }
  }

  async *listFolders(prefix: string, call: ObjectCall): AsyncIterable<string> {
    checkFolderPrefix(prefix);
    const keys = await this.#run("all", call, async () => [...this.#bucket.keys()]);
    const inner = keys.filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length).split("/"));
    yield* [...new Set(inner.flatMap(([name = "", ...rest]) => (rest.length > 0 ? [name] : [])))].sort(compareKeys);
  }

  probe(call: ObjectCall): Promise<void> {
    return probeStore(this, this.#clock, "memory", call);
  }

  async close(): Promise<void> {
    this.#ended.abort(new ObjectStoreError("unavailable", "the store is closed"));
  }

  #found(key: string): Stored {
    const stored = this.#bucket.get(key);
    if (stored === undefined) throw new ObjectStoreError("not_found", `there is no ${key}`);
    return stored;
  }

  async #run<T>(key: string, call: ObjectCall, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    checkKey(key);
    return bounded(this.#clock, call, work, { ended: this.#ended.signal });
  }
}
