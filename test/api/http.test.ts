/** What is seen with plain HTTP: JSON as curl shows it, GET and its cache headers, pages. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ReadRequestSchema, ReadResponseSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { startTestServer, type TestServer } from "../support/api-server.ts";
import { rowsOf, statement } from "../support/rows.ts";

let testServer: TestServer;
const url = (path: string) => `http://127.0.0.1:${testServer.port}${path}`;

async function post(method: string, body: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(url(`/persisto.v1.DatabaseService/${method}`), {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  return { status: response.status, headers: response.headers, body: (await response.json()) as Record<string, never> };
}

beforeAll(async () => {
  testServer = await startTestServer();
  await post("CreateDatabase", { database: "web" });
  await post("ExecuteScript", { database: "web", script: "CREATE TABLE t (a); INSERT INTO t VALUES (1), (NULL)" });
});
afterAll(() => testServer?.close());

describe("JSON by POST", () => {
  it("spells values so that no digit and no NULL is lost", async () => {
    const sql = "SELECT 9223372036854775807, 0.5, 'text', x'00ff', NULL, 9e999";
    const { status, body } = await post("Execute", { database: "web", statement: { sql } });
    expect(status).toBe(200);
    expect(body).toMatchObject({
      result: {
        rowBatch: {
          rows: [
            {
              values: [
                { integer: "9223372036854775807" },
                { real: 0.5 },
                { text: "text" },
                { blob: "AP8=" },
                { null: null },
                { real: "Infinity" },
              ],
            },
          ],
        },
      },
      position: { lineage: expect.any(String), sequence: expect.stringMatching(/^\d+$/) },
    });
  });

  it("takes values in the same spelling, integers as numbers too", async () => {
    const parameters = [
      { integer: "-9223372036854775808" },
      { integer: 7 },
      { null: null },
      { real: "NaN" },
      { blob: "AP8=" },
    ];
    const { body } = await post("Execute", {
      database: "web",
      statement: { sql: "SELECT ?, ?, ?, ?, hex(?)", parameters },
    });
    expect(body).toMatchObject({
      result: {
        rowBatch: {
          rows: [
            {
              values: [
                { integer: "-9223372036854775808" },
                { integer: "7" },
                { null: null },
                { null: null },
                { text: "00FF" },
              ],
            },
          ],
        },
      },
    });
  });

  it("answers failures with a status of HTTP and readable details", async () => {
    const { status, body } = await post("Execute", { database: "nobody", statement: { sql: "SELECT 1" } });
    expect(status).toBe(404);
    expect(body).toMatchObject({
      code: "not_found",
      message: expect.stringContaining("nobody"),
      details: [{ type: "google.rpc.ErrorInfo", value: expect.any(String) }],
    });
  });

  it("refuses what is not JSON, and fields that are not there do no harm", async () => {
    expect((await post("Execute", "{")).body).toMatchObject({ code: "invalid_argument" });
    expect((await post("ListDatabases", { pageSize: 1, novelty: true })).status).toBe(200);
  });
});

describe("Read by GET", () => {
  const read = (request: Record<string, unknown>, headers: Record<string, string> = {}) => {
    const query = new URLSearchParams({ connect: "v1", encoding: "json", message: JSON.stringify(request) });
    return fetch(url(`/persisto.v1.DatabaseService/Read?${query}`), { headers });
  };
  const request = { database: "web", statement: { sql: "SELECT count(*) FROM t" } };

  it("gives an ETag that holds until something is written", async () => {
    const first = await read(request);
    expect(first.status).toBe(200);
    const etag = first.headers.get("etag") ?? "";
    expect(etag).toMatch(/^"[0-9a-f]{16}-[0-9a-f]{16}-\d+-\d+"$/);
    expect(await first.json()).toMatchObject({ result: { rowBatch: { rows: [{ values: [{ integer: "2" }] }] } } });

    const second = await read(request, { "if-none-match": etag });
    expect([second.status, second.headers.get("etag"), await second.text()]).toEqual([304, etag, ""]);
    const third = await read(request, { "if-none-match": `"other", W/${etag}` });
    expect([third.status, await third.text()]).toEqual([304, ""]);

    await post("Execute", { database: "web", statement: { sql: "INSERT INTO t VALUES (3)" } });
    const fourth = await read(request, { "if-none-match": etag });
    expect(fourth.status).toBe(200);
    expect(fourth.headers.get("etag")).not.toBe(etag);
    expect(await fourth.json()).toMatchObject({ result: { rowBatch: { rows: [{ values: [{ integer: "3" }] }] } } });
  });

  it("may be kept by the caller's cache when it names a position, and not at all otherwise", async () => {
    const plain = await read(request);
    expect(plain.headers.get("cache-control")).toBe("private, no-store");
    const { position } = (await plain.json()) as { position: unknown };
    const positioned = await read({ ...request, minPosition: position });
    expect(positioned.headers.get("cache-control")).toBe("private, no-cache");
    expect(positioned.headers.get("vary")).toMatch(/accept-encoding/i);
    const again = await read(
      { ...request, minPosition: position },
      { "if-none-match": positioned.headers.get("etag") ?? "" },
    );
    expect(again.status).toBe(304);
  });

  it("runs the statement when the position asked for is not the ETag's", async () => {
    const first = await read(request);
    const etag = first.headers.get("etag") ?? "";
    const minPosition = { lineage: "0123456789abcdef", sequence: "1" };
    const other = await read({ ...request, minPosition }, { "if-none-match": etag });
    expect(other.status).toBe(400);
    expect(await other.json()).toMatchObject({ code: "failed_precondition" });
  });

  it("takes binary messages too", async () => {
    const message = toBinary(
      ReadRequestSchema,
      create(ReadRequestSchema, { database: "web", statement: statement("SELECT 7") }),
    );
    const query = new URLSearchParams({
      connect: "v1",
      encoding: "proto",
      base64: "1",
      message: Buffer.from(message).toString("base64url"),
    });
    const response = await fetch(url(`/persisto.v1.DatabaseService/Read?${query}`));
    const answer = fromBinary(ReadResponseSchema, new Uint8Array(await response.arrayBuffer()));
    expect(rowsOf(answer.result)).toEqual([[7n]]);
    expect(answer.position?.lineage).toMatch(/^[0-9a-f]{16}$/);
  });

  it("is refused for methods that change something, and for writes", async () => {
    const query = new URLSearchParams({ connect: "v1", encoding: "json", message: JSON.stringify(request) });
    expect((await fetch(url(`/persisto.v1.DatabaseService/Execute?${query}`))).status).toBe(405);
    const write = await read({ database: "web", statement: { sql: "DELETE FROM t" } });
    expect([write.status, await write.json()]).toMatchObject([400, { code: "invalid_argument" }]);
  });
});

describe("Transact over HTTP/1.1", () => {
  it.each(["application/connect+json", "application/connect+proto"])("is answered 505 (%s)", async (contentType) => {
    const response = await fetch(url("/persisto.v1.DatabaseService/Transact"), {
      method: "POST",
      headers: { "content-type": contentType },
      body: Buffer.alloc(5),
    });
    expect(response.status).toBe(505);
  });
});

describe("pages", () => {
  it("tell probes that the server lives and serves", async () => {
    for (const [path, body] of [
      ["/healthz", "ok\n"],
      ["/readyz", "serving\n"],
    ] as const) {
      const response = await fetch(url(path));
      expect([response.status, await response.text()]).toEqual([200, body]);
    }
  });

  it("show metrics by method and status, without names of databases", async () => {
    await post("GetDatabase", { database: "secret-name" });
    const response = await fetch(url("/metrics"));
    const text = await response.text();
    expect(response.headers.get("content-type")).toMatch(/^text\/plain/);
    expect(text).toMatch(/persisto_calls_total\{[^}]*method="GetDatabase"[^}]*code="NOT_FOUND"[^}]*\} 1/);
    expect(text).toMatch(/persisto_executors \d/);
    expect(text).not.toContain("secret-name");
  });

  it("greet a browser", async () => {
    const response = await fetch(url("/"));
    expect(response.headers.get("content-type")).toMatch(/^text\/html/);
    expect(await response.text()).toContain("grpcurl");
    expect((await fetch(url("/nothing"))).status).toBe(404);
  });
});

describe("the log", () => {
  it("has a line for a call with method, code, duration, database and request id, and no SQL", async () => {
    const requestId = crypto.randomUUID();
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    await post(
      "Execute",
      { database: "web", statement: { sql: "SELECT 'a secret', ?", parameters: [{ text: "another" }] }, requestId },
      { traceparent: `00-${traceId}-00f067aa0ba902b7-01` },
    );
    const line = testServer.logLines.find(({ facts }) => facts.requestId === requestId);
    expect(line).toMatchObject({
      level: "debug",
      facts: {
        method: "persisto.v1.DatabaseService/Execute",
        code: "OK",
        database: "web",
        durationMs: expect.any(Number),
        traceId,
      },
    });
    expect(JSON.stringify(testServer.logLines)).not.toMatch(/a secret|another/);
  });
});
