/** Files of the object store applied in order, fetched ahead. */
import type { Clock } from "../clock.ts";
import { headerBytes } from "../ltx/header.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import type { ReplicaFile } from "../ltx/replica.ts";
import { isObjectStoreError, type ObjectStore } from "../objects/object-store.ts";
import { applyLtx, type ChainState } from "./apply.ts";
import { type FetchBudget, type FetchedObject, ObjectSequence } from "./fetch.ts";
import type { PageSink } from "./paged-file.ts";
import type { ReplicaFiles } from "./replica-files.ts";
import type { StageCall } from "./stage.ts";

/** A file of a chain could not be read, for a reason of its own: it is gone, or damaged. `cause` is what was found. */
export class FileFailure extends Error {
  override readonly name = "FileFailure";
  readonly file: ReplicaFile;

  constructor(file: ReplicaFile, cause: unknown) {
    super("a file of the chain could not be read", { cause });
    this.file = file;
  }

  get isGone(): boolean {
    return isObjectStoreError(this.cause, "not_found");
  }

  /** As damage of the file of that name. */
  damage(name: string): LtxFailure {
    const { cause } = this;
    if (this.isGone) return new LtxFailure("chain", `${name} is gone`, cause);
    if (cause instanceof LtxFailure) {
      return new LtxFailure(cause.problem, `${name}: ${cause.facts["sqliteMessage"] ?? cause.message}`, cause);
    }
    return new LtxFailure("checksum", `${name}: its bytes are not those that were put`, cause);
  }
}

/** True for a failure that says something about the bytes that were read. */
export function isOfFile(error: unknown): boolean {
  return error instanceof LtxFailure || isObjectStoreError(error, "not_found") || isObjectStoreError(error, "corrupt");
}

export interface ChainInput {
  readonly clock: Clock;
  readonly store: ObjectStore;
  readonly budget: FetchBudget;
  readonly files: ReplicaFiles;
  /** In order, the first a snapshot. */
  readonly plan: readonly ReplicaFile[];
  /** Where the pages go; called once. */
  readonly open: (pageSize: number) => PageSink;
  readonly onBytes?: (byteCount: number) => void;
}

/**
 * Applies the files; only when this resolves are the pages that went into the sink proven. Rejects with FileFailure for what
 * is wrong with one file.
 */
export async function applyChain(
  { clock, store, budget, files, plan, open, onBytes }: ChainInput,
  call: StageCall,
): Promise<ChainState> {
  const objects: FetchedObject[] = plan.map((file) => ({ key: files.key(file), byteCount: file.byteCount }));
  const tooShort = plan.find(({ byteCount }) => byteCount < headerBytes);
  if (tooShort !== undefined) throw new FileFailure(tooShort, new LtxFailure("truncated", "the file is too short"));
  const sequence = new ObjectSequence(store, objects, call, { clock, budget, onBytes });
  let sink: PageSink | undefined;
  let state: ChainState | undefined;
  const sinkOf = ({ pageSize }: { readonly pageSize: number }) => {
    sink ??= open(pageSize);
    return sink;
  };
  try {
    for (const [index, file] of plan.entries()) {
      const source = sequence.next(objects[index] as FetchedObject);
      try {
        state = await applyLtx(source, file, state, sinkOf);
      } catch (error) {
        throw isOfFile(error) ? new FileFailure(file, error) : error;
      }
    }
  } finally {
    await sequence.close();
  }
  if (state === undefined) throw new Error("a chain without files");
  return state;
}
