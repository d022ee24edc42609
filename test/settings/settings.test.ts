import { describe, expect, expectTypeOf, it } from "vitest";
import type { EngineLimits } from "../../src/engine/options.ts";
import { allSettings } from "../../src/settings/schema.ts";
import { loadSettings, publicLimits, type Settings, SettingsError, usesS3 } from "../../src/settings/settings.ts";
import type { ExecutorLimits } from "../../src/sqlite/executor.ts";
import type { TransportLimits } from "../../src/transport/transport.ts";

function problemsOf(environment: Record<string, string>): readonly string[] {
  try {
    loadSettings(environment);
  } catch (error) {
    if (error instanceof SettingsError) return error.problems;
    throw error;
  }
  return [];
}

describe("loadSettings()", () => {
  it("has the defaults that operators of earlier versions know", () => {
    const { server, transport, logging, stages, storage, github } = loadSettings({});
    expect(server).toMatchObject({
      port: 8080,
      version: "1.0.0",
      name: "SQLite Backend API",
      description: "API for managing SQLite databases and monitoring stages",
      contactName: "Unknown",
      contactEmail: "unspecified",
    });
    expect(transport).toMatchObject({ readTimeoutMs: 10_000, writeTimeoutMs: 10_000, idleTimeoutMs: 15_000 });
    expect(logging).toEqual({ level: "info", outputFilePath: "logs.log" });
    expect(stages).toMatchObject({
      autoMovement: true,
      defaultCreationStage: 3,
      persistenceStage: 3,
      timeoutMs: 300_000,
      requestCountThreshold: 2,
      autoSyncEnabled: true,
    });
    expect(storage).toMatchObject({
      memoryName: "Memory Storage",
      localName: "Local Storage",
      localDirectoryPath: "./storage",
      remoteName: "Remote Storage",
      remoteAccessKeyId: undefined,
      remoteSecretKey: undefined,
      remoteBucketName: "sqlite-databases",
      remoteEndpoint: undefined,
      remoteRegion: "auto",
    });
    expect(Object.values(github)).toEqual([undefined, undefined, undefined]);
  });

  it("gives each layer the limits in the layer's own shape", () => {
    expectTypeOf<Settings["transport"]>().toExtend<TransportLimits>();
    expectTypeOf<Settings["executors"]>().toExtend<ExecutorLimits>();
    expectTypeOf<Settings["engine"]>().toExtend<EngineLimits>();
  });

  it("accepts the default of every setting when it is written out", () => {
    const written = Object.fromEntries(allSettings().map(({ setting }) => [setting.name, setting.defaultText]));
    expect(loadSettings(written)).toEqual(loadSettings({}));
  });

  it("takes an empty variable for an unset one", () => {
    expect(loadSettings({ SERVER_PORT: "", LOGGING_LEVEL: "  " })).toEqual(loadSettings({}));
  });

  it("is frozen, groups included", () => {
    const settings = loadSettings({});
    expect(Object.isFrozen(settings)).toBe(true);
    for (const group of Object.values(settings)) expect(Object.isFrozen(group)).toBe(true);
  });

  it("reads units", () => {
    const { transport } = loadSettings({ SERVER_READ_BYTES_MAX: "2MiB", SERVER_READ_TIMEOUT_SECONDS: "0.25" });
    expect(transport.readBytesMax).toBe(2 * 1024 * 1024);
    expect(transport.readTimeoutMs).toBe(250);
  });

  it("reports every wrong setting in one error, with what was expected", () => {
    const problems = problemsOf({
      SERVER_PORT: "70000",
      SERVER_READ_TIMEOUT_SECONDS: "soon",
      LOGGING_LEVEL: "loud",
      SETTINGS_AUTO_SYNC_ENABLED: "perhaps",
      LIMIT_SQL_BYTES: "12 parsecs",
    });
    expect(problems).toEqual([
      'SERVER_PORT must be a whole number from 0 to 65535, not "70000"',
      'SERVER_READ_TIMEOUT_SECONDS must be a number of seconds from 0.1 to 3600, not "soon"',
      'LIMIT_SQL_BYTES must be a number of bytes from 1KiB to 16MiB (such as 65536, 64KiB or 4MiB), not "12 parsecs"',
      'LOGGING_LEVEL must be one of debug, info, warn, error, fatal, not "loud"',
      'SETTINGS_AUTO_SYNC_ENABLED must be true or false, not "perhaps"',
    ]);
  });

  it("reports what contradicts in the same error, but for what is wrong by itself", () => {
    const problems = problemsOf({
      SERVER_PORT: "x",
      SERVER_HOST: "0.0.0.0",
      SERVER_TLS_KEY_PATH: "key.pem",
      EXECUTOR_COUNT_MIN: "many",
      EXECUTOR_COUNT_MAX: "1",
    });
    expect(problems.map((problem) => problem.split(" ", 1)[0])).toEqual([
      "SERVER_PORT",
      "EXECUTOR_COUNT_MIN",
      "SERVER_HOST",
      "SERVER_TLS_CERTIFICATE_PATH",
    ]);
  });

  it.each(["-1", "1e3", "0x10", "1.5", "١", "99999999999999999999"])("refuses the whole number %s", (value) => {
    expect(problemsOf({ SERVER_PORT: value })).toHaveLength(1);
  });

  it.each([
    ["SERVER_PROT", "SERVER_PORT"],
    ["SERVER_READ_TIMEOUT", "SERVER_READ_TIMEOUT_SECONDS"],
    ["STORAGE_LOCAL_DIRECTORY_PATHS", "STORAGE_LOCAL_DIRECTORY_PATH"],
    ["server_host", "SERVER_HOST"],
  ])("refuses %s and names %s", (name, meant) => {
    expect(problemsOf({ [name]: "1" })).toEqual([`${name} is not a setting; ${meant} is`]);
  });

  it("lets pass what orchestrators put into every process", () => {
    const injected = { SERVER_SERVICE_HOST: "10.0.0.1", GITHUB_REPOSITORY_ID: "1", EXECUTOR_NUMBER: "3", PATH: "/bin" };
    expect(problemsOf(injected)).toEqual([]);
  });

  it.each(["0.0.0.0", "::", "192.0.2.1", "db.example.com"])("listens on %s only when told to", (host) => {
    expect(problemsOf({ SERVER_HOST: host })[0]).toContain("SERVER_ALLOW_UNAUTHENTICATED=true");
    expect(problemsOf({ SERVER_HOST: host, SERVER_ALLOW_UNAUTHENTICATED: "true" })).toEqual([]);
  });

  it.each(["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])("listens on loopback %s", (host) => {
    expect(problemsOf({ SERVER_HOST: host })).toEqual([]);
    expect(loadSettings({ SERVER_HOST: host }).server.host).toBe(host.replace(/[[\]]/g, ""));
  });

  it.each(["http://127.0.0.1", "127.0.0.1 ::1", "[::1", "127.0.0.1/8"])("does not take %s for a host", (host) => {
    expect(problemsOf({ SERVER_HOST: host })[0]).toMatch(/^SERVER_HOST must be a host name or an address/);
  });

  it.each([
    [{ SERVER_TLS_KEY_PATH: "k.pem" }, "set together"],
    [{ SERVER_TLS_CLIENT_CA_PATH: "ca.pem" }, "needs SERVER_TLS_CERTIFICATE_PATH"],
    [{ SERVER_DRAIN_CALLS_SECONDS: "26" }, "not be greater"],
    [{ SERVER_HELD_BYTES_MAX: "1MiB" }, "not be greater"],
    [{ LIMIT_RESULT_BYTES: "5MiB" }, "not be greater"],
    [{ SETTINGS_CHECKPOINT_FRAMES_COUNT: "5000" }, "rising order"],
    [{ LIMIT_WAL_FRAMES_COUNT: "3000" }, "rising order"],
    [{ EXECUTOR_COUNT_MIN: "4", EXECUTOR_COUNT_MAX: "2" }, "not be greater"],
    [{ SETTINGS_STATEMENT_TIMEOUT_SECONDS: "400" }, "not be greater"],
    [{ SETTINGS_TRANSACTION_IDLE_SECONDS: "31" }, "not be greater"],
    [{ SETTINGS_PAGE_BYTES: "5000" }, "power of two"],
    [{ STORAGE_REMOTE_SECRET_KEY: "x" }, "set together"],
    [{ STORAGE_REMOTE_DIRECTORY_PATH: "there", STORAGE_REMOTE_ENDPOINT: "http://127.0.0.1:9000" }, "a folder or an S3"],
    [{ STORAGE_REMOTE_ACCESS_KEY_ID: "x", STORAGE_REMOTE_SECRET_KEY: "y" }, "STORAGE_REMOTE_REGION must be given"],
    [{ STORAGE_REMOTE_DIRECTORY_PATH: "storage/" }, "another folder than STORAGE_LOCAL_DIRECTORY_PATH"],
    [{ STORAGE_MEMORY_DIRECTORY_PATH: "/m", STORAGE_REMOTE_DIRECTORY_PATH: "/m" }, "another folder"],
    [{ SETTINGS_DEFAULT_DATABASE_CREATION_STAGE: "3", SETTINGS_PERSISTENCE_STAGE: "2" }, "not be farther"],
  ])("refuses the contradiction %j", (environment, problem) => {
    expect(problemsOf(environment)[0]).toContain(problem);
  });

  it("creates databases no farther than they are synced, where it is not told", () => {
    expect(loadSettings({ SETTINGS_PERSISTENCE_STAGE: "2" }).stages.defaultCreationStage).toBe(2);
    const nearer = { SETTINGS_PERSISTENCE_STAGE: "2", SETTINGS_DEFAULT_DATABASE_CREATION_STAGE: "1" };
    expect(loadSettings(nearer).stages.defaultCreationStage).toBe(1);
  });

  it.each(["localhost:9000", "ftp://store.example", "//store"])("does not take %s for a store's URL", (url) => {
    expect(problemsOf({ STORAGE_REMOTE_ENDPOINT: url })[0]).toMatch(/^STORAGE_REMOTE_ENDPOINT must be a URL/);
  });

  it.each(["a/b", "ab", "bucket name", "../etc"])("does not take %j for a bucket", (name) => {
    expect(problemsOf({ STORAGE_REMOTE_BUCKET_NAME: name })[0]).toMatch(/^STORAGE_REMOTE_BUCKET_NAME must be/);
  });

  it("takes a folder for the remote stage unless an endpoint or a key says S3", () => {
    expect(usesS3(loadSettings({}))).toBe(false);
    expect(usesS3(loadSettings({ STORAGE_REMOTE_ENDPOINT: "https://store.example" }))).toBe(true);
  });

  it("counts executors by the cores where it is not told", () => {
    const { executors } = loadSettings({});
    expect(executors.executorCountMin).toBeGreaterThan(0);
    expect(executors.executorCountMax).toBeGreaterThanOrEqual(executors.executorCountMin);
    expect(loadSettings({ EXECUTOR_COUNT_MAX: "1" }).executors).toMatchObject({
      executorCountMin: 1,
      executorCountMax: 1,
    });
  });
});

describe("publicLimits()", () => {
  it("gives limits by the name of their setting, in the setting's unit", () => {
    const limits = publicLimits(loadSettings({}));
    expect(limits).toMatchObject({ SERVER_READ_BYTES_MAX: 4 * 1024 * 1024, SETTINGS_STATEMENT_TIMEOUT_SECONDS: 30 });
    expect(Object.values(limits).every(Number.isSafeInteger)).toBe(true);
  });
});
