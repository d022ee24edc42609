/** Persisto itself, as the process that is measured. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { childPids, stopProcess } from "./processes.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const built = join(root, "dist", "main.js");

/** The built program, or the sources where it is not built. */
export const serverEntry = existsSync(built) ? built : join(root, "src", "main.ts");
export const serverIsBuilt = serverEntry === built;

/** A port that is free now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

export interface Server {
  readonly port: number;
  readonly pid: number;
  /** Processes that run SQL. */
  executorPids(): number[];
  /** SIGTERM, and waits for the end. */
  stop(): Promise<void>;
}

/** For benchmarks of something else than stages: databases live on the local disk and stay there. */
export const staysLocal = {
  SETTINGS_AUTO_STAGE_MOVEMENT: "false",
  SETTINGS_DEFAULT_DATABASE_CREATION_STAGE: "2",
} as const;

/** An object store on this machine as the remote stage. */
export const remoteAt = (port: number) => ({
  STORAGE_REMOTE_ENDPOINT: `http://127.0.0.1:${port}`,
  STORAGE_REMOTE_ACCESS_KEY_ID: "benchmark",
  STORAGE_REMOTE_SECRET_KEY: "benchmark",
  STORAGE_REMOTE_BUCKET_NAME: "benchmark",
});

export interface ServerOptions {
  /** Where databases and logs go. */
  readonly folder: string;
  readonly settings?: Readonly<Record<string, string>>;
  readonly prefix?: readonly string[];
  readonly nodeOptions?: readonly string[];
  readonly port?: number;
}

/** Starts the process without waiting for it. Its environment holds these settings and nothing else: all others are defaults. */
export function spawnServer(options: ServerOptions & { readonly port: number }): ChildProcess {
  const log = openSync(join(options.folder, "server.log"), "a");
  const [command = process.execPath, ...args] = [
    ...(options.prefix ?? []),
    process.execPath,
    ...(options.nodeOptions ?? []),
    serverEntry,
  ];
  const child = spawn(command, args, {
    cwd: options.folder,
    env: {
      SERVER_PORT: String(options.port),
      STORAGE_LOCAL_DIRECTORY_PATH: join(options.folder, "storage"),
      LOGGING_OUTPUT_FILE_PATH: join(options.folder, "logs.log"),
      UV_THREADPOOL_SIZE: "16",
      ...options.settings,
    },
    stdio: ["ignore", log, log],
  });
  closeSync(log);
  return child;
}

/** Starts the server and waits until it says that it is ready. */
export async function startServer(options: ServerOptions): Promise<Server> {
  const port = options.port ?? (await freePort());
  const child = spawnServer({ ...options, port });
  const pid = child.pid;
  if (pid === undefined) throw new Error(`${serverEntry} does not start`);
  const giveUpAt = performance.now() + 20_000;
  while (!(await isReady(port))) {
    if (child.exitCode !== null || performance.now() > giveUpAt) {
      await stopProcess(child, "SIGKILL");
      throw new Error(
        `the server is not ready:\n${readFileSync(join(options.folder, "server.log"), "utf8").slice(-4000)}`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return {
    port,
    pid,
    executorPids: () => childPids(pid),
    stop: () => stopProcess(child, "SIGTERM"),
  };
}

async function isReady(port: number): Promise<boolean> {
  try {
    const response = await fetch(`http://127.0.0.1:${port}/readyz`);
    await response.arrayBuffer();
    return response.ok;
  } catch {
    // Refused: it does not listen yet. The caller bounds the wait.
    return false;
  }
}
