import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  DatabaseService,
  QueryRequestSchema,
  QueryResponseSchema,
  ReadResponseSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import { NotModified } from "../../src/transport/transport.ts";
import {
  deferred,
  envelope,
  executePath,
  queryPath,
  rawHttp2,
  rawSocket,
  readToEnd,
  startTestTransport,
  type TestTransport,
} from "./support.ts";

const readPath = "/persisto.v1.DatabaseService/Read";
const base = "https://app.example";

describe("plain HTTP", () => {
  let server: TestTransport;
  const slow = deferred();
  beforeAll(async () => {
    server = await startTestTransport({
      corsOrigins: [base, "http://localhost:5173"],
      pages: new Map([
        ["/healthz", async () => ({ status: 200, contentType: "text/plain", body: "ok" })],
        ["/broken", () => Promise.reject(new Error("broken"))],
      ]),
      methods: {
        async read(request, call) {
          call.setHeader("etag", '"7"');
          call.setHeader("cache-control", "private");
          call.setHeader("vary", "authorization");
          if (request.database === "unchanged" && call.isGet) throw new NotModified();
          if (request.database === "gate") await slow.promise;
          return { position: { lineage: request.database, sequence: 7n } };
        },
        async *query(request, call) {
          call.setHeader("x-query", "set");
          for (let i = 0; i < request.maxChunkRows; i++)
            yield { message: { case: "summary", value: { rowCount: 1n } } };
        },
      },
    });
  });
  afterAll(() => server.close());

  const get = (message: object, headers: Record<string, string> = {}, path = readPath) =>
    fetch(`${server.baseUrl}${path}?connect=v1&encoding=json&message=${encodeURIComponent(JSON.stringify(message))}`, {
      headers,
    });

  describe("GET of a method without side effects", () => {
    it("answers with the headers that the method set", async () => {
      const answer = await get({ database: "d" });
      expect(answer.status).toBe(200);
      expect(answer.headers.get("etag")).toBe('"7"');
      expect(answer.headers.get("cache-control")).toBe("private");
      expect(answer.headers.get("vary")).toBe("authorization");
      expect(await answer.json()).toEqual({ position: { lineage: "d", sequence: "7" } });
    });

    it("in binary too", async () => {
      const transport = createConnectTransport({ baseUrl: server.baseUrl, httpVersion: "1.1", useHttpGet: true });
      const answer = await createClient(DatabaseService, transport).read({ database: "binary" });
      expect(answer.position).toMatchObject({ lineage: "binary", sequence: 7n });
      expect(server.records.at(-1)).toMatchObject({ method: "Read", protocol: "connect", code: 0 });
    });

    it.each(['"7"', 'W/"7"', '"6", "7"', "*"])("is 304 when the ETag is known: %s", async (known) => {
      const answer = await get({ database: "d" }, { "if-none-match": known });
      expect(answer.status).toBe(304);
      expect(answer.headers.get("etag")).toBe('"7"');
      expect(await answer.text()).toBe("");
    });

    it("is 200 when another is", async () => {
      expect((await get({ database: "d" }, { "if-none-match": '"6"' })).status).toBe(200);
    });

    it("is 304 when the method says so", async () => {
      const answer = await get({ database: "unchanged" });
      expect(answer.status).toBe(304);
      expect(answer.headers.get("etag")).toBe('"7"');
      expect(server.records.at(-1)).toMatchObject({ method: "Read", code: 0 });
    });

    it("is not there for other methods", async () => {
      expect((await get({}, {}, executePath)).status).toBe(405);
    });
  });

  it("headers set by raw methods come with a POST and with streams", async () => {
    const answer = await fetch(`${server.baseUrl}${readPath}`, {
      method: "POST",
      headers: { "content-type": "application/json", "if-none-match": '"7"' },
      body: "{}",
    });
    expect([answer.status, answer.headers.get("etag")]).toEqual([200, '"7"']);
    const stream = await fetch(`${server.baseUrl}${queryPath}`, {
      method: "POST",
      headers: { "content-type": "application/connect+json" },
      body: envelope(Buffer.from('{"maxChunkRows":1}')),
    });
    expect([stream.status, stream.headers.get("x-query")]).toEqual([200, "set"]);
    await stream.arrayBuffer();
  });

  describe("pages", () => {
    it("are there on HTTP/1.1 and HTTP/2", async () => {
      const answer = await fetch(`${server.baseUrl}/healthz?verbose`);
      expect([answer.status, await answer.text()]).toEqual([200, "ok"]);
      const session = await rawHttp2(server.baseUrl);
      const stream = session.request({ ":path": "/healthz" });
      let body = "";
      for await (const chunk of stream.setEncoding("utf8")) body += chunk;
      expect(body).toBe("ok");
      session.close();
    });

    it("answer HEAD, refuse others, and 500 when they fail", async () => {
      const head = await fetch(`${server.baseUrl}/healthz`, { method: "HEAD" });
      expect([head.status, head.headers.get("content-length"), await head.text()]).toEqual([200, "2", ""]);
      expect((await fetch(`${server.baseUrl}/healthz`, { method: "POST", body: "x" })).status).toBe(405);
      expect((await fetch(`${server.baseUrl}/broken`)).status).toBe(500);
    });
  });

  describe("what is not there", () => {
    it("is UNIMPLEMENTED in the form of each protocol", async () => {
      const post = (contentType: string) =>
        fetch(`${server.baseUrl}/no.Such/Method`, {
          method: "POST",
          headers: { "content-type": contentType },
          body: "{}",
        });
      const connect = await post("application/json");
      expect([connect.status, await connect.json()]).toMatchObject([404, { code: "unimplemented" }]);
      const web = await post("application/grpc-web+proto");
      expect([web.status, web.headers.get("grpc-status")]).toEqual([200, "12"]);
      expect((await fetch(`${server.baseUrl}/`)).status).toBe(404);
      expect(server.records.at(-2)).toMatchObject({ service: "no.Such", method: "Method", code: 12 });
    });

    it("gRPC on HTTP/1.1 is refused and not answered 200", async () => {
      for (const path of [executePath, queryPath, "/no.Such/Method"]) {
        const answer = await fetch(`${server.baseUrl}${path}`, {
          method: "POST",
          headers: { "content-type": "application/grpc" },
          body: envelope(new Uint8Array()),
        });
        expect(answer.status).toBe(505);
        expect(await answer.text()).toContain("HTTP/2");
      }
    });

    it("bidirectional streams on HTTP/1.1 are refused", async () => {
      const answer = await fetch(`${server.baseUrl}/persisto.v1.DatabaseService/Transact`, {
        method: "POST",
        headers: { "content-type": "application/connect+json" },
        body: envelope(Buffer.from("{}")),
      });
      expect(answer.status).toBe(505);
    });

    it.each(["image/jpeg", "text/plain", "application/grpc+nonsense"])(
      "content type %s is 415",
      async (contentType) => {
        const session = await rawHttp2(server.baseUrl);
        const stream = session.request({ ":method": "POST", ":path": executePath, "content-type": contentType });
        const status = new Promise((resolve) => stream.once("response", (headers) => resolve(headers[":status"])));
        stream.end("x");
        expect(await status).toBe(415);
        session.close();
      },
    );
  });

  it("requests in a pipeline are answered in order, whichever is ready first", async () => {
    const request = (database: string) => {
      const body = JSON.stringify({ database });
      return `POST ${readPath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n`;
    };
    const socket = await rawSocket(server.port);
    const all = readToEnd(socket);
    socket.write(`${request("gate")}\r\n${JSON.stringify({ database: "gate" })}`);
    socket.write(`${request("second")}connection: close\r\n\r\n${JSON.stringify({ database: "second" })}`);
    slow.resolve();
    const text = (await all).toString();
    expect(text.indexOf('"gate"')).toBeGreaterThan(0);
    expect(text.indexOf('"second"')).toBeGreaterThan(text.indexOf('"gate"'));
  });

  it("a connection goes on after a request that was refused unread", async () => {
    const tooLarge = Buffer.alloc(3_000_000, "x");
    const small = await startTestTransport({ limits: { readBytesMax: 10_000 } });
    const socket = await rawSocket(small.port);
    const all = readToEnd(socket);
    const head = (length: number, more = "") =>
      `POST ${executePath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${more}content-length: ${length}\r\n\r\n`;
    socket.write(head(tooLarge.length));
    socket.write(tooLarge);
    socket.write(`${head(2, "connection: close\r\n")}{}`);
    const text = (await all).toString();
    expect(text.match(/HTTP\/1\.1 (\d+)/g)).toEqual(["HTTP/1.1 429", "HTTP/1.1 200"]);
    await small.close();
  });

  describe("CORS", () => {
    const preflight = (origin: string, headers = "content-type,authorization,x-request-id,x-my-metadata") =>
      fetch(`${server.baseUrl}${executePath}`, {
        method: "OPTIONS",
        headers: {
          origin,
          "access-control-request-method": "POST",
          "access-control-request-headers": headers,
        },
      });

    it("answers preflights of listed origins", async () => {
      const answer = await preflight(base);
      expect(answer.status).toBe(204);
      expect(answer.headers.get("access-control-allow-origin")).toBe(base);
      expect(answer.headers.get("access-control-allow-methods")).toBe("POST, GET");
      const allowed = answer.headers.get("access-control-allow-headers")?.split(", ");
      for (const name of [
        "content-type",
        "authorization",
        "x-request-id",
        "x-my-metadata",
        "x-grpc-web",
        "grpc-timeout",
        "connect-timeout-ms",
        "connect-protocol-version",
      ]) {
        expect(allowed).toContain(name);
      }
      expect(answer.headers.get("access-control-max-age")).toBe("7200");
      expect(answer.headers.get("vary")).toContain("Origin");
    });

    it("gives others no permission", async () => {
      const answer = await preflight("https://evil.example");
      expect(answer.headers.get("access-control-allow-origin")).toBeNull();
      const call = await fetch(`${server.baseUrl}/healthz`, { headers: { origin: "https://evil.example" } });
      expect(call.headers.get("access-control-allow-origin")).toBeNull();
    });

    it("shows listed origins the headers that clients need, on answers and errors", async () => {
      for (const [path, type] of [
        [readPath, "application/json"],
        [executePath, "application/grpc-web+proto"],
        ["/no.Such/Method", "application/json"],
      ] as const) {
        const answer = await fetch(`${server.baseUrl}${path}`, {
          method: "POST",
          headers: { origin: base, "content-type": type },
          body: "{}",
        });
        expect(answer.headers.get("access-control-allow-origin")).toBe(base);
        const exposed = answer.headers.get("access-control-expose-headers");
        for (const name of ["Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin", "ETag"]) {
          expect(exposed?.toLowerCase()).toContain(name.toLowerCase());
        }
      }
    });

    it("joins what varies", async () => {
      expect((await get({}, { origin: base })).headers.get("vary")).toBe("authorization, Origin");
    });

    it("allows all when told so", async () => {
      const open = await startTestTransport({ corsOrigins: ["*"] });
      const answer = await fetch(`${open.baseUrl}/x`, { headers: { origin: "https://any.example" } });
      expect(answer.headers.get("access-control-allow-origin")).toBe("*");
      await open.close();
    });
  });
});

