/** Remote copies of deleted databases: they go when the store can be asked, whatever happens between. */
import { KeyedLock } from "../keyed-lock.ts";
import type { Job, Lane } from "./lane.ts";
import { type StoreContext, storeCall } from "./store-context.ts";
import { backOffMs } from "./store-health.ts";
import type { Tombstone } from "./sync.ts";
import type { Due, Timetable } from "./timetable.ts";

/** A store may take in what it was sent some time after the sender has given up. */
const cutOffFactor = 2;

/** More than can be deleted while one manifest is read. */
const goneCountMax = 10_000;

interface Pending {
  readonly tombstone: Tombstone;
  readonly job: Job;
  readonly due: Due;
  /** Before that something may still arrive: then it is looked at again. By `now()`. */
  settleAtMs: number;
  isEmptied: boolean;
  failures: number;
}

export class Tombstones {
  readonly #context: StoreContext;
  readonly #timetable: Timetable;
  readonly #lane: Lane;
  readonly #onSettled: () => void;
  /** By id: one id may have been used and deleted several times. */
  readonly #pending = new Map<string, Pending[]>();
  /** An upload may clear an id's tombstones while their own job runs. */
  readonly #lock = new KeyedLock();
  readonly #controller = new AbortController();
  /** Until when something that was put for an id may still arrive; of ids that are just being deleted. */
  readonly #cutOffs = new Map<string, number>();
  /** Lineages that are gone since the start, as many as are worth remembering. */
  readonly #gone = new Set<string>();
  #count = 0;

  constructor(context: StoreContext, timetable: Timetable, lane: Lane, onSettled: () => void) {
    this.#context = context;
    this.#timetable = timetable;
    this.#lane = lane;
    this.#onSettled = onSettled;
  }

  get count(): number {
    return this.#count;
  }

  /** True when that history was deleted, whether its copy is gone already or not: a manifest may have been read before. */
  has(id: string, lineage: string): boolean {
    if (this.#gone.has(lineage)) return true;
    return this.#pending.get(id)?.some(({ tombstone }) => tombstone.lineage === lineage) ?? false;
  }

  /** Something is being put for a database that is about to be deleted, and nobody will learn when. */
  cutOff(id: string): void {
    this.#cutOffs.set(id, this.#arrivalEndMs());
  }

  #arrivalEndMs(): number {
    const { host, limits } = this.#context;
    return host.clock.now() + cutOffFactor * limits.storeCallMs;
  }

  add(tombstone: Tombstone): void {
    const settleAtMs = tombstone.mayGrow === true ? this.#arrivalEndMs() : (this.#cutOffs.get(tombstone.id) ?? 0);
    this.#cutOffs.delete(tombstone.id);
    const pending: Pending = {
      tombstone,
      settleAtMs,
      isEmptied: false,
      failures: 0,
      job: { run: () => this.#run(pending), ended: () => this.#ended(pending) },
      due: { dueAtMs: 0, place: -1, run: () => this.#lane.add(pending.job, false) },
    };
    const ofId = this.#pending.get(tombstone.id);
    if (ofId === undefined) this.#pending.set(tombstone.id, [pending]);
    else ofId.push(pending);
    this.#count++;
    this.#lane.add(pending.job, false);
  }

  /** Clears those of an id now, because a new database of the id is about to be published. */
  async clear(id: string, signal: AbortSignal): Promise<void> {
    for (const pending of [...(this.#pending.get(id) ?? [])]) await this.#remove(pending, signal);
  }

  stop(): void {
    this.#controller.abort();
    for (const ofId of this.#pending.values()) for (const { job } of ofId) this.#lane.remove(job);
  }

  async #run(pending: Pending): Promise<void> {
    try {
      await this.#remove(pending, this.#controller.signal);
    } catch (error) {
      if (this.#controller.signal.aborted) return;
      pending.failures++;
      if (pending.failures === 1 || !this.#context.health.isAway) {
        const { id } = pending.tombstone;
        this.#context.host.log(
          "warn",
          "the remote copy of a deleted database could not be removed; it is tried again",
          {
            database: id,
            error,
          },
        );
      }
    }
  }

  #ended(pending: Pending): void {
    this.#onSettled();
    if (!this.#isPending(pending) || this.#controller.signal.aborted) return;
    const { host, limits } = this.#context;
    const nowMs = host.clock.now();
    const pauseMs = backOffMs(Math.max(1, pending.failures), limits.backOff, host.random);
    this.#timetable.set(pending.due, pending.isEmptied ? Math.max(pending.settleAtMs, nowMs) : nowMs + pauseMs);
  }

  #remove(pending: Pending, signal: AbortSignal): Promise<void> {
    return this.#lock.run(pending.tombstone.id, async () => {
      if (!this.#isPending(pending)) return;
      const startMs = this.#context.host.clock.now();
      await this.#removeCopy(pending.tombstone, signal);
      pending.isEmptied = true;
      if (startMs < pending.settleAtMs) return;
      await pending.tombstone.done();
      this.#context.host.failPoints.reach("tombstone.end");
      this.#timetable.remove(pending.due);
      this.#lane.remove(pending.job);
      this.#gone.add(pending.tombstone.lineage);
      if (this.#gone.size > goneCountMax) {
        const [oldest] = this.#gone;
        if (oldest !== undefined) this.#gone.delete(oldest);
      }
      const left = this.#pending.get(pending.tombstone.id)?.filter((other) => other !== pending) ?? [];
      if (left.length > 0) this.#pending.set(pending.tombstone.id, left);
      else this.#pending.delete(pending.tombstone.id);
      this.#count--;
    });
  }

  /**
   * What only the manifest names goes first, then the manifest, so that nobody finds the database any more, then the data.
   * After an interruption the same again does no harm.
   */
  async #removeCopy({ id, lineage, prefix }: Tombstone, signal: AbortSignal): Promise<void> {
    const { manifests } = this.#context.remote;
    const removeReplica = (of: string) =>
      storeCall(this.#context, signal, 0, (call) => this.#context.remote.replica(of).remove(call));
    const { failPoints } = this.#context.host;
    failPoints.reach("tombstone.begin");
    const stored = await storeCall(this.#context, signal, 0, (call) => manifests.read(id, call));
    // Another database may have the id by now, of this server or another one; its files are not touched.
    if (stored?.manifest.lineage === lineage) {
      for (const retired of stored.manifest.retired) await removeReplica(retired.prefix);
      await storeCall(this.#context, signal, 0, (call) => manifests.remove(id, lineage, call));
      failPoints.reach("tombstone.unpublished");
    }
    const isReused = stored !== undefined && stored.manifest.lineage !== lineage && stored.manifest.prefix === prefix;
    if (!isReused) await removeReplica(prefix);
    failPoints.reach("tombstone.emptied");
  }

  #isPending(pending: Pending): boolean {
    return this.#pending.get(pending.tombstone.id)?.includes(pending) ?? false;
  }
}
