import { create, fromBinary } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import {
  ServerReflection,
  type ServerReflectionRequest,
  ServerReflectionRequestSchema,
  type ServerReflectionResponse,
} from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as ServerReflectionAlpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";
import { HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/health/v1/health_pb.js";
import { type ApiUnderTest, bidiClientKinds, describeEachProtocol, openClients } from "../support/api-clients.ts";
import { expectFailure, failureOf } from "../support/api-errors.ts";
import { startTestServer } from "../support/api-server.ts";

async function firstOf<T>(stream: AsyncIterable<T>): Promise<T | undefined> {
  for await (const each of stream) {
    return each;
  }
  return undefined;
}

describeEachProtocol("services beside DatabaseService", (api) => {
  it("GetServerInfo tells who this is and what its limits are", async () => {
    const info = await api.server.getServerInfo({});
    expect(info).toMatchObject({ name: "SQLite Backend API", version: "1.0.0", contactEmail: "unspecified" });
    expect(info.sqliteVersion).toMatch(/^3\.\d+\.\d+$/);
    expect(info.features).toContain("reflection");
    expect(info.features).not.toContain("authentication");
    expect(info.features.includes("own-grpc-path")).toBe(api.ownPath);
    expect(info.limits.LIMIT_RESULT_BYTES).toBe(2n * 1024n * 1024n);
  });

  it("answer NOT_IMPLEMENTED with the method's name where this version has nothing to serve", async () => {
    const calls = {
      "persisto.v1.DatabaseService.DownloadDatabase": () => firstOf(api.databases.downloadDatabase({})),
      "persisto.v1.DatabaseService.WatchDatabase": () => firstOf(api.databases.watchDatabase({})),
    };
    for (const [method, call] of Object.entries(calls)) {
      expect(await expectFailure(call() as Promise<unknown>, "NOT_IMPLEMENTED")).toEqual({ method });
    }
  });

  describe("health", () => {
    it("Check knows the server, each service, and no other", async () => {
      const names = ["", "persisto.v1.DatabaseService", "persisto.v1.StageService", "grpc.health.v1.Health"];
      for (const service of names) {
        expect((await api.health.check({ service })).status).toBe(ServingStatus.SERVING);
      }
      expect((await failureOf(api.health.check({ service: "persisto.v1.Nothing" }))).code).toBe(5);
    });

    it("List names them all", async () => {
      const { statuses } = await api.health.list({});
      expect(statuses[""]?.status).toBe(ServingStatus.SERVING);
      expect(Object.keys(statuses)).toContain("persisto.v1.ServerService");
    });

    it("Watch tells the status at once, also of services that are not there", async () => {
      expect((await firstOf(api.health.watch({ service: "" })))?.status).toBe(ServingStatus.SERVING);
      expect((await firstOf(api.health.watch({ service: "nobody" })))?.status).toBe(ServingStatus.SERVICE_UNKNOWN);
    });
  });
});

describe("health while the server drains", () => {
  it("turns NOT_SERVING for those who watch, before calls are refused", async () => {
    const testServer = await startTestServer({ SERVER_DRAIN_DELAY_SECONDS: "0.5" });
    const api = openClients("grpc h2", testServer.port);
    try {
      const statuses: ServingStatus[] = [];
      let drained: Promise<void> | undefined;
      try {
        for await (const { status } of api.health.watch({ service: "persisto.v1.DatabaseService" })) {
          statuses.push(status);
          drained ??= testServer.server.drain();
          if (status === ServingStatus.NOT_SERVING) {
            expect((await api.health.check({})).status).toBe(ServingStatus.NOT_SERVING);
            const ready = await fetch(`http://127.0.0.1:${testServer.port}/readyz`);
            expect([ready.status, await ready.text()]).toEqual([503, "not serving\n"]);
            expect((await fetch(`http://127.0.0.1:${testServer.port}/healthz`)).status).toBe(200);
          }
        }
      } catch (error) {
        expect(String(error)).toMatch(/unavailable|drain/i);
      }
      expect(statuses).toEqual([ServingStatus.SERVING, ServingStatus.NOT_SERVING]);
      await drained;
    } finally {
      api.close();
      await testServer.close();
    }
  });
});

describeEachProtocol(
  "reflection",
  (api) => {
    for (const version of ["v1", "v1alpha"] as const) {
      const ask = (...wishes: readonly ServerReflectionRequest["messageRequest"][]) => reflect(api, version, wishes);

      describe(version, () => {
        it("lists the services", async () => {
          const [answer] = await ask({ case: "listServices", value: "" });
          const names = answer?.case === "listServicesResponse" ? answer.value.service.map(({ name }) => name) : [];
          expect(names).toEqual([
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "persisto.v1.DatabaseService",
            "persisto.v1.OperationService",
            "persisto.v1.ServerService",
            "persisto.v1.StageService",
          ]);
        });

        it("serves each file, what it imports with it", async () => {
          const files = [
            "persisto/v1/database_service.proto",
            "persisto/v1/error_reason.proto",
            "google/protobuf/struct.proto",
            "google/rpc/error_details.proto",
            "health/v1/health.proto",
            "grpc/reflection/v1alpha/reflection.proto",
          ];
          const answers = await ask(...files.map((value) => ({ case: "fileByFilename" as const, value })));
          expect(answers.map((answer) => filesOf(answer)[0]?.name)).toEqual(files);
          const all = new Set(filesOf(answers[0]).map(({ name }) => name));
          for (const file of filesOf(answers[0])) {
            for (const dependency of file.dependency) {
              expect(all).toContain(dependency);
            }
          }
        });

        it("finds the file of any symbol", async () => {
          const symbols = {
            "persisto.v1.DatabaseService": "persisto/v1/database_service.proto",
            "persisto.v1.DatabaseService.Execute": "persisto/v1/database_service.proto",
            "persisto.v1.Value": "persisto/v1/value.proto",
            "persisto.v1.Value.kind": "persisto/v1/value.proto",
            "persisto.v1.Value.integer": "persisto/v1/value.proto",
            "persisto.v1.ErrorReason": "persisto/v1/error_reason.proto",
            "persisto.v1.ERROR_REASON_SQL_INVALID": "persisto/v1/error_reason.proto",
            "google.rpc.BadRequest.FieldViolation": "google/rpc/error_details.proto",
            "google.protobuf.NullValue": "google/protobuf/struct.proto",
          };
          const answers = await ask(
            ...Object.keys(symbols).map((value) => ({ case: "fileContainingSymbol" as const, value })),
          );
          expect(answers.map((answer) => filesOf(answer)[0]?.name)).toEqual(Object.values(symbols));
        });

        it("answers questions about what is not there, and goes on", async () => {
          const answers = await ask(
            { case: "fileByFilename", value: "etc/passwd" },
            { case: "fileContainingSymbol", value: "persisto.v1.Nothing" },
            {
              case: "fileContainingExtension",
              value: {
                $typeName: "grpc.reflection.v1.ExtensionRequest",
                containingType: "persisto.v1.Value",
                extensionNumber: 100,
              },
            },
            { case: "allExtensionNumbersOfType", value: "persisto.v1.Value" },
            { case: "allExtensionNumbersOfType", value: "persisto.v1.Nothing" },
            { case: undefined },
            { case: "listServices", value: "" },
          );
          expect(answers.map(({ case: kind, value }) => (kind === "errorResponse" ? value.errorCode : kind))).toEqual([
            5,
            5,
            5,
            "allExtensionNumbersResponse",
            5,
            3,
            "listServicesResponse",
          ]);
        });
      });
    }
  },
  { kinds: bidiClientKinds },
);

type ReflectionAnswer = ServerReflectionResponse["messageResponse"];

async function reflect(
  api: ApiUnderTest,
  version: "v1" | "v1alpha",
  wishes: readonly ServerReflectionRequest["messageRequest"][],
): Promise<ReflectionAnswer[]> {
  async function* requests() {
    for (const messageRequest of wishes) {
      yield create(ServerReflectionRequestSchema, { host: "here", messageRequest });
    }
  }
  // The two versions differ in the name of their package alone.
  const service = version === "v1" ? ServerReflection : (ServerReflectionAlpha as unknown as typeof ServerReflection);
  const answers: ReflectionAnswer[] = [];
  for await (const { validHost, originalRequest, messageResponse } of createClient(
    service,
    api.transport,
  ).serverReflectionInfo(version === "v1" ? requests() : withoutTypes(requests()))) {
    expect(validHost).toBe("here");
    expect(originalRequest?.messageRequest.case).toBe(wishes[answers.length]?.case);
    answers.push(messageResponse);
  }
  return answers;
}

/** Plain objects become messages of whatever type the client has. */
async function* withoutTypes(requests: AsyncIterable<ServerReflectionRequest>) {
  for await (const { host, messageRequest } of requests) {
    yield {
      host,
      messageRequest:
        messageRequest.case === "fileContainingExtension"
          ? { case: messageRequest.case, value: { ...messageRequest.value, $typeName: undefined } }
          : messageRequest,
    } as Pick<ServerReflectionRequest, "host" | "messageRequest">;
  }
}

function filesOf(answer: ReflectionAnswer | undefined): FileDescriptorProto[] {
  return answer?.case === "fileDescriptorResponse"
    ? answer.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes))
    : [];
}