describe("grpc-web-text", () => {
  const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");
  const post = (server: TestTransport, path: string, body: string, type = "application/grpc-web-text") =>
    fetch(`${server.baseUrl}${path}`, {
      method: "POST",
      headers: { "content-type": type, accept: type, "x-grpc-web": "1", "x-user-agent": "grpc-web-javascript/0.1" },
      body,
    });

  /** Frames of a text answer, decoded by groups of four as the classic client does. */
  function frames(body: string) {
    const bytes = Buffer.concat((body.match(/.{4}/g) ?? []).map((group) => Buffer.from(group, "base64")));
    const found: { flags: number; data: Buffer }[] = [];
    for (let at = 0; at < bytes.length; ) {
      const length = bytes.readUInt32BE(at + 1);
      found.push({ flags: bytes[at] ?? 0, data: bytes.subarray(at + 5, at + 5 + length) });
      at += 5 + length;
    }
    return found;
  }

  it.each([true, false])("unary and streams, own path %s", async (ownPath) => {
    const server = await startTestTransport({ ownPath });
    for (const type of ["application/grpc-web-text", "application/grpc-web-text+proto"]) {
      const unary = await post(server, readPath, text(envelope(Buffer.from([0x0a, 1, 0x64]))), type);
      expect(unary.headers.get("content-type")).toMatch(/^application\/grpc-web-text/);
      const [message, end] = frames(await unary.text());
      expect(fromBinary(ReadResponseSchema, message?.data ?? Buffer.alloc(0)).position?.lineage).toBe("d");
      expect([end?.flags, end?.data.toString()]).toEqual([0x80, expect.stringContaining("grpc-status: 0")]);
    }
    const request = toBinary(QueryRequestSchema, create(QueryRequestSchema, { maxChunkRows: 5 }));
    const stream = frames(await (await post(server, queryPath, text(envelope(request)))).text());
    expect(stream.map(({ flags }) => flags)).toEqual([0, 0, 0, 0, 0, 0, 0x80]);
    const last = fromBinary(QueryResponseSchema, stream[5]?.data ?? Buffer.alloc(0));
    expect(last.message).toMatchObject({ case: "summary", value: { rowCount: 5n } });
    await server.close();
  });

  it("takes text that is padded in the middle, or cut anywhere", async () => {
    const server = await startTestTransport();
    const frame = envelope(Buffer.from([0x0a, 4, 0x64, 0x61, 0x74, 0x61]));
    for (let cut = 1; cut < frame.length; cut++) {
      const answer = await post(server, readPath, text(frame.subarray(0, cut)) + text(frame.subarray(cut)));
      const [message] = frames(await answer.text());
      expect(fromBinary(ReadResponseSchema, message?.data ?? Buffer.alloc(0)).position?.lineage).toBe("data");
    }
    await server.close();
  });

  it("carries errors", async () => {
    const server = await startTestTransport();
    const answer = await post(server, "/persisto.v1.DatabaseService/CreateDatabase", text(envelope(new Uint8Array())));
    expect(frames(await answer.text())[0]?.data.toString()).toContain("grpc-status: 12");
    const garbage = await post(server, readPath, "!!!! no base64 !!!!");
    expect(frames(await garbage.text())[0]?.data.toString()).toMatch(/grpc-status: 3/);
    await server.close();
  });
});
