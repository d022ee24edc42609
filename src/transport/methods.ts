/** Typed and raw methods gathered into one table: what Connect serves, and what the own path needs. */
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { BinaryReader, type WireType } from "@bufbuild/protobuf/wire";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ConnectRouterOptions,
  createConnectRouter,
  type HandlerContext,
} from "@connectrpc/connect";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { Call } from "./call.ts";
import { ignore } from "./ignore.ts";
import { callKey, NotModified, type RawMethod, type TransportOptions } from "./transport.ts";

type Answer = MessageInitShape<DescMessage>;
type UnaryWork = (request: unknown, context: HandlerContext) => Answer | Promise<Answer>;
type StreamWork = (request: unknown, context: HandlerContext) => AsyncIterable<Answer>;

/** A method as it is served, its errors mapped, ended when its call is ended. */
export interface ServedMethod {
  readonly desc: DescMethod;
  readonly raw: RawMethod | undefined;
  readonly work: UnaryWork | StreamWork;
  readonly options: Partial<ConnectRouterOptions> | undefined;
}

/** By path: `/package.Service/Method`. */
export function gatherMethods(options: TransportOptions): ReadonlyMap<string, ServedMethod> {
  const typed = new Map<
    DescMethod,
    { work: UnaryWork | StreamWork; options: Partial<ConnectRouterOptions> | undefined }
  >();
  const services = new Set<DescService>(options.services);
  const router = {
    service(service: DescService, implementation: object, routerOptions?: Partial<ConnectRouterOptions>) {
      services.add(service);
      const found = implementation as Record<string, unknown>;
      for (const method of service.methods) {
        const work = found[method.localName];
        if (typeof work !== "function") continue;
        typed.set(method, { work: work.bind(implementation) as UnaryWork, options: routerOptions });
      }
      return router;
    },
    rpc(method: DescMethod, work: unknown, routerOptions?: Partial<ConnectRouterOptions>) {
      typed.set(method, { work: work as UnaryWork, options: routerOptions });
      return router;
    },
  };
  options.routes(router as unknown as Pick<ConnectRouter, "service" | "rpc">);

  const raws = new Map(options.rawMethods.map((raw) => [raw.method, raw]));
  const methods = new Set<DescMethod>([...typed.keys(), ...raws.keys()]);
  for (const service of services) for (const method of service.methods) methods.add(method);

  const served = new Map<string, ServedMethod>();
  for (const desc of methods) {
    const raw = raws.get(desc);
    const work = raw === undefined ? (typed.get(desc)?.work ?? unimplemented(desc, options)) : fromRaw(raw);
    served.set(pathOf(desc), { desc, raw, work: guarded(desc, work), options: typed.get(desc)?.options });
  }
  return served;
}

/** Connect's handlers for all methods and all protocols, by path. */
export function connectHandlers(
  methods: ReadonlyMap<string, ServedMethod>,
  options: ConnectRouterOptions,
): ReadonlyMap<string, UniversalHandler> {
  const router = createConnectRouter(options);
  for (const { desc, work, options: own } of methods.values()) router.rpc(desc, work as never, own);
  return new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
}

function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function unimplemented(method: DescMethod, options: TransportOptions): UnaryWork {
  return () => {
    throw (
      options.unimplemented?.(method) ??
      new ConnectError(`${method.parent.typeName}.${method.name} is not implemented`, Code.Unimplemented)
    );
  };
}

function callOf(context: HandlerContext): Call {
  const call = context.values.get(callKey);
  if (!(call instanceof Call)) throw new Error("the method runs outside a call");
  return call;
}

/** Maps errors, and ends the wait when the call is ended, whether the method watches for it or not. */
function guarded(method: DescMethod, work: UnaryWork | StreamWork): UnaryWork | StreamWork {
  if (method.methodKind === "unary" || method.methodKind === "client_streaming") {
    const unary = work as UnaryWork;
    return async (request, context) => {
      const call = callOf(context);
      try {
        const answer = await call.race(unary(request, context));
        copyFields(call, context);
        call.code = 0;
        return answer;
      } catch (error) {
        copyFields(call, context);
        throw call.failure(error);
      }
    };
  }
  const stream = work as StreamWork;
  return async function* (request, context) {
    const call = callOf(context);
    let iterator: AsyncIterator<Answer> | undefined;
    let over = false;
    try {
      iterator = stream(request, context)[Symbol.asyncIterator]();
      for (;;) {
        const result = await call.race(iterator.next());
        copyFields(call, context);
        if (result.done) break;
        yield result.value;
      }
      over = true;
      call.code = 0;
    } catch (error) {
      copyFields(call, context);
      throw call.failure(error);
    } finally {
      // A method that waits for something else must not hold up the end of its call.
      if (!over) iterator?.return?.().then(undefined, ignore);
    }
  };
}

function copyFields(call: Call, context: HandlerContext): void {
  const fields = call.fields;
  if (fields === undefined) return;
  for (const name of Object.keys(fields)) context.responseHeader.set(name, String(fields[name]));
}

/** A typed method that calls a raw one. */
function fromRaw(raw: RawMethod): UnaryWork | StreamWork {
  const { input, output } = raw.method;
  const encode = (request: unknown, call: Call) => {
    const bytes = toBinary(input, request as Message);
    call.holdRequest(bytes.length);
    return bytes;
  };
  if (raw.kind === "unary") {
    return async (request: unknown, context: HandlerContext) => {
      const call = callOf(context);
      try {
        return toMessage(output, await raw.handle(encode(request, call), call), context);
      } catch (error) {
        if (!(error instanceof NotModified) || !call.isGet) throw error;
        call.notModified = true; // what is returned is not sent
        return create(output);
      }
    };
  }
  return async function* (request: unknown, context: HandlerContext) {
    const call = callOf(context);
    for await (const bytes of raw.handle(encode(request, call), call)) yield toMessage(output, [bytes], context);
  };
}

/**
 * Only JSON needs the fields of an answer. For binary codecs the bytes travel through the serializer as one unknown
 * field, which is written as its tag and then its data as they are: so everything behind the first tag is "its data".
 */
function toMessage(output: DescMessage, parts: readonly Uint8Array[], context: HandlerContext): Message {
  const bytes = parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts);
  if (isJson(context)) return fromBinary(output, bytes);
  const message = create(output);
  if (bytes.length === 0) return message;
  const reader = new BinaryReader(bytes);
  const [no, wireType]: [number, WireType] = reader.tag();
  message.$unknown = [{ no, wireType, data: bytes.subarray(reader.pos) }];
  return message;
}

function isJson(context: HandlerContext): boolean {
  if (context.requestMethod === "GET") return /[?&]encoding=json(&|$)/.test(context.url);
  return /\bjson\b/.test(context.requestHeader.get("content-type") ?? "");
}
