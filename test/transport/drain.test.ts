import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { createGrpcJsTransport } from "../support/grpc-js-transport.ts";
import {
  deferred,
  envelope,
  executeBytes,
  executePath,
  queryBytes,
  queryPath,
  rawGrpc,
  rawHttp2,
  rawSocket,
  readToEnd,
  startTestTransport,
} from "./support.ts";

const shuttingDown = () => new ConnectError("draining", Code.Unavailable);
const patient = { callsMs: 10_000, socketsMs: 12_000, endCalls: shuttingDown };

/** A method that waits for the gate, and how many calls are in it. */
function gated() {
  const gate = deferred();
  let running = 0;
  return {
    open: () => gate.resolve(),
    get running() {
      return running;
    },
    execute: async () => {
      running++;
      await gate.promise;
      running--;
      return {};
    },
  };
}

const post = (body: string) =>
  `POST ${executePath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;

describe.each([true, false])("draining, own path %s", (ownPath) => {
  it("running calls end, the client is told twice, calls in between are served", async () => {
    const work = gated();
    const server = await startTestTransport({ ownPath, methods: { execute: work.execute } });
    const session = await rawHttp2(server.baseUrl);
    const goaways: number[] = [];
    session.on("goaway", (_code, lastStreamId) => goaways.push(lastStreamId));
    const running = rawGrpc(session, executePath, envelope(executeBytes()));
    await expect.poll(() => work.running).toBe(1);

    let drained = false;
    const drain = server.drain(patient).then(() => {
      drained = true;
    });
    await expect.poll(() => goaways[0]).toBe(2 ** 31 - 1);
    await expect(rawSocket(server.port)).rejects.toThrow();
    await expect.poll(() => goaways.length, { timeout: 5_000 }).toBe(2);
    expect(goaways[1]).toBe(1);
    expect(drained).toBe(false);
    work.open();
    expect((await running).trailers["grpc-status"]).toBe("0");
    await drain;
    expect(server.connections).toBe(0);
    expect(server.callsActive).toBe(0);
  });

  it("calls that were sent before the client heard of it are served", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    // On the wire before the first GOAWAY can have come back.
    const drain = server.drain(patient);
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => rawGrpc(session, executePath, envelope(executeBytes()))),
    );
    for (const answer of answers) expect(answer.trailers["grpc-status"]).toBe("0");
    await drain;
  });

  it("calls that do not end are ended as UNAVAILABLE", async () => {
    const never = () => new Promise<never>(() => undefined);
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: never,
        async *query() {
          yield { message: { case: "summary" as const, value: {} } };
          await never();
        },
        typed: { getDatabase: never },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const calls = [
      rawGrpc(session, executePath, envelope(executeBytes())),
      rawGrpc(session, queryPath, envelope(queryBytes())),
      rawGrpc(session, "/persisto.v1.DatabaseService/GetDatabase", envelope(new Uint8Array())),
    ];
    const plain = await rawSocket(server.port);
    plain.write(post("{}"));
    await expect.poll(() => server.callsActive).toBe(4);
    await server.drain({ callsMs: 300, socketsMs: 3_000, endCalls: shuttingDown });
    const [unary, stream, typed] = await Promise.all(calls);
    expect(unary?.headers["grpc-status"]).toBe(String(Code.Unavailable));
    expect(stream?.trailers["grpc-status"]).toBe(String(Code.Unavailable));
    expect(typed?.headers["grpc-status"]).toBe(String(Code.Unavailable));
    const text = (await readToEnd(plain)).toString();
    expect(text).toMatch(/^HTTP\/1\.1 503 /);
    expect(text).toMatch(/connection: close/i);
    expect(server.connections).toBe(0);
  });

  it("connections that do not end are destroyed", async () => {
    const server = await startTestTransport({ ownPath });
    const socket = await rawSocket(server.port);
    socket.write("POST /x HTTP/1.1\r\nhost: x\r\n"); // and no more
    await expect.poll(() => server.connections).toBe(1);
    await server.drain({ callsMs: 100, socketsMs: 300, endCalls: shuttingDown });
    expect(server.connections).toBe(0);
  });

  it("HTTP/1.1 answers say that the connection closes", async () => {
    const work = gated();
    const server = await startTestTransport({ ownPath, methods: { execute: work.execute } });
    const socket = await rawSocket(server.port);
    socket.write(post("{}"));
    await expect.poll(() => work.running).toBe(1);
    const drain = server.drain(patient);
    work.open();
    const text = (await readToEnd(socket)).toString();
    expect(text).toMatch(/^HTTP\/1\.1 200 /);
    expect(text).toMatch(/connection: close/i);
    await drain;
  });

  it("a client with two servers loses no call while they are restarted in turn", async () => {
    const start = () => startTestTransport({ ownPath });
    const servers = [await start(), await start()];
    const ports = servers.map(({ port }) => port);
    const transport = createGrpcJsTransport(`ipv4:${ports.map((port) => `127.0.0.1:${port}`).join(",")}`, {
      "grpc.service_config": JSON.stringify({
        loadBalancingConfig: [{ round_robin: {} }],
        methodConfig: [
          {
            name: [{}],
            waitForReady: true,
            retryPolicy: {
              maxAttempts: 5,
              initialBackoff: "0.02s",
              maxBackoff: "0.2s",
              backoffMultiplier: 2,
              retryableStatusCodes: ["UNAVAILABLE"],
            },
          },
        ],
      }),
    });
    const client = createClient(DatabaseService, transport);
    let calls = 0;
    let stop = false;
    const failures: unknown[] = [];
    const load = Array.from({ length: 8 }, async () => {
      while (!stop) {
        await client.execute({ database: "load" }).catch((error: unknown) => failures.push(error));
        calls++;
      }
    });
    await expect.poll(() => calls).toBeGreaterThan(100);
    for (const index of [0, 1]) {
      const before = calls;
      await servers[index]!.drain({ callsMs: 3_000, socketsMs: 4_000, endCalls: shuttingDown });
      servers[index] = await startTestTransport({ ownPath, port: ports[index]! });
      await expect.poll(() => calls).toBeGreaterThan(before + 100);
      await expect.poll(() => servers[index]!.records.length, { timeout: 10_000 }).toBeGreaterThan(20);
    }
    stop = true;
    await Promise.all(load);
    expect(failures).toEqual([]);
    transport.close();
    await Promise.all(servers.map((server) => server.close()));
  });

  it("close() ends everything at once", async () => {
    const work = gated();
    const server = await startTestTransport({ ownPath, methods: { execute: work.execute } });
    const session = await rawHttp2(server.baseUrl);
    const call = rawGrpc(session, executePath, envelope(executeBytes()));
    await expect.poll(() => work.running).toBe(1);
    await server.close();
    expect((await call).trailers["grpc-status"]).toBeUndefined();
    expect(server.connections).toBe(0);
    await expect.poll(() => server.callsActive).toBe(0);
    work.open();
  });
});
