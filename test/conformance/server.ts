/**
 * The server under test: reads what the suite's runner asks for from standard input, starts the transport, and answers
 * with its address. Each message has its length in four bytes before it.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { compressionBrotli, compressionGzip } from "@connectrpc/connect-node";
import {
  type ServerCompatRequest,
  ServerCompatRequestSchema,
  ServerCompatResponseSchema,
} from "../../build/conformance/gen/connectrpc/conformance/v1/server_compat_pb.js";
import { ConformanceService } from "../../build/conformance/gen/connectrpc/conformance/v1/service_pb.js";
import { systemClock } from "../../src/clock.ts";
import { startTransport } from "../../src/transport/server.ts";
import type { TlsOptions, Transport } from "../../src/transport/transport.ts";
import { testLimits } from "../transport/support.ts";
import { conformanceService, registry } from "./service.ts";

const host = "127.0.0.1";

async function readRequest(): Promise<ServerCompatRequest> {
  let bytes = Buffer.alloc(0);
  for await (const chunk of process.stdin) {
    bytes = Buffer.concat([bytes, chunk as Buffer]);
    if (bytes.length < 4) continue;
    const end = 4 + bytes.readUInt32BE(0);
    if (bytes.length >= end) return fromBinary(ServerCompatRequestSchema, bytes.subarray(4, end));
  }
  throw new Error("the input ended before a whole ServerCompatRequest");
}

/** The credentials as files, as the transport wants them. */
function writeTlsFiles(request: ServerCompatRequest, folder: string): TlsOptions | undefined {
  if (!request.useTls) return undefined;
  if (request.serverCreds === undefined) throw new Error("TLS asked for, without a certificate");
  const write = (name: string, pem: Uint8Array): string => {
    const path = join(folder, name);
    writeFileSync(path, pem);
    return path;
  };
  return {
    certificatePath: write("cert.pem", request.serverCreds.cert),
    keyPath: write("key.pem", request.serverCreds.key),
    clientCaPath: request.clientTlsCert.length > 0 ? write("client.pem", request.clientTlsCert) : undefined,
  };
}

function start(request: ServerCompatRequest, folder: string): Promise<Transport> {
  return startTransport({
    host,
    port: 0,
    routes: (router) => router.service(ConformanceService, conformanceService),
    services: [],
    rawMethods: [],
    toConnectError: (error) => ConnectError.from(error),
    pages: new Map(),
    onCallEnd: undefined,
    ownPath: process.env.OWN_PATH !== "off",
    tls: writeTlsFiles(request, folder),
    corsOrigins: [],
    limits: {
      ...testLimits,
      ...(request.messageReceiveLimit > 0 ? { readBytesMax: request.messageReceiveLimit } : {}),
      compressBytesMin: 1_024,
    },
    jsonOptions: { registry },
    compressions: [compressionGzip, compressionBrotli],
    clock: systemClock,
    random: Math.random,
  });
}

const folder = mkdtempSync(join(tmpdir(), "persisto-conformance-"));
const request = await readRequest();
const transport = await start(request, folder);
process.once("SIGTERM", () => {
  rmSync(folder, { recursive: true, force: true });
  transport.close().then(() => process.exit(0));
});
const response = toBinary(
  ServerCompatResponseSchema,
  create(ServerCompatResponseSchema, {
    host,
    port: transport.port,
    ...(request.serverCreds === undefined ? {} : { pemCert: request.serverCreds.cert }),
  }),
);
const frame = Buffer.alloc(4 + response.length);
frame.writeUInt32BE(response.length, 0);
frame.set(response, 4);
process.stdout.write(frame);
