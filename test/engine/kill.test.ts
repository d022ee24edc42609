/** What a server that is killed at any moment leaves behind. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { FolderInUseError } from "../../src/engine/catalog.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { openScene, type Scene } from "./scene.ts";

const newFolder = temporaryFolders();
const program = fileURLToPath(new URL("kill-child.ts", import.meta.url));

/** What a database must be, as far as its acknowledgements say. */
interface Expected {
  lineage: string;
  hasTable: boolean;
  readonly numbers: Set<number>;
  sequence: bigint;
  label: string;
  /** Asked for and not answered: may or may not be. */
  triedLabel: string | undefined;
  triedDelete: boolean;
}

/** Runs the child until `lineCount` lines after it is ready, then kills it. Returns all that it told. */
async function runAndKill(folder: string, seed: number, lineCount: number): Promise<string[]> {
  const child = spawn(process.execPath, [program, folder, String(seed)], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const lines: string[] = [];
  let isReady = false;
  let left = lineCount;
  for await (const line of createInterface(child.stdout)) {
    lines.push(line);
    if (line === "ready") {
      isReady = true;
      // Somebody else has the folder, and it is this child.
      await expect(openScene({ directoryPath: folder })).rejects.toBeInstanceOf(FolderInUseError);
    } else if (isReady && left-- === 0) child.kill("SIGKILL");
  }
  await exited;
  return lines;
}

function take(expected: Map<string, Expected>, lines: readonly string[]): void {
  for (const line of lines) {
    const [verb = "", ...words] = line.split(" ");
    const [id = "", value = "", more = ""] = words;
    const known = expected.get(id);
    if (verb === "create") {
      expected.set(id, {
        lineage: value,
        hasTable: false,
        numbers: new Set(),
        sequence: 0n,
        label: "new",
        triedLabel: undefined,
        triedDelete: false,
      });
    } else if (verb === "delete") expected.delete(id);
    else if (verb === "failed") throw new Error(line);
    else if (verb === "try") {
      const tried = expected.get(value);
      if (tried !== undefined && id === "delete") tried.triedDelete = true;
      else if (tried !== undefined) tried.triedLabel = more;
    } else if (known === undefined) continue;
    else if (verb === "table") known.hasTable = true;
    else if (verb === "label") {
      known.label = value;
      known.triedLabel = undefined;
    } else if (verb === "insert") {
      known.numbers.add(Number(value));
      if (BigInt(more) > known.sequence) known.sequence = BigInt(more);
    }
  }
}

async function check(scene: Scene, folder: string, expected: Map<string, Expected>): Promise<void> {
  const { databases } = await scene.list();
  const ids = databases.map((database) => database.id);
  expect(readdirSync(join(folder, "databases")).sort()).toEqual(ids);
  for (const [id, wish] of expected) {
    const found = databases.find((database) => database.id === id);
    if (wish.triedDelete && found?.position.lineage !== wish.lineage) {
      expected.delete(id);
      continue;
    }
    if (found === undefined) throw new Error(`database ${id} is lost`);
    expect(found).toMatchObject({ state: "ready", position: { lineage: wish.lineage } });
    expect(found.position.sequence).toBeGreaterThanOrEqual(wish.sequence);
    expect([wish.label, wish.triedLabel]).toContain(found.labels["value"]);
    wish.label = found.labels["value"] ?? "";
    wish.triedDelete = false;
    wish.triedLabel = undefined;
    wish.sequence = found.position.sequence;
    if (!wish.hasTable) continue;
    expect(await scene.rows(id, "PRAGMA quick_check")).toEqual([["ok"]]);
    const rows = new Set((await scene.rows(id, "SELECT number FROM t")).map(([number]) => number));
    expect([...wish.numbers].filter((number) => !rows.has(number))).toEqual([]);
  }
}

describe("a killed server", () => {
  it("loses nothing that was acknowledged, and leaves nothing half done", async () => {
    const folder = newFolder();
    const expected = new Map<string, Expected>();
    let inserts = 0;
    for (let round = 1; round <= 8; round++) {
      const lines = await runAndKill(folder, round, (round * 37) % 150);
      inserts += lines.filter((line) => line.startsWith("insert")).length;
      take(expected, lines);
      const scene = await openScene({ directoryPath: folder });
      await check(scene, folder, expected);
      // What is there though nobody was told of it, is there to stay: it was made whole.
      for (const database of (await scene.list()).databases) {
        if (!expected.has(database.id)) await scene.engine.deleteDatabase(database.id, undefined, false);
      }
      await scene.close();
    }
    expect(inserts).toBeGreaterThan(100);
  }, 90_000);
});
