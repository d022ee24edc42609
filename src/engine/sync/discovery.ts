/** Finds what only the remote stage knows: all of it in the background after a start, and single ids when they are asked for. */
import { Failure } from "../../failure/failure.ts";
import type { Manifest } from "../../stages/manifest.ts";
import { isDatabaseId } from "../names.ts";
import { type StoreContext, storeCall } from "./store-context.ts";
import { backOffMs, isStoreFailure } from "./store-health.ts";
import type { Timetable } from "./timetable.ts";
import { nextUpkeep } from "./upkeep.ts";

/** Databases looked at side by side in the background. */
const concurrency = 8;

const damagedPauseMsMax = 10 * 60_000;

/** A whole walk over the bucket's names, which comes by pages. */
const walkMsMax = 30 * 60_000;

export interface DiscoveryHooks {
  /** The remote copy of that history is about to go. */
  isDeleted(id: string, lineage: string): boolean;
  /** A database is in the catalog now. `upkeepAtMs`: when its replica needs upkeep; 0: it needs none. */
  discovered(manifest: Manifest, upkeepAtMs: number): void;
}

export class Discovery {
  readonly #context: StoreContext;
  readonly #timetable: Timetable;
  readonly #hooks: DiscoveryHooks;
  readonly #controller = new AbortController();
  /** Ids that are just being looked up. */
  readonly #lookUps = new Map<string, Promise<boolean>>();
  readonly #again = { dueAtMs: 0, place: -1, run: () => this.#begin() };
  #isRunning = false;
  #isCatalogComplete = false;
  #failures = 0;
  #found = 0;
  /** The names of the bucket were gone through. */
  #isWalked = false;
  /** What could not be read is looked at again from time to time: until then the catalog is not complete. */
  readonly #damaged = new Set<string>();
  #work: Promise<void> = Promise.resolve();

  constructor(context: StoreContext, timetable: Timetable, hooks: DiscoveryHooks) {
    this.#context = context;
    this.#timetable = timetable;
    this.#hooks = hooks;
  }

  get isRunning(): boolean {
    return this.#isRunning;
  }

  /** `isCatalogComplete`: an earlier walk has ended, and the catalog has kept everything since. */
  start(isCatalogComplete: boolean): void {
    this.#isRunning = true;
    this.#isCatalogComplete = isCatalogComplete;
    this.#begin();
  }

  stop(): void {
    this.#isRunning = false;
    this.#timetable.remove(this.#again);
    this.#controller.abort(new Failure("SHUTTING_DOWN"));
  }

  async whenIdle(): Promise<void> {
    await this.#work;
    await Promise.allSettled(this.#lookUps.values());
  }

  /** See `Sync.lookUp`. */
  async lookUp(id: string): Promise<boolean> {
    if (!this.#isRunning) return false;
    try {
      return await this.#takeOnce(id);
    } catch (error) {
      if (!isStoreFailure(error)) throw error;
      // The bucket is this server's: what the catalog did not lose is not there either.
      if (this.#isCatalogComplete) return false;
      throw new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, { cause: error, retryAfterMs: 1_000 });
    }
  }

  #takeOnce(id: string): Promise<boolean> {
    let found = this.#lookUps.get(id);
    if (found === undefined) {
      found = this.#take(id).finally(() => this.#lookUps.delete(id));
      this.#lookUps.set(id, found);
    }
    return found;
  }

  #begin(): void {
    this.#work = this.#run();
  }

  async #run(): Promise<void> {
    const { host, limits } = this.#context;
    try {
      await this.#walk();
      if (!this.#isRunning) return;
      if (this.#found > 0) host.log("info", "databases were found in the remote stage", { databases: this.#found });
      this.#found = 0;
      if (this.#damaged.size === 0) {
        this.#isRunning = false;
        host.complete();
        return;
      }
      this.#failures++;
      const pauseMs = backOffMs(this.#failures, { ...limits.backOff, maxMs: damagedPauseMsMax }, host.random);
      this.#timetable.set(this.#again, host.clock.now() + pauseMs);
    } catch (error) {
      if (!this.#isRunning) return;
      this.#failures++;
      if (this.#failures === 1) {
        host.log("warn", "the remote stage could not be looked through; it is tried again", { error });
      }
      this.#timetable.set(this.#again, host.clock.now() + backOffMs(this.#failures, limits.backOff, host.random));
    }
  }

  /** All names of the bucket once; after that those that could not be read. */
  async #walk(): Promise<void> {
    const { host, remote } = this.#context;
    if (this.#isWalked) {
      for (const id of [...this.#damaged]) await this.#takeListed(id);
      return;
    }
    const { signal } = this.#controller;
    const deadlineAtMs = host.clock.now() + walkMsMax;
    const ids = remote.manifests.ids({ deadlineAtMs, signal })[Symbol.asyncIterator]();
    // All take from one line; a walk is as wide as this, and a list is read no faster than its names are looked at.
    const walker = async () => {
      for (let next = await ids.next(); next.done !== true; next = await ids.next()) {
        if (isDatabaseId(next.value)) await this.#takeListed(next.value);
      }
    };
    await allSettledOrThrow(Array.from({ length: concurrency }, walker));
    this.#isWalked = true;
  }

  async #takeListed(id: string): Promise<void> {
    try {
      if (await this.#takeOnce(id)) this.#found++;
      this.#damaged.delete(id);
    } catch (error) {
      if (!(error instanceof Failure) || error.reason !== "DATA_CORRUPT") throw error;
      // Damage of one database does not hide the others. It may have come on the way; and nobody must get the id meanwhile.
      if (!this.#damaged.has(id)) {
        this.#context.host.log("error", "a database in the remote stage cannot be read", { database: id, error });
      }
      this.#damaged.add(id);
    }
  }

  /** Takes a database into the catalog if the remote stage has one of that id, and nobody knows it. True when it did. */
  async #take(id: string): Promise<boolean> {
    const { host, remote, limits } = this.#context;
    const { signal } = this.#controller;
    if (host.row(id) !== undefined) return false;
    const stored = await storeCall(this.#context, signal, 0, (call) => remote.manifests.read(id, call));
    if (stored === undefined || this.#hooks.isDeleted(id, stored.manifest.lineage)) return false;
    const { manifest } = stored;
    const replica = remote.replica(manifest.prefix);
    await storeCall(this.#context, signal, 0, (call) => replica.load(call));
    if (this.#hooks.isDeleted(id, manifest.lineage)) return false;
    if (replica.txid === 0n) {
      const sqliteMessage = "its manifest names data that is not there";
      throw new Failure("DATA_CORRUPT", { database: id, stage: "remote", sqliteMessage });
    }
    const sizeBytes = replica.files().reduce((total, { byteCount }) => total + byteCount, 0);
    const upkeepAtMs = nextUpkeep(replica.files(), limits.upkeep)?.atMs ?? 0;
    const isNew = await host.discovered({ manifest, txid: replica.txid, sizeBytes, upkeepAtMs });
    if (!isNew) return false;
    host.failPoints.reach("discover.noted");
    this.#hooks.discovered(manifest, upkeepAtMs);
    return true;
  }
}

/** Waits for all, then throws what the first to fail threw. */
async function allSettledOrThrow(work: readonly Promise<void>[]): Promise<void> {
  const ended = await Promise.allSettled(work);
  const failed = ended.find((each) => each.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}
