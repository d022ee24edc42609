/** Servers that are broken on purpose. */

import type { ReplicaFile } from "../../src/ltx/replica.ts";
import type { ObjectStore, PutOptions } from "../../src/objects/object-store.ts";
import type { RemoteReplica, RemoteStage } from "../../src/stages/remote.ts";
import { Random } from "./random.ts";
import type { Variant } from "./schedule.ts";

/** Flushes answer and do nothing. */
export const answersBeforeFlush: Variant = { flushesNothing: true };

/** The condition of a put does not reach the bucket. */
export const uploadsWithoutCondition: Variant = {
  between: (store) => ({
    ...bound(store),
    put: (key, body, options) => store.put(key, body, unconditional(options)),
  }),
};

/** A bucket that forgets some of the files it was given, without a word. Only what it is trusted with may be lost. */
export const losesObjects: Variant = {
  trustsBucket: false,
  between: (store) => {
    const random = new Random(7);
    return {
      ...bound(store),
      put: async (key, body, options) => {
        const info = await store.put(key, body, options);
        if (key.endsWith(".ltx") && random.chance(0.1)) await store.delete([key], options);
        return info;
      },
    };
  },
};

/** The same bucket, and a server that believes it. */
export const deletesBeforeVerify: Variant = {
  ...losesObjects,
  betweenStage: (stage) =>
    replaced(stage, {
      replica: (prefix, options) => {
        const replica = stage.replica(prefix, options);
        return replaced<RemoteReplica>(replica, { load: async () => undefined, files: () => wholeFiles });
      },
    } satisfies Partial<RemoteStage>),
};

/** Whatever was to be there. */
const wholeFiles: readonly ReplicaFile[] = [
  { level: 0, minTxid: 1n, maxTxid: 2n ** 62n, byteCount: 1, createTimeMs: 0 },
];

function unconditional({ condition: _, ...options }: PutOptions): PutOptions {
  return options;
}

/** Its methods, each bound, so that some can be replaced. */
function bound(store: ObjectStore): ObjectStore {
  return {
    name: store.name,
    put: (key, body, options) => store.put(key, body, options),
    get: (key, options) => store.get(key, options),
    open: (key, options) => store.open(key, options),
    head: (key, call) => store.head(key, call),
    delete: (keys, call) => store.delete(keys, call),
    list: (prefix, options) => store.list(prefix, options),
    listFolders: (prefix, call) => store.listFolders(prefix, call),
    probe: (call) => store.probe(call),
    close: () => store.close(),
  };
}

function replaced<T extends object>(target: T, change: Partial<T>): T {
  return new Proxy(target, {
    get(_target, name) {
      const value: unknown = Object.hasOwn(change, name)
        ? Reflect.get(change, name)
        : Reflect.get(target, name, target);
      return typeof value === "function" && !Object.hasOwn(change, name) ? value.bind(target) : value;
    },
  });
}
