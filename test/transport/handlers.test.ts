import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { describe, expect, it } from "vitest";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { callKey } from "../../src/transport/transport.ts";
import {
  envelope,
  executeBytes,
  executePath,
  getDatabasePath,
  queryBytes,
  queryPath,
  rawGrpc,
  rawHttp2,
  startTestTransport,
} from "./support.ts";

describe.each([true, false])("what methods may do, own path %s", (ownPath) => {
  it("typed methods find their call in the context", async () => {
    const server = await startTestTransport({
      ownPath,
      methods: {
        typed: {
          getDatabase(request, context) {
            const call = context.values.get(callKey);
            call?.note("database", request.database);
            call?.setHeader("x-set-by", "call");
            return {
              database: { id: `${context.protocolName} ${call?.protocol} ${context.timeoutMs() !== undefined}` },
            };
          },
        },
      },
    });
    const client = createClient(DatabaseService, createGrpcTransport({ baseUrl: server.baseUrl }));
    let header = new Headers();
    const onHeader = (fields: Headers) => {
      header = fields;
    };
    const answer = await client.getDatabase({ database: "d" }, { timeoutMs: 5_000, onHeader });
    expect(answer.database?.id).toBe("grpc grpc true");
    expect(header.get("x-set-by")).toBe("call");
    expect((await server.recorded(() => true)).notes).toEqual({ database: "d" });
    await server.close();
  });

  it("interceptors run around typed methods, and around raw ones outside the own path", async () => {
    const seen: string[] = [];
    const interceptor: Interceptor = (next) => async (request) => {
      seen.push(`${request.method.name} ${request.header.get("authorization")}`);
      if (request.header.get("authorization") === "none") throw new ConnectError("who?", Code.Unauthenticated);
      return next(request);
    };
    const server = await startTestTransport({ ownPath, interceptors: [interceptor] });
    const { baseUrl } = server;
    const grpc = createClient(DatabaseService, createGrpcTransport({ baseUrl }));
    const connect = createClient(DatabaseService, createConnectTransport({ baseUrl, httpVersion: "1.1" }));
    const headers = { authorization: "Bearer x" };
    await grpc.getDatabase({}, { headers });
    await connect.execute({}, { headers });
    expect(seen).toEqual(["GetDatabase Bearer x", "Execute Bearer x"]);
    const refused = grpc.getDatabase({}, { headers: { authorization: "none" } });
    await expect(refused).rejects.toMatchObject({ code: Code.Unauthenticated });
    await server.close();
  });

  it("headers that cannot be sent are a defect of one call and no crash", async () => {
    const server = await startTestTransport({
      ownPath,
      methods: {
        async execute(_, call) {
          call.setHeader("x-bad", "line\nbreak");
          return {};
        },
        async *query(_, call) {
          call.setHeader("connection", "close");
          yield { message: { case: "summary" as const, value: {} } };
        },
        typed: {
          getDatabase(_, context) {
            context.responseTrailer.set("connection", "close");
            return {};
          },
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const bad = await rawGrpc(session, executePath, envelope(executeBytes()));
    expect(bad.headers["grpc-status"]).toBe(String(Code.Internal));
    for (const path of [queryPath, getDatabasePath]) {
      const answer = await rawGrpc(session, path, envelope(queryBytes()));
      expect(answer.trailers["grpc-status"]).toBeUndefined();
    }
    await expect.poll(() => server.callsActive).toBe(0);
    session.close();
    await server.close();
  });

  it("what they throw is told with half characters made whole", async () => {
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: () => Promise.reject(new ConnectError("half \ud83d of it", Code.Aborted)),
        typed: {
          getDatabase() {
            throw new ConnectError("half \ud83d of it", Code.Aborted);
          },
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    for (const path of [executePath, getDatabasePath]) {
      const answer = await rawGrpc(session, path, envelope(executeBytes()));
      expect(answer.headers["grpc-status"]).toBe(String(Code.Aborted));
      expect(decodeURIComponent(String(answer.headers["grpc-message"]))).toBe("half \ufffd of it");
    }
    session.close();
    await server.close();
  });

  it("calls are counted from their first byte to the end of their stream", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    expect(server.callsActive).toBe(0);
    const answers = Array.from({ length: 200 }, (_, i) =>
      rawGrpc(session, [executePath, queryPath, getDatabasePath][i % 3]!, envelope(executeBytes())),
    );
    await Promise.all(answers);
    await expect.poll(() => server.callsActive).toBe(0);
    expect(server.records).toHaveLength(200);
    expect(server.records.every(({ code, durationMs }) => code === 0 && durationMs >= 0)).toBe(true);
    session.close();
    await expect.poll(() => server.connections).toBe(0);
    await server.close();
  });
});
