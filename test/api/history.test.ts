import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { DatabaseState, type Position, Stage } from "../../gen/persisto/v1/database_pb.js";
import { type Operation, OperationKind } from "../../gen/persisto/v1/operation_pb.js";
import {
  type ApiClients,
  describeEachProtocol,
  freshDatabase,
  freshId,
  mainClientKinds,
  openClients,
} from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid } from "../support/api-errors.ts";
import { startTestServer } from "../support/api-server.ts";
import { rowsOf, statement } from "../support/rows.ts";

const quiet = {
  SETTINGS_SYNC_INTERVAL_SECONDS: "3600",
};
const wait = { seconds: 20n };

/** A database whose one row says 1, then 2, then 3; each in a batch of its own that is stored. */
async function historic(api: ApiClients) {
  const database = await freshDatabase(api);
  const positions: Position[] = [];
  await api.databases.executeScript({ database, script: "CREATE TABLE t (a); INSERT INTO t VALUES (0)" });
  for (let round = 1; round <= 3; round++) {
    const { position } = await api.databases.execute({ database, statement: statement(`UPDATE t SET a = ${round}`) });
    if (position !== undefined) positions.push(position);
    await api.stages.syncDatabase({ database });
  }
  const [one, two, three] = positions;
  if (one === undefined || two === undefined || three === undefined) throw new Error("there are no positions");
  return { database, one, two, three };
}

async function valueIn(api: ApiClients, database: string): Promise<unknown> {
  const { result } = await api.databases.read({ database, statement: statement("SELECT a FROM t") });
  return rowsOf(result)[0]?.[0];
}

async function infoOf(api: ApiClients, database: string) {
  const { database: info } = await api.databases.getDatabase({ database });
  if (info === undefined) throw new Error("there is no database");
  return info;
}

const at = (value: { readonly lineage: string; readonly sequence: bigint }) => ({ case: "position" as const, value });
const time = (ms: number) => ({ case: "time" as const, value: timestampFromMs(ms) });

function expectDone(operation: Operation | undefined, kind: OperationKind, database: string): void {
  expect(operation?.error).toBeUndefined();
  expect(operation).toMatchObject({ database, kind, done: true });
}

