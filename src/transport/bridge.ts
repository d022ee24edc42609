/** Between HTTP and Connect's handlers: every call that the own path does not take. */
import type { IncomingHttpHeaders } from "node:http";
import { Code, ConnectError, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { Call, type CallInit } from "./call.ts";
import type { CallBook } from "./call-book.ts";
import { type Exchange, type HeaderFields, writeAll } from "./exchange.ts";
import { binaryTypeOf, decodeText, encodeText, isGrpcWebText, textTypeOf } from "./grpc-web-text.ts";
import { ignore } from "./ignore.ts";
import { codeOfAnswer, fieldsOf, grpcTrailers, trailersOf } from "./status.ts";
import { deadlineMsMaxOf, formatGrpcTimeout, parseConnectTimeout, parseGrpcTimeout } from "./timeouts.ts";
import { callKey, type RawCall } from "./transport.ts";

/** A call that Connect serves. */
class BridgedCall extends Call {
  readonly abort = new AbortController();
  readonly #exchange: Exchange;

  constructor(init: CallInit, exchange: Exchange) {
    super(init);
    this.#exchange = exchange;
  }

  /** The method's guard sees the end and Connect writes it; a reader that takes nothing is cut off. */
  protected answerEnd(error: ConnectError): void {
    this.abort.abort(error);
    this.#exchange.body.fail(error);
    if (this.stalledSinceMs !== undefined) this.abandon();
  }

  abandon(): void {
    this.#exchange.reset();
  }

  progress(): number {
    return this.#exchange.progress();
  }
}

/** Serves one call; never rejects. */
export async function serveByConnect(
  exchange: Exchange,
  handler: UniversalHandler,
  book: CallBook,
  deadlineMsMax: number,
): Promise<void> {
  const contentType = exchange.headers["content-type"] ?? "";
  const protocol = protocolOf(contentType);
  if (protocol === "grpc" && exchange.httpVersion === "1.1") return refuseGrpcOverHttp1(exchange);
  const url = `http://${exchange.authority}${exchange.path}`;
  if (!exchange.path.startsWith("/") || !URL.canParse(url)) {
    return exchange.respond(400, {}, { end: true, trailers: false });
  }

  const { method } = handler;
  const { connection, headers } = exchange;
  const isGet = exchange.method === "GET";
  const call = new BridgedCall({ book, method, protocol, isGet, headers, peer: connection.peer }, exchange);
  exchange.onClose((resetCode) => {
    call.requestBytes = exchange.body.bytes;
    call.closed(resetCode);
    if (call.ended !== undefined) call.abort.abort(call.ended);
  });
  if (isGet || method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming") {
    call.phase = "running";
  } else {
    exchange.body.onBytes = () => {
      try {
        call.holdRequest(exchange.body.bytes);
      } catch (error) {
        call.end(ConnectError.from(error));
      }
    };
    exchange.body.onEnd = () => {
      if (call.phase === "receiving") call.phase = "running";
    };
  }

  try {
    const header = headersOf(headers);
    setDeadline(call, header, protocol, deadlineMsMaxOf(method, deadlineMsMax));
    const text = isGrpcWebText(contentType);
    if (text) header.set("content-type", binaryTypeOf(contentType));
    const response = await handler({
      httpVersion: exchange.httpVersion,
      method: exchange.method,
      url,
      header,
      body: text ? decodeText(exchange.body) : exchange.body,
      signal: call.abort.signal,
      contextValues: createContextValues().set(callKey, call),
    });
    const last = await answer(exchange, call, response, text);
    call.requestBytes = exchange.body.bytes;
    finish(call, response, last);
  } catch (error) {
    giveUp(exchange, call, error);
  }
}

/** Returns the last piece of the body. */
async function answer(
  exchange: Exchange,
  call: BridgedCall,
  response: UniversalServerResponse,
  text: boolean,
): Promise<Uint8Array | undefined> {
  const iterator = response.body?.[Symbol.asyncIterator]();
  let last: Uint8Array | undefined;
  try {
    let piece = await iterator?.next();
    // The headers are read after the first pull: until then the method may set some.
    const fields = fieldsOf(response.header);
    call.takeFields();
    if (text && typeof fields["content-type"] === "string") fields["content-type"] = textTypeOf(fields["content-type"]);
    const { trailer } = response;
    if (piece === undefined || piece.done) {
      answerWithoutBody(exchange, call, response.status, fields, trailer);
      return last;
    }
    if (isNotModified(call, response.status, fields)) {
      delete fields["content-length"];
      delete fields["content-type"];
      call.phase = "sending";
      exchange.respond(304, fields, { end: true, trailers: false });
      return last;
    }
    exchange.respond(response.status, fields, { end: false, trailers: trailer !== undefined });
    while (piece !== undefined && !piece.done) {
      last = piece.value;
      const bytes = text ? encodeText(last) : last;
      call.responseBytes += bytes.length;
      if (!isStream(call)) call.holdAnswer(bytes.length);
      await writeAll(exchange, bytes, (waiting) => call.setStalled(waiting));
      piece = await iterator?.next();
    }
    call.phase = "sending";
    exchange.end(trailer === undefined ? undefined : trailersOf(trailer));
    return last;
  } catch (error) {
    iterator?.throw?.(error).then(undefined, ignore); // so that the method's clean-up runs
    throw error;
  } finally {
    iterator?.return?.().then(undefined, ignore);
  }
}

/** On gRPC an error without a message before it goes out as Trailers-Only: only then do clients retry it. */
function answerWithoutBody(
  exchange: Exchange,
  call: BridgedCall,
  status: number,
  fields: HeaderFields,
  trailer: Headers | undefined,
): void {
  call.phase = "sending";
  if (trailer === undefined) exchange.respond(status, fields, { end: true, trailers: false });
  else if (trailer.get("grpc-status") === "0" || (isStream(call) && hasOwnFields(call, fields))) {
    exchange.respond(status, fields, { end: false, trailers: true });
    exchange.end(trailersOf(trailer));
  } else exchange.respond(status, { ...fields, ...trailersOf(trailer) }, { end: true, trailers: false });
}

function isStream(call: Call): boolean {
  return call.method.methodKind === "server_streaming" || call.method.methodKind === "bidi_streaming";
}

const protocolFields = new Set(["content-type", "grpc-encoding", "grpc-accept-encoding"]);

/**
 * True when a typed method has set headers. On a stream its client may have been told to look for them before any message,
 * and not among the trailers.
 */
function hasOwnFields(call: Call, fields: HeaderFields): boolean {
  return Object.keys(fields).some((name) => !protocolFields.has(name) && call.fields?.[name] === undefined);
}

function finish(call: BridgedCall, response: UniversalServerResponse, last: Uint8Array | undefined): void {
  const inTrailer = response.trailer?.get("grpc-status");
  const onWire = inTrailer
    ? Number(inTrailer)
    : codeOfAnswer(response.status, response.header?.get("content-type") ?? "", last);
  call.code = call.code || onWire;
  call.finish(call.code);
}

/** The answer cannot be written: the client has left, or there is a defect. */
function giveUp(exchange: Exchange, call: BridgedCall, error: unknown): void {
  if (call.phase === "over") return;
  const status = call.failure(error);
  if (call.protocol === "grpc" && !call.answerBegun) {
    call.phase = "sending";
    const fields = { "content-type": "application/grpc+proto", ...grpcTrailers(status) };
    exchange.respond(200, fields, { end: true, trailers: false });
  } else if (!call.answerBegun) {
    call.phase = "sending";
    exchange.respond(500, {}, { end: true, trailers: false });
  } else exchange.reset();
  call.finish(status.code);
}

/** Connect knows deadlines that it refuses or that Node's timers cannot hold: it gets the one that counts. */
function setDeadline(call: Call, header: Headers, protocol: RawCall["protocol"], deadlineMsMax: number): void {
  const name = protocol === "connect" ? "connect-timeout-ms" : "grpc-timeout";
  const value = header.get(name) ?? undefined;
  if (value === undefined) return;
  try {
    const parse = protocol === "connect" ? parseConnectTimeout : parseGrpcTimeout;
    const wish = parse(value, deadlineMsMax);
    call.setDeadline(wish);
    if (wish?.clamped) header.set(name, protocol === "connect" ? String(wish.ms) : formatGrpcTimeout(wish.ms));
  } catch (error) {
    // Not a time at all: Connect refuses it in the protocol's own form.
    if (!(error instanceof ConnectError)) throw error;
  }
}

function isNotModified(call: Call, status: number, fields: HeaderFields): boolean {
  const asked = call.requestHeader("if-none-match");
  const { etag } = fields;
  if (call.notModified) return true;
  if (!call.isGet || status !== 200 || asked === undefined || typeof etag !== "string") return false;
  const plain = (tag: string) => tag.trim().replace(/^W\//, "");
  return asked.trim() === "*" || asked.split(",").some((tag) => plain(tag) === plain(etag));
}

export function protocolOf(contentType: string): RawCall["protocol"] {
  if (contentType.startsWith("application/grpc-web")) return "grpc-web";
  return contentType.startsWith("application/grpc") ? "grpc" : "connect";
}

/** HTTP/1.1 has no trailers that gRPC clients could read. */
function refuseGrpcOverHttp1(exchange: Exchange): void {
  exchange.respond(505, { "content-type": "text/plain", connection: "close" }, { end: false, trailers: false });
  exchange.write(Buffer.from("gRPC needs HTTP/2; over HTTP/1.1 use gRPC-Web or Connect\n"));
  exchange.end();
}

function headersOf(headers: IncomingHttpHeaders): Headers {
  const header = new Headers();
  for (const name of Object.keys(headers)) {
    if (name.startsWith(":")) continue;
    const value = headers[name];
    if (Array.isArray(value)) for (const one of value) header.append(name, one);
    else if (value !== undefined) header.set(name, value);
  }
  return header;
}

/** An answer for a method that does not exist, in the form of the caller's protocol. */
export function answerUnknownMethod(exchange: Exchange): void {
  const contentType = exchange.headers["content-type"] ?? "";
  const protocol = protocolOf(contentType);
  if (protocol === "grpc" && exchange.httpVersion === "1.1") {
    refuseGrpcOverHttp1(exchange);
    return;
  }
  const message = `${exchange.path.split("?", 1)[0]?.slice(0, 200)} is not a method of this server`;
  if (protocol === "connect") {
    exchange.respond(404, { "content-type": "application/json" }, { end: false, trailers: false });
    exchange.write(Buffer.from(JSON.stringify({ code: "unimplemented", message })));
    exchange.end();
  } else {
    const fields = grpcTrailers(new ConnectError(message, Code.Unimplemented));
    exchange.respond(200, { "content-type": contentType, ...fields }, { end: true, trailers: false });
  }
}
