import { type Client, type Transport as ClientTransport, Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { StageService } from "../../gen/persisto/v1/stage_service_pb.js";
import { createGrpcJsTransport } from "../support/grpc-js-transport.ts";
import { integer, startTestTransport, type TestTransport } from "./support.ts";

const withInfo = (message: string, code: Code) =>
  new ConnectError(message, code, { "x-more": "of the error" }, [
    { desc: ErrorInfoSchema, value: { domain: "test", reason: "BECAUSE", metadata: { key: "välue" } } },
  ]);

interface Kind {
  readonly name: string;
  readonly http2: boolean;
  open(baseUrl: string, sessions: Http2SessionManager): ClientTransport;
}

const json = { useBinaryFormat: false };
const kinds: readonly Kind[] = [
  {
    name: "grpc-js",
    http2: true,
    open: (baseUrl) => createGrpcJsTransport(new URL(baseUrl).host),
  },
  { name: "grpc", http2: true, open: (baseUrl, sessionManager) => createGrpcTransport({ baseUrl, sessionManager }) },
  {
    name: "grpc json",
    http2: true,
    open: (baseUrl, sessionManager) => createGrpcTransport({ baseUrl, sessionManager, ...json }),
  },
  ...([true, false] as const).flatMap((http2): Kind[] => {
    const version = http2 ? "h2" : "h1";
    const options = (baseUrl: string, sessionManager: Http2SessionManager) =>
      http2 ? ({ baseUrl, httpVersion: "2", sessionManager } as const) : ({ baseUrl, httpVersion: "1.1" } as const);
    return [
      { name: `grpc-web ${version}`, http2, open: (...a) => createGrpcWebTransport(options(...a)) },
      {
        name: `grpc-web json ${version}`,
        http2,
        open: (...a) => createGrpcWebTransport({ ...options(...a), ...json }),
      },
      { name: `connect ${version}`, http2, open: (...a) => createConnectTransport(options(...a)) },
      { name: `connect json ${version}`, http2, open: (...a) => createConnectTransport({ ...options(...a), ...json }) },
    ];
  }),
];

async function collect<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const message of messages) all.push(message);
  return all;
}

async function failure(work: Promise<unknown>): Promise<ConnectError> {
  return work.then(
    () => {
      throw new Error("it did not fail");
    },
    (error: unknown) => ConnectError.from(error),
  );
}

