/** Where the fields of requests stand, by their numbers in persisto.v1. */
import {
  ExecuteBatchRequestSchema,
  ExecuteRequestSchema,
  ExecuteScriptRequestSchema,
  QueryRequestSchema,
  ReadRequestSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import type { HashShape, RequestLayout } from "./wire.ts";

export const executeLayout: RequestLayout = {
  schema: ExecuteRequestSchema,
  roles: [undefined, "database", "body", "rowFormat", "durability", "requestId"],
  bodyIsMessage: true,
};
export const readLayout: RequestLayout = {
  schema: ReadRequestSchema,
  roles: [undefined, "database", "body", "rowFormat", "minPosition"],
  bodyIsMessage: true,
};
export const queryLayout: RequestLayout = {
  schema: QueryRequestSchema,
  roles: [undefined, "database", "body", "rowFormat", "minPosition", "chunkRowsMax", "chunkBytesMax"],
  bodyIsMessage: true,
};
export const batchLayout: RequestLayout = {
  schema: ExecuteBatchRequestSchema,
  roles: [undefined, "database", "steps", "rowFormat", "durability", "requestId"],
  bodyIsMessage: true,
};
export const scriptLayout: RequestLayout = {
  schema: ExecuteScriptRequestSchema,
  roles: [undefined, "database", "body", "durability", "requestId"],
  bodyIsMessage: false,
};

const statementHash: HashShape = { map: 3 };
export const executeHash: HashShape = { omit: 5, nested: { 2: statementHash } };
export const batchHash: HashShape = { omit: 5, nested: { 2: { nested: { 1: statementHash } } } };
export const scriptHash: HashShape = { omit: 4 };
