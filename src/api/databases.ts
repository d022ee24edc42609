/** Life cycle of databases. */
import { toBinary } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { DatabaseView, type SqlOptions } from "../../gen/persisto/v1/database_pb.js";
import {
  type CreateDatabaseRequest,
  CreateDatabaseRequestSchema,
  type DatabaseService,
  type UpdateDatabaseRequest,
} from "../../gen/persisto/v1/database_service_pb.js";
import type { Engine, UpdateDatabaseInput } from "../engine/engine.ts";
import { fieldInvalid } from "../failure/failure.ts";
import type { RequestRecord } from "../sqlite/executor.ts";
import { noteDatabase } from "./calls.ts";
import { checkDatabaseId, checkRequestId, checkStage, optional, required, throwViolations } from "./fields.ts";
import { databaseMessage } from "./messages.ts";
import { type HashShape, hashRequest } from "./wire.ts";

const pageSizeDefault = 50;
const pageSizeMax = 1000;

type DatabaseMethods = Pick<
  ServiceImpl<typeof DatabaseService>,
  "listDatabases" | "getDatabase" | "createDatabase" | "updateDatabase" | "deleteDatabase"
>;

export function databaseMethods(engine: Engine): DatabaseMethods {
  return {
    async listDatabases(request) {
      if (request.pageSize < 0) {
        throw fieldInvalid("page_size", "must not be negative");
      }
      const view = checkView(request.view, DatabaseView.BASIC);
      const { databases, nextPageToken } = await engine.listDatabases({
        pageSize: request.pageSize === 0 ? pageSizeDefault : Math.min(request.pageSize, pageSizeMax),
        pageToken: request.pageToken,
        filter: request.filter,
        orderBy: request.orderBy,
      });
      return { databases: databases.map((info) => databaseMessage(info, view)), nextPageToken };
    },

    async getDatabase(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      const view = checkView(request.view, DatabaseView.FULL);
      return { database: databaseMessage(await engine.getDatabase(request.database), view) };
    },

    async createDatabase(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      const info = await engine.createDatabase({
        id: request.database,
        labels: request.labels,
        initialStage: checkStage(request.initialStage, "initial_stage"),
        foreignKeys: foreignKeys(request.sqlOptions),
        allowExisting: request.allowExisting,
        request: requestRecord(request),
      });
      return { database: databaseMessage(info, DatabaseView.FULL) };
    },

    async updateDatabase(request, context) {
      const input = updateInput(request);
      noteDatabase(context, input.id);
      return { database: databaseMessage(await engine.updateDatabase(input), DatabaseView.FULL) };
    },

    async deleteDatabase(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      await engine.deleteDatabase(request.database, optional(request.etag), request.allowMissing);
      return {};
    },
  };
}

function checkView(view: DatabaseView, whenUnset: DatabaseView): DatabaseView {
  switch (view) {
    case DatabaseView.UNSPECIFIED:
      return whenUnset;
    case DatabaseView.BASIC:
    case DatabaseView.FULL:
      return view;
    default:
      throw fieldInvalid("view", "must be DATABASE_VIEW_BASIC or DATABASE_VIEW_FULL");
  }
}

const createHash: HashShape = { omit: 4, map: 2 };

function requestRecord(request: CreateDatabaseRequest): RequestRecord | undefined {
  const id = checkRequestId(request.requestId);
  if (id === undefined) {
    return undefined;
  }
  const bytes = toBinary(CreateDatabaseRequestSchema, request);
  return { id, method: "CreateDatabase", hash: hashRequest(bytes, createHash) };
}

/** What the mask names, or what is there when there is no mask; `*` names all that can be changed. */
function updateInput({ database, updateMask }: UpdateDatabaseRequest): UpdateDatabaseInput {
  if (database === undefined) {
    throw required("database");
  }
  checkDatabaseId(database.id, "database.id");
  const { labels, sqlOptions } = database;
  let changesLabels = Object.keys(labels).length > 0;
  let changesForeignKeys = sqlOptions?.foreignKeys !== undefined;
  if (updateMask !== undefined && updateMask.paths.length > 0) {
    const paths = new Set(updateMask.paths);
    throwViolations(
      [...paths]
        .filter((path) => !maskPaths.has(path))
        .map((path) => ({
          field: "update_mask",
          description: `must name labels, sql_options, sql_options.foreign_keys or *, not ${path}`,
        })),
    );
    changesLabels = paths.has("*") || paths.has("labels");
    changesForeignKeys = paths.has("*") || paths.has("sql_options") || paths.has("sql_options.foreign_keys");
  }
  return {
    id: database.id,
    etag: optional(database.etag),
    labels: changesLabels ? labels : undefined,
    foreignKeys: changesForeignKeys ? foreignKeys(sqlOptions) : undefined,
  };
}

const maskPaths = new Set(["*", "labels", "sql_options", "sql_options.foreign_keys"]);

function foreignKeys(options: SqlOptions | undefined): boolean {
  return options?.foreignKeys ?? true;
}
