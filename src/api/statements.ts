/** The methods that run SQL. They find what they need in the bytes of a request and hand statements on undecoded. */
import { create, toBinary } from "@bufbuild/protobuf";
import { DatabaseService, QueryResponseSchema } from "../../gen/persisto/v1/database_service_pb.js";
import type { Clock } from "../clock.ts";
import type { Engine, EngineAnswer, Position } from "../engine/engine.ts";
import { fieldInvalid } from "../failure/failure.ts";
import type { CallOptions, RequestRecord } from "../sqlite/executor.ts";
import { NotModified, type RawCall, type RawMethod } from "../transport/transport.ts";
import {
  checkDatabaseId,
  checkDurability,
  checkMinPosition,
  checkRequestId,
  checkRowFormat,
  required,
} from "./fields.ts";
import {
  batchHash,
  batchLayout,
  executeHash,
  executeLayout,
  queryLayout,
  readLayout,
  scriptHash,
  scriptLayout,
} from "./requests.ts";
import {
  encodeBytesField,
  encodePositionField,
  type HashShape,
  hashRequest,
  type RequestFields,
  type RequestLayout,
  readRequest,
} from "./wire.ts";

/** Bounds of statements and of their answers. */
export interface StatementLimits {
  /** A statement's time when its caller has no deadline. */
  readonly statementTimeoutMs: number;
  /** A statement's time whatever its caller's deadline. */
  readonly statementTimeoutMsMax: number;
  /** Longest answer of a unary method. */
  readonly resultBytesMax: number;
  /** Longest message of a Query: a row is not divided. */
  readonly messageBytesMax: number;
  /** Upper bounds of one chunk of a Query. */
  readonly chunkRowsMax: number;
  readonly chunkBytesMax: number;
  /** Statements of one ExecuteBatch. */
  readonly batchStepCountMax: number;
}

export interface StatementServices {
  readonly engine: Engine;
  readonly clock: Clock;
  readonly limits: StatementLimits;
}

/** Execute, Read, ExecuteBatch, ExecuteScript and Query. */
export function statementMethods(services: StatementServices): RawMethod[] {
  const { engine, clock, limits } = services;
  const { execute, read, executeBatch, executeScript, query } = DatabaseService.method;
  return [
    {
      method: execute,
      kind: "unary",
      async handle(request, call) {
        const fields = readCall(request, call, executeLayout);
        if (fields.body === undefined) {
          throw required("statement");
        }
        const columns = checkRowFormat(fields.rowFormat);
        const durability = checkDurability(fields.durability);
        const record = requestRecord(fields, call, executeHash);
        const options = callOptions(call, clock, limits, columns);
        return answerParts(await engine.execute(fields.database, fields.body, durability, options, record), 2);
      },
    },
    {
      method: read,
      kind: "unary",
      async handle(request, call) {
        const fields = readCall(request, call, readLayout);
        if (fields.body === undefined) {
          throw required("statement");
        }
        const columns = checkRowFormat(fields.rowFormat);
        const minPosition = checkMinPosition(fields.minPosition);
        // Taken before the read: what it shows may be newer than its tag, and is then asked for once more, never older.
        const etag = call.isGet ? `"${engine.version(fields.database)}"` : "";
        if (call.isGet) {
          answerFromCache(call, etag, () => engine.position(fields.database), minPosition);
        }
        const options = callOptions(call, clock, limits, columns);
        const answer = await engine.read(fields.database, fields.body, minPosition, options);
        if (call.isGet) {
          setCacheHeaders(call, etag, minPosition);
        }
        return [answer.body, encodePositionField(2, answer.position)];
      },
    },
    {
      method: executeBatch,
      kind: "unary",
      async handle(request, call) {
        const fields = readCall(request, call, batchLayout);
        if (fields.stepCount === 0) {
          throw required("steps");
        }
        if (fields.stepCount > limits.batchStepCountMax) {
          throw fieldInvalid("steps", `must have at most ${limits.batchStepCountMax} entries`);
        }
        const columns = checkRowFormat(fields.rowFormat);
        const durability = checkDurability(fields.durability);
        const record = requestRecord(fields, call, batchHash);
        const options = callOptions(call, clock, limits, columns);
        return answerParts(await engine.batch(fields.database, fields.bytes, durability, options, record), 2);
      },
    },
    {
      method: executeScript,
      kind: "unary",
      async handle(request, call) {
        const fields = readCall(request, call, scriptLayout);
        if (fields.body === undefined || fields.body.byteLength === 0) {
          throw required("script");
        }
        const durability = checkDurability(fields.durability);
        const record = requestRecord(fields, call, scriptHash);
        const options = callOptions(call, clock, limits, false);
        return answerParts(await engine.script(fields.database, fields.body, durability, options, record), 3);
      },
    },
    {
      method: query,
      kind: "server_streaming",
      handle: (request, call) => streamQuery(services, request, call),
    },
  ];
}

