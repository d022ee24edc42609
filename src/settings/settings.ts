/** Environment → one frozen Settings, completed and checked once. */
import { isIP } from "node:net";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import { allSettings, type Settings, schema } from "./schema.ts";

export type { Settings } from "./schema.ts";

/** Thrown when the environment does not make sense; the message lists every problem. */
export class SettingsError extends Error {
  override readonly name = "SettingsError";
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(
      `${problems.length === 1 ? "a setting is" : `${problems.length} settings are`} wrong; docs/CONFIGURATION.md lists all of them\n` +
        problems.map((problem) => `  - ${problem}`).join("\n"),
    );
    this.problems = problems;
  }
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Completes and checks the settings; throws one SettingsError with everything that is wrong. Empty variables count as unset. */
export function loadSettings(environment: Environment): Settings {
  const problems: string[] = misspelled(environment);
  const wrong = new Set<string>();
  const groups: Record<string, Record<string, unknown>> = {};
  for (const { group, key, setting } of allSettings()) {
    const given = environment[setting.name]?.trim() ?? "";
    let result = setting.type.safeParse(given);
    if (!result.success) {
      wrong.add(setting.name);
      result = setting.type.safeParse(""); // its default, so that the others can be compared with each other
      const shown = setting.secret ? "" : `, not ${JSON.stringify(given.slice(0, 100))}`;
      problems.push(`${setting.name} must be ${setting.expected}${shown}`);
    }
    groups[group] ??= {};
    groups[group][key] = result.data;
  }
  const settings = completed(groups as Settings, environment);
  problems.push(
    ...contradictory(settings).filter((text) => !(text.match(/[A-Z_]+/g) ?? []).some((name) => wrong.has(name))),
  );
  if (problems.length > 0) throw new SettingsError(problems);
  for (const group of Object.values(settings)) Object.freeze(group);
  return Object.freeze(settings);
}

/** What stands for itself only beside other settings: counts by the number of cores, and the stage of new databases. */
function completed(settings: Settings, environment: Environment): Settings {
  const cores = availableParallelism();
  const { executorCountMin: min, executorCountMax: max } = settings.executors;
  const executorCountMin = min !== 0 ? min : max === 0 ? cores : Math.min(cores, max);
  const executorCountMax = max !== 0 ? max : Math.max(executorCountMin, 4 * cores, 8);
  const { defaultCreationStage: stage, persistenceStage } = settings.stages;
  const isGiven = (environment[schema.stages.defaultCreationStage.name]?.trim() ?? "") !== "";
  return {
    ...settings,
    executors: { ...settings.executors, executorCountMin, executorCountMax },
    stages: { ...settings.stages, defaultCreationStage: isGiven ? stage : Math.min(stage, persistenceStage) },
  };
}

/** The whole environment of this process. */
export function processEnvironment(): Environment {
  return process.env;
}

const concernsClients =
  /^LIMIT_(?!OPEN_|FLUSH_|LIST_SCAN_)|^SETTINGS_(STATEMENT|TRANSACTION|REQUEST)_|^SERVER_(READ_BYTES|WRITE_BYTES|DEADLINE|STREAMS)_/;

/** The limits that clients may want to know, by the name of their setting. */
export function publicLimits(settings: Settings): Readonly<Record<string, number>> {
  const limits: Record<string, number> = {};
  for (const name of ["transport", "executors", "calls", "engine"] as const) {
    const values: Readonly<Record<string, number>> = settings[name];
    for (const [key, setting] of Object.entries(schema[name])) {
      if (!concernsClients.test(setting.name)) continue;
      const value = values[key] ?? 0;
      limits[setting.name] = setting.name.endsWith("_SECONDS") ? Math.ceil(value / 1000) : value;
    }
  }
  return limits;
}

/** True for addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  if (host === "localhost" || host === "::1") return true;
  return isIP(host) === 4 && host.startsWith("127.");
}

/** True when the remote stage is a bucket behind the S3 API, false when it is a folder. */
export function usesS3({ storage }: Pick<Settings, "storage">): boolean {
  return storage.remoteEndpoint !== undefined || storage.remoteAccessKeyId !== undefined;
}

