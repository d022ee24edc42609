/** What a process has of the world, and what ends with it. */
import type { Clock } from "../../src/clock.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";

/** A clock whose timers end with the process. */
export class MortalClock implements Clock {
  readonly #clock: Clock;
  readonly #timers = new Set<() => void>();
  #isOver = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  now(): number {
    return this.#clock.now();
  }

  wallMs(): number {
    return this.#clock.wallMs();
  }

  after(ms: number, run: () => void): () => void {
    if (this.#isOver) return () => undefined;
    const cancel = this.#clock.after(ms, () => {
      this.#timers.delete(cancel);
      if (!this.#isOver) run();
    });
    return this.#kept(cancel);
  }

  every(ms: number, run: () => void): () => void {
    if (this.#isOver) return () => undefined;
    return this.#kept(
      this.#clock.every(ms, () => {
        if (!this.#isOver) run();
      }),
    );
  }

  end(): void {
    this.#isOver = true;
    for (const cancel of this.#timers) cancel();
    this.#timers.clear();
  }

  #kept(cancel: () => void): () => void {
    this.#timers.add(cancel);
    return () => {
      this.#timers.delete(cancel);
      cancel();
    };
  }
}

/** A store that a dead process neither calls nor hears of. What was on its way when it died may still be done. */
export function mortalStore(store: ObjectStore, isDead: () => boolean): ObjectStore {
  const never = new Promise<never>(() => undefined);
  const alive = <T>(call: () => Promise<T>): Promise<T> => {
    if (isDead()) return never;
    return call().then(
      (answer) => (isDead() ? never : answer),
      (error: unknown) => (isDead() ? never : Promise.reject(error)),
    );
  };
  async function* whileAlive<T>(from: () => AsyncIterable<T>): AsyncGenerator<T> {
    if (isDead()) await never;
    for await (const each of from()) {
      if (isDead()) await never;
      yield each;
    }
    if (isDead()) await never;
  }
  return {
    name: store.name,
    put: (key, body, options) => alive(() => store.put(key, body, options)),
    get: (key, options) => alive(() => store.get(key, options)),
    open: async (key, options) => {
      const stream = await alive(() => store.open(key, options));
      return { ...stream, chunks: whileAlive(() => stream.chunks), close: () => stream.close() };
    },
    head: (key, call) => alive(() => store.head(key, call)),
    delete: (keys, call) => alive(() => store.delete(keys, call)),
    list: (prefix, options) => whileAlive(() => store.list(prefix, options)),
    listFolders: (prefix, call) => whileAlive(() => store.listFolders(prefix, call)),
    probe: (call) => alive(() => store.probe(call)),
    close: async () => undefined,
  };
}
