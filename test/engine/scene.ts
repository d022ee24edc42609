/** An engine on a fresh folder, with executors in this process. */
import { randomBytes } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { ExecuteResponseSchema, type ResultSet, ResultSetSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { type Clock, systemClock } from "../../src/clock.ts";
import type {
  CreateDatabaseInput,
  DatabaseInfo,
  DurabilityLevel,
  Engine,
  EngineAnswer,
  ListDatabasesInput,
} from "../../src/engine/engine.ts";
import { openEngine } from "../../src/engine/local-engine.ts";
import type { EngineLimits, EngineOptions } from "../../src/engine/options.ts";
import type { FileSystem } from "../../src/files/file-system.ts";
import type { CallOptions, ExecutorDatabase, Executors, RequestRecord } from "../../src/sqlite/executor.ts";
import { startInProcessExecutors } from "../../src/sqlite/in-process.ts";
import { startExecutors } from "../../src/sqlite/pool.ts";
import { CountingClock } from "../support/manual-clock.ts";
import { executorLimits, statement, testLimits } from "./fixtures.ts";

export interface SceneOptions {
  readonly directoryPath: string;
  readonly limits?: Partial<EngineLimits>;
  readonly fileSystem?: FileSystem;
  readonly clock?: Clock;
  /** Executors in processes of their own, in place of one in this process. */
  readonly processes?: boolean;
  /** Stands between the engine and a database's executors: to make them fail. */
  readonly between?: (database: ExecutorDatabase) => ExecutorDatabase;
  /** Stages beside the local one, and what carries data there. */
  readonly stages?: Pick<EngineOptions, "remote" | "sync" | "stages" | "failPoints">;
}

export interface LogLine {
  readonly level: string;
  readonly message: string;
  readonly facts: Readonly<Record<string, unknown>>;
}

export interface Scene {
  readonly engine: Engine;
  readonly executors: Executors;
  readonly lines: LogLine[];
  /** Timers that the engine itself has set. */
  timerCount(): number;
  /** Options of a call with a deadline of `ms`. */
  options(change?: Partial<CallOptions> & { readonly ms?: number }): CallOptions;
  create(id: string, change?: Partial<CreateDatabaseInput>): Promise<DatabaseInfo>;
  run(id: string, sql: string, durability?: DurabilityLevel, record?: RequestRecord): Promise<EngineAnswer>;
  /** Values of the rows of a read, integers as numbers. */
  rows(id: string, sql: string): Promise<unknown[][]>;
  list(change?: Partial<ListDatabasesInput>): ReturnType<Engine["listDatabases"]>;
  close(): Promise<void>;
}

/** Rows of an answer of Execute or Read. */
export function rowsOf(body: Uint8Array): unknown[][] {
  return rows(fromBinary(ExecuteResponseSchema, body).result);
}

/** Rows of a result within a transaction. */
export function rowsOfResult(body: Uint8Array): unknown[][] {
  return rows(fromBinary(ResultSetSchema, body));
}

function rows(result: ResultSet | undefined): unknown[][] {
  if (result?.data.case !== "rowBatch") throw new Error("no rows");
  return result.data.value.rows.map((row) =>
    row.values.map(({ kind }) => (kind.case === "integer" ? Number(kind.value) : kind.value)),
  );
}

function withBetween(executors: Executors, between: (database: ExecutorDatabase) => ExecutorDatabase): Executors {
  return {
    sqliteVersion: executors.sqliteVersion,
    open: (file) => between(executors.open(file)),
    stats: () => executors.stats(),
    tidy: () => executors.tidy(),
    close: (graceMs) => executors.close(graceMs),
  };
}

/** A database whose named methods are replaced. */
export function replaced(database: ExecutorDatabase, change: Partial<ExecutorDatabase>): ExecutorDatabase {
  return new Proxy(database, {
    get(target, name) {
      if (Object.hasOwn(change, name)) return change[name as keyof ExecutorDatabase];
      const value = target[name as keyof ExecutorDatabase];
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

export async function openScene(given: SceneOptions): Promise<Scene> {
  const clock = given.clock ?? systemClock;
  const lines: LogLine[] = [];
  const engineClock = new CountingClock(clock);
  const start = given.processes === true ? startExecutors : startInProcessExecutors;
  const executors = await start({
    limits: executorLimits,
    clock,
    random: Math.random,
    log: (level, message, facts) => lines.push({ level, message, facts }),
  });
  const engine = await openEngine({
    directoryPath: given.directoryPath,
    executors: given.between === undefined ? executors : withBetween(executors, given.between),
    clock: engineClock,
    random: (byteCount) => randomBytes(byteCount),
    log: (level, message, facts) => lines.push({ level, message, facts }),
    limits: { ...testLimits, ...given.limits },
    ...(given.fileSystem === undefined ? {} : { fileSystem: given.fileSystem }),
    ...given.stages,
  });
  const options: Scene["options"] = ({ ms = 10_000, ...change } = {}) => ({
    columns: false,
    scope: 0,
    resultBytesMax: 2 * 1024 * 1024,
    deadlineAtMs: clock.now() + ms,
    deadlineSource: "server",
    cancel: undefined,
    ...change,
  });
  return {
    engine,
    executors,
    lines,
    timerCount: () => engineClock.timerCount,
    options,
    create: (id, change = {}) =>
      engine.createDatabase({
        id,
        labels: {},
        initialStage: undefined,
        foreignKeys: true,
        allowExisting: false,
        request: undefined,
        ...change,
      }),
    run: (id, sql, durability = "committed", record) =>
      engine.execute(id, statement(sql), durability, options(), record),
    rows: async (id, sql) => rowsOf((await engine.read(id, statement(sql), undefined, options())).body),
    list: (change = {}) => engine.listDatabases({ pageSize: 0, pageToken: "", filter: "", orderBy: "", ...change }),
    async close() {
      await engine.close();
      await executors.close(1000);
    },
  };
}
