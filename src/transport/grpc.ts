/**
 * The own path: gRPC over node:http2 streams without Connect's pipeline, for unary methods and for raw server streams.
 * Raw methods go from bytes to bytes; typed unary ones keep Connect's context, interceptors and serialization.
 */
import type { IncomingHttpHeaders, OutgoingHttpHeaders } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import { type DescMessage, fromBinary, type Message } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ConnectRouterOptions,
  createContextValues,
  createHandlerContext,
  createMethodImplSpec,
  type HandlerContext,
  type MethodImplSpec,
} from "@connectrpc/connect";
import {
  type Compression,
  createMethodSerializationLookup,
  invokeUnaryImplementation,
  type MethodSerializationLookup,
  validateUniversalHandlerOptions,
} from "@connectrpc/connect/protocol";
import { Call, type CallInit } from "./call.ts";
import type { CallBook } from "./call-book.ts";
import type { Connection } from "./connection.ts";
import { cancelStream, type HeaderFields, releaseStream, writeBytesMax } from "./exchange.ts";
import { frameOf, lengthOf, MessageReceiver, prefixLength, prefixOf, tooLarge } from "./grpc-message.ts";
import { ignore } from "./ignore.ts";
import type { ServedMethod } from "./methods.ts";
import { fieldsOf, grpcTrailers } from "./status.ts";
import { deadlineMsMaxOf, parseGrpcTimeout } from "./timeouts.ts";
import { callKey, type RawServerStreamMethod, type RawUnaryMethod } from "./transport.ts";

interface OwnMethod {
  readonly served: ServedMethod;
  /** Connect's view of a typed method. */
  readonly typed:
    | { readonly spec: MethodImplSpec; readonly serialization: MethodSerializationLookup<DescMessage, DescMessage> }
    | undefined;
}

interface GrpcSettings {
  readonly book: CallBook;
  readonly connect: ReturnType<typeof validateUniversalHandlerOptions>;
  readonly deadlineMsMax: number;
}

const okHead = { ":status": 200, "content-type": "application/grpc" };
const okTrailers = { "grpc-status": "0" };
const respondOptions = { waitForTrailers: true, sendDate: false } as const;
const errorOptions = { endStream: true, sendDate: false } as const;
/**
 * Aborting without a reason would make an exception with a stack for every call. Made when it is first needed: the first
 * ConnectError of a process loads Node's HTTP client for its Headers, which is a tenth of the server's start.
 */
let callOverOnce: ConnectError | undefined;
function callOver(): ConnectError {
  callOverOnce ??= new ConnectError("the call is over", Code.Canceled);
  return callOverOnce;
}

export class GrpcPath {
  readonly #methods = new Map<string, OwnMethod>();
  readonly #settings: GrpcSettings;

  constructor(
    methods: ReadonlyMap<string, ServedMethod>,
    book: CallBook,
    options: ConnectRouterOptions,
    deadlineMsMax: number,
  ) {
    const connect = validateUniversalHandlerOptions(options);
    this.#settings = { book, connect, deadlineMsMax };
    for (const [path, served] of methods) {
      if (served.raw !== undefined) this.#methods.set(path, { served, typed: undefined });
      else if (served.desc.methodKind === "unary" && served.options === undefined) {
        const spec = createMethodImplSpec(served.desc, served.work as never);
        const { binaryOptions, jsonOptions } = connect;
        const serialization = createMethodSerializationLookup(served.desc, binaryOptions, jsonOptions, connect);
        this.#methods.set(path, { served, typed: { spec, serialization } });
      }
    }
  }

  /** False: the stream is not for this path, and untouched. Else the connection is told when it is closed. */
  accept(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, connection: Connection): boolean {
    const contentType = headers["content-type"];
    if (contentType !== "application/grpc" && contentType !== "application/grpc+proto") return false;
    if (headers[":method"] !== "POST") return false;
    const method = this.#methods.get(headers[":path"] as string);
    if (method === undefined) return false;
    const init: CallInit = {
      book: this.#settings.book,
      method: method.served.desc,
      protocol: "grpc",
      isGet: false,
      headers,
      peer: connection.peer,
    };
    new OwnCall(init, stream, connection, method, this.#settings).start();
    return true;
  }
}

class OwnCall extends Call {
  readonly #stream: ServerHttp2Stream;
  readonly #connection: Connection;
  readonly #own: OwnMethod;
  readonly #settings: GrpcSettings;
  readonly #receiver: MessageReceiver;
  #requestCompression: Compression | undefined = undefined;
  #answerCompression: Compression | undefined = undefined;
  #abort: AbortController | undefined = undefined;
  #iterator: AsyncIterator<Uint8Array> | undefined = undefined;
  #wake: (() => void) | undefined = undefined;
  #trailers: HeaderFields = okTrailers;

