/**
 * A small HTTP/2 client for load generators: requests as prepared bytes, answers as frames, no streams or headers as
 * objects, so that it costs a fraction of the servers it loads. It asks the server for header blocks without a dynamic
 * table: the trailers of equal answers are then equal bytes, and checking a status is comparing them.
 */
import { connect, type Socket } from "node:net";

const frameData = 0;
const frameHeaders = 1;
const frameReset = 3;
const frameSettings = 4;
const framePing = 6;
const frameGoAway = 7;
const frameContinuation = 9;
const flagEnd = 1;
const flagAck = 1;
const flagEndHeaders = 4;

/** Called for the frames of one answer. */
export interface Answer {
  data(bytes: Buffer): void;
  /** The trailers' header block, undefined when the answer did not end with trailers after a first block of headers. */
  end(trailers: Buffer | undefined): void;
}

export interface ClientOptions {
  readonly port: number;
  /** Of a stream and of the connection. */
  readonly windowBytes: number;
  /** The connection failed or was ended by the server while answers were missing. */
  onFailure(error: Error): void;
}

/** A literal header field that enters no table; lengths stay below 127. */
function literal(name: string | number, value: string): Buffer {
  const head =
    typeof name === "number"
      ? name < 15
        ? Buffer.from([name])
        : Buffer.from([15, name - 15])
      : Buffer.concat([Buffer.from([0, name.length]), Buffer.from(name)]);
  if (value.length > 126) throw new Error("header value too long");
  return Buffer.concat([head, Buffer.from([value.length]), Buffer.from(value)]);
}

function frameHead(length: number, type: number, flags: number, stream: number): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return head;
}

/** A gRPC request as the bytes of its HEADERS and DATA frames; the stream id is written in by `send`. */
export interface PreparedRequest {
  readonly bytes: Buffer;
  readonly dataAt: number;
}

export function prepareRequest(path: string, port: number, message: Uint8Array): PreparedRequest {
  const block = Buffer.concat([
    Buffer.from([0x80 | 3, 0x80 | 6]), // POST, http
    literal(4, path),
    literal(1, `127.0.0.1:${port}`),
    literal(31, "application/grpc"),
    literal("te", "trailers"),
  ]);
  const headers = Buffer.concat([frameHead(block.length, frameHeaders, flagEndHeaders, 0), block]);
  return {
    bytes: Buffer.concat([headers, frameHead(message.length, frameData, flagEnd, 0), message]),
    dataAt: headers.length,
  };
}

interface Open {
  readonly answer: Answer;
  headersSeen: boolean;
}

export class Http2Client {
  readonly #socket: Socket;
  readonly #open = new Map<number, Open>();
  readonly #options: ClientOptions;
  #nextStream = 1;
  #rest: Buffer = Buffer.alloc(0);
  #owed = 0;
  #outgoing: Buffer[] = [];
  #corked = false;
  #closed = false;

  constructor(options: ClientOptions) {
    this.#options = options;
    const settings = Buffer.alloc(18);
    settings.writeUInt16BE(1, 0); // HEADER_TABLE_SIZE 0
    settings.writeUInt16BE(2, 6); // ENABLE_PUSH 0
    settings.writeUInt16BE(4, 12);
    settings.writeUInt32BE(options.windowBytes, 14);
    const window = Buffer.alloc(4);
    window.writeUInt32BE(options.windowBytes - 65_535);
    this.#socket = connect({ port: options.port, host: "127.0.0.1", noDelay: true });
    this.#socket.write(
      Buffer.concat([
        Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        frameHead(18, frameSettings, 0, 0),
        settings,
        ...(options.windowBytes > 65_535 ? [frameHead(4, 8, 0, 0), window] : []),
      ]),
    );
    this.#socket.on("data", (bytes) => this.#receive(bytes));
    this.#socket.on("error", (error) => this.#fail(error));
    this.#socket.on("close", () => this.#fail(new Error("the server closed the connection")));
  }

  /**
   * Requests that leave while answers are taken are written at once after them. Request bodies must be small: the
   * server's receive window is not counted.
   */
  send(request: PreparedRequest, answer: Answer): void {
    const stream = this.#nextStream;
    this.#nextStream += 2;
    this.#open.set(stream, { answer, headersSeen: false });
    const bytes = Buffer.from(request.bytes);
    bytes.writeUInt32BE(stream, 5);
    bytes.writeUInt32BE(stream, request.dataAt + 5);
    this.#write(bytes);
  }

  close(): void {
    this.#closed = true;
    this.#socket.destroy();
  }

  #write(bytes: Buffer): void {
    if (this.#corked) this.#outgoing.push(bytes);
    else this.#socket.write(bytes);
  }

  #fail(error: Error): void {
    if (this.#closed) return;
    this.close();
    this.#options.onFailure(error);
  }

  #receive(bytes: Buffer): void {
    const input = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    let at = 0;
    this.#corked = true;
    while (input.length - at >= 9) {
      const end = at + 9 + input.readUIntBE(at, 3);
      if (end > input.length) break;
      this.#frame(input[at + 3] ?? 0, input[at + 4] ?? 0, input.readUInt32BE(at + 5), input.subarray(at + 9, end));
      at = end;
    }
    this.#rest = input.subarray(at);
    this.#corked = false;
    if (this.#outgoing.length > 0 && !this.#closed) {
      this.#socket.write(this.#outgoing.length === 1 ? (this.#outgoing[0] ?? "") : Buffer.concat(this.#outgoing));
    }
    this.#outgoing = [];
  }

  #frame(type: number, flags: number, stream: number, payload: Buffer): void {
    if (type === frameData) this.#data(flags, stream, payload);
    else if (type === frameHeaders) this.#headers(flags, stream, payload);
    else if (type === frameReset) this.#end(stream, undefined);
    else if (type === frameSettings && (flags & flagAck) === 0) this.#write(frameHead(0, frameSettings, flagAck, 0));
    else if (type === framePing && (flags & flagAck) === 0) {
      this.#write(Buffer.concat([frameHead(8, framePing, flagAck, 0), payload]));
    } else if (type === frameGoAway) this.#fail(new Error(`the server sent GOAWAY, error ${payload.readUInt32BE(4)}`));
    else if (type === frameContinuation) this.#fail(new Error("unexpected CONTINUATION"));
  }

  #data(flags: number, stream: number, payload: Buffer): void {
    this.#open.get(stream)?.answer.data(payload);
    this.#owed += payload.length;
    if (this.#owed >= this.#options.windowBytes >> 2) {
      const update = Buffer.alloc(4);
      update.writeUInt32BE(this.#owed);
      this.#write(Buffer.concat([frameHead(4, 8, 0, 0), update]));
      // Long answers come one at a time on a connection, so what the connection is owed is what their stream is owed.
      if (this.#open.size === 1) this.#write(Buffer.concat([frameHead(4, 8, 0, stream), update]));
      this.#owed = 0;
    }
    if ((flags & flagEnd) !== 0) this.#end(stream, undefined);
  }

  #headers(flags: number, stream: number, payload: Buffer): void {
    const open = this.#open.get(stream);
    if (open === undefined) return;
    if ((flags & flagEnd) !== 0) this.#end(stream, open.headersSeen ? payload : undefined);
    else open.headersSeen = true;
  }

  #end(stream: number, trailers: Buffer | undefined): void {
    const open = this.#open.get(stream);
    if (open === undefined) return;
    this.#open.delete(stream);
    open.answer.end(trailers);
  }
}
