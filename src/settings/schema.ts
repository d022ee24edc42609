/** The one table of settings: group and key in the program, name in the environment. */
import { callLimits, engineLimits, executorLimits, transportLimits } from "./limits.ts";
import { choice, count, flag, host, list, optionalText, type Setting, seconds, text } from "./setting.ts";
import { stageSettings, storageSettings, syncSettings } from "./stages.ts";

const server = {
  host: host(
    "SERVER_HOST",
    "127.0.0.1",
    "Address to listen on. Beyond loopback it needs SERVER_ALLOW_UNAUTHENTICATED.",
  ),
  port: count(
    "SERVER_PORT",
    8080,
    { min: 0, max: 65_535 },
    "Port for gRPC, gRPC-Web, Connect and plain HTTP; 0: any free one.",
  ),
  allowUnauthenticated: flag(
    "SERVER_ALLOW_UNAUTHENTICATED",
    false,
    "Lets SERVER_HOST be an address that other machines reach although callers are not authenticated.",
  ),
  name: text("SERVER_NAME", "SQLite Backend API", "Name that GetServerInfo gives."),
  version: text("SERVER_VERSION", "1.0.0", "Version that GetServerInfo gives."),
  description: text(
    "SERVER_DESCRIPTION",
    "API for managing SQLite databases and monitoring stages",
    "Description that GetServerInfo gives.",
  ),
  contactName: text("SERVER_CONTACT_NAME", "Unknown", "Who answers for this server."),
  contactEmail: text("SERVER_CONTACT_EMAIL", "unspecified", "Where to reach them."),
  tlsCertificatePath: optionalText(
    "SERVER_TLS_CERTIFICATE_PATH",
    "Certificate chain (PEM); with it the port speaks TLS only. Read again when the file changes.",
  ),
  tlsKeyPath: optionalText("SERVER_TLS_KEY_PATH", "Private key of the certificate (PEM)."),
  tlsClientCaPath: optionalText("SERVER_TLS_CLIENT_CA_PATH", "Authority (PEM) whose certificates clients must show."),
  corsOrigins: list(
    "SERVER_CORS_ORIGINS",
    "Origins of web pages that may call, such as https://app.example.com; * allows all; empty: none.",
  ),
  ownGrpcPath: flag(
    "SERVER_OWN_GRPC_PATH",
    true,
    "Serves unary gRPC on the short path; false sends every call through Connect's adapter, many times slower.",
  ),
  drainDelayMs: seconds(
    "SERVER_DRAIN_DELAY_SECONDS",
    0,
    { min: 0, max: 600 },
    "Pause at the end between turning NOT_SERVING and refusing calls, for balancers to notice; 5 is usual behind one.",
  ),
  drainCallsMs: seconds(
    "SERVER_DRAIN_CALLS_SECONDS",
    20,
    { min: 0, max: 3600 },
    "How long running calls may go on while the server ends; then they are answered SHUTTING_DOWN.",
  ),
  drainSocketsMs: seconds(
    "SERVER_DRAIN_SOCKETS_SECONDS",
    25,
    { min: 0, max: 3600 },
    "When the last connections are cut, counted from the same moment.",
  ),
};

const logging = {
  level: choice(
    "LOGGING_LEVEL",
    "info",
    ["debug", "info", "warn", "error", "fatal"],
    "Least severe level that is written. debug adds one line for each call.",
  ),
  outputFilePath: text(
    "LOGGING_OUTPUT_FILE_PATH",
    "logs.log",
    "File that gets the log as JSON lines, besides the standard output.",
  ),
};

const github = {
  repositoryOwner: optionalText("GITHUB_REPOSITORY_OWNER", "Used by the release process alone."),
  repositoryName: optionalText("GITHUB_REPOSITORY_NAME", "Used by the release process alone."),
  repositoryToken: optionalText("GITHUB_REPOSITORY_TOKEN", "Used by the release process alone.", { secret: true }),
};

/** Every setting, in groups. */
export const schema = {
  server,
  transport: transportLimits,
  executors: executorLimits,
  calls: callLimits,
  engine: engineLimits,
  logging,
  stages: stageSettings,
  sync: syncSettings,
  storage: storageSettings,
  github,
};

type Schema = typeof schema;

/** All settings, complete and checked. Durations are in milliseconds, sizes in bytes. */
export type Settings = {
  readonly [Group in keyof Schema]: {
    readonly [Key in keyof Schema[Group]]: Schema[Group][Key] extends Setting<infer T> ? T : never;
  };
};

/** What each group is about, in the order of the documentation. */
export const groupTitles: Readonly<Record<keyof Schema, string>> = {
  server: "Server",
  transport: "Connections and messages",
  executors: "Executors and SQL",
  calls: "Calls",
  engine: "Transactions and databases",
  logging: "Logs",
  stages: "Stages",
  sync: "Sync and history",
  storage: "Storage",
  github: "Release",
};

/** Every setting in the order of the table. */
export function allSettings(): readonly {
  readonly group: keyof Schema;
  readonly key: string;
  readonly setting: Setting<unknown>;
}[] {
  return Object.entries(schema).flatMap(([group, settings]) =>
    Object.entries(settings).map(([key, setting]) => ({
      group: group as keyof Schema,
      key,
      setting: setting as Setting<unknown>,
    })),
  );
}
