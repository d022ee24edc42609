/**
 * `<id>/database.json` in the object store: what has to be known of a database to bring it back with nothing but the bucket.
 * Written with conditions, after the data that it names.
 */
import * as z from "zod";
import { Failure } from "../failure/failure.ts";
import { isObjectStoreError, type ObjectStore } from "../objects/object-store.ts";
import type { StageCall } from "./stage.ts";

/** A history that a restore in place has replaced; it can be restored and forked until its time is over. */
export interface RetiredPrefix {
  readonly lineage: string;
  readonly prefix: string;
  /** When another took its place. Milliseconds since 1970. */
  readonly retiredAtMs: number;
  readonly keepUntilMs: number;
}

/** What is known of a repeatable CreateDatabase; see the engine's facts. */
export interface ManifestCreateRecord {
  readonly id: string;
  readonly method: string;
  readonly hash: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly foreignKeys: boolean;
}

export interface Manifest {
  readonly id: string;
  /** 16 hex digits. */
  readonly lineage: string;
  /** Of the replica. */
  readonly prefix: string;
  /** Milliseconds since 1970. */
  readonly createTimeMs: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly foreignKeys: boolean;
  readonly etagVersion: number;
  /** 0 while nobody knows. */
  readonly pageBytes: number;
  readonly createRecord: ManifestCreateRecord | undefined;
  readonly retired: readonly RetiredPrefix[];
}

export interface StoredManifest {
  readonly manifest: Manifest;
  /** For `replace`. */
  readonly etag: string;
}

/** The manifests of one object store. */
export interface Manifests {
  /** Undefined when there is none. Throws Failure DATA_CORRUPT for one that cannot be understood. */
  read(id: string, call: StageCall): Promise<StoredManifest | undefined>;
  /** Publishes a database. Undefined when there is a manifest already that is not this very one. */
  create(manifest: Manifest, call: StageCall): Promise<StoredManifest | undefined>;
  /** Replaces the version of that etag. Undefined when another one is there by now, or none: read again. */
  replace(manifest: Manifest, etag: string, call: StageCall): Promise<StoredManifest | undefined>;
  /** Removes it if it is of that lineage; false when it is of another, and stays. True when it is gone. */
  remove(id: string, lineage: string, call: StageCall): Promise<boolean>;
  /** Names of the folders of the bucket that may be databases, each once; not every one has a manifest. */
  ids(call: StageCall): AsyncIterable<string>;
}

const manifestBytesMax = 8 * 1024 * 1024;

const labels = z.record(z.string(), z.string());
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const lineage = z.string().regex(/^[0-9a-f]{16}$/);
const prefix = z.string().min(1).max(600);
const manifestSchema = z.object({
  version: z.literal(1),
  id: z.string(),
  lineage,
  prefix,
  createTimeMs: count,
  labels,
  foreignKeys: z.boolean(),
  etagVersion: count,
  pageBytes: count,
  createRecord: z
    .object({ id: z.string(), method: z.string(), hash: z.string(), labels, foreignKeys: z.boolean() })
    .optional(),
  retired: z.array(z.object({ lineage, prefix, retiredAtMs: count, keepUntilMs: count })).max(10_000),
});

/** Key of a database's manifest. */
export function manifestKey(id: string): string {
  return `${id}/database.json`;
}

export class StoredManifests implements Manifests {
  readonly #store: ObjectStore;
  readonly #random: (byteCount: number) => Uint8Array;

  constructor(store: ObjectStore, random: (byteCount: number) => Uint8Array) {
    this.#store = store;
    this.#random = random;
  }

  async read(id: string, call: StageCall): Promise<StoredManifest | undefined> {
    const found = await this.#get(id, call);
    if (found === undefined) return undefined;
    const manifest = parse(found.bytes);
    if (manifest?.id === id) return { manifest, etag: found.etag };
    throw new Failure("DATA_CORRUPT", {
      database: id,
      stage: "remote",
      sqliteMessage: `${manifestKey(id)} cannot be understood`,
    });
  }

  async create(manifest: Manifest, call: StageCall): Promise<StoredManifest | undefined> {
    const etag = await this.#put(manifest, { ifNoneMatch: "*" }, call);
    if (etag !== undefined) return { manifest, etag };
    const found = await this.read(manifest.id, call);
    return found !== undefined && isSame(found.manifest, manifest) ? found : undefined;
  }

  async replace(manifest: Manifest, etag: string, call: StageCall): Promise<StoredManifest | undefined> {
    const newEtag = await this.#put(manifest, { ifMatch: etag }, call);
    if (newEtag !== undefined) return { manifest, etag: newEtag };
    // An earlier attempt whose answer was lost.
    const found = await this.read(manifest.id, call);
    return found !== undefined && isSame(found.manifest, manifest) ? found : undefined;
  }

  async remove(id: string, lineage: string, call: StageCall): Promise<boolean> {
    const found = await this.read(id, call);
    if (found === undefined) return true;
    if (found.manifest.lineage !== lineage) return false;
    await this.#store.delete([manifestKey(id)], call);
    return true;
  }

  ids(call: StageCall): AsyncIterable<string> {
    return this.#store.listFolders("", call);
  }

  /** The new etag; undefined when the condition does not hold. */
  async #put(
    manifest: Manifest,
    condition: { readonly ifNoneMatch: "*" } | { readonly ifMatch: string },
    call: StageCall,
  ): Promise<string | undefined> {
    // Etags are made of the bytes in many stores: without it an old etag would fit a later version that is like an old one.
    const nonce = Buffer.from(this.#random(8)).toString("hex");
    const bytes = Buffer.from(`${JSON.stringify({ version: 1, nonce, ...manifest }, null, 2)}\n`);
    try {
      return (await this.#store.put(manifestKey(manifest.id), bytes, { ...call, condition })).etag;
    } catch (error) {
      if (isObjectStoreError(error, "precondition")) return undefined;
      throw error;
    }
  }

  async #get(id: string, call: StageCall): Promise<{ readonly bytes: Uint8Array; readonly etag: string } | undefined> {
    try {
      const { info, bytes } = await this.#store.get(manifestKey(id), { ...call, bytesMax: manifestBytesMax });
      return { bytes, etag: info.etag };
    } catch (error) {
      if (isObjectStoreError(error, "not_found")) return undefined;
      throw error;
    }
  }
}

function parse(bytes: Uint8Array): Manifest | undefined {
  let given: unknown;
  try {
    given = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch {
    // Not JSON: the caller is told by undefined.
    return undefined;
  }
  const parsed = manifestSchema.safeParse(given);
  if (!parsed.success) return undefined;
  const { version: _, createRecord, ...manifest } = parsed.data;
  return { ...manifest, createRecord };
}

/** As they are written: the order of labels does not matter. */
function isSame(a: Manifest, b: Manifest): boolean {
  return canonical(a) === canonical(b);
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