  constructor(
    init: CallInit,
    stream: ServerHttp2Stream,
    connection: Connection,
    own: OwnMethod,
    settings: GrpcSettings,
  ) {
    super(init);
    this.#stream = stream;
    this.#connection = connection;
    this.#own = own;
    this.#settings = settings;
    this.#receiver = new MessageReceiver(settings.connect.readMaxBytes);
  }

  start(): void {
    const stream = this.#stream;
    stream.on("error", ignore); // "close" follows and tells the rest
    stream.on("close", () => {
      this.#connection.closed();
      this.closed(stream.rstCode);
      if (this.ended !== undefined) this.#stop();
    });
    try {
      this.#readHeaders();
    } catch (error) {
      this.#fail(error);
      return;
    }
    stream.on("data", (chunk: Buffer) => this.#receive(chunk));
    stream.on("end", () => this.#received());
  }

  protected answerEnd(error: ConnectError): void {
    this.#stop();
    if (this.stalledSinceMs !== undefined) this.abandon();
    else this.#answerError(error);
  }

  abandon(): void {
    cancelStream(this.#stream);
  }

  progress(): number {
    return 0;
  }

  #readHeaders(): void {
    const { headers } = this;
    const msMax = deadlineMsMaxOf(this.method, this.#settings.deadlineMsMax);
    this.setDeadline(parseGrpcTimeout(this.requestHeader("grpc-timeout"), msMax));
    const { acceptCompression } = this.#settings.connect;
    const encoding = headers["grpc-encoding"];
    if (encoding !== undefined && encoding !== "identity") {
      this.#requestCompression = acceptCompression.find((compression) => compression.name === encoding);
      if (this.#requestCompression === undefined) {
        const names = acceptCompression.map((compression) => compression.name).join(",");
        throw new ConnectError(`unknown compression; supported are: ${names}`, Code.Unimplemented, {
          "grpc-accept-encoding": names,
        });
      }
    }
    const accepted = headers["grpc-accept-encoding"];
    if (typeof accepted !== "string") return;
    this.#answerCompression = acceptCompression.find((compression) => listContains(accepted, compression.name));
  }

  #receive(chunk: Buffer): void {
    if (this.phase !== "receiving") return;
    this.requestBytes += chunk.length;
    try {
      this.holdRequest(this.requestBytes);
      this.#receiver.push(chunk);
    } catch (error) {
      this.#stream.pause();
      this.#fail(error);
    }
  }

  #received(): void {
    if (this.phase !== "receiving" || this.ended !== undefined) return;
    this.phase = "running";
    try {
      const { compressed, bytes } = this.#receiver.take();
      if (!compressed) this.#run(bytes);
      else if (this.#requestCompression === undefined) {
        throw new ConnectError("protocol error: compressed message without grpc-encoding", Code.Internal);
      } else {
        this.#requestCompression.decompress(bytes, this.#settings.connect.readMaxBytes).then(
          (plain) => this.#run(plain),
          (error: unknown) => this.#fail(error),
        );
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  #run(bytes: Uint8Array): void {
    if (this.phase !== "running" || this.ended !== undefined) return;
    const { raw } = this.#own.served;
    try {
      this.holdRequest(bytes.length); // more than was received when it was compressed
      if (raw === undefined) this.#runTyped(bytes);
      else if (raw.kind === "unary") this.#runUnary(raw, bytes);
      else void this.#runStream(raw, bytes);
    } catch (error) {
      this.#fail(error);
    }
  }

  #runUnary(raw: RawUnaryMethod, bytes: Uint8Array): void {
    raw.handle(bytes, this).then(
      (parts) => this.#answer(parts, undefined),
      (error: unknown) => this.#fail(error),
    );
  }

  #runTyped(bytes: Uint8Array): void {
    const { typed } = this.#own;
    if (typed === undefined) throw new Error("neither raw nor typed");
    const { connect } = this.#settings;
    this.#abort = new AbortController();
    const requestHeader = new Headers();
    for (const name of Object.keys(this.headers)) {
      if (name.charCodeAt(0) !== 58) requestHeader.set(name, this.requestHeader(name) ?? "");
    }
    const context = createHandlerContext({
      ...typed.spec,
      service: this.method.parent,
      requestMethod: "POST",
      protocolName: "grpc",
      ...(this.deadlineAtMs === undefined ? {} : { timeoutMs: this.deadlineAtMs - this.startMs }),
      requestSignal: this.#abort.signal,
      requestHeader,
      url: `http://${this.headers[":authority"] ?? "localhost"}${this.headers[":path"]}`,
      contextValues: createContextValues().set(callKey, this),
    });
    const work = async () => {
      const input = parse(this.method.input, bytes);
      const output = await invokeUnaryImplementation(typed.spec as never, context, input, connect.interceptors);
      return typed.serialization.getO(true).serialize(output);
    };
    work().then(
      (answer) => {
        context.abort(callOver());
        this.#answer([answer], context);
      },
      (error: unknown) => {
        context.abort(error);
        this.#fail(error, context);
      },
    );
  }

