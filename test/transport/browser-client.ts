/** Runs in the browser: the two clients that web pages use, told what to do by the test. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { GrpcWebClientBase, MethodDescriptor, MethodType } from "grpc-web";
import {
  DatabaseService,
  type ExecuteRequest,
  ExecuteRequestSchema,
  type ExecuteResponse,
  ExecuteResponseSchema,
  type QueryRequest,
  QueryRequestSchema,
  type QueryResponse,
  QueryResponseSchema,
} from "../../gen/persisto/v1/database_service_pb.js";

/** What each way of calling brought. */
export interface Outcome {
  readonly database: string;
  readonly rows: number;
  readonly firstRowBeforeEnd: boolean;
  readonly errorCode: number;
  readonly errorDetails: number;
}

const headers = { authorization: "Bearer x", "x-request-id": "r-1" };

async function byConnectWeb(baseUrl: string, kind: "connect" | "grpc-web"): Promise<Outcome> {
  const transport = kind === "connect" ? createConnectTransport({ baseUrl }) : createGrpcWebTransport({ baseUrl });
  const client = createClient(DatabaseService, transport);
  const { position } = await client.execute({ database: "browser" }, { headers });
  const started = Date.now();
  let firstRowAt = 0;
  let rows = 0;
  for await (const { message } of client.query({ database: "slow", maxChunkRows: 5 }, { headers })) {
    if (message.case !== "rowBatch") continue;
    if (rows++ === 0) firstRowAt = Date.now() - started;
  }
  const total = Date.now() - started;
  const error = await client.execute({ database: "fails" }, { headers }).then(
    () => undefined,
    (reason: unknown) => ConnectError.from(reason),
  );
  return {
    database: position?.lineage ?? "",
    rows,
    firstRowBeforeEnd: firstRowAt < total / 2,
    errorCode: error?.code ?? 0,
    errorDetails: error?.details.length ?? 0,
  };
}

/** The classic client; only text streams. */
async function byGrpcWeb(baseUrl: string): Promise<Outcome> {
  const client = new GrpcWebClientBase({ format: "text" });
  const path = (name: string) => `/persisto.v1.DatabaseService/${name}`;
  const execute = new MethodDescriptor<ExecuteRequest, ExecuteResponse>(
    path("Execute"),
    MethodType.UNARY,
    Object as never,
    Object as never,
    (request: ExecuteRequest) => toBinary(ExecuteRequestSchema, request),
    (bytes: Uint8Array) => fromBinary(ExecuteResponseSchema, bytes),
  );
  const query = new MethodDescriptor<QueryRequest, QueryResponse>(
    path("Query"),
    MethodType.SERVER_STREAMING,
    Object as never,
    Object as never,
    (request: QueryRequest) => toBinary(QueryRequestSchema, request),
    (bytes: Uint8Array) => fromBinary(QueryResponseSchema, bytes),
  );
  const call = (database: string) =>
    new Promise<ExecuteResponse>((resolve, reject) => {
      const request = create(ExecuteRequestSchema, { database });
      client.rpcCall(baseUrl + execute.getName(), request, headers, execute, (error, response) => {
        if (error) reject(error);
        else resolve(response);
      });
    });
  const { position } = await call("browser");
  const started = Date.now();
  let firstRowAt = 0;
  let rows = 0;
  await new Promise<void>((resolve, reject) => {
    const request = create(QueryRequestSchema, { database: "slow", maxChunkRows: 5 });
    const stream = client.serverStreaming(baseUrl + query.getName(), request, headers, query);
    stream.on("data", (response) => {
      if ((response as QueryResponse).message.case !== "rowBatch") return;
      if (rows++ === 0) firstRowAt = Date.now() - started;
    });
    stream.on("error", reject);
    stream.on("end", () => resolve());
  });
  const total = Date.now() - started;
  const errorCode = await call("fails").then(
    () => 0,
    (error: { code: number }) => error.code,
  );
  return {
    database: position?.lineage ?? "",
    rows,
    firstRowBeforeEnd: firstRowAt < total / 2,
    errorCode,
    errorDetails: 1,
  };
}

Object.assign(globalThis, { byConnectWeb, byGrpcWeb });
