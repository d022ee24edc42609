/** One listening port: tells HTTP/1.1, h2c and TLS apart by their first bytes and hands each socket to its server. */
import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttp2Server, type IncomingHttpHeaders, type ServerHttp2Stream } from "node:http2";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from "node:tls";
import { Certificates } from "./certificates.ts";
import type { Connection } from "./connection.ts";
import type { Connections } from "./connections.ts";
import { ignore } from "./ignore.ts";
import { replaceStreamTable } from "./stream-table.ts";
import type { TransportOptions } from "./transport.ts";

export interface PortHandlers {
  readonly onRequest: (request: IncomingMessage, response: ServerResponse, connection: Connection) => void;
  readonly onStream: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, connection: Connection) => void;
}

export interface Port {
  readonly number: number;
  /** Takes no new connections. */
  stopListening(): void;
}

/** Per stream: what a client may have under way before it is told that more was read. */
const streamWindowBytes = 1024 * 1024;
/** The same for all streams of a connection. */
const connectionWindowBytes = 8 * 1024 * 1024;
/** Answers and headers that wait in one session; beyond it new streams are refused. */
const sessionMemoryMaxMiB = 64;
const tlsRecordHandshake = 0x16;
const http2Preface = "PRI";

export async function openPort(
  options: TransportOptions,
  connections: Connections,
  handlers: PortHandlers,
): Promise<Port> {
  const { limits } = options;
  const http1 = createHttp1Server({
    maxHeaderSize: limits.headerBytesMax,
    keepAliveTimeout: 0, // connections time their own silence
    requestTimeout: 0,
    headersTimeout: 0,
  });
  http1.on("request", (request: IncomingMessage, response: ServerResponse) => {
    const connection = connections.of(request.socket);
    if (connection === undefined) request.socket.destroy();
    else handlers.onRequest(request, response, connection);
  });

  const http2 = createHttp2Server({
    settings: {
      initialWindowSize: streamWindowBytes,
      maxConcurrentStreams: limits.streamsPerConnectionMax,
      maxHeaderListSize: limits.headerBytesMax,
    },
    maxSessionMemory: sessionMemoryMaxMiB,
    streamResetBurst: limits.streamResetBurst,
    streamResetRate: limits.streamResetRate,
  });
  http2.on("sessionError", ignore); // the session's streams are told, and its socket closes

  let arriving: { readonly socket: Socket; readonly connection: Connection } | undefined;
  http2.on("session", (session) => {
    if (arriving === undefined) return;
    const { socket, connection } = arriving;
    replaceStreamTable(session);
    connection.startHttp2(session, socket);
    session.setLocalWindowSize(connectionWindowBytes);
    session.on("stream", (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) =>
      handlers.onStream(stream, headers, connection),
    );
  });
  const startHttp2 = (socket: Socket, connection: Connection) => {
    arriving = { socket, connection };
    try {
      http2.emit("connection", socket); // emits "session" before it returns
    } finally {
      arriving = undefined;
    }
  };
  const startHttp1 = (socket: Socket, connection: Connection, bytesBefore: number) => {
    connection.startHttp1(bytesBefore);
    http1.emit("connection", socket);
  };

  const secure =
    options.tls === undefined
      ? undefined
      : await openTls(options, options.tls, (socket) => {
          const connection = connections.of(socket);
          if (connection === undefined) socket.destroy();
          else if (socket.alpnProtocol === "h2") startHttp2(socket, connection);
          else startHttp1(socket, connection, connection.bytesRead);
        });

  // On HTTP/1.1 nothing but TCP tells that a peer has vanished while it waits for an answer.
  const keepAlive = limits.pingIntervalMs > 0 ? { keepAlive: true, keepAliveInitialDelay: limits.pingIntervalMs } : {};
  const server = createServer({ noDelay: true, ...keepAlive }, (socket) => {
    const connection = connections.accept(socket);
    socket.on("error", () => socket.destroy());
    if (connection === undefined) {
      socket.destroy();
      return;
    }
    readFirstBytes(socket, (bytes) => {
      if (bytes[0] === tlsRecordHandshake || secure !== undefined) {
        if (secure === undefined || bytes[0] !== tlsRecordHandshake) socket.destroy();
        else secure.server.emit("connection", socket);
      } else if (bytes.toString("latin1", 0, http2Preface.length) === http2Preface) startHttp2(socket, connection);
      else {
        startHttp1(socket, connection, 0);
        socket.resume(); // the others take the handle over
      }
    });
  });
  try {
    await listen(server, options.host, options.port);
  } catch (error) {
    secure?.certificates.close();
    throw error;
  }
  // No descriptors left, say: the listening goes on, and so must the process.
  server.on("error", (error) => options.onProblem?.("a connection could not be accepted", error));
  return {
    number: (server.address() as AddressInfo).port,
    stopListening() {
      server.close();
      secure?.certificates.close();
    },
  };
}

/** Waits for enough bytes to tell the protocols apart, and puts them back. */
function readFirstBytes(socket: Socket, decide: (bytes: Buffer) => void): void {
  let seen: Buffer = Buffer.alloc(0);
  const onData = (bytes: Buffer) => {
    seen = seen.length === 0 ? bytes : Buffer.concat([seen, bytes]);
    const start = seen.toString("latin1", 0, http2Preface.length);
    if (start.length < http2Preface.length && http2Preface.startsWith(start)) return;
    socket.off("data", onData);
    socket.pause();
    socket.unshift(seen);
    decide(seen);
  };
  socket.on("data", onData);
}

async function openTls(
  options: TransportOptions,
  files: NonNullable<TransportOptions["tls"]>,
  onSocket: (socket: TLSSocket) => void,
): Promise<{ server: TlsServer; certificates: Certificates }> {
  const certificates = await Certificates.open(files, options.clock, options.onProblem);
  const server = createTlsServer({
    ...certificates.current,
    ALPNProtocols: ["h2", "http/1.1"],
    minVersion: "TLSv1.2",
    handshakeTimeout: options.limits.readTimeoutMs,
    ...(files.clientCaPath === undefined ? {} : { requestCert: true, rejectUnauthorized: true }),
  });
  certificates.onChange = (contents) => server.setSecureContext(contents);
  server.on("secureConnection", onSocket);
  server.on("tlsClientError", (_error, socket) => socket.destroy());
  return { server, certificates };
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => {
      server.off("error", reject);
      resolve();
    });
  });
}
