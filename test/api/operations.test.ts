import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
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
import { statement } from "../support/rows.ts";

const quiet = {
  SETTINGS_SYNC_INTERVAL_SECONDS: "3600",
};
const wait = { seconds: 20n };
const noSuch = "0".repeat(24);

async function filled(api: ApiClients): Promise<string> {
  const database = await freshDatabase(api);
  await api.databases.execute({ database, statement: statement("CREATE TABLE t (a)") });
  return database;
}

async function sync(api: ApiClients, database: string): Promise<Operation> {
  const { operation } = await api.stages.syncDatabase({ database });
  if (operation === undefined) throw new Error("there is no operation");
  return operation;
}

async function watched(api: ApiClients, operation: string): Promise<Operation[]> {
  const updates: Operation[] = [];
  for await (const update of api.operations.watchOperation({ operation })) {
    if (update.operation !== undefined) updates.push(update.operation);
  }
  return updates;
}

describeEachProtocol(
  "OperationService",
  (api) => {
    it("tells of an operation by its id, and of its end to those who watch", async () => {
      const database = await filled(api);
      const begun = await api.databases.forkDatabase({ database, newDatabase: freshId() });
      const id = begun.operation?.id ?? "";
      expect(id).toMatch(/^[0-9a-f]{24}$/);
      expect(begun.operation).toMatchObject({ database, kind: OperationKind.FORK });
      const updates = await watched(api, id);
      expect(updates.at(-1)).toMatchObject({ id, done: true });
      expect(updates.filter(({ done }) => done)).toHaveLength(1);
      const { operation } = await api.operations.getOperation({ operation: id });
      expect(operation).toEqual(updates.at(-1));
      expect(operation?.bytesDone).toBeGreaterThan(0n);
      expect(operation?.createTime).toEqual(begun.operation?.createTime);
      // One that is over is told once.
      expect(await watched(api, id)).toEqual([operation]);
    });

    it("lists them newest first, filtered, and page by page", async () => {
      const database = await filled(api);
      const made: string[] = [];
      for (let round = 0; round < 3; round++) {
        await api.databases.execute({ database, statement: statement("INSERT INTO t VALUES (1)") });
        made.unshift((await sync(api, database)).id);
      }
      const filter = `database = ${database} AND kind = OPERATION_KIND_SYNC AND done = true`;
      const all = await api.operations.listOperations({ filter });
      expect(all.operations.map(({ id }) => id)).toEqual(made);
      expect(all.nextPageToken).toBe("");
      const first = await api.operations.listOperations({ filter, pageSize: 2 });
      expect(first.operations.map(({ id }) => id)).toEqual(made.slice(0, 2));
      const { nextPageToken: pageToken } = first;
      const second = await api.operations.listOperations({ filter, pageSize: 2, pageToken });
      expect(second.operations.map(({ id }) => id)).toEqual(made.slice(2));
      expect(second.nextPageToken).toBe("");
      await expectFailure(api.operations.listOperations({ pageToken }), "PAGE_TOKEN_INVALID");
      await expectFieldInvalid(api.operations.listOperations({ filter: "size = 1" }), "filter");
      await expectFieldInvalid(api.operations.listOperations({ pageSize: -1 }), "page_size");
    });

    it("lets an operation be cancelled at any time, also when it is over", async () => {
      const { id } = await sync(api, await filled(api));
      await api.operations.cancelOperation({ operation: id });
      const { operation } = await api.operations.getOperation({ operation: id });
      expect(operation).toMatchObject({ done: true });
      expect(operation?.error).toBeUndefined();
    });

    it("carries the failure of an operation as calls carry theirs", async () => {
      const database = await filled(api);
      const { durablePosition } = await api.stages.syncDatabase({ database });
      const newDatabase = freshId();
      const source = { case: "position" as const, value: durablePosition ?? {} };
      const forked = await api.databases.forkDatabase({ database, newDatabase, source, wait });
      expect(forked.operation?.error).toBeUndefined();
      // What is deleted while it is copied to has to give way.
      const again = await api.databases.forkDatabase({ database, newDatabase: freshId(), source });
      const operation = again.operation?.id ?? "";
      await api.operations.cancelOperation({ operation });
      const ended = (await watched(api, operation)).at(-1);
      if (ended?.error === undefined) return;
      expect(ended.error.code).toBe(1);
      const infos = ended.error.details.map((detail) => anyUnpack(detail, ErrorInfoSchema));
      expect(infos[0]).toMatchObject({ reason: "OPERATION_CANCELLED", domain: "persisto.v1", metadata: { operation } });
    });

    it("knows no others", async () => {
      const calls = (operation: string): (() => Promise<unknown>)[] => [
        () => api.operations.getOperation({ operation }),
        () => watched(api, operation),
        () => api.operations.cancelOperation({ operation }),
      ];
      for (const call of calls(noSuch)) {
        expect(await expectFailure(call(), "OPERATION_NOT_FOUND")).toEqual({ operation: noSuch });
      }
      for (const bad of ["", "Z", "0".repeat(65)]) {
        for (const call of calls(bad)) await expectFieldInvalid(call(), "operation");
      }
    });
  },
  { kinds: mainClientKinds, environment: quiet },
);

describe("operations and a restart", () => {
  it("are known to the next server", async () => {
    const testServer = await startTestServer(quiet);
    let api = openClients("grpc h2", testServer.port);
    try {
      const database = await filled(api);
      const { id } = await sync(api, database);
      api.close();
      await testServer.restart();
      api = openClients("grpc h2", testServer.port);
      const { operation } = await api.operations.getOperation({ operation: id });
      expect(operation).toMatchObject({ id, database, kind: OperationKind.SYNC, done: true });
    } finally {
      api.close();
      await testServer.close();
    }
  });
});
