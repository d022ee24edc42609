/** Execute as anybody would write it with connect-node and better-sqlite3, in one process and without guards. */

import { createServer } from "node:http2";
import { create } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import Database from "better-sqlite3";
import { DatabaseService, ExecuteResponseSchema, ResultSetSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { ColumnSchema, RowBatchSchema, RowSchema, type Value, ValueSchema } from "../../gen/persisto/v1/value_pb.js";
import { serveQuestions } from "../processes.ts";
import { pointTable } from "../requests.ts";
import { http2Options } from "./http2-options.ts";

const database = new Database(process.argv[2]);
database.pragma("journal_mode = WAL");
database.pragma("synchronous = NORMAL");
for (const statement of pointTable) database.exec(statement);

const statements = new Map<string, Database.Statement<unknown[], unknown[]>>();
function prepared(sql: string): Database.Statement<unknown[], unknown[]> {
  let statement = statements.get(sql);
  if (statement === undefined) {
    statement = database.prepare<unknown[], unknown[]>(sql).safeIntegers(true).raw(true);
    statements.set(sql, statement);
  }
  return statement;
}

function toValue(value: unknown): Value {
  if (typeof value === "bigint") return create(ValueSchema, { kind: { case: "integer", value } });
  if (typeof value === "number") return create(ValueSchema, { kind: { case: "real", value } });
  if (typeof value === "string") return create(ValueSchema, { kind: { case: "text", value } });
  throw new Error("no such value in this table");
}

const adapter = connectNodeAdapter({
  routes: (router) =>
    router.rpc(DatabaseService.method.execute, (request) => {
      const statement = prepared(request.statement?.sql ?? "");
      const rows = statement.all(...(request.statement?.parameters ?? []).map((value) => value.kind.value));
      return create(ExecuteResponseSchema, {
        result: create(ResultSetSchema, {
          columns: statement.columns().map((column) =>
            create(ColumnSchema, {
              name: column.name,
              declaredType: column.type ?? "",
              originTable: column.table ?? "",
              originColumn: column.column ?? "",
            }),
          ),
          data: {
            case: "rowBatch",
            value: create(RowBatchSchema, {
              rows: rows.map((row) => create(RowSchema, { values: row.map(toValue) })),
            }),
          },
        }),
      });
    }),
});

const server = createServer(http2Options, adapter);
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  serveQuestions({ port: typeof address === "object" ? address?.port : undefined }, () => ({}));
});
