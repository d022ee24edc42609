/** The one table of settings: group and key in the program, name in the environment. */
import { callLimits, engineLimits, executorLimits, transportLimits } from "./limits.ts";
import { choice, count, flag, host, list, optionalText, type Setting, seconds, text } from "./setting.ts";

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

const stages = {
  autoMovement: flag("SETTINGS_AUTO_STAGE_MOVEMENT", true, "Moves databases between stages by their use."),
  defaultCreationStage: count(
    "SETTINGS_DEFAULT_DATABASE_CREATION_STAGE",
    3,
    { min: 1, max: 3 },
    "Stage of new databases: 1 memory, 2 local, 3 remote. Where a stage is not there, the next closer one is taken.",
  ),
  persistenceStage: count(
    "SETTINGS_PERSISTENCE_STAGE",
    3,
    { min: 1, max: 3 },
    "Farthest stage that data is synced to.",
  ),
  timeoutMs: seconds(
    "SETTINGS_STAGE_TIMEOUT_SECONDS",
    300,
    { min: 1, max: 31_536_000 },
    "Time without a request after which a database moves one stage farther.",
  ),
  requestCountThreshold: count(
    "SETTINGS_REQUEST_COUNT_THRESHOLD",
    2,
    { min: 1, max: 1_000_000_000 },
    "Requests after which a database moves one stage closer.",
  ),
  autoSyncEnabled: flag("SETTINGS_AUTO_SYNC_ENABLED", true, "Syncs databases to the persistence stage by itself."),
};

const storage = {
  memoryName: text("STORAGE_MEMORY_NAME", "Memory Storage", "Display name of the memory stage."),
  localName: text("STORAGE_LOCAL_NAME", "Local Storage", "Display name of the local stage."),
  localDirectoryPath: text(
    "STORAGE_LOCAL_DIRECTORY_PATH",
    "./storage",
    "Folder of the databases and the catalog; one server at a time.",
  ),
  remoteName: text("STORAGE_REMOTE_NAME", "Remote Storage", "Display name of the remote stage."),
  remoteAccessKeyId: optionalText("STORAGE_REMOTE_ACCESS_KEY_ID", "Access key of the object store."),
  remoteSecretKey: optionalText("STORAGE_REMOTE_SECRET_KEY", "Secret key of the object store.", { secret: true }),
  remoteBucketName: text("STORAGE_REMOTE_BUCKET_NAME", "sqlite-databases", "Bucket of the object store."),
  remoteEndpoint: optionalText("STORAGE_REMOTE_ENDPOINT", "URL of the object store."),
  remoteRegion: text("STORAGE_REMOTE_REGION", "auto", "Region of the object store."),
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
  stages,
  storage,
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
  storage: "Storage",
  github: "Release",
};

/** What holds for a whole group. */
export const groupNotes: Readonly<Partial<Record<keyof Schema, string>>> = {
  stages: "Read and checked; heeded from the version on that moves databases between stages.",
  storage:
    "The local stage is served; what names the memory and remote stages is read and checked, and heeded when they are.",
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
