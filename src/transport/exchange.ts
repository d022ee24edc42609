/** One HTTP request and its answer, the same over HTTP/1.1 and HTTP/2. */
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import type { Writable } from "node:stream";
import type { Connection } from "./connection.ts";
import { ignore } from "./ignore.ts";
import { RequestBody } from "./request-body.ts";
import { leftError } from "./status.ts";

/** Header names in lower case, and values. */
export type HeaderFields = Record<string, string | string[]>;

/** Writes above this many bytes are cut, so that a reader's progress shows. */
export const writeBytesMax = 65_536;

export interface RespondOptions {
  /** No body and no trailers follow. */
  readonly end: boolean;
  /** `end` will be given trailers. HTTP/2 only. */
  readonly trailers: boolean;
}

export interface Exchange {
  readonly httpVersion: "1.1" | "2.0";
  readonly method: string;
  /** With its query. */
  readonly path: string;
  readonly authority: string;
  readonly headers: IncomingHttpHeaders;
  readonly connection: Connection;
  readonly body: RequestBody;
  /** Added to the answer's headers, whatever it is. */
  extraFields: HeaderFields | undefined;
  respond(status: number, fields: HeaderFields, options: RespondOptions): void;
  /** False: wait for `drained` before the next one. */
  write(bytes: Uint8Array): boolean;
  /** Rejects when the client has left. */
  drained(): Promise<void>;
  /** Ends the answer and lets go of what the client still sends. */
  end(trailers?: HeaderFields): void;
  reset(): void;
  /** Grows while the reader takes something; constant where that cannot be seen. */
  progress(): number;
  /** The answer has gone out, or the client has left. Called once. */
  onClose(listener: (resetCode: number | undefined) => void): void;
}

function merged(fields: HeaderFields, extra: HeaderFields | undefined): HeaderFields {
  if (extra === undefined) return fields;
  const all = { ...fields, ...extra };
  if (fields.vary !== undefined && extra.vary !== undefined) all.vary = `${fields.vary}, ${extra.vary}`;
  return all;
}

