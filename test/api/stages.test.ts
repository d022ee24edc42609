import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { Durability, Stage } from "../../gen/persisto/v1/database_pb.js";
import { type Operation, OperationKind } from "../../gen/persisto/v1/operation_pb.js";
import {
  type ApiClients,
  type ApiUnderTest,
  bidiClientKinds,
  describeEachProtocol,
  freshDatabase,
  freshId,
  mainClientKinds,
  openClients,
} from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid } from "../support/api-errors.ts";
import { startTestServer } from "../support/api-server.ts";
import { rowsOf, statement } from "../support/rows.ts";
import { openTransaction, outcomeOf } from "../support/transaction-client.ts";

/** Nothing is uploaded unless a call asks for it. */
const quiet = {
  SETTINGS_SYNC_INTERVAL_SECONDS: "3600",
};
const wait = { seconds: 20n };

async function filled(api: ApiClients): Promise<string> {
  const database = await freshDatabase(api);
  const script = "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)";
  await api.databases.executeScript({ database, script });
  return database;
}

async function rowsIn(api: ApiClients, database: string): Promise<unknown> {
  const { result } = await api.databases.read({ database, statement: statement("SELECT a FROM t ORDER BY a") });
  return rowsOf(result).flat();
}

async function stageOf(api: ApiClients, database: string) {
  const { databaseStage } = await api.stages.getDatabaseStage({ database });
  if (databaseStage === undefined) throw new Error("there is no stage");
  return databaseStage;
}

function expectDone(operation: Operation | undefined, kind: OperationKind, database: string): void {
  expect(operation).toMatchObject({ database, kind, done: true });
  expect(operation?.error).toBeUndefined();
  expect(operation?.endTime).toBeDefined();
}

