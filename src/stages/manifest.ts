/**
 * `<id>/database.json` in the object store: what has to be known of a database to bring it back with nothing but the bucket.
 * Written with conditions, after the data that it names.
 */
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
