/** Tries what the remote stage relies on, with one small object of a name that nobody else has. */
import type { Clock } from "../clock.ts";
import { checkCall } from "./bounded.ts";
import { isObjectStoreError, type ObjectCall, type ObjectStore, ObjectStoreError } from "./object-store.ts";

/** Where probes put their object; it is gone when they are done. */
const PROBE_FOLDER = "persisto-probe";

/** The part of `ObjectStore.probe` that is the same for every store. `name` must be unique. */
export async function probeStore(store: ObjectStore, clock: Clock, name: string, call: ObjectCall): Promise<void> {
  const key = `${PROBE_FOLDER}/${name}`;
  checkCall(clock, call);
  try {
    await tryOut(store, key, call);
  } catch (error) {
    // What failed is what an operator has to know; that the object is left over says less.
    await store.delete([key], call).catch(() => undefined);
    if (!isObjectStoreError(error, "unavailable") || error.missing !== undefined) throw error;
    throw new ObjectStoreError("unavailable", error.message, { cause: error, missing: "endpoint" });
  }
}

async function tryOut(store: ObjectStore, key: string, call: ObjectCall): Promise<void> {
  const body = Buffer.from("Written to see what this store can do; it may be deleted.\n");
  const first = await store.put(key, body, { ...call, condition: { ifNoneMatch: "*" } });
  await expectRefusal(store, "replaces an object that a put with If-None-Match: * must leave alone", () =>
    store.put(key, body, { ...call, condition: { ifNoneMatch: "*" } }),
  );
  const second = await store.put(key, Buffer.concat([body, body]), { ...call, condition: { ifMatch: first.etag } });
  await expectRefusal(store, "replaces an object although the etag of If-Match is an old one", () =>
    store.put(key, body, { ...call, condition: { ifMatch: first.etag } }),
  );
  const { bytes } = await store.get(key, { ...call, bytesMax: 1024, range: { offsetBytes: 1, byteCount: 3 } });
  if (second.etag === first.etag || !body.subarray(1, 4).equals(bytes)) {
    throw new ObjectStoreError("unavailable", `${store.name} does not give back what was put`, { missing: "endpoint" });
  }
  for await (const { key: listed } of store.list(`${PROBE_FOLDER}/`, call)) if (listed === key) break;
  await store.delete([key], call);
}

async function expectRefusal(store: ObjectStore, fault: string, put: () => Promise<unknown>): Promise<void> {
  try {
    await put();
  } catch (error) {
    if (isObjectStoreError(error, "precondition")) return;
    throw error;
  }
  throw new ObjectStoreError(
    "denied",
    `${store.name} ${fault}: two servers could overwrite each other's data there; use a store with conditional writes`,
    { missing: "conditional_put" },
  );
}
