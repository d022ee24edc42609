import { connect as connectHttp2, constants } from "node:http2";
import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import {
  deferred,
  envelope,
  executeBytes,
  executePath,
  getDatabasePath,
  queryBytes,
  queryPath,
  rawGrpc,
  rawHttp2,
  rawSocket,
  readToEnd,
  startTestTransport,
} from "./support.ts";

const status = (code: Code) => String(code);

/** 640 MB in chunks of 64 KiB; tells what was pulled, and the end. */
function longQuery(onSent: (bytes: number) => void, onEnd: () => void): () => AsyncGenerator<Uint8Array> {
  return async function* () {
    const chunk = Buffer.concat([Buffer.from([0x0a, 0x80, 0x80, 0x04]), Buffer.alloc(65_536)]);
    try {
      for (let i = 0; i < 10_000; i++) {
        onSent(chunk.length);
        yield chunk;
      }
    } finally {
      onEnd();
    }
  };
}

describe.each([true, false])("limits on messages, own path %s", (ownPath) => {
  it("a prefix that claims 4 GiB is refused at once and allocates nothing", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    const before = process.memoryUsage();
    const claim = Buffer.from([0, 0xff, 0xff, 0xff, 0xff]);
    const paths = [executePath, getDatabasePath, queryPath];
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, i) => rawGrpc(session, paths[i % 3]!, claim, {}, { end: false })),
    );
    for (const answer of answers) expect(answer.headers["grpc-status"]).toBe(status(Code.ResourceExhausted));
    const after = process.memoryUsage();
    expect(after.arrayBuffers + after.external - before.arrayBuffers - before.external).toBeLessThan(16 * 1024 * 1024);
    session.close();
    await server.close();
  });

  it("a message at the limit passes, one above is refused, compressed or not", async () => {
    const bytesMax = 100_000;
    const server = await startTestTransport({ ownPath, limits: { readBytesMax: bytesMax } });
    const session = await rawHttp2(server.baseUrl);
    const sized = (size: number) => {
      const bytes = executeBytes({ statement: { sql: "x".repeat(size - 8) } });
      expect(bytes.length).toBe(size);
      return bytes;
    };
    const gzip = { "grpc-encoding": "gzip" };
    const fits = await rawGrpc(session, executePath, envelope(sized(bytesMax)));
    expect(fits.trailers["grpc-status"]).toBe("0");
    const fitsPacked = await rawGrpc(session, executePath, envelope(gzipSync(sized(bytesMax)), 1), gzip);
    expect(fitsPacked.trailers["grpc-status"]).toBe("0");
    for (const [body, headers] of [
      [envelope(sized(bytesMax + 1)), {}],
      [envelope(gzipSync(sized(bytesMax + 1)), 1), gzip],
      [envelope(gzipSync(Buffer.alloc(50_000_000)), 1), gzip],
    ] as const) {
      const answer = await rawGrpc(session, executePath, body, headers);
      expect(answer.headers["grpc-status"]).toBe(status(Code.ResourceExhausted));
      await expect.poll(() => server.callsActive).toBe(0); // what was not read is let go of
    }
    session.close();
    await server.close();
  });

  it("an answer above the limit is refused", async () => {
    const server = await startTestTransport({
      ownPath,
      limits: { writeBytesMax: 10_000 },
      methods: { execute: async () => largeAnswer(10_001) },
    });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()));
    expect(answer.headers["grpc-status"]).toMatch(/^(8|13)$/);
    session.close();
    await server.close();
  });

  it("a message in one-byte pieces is put together", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    const body = envelope(executeBytes({ database: "pieces", statement: { sql: "y".repeat(2_000) } }));
    const stream = session.request({
      ":method": "POST",
      ":path": executePath,
      "content-type": "application/grpc",
    });
    const trailers = new Promise<unknown>((resolve) => stream.on("trailers", (fields) => resolve(fields)));
    stream.resume();
    for (const byte of body) {
      await new Promise<void>((resolve) => stream.write(Buffer.from([byte]), () => resolve()));
    }
    stream.end();
    expect(await trailers).toMatchObject({ "grpc-status": "0" });
    session.close();
    await server.close();
  });

  it("what is no single whole message is refused", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    const message = envelope(executeBytes({ database: "d" }));
    const cases: readonly [Buffer | undefined, Record<string, string>, number[]][] = [
      [undefined, {}, [12]],
      [Buffer.concat([message, message]), {}, [12]],
      [message.subarray(0, 4), {}, [3, 13]],
      [message.subarray(0, 6), {}, [3, 13]],
      [envelope(executeBytes(), 1), {}, [13]],
      [message, { "grpc-encoding": "snappy" }, [12]],
      [envelope(Buffer.from("no gzip"), 1), { "grpc-encoding": "gzip" }, [3, 13]],
    ];
    for (const [body, headers, codes] of cases) {
      const answer = await rawGrpc(session, executePath, body, headers);
      expect(codes.map(String)).toContain(answer.headers["grpc-status"]);
    }
    session.close();
    await server.close();
  });

  it("malformed protobuf in a good frame is an error and not a crash", async () => {
    const server = await startTestTransport({ ownPath });
    const session = await rawHttp2(server.baseUrl);
    const malformed = Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x00]);
    for (const path of [executePath, queryPath, getDatabasePath]) {
      const answer = await rawGrpc(session, path, envelope(malformed));
      expect(ownPath && path === getDatabasePath ? ["3"] : ["3", "13"]).toContain(answer.headers["grpc-status"]);
    }
    const good = await rawGrpc(session, executePath, envelope(executeBytes()));
    expect(good.trailers["grpc-status"]).toBe("0");
    session.close();
    await server.close();
  });

  it("answers are compressed from the limit up, and only for clients that take it", async () => {
    const server = await startTestTransport({ ownPath, limits: { compressBytesMin: 10_000 } });
    const session = await rawHttp2(server.baseUrl);
    const ask = (size: number, headers: Record<string, string>) =>
      rawGrpc(session, executePath, envelope(executeBytes({ statement: { sql: "z".repeat(size) } })), headers);
    const accept = { "grpc-accept-encoding": "identity,deflate,gzip" };
    const large = await ask(20_000, accept);
    expect(large.body[0]).toBe(1);
    expect(large.headers["grpc-encoding"]).toBe("gzip");
    expect(large.body.length).toBeLessThan(1_000);
    expect((await ask(5_000, accept)).body[0]).toBe(0);
    expect((await ask(20_000, {})).body[0]).toBe(0);
    session.close();
    await server.close();
  });

  it("requests that would fill the memory are refused as UNAVAILABLE, and no others later", async () => {
    const gate = deferred();
    const server = await startTestTransport({
      ownPath,
      limits: { bytesHeldMax: 1_000_000 },
      methods: {
        execute: async () => {
          await gate.promise;
          return {};
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const half = envelope(executeBytes({ statement: { sql: "x".repeat(400_000) } }));
    const held = [rawGrpc(session, executePath, half), rawGrpc(session, executePath, half)];
    await expect.poll(() => server.bytesHeld).toBeGreaterThan(800_000);
    const json = JSON.stringify({ statement: { sql: "x".repeat(400_000) } });
    expect((await rawGrpc(session, executePath, half)).headers["grpc-status"]).toBe(status(Code.Unavailable));
    const packed = envelope(gzipSync(half.subarray(5)), 1);
    const bomb = await rawGrpc(session, executePath, packed, { "grpc-encoding": "gzip" });
    expect(bomb.headers["grpc-status"]).toBe(status(Code.Unavailable));
    const post = () =>
      fetch(`${server.baseUrl}${executePath}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: json,
      });
    expect((await post()).status).toBe(503);
    gate.resolve();
    for (const answer of await Promise.all(held)) expect(answer.trailers["grpc-status"]).toBe("0");
    await expect.poll(() => server.bytesHeld).toBe(0);
    expect((await post()).status).toBe(200);
    await expect.poll(() => server.bytesHeld).toBe(0);
    session.close();
    await server.close();
  });

  it("a request that does not arrive is given up", async () => {
    const server = await startTestTransport({ ownPath, limits: { readTimeoutMs: 200 } });
    const session = await rawHttp2(server.baseUrl);
    const message = envelope(executeBytes({ database: "slow" }));
    const answer = await rawGrpc(session, executePath, message.subarray(0, 7), {}, { end: false });
    expect(answer.headers["grpc-status"]).toBe(status(Code.DeadlineExceeded));
    await expect.poll(() => server.callsActive).toBe(0);
    session.close();
    await server.close();
  });

  it("a reader that does not read costs little memory and is cut off", async () => {
    let sent = 0;
    const over = deferred();
    const server = await startTestTransport({
      ownPath,
      limits: { writeTimeoutMs: 400 },
      methods: { query: longQuery((bytes) => (sent += bytes), over.resolve) },
    });
    const session = await rawHttp2(server.baseUrl);
    const stream = session.request({ ":method": "POST", ":path": queryPath, "content-type": "application/grpc" });
    stream.on("error", () => undefined);
    stream.end(envelope(queryBytes())); // and nobody reads
    await over.promise;
    expect(sent).toBeLessThan(4 * 1024 * 1024);
    await expect.poll(() => server.callsActive).toBe(0);
    await new Promise((resolve) => stream.once("close", resolve).resume());
    expect(stream.rstCode).toBe(constants.NGHTTP2_CANCEL);
    session.close();
    await server.close();
  });

  it("a reader on HTTP/1.1 that does not read is cut off too", async () => {
    let sent = 0;
    const over = deferred();
    const server = await startTestTransport({
      ownPath,
      limits: { writeTimeoutMs: 400 },
      methods: { query: longQuery((bytes) => (sent += bytes), over.resolve) },
    });
    const socket = await rawSocket(server.port);
    socket.pause();
    const body = envelope(queryBytes());
    socket.write(
      `POST ${queryPath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/connect+proto\r\ncontent-length: ${body.length}\r\n\r\n`,
    );
    socket.write(body);
    await over.promise;
    expect(sent).toBeLessThan(64 * 1024 * 1024); // what the system's socket buffers take
    await expect.poll(() => server.callsActive).toBe(0);
    await expect.poll(() => server.connections).toBe(0);
    socket.destroy();
    await server.close();
  });

  it("a large answer that nobody reads is cut off", async () => {
    const server = await startTestTransport({
      ownPath,
      limits: { writeTimeoutMs: 300 },
      methods: { execute: async () => largeAnswer(3_000_000) },
    });
    const session = await rawHttp2(server.baseUrl);
    const stream = session.request({ ":method": "POST", ":path": executePath, "content-type": "application/grpc" });
    stream.on("error", () => undefined);
    stream.end(envelope(executeBytes()));
    await expect.poll(() => server.callsActive).toBe(1);
    await expect.poll(() => server.callsActive, { timeout: 5_000 }).toBe(0);
    session.destroy();
    await server.close();
  });

  it("a slow reader that goes on reading is not cut off", async () => {
    const server = await startTestTransport({
      ownPath,
      limits: { writeTimeoutMs: 400 },
      methods: { execute: async () => largeAnswer(1_500_000) },
    });
    const session = await rawHttp2(server.baseUrl);
    const stream = session.request({ ":method": "POST", ":path": executePath, "content-type": "application/grpc" });
    stream.end(envelope(executeBytes()));
    let received = 0;
    for await (const chunk of stream) {
      received += (chunk as Buffer).length;
      await new Promise((resolve) => setTimeout(resolve, 15));
    }
    expect(received).toBeGreaterThan(1_500_000);
    session.close();
    await server.close();
  });
});

describe("limits on connections", () => {
  it("too large headers are refused", async () => {
    const server = await startTestTransport({ limits: { headerBytesMax: 8_192 } });
    const session = await rawHttp2(server.baseUrl);
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()), { "x-large": "v".repeat(20_000) });
    expect(answer.trailers["grpc-status"]).toBeUndefined();
    expect(server.records).toHaveLength(0);
    session.destroy();
    const plain = await fetch(`${server.baseUrl}${executePath}`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-large": "v".repeat(20_000) },
      body: "{}",
    });
    expect(plain.status).toBe(431);
    await server.close();
  });

  it("a port that is taken is told by the start", async () => {
    const server = await startTestTransport();
    await expect(startTestTransport({ port: server.port })).rejects.toThrow(/EADDRINUSE/);
    await server.close();
  });

  it("more connections than allowed are closed", async () => {
    const server = await startTestTransport({ limits: { connectionCountMax: 2 } });
    const first = await rawSocket(server.port);
    const second = await rawSocket(server.port);
    await expect.poll(() => server.connections).toBe(2);
    const third = await rawSocket(server.port);
    expect(await readToEnd(third)).toHaveLength(0);
    first.destroy();
    await expect.poll(() => server.connections).toBe(1);
    const fourth = await rawHttp2(server.baseUrl);
    expect((await rawGrpc(fourth, executePath, envelope(executeBytes()))).trailers["grpc-status"]).toBe("0");
    fourth.close();
    second.destroy();
    await server.close();
  });

  it("streams beyond the limit wait or are refused, and none is lost", async () => {
    const gate = deferred();
    let running = 0;
    const server = await startTestTransport({
      limits: { streamsPerConnectionMax: 10 },
      methods: {
        execute: async () => {
          running++;
          await gate.promise;
          return {};
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const calls = Array.from({ length: 30 }, () => rawGrpc(session, executePath, envelope(executeBytes())));
    await expect.poll(() => running).toBe(10);
    gate.resolve();
    const answers = await Promise.all(calls);
    for (const answer of answers) expect(answer.trailers["grpc-status"]).toBe("0");
    session.close();
    await server.close();
  });

  it("silent connections are closed: HTTP/2 with a GOAWAY, HTTP/1.1, and those that never spoke", async () => {
    const server = await startTestTransport({ limits: { idleTimeoutMs: 300, readTimeoutMs: 300 } });
    const session = await rawHttp2(server.baseUrl);
    const goaway = new Promise<number>((resolve) => session.once("goaway", resolve));
    const http1 = await rawSocket(server.port);
    http1.write(
      `POST ${executePath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`,
    );
    const mute = await rawSocket(server.port);
    const partial = await rawSocket(server.port);
    partial.write("POST /x HTTP/1.1\r\nhost: x\r\n");
    const [code, answered] = await Promise.all([goaway, readToEnd(http1), readToEnd(mute), readToEnd(partial)]);
    expect(code).toBe(constants.NGHTTP2_NO_ERROR);
    expect(answered.toString()).toMatch(/^HTTP\/1\.1 200 OK/);
    await expect.poll(() => server.connections).toBe(0);
    await server.close();
  });

  it("a page that nobody reads does not hold its connection, over every version of HTTP", async () => {
    const body = "p".repeat(16 * 1024 * 1024); // more than the system's socket buffers take
    const page = async () => ({ status: 200, contentType: "text/plain", body });
    const server = await startTestTransport({ pages: new Map([["/page", page]]), limits: { writeTimeoutMs: 300 } });
    const session = await rawHttp2(server.baseUrl);
    const stream = session.request({ ":path": "/page" });
    stream.on("error", () => undefined).pause();
    const http1 = await rawSocket(server.port);
    http1.pause();
    http1.write("GET /page HTTP/1.1\r\nhost: x\r\n\r\n");
    await new Promise((resolve) => stream.once("close", resolve));
    expect(stream.rstCode).toBe(constants.NGHTTP2_CANCEL);
    await expect.poll(() => server.connections).toBe(1);
    session.close();
    http1.destroy();
    await server.close();
  });

  it("a pipeline without end is closed", async () => {
    const server = await startTestTransport({
      limits: { streamsPerConnectionMax: 10 },
      methods: { execute: () => new Promise<never>(() => undefined) },
    });
    const socket = await rawSocket(server.port);
    const request = `POST ${executePath} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`;
    socket.write(request.repeat(10));
    await expect.poll(() => server.callsActive).toBe(10);
    socket.write(request);
    await readToEnd(socket);
    await expect.poll(() => server.callsActive).toBe(0);
    await server.close();
  });

  it("a connection with a call is not silent", async () => {
    const gate = deferred();
    const server = await startTestTransport({
      limits: { idleTimeoutMs: 200 },
      methods: {
        execute: async () => {
          await gate.promise;
          return {};
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const call = rawGrpc(session, executePath, envelope(executeBytes()));
    await new Promise((resolve) => setTimeout(resolve, 600));
    gate.resolve();
    expect((await call).trailers["grpc-status"]).toBe("0");
    session.close();
    await server.close();
  });

  it("a peer that does not answer pings is cut off, one that does is not", async () => {
    const server = await startTestTransport({
      limits: { pingIntervalMs: 100, pingTimeoutMs: 200 },
      methods: { execute: () => new Promise<never>(() => undefined) },
    });
    const alive = await rawHttp2(server.baseUrl);
    void rawGrpc(alive, executePath, envelope(executeBytes()));
    const frozen = await rawSocket(server.port);
    const settings = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    frozen.write(Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), settings, headersFrame()]));
    await readToEnd(frozen);
    await expect.poll(() => server.callsActive).toBe(1);
    expect(alive.destroyed).toBe(false);
    alive.destroy();
    await server.close();
  });

  it("an old connection is ended by GOAWAY while its call runs on", async () => {
    const gate = deferred();
    const server = await startTestTransport({
      limits: { connectionAgeMs: 300, connectionAgeGraceMs: 10_000 },
      methods: {
        execute: async () => {
          await gate.promise;
          return {};
        },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    const goaways: number[] = [];
    session.on("goaway", (_code, lastStreamId) => goaways.push(lastStreamId));
    const call = rawGrpc(session, executePath, envelope(executeBytes()));
    await expect.poll(() => goaways.length, { timeout: 5_000 }).toBe(2);
    expect(goaways).toEqual([2 ** 31 - 1, 1]);
    gate.resolve();
    expect((await call).trailers["grpc-status"]).toBe("0");
    await expect.poll(() => server.connections).toBe(0);
    await server.close();
  });

  it("a flood of resets ends its connection and no other", async () => {
    const server = await startTestTransport({ limits: { streamResetBurst: 100, streamResetRate: 10 } });
    const other = await rawHttp2(server.baseUrl);
    const session = await rawHttp2(server.baseUrl);
    const ended = new Promise<void>((resolve) => session.once("close", () => resolve()));
    for (let i = 0; i < 2_000 && !session.destroyed; i++) {
      const stream = session.request({ ":method": "POST", ":path": executePath, "content-type": "application/grpc" });
      stream.on("error", () => undefined);
      stream.close(constants.NGHTTP2_CANCEL);
      if (i % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await ended;
    expect((await rawGrpc(other, executePath, envelope(executeBytes()))).trailers["grpc-status"]).toBe("0");
    await expect.poll(() => server.callsActive).toBe(0);
    other.close();
    await server.close();
  });

  it("garbage on the port harms nobody", async () => {
    const server = await startTestTransport({ limits: { readTimeoutMs: 500, idleTimeoutMs: 500 } });
    const good = await rawHttp2(server.baseUrl);
    const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const pieces = [
      Buffer.from("P"),
      Buffer.from("PR"),
      Buffer.from("PRI"),
      Buffer.from("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
      Buffer.from(`${preface}${"\xff".repeat(100)}`, "latin1"),
      Buffer.from([0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]),
      Buffer.from("\0\0\0\0\0\0"),
      Buffer.from("GET / HTTP/9.9\r\n\r\n"),
      Buffer.from("POST /x HTTP/1.1\r\nhost: [\r\ncontent-length: -1\r\n\r\n"),
      Buffer.from(`GET //x${executePath} HTTP/1.1\r\nhost: [bad\r\n\r\n`),
      Buffer.from(
        `POST ${executePath} HTTP/1.1\r\nhost: [bad\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n`,
      ),
      ...Array.from({ length: 50 }, (_, seed) => pseudoRandom(seed, 400)),
      ...Array.from({ length: 50 }, (_, seed) => Buffer.concat([Buffer.from(preface), pseudoRandom(seed, 400)])),
    ];
    await Promise.all(
      pieces.map(async (bytes) => {
        const socket = await rawSocket(server.port);
        socket.write(bytes);
        await readToEnd(socket);
      }),
    );
    const answer = await rawGrpc(good, executePath, envelope(executeBytes()));
    expect(answer.trailers["grpc-status"] ?? answer.resetCode).toBeDefined();
    const fresh = connectHttp2(server.baseUrl);
    expect((await rawGrpc(fresh, executePath, envelope(executeBytes()))).trailers["grpc-status"]).toBe("0");
    fresh.close();
    good.destroy();
    await expect.poll(() => server.connections).toBe(0);
    await server.close();
  });
});

function largeAnswer(size: number) {
  return { result: { columns: [{ name: "n".repeat(size) }] } };
}

/** HEADERS of a gRPC call on stream 1, with literal fields. */
function headersFrame(): Buffer {
  const literal = (name: string, value: string) =>
    Buffer.concat([Buffer.from([0, name.length]), Buffer.from(name), Buffer.from([value.length]), Buffer.from(value)]);
  const block = Buffer.concat([
    Buffer.from([0x83, 0x86]), // :method POST, :scheme http
    literal(":authority", "test"),
    literal(":path", executePath),
    literal("content-type", "application/grpc"),
  ]);
  const body = envelope(executeBytes());
  return Buffer.concat([
    Buffer.from([0, 0, block.length, 1, 4, 0, 0, 0, 1]),
    block,
    Buffer.from([0, 0, body.length, 0, 1, 0, 0, 0, 1]),
    body,
  ]);
}

function pseudoRandom(seed: number, length: number): Buffer {
  let state = seed * 2_654_435_761 + 1;
  return Buffer.from(
    Array.from({ length }, () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return state >>> 24;
    }),
  );
}