describeEachProtocol(
  "StageService",
  (api) => {
    it("ListStages shows each tier, nearest first", async () => {
      const database = await filled(api);
      await api.stages.promoteDatabase({ database, targetStage: Stage.MEMORY, wait });
      const { stages } = await api.stages.listStages({});
      expect(stages.map(({ stage, displayName, healthy }) => ({ stage, displayName, healthy }))).toEqual([
        { stage: Stage.MEMORY, displayName: "Memory Storage", healthy: true },
        { stage: Stage.LOCAL, displayName: "Local Storage", healthy: true },
        { stage: Stage.REMOTE, displayName: "Remote Storage", healthy: true },
      ]);
      const [memory, local] = stages;
      expect(memory?.databaseCount).toBeGreaterThan(0n);
      expect(memory?.usedBytes).toBeGreaterThan(0n);
      expect(local?.capacityBytes).toBeGreaterThan(local?.usedBytes ?? 0n);
    });

    it("GetDatabaseStage says where a database is, and why", async () => {
      const database = await filled(api);
      const stage = await stageOf(api, database);
      expect(stage).toMatchObject({ database, stage: Stage.LOCAL, operation: "", parts: [] });
      expect(stage.pin).toBeUndefined();
      expect(stage.placementReason).not.toBe("");
      expect(stage.residencies.map((each) => each.stage)).toEqual([Stage.LOCAL]);
      expect(stage.residencies[0]?.residentBytes).toBeGreaterThan(0n);
      const { database: info } = await api.databases.getDatabase({ database });
      expect(stage.residencies[0]?.position).toEqual(info?.position);
    });

    it("moves a database nearer and farther, with all that it holds", async () => {
      const database = await filled(api);
      const promoted = await api.stages.promoteDatabase({ database, wait });
      expectDone(promoted.operation, OperationKind.PROMOTE, database);
      expect((await stageOf(api, database)).stage).toBe(Stage.MEMORY);
      expect(await rowsIn(api, database)).toEqual([1n, 2n]);
      await api.databases.execute({ database, statement: statement("INSERT INTO t VALUES (3)") });
      expectDone((await api.stages.demoteDatabase({ database, wait })).operation, OperationKind.DEMOTE, database);
      expect((await stageOf(api, database)).stage).toBe(Stage.LOCAL);
      expectDone((await api.stages.demoteDatabase({ database, wait })).operation, OperationKind.DEMOTE, database);
      const remote = await stageOf(api, database);
      expect(remote.stage).toBe(Stage.REMOTE);
      expect(remote.residencies.map((each) => each.stage)).toEqual([Stage.REMOTE]);
      expect(await rowsIn(api, database)).toEqual([1n, 2n, 3n]);
      expect((await api.databases.getDatabase({ database })).database?.stage).toBe(Stage.REMOTE);
    });

    it("is done at once where the database is there already, and goes no wrong way", async () => {
      const database = await filled(api);
      const there = await api.stages.promoteDatabase({ database, targetStage: Stage.LOCAL });
      expectDone(there.operation, OperationKind.PROMOTE, database);
      await expectFieldInvalid(api.stages.promoteDatabase({ database, targetStage: Stage.REMOTE }), "target_stage");
      await expectFieldInvalid(api.stages.demoteDatabase({ database, targetStage: Stage.MEMORY }), "target_stage");
      await expectFieldInvalid(api.stages.promoteDatabase({ database, targetStage: 9 as Stage }), "target_stage");
    });

    it("serves no parts of databases yet, and says so", async () => {
      const database = await filled(api);
      const parts = [{ selector: { case: "table" as const, value: { table: "t" } } }];
      const promote = await expectFailure(api.stages.promoteDatabase({ database, parts }), "NOT_IMPLEMENTED");
      expect(promote).toEqual({ method: "persisto.v1.StageService.PromoteDatabase with parts" });
      const demote = await expectFailure(api.stages.demoteDatabase({ database, parts }), "NOT_IMPLEMENTED");
      expect(demote).toEqual({ method: "persisto.v1.StageService.DemoteDatabase with parts" });
    });

    it("SyncDatabase makes durable what is committed, and says up to where", async () => {
      const database = await filled(api);
      const { position } = await api.databases.execute({ database, statement: statement("INSERT INTO t VALUES (3)") });
      const synced = await api.stages.syncDatabase({ database });
      expectDone(synced.operation, OperationKind.SYNC, database);
      expect(synced.durablePosition?.lineage).toBe(position?.lineage);
      expect(synced.durablePosition?.sequence).toBeGreaterThanOrEqual(position?.sequence ?? 1n);
      const { database: info } = await api.databases.getDatabase({ database });
      expect(info?.durablePosition).toEqual(synced.durablePosition);
      const residencies = (await stageOf(api, database)).residencies;
      expect(residencies.map(({ stage }) => stage)).toEqual([Stage.LOCAL, Stage.REMOTE]);
      expect(residencies[1]?.position).toEqual(synced.durablePosition);
      // The next commit is in a batch of its own.
      const after = await api.databases.execute({ database, statement: statement("INSERT INTO t VALUES (4)") });
      expect(after.position?.sequence).toBeGreaterThan(synced.durablePosition?.sequence ?? 0n);
      expect(after.durablePosition).toEqual(synced.durablePosition);
      const local = await api.stages.syncDatabase({ database, durability: Durability.LOCAL });
      expectDone(local.operation, OperationKind.SYNC, database);
      expect(local.durablePosition).toEqual(synced.durablePosition);
    });

    it("SyncDatabase up to a position that is durable has nothing to do, and knows no other history", async () => {
      const database = await filled(api);
      const { durablePosition } = await api.stages.syncDatabase({ database });
      const again = await api.stages.syncDatabase({ database, ...(durablePosition && { upTo: durablePosition }) });
      expect(again.durablePosition).toEqual(durablePosition);
      const lineage = "0".repeat(16);
      const foreign = api.stages.syncDatabase({ database, upTo: { lineage, sequence: 1n } });
      await expectFailure(foreign, "LINEAGE_CHANGED");
      const beyond = { lineage: durablePosition?.lineage ?? "", sequence: 1000n };
      await expectFieldInvalid(api.stages.syncDatabase({ database, upTo: beyond }), "up_to.sequence");
      await expectFieldInvalid(api.stages.syncDatabase({ database, upTo: { sequence: 1n } }), "up_to.lineage");
      for (const durability of [Durability.COMMITTED, 9 as Durability]) {
        await expectFieldInvalid(api.stages.syncDatabase({ database, durability }), "durability");
      }
    });

    it("pins a database where it shall stay, and lets it go", async () => {
      const database = await filled(api);
      const expireTime = timestampFromMs(Date.now() + 3_600_000);
      const pinned = await api.stages.pinDatabase({ database, pin: { stage: Stage.LOCAL, expireTime } });
      expect(pinned.databaseStage?.pin).toMatchObject({ stage: Stage.LOCAL, expireTime });
      const forever = await api.stages.pinDatabase({ database, pin: { stage: Stage.LOCAL } });
      expect(forever.databaseStage?.pin?.expireTime).toBeUndefined();
      expect((await stageOf(api, database)).pin?.stage).toBe(Stage.LOCAL);
      expect((await api.stages.unpinDatabase({ database })).databaseStage?.pin).toBeUndefined();
      expect((await api.stages.unpinDatabase({ database })).databaseStage?.pin).toBeUndefined();
    });

    it("moves a database to where it is pinned", async () => {
      const database = await filled(api);
      const { databaseStage } = await api.stages.pinDatabase({ database, pin: { stage: Stage.MEMORY } });
      if (databaseStage?.operation !== undefined && databaseStage.operation !== "") {
        const updates: Operation[] = [];
        const { operation } = databaseStage;
        for await (const update of api.operations.watchOperation({ operation })) {
          if (update.operation !== undefined) updates.push(update.operation);
        }
        expect(updates.at(-1)).toMatchObject({ done: true });
      }
      expect(await stageOf(api, database)).toMatchObject({ stage: Stage.MEMORY, pin: { stage: Stage.MEMORY } });
    });

    it("refuses pins that say nothing", async () => {
      const database = await filled(api);
      await expectFieldInvalid(api.stages.pinDatabase({ database }), "pin");
      await expectFieldInvalid(api.stages.pinDatabase({ database, pin: {} }), "pin.stage");
      await expectFieldInvalid(api.stages.pinDatabase({ database, pin: { stage: 7 as Stage } }), "pin.stage");
      const past = { stage: Stage.LOCAL, expireTime: timestampFromMs(Date.now() - 1000) };
      await expectFieldInvalid(api.stages.pinDatabase({ database, pin: past }), "pin.expire_time");
    });

    it("refuses ids and waits that cannot be, and databases that are not there", async () => {
      const calls = (database: string): Promise<unknown>[] => [
        api.stages.getDatabaseStage({ database }),
        api.stages.promoteDatabase({ database }),
        api.stages.demoteDatabase({ database }),
        api.stages.syncDatabase({ database }),
        api.stages.pinDatabase({ database, pin: { stage: Stage.LOCAL } }),
        api.stages.unpinDatabase({ database }),
      ];
      for (const call of calls("Not/an/id")) await expectFieldInvalid(call, "database");
      for (const call of calls(freshId())) await expectFailure(call, "DATABASE_NOT_FOUND");
      const database = await filled(api);
      for (const bad of [{ seconds: -1n }, { seconds: 0n, nanos: -1 }]) {
        await expectFieldInvalid(api.stages.promoteDatabase({ database, wait: bad }), "wait");
        await expectFieldInvalid(api.stages.demoteDatabase({ database, wait: bad }), "wait");
        await expectFieldInvalid(api.stages.syncDatabase({ database, wait: bad }), "wait");
      }
    });
  },
  { kinds: mainClientKinds, environment: quiet },
);

