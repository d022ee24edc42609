import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { fileURLToPath } from "node:url";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import {
  envelope,
  executeBytes,
  executePath,
  rawGrpc,
  rawHttp2,
  rawSocket,
  readToEnd,
  startTestTransport,
} from "./support.ts";

const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/tls/${name}`, import.meta.url));
const pem = (name: string) => readFileSync(fixture(name));
const ca = pem("ca.pem");

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "persisto-tls-"));
  copyFileSync(fixture("server.pem"), join(folder, "cert.pem"));
  copyFileSync(fixture("server.key"), join(folder, "key.pem"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function files(clientCaPath?: string) {
  return { certificatePath: join(folder, "cert.pem"), keyPath: join(folder, "key.pem"), clientCaPath };
}

function handshake(port: number): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = connectTls({ port, host: "127.0.0.1", servername: "localhost", ca });
    socket.once("secureConnect", () => resolve(socket));
    socket.once("error", reject);
  });
}

describe("TLS", () => {
  it("serves HTTP/2 and HTTP/1.1 by ALPN, every protocol in one process", async () => {
    const server = await startTestTransport({ tls: files() });
    const nodeOptions = { ca };
    const { baseUrl } = server;
    const http2 = { baseUrl, httpVersion: "2", nodeOptions } as const;
    const http1 = { baseUrl, httpVersion: "1.1", nodeOptions } as const;
    for (const transport of [
      createGrpcTransport(http2),
      createGrpcWebTransport(http2),
      createGrpcWebTransport(http1),
      createConnectTransport(http2),
      createConnectTransport(http1),
    ]) {
      const answer = await createClient(DatabaseService, transport).execute({ database: "tls" });
      expect(answer.position?.lineage).toBe("tls");
    }
    await server.close();
  });

  it("does not speak plain text on the same port", async () => {
    const server = await startTestTransport({ tls: files() });
    const socket = await rawSocket(server.port);
    socket.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    expect(await readToEnd(socket)).toHaveLength(0);
    await server.close();
  });

  it("the handshake is no request that takes long to arrive", async () => {
    const server = await startTestTransport({ tls: files(), limits: { readTimeoutMs: 200, idleTimeoutMs: 1_000 } });
    const socket = await handshake(server.port);
    const startMs = performance.now();
    await new Promise((resolve) => socket.once("close", resolve).resume());
    expect(performance.now() - startMs).toBeGreaterThan(900);
    await server.close();
  });

  it("refuses clients without a certificate of the authority, over every version of HTTP", async () => {
    const server = await startTestTransport({ tls: files(fixture("ca.pem")) });
    const certificate = (name: string) => ({ cert: pem(`${name}.pem`), key: pem(`${name}.key`) });

    const session = await rawHttp2(server.baseUrl, { ca, ...certificate("client") });
    const answer = await rawGrpc(session, executePath, envelope(executeBytes()));
    expect(answer.trailers["grpc-status"]).toBe("0");
    session.close();

    for (const wrong of [{}, certificate("other-client")]) {
      for (const ALPNProtocols of [["h2"], ["http/1.1"], undefined]) {
        const options = { port: server.port, host: "127.0.0.1", servername: "localhost", ca, ...wrong };
        const socket = connectTls({ ...options, ...(ALPNProtocols && { ALPNProtocols }) }).resume();
        socket.on("error", () => undefined);
        // In TLS 1.3 the client takes the handshake for done before the server has seen its certificate.
        socket.once("secureConnect", () => socket.write(`GET ${executePath} HTTP/1.1\r\nhost: x\r\n\r\n`));
        expect(await readToEnd(socket)).toHaveLength(0);
      }
    }
    expect(server.records).toHaveLength(1);
    await expect.poll(() => server.connections).toBe(0);
    await server.close();
  });

  it("takes a renewed certificate without a restart, and keeps the old one while the files do not fit together", async () => {
    const problems: string[] = [];
    const server = await startTestTransport({ tls: files(), onProblem: (message) => problems.push(message) });
    const serial = async () => {
      const socket = await handshake(server.port);
      const { serialNumber } = socket.getPeerCertificate();
      socket.destroy();
      return serialNumber;
    };
    const before = await serial();
    const kept = await rawHttp2(server.baseUrl, { ca });

    copyFileSync(fixture("server-renewed.pem"), join(folder, "cert.pem"));
    await expect.poll(() => problems.length, { timeout: 5_000 }).toBe(1);
    expect(await serial()).toBe(before);

    copyFileSync(fixture("server-renewed.key"), join(folder, "key.pem"));
    await expect.poll(serial, { timeout: 5_000 }).not.toBe(before);
    expect((await rawGrpc(kept, executePath, envelope(executeBytes()))).trailers["grpc-status"]).toBe("0");
    kept.close();
    await server.close();
  });

  it("does not start with files that cannot be used", async () => {
    copyFileSync(fixture("server-renewed.key"), join(folder, "key.pem"));
    await expect(startTestTransport({ tls: files() })).rejects.toThrow(/cannot be used together/);
    await expect(startTestTransport({ tls: files(join(folder, "missing.pem")) })).rejects.toThrow(/missing\.pem/);
  });
});
