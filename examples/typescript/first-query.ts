/** A database, a batch that is all or nothing, and rows streamed back. */
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";

const address = process.argv[2] ?? "127.0.0.1:8080";
const databases = createClient(DatabaseService, createGrpcTransport({ baseUrl: `http://${address}` }));
const database = `typescript-${process.pid}`;

await databases.createDatabase({ database, labels: { example: "typescript" } });
await databases.executeScript({ database, script: "CREATE TABLE city (name TEXT UNIQUE, people INTEGER)" });

const insert = "INSERT INTO city VALUES (?, ?)";
await databases.executeBatch({
  database,
  steps: [
    ["Lisbon", 567_131n],
    ["Porto", 248_769n],
  ].map(([name, people]) => ({
    statement: {
      sql: insert,
      parameters: [
        { kind: { case: "text", value: String(name) } },
        { kind: { case: "integer", value: BigInt(people ?? 0) } },
      ],
    },
    expectedRowsAffected: 1n,
  })),
  // The same call sent twice is applied once.
  requestId: crypto.randomUUID(),
});

const query = databases.query({ database, statement: { sql: "SELECT name, people FROM city ORDER BY people DESC" } });
for await (const { message } of query) {
  if (message.case === "rowBatch") {
    for (const { values } of message.value.rows) console.log(values.map(({ kind }) => kind.value).join(" "));
  }
  // A stream that ends without its summary was cut.
  if (message.case === "summary") console.log(`${message.value.rowCount} rows`);
}
await databases.deleteDatabase({ database });
