/** What is stored of one history, as this server knows it: one list, then kept in step. */

import { LtxFailure } from "../ltx/ltx-failure.ts";
import {
  lastTxid,
  levelPrefix,
  parseReplicaKey,
  type ReplicaFile,
  type ReplicaLayout,
  replicaKey,
  snapshotLevel,
} from "../ltx/replica.ts";
import { isObjectStoreError, type ObjectStore } from "../objects/object-store.ts";
import type { StageCall } from "./stage.ts";

/** More than any history has that is compacted at all. */
const fileCountMax = 500_000;
/** Requests for times at one time. */
const headsMax = 16;

interface Known {
  readonly file: ReplicaFile;
  /** Of the file itself, not of its upload. */
  readonly hasOwnTime: boolean;
}

export class ReplicaFiles {
  readonly #store: ObjectStore;
  readonly #prefix: string;
  readonly #layout: ReplicaLayout;
  readonly #known = new Map<string, Known>();
  #list: readonly ReplicaFile[] | undefined;

  constructor(store: ObjectStore, prefix: string, layout: ReplicaLayout) {
    this.#store = store;
    this.#prefix = prefix;
    this.#layout = layout;
  }

  get all(): readonly ReplicaFile[] {
    this.#list ??= [...this.#known.values()].map(({ file }) => file);
    return this.#list;
  }

  get lastTxid(): bigint {
    return lastTxid(this.all);
  }

  key(file: Parameters<typeof replicaKey>[0]): string {
    return `${this.#prefix}/${replicaKey(file, this.#layout)}`;
  }

  get(key: string): ReplicaFile | undefined {
    return this.#known.get(key)?.file;
  }

  /** A file that this server has put, with the time that it gave. */
  add(file: ReplicaFile): void {
    this.#known.set(this.key(file), { file, hasOwnTime: true });
    this.#list = undefined;
  }

  delete(files: Iterable<ReplicaFile>): void {
    for (const file of files) this.#known.delete(this.key(file));
    this.#list = undefined;
  }

  /** One list. Times that were known stay known. */
  async load(call: StageCall): Promise<void> {
    const found = new Map<string, Known>();
    const before = new Set(this.#known.keys());
    const folder = this.#layout === "folder" ? `${this.#prefix}/ltx/` : `${this.#prefix}/`;
    for await (const { key, sizeBytes, timestampMs } of this.#store.list(folder, call)) {
      const parsed = parseReplicaKey(key.slice(this.#prefix.length + 1), this.#layout);
      if (parsed === undefined) continue;
      const known = this.#known.get(key);
      const isKnown = known?.hasOwnTime === true && known.file.byteCount === sizeBytes;
      const createTimeMs = isKnown ? known.file.createTimeMs : timestampMs;
      const hasOwnTime = isKnown || this.#layout === "folder";
      found.set(key, { file: { ...parsed, createTimeMs, byteCount: sizeBytes }, hasOwnTime });
      if (found.size > fileCountMax) {
        throw new LtxFailure("too-large", `more than ${fileCountMax} files under ${this.#prefix}`);
      }
    }
    // A batch may be stored while the list comes, which need not have it.
    for (const [key, known] of this.#known) if (!before.has(key)) found.set(key, known);
    this.#known.clear();
    for (const [key, known] of found) this.#known.set(key, known);
    this.#list = undefined;
  }

  /** Level-0 files behind that one, which are there though nobody here knows of them: the first. */
  async firstBehind(txid: bigint, call: StageCall): Promise<ReplicaFile | undefined> {
    const prefix = `${this.#prefix}/${levelPrefix(0, this.#layout)}`;
    const startAfter = this.key({ level: 0, minTxid: txid, maxTxid: txid });
    for await (const { key, sizeBytes, timestampMs } of this.#store.list(prefix, { ...call, startAfter })) {
      const parsed = parseReplicaKey(key.slice(this.#prefix.length + 1), this.#layout);
      if (parsed !== undefined && parsed.minTxid > txid) {
        return { ...parsed, createTimeMs: timestampMs, byteCount: sizeBytes };
      }
    }
    return undefined;
  }

  /** Asks for the times that a list did not tell. Files that are gone meanwhile are forgotten. */
  async loadTimes(call: StageCall): Promise<void> {
    const missing = [...this.#known].filter(([, { hasOwnTime }]) => !hasOwnTime);
    let next = 0;
    const ask = async () => {
      for (let entry = missing[next++]; entry !== undefined; entry = missing[next++]) {
        const [key, { file }] = entry;
        try {
          const { timestampMs } = await this.#store.head(key, call);
          this.#known.set(key, { file: { ...file, createTimeMs: timestampMs }, hasOwnTime: true });
        } catch (error) {
          if (!isObjectStoreError(error, "not_found")) throw error;
          this.#known.delete(key);
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(headsMax, missing.length) }, ask));
    this.#list = undefined;
  }

  /** Keys of everything that belongs to the replica, asked for anew. */
  async keys(call: StageCall): Promise<string[]> {
    await this.load(call);
    return [...this.#known.keys()];
  }
}

export const isSnapshotFile = ({ level }: ReplicaFile): boolean => level === snapshotLevel;
