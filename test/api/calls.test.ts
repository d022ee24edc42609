/** Deadlines, cancellation, restarts: what becomes of calls that do not just end. */
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { TransactionMode } from "../../gen/persisto/v1/database_service_pb.js";
import {
  type ApiUnderTest,
  bidiClientKinds,
  type ClientKind,
  clientKinds,
  describeEachProtocol,
  freshDatabase,
  openClients,
} from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid, failureOf } from "../support/api-errors.ts";
import { startTestServer } from "../support/api-server.ts";
import { collect, rowsOf, statement } from "../support/rows.ts";
import { openTransaction } from "../support/transaction-client.ts";
import { until } from "../support/until.ts";

const endlessRows = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
const endless = endlessRows.replace("SELECT x FROM", "SELECT count(*) FROM");

const environment = {
  SETTINGS_STATEMENT_TIMEOUT_SECONDS: "0.2",
  SETTINGS_STATEMENT_TIMEOUT_MAX_SECONDS: "0.3",
};

const hasTimeForAll: readonly ClientKind[] = ["grpc h2", "connect json h1"];

describeEachProtocol(
  "deadlines",
  (api) => {
    it("the client's is kept", async () => {
      const database = await freshDatabase(api);
      const started = performance.now();
      const call = api.databases.execute({ database, statement: { sql: endless } }, { timeoutMs: 100 });
      const error = await failureOf(call);
      expect(error.code).toBe(Code.DeadlineExceeded);
      // The client's own timer may be first; then there are no details.
      for (const info of error.findDetails(ErrorInfoSchema)) {
        expect(info).toMatchObject({ reason: "STATEMENT_TIMEOUT", metadata: { source: "client" } });
      }
      expect(performance.now() - started).toBeLessThan(1000);
    });

    it("without one the server's own holds, for each method", async () => {
      const database = await freshDatabase(api);
      const { databases } = api;
      const calls = [
        () => databases.execute({ database, statement: { sql: endless } }),
        () => collect(databases.query({ database, statement: { sql: endless } })),
        () => databases.read({ database, statement: { sql: endless } }),
        () =>
          databases.executeBatch({
            database,
            steps: [{ statement: { sql: "SELECT 1" } }, { statement: { sql: endless } }],
          }),
        () => databases.executeScript({ database, script: `SELECT 1; ${endless}` }),
      ];
      // One after another: on one database they would wait for each other. Every client tries the first two.
      for (const call of hasTimeForAll.includes(api.kind) ? calls : calls.slice(0, 2)) {
        const facts = await expectFailure(call(), "STATEMENT_TIMEOUT");
        expect(facts.source).toBe("server");
        expect(Number(facts.limitMs)).toBeGreaterThan(150);
        expect(Number(facts.limitMs)).toBeLessThanOrEqual(201);
      }
    });

    it("a longer wish is cut, not refused", async () => {
      const database = await freshDatabase(api);
      const wish = { timeoutMs: 99_999_999 };
      expect(rowsOf((await api.databases.execute({ database, statement: { sql: "SELECT 1" } }, wish)).result)).toEqual([
        [1n],
      ]);
      const facts = await expectFailure(
        api.databases.execute({ database, statement: { sql: endless } }, { timeoutMs: 5000 }),
        "STATEMENT_TIMEOUT",
      );
      expect(facts.source).toBe("server");
      expect(Number(facts.limitMs)).toBeGreaterThan(250);
    });

    it("ends a stream in its middle", async () => {
      const database = await freshDatabase(api);
      let rows = 0;
      const reading = (async () => {
        for await (const { message } of api.databases.query({ database, statement: { sql: endlessRows } })) {
          if (message.case === "rowBatch") rows += message.value.rows.length;
        }
      })();
      await expectFailure(reading, "STATEMENT_TIMEOUT");
      expect(rows).toBeGreaterThan(0);
    });
  },
  { environment },
);

/** Statements under way in all executors of the server. */
const running = (api: ApiUnderTest) => api.testServer.executors.stats().runningCalls;

describeEachProtocol("cancellation", (api) => {
  it("interrupts the statement, and the executor is free again", async () => {
    const database = await freshDatabase(api);
    const idle = running(api);
    const aborting = new AbortController();
    const call = api.databases.execute({ database, statement: { sql: endless } }, { signal: aborting.signal });
    const failed = failureOf(call);
    await until("the statement runs", () => running(api) > idle);
    aborting.abort();
    expect((await failed).code).toBe(Code.Canceled);
    await until("the executor is free", () => running(api) <= idle, 1000);
    const { result } = await api.databases.execute({ database, statement: { sql: "CREATE TABLE t (a)" } });
    expect(result?.rowsAffected).toBe(0n);
  });

  it("takes nothing of an interrupted write into effect", async () => {
    const database = await freshDatabase(api);
    await api.databases.execute({ database, statement: { sql: "CREATE TABLE t (a)" } });
    const aborting = new AbortController();
    const idle = running(api);
    const sql = `INSERT INTO t ${endlessRows}`;
    const failed = failureOf(api.databases.execute({ database, statement: { sql } }, { signal: aborting.signal }));
    await until("the statement runs", () => running(api) > idle);
    aborting.abort();
    expect((await failed).code).toBe(Code.Canceled);
    const { result } = await api.databases.execute({ database, statement: { sql: "SELECT count(*) FROM t" } });
    expect(rowsOf(result)).toEqual([[0n]]);
  });

  it("ends a query, its snapshot and its cursor", async () => {
    const database = await freshDatabase(api);
    const idle = running(api);
    const aborting = new AbortController();
    const reading = (async () => {
      let messages = 0;
      const options = { signal: aborting.signal };
      for await (const _ of api.databases.query({ database, statement: { sql: endlessRows } }, options)) {
        if (++messages === 5) aborting.abort();
      }
    })();
    expect((await failureOf(reading)).code).toBe(Code.Canceled);
    await until("the executor is free", () => running(api) <= idle, 1000);
    await api.databases.deleteDatabase({ database });
  });
});

