/** Puts the layers together: one running server from settings and what is passed in. */
import { resolve } from "node:path";
import { createRegistry } from "@bufbuild/protobuf";
import { file_google_rpc_error_details } from "../gen/google/rpc/error_details_pb.js";
import { file_google_rpc_status } from "../gen/google/rpc/status_pb.js";
import { Health } from "../gen/health/v1/health_pb.js";
import { DatabaseService } from "../gen/persisto/v1/database_service_pb.js";
import { file_persisto_v1_error_reason } from "../gen/persisto/v1/error_reason_pb.js";
import { OperationService } from "../gen/persisto/v1/operation_pb.js";
import { ServerService } from "../gen/persisto/v1/server_service_pb.js";
import { StageService } from "../gen/persisto/v1/stage_service_pb.js";
import { callOf } from "./api/calls.ts";
import { databaseMethods } from "./api/databases.ts";
import { createToConnectError, failureToConnectError } from "./api/errors.ts";
import { HealthState, healthMethods } from "./api/health.ts";
import { historyMethods } from "./api/history.ts";
import { operationMethods } from "./api/operations.ts";
import { pages } from "./api/pages.ts";
import { addReflection, reflectionServices } from "./api/reflection.ts";
import { serverMethods } from "./api/server-info.ts";
import { stageMethods } from "./api/stages.ts";
import { type StatementServices, statementMethods } from "./api/statements.ts";
import { transact } from "./api/transact.ts";
import type { Clock } from "./clock.ts";
import type { Engine } from "./engine/engine.ts";
import { openEngine } from "./engine/local-engine.ts";
import { Failure } from "./failure/failure.ts";
import { traceIdOf } from "./observe/call.ts";
import { callLogger, type Log } from "./observe/log.ts";
import { createMetrics, METRICS_CONTENT_TYPE } from "./observe/metrics.ts";
import { type OpenedStages, openStages } from "./open-stages.ts";
import { publicLimits, type Settings } from "./settings/settings.ts";
import type { Executors } from "./sqlite/executor.ts";
import { startTransport } from "./transport/server.ts";
import type { Transport } from "./transport/transport.ts";

export interface ServerDependencies {
  /** The server closes them at its end. */
  readonly executors: Executors;
  /** Where they are being opened already, by the same settings. The server closes them at its end. */
  readonly stages?: Promise<OpenedStages>;
  readonly clock: Clock;
  /** That many bytes that nobody can guess. */
  readonly randomBytes: (byteCount: number) => Uint8Array;
  /** From 0 to below 1: jitter. */
  readonly random: () => number;
  readonly log: Log;
}

export interface Server {
  readonly port: number;
  /**
   * The orderly end: NOT_SERVING first, then no new calls; running ones end, or are answered SHUTTING_DOWN when their time
   * is over; then everything is flushed and closed.
   */
  drain(): Promise<void>;
  /** The quick end: calls are cut off, databases are closed. */
  close(): Promise<void>;
}

/** Opens the databases and then the port. When it throws, nothing is left open but the executors. */
export async function buildServer(settings: Settings, dependencies: ServerDependencies): Promise<Server> {
  const { executors, clock, randomBytes, log } = dependencies;
  const stages = await (dependencies.stages ?? openStages(settings, { clock, randomBytes, log }));
  const engine = await openEngine({
    directoryPath: resolve(settings.storage.localDirectoryPath),
    executors,
    clock,
    random: randomBytes,
    log: log.write,
    limits: settings.engine,
    ...stages.options,
  }).catch(async (error: unknown) => {
    await stages.close();
    throw error;
  });
  const health = new HealthState(services.map((service) => service.typeName));
  let transport: Transport;
  try {
    transport = await openPort(settings, dependencies, engine, health);
  } catch (error) {
    await engine.close();
    await stages.close();
    throw error;
  }
  health.setServing(true);

  let ending: Promise<void> | undefined;
  const closeAll = async (graceMs: number) => {
    await engine.close();
    await stages.close();
    await executors.close(graceMs);
  };
  return {
    port: transport.port,
    drain() {
      ending ??= (async () => {
        const { drainDelayMs, drainCallsMs, drainSocketsMs } = settings.server;
        health.setServing(false);
        if (drainDelayMs > 0) {
          await new Promise<void>((done) => clock.after(drainDelayMs, done));
        }
        health.end();
        await transport.drain({
          callsMs: drainCallsMs,
          socketsMs: drainSocketsMs,
          endCalls: () => failureToConnectError(new Failure("SHUTTING_DOWN")),
        });
        await closeAll(executorsGraceMs);
      })();
      return ending;
    },
    close() {
      ending ??= (async () => {
        health.setServing(false);
        await transport.close();
        await closeAll(0);
      })();
      return ending;
    },
  };
}

