import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { VerifyReport } from "../../src/commands/verify-report.ts";
import { storagePlaces } from "../../src/settings/places.ts";
import { loadSettings } from "../../src/settings/settings.ts";
import {
  accessKeyId,
  bucket,
  installed,
  type S3Server,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { runCommandProcess } from "../support/command-process.ts";
import { callByHttp, readOne, write } from "../support/http-calls.ts";
import { type ServerProcess, startInVain, startServerProcess } from "../support/server-process.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const newFolder = temporaryFolders();
const started: ServerProcess[] = [];

type Environment = Readonly<Record<string, string>>;

async function start(folder: string, environment: Environment): Promise<ServerProcess> {
  const server = await startServerProcess(folder, { environment });
  started.push(server);
  return server;
}

afterEach(async () => {
  await Promise.all(started.splice(0).map((server) => server.end("SIGKILL")));
});

/** Everything but the remote stage goes, as when the machine is replaced. */
function loseTheMachine(folder: string): void {
  const local = join(folder, "storage");
  const { memoryDirectoryPath } = storagePlaces(loadSettings({ STORAGE_LOCAL_DIRECTORY_PATH: local }));
  for (const path of [local, memoryDirectoryPath]) rmSync(path, { recursive: true, force: true });
}

/** A life of the program with the given remote stage: databases survive the machine, and every copy agrees. */
async function survivesTheMachine(environment: Environment): Promise<void> {
  const folder = newFolder();
  const first = await start(folder, environment);
  await callByHttp(first.port, "DatabaseService/CreateDatabase", { database: "ledger", labels: { team: "red" } });
  await write(first.port, "ledger", "CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)");
  for (let index = 0; index < 20; index++) {
    await write(first.port, "ledger", "INSERT INTO t (body) VALUES (hex(randomblob(200)))", "COMMITTED");
  }
  const { position, durablePosition } = await write(first.port, "ledger", "INSERT INTO t (body) VALUES ('last')");
  expect(durablePosition).toEqual(position);
  expect(await first.end("SIGKILL")).toBe("SIGKILL");
  loseTheMachine(folder);

  const second = await start(folder, environment);
  expect(await readOne(second.port, "ledger", "SELECT count(*) FROM t")).toBe("21");
  expect(await readOne(second.port, "ledger", "SELECT body FROM t WHERE id = 21")).toBe("last");
  const { database } = await callByHttp(second.port, "DatabaseService/GetDatabase", { database: "ledger" });
  expect(database).toMatchObject({ labels: { team: "red" } });
  await write(second.port, "ledger", "INSERT INTO t (body) VALUES ('on the new machine')");
  await write(second.port, "ledger", "INSERT INTO t (body) VALUES ('with the end of the server')", "LOCAL");
  expect(await second.end("SIGTERM")).toBe(0);

  // The end of the server has uploaded what was only LOCAL: the two copies are one state.
  const { code, printed } = await runCommandProcess(folder, ["verify", "--json"], { environment });
  const { databases, isGood }: VerifyReport = JSON.parse(printed);
  const [log, remote] = ["log", "remote"].map((place) => databases[0]?.copies.find((copy) => copy.place === place));
  expect(remote?.txid).toBe(log?.txid);
  expect(printed).toContain('"outcome": "bytes"');
  expect([code, isGood]).toEqual([0, true]);
}

describe("the remote stage", () => {
  it("brings databases back from a folder when all else is lost", async () => {
    await survivesTheMachine({ STORAGE_REMOTE_DIRECTORY_PATH: join(newFolder(), "remote") });
  }, 60_000);

  it("is a folder beside the databases unless the settings say otherwise", async () => {
    const folder = newFolder();
    const server = await start(folder, {});
    await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "first" });
    await write(server.port, "first", "CREATE TABLE t (a)");
    expect(existsSync(join(folder, "storage", "remote", "first", "database.json"))).toBe(true);
    const { stages } = await callByHttp(server.port, "StageService/ListStages", {});
    expect(
      (stages as { stage: string; healthy: boolean }[]).map(({ stage, healthy }) => [stage, healthy]),
    ).toContainEqual(["STAGE_REMOTE", true]);
    const metrics = await (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text();
    expect(metrics).toMatch(/^persisto_uploads_total [1-9]/m);
    expect(metrics).toMatch(/^persisto_remote_healthy 1$/m);
    const beside = await runCommandProcess(folder, ["verify"]);
    expect([beside.code, beside.complaints]).toEqual([0, ""]);
    expect(beside.printed).toMatch(
      /^ok {3}first[\s\S]*integrity_check of remote: ok[\s\S]*a server works on the folder/,
    );
    await write(server.port, "first", "INSERT INTO t VALUES (1)");
    expect(await server.end("SIGTERM")).toBe(0);
    await start(folder, {});
  }, 60_000);

  it("is not there for servers that persist nearer", async () => {
    const folder = newFolder();
    const server = await start(folder, { SETTINGS_PERSISTENCE_STAGE: "2" });
    await callByHttp(server.port, "DatabaseService/CreateDatabase", { database: "first" });
    await write(server.port, "first", "CREATE TABLE t (a)", "LOCAL");
    await expect(write(server.port, "first", "INSERT INTO t VALUES (1)")).rejects.toThrow(/remote stage/);
    expect(readdirSync(join(folder, "storage"))).not.toContain("remote");
  });
});

