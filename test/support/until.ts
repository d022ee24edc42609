/** Waits for a condition instead of for a time. */
import { setTimeout as delay } from "node:timers/promises";

/** Resolves with the first value that is not undefined, false or null; rejects when there is none in time. */
export async function until<T>(
  what: string,
  probe: () => T | Promise<T>,
  timeoutMs = 5000,
): Promise<NonNullable<Exclude<T, false>>> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== null && value !== false) {
      return value as NonNullable<Exclude<T, false>>;
    }
    if (performance.now() > end) {
      throw new Error(`waited ${timeoutMs} ms in vain until ${what}`);
    }
    await delay(5);
  }
}
