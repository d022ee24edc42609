/** A database out of the object store, every byte of it checked. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import type { ReplicaFile } from "../ltx/replica.ts";
import { planRestore, type RestorePlan, type RestoreTarget } from "../ltx/restore-plan.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { ChainState } from "./apply.ts";
import { listMsMax, within } from "./calls.ts";
import { applyChain, FileFailure } from "./chain.ts";
import type { FetchBudget } from "./fetch.ts";
import { PagedFile } from "./paged-file.ts";
import type { ReplicaFiles } from "./replica-files.ts";
import type { DamagedFile, Restored, RestoreInput, StageCall } from "./stage.ts";

/** So many files may be damaged with others standing in for them. */
const damagedMax = 8;

export interface RestoringContext {
  readonly clock: Clock;
  readonly store: ObjectStore;
  readonly fileSystem: FileSystem;
  readonly budget: FetchBudget;
}

/**
 * Plans over what is known, and applies the files. When one is gone, retention was faster: it lists and plans anew, once.
 * When one is damaged it is read once more, for the way may have been at fault; then others have to stand in for it.
 */
export class Restoring {
  readonly #context: RestoringContext;
  readonly #files: ReplicaFiles;
  readonly #input: RestoreInput;
  readonly #call: StageCall;
  readonly #suspects = new Set<string>();
  readonly #damaged = new Map<string, DamagedFile>();
  #isFresh = false;
  #wantedTxid: bigint | undefined;
  #readBytes = 0;

  constructor(context: RestoringContext, files: ReplicaFiles, input: RestoreInput, call: StageCall) {
    this.#context = context;
    this.#files = files;
    this.#input = input;
    this.#call = call;
  }

  /** By what is known for certain. */
  async run(): Promise<Restored> {
    for (;;) {
      const plan = await this.#plan();
      try {
        return this.#restored(await this.#apply(plan));
      } catch (error) {
        if (!(error instanceof FileFailure)) throw error;
        await this.#learn(error);
      }
    }
  }

  /**
   * By what was known some time ago, while the list is on its way: where the list leads to the same files, no time was lost
   * waiting for it.
   */
  async runAhead(assumed: readonly ReplicaFile[]): Promise<Restored> {
    const guess = planRestore(assumed, this.#input.target);
    // Settled, so that a failure of one does not leave the other behind.
    const [ahead, listed] = await Promise.allSettled([
      guess.kind === "plan" ? this.#apply(guess) : undefined,
      this.#reload(),
    ]);
    if (listed.status === "rejected") throw listed.reason;
    if (ahead.status === "rejected" && !(ahead.reason instanceof FileFailure)) throw ahead.reason;
    if (ahead.status === "fulfilled" && ahead.value !== undefined && guess.kind === "plan") {
      const plan = planRestore(this.#files.all, this.#input.target);
      if (plan.kind === "plan" && this.#isSame(plan.files, guess.files)) return this.#restored(ahead.value);
    }
    return this.run();
  }

  #restored({ maxTxid: txid, pageSize, pageCount, timestampMs }: ChainState): Restored {
    const damaged = [...this.#damaged.values()];
    return { txid, pageSize, pageCount, timestampMs, readBytes: this.#readBytes, damaged };
  }

  #isSame(a: readonly ReplicaFile[], b: readonly ReplicaFile[]): boolean {
    const text = (files: readonly ReplicaFile[]) =>
      files.map((file) => `${this.#files.key(file)} ${file.byteCount}`).join();
    return text(a) === text(b);
  }

  /** A plan that leads as far as the first one did. */
  async #plan(): Promise<RestorePlan & { readonly kind: "plan" }> {
    for (;;) {
      const good = this.#files.all.filter((file) => !this.#damaged.has(this.#files.key(file)));
      const plan = planRestore(good, this.#input.target);
      if (plan.kind === "plan" && (this.#wantedTxid ?? plan.maxTxid) === plan.maxTxid) {
        this.#wantedTxid = plan.maxTxid;
        return plan;
      }
      const [first] = this.#damaged.values();
      if (first !== undefined) throw first.failure;
      if (this.#isFresh) throw planFailure(plan, this.#input.target);
      await this.#reload();
    }
  }

  async #apply({ files: plan }: RestorePlan & { readonly kind: "plan" }): Promise<ChainState> {
    const { clock, store, fileSystem, budget } = this.#context;
    const { path, flush, onProgress } = this.#input;
    const bytesTotal = plan.reduce((sum, { byteCount }) => sum + byteCount, 0);
    const file = await fileSystem.openFile(path, "make");
    let done = 0;
    const onBytes = (byteCount: number) => {
      done += byteCount;
      this.#readBytes += byteCount;
      onProgress?.(done, bytesTotal);
    };
    const sinks: PagedFile[] = [];
    const open = (pageSize: number) => {
      const sink = new PagedFile(file, pageSize, flush);
      sinks.push(sink);
      return sink;
    };
    try {
      const state = await applyChain({ clock, store, budget, files: this.#files, plan, open, onBytes }, this.#call);
      for (const sink of sinks) await sink.finish();
      return state;
    } finally {
      for (const sink of sinks) await sink.settle();
      await file.close();
    }
  }

  async #learn(problem: FileFailure): Promise<void> {
    const name = this.#files.key(problem.file);
    const failure = problem.damage(name);
    if (problem.isGone) {
      if (this.#isFresh) throw failure;
      this.#wantedTxid = undefined;
      await this.#reload();
    } else if (this.#suspects.has(name)) {
      this.#damaged.set(name, { name, failure });
      if (this.#damaged.size > damagedMax) throw failure;
    } else {
      this.#suspects.add(name);
    }
  }

  async #reload(): Promise<void> {
    this.#isFresh = true;
    await this.#files.load(within(this.#context.clock, this.#call, listMsMax));
    if (isTime(this.#input.target)) await this.#files.loadTimes(this.#call);
  }
}

export function isTime(target: RestoreTarget): boolean {
  return target !== undefined && "beforeMs" in target;
}

/** Why what is stored does not lead to where it should. */
export function planFailure(plan: RestorePlan, target: RestoreTarget): Failure {
  if (plan.kind === "hole") return new LtxFailure("chain", `nothing holds TXID ${plan.missingTxid}`);
  if (target === undefined) return new LtxFailure("chain", "no chain of files begins with a snapshot");
  const wanted = "txid" in target ? `position ${target.txid}` : new Date(target.beforeMs).toISOString();
  const earliest = plan.kind === "unavailable" ? plan.earliestTxid : undefined;
  return new Failure("HISTORY_OUT_OF_RANGE", {
    wanted,
    problem: "nothing that is stored leads there",
    ...(earliest === undefined ? {} : { earliestSequence: String(earliest) }),
  });
}