/** Nothing calls executors any more by then; this is for statements that will not be interrupted. */
const executorsGraceMs = 1000;

const persistoServices = [DatabaseService, StageService, OperationService, ServerService];
const services = [...persistoServices, Health, ...reflectionServices];

function openPort(
  settings: Settings,
  { executors, clock, random, randomBytes, log }: ServerDependencies,
  engine: Engine,
  health: HealthState,
): Promise<Transport> {
  const { server, calls } = settings;
  const statements: StatementServices = {
    engine,
    clock,
    limits: { ...calls, messageBytesMax: settings.transport.writeBytesMax },
  };
  const waiting = { engine, clock, limits: calls, waitMsMax: settings.transport.deadlineMsMax };
  const logCall = callLogger(log);
  let transport: Transport | undefined;
  const metrics = createMetrics({
    executors: () => executors.stats(),
    engine: () => engine.stats(),
    transport: () => transport ?? { connections: 0, callsActive: 0, bytesHeld: 0 },
  });
  const starting = startTransport({
    host: server.host,
    port: server.port,
    services: persistoServices,
    rawMethods: statementMethods(statements),
    unimplemented: (method) => new Failure("NOT_IMPLEMENTED", { method: `${method.parent.typeName}.${method.name}` }),
    routes(router) {
      router.service(DatabaseService, {
        ...databaseMethods(engine),
        ...historyMethods(waiting),
        transact: (requests, context) =>
          transact({ ...statements, lingerMs: settings.engine.transactionIdleMsMax }, requests, callOf(context)),
      });
      router.service(StageService, stageMethods(waiting));
      router.service(OperationService, operationMethods(engine));
      router.service(ServerService, serverMethods(serverFacts(settings, engine)));
      router.service(Health, healthMethods(health));
      addReflection(router, services, [
        file_persisto_v1_error_reason,
        file_google_rpc_error_details,
        file_google_rpc_status,
      ]);
    },
    toConnectError: createToConnectError({
      newErrorId: () => Buffer.from(randomBytes(8)).toString("hex"),
      onInternal: (errorId, error, call) =>
        log.error("a call failed for an unforeseen reason", {
          errorId,
          method: `${call.method.parent.typeName}/${call.method.name}`,
          traceId: traceIdOf(call.requestHeader("traceparent")),
          error,
        }),
    }),
    jsonOptions: { registry: createRegistry(file_google_rpc_error_details) },
    pages: pages({
      health,
      name: server.name,
      version: server.version,
      metrics: async () => ({ contentType: METRICS_CONTENT_TYPE, body: await metrics.text() }),
    }),
    onCallEnd(record) {
      metrics.observeCall(record);
      logCall?.(record);
    },
    ownPath: server.ownGrpcPath,
    tls:
      server.tlsCertificatePath === undefined || server.tlsKeyPath === undefined
        ? undefined
        : {
            certificatePath: server.tlsCertificatePath,
            keyPath: server.tlsKeyPath,
            clientCaPath: server.tlsClientCaPath,
          },
    corsOrigins: server.corsOrigins,
    limits: settings.transport,
    clock,
    random,
    onProblem: (message, error) => log.error(message, { error }),
  });
  return starting.then((started) => {
    transport = started;
    return started;
  });
}

function serverFacts(settings: Settings, engine: Engine) {
  const { server } = settings;
  const features = ["native-guard", "health", "reflection"];
  if (server.ownGrpcPath) features.push("own-grpc-path");
  if (server.tlsCertificatePath !== undefined) features.push("tls");
  if (server.tlsClientCaPath !== undefined) features.push("client-certificates");
  if (server.corsOrigins.length > 0) features.push("cors");
  return {
    name: server.name,
    version: server.version,
    description: server.description,
    contactName: server.contactName,
    contactEmail: server.contactEmail,
    sqliteVersion: engine.sqliteVersion,
    features,
    limits: publicLimits(settings),
  };
}
