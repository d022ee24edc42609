import { once } from "node:events";
import {
  type ClientHttp2Session,
  connect,
  createServer,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { replaceStreamTable } from "../../src/transport/stream-table.ts";

const server = createServer();
const replaced: boolean[] = [];
const streams: ServerHttp2Stream[] = [];
let session: ServerHttp2Session;
let client: ClientHttp2Session;

server.on("session", (newSession) => {
  session = newSession;
  replaced.push(replaceStreamTable(newSession));
});
server.on("stream", (stream) => {
  streams.push(stream);
  stream.on("error", () => undefined);
  stream.respond({ ":status": 200 });
});

beforeEach(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});

afterEach(async () => {
  client.destroy();
  streams.length = 0;
  replaced.length = 0;
  await new Promise((resolve) => server.close(resolve));
});

/** Opens a stream whose answer has begun. */
async function open() {
  const request = client.request({ ":method": "POST" });
  request.on("error", () => undefined);
  await once(request, "response");
  return request;
}

describe("a session with another table of streams", () => {
  it("is what this Node makes", async () => {
    await open();
    expect(replaced).toEqual([true]);
    expect(replaceStreamTable(session)).toBe(false);
  });

  it("serves many streams, and finds each for its data", async () => {
    const requests = await Promise.all(Array.from({ length: 50 }, open));
    const received = streams.map((stream) => once(stream, "data").then(([bytes]) => `${stream.id}: ${bytes}`));
    for (const request of requests) request.end(`from ${request.id}`);
    expect((await Promise.all(received)).sort()).toEqual(requests.map(({ id }) => `${id}: from ${id}`).sort());
    for (const stream of streams) stream.end();
    await Promise.all(requests.map((request) => once(request.resume(), "close")));
  });

  it("closes when its last stream is over, and not before", async () => {
    const first = await open();
    const second = await open();
    session.close();
    let closed = false;
    const closing = once(session, "close").then(() => {
      closed = true;
    });
    const [firstStream, secondStream] = streams as [ServerHttp2Stream, ServerHttp2Stream];
    firstStream.end();
    first.end();
    await once(first.resume(), "close");
    expect(closed).toBe(false);
    secondStream.end();
    second.end();
    second.resume();
    await closing;
  });

  it("ends its streams when it is destroyed", async () => {
    await Promise.all([open(), open()]);
    const closed = streams.map((stream) => once(stream, "close"));
    session.destroy();
    await Promise.all(closed);
  });
});
