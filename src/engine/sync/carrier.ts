/** The work of an upload: close the open batch, store what is closed, release it, keep the manifest in step. */
import { Failure } from "../../failure/failure.ts";
import { FencedError, type RemoteReplica } from "../../stages/remote.ts";
import type { Batch } from "../../stages/stage.ts";
import type { SyncEntry } from "./entry.ts";
import { fencedFailure } from "./fenced.ts";
import { prefixOf, publish } from "./publish.ts";
import { type StoreContext, storeCall } from "./store-context.ts";
import type { SyncedDatabase } from "./sync.ts";

export interface CarrierHooks {
  /** Sees to it that nothing of an earlier database of the id is left in the remote stage. */
  beforeFirst(id: string, signal: AbortSignal): Promise<void>;
  /** The bytes that wait have changed. */
  account(entry: SyncEntry): void;
}

export class Carrier {
  readonly #context: StoreContext;
  readonly #hooks: CarrierHooks;
  #uploads = 0;
  #puts = 0;
  #uploadedBytes = 0;

  constructor(context: StoreContext, hooks: CarrierHooks) {
    this.#context = context;
    this.#hooks = hooks;
  }

  /** Batches uploaded. */
  get uploads(): number {
    return this.#uploads;
  }

  /** Objects put. */
  get puts(): number {
    return this.#puts;
  }

  get uploadedBytes(): number {
    return this.#uploadedBytes;
  }

  /** Uploads what a database has, and what is added by those who wait for it meanwhile. */
  async carry(entry: SyncEntry): Promise<void> {
    const { host } = this.#context;
    // Who asks from here on has to be looked at once more.
    entry.isWanted = false;
    const row = host.row(entry.id);
    if (row === undefined || row.isFenced) {
      settle(entry);
      const gone = new Failure("DATABASE_NOT_FOUND", { database: entry.id });
      rejectWaits(entry, row === undefined ? gone : fencedFailure(row.id, BigInt(row.durableSequence)));
      return;
    }
    const database = entry.isUnsynced ? await host.hold(entry.id) : undefined;
    try {
      if (database !== undefined) await this.#carryBatches(entry, database);
      else if (entry.isUnsynced) this.#settleHeadless(entry);
      if (entry.hasNewFacts) await this.#carryKnownFacts(entry);
    } catch (error) {
      if (!(error instanceof FencedError)) throw error;
      await this.#fence(entry, database);
    } finally {
      if (database !== undefined) host.release(database);
    }
  }

  /** Without a head everything is stored. */
  #settleHeadless(entry: SyncEntry): void {
    entry.openSinceMs = undefined;
    entry.unsyncedSinceMs = undefined;
    const stored = BigInt(this.#context.host.row(entry.id)?.durableSequence ?? 0);
    entry.waits.resolve((wanted) => wanted <= stored);
    entry.waits.rejectAll(new Failure("STAGE_UNAVAILABLE", { stage: "local" }));
  }