describeEachProtocol(
  "writes that are durable in the remote stage",
  (api) => {
    const durability = Durability.REMOTE;

    function expectDurable(answer: {
      readonly position?: { readonly sequence: bigint } | undefined;
      readonly durablePosition?: { readonly sequence: bigint } | undefined;
    }): void {
      expect(answer.position?.sequence).toBeGreaterThan(0n);
      expect(answer.durablePosition?.sequence).toBeGreaterThanOrEqual(answer.position?.sequence ?? 1n);
    }

    it("say so, by whichever method they come", async () => {
      const database = await filled(api);
      const insert = statement("INSERT INTO t VALUES (3)");
      expectDurable(await api.databases.execute({ database, statement: insert, durability }));
      expectDurable(await api.databases.executeBatch({ database, steps: [{ statement: insert }], durability }));
      expectDurable(await api.databases.executeScript({ database, script: "DELETE FROM t WHERE a = 3", durability }));
      const { database: info } = await api.databases.getDatabase({ database });
      expect(info?.durablePosition).toEqual(info?.position);
      expect(await rowsIn(api, database)).toEqual([1n, 2n]);
    });

    it("are the same when they are repeated by their request_id", async () => {
      const database = await filled(api);
      const request = {
        database,
        statement: statement("INSERT INTO t VALUES (3) RETURNING a"),
        durability,
        requestId: crypto.randomUUID(),
      };
      const [first, second] = [await api.databases.execute(request), await api.databases.execute(request)];
      expectDurable(first);
      expectDurable(second);
      expect(rowsOf(second.result)).toEqual([[3n]]);
      expect(await rowsIn(api, database)).toEqual([1n, 2n, 3n]);
    });
  },
  { kinds: mainClientKinds, environment: quiet },
);

