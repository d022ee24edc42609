/** A store that goes wrong in the ways that real ones do, on demand or by seed: for simulations and kill tests. */
import type { Clock } from "../clock.ts";
import { bounded, pause } from "./bounded.ts";
import {
  compareKeys,
  type GetBytesOptions,
  type GetOptions,
  isObjectStoreError,
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

export type FaultyOperation = "put" | "get" | "head" | "delete" | "list";

/** `at`, from 0 to below 1, says how far into the bytes, the keys or the past. */
export type Fault =
  /** Nothing is done; `unavailable`. */
  | { readonly kind: "fail_before" }
  /** All is done; `unavailable` all the same. */
  | { readonly kind: "fail_after" }
  /** All is done, and no answer comes: the call ends at its deadline or by its signal. */
  | { readonly kind: "lose_answer" }
  /** Nothing is done; `throttled`. */
  | { readonly kind: "throttle" }
  /** A pause before anything is done. */
  | { readonly kind: "delay"; readonly ms: number }
  /** The first of the keys are deleted; `unavailable`. */
  | { readonly kind: "delete_part"; readonly at: number }
  /** The list is that of some time ago. */
  | { readonly kind: "old_list"; readonly at: number }
  /** The bytes break off; `unavailable`. */
  | { readonly kind: "cut_read"; readonly at: number }
  /** One bit of the bytes is another, and nothing says so. */
  | { readonly kind: "flip_bit"; readonly at: number };

/** Which faults a call meets; asked once for each call, as it comes. Those that do not concern it do nothing. */
export type FaultSource = (operation: FaultyOperation, key: string) => readonly Fault[];

/** How likely each kind is for a call, from 0 to 1. */
export type FaultChances = Readonly<Partial<Record<Fault["kind"], number>>> & { readonly delayMsMax?: number };

export interface FaultyStoreOptions {
  readonly store: ObjectStore;
  readonly clock: Clock;
  readonly faults: FaultSource;
  /** Told of every fault that a call meets. */
  readonly onFault?: ((fault: Fault, operation: FaultyOperation, key: string) => void) | undefined;
}

const kinds = [
  "delay",
  "throttle",
  "fail_before",
  "fail_after",
  "lose_answer",
  "delete_part",
  "old_list",
  "cut_read",
  "flip_bit",
] as const satisfies Fault["kind"][];

/** Faults by chance; the same seed and the same calls give the same faults. */
export function seededFaults(seed: number, chances: FaultChances): FaultSource {
  const random = seededRandom(seed);
  return () =>
    kinds.flatMap((kind): Fault[] => {
      // Drawn for each kind whatever its chance, so that changing one chance leaves the others' luck as it was.
      const isMet = random() < (chances[kind] ?? 0);
      const at = random();
      if (!isMet) return [];
      return [kind === "delay" ? { kind, ms: at * (chances.delayMsMax ?? 100) } : { kind, at }];
    });
}

/** Numbers from 0 to below 1 that look random and follow from the seed. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    // A Weyl sequence, mixed.
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** Changes that an old list may not have seen. */
const CHANGE_COUNT_MAX = 64;

interface Change {
  readonly key: string;
  /** What was there before. */
  readonly before: ObjectInfo | undefined;
}

/** Wraps a store; everything that it does is done by that one. A probe meets no faults. */
export class FaultyStore implements ObjectStore {
  readonly name: string;
  readonly #store: ObjectStore;
  readonly #clock: Clock;
  readonly #faults: FaultSource;
  readonly #onFault: (fault: Fault, operation: FaultyOperation, key: string) => void;
  readonly #changes: Change[] = [];

  constructor({ store, clock, faults, onFault }: FaultyStoreOptions) {
    this.name = store.name;
    this.#store = store;
    this.#clock = clock;
    this.#faults = faults;
    this.#onFault = onFault ?? (() => undefined);
  }

  put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo> {
    return this.#meet("put", key, options, async () => {
      const before = await this.#before(key, options);
      const info = await this.#store.put(key, body, options);
      this.#remember({ key, before });
      return info;
    });
  }

  get(key: string, options: GetBytesOptions): Promise<ObjectBytes> {
    return this.#meet("get", key, options, async (faults) => {
      const { info, bytes } = await this.#store.get(key, options);
      const cut = faults.find(({ kind }) => kind === "cut_read");
      if (cut !== undefined) throw brokenOff(key);
      const flip = faults.find((fault) => fault.kind === "flip_bit");
      if (flip === undefined || bytes.length === 0) return { info, bytes };
      const flipped = Buffer.from(bytes);
      flipBit(flipped, flip.at * bytes.length);
      return { info, bytes: flipped };
    });
  }

  open(key: string, options: GetOptions): Promise<ObjectStream> {
    return this.#meet("get", key, options, async (faults) => {
      const stream = await this.#store.open(key, options);
      const { info, byteCount } = stream;
      return { info, byteCount, chunks: faultyChunks(stream, faults), close: () => stream.close() };
    });
  }

  head(key: string, call: ObjectCall): Promise<ObjectInfo> {
    return this.#meet("head", key, call, () => this.#store.head(key, call));
  }

  delete(keys: readonly string[], call: ObjectCall): Promise<void> {
    return this.#meet("delete", keys[0] ?? "", call, async (faults) => {
      const part = faults.find((fault) => fault.kind === "delete_part");
      const going = part === undefined ? keys : keys.slice(0, Math.floor(part.at * keys.length));
      const befores = await Promise.all(going.map(async (key) => ({ key, before: await this.#before(key, call) })));
      await this.#store.delete(going, call);
      for (const change of befores) this.#remember(change);
      if (part !== undefined) throw new ObjectStoreError("unavailable", "a fault: only some of the keys were deleted");
    });
  }

  async *list(prefix: string, options: ListOptions): AsyncIterable<ObjectInfo> {
    const faults = await this.#meet("list", prefix, options, async (met) => met);
    const old = faults.find((fault) => fault.kind === "old_list");
    const before = old === undefined ? new Map<string, ObjectInfo | undefined>() : this.#past(old.at);
    const { startAfter = "" } = options;
    const gone = [...before.values()]
      .filter((info) => info !== undefined)
      .filter(({ key }) => key.startsWith(prefix) && compareKeys(key, startAfter) > 0)
      .sort((a, b) => compareKeys(a.key, b.key));
    for await (const info of this.#store.list(prefix, options)) {
      while (gone[0] !== undefined && compareKeys(gone[0].key, info.key) < 0) yield gone.shift() as ObjectInfo;
      if (gone[0]?.key === info.key) yield gone.shift() as ObjectInfo;
      else if (!before.has(info.key)) yield info;
    }
    yield* gone;
  }

  async *listFolders(prefix: string, call: ObjectCall): AsyncIterable<string> {
    await this.#meet("list", prefix, call, async () => undefined);
    yield* this.#store.listFolders(prefix, call);
  }

  probe(call: ObjectCall): Promise<void> {
    return this.#store.probe(call);
  }

  close(): Promise<void> {
    return this.#store.close();
  }

  async #meet<T>(
    operation: FaultyOperation,
    key: string,
    call: ObjectCall,
    work: (faults: readonly Fault[]) => Promise<T>,
  ): Promise<T> {
    const faults = this.#faults(operation, key);
    const has = (kind: Fault["kind"]) => faults.some((fault) => fault.kind === kind);
    for (const fault of faults) this.#onFault(fault, operation, key);
    for (const fault of faults) {
      if (fault.kind === "delay") await bounded(this.#clock, call, (signal) => pause(this.#clock, fault.ms, signal));
    }
    if (has("throttle")) throw new ObjectStoreError("throttled", `a fault: ${operation} of ${key} is throttled`);
    if (has("fail_before")) throw new ObjectStoreError("unavailable", `a fault: ${operation} of ${key} is not done`);
    const result = await work(faults);
    if (has("lose_answer")) await bounded(this.#clock, call, () => new Promise<never>(() => undefined));
    if (has("fail_after")) throw new ObjectStoreError("unavailable", `a fault: ${operation} of ${key} is done`);
    return result;
  }

  async #before(key: string, call: ObjectCall): Promise<ObjectInfo | undefined> {
    try {
      return await this.#store.head(key, call);
    } catch (error) {
      if (isObjectStoreError(error, "not_found")) return undefined;
      throw error;
    }
  }

  #remember(change: Change): void {
    this.#changes.push(change);
    if (this.#changes.length > CHANGE_COUNT_MAX) this.#changes.shift();
  }

  /** For each key that changed since then, what was there. */
  #past(at: number): Map<string, ObjectInfo | undefined> {
    const newest = Math.ceil(at * this.#changes.length);
    const changes = newest === 0 ? [] : this.#changes.slice(-newest);
    return new Map(changes.toReversed().map(({ key, before }) => [key, before]));
  }
}

async function* faultyChunks(stream: ObjectStream, faults: readonly Fault[]): AsyncGenerator<Uint8Array> {
  const cut = faults.find((fault) => fault.kind === "cut_read");
  const flip = faults.find((fault) => fault.kind === "flip_bit");
  const cutAt = cut === undefined ? undefined : Math.floor(cut.at * stream.byteCount);
  const flipAt = flip === undefined ? -1 : flip.at * stream.byteCount;
  let done = 0;
  for await (const chunk of stream.chunks) {
    const start = done;
    done += chunk.length;
    const copy = Buffer.from(chunk);
    if (flipAt >= start && flipAt < done) flipBit(copy, flipAt - start);
    if (cutAt === undefined || cutAt >= done) {
      yield copy;
      continue;
    }
    if (cutAt > start) yield copy.subarray(0, cutAt - start);
    throw brokenOff(stream.info.key);
  }
}

/** The bit that a fraction of a byte stands for. */
function flipBit(bytes: Buffer, at: number): void {
  const index = Math.floor(at);
  const byte = bytes[index];
  if (byte !== undefined) bytes[index] = byte ^ (1 << Math.floor((at - index) * 8));
}

function brokenOff(key: string): ObjectStoreError {
  return new ObjectStoreError("unavailable", `a fault: the bytes of ${key} broke off`);
}
