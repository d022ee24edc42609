/** The program: settings, executors, server; then waits for the signal to end. Or a command in their place. */
import { randomBytes } from "node:crypto";
import { enableCompileCache, flushCompileCache } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { systemClock } from "./clock.ts";
import type { Log } from "./observe/log.ts";
import { storagePlaces } from "./settings/places.ts";
import { loadSettings, processEnvironment, type Settings, SettingsError, usesS3 } from "./settings/settings.ts";
import { startExecutors } from "./sqlite/pool.ts";

/** By name: their modules are loaded late. */
const foreseen = new Set([
  "FolderInUseError",
  "CatalogVersionError",
  "CertificateError",
  "NativeLibraryError",
  "StageError",
]);

/** A second signal that comes this soon is the first one again: npm passes on what the terminal has sent already. */
const echoMs = 250;

// Helpers of the young generation's collector wait by spinning; on few cores that is time taken from executors.
if (availableParallelism() < 4) setFlagsFromString("--no-parallel-scavenge");
// A burst makes V8 place objects of calls in the old generation from then on, where they keep younger ones alive.
setFlagsFromString("--no-allocation-site-pretenuring");

const [commandName, ...commandArgs] = process.argv.slice(2);
try {
  if (commandName === undefined) await main();
  else process.exitCode = await command(commandName, commandArgs);
} catch (error) {
  process.stderr.write(`Persisto cannot start: ${explain(error)}\n`);
  process.exit(commandName === undefined ? 1 : 2);
}

/** Runs in place of the server. */
async function command(name: string, args: readonly string[]): Promise<number> {
  const { runCommand } = await import("./commands/run.ts");
  const ending = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => ending.abort());
  return runCommand(name, {
    args,
    settings: loadSettings(processEnvironment()),
    clock: systemClock,
    randomBytes,
    random: Math.random,
    print: (text) => process.stdout.write(text),
    complain: (text) => process.stderr.write(text),
    signal: ending.signal,
  });
}

async function main(): Promise<void> {
  const settings = loadSettings(processEnvironment());
  const logOpening = Promise.withResolvers<Log>();
  // The executors start while the rest is still being read from disk, which takes about as long.
  const executorsStarting = startExecutors({
    limits: settings.executors,
    clock: systemClock,
    random: Math.random,
    log: (...entry) => logOpening.promise.then((log) => log.write(...entry)),
  });
  // Reported where it is awaited; until then it must not count as unhandled.
  executorsStarting.catch(() => undefined);
  // What is loaded from here on is compiled at the first start, not at every one. Without a place for it nothing is kept.
  enableCompileCache(join(settings.storage.localDirectoryPath, "compile-cache"));
  const [{ openLog }, { buildServer }, { openStages }] = await Promise.all([
    import("./observe/log.ts"),
    import("./server.ts"),
    import("./open-stages.ts"),
  ]);
  const log = await openLog(settings.logging);
  logOpening.resolve(log);
  process.on("uncaughtException", (error) => {
    log.fatal("the server ends: an error that nobody handled", { error });
    log.flush();
    process.exit(1);
  });
  const stagesOpening = openStages(settings, { clock: systemClock, randomBytes, log });
  // As above.
  stagesOpening.catch(() => undefined);
  const executors = await executorsStarting;
  const server = await buildServer(settings, {
    executors,
    stages: stagesOpening,
    clock: systemClock,
    randomBytes,
    random: Math.random,
    log,
  }).catch(async (error: unknown) => {
    await executors.close(0);
    throw error;
  });

  let endingSinceMs: number | undefined;
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      if (endingSinceMs !== undefined) {
        if (systemClock.now() - endingSinceMs < echoMs) return;
        log.warn("ends at once", { signal });
        log.flush();
        process.exit(0);
      }
      endingSinceMs = systemClock.now();
      log.info("drains: running calls may end; a second signal ends at once", { signal });
      void server.drain().then(
        () => {
          log.info("ended");
          log.flush();
          process.exit(0);
        },
        (error: unknown) => {
          log.fatal("the end was not orderly", { error });
          log.flush();
          process.exit(1);
        },
      );
    });
  }
  // Who reads it may send a signal at once.
  announce(settings, server.port, log);
  // Node would write it at an orderly end only.
  setImmediate(flushCompileCache);
}

function announce(settings: Settings, port: number, log: Log): void {
  const { server } = settings;
  const { localDirectoryPath: storage, objectStore } = storagePlaces(settings);
  // The origin alone: a URL may hold a password.
  const endpoint = objectStore.endpoint === undefined ? "AWS" : new URL(objectStore.endpoint).origin;
  const remote = usesS3(settings) ? `bucket ${objectStore.bucket} at ${endpoint}` : objectStore.directoryPath;
  const address = `${server.host.includes(":") ? `[${server.host}]` : server.host}:${port}`;
  const isTls = server.tlsCertificatePath !== undefined;
  log.info(`serves gRPC, gRPC-Web and Connect on ${isTls ? "https" : "http"}://${address}`, {
    port,
    storage,
    ...(settings.stages.persistenceStage === 3 ? { remote } : {}),
  });
  log.warn("authentication is off: whoever reaches the port may do everything");
  const security = isTls ? "" : "-plaintext ";
  log.info(`try: grpcurl ${security}-d '{"database":"first"}' ${address} persisto.v1.DatabaseService/CreateDatabase`);
}

/** What went wrong and what to do; the stack only of what nobody foresaw. */
function explain(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  if (error instanceof SettingsError || foreseen.has(error.name)) {
    return error.message;
  }
  switch ((error as NodeJS.ErrnoException).code) {
    case "EADDRINUSE":
      return `${error.message}; stop the other program, or choose another port by SERVER_PORT`;
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
      return `${error.message}; SERVER_HOST must be an address of this machine`;
    case "EACCES":
    case "EPERM":
    case "EROFS":
    case "ENOSPC":
    case "EEXIST":
    case "ENOENT":
    case "ENOTDIR":
    case "EISDIR":
      return `${error.message}; look at the paths and ports in the settings, and at who may use them`;
    default:
      return error.stack ?? error.message;
  }
}
