/** What the tests of object stores share. */
import { systemClock } from "../../src/clock.ts";
import { seededRandom } from "../../src/objects/faulty.ts";
import {
  type ObjectCall,
  type ObjectInfo,
  type ObjectStore,
  ObjectStoreError,
} from "../../src/objects/object-store.ts";

/** Time enough for a busy machine. */
export function call(timeoutMs = 15_000): ObjectCall {
  return { deadlineAtMs: systemClock.now() + timeoutMs };
}

/** Bytes that differ by seed, and cannot be confused with shifted ones. */
export function bytesOf(size: number, seed = 0): Buffer {
  const random = seededRandom(seed);
  const pattern = Buffer.from(Uint8Array.from({ length: Math.min(size, 65_521) }, () => random() * 256));
  return Buffer.concat(Array(Math.ceil(size / 65_521) || 1).fill(pattern), size);
}

/** The kind of the ObjectStoreError that a promise rejects with. */
export async function failing(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof ObjectStoreError) return error.kind;
    throw error;
  }
  return "no failure";
}

export async function keysOf(store: ObjectStore, prefix: string, startAfter?: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of store.list(prefix, { ...call(), startAfter })) keys.push(key);
  return keys;
}

/** The first of a list. */
export async function take(list: AsyncIterable<ObjectInfo | string>, count: number): Promise<string[]> {
  const taken: string[] = [];
  for await (const each of list) {
    taken.push(typeof each === "string" ? each : each.key);
    if (taken.length === count) break;
  }
  return taken;
}