  /** Facts of what has data in the remote stage; of another database they come with its first batch. */
  async #carryKnownFacts(entry: SyncEntry): Promise<void> {
    const row = this.#context.host.row(entry.id);
    if (row !== undefined && (row.durableSequence > 0 || row.manifestVersion > 0)) {
      await this.#carryFacts(entry);
      return;
    }
    entry.hasNewFacts = false;
    entry.factsWaits.resolve(() => true);
  }

  async #carryBatches(entry: SyncEntry, database: SyncedDatabase): Promise<void> {
    const { log } = database;
    entry.log = log;
    const replica = await this.#replicaOf(entry, database);
    for (;;) {
      entry.isWanted = false;
      let batch = log.pending()[0];
      if (batch === undefined) {
        const openSinceMs = entry.openSinceMs;
        // Commits from here on count for the batch after this one.
        entry.openSinceMs = undefined;
        try {
          await log.close();
          // Others close batches, too: theirs may be the first.
          [batch] = log.pending();
        } catch (error) {
          entry.openSinceMs = openSinceMs ?? this.#context.host.clock.now();
          throw error;
        }
        if (batch === undefined) break;
      }
      await this.#store(entry, database, replica, batch);
      // After an unclean end two numbers may be owed, and nobody commits to make the second one due.
      const isOwed = log.hasOpen && (entry.openSinceMs === undefined || entry.waits.count > 0);
      if (!entry.isWanted && !isOwed && log.pending().length === 0) break;
    }
    entry.unsyncedSinceMs = entry.openSinceMs;
  }

  async #store(entry: SyncEntry, database: SyncedDatabase, replica: RemoteReplica, batch: Batch): Promise<void> {
    const { signal } = entry.controller;
    const { failPoints } = this.#context.host;
    failPoints.reach("upload.begin");
    await storeCall(this.#context, signal, batch.byteCount, (call) => replica.append(batch, call));
    failPoints.reach("upload.stored");
    entry.isDamaged = false;
    this.#uploads++;
    this.#puts++;
    this.#uploadedBytes += batch.byteCount;
    // Data first, then what publishes it: a manifest never stands for nothing.
    if (this.#context.host.row(entry.id)?.manifestVersion === 0) await this.#carryFacts(entry);
    this.#reached(entry, database, batch.txid);
    failPoints.reach("upload.noted");
    if (entry.openSinceMs === undefined && database.log.pending().length === 0) entry.unsyncedSinceMs = undefined;
  }

  #reached(entry: SyncEntry, database: SyncedDatabase, txid: bigint): void {
    if (txid > database.durableTxid) database.uploaded(txid);
    const { host } = this.#context;
    // Later numbers reach the catalog in due course; that there is anything is asked for at once.
    if (host.row(entry.id)?.durableSequence === 0) host.save(entry.id, { durableSequence: Number(txid) });
    database.log.release(txid);
    this.#hooks.account(entry);
    entry.waits.resolve((wanted) => wanted <= txid);
  }

  /** The replica, and what it holds already taken into account. */
  async #replicaOf(entry: SyncEntry, database: SyncedDatabase): Promise<RemoteReplica> {
    const { host, remote, replicas } = this.#context;
    const { log } = database;
    const { signal } = entry.controller;
    const row = host.row(entry.id);
    if (row === undefined) throw new Failure("DATABASE_NOT_FOUND", { database: entry.id });
    const prefix = prefixOf(remote, row);
    const known = replicas.get(entry.id, prefix);
    if (known !== undefined) return known;
    const replica = remote.replica(prefix, { isNew: log.closedTxid === 0n });
    if (row.manifestVersion === 0) await this.#hooks.beforeFirst(entry.id, signal);
    if (log.closedTxid > 0n) {
      await storeCall(this.#context, signal, 0, (call) => replica.load(call));
      await this.#reconcile(entry, database, replica);
    }
    replicas.keep(entry.id, replica);
    return replica;
  }

  /** Brings the log and what is stored together, after a start. */
  async #reconcile(entry: SyncEntry, database: SyncedDatabase, replica: RemoteReplica): Promise<void> {
    const { log } = database;
    const { signal } = entry.controller;
    const stored = replica.txid;
    if (stored > log.closedTxid) throw new FencedError(log.closedTxid + 1n);
    const levelZero = new Set(replica.files().flatMap((file) => (file.level === 0 ? [file.maxTxid] : [])));
    for (const batch of log.pending()) {
      if (batch.txid > stored) break;
      // Its upload may have been answered to nobody: or somebody else has taken the number. What is merged already is ours,
      // for the newest file of level 0 stays, and that one is compared.
      if (!levelZero.has(batch.txid)) continue;
      await storeCall(this.#context, signal, batch.byteCount, (call) => replica.append(batch, call));
    }
    if (stored > 0n) this.#reached(entry, database, stored);
    const next = log.pending()[0]?.txid ?? log.closedTxid + 1n;
    if (next > stored + 1n) await this.#heal(entry, database, replica, stored);
  }

  /** The remote stage has lost what was stored: a snapshot of the head closes the hole. */
  async #heal(entry: SyncEntry, database: SyncedDatabase, replica: RemoteReplica, stored: bigint): Promise<void> {
    const { host } = this.#context;
    host.log("warn", "the remote copy lacks batches that were stored; a snapshot takes their place", {
      database: entry.id,
      storedSequence: String(stored),
      sequence: String(database.log.closedTxid),
    });
    const snapshot = await database.log.snapshot();
    try {
      const bytes = snapshot.pageSize * snapshot.pageCount;
      await storeCall(this.#context, entry.controller.signal, bytes, (call) => replica.putSnapshot(snapshot, call));
    } finally {
      snapshot.release();
    }
    this.#puts++;
    this.#reached(entry, database, snapshot.txid);
  }

  async #carryFacts(entry: SyncEntry): Promise<void> {
    const { host, remote } = this.#context;
    const { signal } = entry.controller;
    const row = host.row(entry.id);
    entry.hasNewFacts = false;
    if (row === undefined || row.manifestVersion === row.etagVersion) {
      entry.factsWaits.resolve(() => true);
      return;
    }
    host.failPoints.reach("manifest.begin");
    try {
      await storeCall(this.#context, signal, 0, (call) => publish(remote, row, call));
    } catch (error) {
      entry.hasNewFacts = true;
      throw error;
    }
    host.failPoints.reach("manifest.stored");
    this.#puts++;
    host.save(entry.id, { manifestVersion: row.etagVersion });
    entry.factsWaits.resolve((wanted) => wanted <= row.etagVersion);
  }

  async #fence(entry: SyncEntry, given: SyncedDatabase | undefined): Promise<void> {
    const { host, replicas } = this.#context;
    const database = given ?? (await host.hold(entry.id));
    const durableTxid = database?.durableTxid ?? BigInt(host.row(entry.id)?.durableSequence ?? 0);
    const failure = fencedFailure(entry.id, durableTxid);
    host.log("error", "another server writes this database; this one only reads what it has", {
      database: entry.id,
      durableSequence: String(durableTxid),
      openSequence: String(database?.log.openTxid ?? durableTxid),
    });
    entry.isFenced = true;
    replicas.forget(entry.id);
    settle(entry);
    database?.fence(failure);
    if (given === undefined && database !== undefined) host.release(database);
    host.save(entry.id, { isFenced: true });
    host.failPoints.reach("fence.noted");
    rejectWaits(entry, failure);
    this.#hooks.account(entry);
  }
}

function rejectWaits(entry: SyncEntry, failure: Failure): void {
  entry.waits.rejectAll(failure);
  entry.factsWaits.rejectAll(failure);
}

function settle(entry: SyncEntry): void {
  entry.openSinceMs = undefined;
  entry.unsyncedSinceMs = undefined;
  entry.hasNewFacts = false;
  entry.isWanted = false;
}
