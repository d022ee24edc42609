/** What the S3 store does when the store, or the way to it, does not behave: against a small scripted server. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { collect, type ObjectStore, ObjectStoreError } from "../../src/objects/object-store.ts";
import { openS3Store } from "../../src/objects/s3.ts";
import { until } from "../support/until.ts";
import { bytesOf, call, failing, keysOf } from "./helpers.ts";

interface Request {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingMessage["headers"];
  readonly body: Buffer;
}

type Handler = (request: Request, response: ServerResponse) => void;

interface Stored {
  readonly bytes: Buffer;
  readonly etag: string;
  readonly metadata: Record<string, string>;
}

const requests: Request[] = [];
const objects = new Map<string, Stored>();
/** Answer in the place of the usual ones, one request each; undefined: the usual one. */
const script: (Handler | undefined)[] = [];
let server: Server;
let store: ObjectStore;
const problems: string[] = [];
const partBytes = 5 * 1024 * 1024;

beforeEach(async () => {
  for (const list of [requests, script, problems]) list.length = 0;
  objects.clear();
  server = createServer(async (incoming, response) => {
    const url = new URL(incoming.url ?? "/", "http://localhost");
    // A client that gives up in the middle of its request waits for no answer.
    const body = await buffer(incoming).catch(() => undefined);
    if (body === undefined) return;
    const { method = "", headers } = incoming;
    const request = { method, path: decodeURIComponent(url.pathname), query: url.searchParams, headers, body };
    requests.push(request);
    (script.shift() ?? usual)(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  store = await openS3Store({
    bucket: "b",
    endpoint: `http://127.0.0.1:${port}`,
    region: "auto",
    accessKeyId: "key",
    secretAccessKey: "secret",
    clock: systemClock,
    random: randomBytes,
    limits: { partBytes, attemptCountMax: 3 },
    onProblem: (message) => problems.push(message),
  });
});

afterEach(async () => {
  await store.close();
  server.closeAllConnections();
  server.close();
});

let versionCount = 0;

/** Puts, gets and heads with conditions and ranges, as S3 answers them. */
function usual({ method, path, headers, body }: Request, response: ServerResponse): void {
  const found = objects.get(path);
  const isMet =
    (headers["if-none-match"] === undefined || found === undefined) &&
    (headers["if-match"] === undefined || headers["if-match"] === found?.etag);
  if (!isMet) {
    refuse(response, 412, "PreconditionFailed");
    return;
  }
  if (method === "PUT") {
    const metadata = Object.fromEntries(
      Object.entries(headers).filter(([name]) => name.startsWith("x-amz-meta-")),
    ) as Record<string, string>;
    const etag = `"v${++versionCount}"`;
    objects.set(path, { bytes: body, etag, metadata });
    response.writeHead(200, { etag }).end();
    return;
  }
  if (found === undefined) {
    refuse(response, 404, "NoSuchKey");
    return;
  }
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(headers.range ?? "") ?? [];
  const start = Number(first ?? 0);
  const bytes = found.bytes.subarray(start, last ? Number(last) + 1 : undefined);
  const range = `bytes ${start}-${start + bytes.length - 1}/${found.bytes.length}`;
  response.writeHead(first === undefined ? 200 : 206, {
    etag: found.etag,
    "content-length": bytes.length,
    "last-modified": new Date().toUTCString(),
    ...(first === undefined ? {} : { "content-range": range }),
    ...found.metadata,
  });
  response.end(method === "HEAD" ? undefined : bytes);
}

function refuse(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { "content-type": "application/xml" });
  response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>${code}</Message></Error>`);
}

/** Does it, and says nothing. */
const loseAnswer: Handler = (request, response) => {
  usual(request, { writeHead: () => ({ end: () => undefined }), end: () => undefined } as unknown as ServerResponse);
  response.destroy();
};
const answering =
  (status: number, code: string): Handler =>
  (_, response) =>
    refuse(response, status, code);

describe("a put through S3", () => {
  it("knows its own object when the answer to its first attempt was lost", async () => {
    script.push(loseAnswer);
    const made = await store.put("a", bytesOf(10), { ...call(), condition: { ifNoneMatch: "*" } });
    expect(requests.map(({ method }) => method)).toEqual(["PUT", "PUT", "HEAD"]);
    script.push(loseAnswer);
    const changed = await store.put("a", bytesOf(20), { ...call(), condition: { ifMatch: made.etag } });
    expect((await store.head("a", call())).etag).toBe(changed.etag);
  });

  it("does not take another's object for its own after a lost request", async () => {
    await store.put("a", bytesOf(10), call());
    script.push((_, response) => response.destroy());
    const put = store.put("a", bytesOf(10), { ...call(), condition: { ifNoneMatch: "*" } });
    expect(await failing(put)).toBe("precondition");
  });

  it("is repeated when two conditional puts met", async () => {
    script.push(answering(409, "ConditionalRequestConflict"), answering(409, "ConditionalRequestConflict"));
    await store.put("a", bytesOf(10), { ...call(), condition: { ifNoneMatch: "*" } });
    expect(requests.length).toBe(3);
  });

  it("carries checksums, the timestamp, and no trailers that other stores do not know", async () => {
    await store.put("a", bytesOf(10), { ...call(), timestampMs: Date.UTC(2023, 10, 14, 22, 13, 20) + 120 });
    const headers = requests[0]?.headers ?? {};
    expect(headers["x-amz-meta-litestream-timestamp"]).toBe("2023-11-14T22:13:20.120Z");
    expect(headers["content-md5"]).toMatch(/^[\w+/]{22}==$/);
    expect(headers["x-amz-trailer"]).toBeUndefined();
    expect(headers["content-encoding"]).toBeUndefined();
    expect(headers["content-length"]).toBe("10");
  });

  it("takes back the parts of an upload that fails", async () => {
    const xml: Handler = (_, response) =>
      response.end(
        '<?xml version="1.0"?><InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>',
      );
    script.push(xml, ...Array(3).fill(answering(403, "AccessDenied")));
    const put = store.put("a", bytesOf(2 * partBytes + 1), call());
    expect(await failing(put)).toBe("denied");
    await until("the upload is aborted", () => requests.some(({ method }) => method === "DELETE"));
    expect(requests.at(-1)?.query.get("uploadId")).toBe("u1");
  });

  it("says so when those parts cannot be taken back", async () => {
    const xml: Handler = (_, response) =>
      response.end(
        '<?xml version="1.0"?><InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>',
      );
    script.push(xml, ...Array(4).fill(answering(403, "AccessDenied")));
    expect(await failing(store.put("a", bytesOf(2 * partBytes + 1), call()))).toBe("denied");
    await until("it is told", () => problems.length > 0);
    expect(problems).toEqual([expect.stringContaining("parts of a are left over")]);
  });
});

describe("a read through S3", () => {
  it("goes on where it broke off, on the same version", async () => {
    const bytes = bytesOf(300_000);
    await store.put("a", bytes, call());
    const cut: Handler = (_, response) => {
      const { etag = "" } = objects.get("/b/a") ?? {};
      response.writeHead(200, { etag, "content-length": bytes.length });
      response.write(bytes.subarray(0, 100_000), () => response.destroy());
    };
    script.push(cut);
    const stream = await store.open("a", call());
    expect(bytes.equals(await collect(stream))).toBe(true);
    const last = requests.at(-1)?.headers ?? {};
    expect(last.range).toMatch(/^bytes=\d+-299999$/);
    expect(last["if-match"]).toBe(objects.get("/b/a")?.etag);
  });

  it("fails when the object was replaced in between", async () => {
    const bytes = bytesOf(300_000);
    await store.put("a", bytes, call());
    script.push((_, response) => {
      response.writeHead(200, { etag: '"old"', "content-length": bytes.length });
      response.write(bytes.subarray(0, 100_000), () => response.destroy());
    });
    expect(await failing(store.get("a", { ...call(), bytesMax: 300_000 }))).toBe("unavailable");
  });

  it("finds bytes that are not those that were put", async () => {
    await store.put("a", bytesOf(1000), call());
    const stored = objects.get("/b/a");
    if (stored?.bytes[500] !== undefined) stored.bytes[500] ^= 1;
    expect(await failing(store.get("a", { ...call(), bytesMax: 1000 }))).toBe("corrupt");
  });

  it("never takes another answer for the absence of the object", async () => {
    for (const [status, code, kind] of [
      [404, "NoSuchKey", "not_found"],
      [404, "NoSuchBucket", "unavailable"],
      [404, "SomethingElse", "unavailable"],
      [403, "AccessDenied", "denied"],
      [403, "SignatureDoesNotMatch", "denied"],
      [400, "Strange", "unavailable"],
    ] as const) {
      script.push(answering(status, code));
      expect([code, await failing(store.get("a", { ...call(), bytesMax: 1 }))]).toEqual([code, kind]);
    }
  });

  it("is repeated while the store is busy, and then says that it is", async () => {
    await store.put("a", bytesOf(10), call());
    script.push(answering(503, "SlowDown"), answering(500, "InternalError"));
    expect((await store.get("a", { ...call(), bytesMax: 10 })).bytes.length).toBe(10);
    script.push(...Array(3).fill(answering(503, "SlowDown")));
    expect(await failing(store.get("a", { ...call(), bytesMax: 10 }))).toBe("throttled");
  });

  it("asks for less at one time when the store is busy, although the caller sees nothing of it", async () => {
    await store.put("a", bytesOf(10), call());
    script.push(answering(503, "SlowDown"));
    await store.get("a", { ...call(), bytesMax: 10 });
    let running = 0;
    let runningMax = 0;
    const slow: Handler = (request, response) => {
      runningMax = Math.max(runningMax, ++running);
      setImmediate(() => {
        running--;
        usual(request, response);
      });
    };
    script.push(...Array(30).fill(slow));
    await Promise.all(Array.from({ length: 30 }, () => store.get("a", { ...call(), bytesMax: 10 })));
    expect(runningMax).toBeLessThan(14);
  });

  it("ends at its deadline when no answer comes, and when the bytes stop coming", async () => {
    await store.put("a", bytesOf(10), call());
    script.push(() => undefined);
    expect(await failing(store.get("a", { ...call(100), bytesMax: 10 }))).toBe("unavailable");
    script.push((_, response) => {
      response.writeHead(200, { etag: '"v"', "content-length": 10 });
      response.write("12345");
    });
    expect(await failing(store.get("a", { ...call(100), bytesMax: 10 }))).toBe("unavailable");
    // Their places in the line are free again.
    const gets = Array.from({ length: 100 }, () => store.get("a", { ...call(), bytesMax: 10 }));
    expect((await Promise.all(gets)).length).toBe(100);
  });
});

describe("other calls through S3", () => {
  it("finds out the region that a store insists on", async () => {
    const insisting: Handler = (request, response) => {
      if (request.headers.authorization?.includes("/eu-west-9/")) return usual(request, response);
      response.writeHead(400, { "content-type": "application/xml" });
      response.end(
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting</Message><Region>eu-west-9</Region></Error>",
      );
    };
    script.push(...Array(3).fill(insisting));
    await store.put("a", bytesOf(10), call());
    await store.head("a", call());
    expect(requests.length).toBe(3);
  });

  it("tells which of many deletions failed", async () => {
    script.push((_, response) =>
      response.end(
        '<?xml version="1.0"?><DeleteResult><Error><Key>a2</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>',
      ),
    );
    const error = await store.delete(["a1", "a2"], call()).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ObjectStoreError);
    expect([(error as ObjectStoreError).kind, (error as Error).message]).toEqual([
      "denied",
      expect.stringContaining("a2"),
    ]);
    expect(requests[0]?.headers["content-md5"]).toMatch(/==$/);
  });

  it("leaves out of a list what is no object of ours", async () => {
    const entry = (key: string) => `<Contents><Key>${key}</Key><Size>1</Size><ETag>"e"</ETag></Contents>`;
    script.push((_, response) =>
      response.end(
        `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>${["p/", "p/../../etc", "p//x", "p/a&amp;b"].map(entry).join("")}</ListBucketResult>`,
      ),
    );
    expect(await keysOf(store, "p/")).toEqual(["p/a&b"]);
  });
});
