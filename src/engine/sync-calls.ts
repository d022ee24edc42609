/** SyncDatabase: an operation that is over when a position is as durable as was asked. */
import type { Clock } from "../clock.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import type { CatalogRow } from "./catalog.ts";
import type { OperationInfo, Position, SyncInput } from "./engine.ts";
import type { StoredOperation } from "./operation-store.ts";
import type { Operations, OperationTask, Progress } from "./operations.ts";
import type { Sync, SyncedDatabase } from "./sync/sync.ts";

/** What a sync needs of an open database. */
export interface SyncableDatabase extends SyncedDatabase {
  readonly position: Position;
  /** Resolves when everything answered so far is on the local disk, flushed. */
  flush(): Promise<void>;
  leave(): void;
}

export interface SyncCallsHost {
  readonly clock: Clock;
  readonly operations: Operations;
  readonly sync: Sync;
  /** Throws DATABASE_NOT_FOUND; asks the remote stage while it is being discovered. */
  find(id: string): Promise<CatalogRow>;
  /** The handle, in use until it is left; undefined when only the remote stage has the database. */
  open(id: string): Promise<SyncableDatabase | undefined>;
}

type Level = SyncInput["durability"];

/** A sync that the remote stage keeps from its end for so long is given up. The data is carried all the same. */
const syncMsMax = 3_600_000;

export class SyncCalls {
  readonly #host: SyncCallsHost;

  constructor(host: SyncCallsHost) {
    this.#host = host;
  }

  /** See `Engine.sync`. */
  async sync(
    input: SyncInput,
  ): Promise<{ readonly operation: OperationInfo; readonly durablePosition: Position | undefined }> {
    const { id, upTo, durability, wait } = input;
    const { operations, sync } = this.#host;
    if (durability === "remote" && !sync.isCarrying) throw new Failure("STAGE_NOT_CONFIGURED", { stage: "remote" });
    const row = await this.#host.find(id);
    const database = await this.#host.open(id);
    try {
      const present = database?.position ?? { lineage: row.lineage, sequence: BigInt(row.sequence) };
      // The first batch is the database as it was made.
      const newest = { lineage: present.lineage, sequence: present.sequence === 0n ? 1n : present.sequence };
      const target = upTo ?? newest;
      checkTarget(target, newest);
      const operation =
        database === undefined
          ? operations.done({ database: id, kind: "sync" })
          : operations.start(this.#task(id, target, durability));
      const ended = await operations.wait(operation.id, wait);
      return { operation: ended, durablePosition: await this.#durable(row, database) };
    } finally {
      database?.leave();
    }
  }

  /** Goes on with a sync that an earlier server left; undefined for other operations. */
  resume({ database, kind, input }: StoredOperation): OperationTask | undefined {
    const lineage = input?.["lineage"];
    const sequence = input?.["sequence"];
    const durability = input?.["durability"];
    if (kind !== "sync" || typeof lineage !== "string" || typeof sequence !== "string") return undefined;
    if (durability !== "local" && durability !== "remote") return undefined;
    if (durability === "remote" && !this.#host.sync.isCarrying) return undefined;
    return this.#task(database, { lineage, sequence: BigInt(sequence) }, durability);
  }

  #task(id: string, target: Position, durability: Level): OperationTask {
    const { lineage, sequence } = target;
    return {
      database: id,
      kind: "sync",
      key: `${durability} ${lineage}-${sequence}`,
      locks: [],
      input: { lineage, sequence: String(sequence), durability },
      run: (progress) => this.#run(id, target, durability, progress),
    };
  }

  async #run(id: string, target: Position, durability: Level, progress: Progress): Promise<void> {
    const { clock, sync } = this.#host;
    const database = await this.#host.open(id);
    if (database === undefined) {
      // It has come to the remote stage by other ways, or it is gone.
      const { lineage, sequence } = await this.#host.find(id);
      checkTarget(target, { lineage, sequence: BigInt(Math.max(1, sequence)) });
      return;
    }
    try {
      if (target.lineage !== database.lineage) throw lineageChanged(database.lineage);
      const byteCount = database.log.unsyncedBytes;
      progress.total(byteCount);
      if (durability === "local") await database.flush();
      else {
        const deadlineAtMs = clock.now() + syncMsMax;
        await sync.durable(database, target.sequence, { deadlineAtMs, cancel: progress.cancel });
      }
      progress.add(byteCount);
    } finally {
      database.leave();
    }
  }

  async #durable(row: CatalogRow, database: SyncableDatabase | undefined): Promise<Position | undefined> {
    const txid = database?.durableTxid ?? BigInt((await this.#host.find(row.id)).durableSequence);
    return txid === 0n ? undefined : { lineage: database?.lineage ?? row.lineage, sequence: txid };
  }
}

function checkTarget(target: Position, present: Position): void {
  if (target.lineage !== present.lineage) throw lineageChanged(present.lineage);
  if (target.sequence > present.sequence) {
    throw fieldInvalid("up_to.sequence", `must not lie beyond the position of the database, ${present.sequence}`);
  }
}

function lineageChanged(lineage: string): Failure {
  return new Failure("LINEAGE_CHANGED", { lineage });
}
