/** What every replica promises, on whatever stage. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { Failure } from "../../src/failure/failure.ts";
import type { Replica } from "../../src/stages/stage.ts";
import { call } from "../objects/helpers.ts";
import { damagedCopy, type History, makeHistory, restored, snapshotOf } from "./support.ts";

export interface ReplicaCase {
  /** One that holds nothing. */
  readonly make: () => Promise<Replica>;
  /** The same copy after a restart; `txid` is where it was. */
  readonly reopen: (replica: Replica, txid: bigint) => Promise<Replica>;
  /** Harms what is stored, in a way that its stage can find out. */
  readonly damage: (replica: Replica) => Promise<void>;
  readonly folder: () => string;
}

/** The reason of the Failure that a promise rejects with. */
export async function reasonOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Failure) return error.reason;
    throw error;
  }
  return "no failure";
}

export function describeReplica(name: string, { make, reopen, damage, folder }: ReplicaCase): void {
  describe(`a replica ${name}`, () => {
    let histories: ReadonlyMap<number, History>;
    let history: History;

    beforeAll(async () => {
      const made = new Map<number, History>();
      for (const pageSize of [512, 4096, 65_536]) made.set(pageSize, await makeHistory(folder(), { pageSize }));
      histories = made;
      history = made.get(4096) as History;
    });

    const filled = async (count = history.batches.length) => {
      const replica = await make();
      for (const batch of history.batches.slice(0, count)) await replica.append(batch, call());
      return replica;
    };

    it("holds nothing at first", async () => {
      const replica = await make();
      expect(replica.txid).toBe(0n);
      expect((await replica.verify(call())).isWhole).toBe(false);
    });

    it.each([512, 4096, 65_536])("follows batch by batch, with pages of %d bytes", async (pageSize) => {
      const { batches, states } = histories.get(pageSize) as History;
      const replica = await make();
      for (const [index, batch] of batches.entries()) {
        await replica.append(batch, call());
        expect(replica.txid).toBe(batch.txid);
        const { txid, bytes } = await restored(replica, folder(), call());
        expect(txid).toBe(batch.txid);
        expect(bytes.equals(states[index] as Buffer)).toBe(true);
      }
    });

    it("takes a snapshot, and follows from there", async () => {
      const replica = await make();
      await replica.putSnapshot(snapshotOf(history.states[2] as Buffer, 4096, 3n), call());
      expect(replica.txid).toBe(3n);
      for (const [index, batch] of history.batches.entries()) {
        if (batch.txid <= 3n) continue;
        await replica.append(batch, call());
        expect((await restored(replica, folder(), call())).bytes.equals(history.states[index] as Buffer)).toBe(true);
      }
    });

    it("reads as before after a restart, and follows", async () => {
      const replica = await reopen(await filled(4), 4n);
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[3] as Buffer)).toBe(true);
      await replica.append(history.batches[4] as (typeof history.batches)[0], call());
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[4] as Buffer)).toBe(true);
    });

    it("takes a batch that it holds already, and none behind a gap", async () => {
      const replica = await filled(3);
      const [, second, third, , fifth] = history.batches;
      if (!second || !third || !fifth) throw new Error("the history is too short");
      await replica.append(third, call());
      await replica.append(second, call());
      expect(replica.txid).toBe(3n);
      await expect(replica.append(fifth, call())).rejects.toThrow("does not follow");
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[2] as Buffer)).toBe(true);
    });

    it("is not changed by a batch that is damaged", async () => {
      const replica = await filled(4);
      const fifth = history.batches[4] as (typeof history.batches)[0];
      expect(await reasonOf(replica.append(damagedCopy(fifth), call()))).toBe("DATA_CORRUPT");
      expect(replica.txid).toBe(4n);
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[3] as Buffer)).toBe(true);
      await replica.append(fifth, call());
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[4] as Buffer)).toBe(true);
    });

    it("is whole, and says what it has", async () => {
      const replica = await filled();
      const { txid, fileCount, byteCount, damaged, isWhole, problems } = await replica.verify(call());
      expect({ txid, damaged, isWhole, problems }).toEqual({ txid: 7n, damaged: [], isWhole: true, problems: [] });
      expect(fileCount).toBeGreaterThan(0);
      expect(byteCount).toBeGreaterThan(1000);
    });

    it("tells damage, and gives no wrong bytes", async () => {
      const replica = await filled();
      await damage(replica);
      expect((await replica.verify(call())).damaged).toHaveLength(1);
      expect(await reasonOf(restored(replica, folder(), call()))).toBe("DATA_CORRUPT");
    });

    it("is restored to where it is, and tells how far the restore has come", async () => {
      const replica = await filled(3);
      const seen: [number, number][] = [];
      const path = join(folder(), "progress");
      const onProgress = (byteCount: number, bytesTotal: number) => seen.push([byteCount, bytesTotal]);
      const { pageSize, pageCount, readBytes, damaged } = await replica.restore(
        { path, flush: true, target: { txid: 3n }, onProgress },
        call(),
      );
      expect(pageSize * pageCount).toBe(history.states[2]?.length);
      expect(damaged).toEqual([]);
      expect(seen.at(-1)).toEqual([readBytes, readBytes]);
    });

    it("ends with its call", async () => {
      const replica = await filled(2);
      const reason = new Error("nobody waits");
      const signal = AbortSignal.abort(reason);
      const path = join(folder(), "ended");
      await expect(replica.restore({ path, flush: false }, { ...call(), signal })).rejects.toBe(reason);
      await expect(
        replica.append(history.batches[2] as (typeof history.batches)[0], { ...call(), signal }),
      ).rejects.toBe(reason);
      expect(replica.txid).toBe(2n);
    });

    it("is gone when it is removed, and may be begun anew", async () => {
      const replica = await filled(2);
      await replica.remove(call());
      await replica.remove(call());
      expect(replica.txid).toBe(0n);
      if (replica.stage !== "remote") expect(existsSync(replica.name)).toBe(false);
      await replica.append(history.batches[0] as (typeof history.batches)[0], call());
      expect((await restored(replica, folder(), call())).bytes.equals(history.states[0] as Buffer)).toBe(true);
    });
  });
}