describeEachProtocol(
  "transactions that are broken off",
  (api) => {
    it("while a statement of theirs runs give the write lock back", async () => {
      const database = await freshDatabase(api);
      await api.databases.executeScript({ database, script: "CREATE TABLE t (a); INSERT INTO t VALUES (1)" });
      const idle = running(api);
      const transaction = openTransaction(api);
      await transaction.send({ case: "begin", value: { database, mode: TransactionMode.READ_WRITE } });
      await transaction.send({ case: "execute", value: { sql: "DELETE FROM t" } });
      const failed = failureOf(transaction.send({ case: "execute", value: { sql: endless } }));
      await until("the statement runs", () => running(api) > idle);
      transaction.abort();
      await failed;
      const { result } = await api.databases.execute({ database, statement: { sql: "UPDATE t SET a = 2" } });
      expect(result?.rowsAffected).toBe(1n);
    });
  },
  { kinds: bidiClientKinds },
);

describe("a restart", () => {
  it.each(clientKinds)("keeps data, request ids and positions (%s)", async (kind) => {
    const testServer = await startTestServer();
    try {
      let api = openClients(kind, testServer.port);
      const database = await freshDatabase(api);
      await api.databases.executeScript({ database, script: "CREATE TABLE t (a)" });
      const request = {
        database,
        statement: statement("INSERT INTO t VALUES (?) RETURNING a, random()", 7n),
        requestId: crypto.randomUUID(),
      };
      const first = await api.databases.execute(request);
      const batch = {
        database,
        steps: [{ statement: statement("INSERT INTO t VALUES (8)") }],
        requestId: crypto.randomUUID(),
      };
      await api.databases.executeBatch(batch);
      const creation = { database: `${database}.b`, requestId: crypto.randomUUID() };
      const created = await api.databases.createDatabase(creation);
      const { database: before } = await api.databases.getDatabase({ database });
      api.close();

      await testServer.restart();
      api = openClients(kind, testServer.port);
      const { database: after } = await api.databases.getDatabase({ database });
      expect(after?.position?.lineage).toBe(before?.position?.lineage);
      expect(after?.position?.sequence).toBeGreaterThanOrEqual(before?.position?.sequence ?? 0n);
      const again = await api.databases.execute(request);
      expect(rowsOf(again.result)).toEqual(rowsOf(first.result));
      await api.databases.executeBatch(batch);
      await expectFieldInvalid(
        api.databases.execute({ ...request, statement: statement("DELETE FROM t") }),
        "request_id",
      );
      expect((await api.databases.createDatabase(creation)).database?.position?.lineage).toBe(
        created.database?.position?.lineage,
      );
      const { result, position } = await api.databases.execute({
        database,
        statement: statement("SELECT a FROM t ORDER BY a"),
      });
      expect(rowsOf(result)).toEqual([[7n], [8n]]);
      const written = await api.databases.execute({ database, statement: statement("INSERT INTO t VALUES (9)") });
      expect(written.position?.sequence).toBeGreaterThan(position?.sequence ?? 0n);
      api.close();
    } finally {
      await testServer.close();
    }
  });
});

describe("a drain", () => {
  it("lets a running call end, answers the endless ones SHUTTING_DOWN, and refuses new ones", async () => {
    const drain = { SERVER_DRAIN_CALLS_SECONDS: "10", SERVER_DRAIN_SOCKETS_SECONDS: "12" };
    const testServer = await startTestServer({ EXECUTOR_COUNT_MIN: "2", ...drain });
    const api = openClients("grpc h2", testServer.port);
    try {
      const database = await freshDatabase(api);
      const other = await freshDatabase(api);
      const long = endless.replace("FROM c)", "FROM c LIMIT 4000000)");
      const ending = api.databases.execute({ database, statement: { sql: long } });
      const never = expectFailure(
        api.databases.execute({ database: other, statement: { sql: endless } }),
        "SHUTTING_DOWN",
      );
      await until("both run", () => testServer.executors.stats().runningCalls >= 2);
      const drained = testServer.server.drain();
      expect(rowsOf((await ending).result)).toEqual([[4_000_000n]]);
      await never;
      await drained;
    } finally {
      api.close();
      await testServer.close();
    }
  }, 40_000);
});
