/** A Query is bounded by what SQLite spends on it, not by how fast it is read. */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freshDatabase, openClients } from "../support/api-clients.ts";
import { expectFailure } from "../support/api-errors.ts";
import { startTestServer, type TestServer } from "../support/api-server.ts";
import { collect } from "../support/rows.ts";

const rowsUpTo = (count: number) =>
  `WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT ${count}) SELECT x, hex(zeroblob(1000)) FROM c`;

describe("the time of a Query", () => {
  let server: TestServer;

  beforeAll(async () => {
    server = await startTestServer({ SETTINGS_STATEMENT_TIMEOUT_SECONDS: "0.3" });
  });
  afterAll(() => server.close());

  it("does not run while a reader is slow", async () => {
    const clients = openClients("grpc h2", server.port);
    const database = await freshDatabase(clients);
    const startedAtMs = performance.now();
    let rows = 0;
    // More than the windows on the way hold, so that the executor waits for the reader.
    for await (const { message } of clients.databases.query({ database, statement: { sql: rowsUpTo(10_000) } })) {
      if (message.case === "rowBatch") rows += message.value.rows.length;
      await delay(5);
    }
    expect(rows).toBe(10_000);
    expect(performance.now() - startedAtMs).toBeGreaterThan(400);
    clients.close();
  });

  it("ends when SQLite has spent it", async () => {
    const clients = openClients("grpc h2", server.port);
    const database = await freshDatabase(clients);
    const sql = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT x FROM c WHERE x < 100";
    const facts = await expectFailure(
      collect(clients.databases.query({ database, statement: { sql } })),
      "STATEMENT_TIMEOUT",
    );
    expect(facts).toMatchObject({ limitMs: "300", source: "server" });
    clients.close();
  });
});