export class Http2Exchange implements Exchange {
  readonly httpVersion = "2.0";
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  readonly headers: IncomingHttpHeaders;
  readonly connection: Connection;
  readonly body: RequestBody;
  extraFields: HeaderFields | undefined = undefined;
  readonly #stream: ServerHttp2Stream;
  #trailers: HeaderFields | undefined = undefined;

  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, connection: Connection) {
    this.#stream = stream;
    this.headers = headers;
    this.connection = connection;
    this.method = String(headers[":method"] ?? "");
    this.path = String(headers[":path"] ?? "");
    this.authority = String(headers[":authority"] ?? headers.host ?? "localhost");
    this.body = new RequestBody(stream);
    stream.on("error", ignore); // "close" follows and tells the rest
  }

  respond(status: number, fields: HeaderFields, options: RespondOptions): void {
    if (this.#gone) return;
    const all = { ":status": status, ...merged(fields, this.extraFields) };
    this.#stream.respond(all, { endStream: options.end, waitForTrailers: options.trailers });
    if (options.trailers) this.#stream.once("wantTrailers", () => this.#sendTrailers());
    if (options.end) this.#release();
  }

  write(bytes: Uint8Array): boolean {
    return this.#gone || this.#stream.write(bytes);
  }

  drained(): Promise<void> {
    return drainOf(this.#stream, () => this.#stream.rstCode);
  }

  end(trailers?: HeaderFields): void {
    if (this.#gone) return;
    this.#trailers = trailers;
    this.#stream.end();
    if (trailers === undefined) this.#stream.once("finish", () => this.#release());
  }

  reset(): void {
    cancelStream(this.#stream);
  }

  progress(): number {
    return 0;
  }

  onClose(listener: (resetCode: number | undefined) => void): void {
    this.#stream.once("close", () => listener(this.#stream.rstCode));
  }

  get #gone(): boolean {
    return this.#stream.destroyed || this.#stream.closed;
  }

  #sendTrailers(): void {
    if (this.#gone) return;
    try {
      this.#stream.sendTrailers(this.#trailers ?? {});
      this.#release();
    } catch {
      this.#stream.close(constants.NGHTTP2_INTERNAL_ERROR); // fields that HTTP/2 does not allow
    }
  }

  #release(): void {
    this.body.stop();
    releaseStream(this.#stream);
  }
}

/**
 * After a complete answer to a request that was not read to its end: RST_STREAM with NO_ERROR (RFC 9113, 8.1). Without
 * it a client that waits for flow control on this stream waits for good.
 */
export function releaseStream(stream: ServerHttp2Stream): void {
  if (stream.readableEnded || stream.destroyed) return;
  setImmediate(() => {
    if (stream.destroyed || stream.readableEnded) return;
    stream.close(constants.NGHTTP2_NO_ERROR);
    stream.resume(); // Node keeps it until what has arrived is read
  });
}

/** Ends the stream without an answer, or what is left of one that is closed and not gone. */
export function cancelStream(stream: ServerHttp2Stream): void {
  if (stream.closed) stream.destroy();
  else stream.close(constants.NGHTTP2_CANCEL);
}

/** How much of an unwanted body is read before the connection is given up. */
const discardBytesMax = 4 * 1024 * 1024;

export class Http1Exchange implements Exchange {
  readonly httpVersion = "1.1";
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  readonly headers: IncomingHttpHeaders;
  readonly connection: Connection;
  readonly body: RequestBody;
  extraFields: HeaderFields | undefined = undefined;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;

  constructor(request: IncomingMessage, response: ServerResponse, connection: Connection) {
    this.#request = request;
    this.#response = response;
    this.headers = request.headers;
    this.connection = connection;
    this.method = request.method ?? "";
    this.path = request.url ?? "";
    this.authority = request.headers.host ?? "localhost";
    this.body = new RequestBody(request);
    request.on("error", ignore); // the response's "close" tells the rest
    response.on("error", ignore);
  }

  respond(status: number, fields: HeaderFields, options: RespondOptions): void {
    if (this.#gone) return;
    const closing = this.connection.draining ? { connection: "close" } : undefined;
    this.#response.writeHead(status, { ...merged(fields, this.extraFields), ...closing });
    if (options.end) this.end(); // else the headers leave together with the first bytes of the body
  }

  write(bytes: Uint8Array): boolean {
    return this.#gone || this.#response.write(bytes);
  }

  drained(): Promise<void> {
    return drainOf(this.#response, () => undefined);
  }

  end(): void {
    if (this.#gone) return;
    this.#response.end();
    if (!this.#request.readableEnded) this.#discardRest();
  }

  reset(): void {
    this.#request.socket.destroy();
  }

  progress(): number {
    return this.#request.socket.bytesWritten;
  }

  onClose(listener: (resetCode: number | undefined) => void): void {
    this.#response.once("close", () => listener(undefined));
  }

  get #gone(): boolean {
    return this.#response.destroyed || this.#response.writableEnded;
  }

  /** The next request of the connection is read only after the rest of this one. */
  #discardRest(): void {
    this.body.stop();
    let bytes = 0;
    this.#request.on("data", (chunk: Uint8Array) => {
      bytes += chunk.length;
      if (bytes > discardBytesMax) this.#request.socket.destroy();
    });
    this.#request.resume();
  }
}

function drainOf(answer: Writable, resetCode: () => number | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      answer.off("drain", settle);
      answer.off("close", settle);
      if (answer.destroyed) reject(leftError(resetCode()));
      else resolve();
    };
    answer.once("drain", settle);
    answer.once("close", settle);
    if (answer.destroyed) settle();
  });
}

/** Writes a whole message at the reader's pace; `onWait` is told when it waits, and when no longer. */
export async function writeAll(
  exchange: Exchange,
  bytes: Uint8Array,
  onWait: (waiting: boolean) => void,
): Promise<void> {
  for (let offset = 0; offset < bytes.length; offset += writeBytesMax) {
    if (exchange.write(bytes.subarray(offset, offset + writeBytesMax))) continue;
    onWait(true);
    await exchange.drained();
    onWait(false);
  }
}
