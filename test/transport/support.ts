/** A transport with a small service behind it, and ways to speak to it. */
import { type ClientHttp2Session, connect as connectHttp2, type IncomingHttpHeaders } from "node:http2";
import { connect as connectSocket, type Socket } from "node:net";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import type { ExecuteRequest, QueryRequest, ReadRequest } from "../../gen/persisto/v1/database_service_pb.js";
import {
  DatabaseService,
  ExecuteRequestSchema,
  ExecuteResponseSchema,
  QueryRequestSchema,
  QueryResponseSchema,
  ReadRequestSchema,
  ReadResponseSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import { systemClock } from "../../src/clock.ts";
import { startTransport } from "../../src/transport/server.ts";
import type {
  CallRecord,
  RawCall,
  RawMethod,
  Transport,
  TransportLimits,
  TransportOptions,
} from "../../src/transport/transport.ts";

/** Limits wide enough that no test meets one by accident. */
export const testLimits: TransportLimits = {
  readBytesMax: 4 * 1024 * 1024,
  writeBytesMax: 4 * 1024 * 1024,
  bytesHeldMax: 1024 * 1024 * 1024,
  readTimeoutMs: 10_000,
  writeTimeoutMs: 10_000,
  idleTimeoutMs: 120_000,
  deadlineMsMax: 300_000,
  headerBytesMax: 16 * 1024,
  streamsPerConnectionMax: 1_000,
  connectionCountMax: 10_000,
  streamResetBurst: 1_000,
  streamResetRate: 33,
  compressBytesMin: 65_536,
  pingIntervalMs: 0,
  pingTimeoutMs: 20_000,
  connectionAgeMs: 0,
  connectionAgeGraceMs: 10_000,
};

/** What the methods do; each test gives those that it is about. */
export interface TestMethods {
  readonly execute?: (
    request: ExecuteRequest,
    call: RawCall,
  ) => Promise<MessageInitShape<typeof ExecuteResponseSchema> | Uint8Array>;
  readonly read?: (
    request: ReadRequest,
    call: RawCall,
  ) => Promise<MessageInitShape<typeof ReadResponseSchema> | Uint8Array>;
  readonly query?: (
    request: QueryRequest,
    call: RawCall,
  ) => AsyncIterable<MessageInitShape<typeof QueryResponseSchema> | Uint8Array>;
  readonly typed?: Partial<ServiceImpl<typeof DatabaseService>>;
}

export interface TestOptions extends Partial<Omit<TransportOptions, "limits">> {
  readonly methods?: TestMethods;
  readonly limits?: Partial<TransportLimits>;
}

export interface TestTransport extends Transport {
  readonly baseUrl: string;
  readonly records: CallRecord[];
  /** Resolves when a call that fits has ended. */
  recorded(fits: (record: CallRecord) => boolean): Promise<CallRecord>;
}

/** Starts on any free port; `close` it. */
export async function startTestTransport(options: TestOptions = {}): Promise<TestTransport> {
  const { methods = {}, limits, ...rest } = options;
  const records: CallRecord[] = [];
  const watchers = new Set<() => void>();
  const transport = await startTransport({
    host: "127.0.0.1",
    port: 0,
    routes: (router) => router.service(DatabaseService, { ...typedDefaults, ...methods.typed }),
    services: [DatabaseService],
    rawMethods: rawMethodsOf(methods),
    toConnectError: (error) => (error instanceof ConnectError ? error : new ConnectError("defect", Code.Internal)),
    pages: new Map(),
    onCallEnd: (record) => {
      records.push(record);
      for (const watcher of [...watchers]) watcher();
    },
    ownPath: true,
    tls: undefined,
    corsOrigins: [],
    clock: systemClock,
    random: () => 0.5,
    ...rest,
    limits: { ...testLimits, ...limits },
  });
  return {
    get port() {
      return transport.port;
    },
    get connections() {
      return transport.connections;
    },
    get bytesHeld() {
      return transport.bytesHeld;
    },
    get callsActive() {
      return transport.callsActive;
    },
    drain: (drainOptions) => transport.drain(drainOptions),
    close: () => transport.close(),
    baseUrl: `${rest.tls === undefined ? "http" : "https"}://127.0.0.1:${transport.port}`,
    records,
    recorded(fits) {
      const found = () => records.find(fits);
      return new Promise((resolve) => {
        const look = () => {
          const record = found();
          if (record === undefined) return;
          watchers.delete(look);
          resolve(record);
        };
        watchers.add(look);
        look();
      });
    },
  };
}

function rawMethodsOf(methods: TestMethods): RawMethod[] {
  const { execute = echo, read = echo, query = countUp } = methods;
  return [
    {
      kind: "unary",
      method: DatabaseService.method.execute,
      async handle(bytes, call) {
        return asParts(ExecuteResponseSchema, await execute(fromBinary(ExecuteRequestSchema, bytes), call));
      },
    },
    {
      kind: "unary",
      method: DatabaseService.method.read,
      async handle(bytes, call) {
        return asParts(ReadResponseSchema, await read(fromBinary(ReadRequestSchema, bytes), call));
      },
    },
    {
      kind: "server_streaming",
      method: DatabaseService.method.query,
      async *handle(bytes, call) {
        for await (const message of query(fromBinary(QueryRequestSchema, bytes), call)) {
          yield message instanceof Uint8Array
            ? message
            : toBinary(QueryResponseSchema, create(QueryResponseSchema, message));
        }
      },
    },
  ];
}

function asParts(
  schema: typeof ExecuteResponseSchema | typeof ReadResponseSchema,
  answer: object | Uint8Array,
): Uint8Array[] {
  if (answer instanceof Uint8Array) return [answer];
  const bytes = toBinary(schema, create(schema, answer));
  // In two parts, as the engine's answers come: a message cut between any two of its fields.
  return [bytes, new Uint8Array(0)];
}

/** The statement's text and its first parameter come back as a column name and an affected row count. */
async function echo(request: ExecuteRequest | ReadRequest, call: RawCall) {
  const value = request.statement?.parameters[0]?.kind;
  call.note("database", request.database);
  return {
    result: {
      columns: [{ name: request.statement?.sql ?? "" }],
      rowsAffected: value?.case === "integer" ? value.value : 0n,
    },
    position: { lineage: request.database, sequence: 9_007_199_254_740_993n },
  };
}

/** As many messages as `max_chunk_rows` says. */
async function* countUp(request: QueryRequest) {
  for (let row = 0; row < request.maxChunkRows; row++) {
    yield { message: { case: "rowBatch" as const, value: { rows: [{ values: [integer(row)] }] } } };
  }
  yield { message: { case: "summary" as const, value: { rowCount: BigInt(request.maxChunkRows) } } };
}

export function integer(value: number | bigint) {
  return { kind: { case: "integer" as const, value: BigInt(value) } };
}

const typedDefaults: Partial<ServiceImpl<typeof DatabaseService>> = {
  getDatabase: (request, context) => {
    echoMetadata(context);
    return { database: { id: request.database } };
  },
  async *watchDatabase(request) {
    for (const table of request.tables) yield { resumeToken: Buffer.from(table) };
  },
  async uploadDatabase(requests) {
    let size = 0;
    for await (const { message } of requests) if (message.case === "chunk") size += message.value.length;
    return { database: { id: "uploaded", sizeBytes: BigInt(size) } };
  },
  async *transact(requests) {
    for await (const { commandId } of requests) yield { commandId };
  },
};

/** Sends `x-test-*` of the request back as headers and as trailers. */
function echoMetadata(context: HandlerContext): void {
  context.requestHeader.forEach((value, name) => {
    if (!name.startsWith("x-test-")) return;
    context.responseHeader.set(name, value);
    context.responseTrailer.set(name.replace("x-test-", "x-trailer-"), value);
  });
}

/** An HTTP/2 client without any RPC library. */
export async function rawHttp2(baseUrl: string, options: object = {}): Promise<ClientHttp2Session> {
  const session = connectHttp2(baseUrl, options);
  await new Promise<void>((resolve, reject) => {
    session.once("remoteSettings", () => resolve());
    session.once("error", reject);
    session.once("close", () => reject(new Error("the connection was closed")));
  });
  session.on("error", () => undefined);
  return session;
}

export interface RawAnswer {
  readonly headers: IncomingHttpHeaders;
  readonly trailers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** How many HEADERS frames there were. */
  readonly headerFrames: number;
  readonly resetCode: number;
}

const grpcHeaders = { ":method": "POST", "content-type": "application/grpc", te: "trailers" };

/** One gRPC request by hand; resolves when its stream is closed. */
export function rawGrpc(
  session: ClientHttp2Session,
  path: string,
  body: Uint8Array | undefined,
  headers: Record<string, string> = {},
  { end = true }: { end?: boolean } = {},
): Promise<RawAnswer> {
  return new Promise((resolve) => {
    const stream = session.request({ ...grpcHeaders, ":path": path, ...headers }, { endStream: false });
    const chunks: Buffer[] = [];
    let answerHeaders: IncomingHttpHeaders = {};
    let trailers: IncomingHttpHeaders = {};
    let headerFrames = 0;
    stream.on("response", (fields) => {
      answerHeaders = fields;
      headerFrames++;
    });
    stream.on("trailers", (fields) => {
      trailers = fields;
      headerFrames++;
    });
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.on("error", () => undefined);
    stream.on("close", () =>
      resolve({
        headers: answerHeaders,
        trailers,
        body: Buffer.concat(chunks),
        headerFrames,
        resetCode: stream.rstCode,
      }),
    );
    if (body !== undefined) stream.write(body);
    if (end) stream.end();
  });
}

/** A message with its prefix. */
export function envelope(bytes: Uint8Array, flags = 0, length = bytes.length): Buffer {
  const frame = Buffer.alloc(5 + bytes.length);
  frame[0] = flags;
  frame.writeUInt32BE(length, 1);
  frame.set(bytes, 5);
  return frame;
}

export const executePath = "/persisto.v1.DatabaseService/Execute";
export const queryPath = "/persisto.v1.DatabaseService/Query";
export const getDatabasePath = "/persisto.v1.DatabaseService/GetDatabase";

export function executeBytes(init: MessageInitShape<typeof ExecuteRequestSchema> = {}): Uint8Array {
  return toBinary(ExecuteRequestSchema, create(ExecuteRequestSchema, init));
}

export function queryBytes(init: MessageInitShape<typeof QueryRequestSchema> = {}): Uint8Array {
  return toBinary(QueryRequestSchema, create(QueryRequestSchema, init));
}

/** A plain socket, connected. */
export async function rawSocket(port: number): Promise<Socket> {
  const socket = connectSocket(port, "127.0.0.1");
  await new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", reject);
  });
  socket.on("error", () => undefined);
  return socket;
}

/** Resolves with all bytes when the other side has closed. */
export function readToEnd(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk) => chunks.push(chunk));
  return new Promise((resolve) => socket.once("close", () => resolve(Buffer.concat(chunks))));
}

/** A promise and what settles it. */
export function deferred<T = void>() {
  return Promise.withResolvers<T>();
}
