/** Starts a transport: the port, the routes of a request, and the end of it all. */
import type { IncomingHttpHeaders } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import type { ConnectRouterOptions } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import { answerUnknownMethod, protocolOf, serveByConnect } from "./bridge.ts";
import { CallBook } from "./call-book.ts";
import { type Connection, goawayNoticeMs } from "./connection.ts";
import { Connections } from "./connections.ts";
import { Cors } from "./cors.ts";
import { type Exchange, Http1Exchange, Http2Exchange } from "./exchange.ts";
import { GrpcPath } from "./grpc.ts";
import { connectHandlers, gatherMethods } from "./methods.ts";
import { openPort } from "./port.ts";
import type { Transport, TransportOptions } from "./transport.ts";

/** Listens and serves; rejects when the port or the TLS files cannot be used. */
export async function startTransport(options: TransportOptions): Promise<Transport> {
  const { clock, limits, pages } = options;
  const book = new CallBook(options);
  const connections = new Connections(options);
  const cors = new Cors(options.corsOrigins);
  const methods = gatherMethods(options);
  const connectOptions: ConnectRouterOptions = {
    acceptCompression: [...(options.compressions ?? [compressionGzip])],
    compressMinBytes: limits.compressBytesMin,
    readMaxBytes: limits.readBytesMax,
    writeMaxBytes: limits.writeBytesMax,
    interceptors: [...(options.interceptors ?? [])],
    ...(options.jsonOptions === undefined ? {} : { jsonOptions: options.jsonOptions }),
  };
  const handlers = connectHandlers(methods, connectOptions);
  const grpc = options.ownPath ? new GrpcPath(methods, book, connectOptions, limits.deadlineMsMax) : undefined;

  const route = (exchange: Exchange): void => {
    const { connection, headers } = exchange;
    const path = exchange.path.split("?", 1)[0] ?? "";
    const handler = handlers.get(path);
    // Calls have their own limits. What else is answered is small: whoever does not read it is cut off.
    if (handler === undefined) exchange.onClose(clock.after(limits.writeTimeoutMs, () => exchange.reset()));
    if (cors.isPreflight(exchange.method, headers)) {
      exchange.respond(204, cors.preflight(headers), { end: true, trailers: false });
      return;
    }
    exchange.extraFields = cors.fields(headers);
    const page = pages.get(path);
    if (handler !== undefined) void serveByConnect(exchange, handler, book, limits.deadlineMsMax);
    else if (page !== undefined) void servePage(exchange, page, options);
    else {
      const protocol = protocolOf(headers["content-type"] ?? "");
      book.recordUnknown(path, protocol, first(headers.traceparent), connection.peer);
      answerUnknownMethod(exchange);
    }
  };

  const port = await openPort(options, connections, {
    onRequest(request, response, connection) {
      if (connection.exchanges >= limits.streamsPerConnectionMax) {
        request.socket.destroy(); // a pipeline without end
        return;
      }
      connection.opened();
      response.once("close", () => connection.closed());
      route(new Http1Exchange(request, response, connection));
    },
    onStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, connection: Connection) {
      connection.opened();
      if (grpc?.accept(stream, headers, connection)) return;
      stream.once("close", () => connection.closed());
      route(new Http2Exchange(stream, headers, connection));
    },
  }).catch((error: unknown) => {
    connections.close();
    throw error;
  });

  return {
    port: port.number,
    get connections() {
      return connections.size;
    },
    get callsActive() {
      return book.active;
    },
    get bytesHeld() {
      return book.bytesHeld;
    },
    async drain({ callsMs, socketsMs, endCalls }) {
      const startMs = clock.now();
      const left = (ms: number) => startMs + ms - clock.now();
      port.stopListening();
      connections.each((connection) => connection.announceEnd());
      if (!(await connections.empty(Math.min(goawayNoticeMs, left(callsMs))))) {
        connections.each((connection) => connection.endWhenQuiet());
        if (!(await connections.empty(left(callsMs)))) {
          book.endAll(endCalls);
          await connections.empty(left(socketsMs));
        }
      }
      connections.close();
      book.close();
    },
    async close() {
      port.stopListening();
      connections.close();
      await connections.empty(limits.readTimeoutMs);
      book.close();
    },
  };
}

type Page = TransportOptions["pages"] extends ReadonlyMap<string, infer P> ? P : never;

async function servePage(exchange: Exchange, page: Page, options: TransportOptions): Promise<void> {
  if (exchange.method !== "GET" && exchange.method !== "HEAD") {
    exchange.respond(405, { allow: "GET, HEAD" }, { end: true, trailers: false });
    return;
  }
  try {
    const { status, contentType, body } = await page();
    const bytes = Buffer.from(body);
    const fields = { "content-type": contentType, "content-length": String(bytes.length), "cache-control": "no-store" };
    const isHead = exchange.method === "HEAD";
    exchange.respond(status, fields, { end: isHead, trailers: false });
    if (isHead) return;
    exchange.write(bytes);
    exchange.end();
  } catch (error) {
    options.onProblem?.(`the page ${exchange.path} failed`, error);
    exchange.respond(500, {}, { end: true, trailers: false });
  }
}

function first(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value;
}