async function* streamQuery(
  { engine, clock, limits }: StatementServices,
  request: Uint8Array,
  call: RawCall,
): AsyncGenerator<Uint8Array> {
  const fields = readCall(request, call, queryLayout);
  if (fields.body === undefined) {
    throw required("statement");
  }
  const columns = checkRowFormat(fields.rowFormat);
  const minPosition = checkMinPosition(fields.minPosition);
  const { position, cursor } = await engine.query(fields.database, fields.body, minPosition, {
    ...queryTime(call, clock, limits, callOptions(call, clock, limits, columns)),
    resultBytesMax: limits.messageBytesMax,
    chunkRowsMax: lower(fields.chunkRowsMax, limits.chunkRowsMax),
    chunkBytesMax: lower(fields.chunkBytesMax, limits.chunkBytesMax),
  });
  try {
    yield encodeBytesField(1, cursor.columns, encodePositionField(2, position));
    for (;;) {
      const chunk = await cursor.next();
      if (chunk === undefined) {
        break;
      }
      yield chunk;
    }
    yield encodeSummary(cursor.summary());
  } finally {
    cursor.close();
  }
}

/** A wish of 0 is none. */
function lower(wish: number, bound: number): number {
  return wish === 0 ? bound : Math.min(wish, bound);
}

function encodeSummary({ rowCount, elapsedNs }: { readonly rowCount: bigint; readonly elapsedNs: bigint }): Uint8Array {
  const elapsed = { seconds: elapsedNs / 1_000_000_000n, nanos: Number(elapsedNs % 1_000_000_000n) };
  return toBinary(
    QueryResponseSchema,
    create(QueryResponseSchema, { message: { case: "summary", value: { rowCount, elapsed } } }),
  );
}

function readCall(request: Uint8Array, call: RawCall, layout: RequestLayout): RequestFields {
  const fields = readRequest(request, layout);
  checkDatabaseId(fields.database);
  call.note("database", fields.database);
  return fields;
}

function requestRecord(fields: RequestFields, call: RawCall, shape: HashShape): RequestRecord | undefined {
  const id = checkRequestId(fields.requestId);
  if (id === undefined) {
    return undefined;
  }
  call.note("requestId", fields.requestId);
  return { id, method: call.method.name, hash: hashRequest(fields.bytes, shape) };
}

/** What a statement needs to know of its call; RawCall is one. */
export type StatementCall = Pick<RawCall, "deadlineAtMs" | "deadlineClamped" | "cancelled" | "onCancel">;

/** The options of one statement. Its time is the caller's deadline, within the server's own bounds. */
export function callOptions(call: StatementCall, clock: Clock, limits: StatementLimits, columns: boolean): CallOptions {
  const now = clock.now();
  const serverDeadlineAtMs =
    now + (call.deadlineAtMs === undefined ? limits.statementTimeoutMs : limits.statementTimeoutMsMax);
  const isClients = call.deadlineAtMs !== undefined && call.deadlineAtMs <= serverDeadlineAtMs && !call.deadlineClamped;
  return {
    columns,
    scope: 0,
    resultBytesMax: limits.resultBytesMax,
    deadlineAtMs: Math.min(call.deadlineAtMs ?? serverDeadlineAtMs, serverDeadlineAtMs),
    deadlineSource: isClients ? "client" : "server",
    cancel: call,
  };
}

/**
 * A query's time. SQLite may spend on it what a statement may take; its life is longer, for readers that are slow, and
 * bounded, because its snapshot keeps the WAL from starting over.
 */
function queryTime(call: StatementCall, clock: Clock, limits: StatementLimits, options: CallOptions) {
  if (call.deadlineAtMs !== undefined) return { ...options, executionMsMax: limits.statementTimeoutMsMax };
  const deadlineAtMs = clock.now() + limits.statementTimeoutMsMax;
  return { ...options, deadlineAtMs, executionMsMax: limits.statementTimeoutMs };
}

function answerParts(answer: EngineAnswer, positionField: number): Uint8Array[] {
  const parts = [answer.body, encodePositionField(positionField, answer.position)];
  if (answer.durablePosition !== undefined) {
    parts.push(encodePositionField(positionField + 1, answer.durablePosition));
  }
  return parts;
}

/** Ends the call when the caller's copy is of the present version, and of a position that the caller asked for. */
function answerFromCache(
  call: RawCall,
  etag: string,
  position: () => Position,
  minPosition: Position | undefined,
): void {
  const conditions = call.requestHeader("if-none-match")?.split(",") ?? [];
  if (!conditions.some((condition) => condition.trim().replace(/^W\//, "") === etag)) {
    return;
  }
  if (minPosition !== undefined) {
    const { lineage, sequence } = position();
    if (minPosition.lineage !== lineage || minPosition.sequence > sequence) {
      return;
    }
  }
  setCacheHeaders(call, etag, minPosition);
  throw new NotModified();
}

/**
 * A copy may be kept by the caller's own cache and has to be asked about each time. Without a position in the request it
 * is not kept at all: such a URL stands for "the newest", and caches have their own ideas of how long that is.
 */
function setCacheHeaders(call: RawCall, etag: string, minPosition: Position | undefined): void {
  call.setHeader("etag", etag);
  call.setHeader("cache-control", minPosition === undefined ? "private, no-store" : "private, no-cache");
  call.setHeader("vary", "accept-encoding, authorization");
}