describe.each([true, false])("own path %s", (ownPath) => {
  let server: TestTransport;
  beforeAll(async () => {
    server = await startTestTransport({
      ownPath,
      services: [DatabaseService, StageService],
      methods: {
        async read(request) {
          if (request.database === "defect") throw new TypeError("secret");
          throw withInfo(`no such database: ${request.database} — \u{1F5C4}%\r\n`, Code.NotFound);
        },
        async *query(request) {
          for (let row = 0; row < request.maxChunkRows; row++) {
            yield { message: { case: "rowBatch" as const, value: { rows: [{ values: [integer(row)] }] } } };
          }
          if (request.database === "fails") throw withInfo("broke off", Code.Aborted);
        },
        typed: {
          deleteDatabase: () => {
            throw withInfo("typed", Code.FailedPrecondition);
          },
        },
      },
    });
  });
  afterAll(() => server.close());

  describe.each(kinds)("$name", (kind) => {
    let client: Client<typeof DatabaseService>;
    let stages: Client<typeof StageService>;
    let sessions: Http2SessionManager;
    let transport: ClientTransport;
    beforeAll(() => {
      sessions = new Http2SessionManager(server.baseUrl);
      transport = kind.open(server.baseUrl, sessions);
      client = createClient(DatabaseService, transport);
      stages = createClient(StageService, transport);
    });
    afterAll(() => {
      sessions.abort();
      if ("close" in transport) (transport as { close(): void }).close();
    });

    it("answers raw unary calls, 64-bit integers exact", async () => {
      const statement = { sql: "select 1", parameters: [integer(-9_007_199_254_740_993n)] };
      const answer = await client.execute({ database: "d", statement });
      expect(answer.result?.columns[0]?.name).toBe("select 1");
      expect(answer.result?.rowsAffected).toBe(-9_007_199_254_740_993n);
      expect(answer.position).toMatchObject({ lineage: "d", sequence: 9_007_199_254_740_993n });
    });

    it("answers typed unary calls with headers and trailers", async () => {
      let header = new Headers();
      let trailer = new Headers();
      const answer = await client.getDatabase(
        { database: "d" },
        {
          headers: { "x-test-plain": "one", "x-test-data-bin": "AAEC/w" },
          onHeader: (fields) => {
            header = fields;
          },
          onTrailer: (fields) => {
            trailer = fields;
          },
        },
      );
      expect(answer.database?.id).toBe("d");
      expect(header.get("x-test-plain")).toBe("one");
      expect(trailer.get("x-trailer-plain")).toBe("one");
      expect(header.get("x-test-data-bin")?.replace(/=+$/, "")).toBe("AAEC/w");
      expect(trailer.get("x-trailer-data-bin")?.replace(/=+$/, "")).toBe("AAEC/w");
    });

    it("carries large requests and answers", async () => {
      const sql = "x".repeat(300_000);
      const answer = await client.execute({ database: "d", statement: { sql } });
      expect(answer.result?.columns[0]?.name).toBe(sql);
    });

    it("carries empty messages", async () => {
      expect((await client.execute({})).result?.rowsAffected).toBe(0n);
      expect(await collect(client.query({}))).toEqual([]);
    });

    it("answers raw server streams", async () => {
      const messages = await collect(client.query({ maxChunkRows: 300 }));
      expect(messages).toHaveLength(300);
      expect(messages[299]?.message).toMatchObject({ case: "rowBatch", value: { rows: [{ values: [integer(299)] }] } });
    });

    it("answers typed server streams", async () => {
      const messages = await collect(client.watchDatabase({ tables: ["a", "b"] }));
      expect(messages.map(({ resumeToken }) => Buffer.from(resumeToken).toString())).toEqual(["a", "b"]);
    });

    it("takes client streams", async () => {
      if (kind.name === "grpc-js") return; // its adapter sends unary requests and answers only
      async function* upload() {
        for (let i = 0; i < 20; i++) yield { message: { case: "chunk" as const, value: new Uint8Array(10_000) } };
      }
      const answer = await client.uploadDatabase(upload());
      expect(answer.database?.sizeBytes).toBe(200_000n);
    });

    it("serves both directions at once on HTTP/2, and refuses it on HTTP/1.1", async () => {
      const seen: bigint[] = [];
      const next = { resolve: (): void => undefined };
      async function* commands() {
        for (const commandId of [1n, 2n, 3n]) {
          yield { commandId };
          await new Promise<void>((resolve) => {
            next.resolve = resolve;
            if (seen.includes(commandId)) resolve();
          });
        }
      }
      const talk = async () => {
        for await (const { commandId } of client.transact(commands())) {
          seen.push(commandId);
          next.resolve();
        }
      };
      if (kind.http2) {
        await talk();
        expect(seen).toEqual([1n, 2n, 3n]);
      } else expect((await failure(talk())).code).not.toBe(Code.Canceled);
    });

    it("carries errors with message, details and metadata", async () => {
      const error = await failure(client.read({ database: "x" }));
      expect(error.code).toBe(Code.NotFound);
      expect(error.rawMessage).toBe("no such database: x — \u{1F5C4}%\r\n");
      if (kind.name !== "grpc-js") expect(error.metadata.get("x-more")).toBe("of the error");
      expect(error.findDetails(ErrorInfoSchema)).toMatchObject([{ reason: "BECAUSE", metadata: { key: "välue" } }]);
      const typed = await failure(client.deleteDatabase({}));
      expect(typed.code).toBe(Code.FailedPrecondition);
      expect(typed.findDetails(ErrorInfoSchema)).toMatchObject([{ reason: "BECAUSE" }]);
    });

    it("hides what a defect says", async () => {
      const error = await failure(client.read({ database: "defect" }));
      expect(error.code).toBe(Code.Internal);
      expect(error.rawMessage).toBe("defect");
    });

    it("carries errors of streams, before and after messages", async () => {
      for (const maxChunkRows of [0, 3]) {
        const seen: unknown[] = [];
        const read = async () => {
          for await (const message of client.query({ database: "fails", maxChunkRows })) seen.push(message);
        };
        const error = await failure(read());
        expect(error.code).toBe(Code.Aborted);
        expect(error.findDetails(ErrorInfoSchema)).toMatchObject([{ reason: "BECAUSE" }]);
        expect(seen).toHaveLength(maxChunkRows);
      }
    });

    it("answers unimplemented for methods and services without an implementation", async () => {
      const method = await failure(client.createDatabase({}));
      expect(method.code).toBe(Code.Unimplemented);
      expect(method.rawMessage).toContain("CreateDatabase");
      expect((await failure(stages.listStages({}))).code).toBe(Code.Unimplemented);
    });

    it("records every call", async () => {
      const before = server.records.length;
      await client.execute({ database: `noted ${kind.name}` });
      const record = await server.recorded(({ notes }) => notes.database === `noted ${kind.name}`);
      expect(record).toMatchObject({ service: "persisto.v1.DatabaseService", method: "Execute", code: 0 });
      expect(record.protocol).toBe(kind.name.replace(/ .*/, "").replace("grpc-js", "grpc"));
      expect(record.requestBytes).toBeGreaterThan(0);
      expect(record.responseBytes).toBeGreaterThan(0);
      expect(record.peer).toMatch(/^127\.0\.0\.1:\d+$/);
      await failure(collect(client.query({ database: "fails", maxChunkRows: 2 })));
      await failure(client.createDatabase({}));
      await server.recorded((one) => server.records.indexOf(one) >= before && one.code === Code.Aborted);
      await server.recorded((one) => server.records.indexOf(one) >= before && one.code === Code.Unimplemented);
    });
  });

  it("leaves no call behind", async () => {
    await expect.poll(() => server.callsActive).toBe(0);
  });
});
