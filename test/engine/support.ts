/** What the engine's tests share. */
import { randomBytes } from "node:crypto";
import { expect } from "vitest";
import type { CatalogRow } from "../../src/engine/catalog.ts";
import { Failure } from "../../src/failure/failure.ts";
import type { Reason } from "../../src/failure/reasons.ts";

export function testRow(id: string, change: Partial<CatalogRow> = {}): CatalogRow {
  return {
    id,
    state: "ready",
    stage: "local",
    lineage: randomBytes(8).toString("hex"),
    sequence: 0,
    sizeBytes: 4096,
    createTimeMs: 0,
    lastAccessTimeMs: 0,
    labels: {},
    etagVersion: 1,
    foreignKeys: true,
    createRecord: undefined,
    head: "local",
    baseTxid: 0,
    remotePrefix: "",
    pin: undefined,
    successor: undefined,
    durableSequence: 0,
    manifestVersion: 0,
    isFenced: false,
    upkeepAtMs: 0,
    movedAtMs: 0,
    ...change,
  };
}

/** Expects a Failure of that reason and returns it. */
export async function failureOf(run: Promise<unknown> | (() => unknown), reason: Reason): Promise<Failure> {
  let seen: unknown;
  try {
    seen = await (typeof run === "function" ? run() : run);
  } catch (error) {
    expect(error).toBeInstanceOf(Failure);
    const failure = error as Failure;
    expect({ reason: failure.reason, facts: failure.facts }).toMatchObject({ reason });
    return failure;
  }
  throw new Error(`expected ${reason}, got ${String(seen)}`);
}

/** Waits until `look` is true, turn by turn of the event loop; the test's own time limit bounds it. */
export async function until(look: () => boolean): Promise<void> {
  while (!look()) await new Promise(setImmediate);
}
