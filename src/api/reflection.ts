/** grpc.reflection v1 and v1alpha, which differ in name only: descriptors of everything this server speaks. */
import {
  create,
  type DescExtension,
  type DescFile,
  type DescMessage,
  type DescService,
  fromBinary,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectRouter } from "@connectrpc/connect";
import {
  type ServerReflectionRequest,
  ServerReflectionRequestSchema,
  ServerReflectionResponseSchema,
  ServerReflection as ServerReflectionV1,
} from "../../gen/grpc/reflection/v1/reflection_pb.js";
import {
  ServerReflection as ServerReflectionV1Alpha,
  ServerReflectionRequestSchema as V1AlphaRequestSchema,
  ServerReflectionResponseSchema as V1AlphaResponseSchema,
} from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";

/** Both services, as their routes are told about. */
export const reflectionServices: readonly DescService[] = [ServerReflectionV1, ServerReflectionV1Alpha];

/** Adds both services to the routes. `services` are listed; their files, `files`, and all that these import are served. */
export function addReflection(
  router: Pick<ConnectRouter, "service">,
  services: readonly DescService[],
  files: readonly DescFile[],
): void {
  const catalog = new DescriptorCatalog(services, files);
  router.service(ServerReflectionV1, {
    async *serverReflectionInfo(requests) {
      for await (const request of requests) {
        yield catalog.answer(request);
      }
    },
  });
  router.service(ServerReflectionV1Alpha, {
    async *serverReflectionInfo(requests) {
      for await (const request of requests) {
        const answer = catalog.answer(
          fromBinary(ServerReflectionRequestSchema, toBinary(V1AlphaRequestSchema, request)),
        );
        yield fromBinary(
          V1AlphaResponseSchema,
          toBinary(ServerReflectionResponseSchema, create(ServerReflectionResponseSchema, answer)),
        );
      }
    },
  });
}

type Answer = MessageInitShape<typeof ServerReflectionResponseSchema>;
type AnswerBody = NonNullable<Answer["messageResponse"]>;

class DescriptorCatalog {
  readonly #serviceNames: readonly string[];
  readonly #files = new Map<string, DescFile>();
  #symbols: Map<string, DescFile> | undefined;
  readonly #messageNames = new Set<string>();
  readonly #extensions = new Map<string, Map<number, DescFile>>();

  constructor(services: readonly DescService[], files: readonly DescFile[]) {
    this.#serviceNames = services.map((service) => service.typeName).sort();
    for (const file of [...services.map((service) => service.file), ...files]) {
      this.#addFile(file);
    }
  }

  answer(request: ServerReflectionRequest): Answer {
    return { validHost: request.host, originalRequest: request, messageResponse: this.#body(request) };
  }

  #body({ messageRequest: wish }: ServerReflectionRequest): AnswerBody {
    switch (wish.case) {
      case "fileByFilename":
        return this.#fileAnswer(this.#files.get(wish.value), "file", wish.value);
      case "fileContainingSymbol":
        return this.#fileAnswer(this.#index().get(wish.value.replace(/^\./, "")), "symbol", wish.value);
      case "fileContainingExtension": {
        const { containingType, extensionNumber } = wish.value;
        this.#index();
        const file = this.#extensions.get(containingType)?.get(extensionNumber);
        return this.#fileAnswer(file, "extension", `${containingType}.${extensionNumber}`);
      }
      case "allExtensionNumbersOfType": {
        this.#index();
        if (!this.#messageNames.has(wish.value)) {
          return failed(Code.NotFound, `no message ${wish.value.slice(0, 200)}`);
        }
        const numbers = [...(this.#extensions.get(wish.value)?.keys() ?? [])].sort((a, b) => a - b);
        return {
          case: "allExtensionNumbersResponse",
          value: { baseTypeName: wish.value, extensionNumber: numbers },
        };
      }
      case "listServices":
        return {
          case: "listServicesResponse",
          value: { service: this.#serviceNames.map((name) => ({ name })) },
        };
      default:
        return failed(Code.InvalidArgument, "the request asks for nothing");
    }
  }

  /** The file and all that it imports, itself first: clients need no second question. */
  #fileAnswer(file: DescFile | undefined, kind: string, name: string): AnswerBody {
    if (file === undefined) {
      return failed(Code.NotFound, `no ${kind} ${name.slice(0, 200)}`);
    }
    const wanted = new Set([file]);
    for (const each of wanted) {
      for (const dependency of each.dependencies) {
        wanted.add(dependency);
      }
    }
    const fileDescriptorProto = [...wanted].map((each) => toBinary(FileDescriptorProtoSchema, each.proto));
    return { case: "fileDescriptorResponse", value: { fileDescriptorProto } };
  }

  #addFile(file: DescFile): void {
    if (!this.#files.has(file.proto.name)) {
      this.#files.set(file.proto.name, file);
      for (const dependency of file.dependencies) {
        this.#addFile(dependency);
      }
    }
  }

  /** Built at the first question that needs it: most servers are never asked. */
  #index(): Map<string, DescFile> {
    if (this.#symbols === undefined) {
      this.#symbols = new Map();
      for (const file of this.#files.values()) {
        this.#indexFile(file, this.#symbols);
      }
    }
    return this.#symbols;
  }

  #indexFile(file: DescFile, symbols: Map<string, DescFile>): void {
    const addExtension = (extension: DescExtension) => {
      symbols.set(extension.typeName, file);
      const numbers = this.#extensions.get(extension.extendee.typeName) ?? new Map<number, DescFile>();
      numbers.set(extension.number, file);
      this.#extensions.set(extension.extendee.typeName, numbers);
    };
    const addEnum = (desc: DescFile["enums"][number]) => {
      symbols.set(desc.typeName, file);
      const scope = desc.typeName.slice(0, desc.typeName.lastIndexOf(".") + 1);
      for (const value of desc.values) {
        symbols.set(scope + value.name, file);
      }
    };
    const addMessage = (desc: DescMessage) => {
      symbols.set(desc.typeName, file);
      this.#messageNames.add(desc.typeName);
      for (const member of [...desc.fields, ...desc.oneofs]) {
        symbols.set(`${desc.typeName}.${member.name}`, file);
      }
      desc.nestedMessages.forEach(addMessage);
      desc.nestedEnums.forEach(addEnum);
      desc.nestedExtensions.forEach(addExtension);
    };
    file.messages.forEach(addMessage);
    file.enums.forEach(addEnum);
    file.extensions.forEach(addExtension);
    for (const service of file.services) {
      symbols.set(service.typeName, file);
      for (const method of service.methods) {
        symbols.set(`${service.typeName}.${method.name}`, file);
      }
    }
  }
}

function failed(code: Code, message: string): AnswerBody {
  return { case: "errorResponse", value: { errorCode: code, errorMessage: message } };
}
