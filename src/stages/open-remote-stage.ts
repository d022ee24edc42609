/** The remote stage of a server. */
import type { Clock } from "../clock.ts";
import type { FileSystem } from "../files/file-system.ts";
import type { ReplicaLayout } from "../ltx/replica.ts";
import { defaultRetention, type RetentionRules } from "../ltx/retention.ts";
import { checkKey, type ObjectStore } from "../objects/object-store.ts";
import { FetchBudget } from "./fetch.ts";
import { FileHints } from "./file-hints.ts";
import { type Manifests, StoredManifests } from "./manifest.ts";
import type { RemoteReplica, RemoteStage } from "./remote.ts";
import { type ReplicaContext, StoredReplica } from "./remote-replica.ts";
import { Spool } from "./spool.ts";
import type { StageCall } from "./stage.ts";

export interface RemoteStageOptions {
  readonly store: ObjectStore;
  readonly layout: ReplicaLayout;
  readonly displayName: string;
  readonly fileSystem: FileSystem;
  /** A folder of its own on the local disk, for files on their way to the store. It is emptied before its first file. */
  readonly spoolDirectoryPath: string;
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  /** Litestream's, unless told otherwise. */
  readonly retention?: RetentionRules | undefined;
  /** Files that one compaction takes at most; 256 unless told otherwise. */
  readonly compactionFilesMax?: number | undefined;
  /** Fetched bytes that restores hold in memory, all together; 64 MiB unless told otherwise. */
  readonly fetchBytesMax?: number | undefined;
}

/** Files of which it is remembered that they are stored. */
const hintCountMax = 200_000;

/** Asks nothing of the store: see `probe`. */
export async function openRemoteStage(options: RemoteStageOptions): Promise<RemoteStage> {
  const spool = new Spool(options.spoolDirectoryPath, options.fileSystem);
  return new ObjectStage(options, spool);
}

class ObjectStage implements RemoteStage {
  readonly name = "remote";
  readonly displayName: string;
  readonly store: ObjectStore;
  readonly layout: ReplicaLayout;
  readonly manifests: Manifests;
  readonly #context: ReplicaContext;

  constructor(options: RemoteStageOptions, spool: Spool) {
    const { store, layout, displayName, fileSystem, clock, random } = options;
    const { retention = defaultRetention, compactionFilesMax = 256, fetchBytesMax = 64 * 1024 * 1024 } = options;
    this.displayName = displayName;
    this.store = store;
    this.layout = layout;
    this.manifests = new StoredManifests(store, random);
    const budget = new FetchBudget(fetchBytesMax);
    const hints = new FileHints(hintCountMax);
    this.#context = { store, layout, fileSystem, clock, random, spool, budget, hints, retention, compactionFilesMax };
  }

  /** Nobody knows how much room a store has. */
  async space(): Promise<undefined> {
    return undefined;
  }

  probe(call: StageCall): Promise<void> {
    return this.store.probe(call);
  }

  prefixOf(id: string, lineage: string): string {
    return `${id}/${lineage}`;
  }

  replica(prefix: string, { isNew = false }: { readonly isNew?: boolean } = {}): RemoteReplica {
    checkKey(prefix);
    return new StoredReplica(this.#context, prefix, isNew);
  }
}
