/** The service that the conformance suite calls: it answers as each request asks. */
import { setTimeout as sleep } from "node:timers/promises";
import { createRegistry, type MessageInitShape } from "@bufbuild/protobuf";
import { type Any, anyPack, anyUnpack } from "@bufbuild/protobuf/wkt";
import { type Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import {
  BidiStreamRequestSchema,
  ClientStreamRequestSchema,
  ConformancePayload_RequestInfoSchema,
  type ConformancePayloadSchema,
  type ConformanceService,
  type Error as ErrorDefinition,
  file_connectrpc_conformance_v1_service,
  type Header,
  type HeaderSchema,
  IdempotentUnaryRequestSchema,
  ServerStreamRequestSchema,
  type StreamResponseDefinition,
  UnaryRequestSchema,
  type UnaryResponseDefinition,
} from "../../build/conformance/gen/connectrpc/conformance/v1/service_pb.js";

type PayloadInit = MessageInitShape<typeof ConformancePayloadSchema>;
type RequestInfoInit = MessageInitShape<typeof ConformancePayload_RequestInfoSchema>;
type HeaderInit = MessageInitShape<typeof HeaderSchema>;

/** Types that google.protobuf.Any may hold. */
export const registry = createRegistry(file_connectrpc_conformance_v1_service);

/** What the methods need of their context. */
export type CallContext = Pick<
  HandlerContext,
  "requestHeader" | "requestMethod" | "url" | "responseHeader" | "responseTrailer" | "timeoutMs" | "signal"
>;

/** Everything that was seen of a call so far. */
function observe(context: CallContext, requests: Any[]): RequestInfoInit {
  const info: RequestInfoInit = { requests };
  info.requestHeaders = Array.from(context.requestHeader, ([name, value]): HeaderInit => ({ name, value: [value] }));
  const timeoutMs = context.timeoutMs();
  if (timeoutMs !== undefined) info.timeoutMs = BigInt(Math.max(0, Math.ceil(timeoutMs)));
  if (context.requestMethod === "GET") {
    const query = new URL(context.url, "http://localhost").searchParams;
    const names = new Set(query.keys());
    info.connectGetInfo = {
      queryParams: Array.from(names, (name): HeaderInit => ({ name, value: query.getAll(name) })),
    };
  }
  return info;
}

function addMetadata(
  context: CallContext,
  definition: { responseHeaders: Header[]; responseTrailers: Header[] } | undefined,
): void {
  const add = (target: Headers, source: Header[]) => {
    for (const { name, value } of source) for (const one of value) target.append(name, one);
  };
  if (definition === undefined) return;
  add(context.responseHeader, definition.responseHeaders);
  add(context.responseTrailer, definition.responseTrailers);
}

/** The error that a definition asks for; `info` becomes a detail when given. */
function errorOf(definition: ErrorDefinition, info?: RequestInfoInit): ConnectError {
  const error = new ConnectError(definition.message ?? "", definition.code as number as Code);
  for (const any of definition.details) {
    const type = any.typeUrl.slice(any.typeUrl.lastIndexOf("/") + 1);
    const desc = registry.getMessage(type);
    const value = desc && anyUnpack(any, desc);
    error.details.push(desc && value ? { desc, value } : { type, value: any.value });
  }
  if (info !== undefined) error.details.push({ desc: ConformancePayload_RequestInfoSchema, value: info });
  return error;
}

/** Waits, but no longer than the call lives, unless the handlers are to be deaf. */
async function delay(ms: number, signal: AbortSignal): Promise<void> {
  if (ms === 0) return;
  if (process.env.DEAF === "1") return sleep(ms);
  try {
    await sleep(ms, undefined, { signal });
  } catch {
    throw signal.reason;
  }
}

async function answerOnce(
  context: CallContext,
  definition: UnaryResponseDefinition | undefined,
  requests: Any[],
): Promise<{ payload: PayloadInit }> {
  const requestInfo = observe(context, requests);
  addMetadata(context, definition);
  await delay(definition?.responseDelayMs ?? 0, context.signal);
  const response = definition?.response;
  if (response?.case === "error") throw errorOf(response.value, requestInfo);
  return { payload: response?.case === "responseData" ? { requestInfo, data: response.value } : { requestInfo } };
}

/** All answers that are still due, then the error if one is due. */
async function* answerRest(
  context: CallContext,
  definition: StreamResponseDefinition | undefined,
  requests: Any[],
  alreadySent: number,
): AsyncGenerator<{ payload: PayloadInit }> {
  if (definition === undefined) return;
  const { responseData, responseDelayMs, error } = definition;
  let sent = alreadySent;
  for (const data of responseData.slice(alreadySent)) {
    const payload: PayloadInit = sent === 0 ? { data, requestInfo: observe(context, requests) } : { data };
    await delay(responseDelayMs, context.signal);
    yield { payload };
    sent++;
  }
  if (error !== undefined) throw errorOf(error, sent === 0 ? observe(context, requests) : undefined);
}

/** Without `unimplemented`, which is left out on purpose. */
export const conformanceService = {
  unary(request, context: CallContext) {
    return answerOnce(context, request.responseDefinition, [anyPack(UnaryRequestSchema, request)]);
  },

  idempotentUnary(request, context: CallContext) {
    return answerOnce(context, request.responseDefinition, [anyPack(IdempotentUnaryRequestSchema, request)]);
  },

  async clientStream(requests, context) {
    const seen: Any[] = [];
    let definition: UnaryResponseDefinition | undefined;
    for await (const request of requests) {
      if (seen.length === 0) definition = request.responseDefinition;
      seen.push(anyPack(ClientStreamRequestSchema, request));
    }
    return answerOnce(context, definition, seen);
  },

  async *serverStream(request, context: CallContext) {
    const definition = request.responseDefinition;
    addMetadata(context, definition);
    yield* answerRest(context, definition, [anyPack(ServerStreamRequestSchema, request)], 0);
  },

  async *bidiStream(requests, context) {
    let definition: StreamResponseDefinition | undefined;
    let pending: Any[] = []; // seen, and not echoed yet
    let first = true;
    let fullDuplex = false;
    let sent = 0;
    for await (const request of requests) {
      if (first) {
        first = false;
        definition = request.responseDefinition;
        fullDuplex = request.fullDuplex;
        addMetadata(context, definition);
      }
      pending.push(anyPack(BidiStreamRequestSchema, request));
      if (!fullDuplex) continue;
      const data = definition?.responseData[sent];
      if (definition === undefined || data === undefined) break;
      const requestInfo = sent === 0 ? observe(context, pending) : { requests: pending };
      await delay(definition.responseDelayMs, context.signal);
      yield { payload: { data, requestInfo } };
      pending = [];
      sent++;
    }
    yield* answerRest(context, definition, pending, sent);
  },
} satisfies Partial<ServiceImpl<typeof ConformanceService>>;
