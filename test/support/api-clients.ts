/** Every protocol, version of HTTP and client that an API test runs over. */
import { createRegistry } from "@bufbuild/protobuf";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe } from "vitest";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { OperationService } from "../../gen/persisto/v1/operation_pb.js";
import { ServerService } from "../../gen/persisto/v1/server_service_pb.js";
import { StageService } from "../../gen/persisto/v1/stage_service_pb.js";
import { startTestServer, type TestServer } from "./api-server.ts";
import { createGrpcJsTransport } from "./grpc-js-transport.ts";

export type ClientKind =
  | "grpc-js"
  | "grpc h2"
  | "grpc-web h2"
  | "grpc-web h1"
  | "connect h2"
  | "connect h1"
  | "connect json h2"
  | "connect json h1"
  | "connect get h1";

export const clientKinds: readonly ClientKind[] = [
  "grpc-js",
  "grpc h2",
  "grpc-web h2",
  "grpc-web h1",
  "connect h2",
  "connect h1",
  "connect json h2",
  "connect json h1",
  "connect get h1",
];

/** Every protocol, binary and JSON, both versions of HTTP, each once: for tests that take their time. */
export const mainClientKinds: readonly ClientKind[] = [
  "grpc-js",
  "grpc h2",
  "grpc-web h1",
  "connect h2",
  "connect json h1",
];

/** Transact needs both directions at once. */
export const bidiClientKinds: readonly ClientKind[] = ["grpc-js", "grpc h2", "connect h2", "connect json h2"];

export interface ApiClients {
  readonly databases: Client<typeof DatabaseService>;
  readonly stages: Client<typeof StageService>;
  readonly operations: Client<typeof OperationService>;
  readonly server: Client<typeof ServerService>;
  readonly health: Client<typeof Health>;
  readonly transport: Transport;
  close(): void;
}

export function openClients(kind: ClientKind, port: number): ApiClients {
  const { transport, close } = openTransport(kind, port);
  return {
    databases: createClient(DatabaseService, transport),
    stages: createClient(StageService, transport),
    operations: createClient(OperationService, transport),
    server: createClient(ServerService, transport),
    health: createClient(Health, transport),
    transport,
    close,
  };
}

function openTransport(kind: ClientKind, port: number): { readonly transport: Transport; close(): void } {
  if (kind === "grpc-js") {
    const transport = createGrpcJsTransport(`127.0.0.1:${port}`);
    return { transport, close: () => transport.close() };
  }
  const baseUrl = `http://127.0.0.1:${port}`;
  const sessionManager = new Http2SessionManager(baseUrl);
  const common = {
    baseUrl,
    useBinaryFormat: !kind.startsWith("connect json"),
    jsonOptions: { registry: createRegistry(file_google_rpc_error_details) },
  };
  const http2 = { ...common, httpVersion: "2", sessionManager } as const;
  const http1 = { ...common, httpVersion: "1.1" } as const;
  const transport = {
    "grpc h2": () => createGrpcTransport(http2),
    "grpc-web h2": () => createGrpcWebTransport(http2),
    "grpc-web h1": () => createGrpcWebTransport(http1),
    "connect h2": () => createConnectTransport(http2),
    "connect h1": () => createConnectTransport(http1),
    "connect json h2": () => createConnectTransport(http2),
    "connect json h1": () => createConnectTransport(http1),
    "connect get h1": () => createConnectTransport({ ...http1, useHttpGet: true }),
  }[kind]();
  return { transport, close: () => sessionManager.abort() };
}

/** One combination of client and server path. */
export interface ApiUnderTest extends ApiClients {
  readonly kind: ClientKind;
  readonly ownPath: boolean;
  readonly testServer: TestServer;
}

export interface ProtocolOptions {
  readonly kinds?: readonly ClientKind[];
  readonly environment?: Readonly<Record<string, string>>;
}

/**
 * Runs the tests that `define` makes once for each client, with the server's own gRPC path on and off. The two servers
 * are shared by them all, so each test makes databases of its own. Fields of `api` are there from the first hook on.
 */
export function describeEachProtocol(
  name: string,
  define: (api: ApiUnderTest) => void,
  { kinds = clientKinds, environment = {} }: ProtocolOptions = {},
): void {
  describe(name, () => {
    for (const ownPath of [true, false]) {
      describe(ownPath ? "own path" : "Connect's path", () => {
        let testServer: TestServer;
        beforeAll(async () => {
          testServer = await startTestServer({ ...environment, SERVER_OWN_GRPC_PATH: String(ownPath) });
        });
        afterAll(() => testServer?.close());
        for (const kind of kinds) {
          describe(kind, () => {
            const api = { kind, ownPath } as { -readonly [Key in keyof ApiUnderTest]: ApiUnderTest[Key] };
            beforeAll(() => {
              Object.assign(api, openClients(kind, testServer.port), { testServer });
            });
            afterAll(() => api.close?.());
            define(api);
          });
        }
      });
    }
  });
}

let databaseCount = 0;

/** An id that no other test of the process has. */
export function freshId(prefix = "db"): string {
  databaseCount++;
  return `${prefix}-${process.pid}-${databaseCount}`;
}

/** Makes an empty database and returns its id. */
export async function freshDatabase(api: ApiClients, prefix?: string): Promise<string> {
  const database = freshId(prefix);
  await api.databases.createDatabase({ database });
  return database;
}