describeEachProtocol(
  "transactions that are durable in the remote stage",
  (api: ApiUnderTest) => {
    it("say so at their commit", async () => {
      const database = await filled(api);
      const transaction = openTransaction(api);
      const mode = 2;
      await transaction.send({ case: "begin", value: { database, mode } });
      await transaction.send({ case: "execute", value: { sql: "INSERT INTO t VALUES (3)" } });
      const ended = await transaction.send({ case: "commit", value: { durability: Durability.REMOTE } });
      const { committed, position, durablePosition } = outcomeOf(ended, "ended");
      expect(committed).toBe(true);
      expect(durablePosition?.sequence).toBeGreaterThanOrEqual(position?.sequence ?? 1n);
      await transaction.end();
      expect(await rowsIn(api, database)).toEqual([1n, 2n, 3n]);
    });
  },
  { kinds: bidiClientKinds, environment: quiet },
);

describe("a server that nobody has told where databases begin", () => {
  it("makes them on the remote stage, where they are served all the same", async () => {
    const testServer = await startTestServer({ SETTINGS_DEFAULT_DATABASE_CREATION_STAGE: "3" });
    const api = openClients("grpc h2", testServer.port);
    try {
      const database = await filled(api);
      expect((await stageOf(api, database)).stage).toBe(Stage.REMOTE);
      expect(await rowsIn(api, database)).toEqual([1n, 2n]);
    } finally {
      api.close();
      await testServer.close();
    }
  });
});

describe("a server that carries nothing to a remote stage", () => {
  it("has no such stage, and says what to do about it", async () => {
    const testServer = await startTestServer({ ...quiet, SETTINGS_PERSISTENCE_STAGE: "2" });
    const api = openClients("grpc h2", testServer.port);
    try {
      const database = await filled(api);
      const { stages } = await api.stages.listStages({});
      expect(stages.map(({ stage }) => stage)).toEqual([Stage.MEMORY, Stage.LOCAL]);
      const remote = { database, statement: statement("DELETE FROM t"), durability: Durability.REMOTE };
      const unserved = [
        api.stages.syncDatabase({ database }),
        api.stages.demoteDatabase({ database, targetStage: Stage.REMOTE }),
        api.stages.pinDatabase({ database, pin: { stage: Stage.REMOTE } }),
        api.databases.createDatabase({ database: freshId(), initialStage: Stage.REMOTE }),
        api.databases.execute(remote),
      ];
      for (const call of unserved) {
        expect(await expectFailure(call, "STAGE_NOT_CONFIGURED")).toEqual({ stage: "remote" });
      }
      expect(await rowsIn(api, database)).toEqual([1n, 2n]);
      const local = await api.stages.syncDatabase({ database, durability: Durability.LOCAL });
      expectDone(local.operation, OperationKind.SYNC, database);
      expect(local.durablePosition).toBeUndefined();
      const target = { case: "time" as const, value: timestampFromMs(Date.now()) };
      await expectFailure(api.databases.restoreDatabase({ database, target }), "HISTORY_NOT_KEPT");
      await expectFailure(api.databases.forkDatabase({ database, newDatabase: freshId() }), "HISTORY_NOT_KEPT");
    } finally {
      api.close();
      await testServer.close();
    }
  });
});
