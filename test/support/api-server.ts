/** A whole server in this process, on any free port, with a folder of its own. */
import { randomBytes } from "node:crypto";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../../src/clock.ts";
import type { Log, LogFacts, LogLevel } from "../../src/observe/log.ts";
import { buildServer, type Server } from "../../src/server.ts";
import { loadSettings } from "../../src/settings/settings.ts";
import type { Executors } from "../../src/sqlite/executor.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { removeFolder } from "./temporary-folder.ts";

export interface LogLine {
  readonly level: LogLevel;
  readonly message: string;
  readonly facts: LogFacts;
}

export interface TestServer {
  readonly port: number;
  readonly server: Server;
  readonly executors: Executors;
  readonly directoryPath: string;
  /** The last lines of the log, debug included. */
  readonly logLines: readonly LogLine[];
  /** Ends it in good order and starts it again on the same folder, on another port. */
  restart(): Promise<void>;
  /** Ends it and removes the folder. */
  close(): Promise<void>;
}

const logLineCountMax = 10_000;

/**
 * Settings by their names in the environment. Unless told otherwise pools are small, and databases are made on the local
 * disk and stay there.
 */
export async function startTestServer(environment: Readonly<Record<string, string>> = {}): Promise<TestServer> {
  const directoryPath = mkdtempSync(join(tmpdir(), "persisto-api-"));
  const logLines: LogLine[] = [];
  let running = await start(directoryPath, environment, logLines);
  return {
    get port() {
      return running.server.port;
    },
    get server() {
      return running.server;
    },
    get executors() {
      return running.executors;
    },
    directoryPath,
    logLines,
    async restart() {
      await running.server.drain();
      running = await start(directoryPath, environment, logLines);
    },
    async close() {
      await running.server.close();
      removeFolder(directoryPath);
    },
  };
}

async function start(directoryPath: string, environment: Readonly<Record<string, string>>, logLines: LogLine[]) {
  const settings = loadSettings({
    SERVER_PORT: "0",
    STORAGE_LOCAL_DIRECTORY_PATH: join(directoryPath, "storage"),
    LOGGING_OUTPUT_FILE_PATH: join(directoryPath, "logs.log"),
    SETTINGS_DEFAULT_DATABASE_CREATION_STAGE: "2",
    SETTINGS_AUTO_STAGE_MOVEMENT: "false",
    EXECUTOR_COUNT_MIN: "1",
    EXECUTOR_COUNT_MAX: "4",
    SERVER_DRAIN_CALLS_SECONDS: "2",
    SERVER_DRAIN_SOCKETS_SECONDS: "3",
    ...environment,
  });
  const log = memoryLog(logLines);
  const executors = await startExecutors({
    limits: settings.executors,
    clock: systemClock,
    random: Math.random,
    log: log.write,
  });
  try {
    const server = await buildServer(settings, {
      executors,
      clock: systemClock,
      randomBytes,
      random: Math.random,
      log,
    });
    return { server, executors };
  } catch (error) {
    await executors.close(0);
    throw error;
  }
}

function memoryLog(lines: LogLine[]): Log {
  const write = (level: LogLevel, message: string, facts: LogFacts = {}) => {
    if (lines.length >= logLineCountMax) {
      lines.shift();
    }
    lines.push({ level, message, facts });
  };
  return {
    enabled: () => true,
    write,
    debug: (message, facts) => write("debug", message, facts),
    info: (message, facts) => write("info", message, facts),
    warn: (message, facts) => write("warn", message, facts),
    error: (message, facts) => write("error", message, facts),
    fatal: (message, facts) => write("fatal", message, facts),
    flush: () => undefined,
  };
}
