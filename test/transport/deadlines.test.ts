import { Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { describe, expect, it } from "vitest";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { systemClock } from "../../src/clock.ts";
import type { RawCall } from "../../src/transport/transport.ts";
import {
  deferred,
  envelope,
  executeBytes,
  executePath,
  queryBytes,
  queryPath,
  rawGrpc,
  rawHttp2,
  startTestTransport,
} from "./support.ts";

function clientsOf(baseUrl: string) {
  const sessionManager = new Http2SessionManager(baseUrl);
  const http2 = { baseUrl, httpVersion: "2", sessionManager } as const;
  const http1 = { baseUrl, httpVersion: "1.1" } as const;
  return {
    clients: [
      createClient(DatabaseService, createGrpcTransport(http2)),
      createClient(DatabaseService, createGrpcWebTransport(http2)),
      createClient(DatabaseService, createGrpcWebTransport(http1)),
      createClient(DatabaseService, createConnectTransport(http2)),
      createClient(DatabaseService, createConnectTransport(http1)),
    ],
    close: () => sessionManager.abort(),
  };
}

/** Never settles by itself; tells when it was asked and when it was cancelled. */
function waiting() {
  const asked = deferred<RawCall>();
  const cancelled = deferred();
  const work = (call: RawCall): Promise<never> => {
    call.onCancel(() => cancelled.resolve());
    asked.resolve(call);
    return new Promise<never>(() => undefined);
  };
  return { asked: asked.promise, cancelled: cancelled.promise, work };
}

describe.each([true, false])("deadlines and cancellation, own path %s", (ownPath) => {
  it("the longest deadline a client can ask for is cut and does not end the call", async () => {
    const calls: RawCall[] = [];
    const server = await startTestTransport({
      ownPath,
      limits: { deadlineMsMax: 60_000 },
      methods: {
        execute: async (_, call) => {
          calls.push(call);
          return {};
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()), { "grpc-timeout": "99999999H" });
    expect(answer.trailers["grpc-status"]).toBe("0");
    const connect = await fetch(`${server.baseUrl}${executePath}`, {
      method: "POST",
      headers: { "content-type": "application/json", "connect-timeout-ms": "9999999999" },
      body: "{}",
    });
    expect(connect.status).toBe(200);
    for (const call of calls) {
      expect(call.deadlineClamped).toBe(true);
      expect((call.deadlineAtMs ?? 0) - systemClock.now()).toBeGreaterThan(50_000);
      expect((call.deadlineAtMs ?? 0) - systemClock.now()).toBeLessThanOrEqual(60_000);
    }
    expect(calls).toHaveLength(2);
    session.close();
    await server.close();
  });

  it("a stream may last as long as its client wishes", async () => {
    const seen = deferred<RawCall>();
    const server = await startTestTransport({
      ownPath,
      limits: { deadlineMsMax: 1_000 },
      methods: {
        async *query(_, call) {
          seen.resolve(call);
          yield { message: { case: "summary" as const, value: {} } };
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, queryPath, envelope(queryBytes()), { "grpc-timeout": "1H" });
    expect(answer.trailers["grpc-status"]).toBe("0");
    const call = await seen.promise;
    expect(call.deadlineClamped).toBe(false);
    expect((call.deadlineAtMs ?? 0) - systemClock.now()).toBeGreaterThan(3_000_000);
    const endless = await rawGrpc(session, queryPath, envelope(queryBytes()), { "grpc-timeout": "99999999H" });
    expect(endless.trailers["grpc-status"]).toBe("0");
    session.close();
    await server.close();
  });

  it("a value that is no time is INVALID_ARGUMENT", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()), { "grpc-timeout": "soon" });
    expect(answer.headers["grpc-status"]).toBe("3");
    session.close();
    await server.close();
  });

  it("a method that overlooks its deadline is answered for, in every form of gRPC", async () => {
    const unary = waiting();
    const stream = waiting();
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: (_, call) => unary.work(call),
        // biome-ignore lint/correctness/useYield: it never comes to that
        query: async function* (_, call) {
          await stream.work(call);
        },
        typed: { getDatabase: () => new Promise<never>(() => undefined) },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const ask = (path: string, body: Uint8Array) => rawGrpc(session, path, envelope(body), { "grpc-timeout": "100m" });
    const answers = await Promise.all([
      ask(executePath, executeBytes()),
      ask(queryPath, queryBytes()),
      ask("/persisto.v1.DatabaseService/GetDatabase", new Uint8Array()),
    ]);
    for (const answer of answers) expect(answer.headers["grpc-status"]).toBe(String(Code.DeadlineExceeded));
    await Promise.all([unary.cancelled, stream.cancelled]);
    const fetched = await fetch(`${server.baseUrl}${executePath}`, {
      method: "POST",
      headers: { "content-type": "application/json", "connect-timeout-ms": "100" },
      body: "{}",
    });
    expect(fetched.status).toBe(504);
    expect(await fetched.json()).toMatchObject({ code: "deadline_exceeded" });
    await expect.poll(() => server.callsActive).toBe(0);
    session.close();
    await server.close();
  });

  it("a method that watches its deadline answers with its own reason", async () => {
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: (_, call) =>
          new Promise((_, reject) => {
            const inMs = (call.deadlineAtMs ?? 0) - systemClock.now();
            systemClock.after(inMs, () =>
              reject(new ConnectError("the statement's own reason", Code.DeadlineExceeded)),
            );
            setTimeout(() => undefined, inMs + 50); // keeps the process
          }),
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()), { "grpc-timeout": "50m" });
    expect(answer.headers["grpc-message"]).toBe("the statement's own reason");
    session.close();
    await server.close();
  });

  it("a client that leaves is seen by unary methods, whatever it speaks", async () => {
    for (const index of [0, 1, 2, 3, 4]) {
      const unary = waiting();
      const server = await startTestTransport({ ownPath, methods: { execute: (_, call) => unary.work(call) } });
      const { clients, close } = clientsOf(server.baseUrl);
      const abort = new AbortController();
      const call = clients[index]!.execute({}, { signal: abort.signal });
      const seen = await unary.asked;
      expect(seen.cancelled).toBe(false);
      abort.abort();
      await expect(call).rejects.toMatchObject({ code: Code.Canceled });
      await unary.cancelled;
      expect(seen.cancelled).toBe(true);
      expect((await server.recorded(() => true)).code).toBe(Code.Canceled);
      await expect.poll(() => server.callsActive).toBe(0);
      close();
      await server.close();
    }
  });

  it("a client that leaves a stream ends its method, whatever it speaks", async () => {
    for (const index of [0, 1, 2, 3, 4]) {
      const over = deferred();
      const waits = waiting();
      const server = await startTestTransport({
        ownPath,
        methods: {
          async *query(_, call) {
            try {
              yield { message: { case: "summary" as const, value: {} } };
              await Promise.race([waits.work(call), waits.cancelled]);
            } finally {
              over.resolve();
            }
          },
        },
      });
      const { clients, close } = clientsOf(server.baseUrl);
      const abort = new AbortController();
      const read = async () => {
        for await (const _ of clients[index]!.query({}, { signal: abort.signal })) abort.abort();
      };
      await expect(read()).rejects.toMatchObject({ code: Code.Canceled });
      await over.promise;
      await expect.poll(() => server.callsActive).toBe(0);
      close();
      await server.close();
    }
  });

  it("a connection that breaks cancels all its calls", async () => {
    let running = 0;
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: (_, call) => {
          running++;
          return new Promise((_, reject) => {
            call.onCancel(() => {
              running--;
              reject(new Error("cancelled"));
            });
          });
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    for (let i = 0; i < 20; i++) void rawGrpc(session, executePath, envelope(executeBytes()));
    await expect.poll(() => running).toBe(20);
    session.destroy();
    await expect.poll(() => running).toBe(0);
    await expect.poll(() => server.callsActive).toBe(0);
    expect(server.records.map(({ code }) => code)).toEqual(Array(20).fill(Code.Canceled));
    await server.close();
  });
});
