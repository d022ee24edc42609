import { randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { type Fault, FaultyStore } from "../../src/objects/faulty.ts";
import { isObjectStoreError } from "../../src/objects/object-store.ts";
import { type Manifest, manifestKey, StoredManifests } from "../../src/stages/manifest.ts";
import { call } from "../objects/helpers.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { reasonOf } from "./contract.ts";

const manifest: Manifest = {
  id: "notes",
  lineage: "0123456789abcdef",
  prefix: "notes/0123456789abcdef",
  createTimeMs: Date.UTC(2026, 0, 1),
  labels: { team: "blue", tier: "gold" },
  foreignKeys: true,
  etagVersion: 1,
  pageBytes: 4096,
  createRecord: { id: "r-1", method: "CreateDatabase", hash: "00ff", labels: {}, foreignKeys: true },
  retired: [{ lineage: "fedcba9876543210", prefix: "notes/fedcba9876543210", retiredAtMs: 5, keepUntilMs: 9 }],
};

function scene() {
  const store = new MemoryObjectStore(systemClock);
  const faults: Fault[] = [];
  const faulty = new FaultyStore({ store, clock: systemClock, faults: () => faults.splice(0, 1) });
  return { store, faults, manifests: new StoredManifests(faulty, randomBytes) };
}

describe("a manifest", () => {
  it("is read as it was written", async () => {
    const { manifests } = scene();
    expect(await manifests.read("notes", call())).toBeUndefined();
    const made = await manifests.create(manifest, call());
    expect(await manifests.read("notes", call())).toEqual(made);
    expect(made?.manifest).toEqual(manifest);
  });

  it("is published once", async () => {
    const { manifests } = scene();
    const first = await manifests.create(manifest, call());
    expect(await manifests.create({ ...manifest, lineage: "aaaaaaaaaaaaaaaa" }, call())).toBeUndefined();
    // A repeat of the same one.
    const labels = { tier: "gold", team: "blue" };
    expect((await manifests.create({ ...manifest, labels }, call()))?.etag).toBe(first?.etag);
  });

  it("is replaced by who has read it last", async () => {
    const { manifests } = scene();
    const first = await manifests.create(manifest, call());
    const second = await manifests.replace({ ...manifest, etagVersion: 2 }, first?.etag ?? "", call());
    expect(second?.manifest.etagVersion).toBe(2);
    expect(await manifests.replace({ ...manifest, etagVersion: 3 }, first?.etag ?? "", call())).toBeUndefined();
    // The second again, whose answer may have been lost.
    expect((await manifests.replace({ ...manifest, etagVersion: 2 }, first?.etag ?? "", call()))?.etag).toBe(
      second?.etag,
    );
    expect((await manifests.read("notes", call()))?.manifest.etagVersion).toBe(2);
  });

  it("is not replaced once it is gone", async () => {
    const { manifests } = scene();
    const first = await manifests.create(manifest, call());
    expect(await manifests.remove("notes", manifest.lineage, call())).toBe(true);
    expect(await manifests.replace({ ...manifest, etagVersion: 2 }, first?.etag ?? "", call())).toBeUndefined();
    expect(await manifests.read("notes", call())).toBeUndefined();
  });

  it("that was changed and changed back takes no old etag", async () => {
    const { manifests } = scene();
    const first = await manifests.create(manifest, call());
    const second = await manifests.replace({ ...manifest, etagVersion: 2 }, first?.etag ?? "", call());
    const third = await manifests.replace(manifest, second?.etag ?? "", call());
    expect(third?.etag).not.toBe(first?.etag);
  });

  it("is removed by its own history alone", async () => {
    const { manifests } = scene();
    await manifests.create(manifest, call());
    expect(await manifests.remove("notes", "aaaaaaaaaaaaaaaa", call())).toBe(false);
    expect(await manifests.remove("notes", manifest.lineage, call())).toBe(true);
    expect(await manifests.remove("notes", manifest.lineage, call())).toBe(true);
  });

  it("whose answer was lost is found by the repeat", async () => {
    const { manifests, faults } = scene();
    faults.push({ kind: "fail_after" });
    const lost = await manifests.create(manifest, call()).catch((error: unknown) => error);
    expect(isObjectStoreError(lost, "unavailable")).toBe(true);
    expect((await manifests.create(manifest, call()))?.manifest).toEqual(manifest);
  });

  it.each([
    ["no JSON", "{"],
    ["another version", JSON.stringify({ ...manifest, version: 2 })],
    ["another's id", JSON.stringify({ ...manifest, version: 1, id: "other" })],
    ["a wrong lineage", JSON.stringify({ ...manifest, version: 1, lineage: "short" })],
  ])("with %s is damage", async (_, text) => {
    const { store, manifests } = scene();
    await store.put(manifestKey("notes"), Buffer.from(text), call());
    expect(await reasonOf(manifests.read("notes", call()))).toBe("DATA_CORRUPT");
  });

  it("is found by the names of folders", async () => {
    const { store, manifests } = scene();
    for (const id of ["a", "b.c", "z"]) await manifests.create({ ...manifest, id }, call());
    await store.put("stray", Buffer.from("x"), call());
    const ids: string[] = [];
    for await (const id of manifests.ids(call())) ids.push(id);
    expect(ids).toEqual(["a", "b.c", "z"]);
  });
});
