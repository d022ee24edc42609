/**
 * Servers and executors that are killed, at every named step and at any other, with what they had promised judged by a server
 * that starts on what is left. How the machine dies: test/simulation/disk.ts.
 */
import { cpSync, mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { failPoints } from "../../src/fail-points.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import type { ObjectStorePlace } from "../../src/objects/open-object-store.ts";
import {
  accessKeyId,
  bucket,
  installed,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import type { Loss } from "../simulation/model.ts";
import { Random } from "../simulation/random.ts";
import { schemaBatch, writeOf } from "../simulation/schema.ts";
import type { ChildOptions } from "./child.ts";
import { judge, runChild } from "./judge.ts";
import { callOptions, openServer } from "./server.ts";

const isLinux = process.platform === "linux";
const base = mkdtempSync(
  join(isLinux && statSync("/dev/shm").isDirectory() ? "/dev/shm" : tmpdir(), "persisto-kills-"),
);
const seededBucket = join(base, "bucket");
const timeout = 300_000;

/** A database that only the bucket knows. */
beforeAll(async () => {
  const folder = join(base, "seed");
  const server = await openServer({
    localPath: join(folder, "local"),
    memoryPath: join(folder, "memory"),
    place: placeIn(seededBucket),
    fileSystem: nodeFileSystem,
    hasProcesses: false,
  });
  await server.engine.createDatabase({
    id: "old",
    labels: {},
    initialStage: undefined,
    foreignKeys: true,
    allowExisting: false,
    request: undefined,
  });
  await server.engine.batch("old", schemaBatch, "remote", callOptions(), undefined);
  await server.engine.execute("old", writeOf(1), "remote", callOptions(), undefined);
  await server.close();
});

afterAll(() => rmSync(base, { recursive: true, force: true }));

function placeIn(directoryPath: string): ObjectStorePlace {
  return { bucket: "unused", region: "auto", directoryPath };
}

let rounds = 0;

/** One child, killed and judged; what went wrong, or undefined. Adds to `reached` the step at which it was ended. */
async function round(
  options: Pick<ChildOptions, "loss" | "times" | "point">,
  loss: Loss,
  reached?: Set<string>,
  given?: ObjectStorePlace,
): Promise<string | undefined> {
  const seed = ++rounds;
  const folder = join(base, `round-${seed}`);
  mkdirSync(folder);
  const place = given ?? placeIn(join(folder, "bucket"));
  if (given === undefined) cpSync(seededBucket, place.directoryPath, { recursive: true });
  const child: ChildOptions = { ...options, folder, place, seed };
  const name = `${options.loss} at ${options.point ?? "any step"} ${options.times}, ${loss} lost, seed ${seed}`;
  try {
    const lines = await runChild(child);
    for (const line of lines) if (typeof line["reached"] === "string") reached?.add(line["reached"]);
    await judge(child, lines, loss);
    return undefined;
  } catch (error) {
    return `${name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Two at one time. */
async function all(works: readonly (() => Promise<string | undefined>)[]): Promise<string[]> {
  const problems: string[] = [];
  const left = [...works];
  const next = async () => {
    for (let work = left.shift(); work !== undefined; work = left.shift()) {
      const problem = await work();
      if (problem !== undefined) problems.push(problem);
    }
  };
  await Promise.all([next(), next()]);
  return problems;
}

function random(seed: number, count: number): number[] {
  const luck = new Random(seed);
  return Array.from({ length: count }, () => 1 + luck.below(3_000));
}

describe.skipIf(!isLinux)("what was acknowledged", () => {
  it("as COMMITTED, LOCAL or REMOTE outlives the process, in memory and on disk", { timeout }, async () => {
    const works = random(1, 8).map((times) => () => round({ loss: "process", times }, "process"));
    expect(await all(works)).toEqual([]);
  });

  it("as COMMITTED, LOCAL or REMOTE outlives an executor", { timeout }, async () => {
    const works = random(2, 4).map((times) => () => round({ loss: "executor", times }, "process"));
    expect(await all(works)).toEqual([]);
  });

  it("as LOCAL or REMOTE outlives the machine, in memory and on disk", { timeout }, async () => {
    const works = random(3, 8).map((times) => () => round({ loss: "machine", times }, "machine"));
    expect(await all(works)).toEqual([]);
  });

  it("as REMOTE outlives the disk", { timeout }, async () => {
    const works = random(4, 6).map((times) => () => round({ loss: "process", times }, "disk"));
    expect(await all(works)).toEqual([]);
  });

  it("is kept whatever dies at each named step", { timeout }, async () => {
    const reached = new Set<string>();
    const losses = [
      ["process", "process"],
      ["machine", "machine"],
      ["process", "disk"],
    ] as const;
    const works = failPoints.map((point, index) => {
      const [loss, lost] = losses[index % losses.length] ?? losses[0];
      return () => round({ loss, point, times: 1 }, lost, reached);
    });
    expect(await all(works)).toEqual([]);
    expect(failPoints.filter((point) => !reached.has(point))).toEqual([]);
  });

  const kind = s3ServerKinds.find((each) => each.hasConditions && installed(each) !== undefined);
  it.skipIf(kind === undefined)("as REMOTE outlives the disk, with a real S3 server", { timeout }, async () => {
    if (kind === undefined) return;
    for (const times of random(5, 3)) {
      const folder = mkdtempSync(join(base, "s3-"));
      const server = await startS3Server(kind, folder);
      const place = {
        endpoint: server.endpoint,
        accessKeyId,
        secretAccessKey,
        bucket,
        region: "auto",
        directoryPath: "",
      };
      try {
        expect(await round({ loss: "process", times }, "disk", undefined, place)).toBeUndefined();
      } finally {
        await server.stop();
      }
    }
  });
});
