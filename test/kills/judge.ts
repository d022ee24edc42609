/** What a child has told, and whether the files and the bucket that it left behind keep its word. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { DurabilityLevel, Engine } from "../../src/engine/engine.ts";
import { Failure } from "../../src/failure/failure.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import { type Loss, ModelDatabase, Violation, type Write } from "../simulation/model.ts";
import { numbersOf, readEverything, readLog } from "../simulation/schema.ts";
import { until } from "../support/until.ts";
import type { ChildOptions } from "./child.ts";
import { callOptions, openServer } from "./server.ts";

const program = fileURLToPath(new URL("child.ts", import.meta.url));

/** A line of a child; see there. */
interface Line {
  readonly [word: string]: unknown;
  readonly begins?: boolean;
  readonly failed?: string;
}

/** Runs a child to its end and returns what it told. */
export async function runChild(options: ChildOptions): Promise<readonly Line[]> {
  const child = spawn(process.execPath, [program, JSON.stringify(options)], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const lines: Line[] = [];
  try {
    for await (const line of createInterface(child.stdout)) lines.push(JSON.parse(line) as Line);
    await exited;
  } finally {
    child.kill("SIGKILL");
  }
  return lines;
}

/** What the models of all databases are after these lines, whoever died then. */
export function modelsOf(lines: readonly Line[]): Map<string, ModelDatabase> {
  const models = new Map<string, ModelDatabase>();
  const abandoned = new Set<string>();
  const writes = new Map<number, Write>();
  for (const [at, line] of lines.entries()) {
    const { begins, failed } = line;
    if (typeof line["abandon"] === "string") abandoned.add(line["abandon"]);
    else if (typeof line["create"] === "string") takeCreate(models, line["create"], line);
    else if (typeof line["schema"] === "string" && failed === undefined) {
      const model = modelOf(models, line["schema"]);
      if (begins === true) model.schema = new ModelDatabase(model.id).issue(0, at);
      else if (model.schema !== undefined) take(model, model.schema, line, "local", at);
    } else if (typeof line["write"] === "string") {
      const model = modelOf(models, line["write"]);
      const tag = Number(line["tag"]);
      const write = writes.get(tag) ?? model.issue(tag, at);
      writes.set(tag, write);
      const level = line["level"] as DurabilityLevel;
      if (begins === true) continue;
      if (failed === undefined) take(model, write, line, level, at);
      else if (failed === "REMOTE_NOT_REACHED") model.acknowledge(write, undefined, undefined, "committed", at);
      else if (!["EXECUTOR_LOST", "OUTCOME_UNKNOWN", "STATEMENT_TIMEOUT"].includes(failed)) model.refuse(write);
    }
  }
  for (const id of abandoned) models.delete(id);
  return models;
}

function takeCreate(models: Map<string, ModelDatabase>, id: string, { begins, failed, lineage }: Line): void {
  const model = modelOf(models, id);
  if (begins === true || failed !== undefined) return;
  model.presence = "there";
  model.strength = "machine";
  model.lineage = String(lineage);
}

function take(model: ModelDatabase, write: Write, line: Line, level: DurabilityLevel, at: number): void {
  const position = { lineage: String(line["lineage"]), sequence: BigInt(String(line["sequence"])) };
  model.acknowledge(write, line["n"] === undefined ? undefined : Number(line["n"]), position, level, at);
  model.position(position, 0n, "an answer");
  if (line["durable"] !== undefined)
    model.durable({ lineage: position.lineage, sequence: BigInt(String(line["durable"])) });
}

function modelOf(models: Map<string, ModelDatabase>, id: string): ModelDatabase {
  const model = models.get(id) ?? new ModelDatabase(id);
  models.set(id, model);
  return model;
}

/** Starts a server on what is left and reads everything. Throws Violation for a promise that was not kept. */
export async function judge(options: ChildOptions, lines: readonly Line[], loss: Loss): Promise<void> {
  const models = modelsOf(lines);
  for (const model of models.values()) model.lose(loss);
  const root = join(options.folder, existsSync(join(options.folder, "1")) ? "1" : "0");
  const hasDisk = loss !== "disk";
  const server = await until("the folder is free", async () => {
    try {
      return await openServer({
        localPath: join(hasDisk ? root : options.folder, hasDisk ? "local" : "new-disk"),
        memoryPath: join(hasDisk ? root : options.folder, hasDisk ? "memory" : "new-memory"),
        place: options.place,
        fileSystem: nodeFileSystem,
        hasProcesses: false,
      });
    } catch (error) {
      // Executors of the dead one may have their last breath before them.
      if ((error as Error).name === "FolderInUseError") return undefined;
      throw error;
    }
  });
  try {
    for (const model of models.values()) await judgeDatabase(server.engine, model);
    const { databases } = await server.engine.listDatabases({ pageSize: 1000, pageToken: "", filter: "", orderBy: "" });
    for (const { id } of databases) await requireWhole(server.engine, id);
  } finally {
    await server.close();
  }
}

async function judgeDatabase(engine: Engine, model: ModelDatabase): Promise<void> {
  const mustSee = model.mustSee();
  try {
    const answer = await engine.read(model.id, readEverything, undefined, callOptions(20_000));
    const { tags, problem } = readLog(numbersOf(answer.body));
    if (problem !== undefined) throw new Violation(`${model.id}: ${problem}`);
    model.found(tags, mustSee);
    model.position(answer.position, model.sequence, "a read after the loss");
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.reason === "SQL_INVALID") model.foundNoTable();
    else if (error.reason !== "DATABASE_NOT_FOUND" || model.presence === "there") throw error;
  }
}

/** Also of those that nobody was told of. */
async function requireWhole(engine: Engine, id: string): Promise<void> {
  try {
    const { body } = await engine.read(id, readEverything, undefined, callOptions(20_000));
    const { problem } = readLog(numbersOf(body));
    if (problem !== undefined) throw new Violation(`${id}: ${problem}`);
  } catch (error) {
    if (!(error instanceof Failure) || error.reason !== "SQL_INVALID") throw error;
  }
}
