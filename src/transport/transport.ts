/**
 * One port for gRPC, gRPC-Web and Connect. Knows sockets and calls, not Persisto: it is given services, raw methods and
 * what turns an unknown error into a status.
 */
import type { DescMethod, DescService, JsonReadOptions, JsonWriteOptions } from "@bufbuild/protobuf";
import {
  type ConnectError,
  type ConnectRouter,
  type ContextKey,
  createContextKey,
  type Interceptor,
} from "@connectrpc/connect";
import type { Compression } from "@connectrpc/connect/protocol";
import type { Clock } from "../clock.ts";

/** What a raw method sees of its call. */
export interface RawCall {
  readonly method: DescMethod;
  readonly protocol: "grpc" | "grpc-web" | "connect";
  /** Lower-case name. */
  requestHeader(name: string): string | undefined;
  /** True for Connect's GET. */
  readonly isGet: boolean;
  /**
   * The client's wish, on unary calls clamped to `deadlineMsMax`; undefined when there is none. Milliseconds of the clock's
   * `now()`.
   */
  readonly deadlineAtMs: number | undefined;
  /** True when the client wished for longer than `deadlineMsMax`. */
  readonly deadlineClamped: boolean;
  readonly cancelled: boolean;
  /**
   * The client left, the server ends its calls, or the deadline is over: for this one a moment later, so that a handler
   * that watches `deadlineAtMs` answers with its own reason. Called once at most; returns its undo.
   */
  onCancel(listener: () => void): () => void;
  /** Names and values of answer headers; before the first byte only. */
  setHeader(name: string, value: string): void;
  /** For logs and metrics: facts that belong to the line of the call (database, request id). */
  note(key: string, value: string): void;
}

/** Thrown by a raw unary method on a Connect GET: answered with HTTP 304, the headers set so far and no body. Not a failure. */
export class NotModified extends Error {
  override readonly name = "NotModified";
}

/** Where a typed handler finds its call: `context.values.get(callKey)`. */
export const callKey: ContextKey<RawCall | undefined> = createContextKey<RawCall | undefined>(undefined, {
  description: "call",
});

/** A unary method from bytes to bytes. Parts are sent one after another as one message: protobuf fields concatenate. */
export interface RawUnaryMethod {
  readonly method: DescMethod;
  readonly kind: "unary";
  handle(request: Uint8Array, call: RawCall): Promise<readonly Uint8Array[]>;
}

/** A server-streaming method from bytes to messages of bytes; pulled at the client's pace. */
export interface RawServerStreamMethod {
  readonly method: DescMethod;
  readonly kind: "server_streaming";
  handle(request: Uint8Array, call: RawCall): AsyncIterable<Uint8Array>;
}

export type RawMethod = RawUnaryMethod | RawServerStreamMethod;

/** One line for the log and one observation for the metrics. */
export interface CallRecord {
  /** As the caller wrote it, and at most 200 characters, where there is no such method. */
  readonly service: string;
  readonly method: string;
  /** False: there is no such method. */
  readonly exists: boolean;
  readonly protocol: string;
  /** gRPC status code as a number, 0 for OK. */
  readonly code: number;
  readonly durationMs: number;
  readonly requestBytes: number;
  readonly responseBytes: number;
  readonly notes: Readonly<Record<string, string>>;
  readonly traceparent: string | undefined;
  readonly peer: string;
}

export interface TransportOptions {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  /** Typed services, as Connect's routers take them; raw methods of the same services are merged in. */
  readonly routes: (router: Pick<ConnectRouter, "service" | "rpc">) => void;
  /** Services whose remaining methods answer `unimplemented`. */
  readonly services: readonly DescService[];
  readonly rawMethods: readonly RawMethod[];
  /** What calls of those methods throw; a ConnectError with the method's name when undefined. */
  readonly unimplemented?: ((method: DescMethod) => unknown) | undefined;
  /** Any thrown thing to the status that is sent. Not asked when the client has left. */
  readonly toConnectError: (error: unknown, call: RawCall) => ConnectError;
  /** Around typed methods, and around raw ones outside the own path. */
  readonly interceptors?: readonly Interceptor[] | undefined;
  readonly jsonOptions?: Partial<JsonReadOptions & JsonWriteOptions> | undefined;
  /** For requests, and for answers when the client takes it; gzip alone when undefined. */
  readonly compressions?: readonly Compression[] | undefined;
  /** Plain HTTP paths beside RPC (/healthz, /metrics): exact path to handler. */
  readonly pages: ReadonlyMap<string, () => Promise<{ status: number; contentType: string; body: string }>>;
  readonly onCallEnd: ((record: CallRecord) => void) | undefined;
  /** The own path for gRPC; off sends everything through Connect. */
  readonly ownPath: boolean;
  readonly tls: TlsOptions | undefined;
  readonly corsOrigins: readonly string[];
  readonly limits: TransportLimits;
  readonly clock: Clock;
  /** From 0 to below 1: jitter. */
  readonly random: () => number;
  /** What an operator should know and no caller is told: a certificate that cannot be read again, say. */
  readonly onProblem?: ((message: string, error: unknown) => void) | undefined;
}

/** Files in PEM; read again when they change. */
export interface TlsOptions {
  readonly certificatePath: string;
  readonly keyPath: string;
  /** Present: clients must show a certificate of this authority. */
  readonly clientCaPath: string | undefined;
}

export interface TransportLimits {
  readonly readBytesMax: number;
  readonly writeBytesMax: number;
  /** Requests and unary answers in memory, over all calls: beyond it requests are refused as UNAVAILABLE. */
  readonly bytesHeldMax: number;
  /** How long headers and a unary body may take to arrive. */
  readonly readTimeoutMs: number;
  /** How long an answer may make no progress because the reader does not read. */
  readonly writeTimeoutMs: number;
  /** A connection without calls is ended after this long. */
  readonly idleTimeoutMs: number;
  /** Longest deadline of a unary call; a longer wish is cut to it. Streams may last as long as their clients wish. */
  readonly deadlineMsMax: number;
  readonly headerBytesMax: number;
  readonly streamsPerConnectionMax: number;
  readonly connectionCountMax: number;
  readonly streamResetBurst: number;
  readonly streamResetRate: number;
  readonly compressBytesMin: number;
  readonly pingIntervalMs: number;
  readonly pingTimeoutMs: number;
  /** 0: connections do not age. */
  readonly connectionAgeMs: number;
  readonly connectionAgeGraceMs: number;
}

export interface Transport {
  readonly port: number;
  readonly connections: number;
  readonly callsActive: number;
  /** Requests and unary answers in memory. */
  readonly bytesHeld: number;
  /**
   * Drains as api.md section 8 says: GOAWAY, no new calls, running ones end; those left after `callsMs` are ended by
   * `endCalls` (UNAVAILABLE), sockets after `socketsMs` are destroyed. Resolves when nothing is open.
   */
  drain(options: {
    readonly callsMs: number;
    readonly socketsMs: number;
    readonly endCalls: () => ConnectError;
  }): Promise<void>;
  /** At once. */
  close(): Promise<void>;
}

export type StartTransport = (options: TransportOptions) => Promise<Transport>;