describeEachProtocol(
  "history",
  (api) => {
    describe("RestoreDatabase", () => {
      it("takes a database back in place, under a new lineage", async () => {
        const { database, one, three } = await historic(api);
        const before = await infoOf(api, database);
        const { operation } = await api.databases.restoreDatabase({ database, target: at(one), wait });
        expectDone(operation, OperationKind.RESTORE, database);
        expect(await valueIn(api, database)).toBe(1n);
        const after = await infoOf(api, database);
        expect(after).toMatchObject({ state: DatabaseState.READY, stage: Stage.LOCAL, labels: before.labels });
        expect(after.position?.lineage).not.toBe(three.lineage);
        expect(after.etag).not.toBe(before.etag);
        expect(after.durablePosition).toEqual(after.position);
        // Positions of before are of another history.
        const old = api.databases.read({ database, statement: statement("SELECT 1"), minPosition: three });
        expect(await expectFailure(old, "LINEAGE_CHANGED")).toEqual({ lineage: after.position?.lineage ?? "" });
        await api.databases.execute({ database, statement: statement("UPDATE t SET a = 10") });
        expect(await valueIn(api, database)).toBe(10n);
      });

      it("is undone by the old position", async () => {
        const { database, one, three } = await historic(api);
        const written = await api.databases.execute({ database, statement: statement("UPDATE t SET a = 4") });
        await api.databases.restoreDatabase({ database, target: at(one), wait });
        expect(await valueIn(api, database)).toBe(1n);
        // What was not stored yet was brought there first.
        const last = written.position ?? three;
        const { operation } = await api.databases.restoreDatabase({ database, target: at(last), wait });
        expectDone(operation, OperationKind.RESTORE, database);
        expect(await valueIn(api, database)).toBe(4n);
      });

      it("takes a time, and refuses one that nothing leads to", async () => {
        const { database } = await historic(api);
        const { operation } = await api.databases.restoreDatabase({ database, target: time(Date.now()), wait });
        expectDone(operation, OperationKind.RESTORE, database);
        expect(await valueIn(api, database)).toBe(3n);
        const early = api.databases.restoreDatabase({ database, target: time(Date.now() - 86_400_000), wait });
        const facts = await expectFailure(early, "HISTORY_OUT_OF_RANGE");
        expect(facts).toMatchObject({ database, earliestSequence: expect.stringMatching(/^\d+$/) });
        expect(new Date(facts["earliestTime"] ?? "").getTime()).toBeGreaterThan(Date.now() - 600_000);
        const late = api.databases.restoreDatabase({ database, target: time(Date.now() + 3_600_000), wait });
        expect((await expectFailure(late, "HISTORY_OUT_OF_RANGE"))["problem"]).toBe("it lies in the future");
      });

      it("refuses positions that there are none of", async () => {
        const { database, three } = await historic(api);
        const { lineage } = three;
        const beyond = api.databases.restoreDatabase({ database, target: at({ lineage, sequence: 1000n }) });
        expect(await expectFailure(beyond, "HISTORY_OUT_OF_RANGE")).toMatchObject({
          latestSequence: `${three.sequence}`,
        });
        const foreign = at({ lineage: "0".repeat(16), sequence: 1n });
        await expectFailure(api.databases.restoreDatabase({ database, target: foreign }), "LINEAGE_CHANGED");
        expect(await valueIn(api, database)).toBe(3n);
      });

      it("is guarded by the etag and done once for a request_id", async () => {
        const { database, one, two } = await historic(api);
        const stale = api.databases.restoreDatabase({ database, target: at(one), etag: "stale" });
        await expectFailure(stale, "ETAG_MISMATCH");
        const { etag } = await infoOf(api, database);
        const request = { database, target: at(one), etag, requestId: crypto.randomUUID(), wait };
        const first = await api.databases.restoreDatabase(request);
        expectDone(first.operation, OperationKind.RESTORE, database);
        const { position } = await infoOf(api, database);
        const again = await api.databases.restoreDatabase({ ...request, wait: { seconds: 1n } });
        expect(again.operation?.id).toBe(first.operation?.id);
        expect((await infoOf(api, database)).position).toEqual(position);
        await expectFieldInvalid(api.databases.restoreDatabase({ ...request, target: at(two) }), "request_id");
      });
    });

    describe("ForkDatabase", () => {
      it("makes a database of the newest state, of a position, of a time", async () => {
        const { database, one } = await historic(api);
        await api.databases.execute({ database, statement: statement("UPDATE t SET a = 4") });
        const [newest, position, moment] = [freshId(), freshId(), freshId()];
        const ofNewest = await api.databases.forkDatabase({ database, newDatabase: newest, wait });
        expectDone(ofNewest.operation, OperationKind.FORK, database);
        await api.databases.forkDatabase({ database, newDatabase: position, source: at(one), wait });
        await api.databases.forkDatabase({ database, newDatabase: moment, source: time(Date.now()), wait });
        expect([await valueIn(api, newest), await valueIn(api, position), await valueIn(api, moment)]).toEqual([
          4n,
          1n,
          4n,
        ]);
        const fork = await infoOf(api, position);
        expect(fork.position?.lineage).not.toBe(one.lineage);
        await api.databases.execute({ database: position, statement: statement("UPDATE t SET a = 100") });
        expect([await valueIn(api, position), await valueIn(api, database)]).toEqual([100n, 4n]);
      });

      it("copies a database wherever it lives", async () => {
        const { database } = await historic(api);
        for (const move of ["promoteDatabase", "demoteDatabase", "demoteDatabase"] as const) {
          const moved = await api.stages[move]({ database, wait });
          expect(moved.operation?.error).toBeUndefined();
          const newDatabase = freshId();
          const { operation } = await api.databases.forkDatabase({ database, newDatabase, wait });
          expectDone(operation, OperationKind.FORK, database);
          expect(await valueIn(api, newDatabase)).toBe(3n);
        }
      });

      it("repeats no answer of the source's to a request_id", async () => {
        const { database } = await historic(api);
        const requestId = crypto.randomUUID();
        const update = statement("UPDATE t SET a = a + 1");
        await api.databases.execute({ database, statement: update, requestId });
        const newDatabase = freshId();
        await api.databases.forkDatabase({ database, newDatabase, wait });
        await api.databases.execute({ database: newDatabase, statement: update, requestId });
        await api.databases.execute({ database, statement: update, requestId });
        expect([await valueIn(api, newDatabase), await valueIn(api, database)]).toEqual([5n, 4n]);
      });

      it("is done once for a request_id, and refuses ids that are taken", async () => {
        const { database } = await historic(api);
        const request = { database, newDatabase: freshId(), requestId: crypto.randomUUID(), wait };
        const first = await api.databases.forkDatabase(request);
        expect((await api.databases.forkDatabase(request)).operation?.id).toBe(first.operation?.id);
        await expectFieldInvalid(api.databases.forkDatabase({ ...request, newDatabase: freshId() }), "request_id");
        const { newDatabase } = request;
        const taken = api.databases.forkDatabase({ database, newDatabase, wait });
        expect(await expectFailure(taken, "DATABASE_EXISTS")).toEqual({ database: newDatabase });
      });
    });

    it("refuses fields that break their rules", async () => {
      const { database, one } = await historic(api);
      const newDatabase = freshId();
      const target = at(one);
      const noLineage = at({ lineage: "", sequence: 1n });
      const badTime = { case: "time" as const, value: { seconds: 0n, nanos: -1 } };
      const restores = {
        database: { database: "A", target },
        position: { database },
        "position.lineage": { database, target: noLineage },
        request_id: { database, target, requestId: "1" },
        wait: { database, target, wait: { seconds: -1n } },
      };
      for (const [field, request] of Object.entries(restores)) {
        await expectFieldInvalid(api.databases.restoreDatabase(request), field);
      }
      const forks = {
        database: { database: "A", newDatabase },
        new_database: { database, newDatabase: "A" },
        "position.lineage": { database, newDatabase, source: noLineage },
        request_id: { database, newDatabase, requestId: "1" },
        wait: { database, newDatabase, wait: { seconds: -1n } },
      };
      for (const [field, request] of Object.entries(forks)) {
        await expectFieldInvalid(api.databases.forkDatabase(request), field);
      }
      await expectFieldInvalid(api.databases.forkDatabase({ database, newDatabase: database }), "new_database");
      // JSON cannot even say such a time.
      if (!api.kind.includes("json")) {
        await expectFieldInvalid(api.databases.restoreDatabase({ database, target: badTime }), "time");
        await expectFieldInvalid(api.databases.forkDatabase({ database, newDatabase, source: badTime }), "time");
      }
      const missing = freshId();
      await expectFailure(api.databases.restoreDatabase({ database: missing, target }), "DATABASE_NOT_FOUND");
      await expectFailure(api.databases.forkDatabase({ database: missing, newDatabase }), "DATABASE_NOT_FOUND");
    });
  },
  { kinds: mainClientKinds, environment: quiet },
);

describe("history and a restart", () => {
  it("goes on where it was, also with nothing but the bucket", async () => {
    const testServer = await startTestServer(quiet);
    let api = openClients("grpc h2", testServer.port);
    try {
      const { database, two, three } = await historic(api);
      const newDatabase = freshId();
      await api.databases.restoreDatabase({ database, target: at(two), wait });
      await api.databases.forkDatabase({ database, newDatabase, source: at(three), wait });
      api.close();
      await testServer.restart();
      api = openClients("grpc h2", testServer.port);
      expect([await valueIn(api, database), await valueIn(api, newDatabase)]).toEqual([2n, 3n]);
      const undone = await api.databases.restoreDatabase({ database, target: at(three), wait });
      expectDone(undone.operation, OperationKind.RESTORE, database);
      expect(await valueIn(api, database)).toBe(3n);
    } finally {
      api.close();
      await testServer.close();
    }
  });
});
