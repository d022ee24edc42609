/** RestoreDatabase and ForkDatabase: going back to a point of a database's history. */
import { toBinary } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type DatabaseService,
  type ForkDatabaseRequest,
  ForkDatabaseRequestSchema,
  type RestoreDatabaseRequest,
  RestoreDatabaseRequestSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import type { Engine, HistoryTarget, Position } from "../engine/engine.ts";
import { fieldInvalid } from "../failure/failure.ts";
import type { RequestRecord } from "../sqlite/executor.ts";
import { callOf, noteDatabase } from "./calls.ts";
import { checkDatabaseId, checkMinPosition, checkRequestId, checkTime, optional } from "./fields.ts";
import { operationMessage } from "./operations.ts";
import { callWait, type WaitServices } from "./waits.ts";
import { hashRequest } from "./wire.ts";

export interface HistoryServices extends WaitServices {
  readonly engine: Engine;
}

type HistoryMethods = Pick<ServiceImpl<typeof DatabaseService>, "restoreDatabase" | "forkDatabase">;

export function historyMethods(services: HistoryServices): HistoryMethods {
  const { engine } = services;
  return {
    async restoreDatabase(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      const target = targetOf(request.target);
      if (target === undefined) {
        throw fieldInvalid("position", "must be set, or time");
      }
      const operation = await engine.restore({
        id: request.database,
        target,
        etag: optional(request.etag),
        request: restoreRecord(request),
        wait: callWait(services, request.wait, callOf(context)),
      });
      return { operation: operationMessage(operation) };
    },

    async forkDatabase(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      checkDatabaseId(request.newDatabase, "new_database");
      if (request.newDatabase === request.database) {
        throw fieldInvalid("new_database", "must be another id than database");
      }
      callOf(context).note("newDatabase", request.newDatabase);
      const operation = await engine.fork({
        id: request.database,
        newId: request.newDatabase,
        source: targetOf(request.source),
        request: forkRecord(request),
        wait: callWait(services, request.wait, callOf(context)),
      });
      return { operation: operationMessage(operation) };
    },
  };
}

type Point =
  | { readonly case: "position"; readonly value: Position }
  | { readonly case: "time"; readonly value: Timestamp }
  | { readonly case: undefined };

/** Undefined when none is given. */
function targetOf(point: Point): HistoryTarget | undefined {
  switch (point.case) {
    case "position": {
      const { lineage, sequence } = checkMinPosition(point.value, "position");
      return { position: { lineage, sequence } };
    }
    case "time":
      return { timeMs: checkTime(point.value, "time") };
    default:
      return undefined;
  }
}

/** The wait is no part of what is asked for: a repeat may wait longer. */
function restoreRecord(request: RestoreDatabaseRequest): RequestRecord | undefined {
  const asked = { ...request, requestId: "" };
  delete asked.wait;
  return record("RestoreDatabase", request.requestId, () => toBinary(RestoreDatabaseRequestSchema, asked));
}

function forkRecord(request: ForkDatabaseRequest): RequestRecord | undefined {
  const asked = { ...request, requestId: "" };
  delete asked.wait;
  return record("ForkDatabase", request.requestId, () => toBinary(ForkDatabaseRequestSchema, asked));
}

function record(method: string, requestId: string, asked: () => Uint8Array): RequestRecord | undefined {
  const id = checkRequestId(requestId);
  return id === undefined ? undefined : { id, method, hash: hashRequest(asked(), {}) };
}
