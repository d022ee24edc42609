/** Real S3 servers on loopback, where they are installed: see tools/install-s3-servers.sh. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { delimiter, join, resolve } from "node:path";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { until } from "../support/until.ts";

export const accessKeyId = "persisto-tests";
export const secretAccessKey = "persisto-tests-secret";
export const bucket = "sqlite-databases";

export interface S3ServerKind {
  readonly name: string;
  readonly program: string;
  /** Refuses a put whose condition does not hold. */
  readonly hasConditions: boolean;
  /** Refuses a wrong secret. */
  readonly checksSecrets: boolean;
  /** Makes a bucket by itself when somebody puts into it. */
  readonly makesBuckets?: boolean;
  readonly start: (
    folder: string,
    ports: readonly number[],
  ) => { args: string[]; environment?: Record<string, string> };
}

export const s3ServerKinds: readonly S3ServerKind[] = [
  {
    name: "SeaweedFS",
    program: "weed",
    makesBuckets: true,
    hasConditions: true,
    checksSecrets: true,
    start: (folder, ports) => ({
      args: [
        "mini",
        `-dir=${folder}`,
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        `-s3.port=${ports[0]}`,
        ...["s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"].map(
          (flag, index) => `-${flag}=${ports[index + 1]}`,
        ),
        ...["filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"].map(
          (flag, index) => `-${flag}=${ports[index + 6]}`,
        ),
      ],
      environment: { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey },
    }),
  },
  {
    name: "Versity S3 Gateway",
    program: "versitygw",
    hasConditions: true,
    checksSecrets: true,
    start: (folder, [port]) => ({
      args: [`--access=${accessKeyId}`, `--secret=${secretAccessKey}`, `--port=127.0.0.1:${port}`, "posix", folder],
    }),
  },
  {
    name: "MinIO",
    program: "minio",
    hasConditions: true,
    checksSecrets: true,
    start: (folder, [port, consolePort]) => ({
      args: ["server", `--address=127.0.0.1:${port}`, `--console-address=127.0.0.1:${consolePort}`, folder],
      environment: { MINIO_ROOT_USER: accessKeyId, MINIO_ROOT_PASSWORD: secretAccessKey },
    }),
  },
  {
    name: "moto",
    program: "moto_server",
    hasConditions: true,
    checksSecrets: false,
    start: (_folder, [port]) => ({ args: ["-H", "127.0.0.1", "-p", String(port)] }),
  },
  {
    name: "rclone",
    program: "rclone",
    hasConditions: false,
    checksSecrets: true,
    start: (folder, [port]) => ({
      args: ["serve", "s3", `--auth-key=${accessKeyId},${secretAccessKey}`, `--addr=127.0.0.1:${port}`, folder],
    }),
  },
];

/** Where the installer puts them, then where the system has them. */
const folders = [
  resolve(import.meta.dirname, "..", "..", "build", "s3-servers", "bin"),
  ...(process.env["PATH"]?.split(delimiter) ?? []),
];

/** Path of the program, or undefined when it is not installed. */
export function installed({ program }: Pick<S3ServerKind, "program">): string | undefined {
  return folders.map((folder) => join(folder, program)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR" || code === "EACCES") return false;
    throw error;
  }
}

export interface S3Server {
  readonly endpoint: string;
  stop(): Promise<void>;
}

const START_MS_MAX = 30_000;

/** Starts it with an empty bucket; rejects with what it wrote when it does not answer. */
export async function startS3Server(kind: S3ServerKind, folder: string): Promise<S3Server> {
  const program = installed(kind);
  if (program === undefined) throw new Error(`${kind.program} is not installed`);
  const ports = await freePorts(10);
  const endpoint = `http://127.0.0.1:${ports[0]}`;
  const data = join(folder, "data");
  mkdirSync(data, { recursive: true });
  const { args, environment = {} } = kind.start(data, ports);
  const child = spawn(program, args, {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env["PATH"], HOME: folder, ...environment },
  });
  // Should the tests end without their clean-up.
  const endWithUs = () => child.kill("SIGKILL");
  process.once("exit", endWithUs);
  child.once("exit", () => process.off("exit", endWithUs));
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      output = (output + text).slice(-20_000);
    });
  }
  const client = clientOf(endpoint);
  try {
    await until(
      `${kind.name} has a bucket`,
      async () => {
        if (child.exitCode !== null) throw new Error(`${kind.name} ended with ${child.exitCode}`);
        return client.send(new CreateBucketCommand({ Bucket: bucket })).then(
          () => true,
          // Not yet: the next look shows whether it comes, and the time is bounded.
          () => false,
        );
      },
      START_MS_MAX,
    );
  } catch (error) {
    await end(child);
    throw new Error(`${kind.name} does not start: ${output}`, { cause: error });
  } finally {
    client.destroy();
  }
  return { endpoint, stop: () => end(child) };
}

function clientOf(endpoint: string): S3Client {
  return new S3Client({
    endpoint,
    region: "us-east-1",
    forcePathStyle: true,
    maxAttempts: 1,
    credentials: { accessKeyId, secretAccessKey },
    requestChecksumCalculation: "WHEN_REQUIRED",
  });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

/** All held at one time, so that they differ. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as { port: number }).port);
  await Promise.all(servers.map((server) => new Promise((done) => server.close(done))));
  return ports;
}