for (const kind of s3ServerKinds.filter(({ program }) => ["weed", "versitygw", "minio"].includes(program))) {
  const isMissing = installed(kind) === undefined;
  const note = isMissing ? ` (skipped: ${kind.program} is not installed)` : "";

  describe.skipIf(isMissing)(`the remote stage on ${kind.name}${note}`, () => {
    let s3: S3Server;

    beforeAll(async () => {
      s3 = await startS3Server(kind, newFolder());
      return () => s3.stop();
    }, 40_000);

    const environment = (change: Environment = {}): Environment => ({
      STORAGE_REMOTE_ENDPOINT: s3.endpoint,
      STORAGE_REMOTE_ACCESS_KEY_ID: accessKeyId,
      STORAGE_REMOTE_SECRET_KEY: secretAccessKey,
      STORAGE_REMOTE_BUCKET_NAME: bucket,
      ...change,
    });

    it("brings databases back when the machine is lost", async () => {
      await survivesTheMachine(environment());
    }, 60_000);

    it.skipIf(!kind.checksSecrets)(
      "ends the start when the key is wrong, and says what to look at",
      async () => {
        const wrong = environment({ STORAGE_REMOTE_SECRET_KEY: "not the secret" });
        const { code, output } = await startInVain(newFolder(), { environment: wrong });
        expect(code).toBe(1);
        expect(output).toMatch(/Persisto cannot start: the remote stage: .*STORAGE_REMOTE_SECRET_KEY/);
        expect(output).not.toContain("not the secret");
        expect(output).not.toMatch(/^\s+at /m);
      },
      60_000,
    );
  });
}

describe("a start without its object store", () => {
  const environment = (change: Environment = {}): Environment => ({
    // Nobody listens there.
    STORAGE_REMOTE_ENDPOINT: "http://127.0.0.1:1",
    STORAGE_REMOTE_ACCESS_KEY_ID: accessKeyId,
    STORAGE_REMOTE_SECRET_KEY: secretAccessKey,
    ...change,
  });

  it("fails, and says how to start without", async () => {
    const { code, output } = await startInVain(newFolder(), { environment: environment() });
    expect(code).toBe(1);
    expect(output).toMatch(/the remote stage: .*STORAGE_REMOTE_ENDPOINT.*STORAGE_REMOTE_REQUIRED=false/);
    expect(output).not.toMatch(/^\s+at /m);
  }, 60_000);

  it("serves what is local when it is told to, and says that the store is away", async () => {
    const folder = newFolder();
    const before = await start(folder, {});
    await callByHttp(before.port, "DatabaseService/CreateDatabase", { database: "first", initialStage: "STAGE_LOCAL" });
    await write(before.port, "first", "CREATE TABLE t (a)", "LOCAL");
    expect(await before.end("SIGTERM")).toBe(0);
    const server = await start(folder, environment({ STORAGE_REMOTE_REQUIRED: "false" }));
    await write(server.port, "first", "INSERT INTO t VALUES (1)", "LOCAL");
    expect(await readOne(server.port, "first", "SELECT count(*) FROM t")).toBe("1");
    expect(server.output).toContain("the object store does not work");
    const verified = await runCommandProcess(folder, ["verify"], { environment: environment() });
    expect(verified.code).toBe(2);
    expect(verified.complaints).toContain("127.0.0.1:1");
  }, 60_000);

  const rclone = s3ServerKinds.find(({ program }) => program === "rclone");
  it.skipIf(rclone === undefined || installed(rclone) === undefined)(
    "fails for good on a store without conditional writes",
    async () => {
      const s3 = await startS3Server(rclone as (typeof s3ServerKinds)[number], newFolder());
      try {
        const { code, output } = await startInVain(newFolder(), {
          environment: environment({ STORAGE_REMOTE_ENDPOINT: s3.endpoint, STORAGE_REMOTE_REQUIRED: "false" }),
        });
        expect(code).toBe(1);
        expect(output).toContain("use a store with conditional writes");
      } finally {
        await s3.stop();
      }
    },
    60_000,
  );
});