function contradictory(settings: Settings): string[] {
  const problems: string[] = [];
  const { server, transport, executors, calls, engine, stages, storage } = settings;
  if (!isLoopback(server.host) && !server.allowUnauthenticated) {
    problems.push(
      `SERVER_HOST ${server.host} can be reached from other machines, and this server does not authenticate callers: ` +
        "keep 127.0.0.1, or set SERVER_ALLOW_UNAUTHENTICATED=true where the network is trusted",
    );
  }
  if ((server.tlsCertificatePath === undefined) !== (server.tlsKeyPath === undefined)) {
    problems.push("SERVER_TLS_CERTIFICATE_PATH and SERVER_TLS_KEY_PATH must be set together");
  }
  if (server.tlsClientCaPath !== undefined && server.tlsCertificatePath === undefined) {
    problems.push("SERVER_TLS_CLIENT_CA_PATH needs SERVER_TLS_CERTIFICATE_PATH and SERVER_TLS_KEY_PATH");
  }
  if (server.drainCallsMs > server.drainSocketsMs) {
    problems.push("SERVER_DRAIN_CALLS_SECONDS must not be greater than SERVER_DRAIN_SOCKETS_SECONDS");
  }
  if (calls.resultBytesMax > transport.writeBytesMax) {
    problems.push("LIMIT_RESULT_BYTES must not be greater than SERVER_WRITE_BYTES_MAX");
  }
  if (transport.readBytesMax > transport.bytesHeldMax) {
    problems.push("SERVER_READ_BYTES_MAX must not be greater than SERVER_HELD_BYTES_MAX");
  }
  if (executors.executorCountMin > executors.executorCountMax) {
    problems.push("EXECUTOR_COUNT_MIN must not be greater than EXECUTOR_COUNT_MAX");
  }
  if (calls.statementTimeoutMs > calls.statementTimeoutMsMax) {
    problems.push("SETTINGS_STATEMENT_TIMEOUT_SECONDS must not be greater than SETTINGS_STATEMENT_TIMEOUT_MAX_SECONDS");
  }
  if (engine.transactionIdleMsMax > engine.transactionTotalMsMax) {
    problems.push("SETTINGS_TRANSACTION_IDLE_SECONDS must not be greater than SETTINGS_TRANSACTION_TOTAL_SECONDS");
  }
  if (engine.checkpointFrames > engine.checkpointPauseFrames || engine.checkpointPauseFrames > engine.walFramesMax) {
    problems.push(
      "SETTINGS_CHECKPOINT_FRAMES_COUNT, SETTINGS_CHECKPOINT_PAUSE_FRAMES_COUNT and LIMIT_WAL_FRAMES_COUNT must be in rising order",
    );
  }
  if ((engine.pageBytes & (engine.pageBytes - 1)) !== 0) {
    problems.push(`SETTINGS_PAGE_BYTES must be a power of two, not ${engine.pageBytes}`);
  }
  if ((storage.remoteAccessKeyId === undefined) !== (storage.remoteSecretKey === undefined)) {
    problems.push("STORAGE_REMOTE_ACCESS_KEY_ID and STORAGE_REMOTE_SECRET_KEY must be set together");
  }
  if (storage.remoteDirectoryPath !== undefined && usesS3(settings)) {
    problems.push(
      "STORAGE_REMOTE_DIRECTORY_PATH must not be set together with STORAGE_REMOTE_ENDPOINT or STORAGE_REMOTE_ACCESS_KEY_ID: " +
        "the remote stage is a folder or an S3 bucket",
    );
  }
  if (
    storage.remoteAccessKeyId !== undefined &&
    storage.remoteEndpoint === undefined &&
    storage.remoteRegion === "auto"
  ) {
    problems.push("STORAGE_REMOTE_REGION must be given for AWS, where no STORAGE_REMOTE_ENDPOINT is set");
  }
  const folders = [
    ["STORAGE_LOCAL_DIRECTORY_PATH", storage.localDirectoryPath],
    ["STORAGE_MEMORY_DIRECTORY_PATH", storage.memoryDirectoryPath],
    ["STORAGE_REMOTE_DIRECTORY_PATH", storage.remoteDirectoryPath],
  ] as const;
  for (const [index, [name, path]] of folders.entries()) {
    if (path === undefined) continue;
    const same = folders.slice(0, index).find(([, other]) => other !== undefined && resolve(other) === resolve(path));
    if (same !== undefined) problems.push(`${name} must be another folder than ${same[0]}`);
  }
  if (stages.defaultCreationStage > stages.persistenceStage) {
    problems.push("SETTINGS_DEFAULT_DATABASE_CREATION_STAGE must not be farther than SETTINGS_PERSISTENCE_STAGE");
  }
  return problems;
}

/**
 * Variables that look like a setting written wrong. Others with our prefixes pass: orchestrators put variables of their own
 * (SERVER_SERVICE_HOST, GITHUB_REPOSITORY_ID) into every process.
 */
function misspelled(environment: Environment): string[] {
  const names = allSettings().map(({ setting }) => setting.name);
  const known = new Set(names);
  return Object.keys(environment)
    .filter((name) => !known.has(name) && /^(SERVER|STORAGE|SETTINGS|LOGGING|EXECUTOR|LIMIT)_/i.test(name))
    .flatMap((name) => {
      const meant = names.find((candidate) => resembles(name.toUpperCase(), candidate));
      return meant === undefined ? [] : [`${name} is not a setting; ${meant} is`];
    });
}

function resembles(name: string, candidate: string): boolean {
  return candidate === name || candidate.startsWith(`${name}_`) || editDistance(name, candidate, 2) <= 2;
}

/** Insertions, deletions and replacements between two words; anything above `max` may read as `max + 1`. */
function editDistance(a: string, b: string, max: number): number {
  if (Math.abs(a.length - b.length) > max) return max + 1;
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const replaced = (previous[column - 1] ?? 0) + (a[row - 1] === b[column - 1] ? 0 : 1);
      current[column] = Math.min(replaced, (previous[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1);
    }
    previous = current;
  }
  return previous[b.length] ?? 0;
}
