import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Code, ConnectError } from "@connectrpc/connect";
import { build } from "esbuild";
import { type Browser, chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import type { Outcome } from "./browser-client.ts";
import { integer, startTestTransport, type TestTransport } from "./support.ts";

const executablePath = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";
const flags = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

if (!existsSync(executablePath)) console.warn(`skipped, no browser: ${executablePath} is missing (Debian: chromium)`);

describe.skipIf(!existsSync(executablePath))("a page of another origin in Chromium", () => {
  let browser: Browser;
  let site: TestTransport;
  let api: TestTransport;

  beforeAll(async () => {
    const bundle = await build({
      entryPoints: [fileURLToPath(new URL("browser-client.ts", import.meta.url))],
      bundle: true,
      write: false,
      format: "iife",
      platform: "browser",
    });
    const script = bundle.outputFiles[0]?.text ?? "";
    site = await startTestTransport({
      pages: new Map([
        ["/", async () => ({ status: 200, contentType: "text/html", body: "<script src=client.js></script>" })],
        ["/client.js", async () => ({ status: 200, contentType: "text/javascript", body: script })],
      ]),
    });
    api = await startTestTransport({
      corsOrigins: [site.baseUrl],
      methods: {
        async execute({ database }) {
          if (database !== "fails") return { position: { lineage: database } };
          const details = [{ desc: ErrorInfoSchema, value: { reason: "BECAUSE" } }];
          throw new ConnectError("told to", Code.FailedPrecondition, undefined, details);
        },
        async *query({ maxChunkRows }) {
          for (let row = 0; row < maxChunkRows; row++) {
            yield { message: { case: "rowBatch" as const, value: { rows: [{ values: [integer(row)] }] } } };
            await new Promise((resolve) => setTimeout(resolve, 100));
          }
        },
      },
    });
    browser = await chromium.launch({ executablePath, args: flags });
  }, 60_000);
  afterAll(async () => {
    await browser?.close();
    await Promise.all([site?.close(), api?.close()]);
  });

  async function run(expression: string): Promise<Outcome> {
    const page = await browser.newPage();
    try {
      await page.goto(`${site.baseUrl}/`);
      return (await page.evaluate(expression)) as Outcome;
    } finally {
      await page.close();
    }
  }

  const expected: Outcome = {
    database: "browser",
    rows: 5,
    firstRowBeforeEnd: true,
    errorCode: Code.FailedPrecondition,
    errorDetails: 1,
  };

  it("calls and reads a stream with connect-web, by Connect", async () => {
    expect(await run(`byConnectWeb("${api.baseUrl}", "connect")`)).toEqual(expected);
  });

  it("calls and reads a stream with connect-web, by gRPC-Web", async () => {
    expect(await run(`byConnectWeb("${api.baseUrl}", "grpc-web")`)).toEqual(expected);
  });

  it("calls and reads a stream with the classic grpc-web client", async () => {
    expect(await run(`byGrpcWeb("${api.baseUrl}")`)).toEqual(expected);
  });

  it("is kept out when its origin is not listed", async () => {
    const closed = await startTestTransport({ corsOrigins: ["https://other.example"] });
    await expect(run(`byConnectWeb("${closed.baseUrl}", "connect")`)).rejects.toThrow(/fetch/i);
    expect(closed.records).toHaveLength(0);
    await closed.close();
  });
});
