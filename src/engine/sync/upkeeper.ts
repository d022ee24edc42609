/** Keeps replicas in the remote stage short and young: levels, snapshots, retention, and histories that were replaced. */

import { Failure } from "../../failure/failure.ts";
import { snapshotLevel } from "../../ltx/replica.ts";
import type { RetiredPrefix } from "../../stages/manifest.ts";
import type { RemoteReplica } from "../../stages/remote.ts";
import type { SyncEntry } from "./entry.ts";
import { prefixOf } from "./publish.ts";
import { type StoreContext, storeCall } from "./store-context.ts";
import { nextUpkeep, type UpkeepRules, type UpkeepStep } from "./upkeep.ts";

/** Steps in a row for one database before others have their turn. */
const stepCountMax = 8;

export class Upkeeper {
  readonly #context: StoreContext;
  readonly #rules: UpkeepRules;
  #compactions = 0;
  #snapshots = 0;
  #putBytes = 0;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#rules = context.limits.upkeep;
  }

  /** Objects put. */
  get puts(): number {
    return this.#compactions + this.#snapshots;
  }

  /** Files made of those of the level below. */
  get compactions(): number {
    return this.#compactions;
  }

  get snapshots(): number {
    return this.#snapshots;
  }

  get putBytes(): number {
    return this.#putBytes;
  }

  /** When a database needs it next, milliseconds since 1970, as far as is known; the catalog is told. */
  next(entry: SyncEntry): number | undefined {
    const replica = this.#context.replicas.peek(entry.id);
    const never = Number.POSITIVE_INFINITY;
    const plannedMs = () => replica && (nextUpkeep(replica.files(), this.#rules)?.atMs ?? never);
    const ownMs = entry.isDamaged ? never : (plannedMs() ?? entry.upkeepAtMs);
    const atMs = Math.min(ownMs, entry.retiredUntilMs ?? never);
    if (atMs !== entry.upkeepAtMs) {
      entry.upkeepAtMs = atMs;
      this.#context.host.save(entry.id, { upkeepAtMs: Number.isFinite(atMs) ? atMs : 0 });
    }
    return Number.isFinite(atMs) ? atMs : undefined;
  }

  /** Does what is due. */
  async run(entry: SyncEntry): Promise<void> {
    const { host, remote, replicas } = this.#context;
    const { signal } = entry.controller;
    const row = host.row(entry.id);
    if (row === undefined || row.isFenced) {
      entry.retiredUntilMs = undefined;
      entry.upkeepAtMs = Number.POSITIVE_INFINITY;
      return;
    }
    await this.#removeRetired(entry);
    const prefix = prefixOf(remote, row);
    let replica = replicas.get(entry.id, prefix);
    if (replica === undefined) {
      const loading = remote.replica(prefix);
      await storeCall(this.#context, signal, 0, (call) => loading.load(call));
      replica = loading;
      replicas.keep(entry.id, replica);
    }
    for (let count = 0; count < stepCountMax; count++) {
      const upkeep = nextUpkeep(replica.files(), this.#rules);
      if (upkeep === undefined || upkeep.atMs > host.clock.wallMs()) return;
      try {
        await this.#step(entry, replica, upkeep.step);
      } catch (error) {
        if (!(error instanceof Failure) || error.reason !== "DATA_CORRUPT") throw error;
        await this.#heal(entry, replica, error);
        if (entry.isDamaged) return;
      }
    }
  }

  /** A stored file is damaged: where there is a head that is stored wholly, a snapshot of it stands in for what is there. */
  async #heal(entry: SyncEntry, replica: RemoteReplica, damage: Failure): Promise<void> {
    const { host } = this.#context;
    const { signal } = entry.controller;
    const facts = { database: entry.id, error: damage };
    entry.isDamaged = true;
    const database = await host.hold(entry.id);
    try {
      if (database === undefined || database.log.closedTxid !== replica.txid) {
        host.log(
          "error",
          "the remote copy is damaged; the next write heals it, or `persisto verify` tells more",
          facts,
        );
        return;
      }
      const snapshot = await database.log.snapshot();
      try {
        const bytes = snapshot.pageSize * snapshot.pageCount;
        await storeCall(this.#context, signal, bytes, (call) => replica.putSnapshot(snapshot, call));
      } finally {
        snapshot.release();
      }
      this.#snapshots++;
      entry.isDamaged = false;
      host.log("warn", "the remote copy was damaged; a snapshot of the database stands in for it", facts);
    } finally {
      if (database !== undefined) host.release(database);
    }
  }

  async #step(entry: SyncEntry, replica: RemoteReplica, step: UpkeepStep): Promise<void> {
    const { signal } = entry.controller;
    const { clock, failPoints } = this.#context.host;
    const nowMs = clock.wallMs();
    failPoints.reach(`${step.kind}.begin`);
    if (step.kind === "expire") {
      const count = await storeCall(this.#context, signal, 0, (call) => replica.expire(nowMs, call));
      if (count === 0) throw new Error("retention has let go of nothing");
      failPoints.reach("expire.end");
      return;
    }
    const level = step.kind === "snapshot" ? snapshotLevel : step.level;
    const bytes = replica.files().reduce((total, { byteCount }) => total + byteCount, 0);
    const file = await storeCall(this.#context, signal, bytes, (call) => replica.compact(level, call));
    if (file === undefined) throw new Error(`level ${level} has nothing to take`);
    failPoints.reach(`${step.kind}.stored`);
    this.#putBytes += file.byteCount;
    if (step.kind === "snapshot") this.#snapshots++;
    else this.#compactions++;
  }

  /** Histories that a restore in place has replaced go when their time is over: the data first, then their mention. */
  async #removeRetired(entry: SyncEntry): Promise<void> {
    const { host, remote } = this.#context;
    const { signal } = entry.controller;
    const nowMs = host.clock.wallMs();
    const isDue = entry.retiredUntilMs !== undefined && entry.retiredUntilMs <= nowMs;
    if (!isDue && !entry.mayHaveRetired) return;
    const stored = await storeCall(this.#context, signal, 0, (call) => remote.manifests.read(entry.id, call));
    entry.mayHaveRetired = false;
    if (stored === undefined) {
      entry.retiredUntilMs = undefined;
      return;
    }
    const { manifest, etag } = stored;
    const isOver = ({ keepUntilMs }: RetiredPrefix) => keepUntilMs <= nowMs;
    for (const { prefix } of manifest.retired.filter(isOver)) {
      await storeCall(this.#context, signal, 0, (call) => remote.replica(prefix).remove(call));
    }
    const retired = manifest.retired.filter((each) => !isOver(each));
    if (retired.length < manifest.retired.length) {
      const changed = { ...manifest, retired };
      // When somebody else has just written it, the next round sees to it.
      await storeCall(this.#context, signal, 0, (call) => remote.manifests.replace(changed, etag, call));
    }
    const next = Math.min(...retired.map(({ keepUntilMs }) => keepUntilMs));
    entry.retiredUntilMs = Number.isFinite(next) ? next : undefined;
  }
}
