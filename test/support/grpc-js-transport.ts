/**
 * grpc-js with @grpc/proto-loader behind Connect's client interface, so that one test runs over both. Messages go through
 * protobufjs and the .proto files on their way out and in: a second implementation of everything.
 */
import { Duplex } from "node:stream";
import { fileURLToPath } from "node:url";
import {
  create,
  type DescMessage,
  type DescMethod,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Code, ConnectError, type StreamResponse, type Transport, type UnaryResponse } from "@connectrpc/connect";
import { Client, credentials, Metadata, type ServiceError, type StatusObject } from "@grpc/grpc-js";
import { loadSync, type MethodDefinition, type ServiceDefinition } from "@grpc/proto-loader";
import { StatusSchema } from "../../gen/google/rpc/status_pb.js";

const path = (relative: string) => fileURLToPath(new URL(`../../${relative}`, import.meta.url));

const definitions = loadSync(
  [
    "persisto/v1/database_service.proto",
    "persisto/v1/stage_service.proto",
    "persisto/v1/operation.proto",
    "persisto/v1/server_service.proto",
    "health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
  ],
  {
    includeDirs: [
      path("proto"),
      path("node_modules/grpc-health-check/proto"),
      path("node_modules/@grpc/reflection/build/proto"),
    ],
    longs: String,
    enums: Number,
    bytes: Buffer,
    oneofs: true,
  },
);

type Definition = MethodDefinition<object, object>;

/** A client channel; `close` ends it. Options are those of grpc-js. */
export function createGrpcJsTransport(
  address: string,
  options: Readonly<Record<string, string | number>> = {},
): Transport & { close(): void } {
  const client = new Client(address, credentials.createInsecure(), { ...options });

  return {
    close: () => client.close(),

    unary(method, signal, timeoutMs, header, input) {
      const { definition, toWire, fromWire } = codecOf(method);
      return new Promise<UnaryResponse<typeof method.input, typeof method.output>>((resolve, reject) => {
        let responseHeader = new Headers();
        let message: MessageShape<typeof method.output> | undefined;
        const call = client.makeUnaryRequest(
          definition.path,
          definition.requestSerialize,
          definition.responseDeserialize,
          toWire(input),
          toMetadata(header),
          callOptions(timeoutMs),
          (error, value) => {
            if (error !== null) {
              reject(toConnectError(error));
            } else {
              message = fromWire(value as object);
            }
          },
        );
        call.on("metadata", (metadata: Metadata) => {
          responseHeader = toHeaders(metadata);
        });
        call.on("status", (status: StatusObject) => {
          const trailer = toHeaders(status.metadata);
          // The callback comes in the same turn, before or after.
          setImmediate(() => {
            if (message !== undefined) {
              const { parent: service } = method;
              resolve({ stream: false, service, method, header: responseHeader, trailer, message });
            }
          });
        });
        signal?.addEventListener("abort", () => call.cancel());
      });
    },

    async stream(method, signal, timeoutMs, header, input) {
      const { definition, toWire, fromWire } = codecOf(method);
      const metadata = toMetadata(header);
      const { path: name, requestSerialize, responseDeserialize, requestStream } = definition;
      const call = requestStream
        ? client.makeBidiStreamRequest(name, requestSerialize, responseDeserialize, metadata, callOptions(timeoutMs))
        : client.makeServerStreamRequest(
            name,
            requestSerialize,
            responseDeserialize,
            toWire((await firstOf(input)) as MessageInitShape<typeof method.input>),
            metadata,
            callOptions(timeoutMs),
          );
      signal?.addEventListener("abort", () => call.cancel());
      const trailer = new Headers();
      call.on("status", (status: StatusObject) => {
        for (const [key, value] of toHeaders(status.metadata)) {
          trailer.append(key, value);
        }
      });
      // Told to whoever reads the messages; without a listener Node would end the process.
      call.on("error", () => undefined);
      let isOver = false;
      call.on("close", () => {
        isOver = true;
      });
      if (call instanceof Duplex) {
        void (async () => {
          for await (const each of input) {
            if (isOver) return;
            if (!call.write(toWire(each))) {
              await new Promise<void>((done) => call.once("drain", done).once("close", done));
            }
          }
          call.end();
        })().catch(() => call.cancel());
      }
      async function* messages(): AsyncGenerator<MessageShape<typeof method.output>> {
        try {
          for await (const each of call) {
            yield fromWire(each as object);
          }
        } catch (error) {
          throw toConnectError(error as ServiceError);
        } finally {
          call.cancel();
        }
      }
      const response: StreamResponse<typeof method.input, typeof method.output> = {
        stream: true,
        service: method.parent,
        method,
        header: new Headers(),
        trailer,
        message: messages(),
      };
      return response;
    },
  };
}

function codecOf<I extends DescMessage, O extends DescMessage>(method: DescMethod & { input: I; output: O }) {
  const service = definitions[method.parent.typeName] as ServiceDefinition | undefined;
  const definition = service?.[method.name] as Definition | undefined;
  if (definition === undefined) {
    throw new Error(`the .proto files have no ${method.parent.typeName}.${method.name}`);
  }
  return {
    definition,
    toWire: (input: MessageInitShape<I>) =>
      definition.requestDeserialize(Buffer.from(toBinary(method.input, create(method.input, input)))),
    fromWire: (value: object): MessageShape<O> =>
      fromBinary(method.output, definition.responseSerialize(value)) as MessageShape<O>,
  };
}

async function firstOf<T>(input: AsyncIterable<T>): Promise<T | undefined> {
  for await (const each of input) {
    return each;
  }
  return undefined;
}

function callOptions(timeoutMs: number | undefined): { deadline?: number } {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

function toMetadata(header: ConstructorParameters<typeof Headers>[0]): Metadata {
  const metadata = new Metadata();
  for (const [key, value] of new Headers(header)) {
    metadata.add(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
  }
  return metadata;
}

function toHeaders(metadata: Metadata): Headers {
  const headers = new Headers();
  for (const key of Object.keys(metadata.getMap())) {
    for (const value of metadata.get(key)) {
      headers.append(key, typeof value === "string" ? value : value.toString("base64"));
    }
  }
  return headers;
}

function toConnectError(error: ServiceError): ConnectError {
  const converted = new ConnectError(
    error.details ?? error.message,
    (error.code as number | undefined) ?? Code.Unknown,
    undefined,
    undefined,
    error,
  );
  const [status] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (status instanceof Buffer) {
    converted.details = fromBinary(StatusSchema, status).details.map(({ typeUrl, value }) => ({
      type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1),
      value,
    }));
  }
  return converted;
}
