import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { createGrpcJsTransport } from "../support/grpc-js-transport.ts";
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
  type TestTransport,
} from "./support.ts";

const retryConfig = JSON.stringify({
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.01s",
        maxBackoff: "0.05s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
});

/** Fails as many times as told, then lets go. */
function failing(times: number) {
  let attempts = 0;
  return {
    attempt() {
      attempts++;
      if (attempts <= times) throw new ConnectError("try again", Code.Unavailable);
    },
    get attempts() {
      return attempts;
    },
  };
}

describe.each([true, false])("retries by clients, own path %s", (ownPath) => {
  async function withRetries(
    methods: Parameters<typeof startTestTransport>[0],
    run: (client: ReturnType<typeof createClient<typeof DatabaseService>>, server: TestTransport) => Promise<void>,
  ) {
    const server = await startTestTransport({ ownPath, ...methods });
    const transport = createGrpcJsTransport(`127.0.0.1:${server.port}`, { "grpc.service_config": retryConfig });
    try {
      await run(createClient(DatabaseService, transport), server);
    } finally {
      transport.close();
      await server.close();
    }
  }

  it("raw unary calls that are UNAVAILABLE are repeated and succeed", async () => {
    const failure = failing(2);
    const execute = async () => {
      failure.attempt();
      return {};
    };
    await withRetries({ methods: { execute } }, async (client) => {
      await client.execute({});
      expect(failure.attempts).toBe(3);
    });
  });

  it("typed unary calls that are UNAVAILABLE are repeated and succeed", async () => {
    const failure = failing(2);
    const getDatabase = () => {
      failure.attempt();
      return {};
    };
    await withRetries({ methods: { typed: { getDatabase } } }, async (client) => {
      await client.getDatabase({});
      expect(failure.attempts).toBe(3);
    });
  });

  it("raw server streams that fail before their first message are repeated and succeed", async () => {
    const failure = failing(2);
    async function* query() {
      failure.attempt();
      yield { message: { case: "summary" as const, value: { rowCount: 7n } } };
    }
    await withRetries({ methods: { query } }, async (client) => {
      const rowCounts: unknown[] = [];
      for await (const { message } of client.query({})) rowCounts.push(message.value);
      expect(rowCounts).toMatchObject([{ rowCount: 7n }]);
      expect(failure.attempts).toBe(3);
    });
  });

  it("typed server streams that fail before their first message are repeated and succeed", async () => {
    const failure = failing(2);
    async function* watchDatabase() {
      failure.attempt();
      yield { resumeToken: Buffer.from("t") };
    }
    await withRetries({ methods: { typed: { watchDatabase } } }, async (client) => {
      const tokens: string[] = [];
      for await (const { resumeToken } of client.watchDatabase({})) tokens.push(Buffer.from(resumeToken).toString());
      expect(tokens).toEqual(["t"]);
      expect(failure.attempts).toBe(3);
    });
  });

  it("streams that have sent a message are not repeated", async () => {
    const failure = failing(1);
    async function* query() {
      yield { message: { case: "summary" as const, value: { rowCount: 7n } } };
      failure.attempt();
    }
    await withRetries({ methods: { query } }, async (client) => {
      const read = async () => {
        for await (const _ of client.query({}));
      };
      await expect(read()).rejects.toMatchObject({ code: Code.Unavailable });
      expect(failure.attempts).toBe(1);
    });
  });

  it("errors are one HEADERS frame with details without padding", async () => {
    const error = new ConnectError("né: 100%", Code.NotFound, undefined, [
      { desc: ErrorInfoSchema, value: { reason: "B" } },
    ]);
    const fail = () => {
      throw error;
    };
    const server = await startTestTransport({
      ownPath,
      methods: {
        execute: async () => fail(),
        // biome-ignore lint/correctness/useYield: it fails first
        query: async function* () {
          fail();
        },
        typed: { getDatabase: fail },
      },
    });
    const session = await rawHttp2(server.baseUrl);
    for (const [path, body] of [
      [executePath, executeBytes()],
      [queryPath, queryBytes()],
      [getDatabasePath, new Uint8Array()],
    ] as const) {
      const answer = await rawGrpc(session, path, envelope(body));
      expect(answer.headerFrames).toBe(1);
      expect(answer.body).toHaveLength(0);
      expect(answer.headers).toMatchObject({ ":status": 200, "grpc-status": "5", "grpc-message": "n%C3%A9: 100%25" });
      expect(answer.headers["content-type"]).toMatch(/^application\/grpc/);
      expect(answer.headers["grpc-status-details-bin"]).toMatch(/^[A-Za-z0-9+/]+$/);
    }
    session.close();
    await server.close();
  });
});