  #answer(parts: readonly Uint8Array[], context: HandlerContext | undefined): void {
    if (this.phase !== "running" || this.ended !== undefined) return;
    const { connect } = this.#settings;
    const length = lengthOf(parts);
    if (length > connect.writeMaxBytes) {
      this.#fail(tooLarge(connect.writeMaxBytes), context);
    } else if (this.#answerCompression !== undefined && length >= connect.compressMinBytes) {
      this.#answerCompression.compress(Buffer.concat(parts)).then(
        (packed) => this.#send([packed], packed.length, context, this.#answerCompression),
        (error: unknown) => this.#fail(error, context),
      );
    } else this.#send(parts, length, context, undefined);
  }

  #send(
    parts: readonly Uint8Array[],
    length: number,
    context: HandlerContext | undefined,
    compression: Compression | undefined,
  ): void {
    const stream = this.#stream;
    if (this.phase !== "running" || this.ended !== undefined || stream.destroyed || stream.closed) return;
    try {
      stream.respond(this.#head(context, compression), respondOptions);
    } catch (error) {
      this.#fail(error); // a header that cannot be written
      return;
    }
    this.#sendTrailersWhenWanted(context);
    this.responseBytes = prefixLength + length;
    this.holdAnswer(length);
    this.code = 0;
    if (length <= writeBytesMax) {
      this.phase = "sending";
      stream.end(frameOf(parts, length, compression !== undefined));
      this.finish(0);
    } else void this.#sendLarge(parts, length, compression !== undefined);
  }

  async #sendLarge(parts: readonly Uint8Array[], length: number, compressed: boolean): Promise<void> {
    this.#stream.on("drain", () => this.#wakeUp());
    if (!(await this.#write(parts, length, compressed))) return;
    this.phase = "sending";
    this.#stream.end();
    this.finish(0);
  }

  async #runStream(raw: RawServerStreamMethod, bytes: Uint8Array): Promise<void> {
    const stream = this.#stream;
    const { connect } = this.#settings;
    const compression = this.#answerCompression;
    try {
      const iterator = raw.handle(bytes, this)[Symbol.asyncIterator]();
      this.#iterator = iterator;
      stream.on("drain", () => this.#wakeUp());
      for (;;) {
        const result = await iterator.next();
        if (this.phase !== "running" || this.ended !== undefined) return;
        if (!stream.headersSent) {
          stream.respond(this.#head(undefined, compression), respondOptions);
          this.#sendTrailersWhenWanted(undefined);
        }
        if (result.done) break;
        let message = result.value;
        if (message.length > connect.writeMaxBytes) throw tooLarge(connect.writeMaxBytes);
        const compressed = compression !== undefined && message.length >= connect.compressMinBytes;
        if (compressed) message = await compression.compress(message);
        this.responseBytes += prefixLength + message.length;
        if (!(await this.#write([message], message.length, compressed))) return;
      }
      this.#iterator = undefined;
      this.code = 0;
      this.phase = "sending";
      stream.end();
      this.finish(0);
    } catch (error) {
      this.#fail(error);
      this.#stop();
    }
  }

  /** Writes a message at the reader's pace; false when the call was over before its end. */
  async #write(parts: readonly Uint8Array[], length: number, compressed: boolean): Promise<boolean> {
    const stream = this.#stream;
    let flows = true;
    stream.cork();
    stream.write(prefixOf(length, compressed));
    for (const part of parts) {
      for (let offset = 0; offset < part.length; offset += writeBytesMax) {
        if (!flows) {
          stream.uncork();
          if (!(await this.#drained())) return false;
          stream.cork();
        }
        flows = stream.write(part.subarray(offset, offset + writeBytesMax));
      }
    }
    stream.uncork();
    return flows || this.#drained();
  }

  /** False when the call ended while it waited. */
  async #drained(): Promise<boolean> {
    const stream = this.#stream;
    if (stream.writableNeedDrain && !stream.destroyed) {
      this.setStalled(true);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.setStalled(false);
    }
    return this.phase === "running" && this.ended === undefined && !stream.destroyed;
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Nobody waits for the method any more. */
  #stop(): void {
    if (this.#abort !== undefined) this.#abort.abort(this.ended ?? callOver());
    const iterator = this.#iterator;
    this.#iterator = undefined;
    iterator?.return?.().then(undefined, ignore); // its own clean-up; the call is over whatever comes of it
    this.#wakeUp();
  }

  #fail(error: unknown, context?: HandlerContext): void {
    if (this.phase === "over" || this.phase === "sending" || this.ended !== undefined) return;
    const isDecided = this.code !== undefined && error instanceof ConnectError && error.code === this.code;
    this.#answerError(isDecided ? error : this.failure(error), context);
  }

  #answerError(error: ConnectError, context?: HandlerContext): void {
    const stream = this.#stream;
    this.phase = "sending";
    this.code = error.code;
    if (!stream.destroyed && !stream.closed) {
      const trailers = { ...fieldsOf(context?.responseTrailer), ...grpcTrailers(error) };
      if (stream.headersSent) {
        this.#trailers = trailers;
        stream.end();
      } else this.#respondTrailersOnly({ ...this.#head(context, undefined), ...trailers });
    }
    this.finish(error.code);
  }

  #respondTrailersOnly(fields: OutgoingHttpHeaders): void {
    try {
      this.#stream.respond(fields, errorOptions);
      releaseStream(this.#stream);
    } catch {
      // Fields that HTTP/2 does not allow: the client learns from the reset that this is a defect.
      this.#stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    }
  }

  #sendTrailersWhenWanted(context: HandlerContext | undefined): void {
    const stream = this.#stream;
    stream.on("wantTrailers", () => {
      if (stream.destroyed || stream.closed) return;
      try {
        const own = context === undefined ? undefined : fieldsOf(context.responseTrailer);
        stream.sendTrailers(own === undefined ? this.#trailers : { ...own, ...this.#trailers });
        releaseStream(stream);
      } catch {
        stream.close(constants.NGHTTP2_INTERNAL_ERROR); // fields that HTTP/2 does not allow
      }
    });
  }

  #head(context: HandlerContext | undefined, compression: Compression | undefined): HeaderFields | typeof okHead {
    const fields = this.takeFields();
    if (fields === undefined && context === undefined && compression === undefined) return okHead;
    return {
      ...okHead,
      ...fieldsOf(context?.responseHeader),
      ...fields,
      ...(compression === undefined ? {} : { "grpc-encoding": compression.name }),
    };
  }
}

/** Connect would call it INTERNAL, which is for defects of the server. */
function parse(desc: DescMessage, bytes: Uint8Array): Message {
  try {
    return fromBinary(desc, bytes);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ConnectError(
      `the request is not a protobuf message: ${reason}`,
      Code.InvalidArgument,
      undefined,
      undefined,
      error,
    );
  }
}

function listContains(list: string, name: string): boolean {
  return list === name || list.split(",").some((one) => one.trim() === name);
}
