/** A storage folder as a server leaves it, and the commands run on it in this process. */
import { randomBytes } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { systemClock } from "../../src/clock.ts";
import type { ExitCode } from "../../src/commands/command.ts";
import { runCommand } from "../../src/commands/run.ts";
import type { VerifyReport } from "../../src/commands/verify-report.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import { storagePlaces } from "../../src/settings/places.ts";
import { loadSettings } from "../../src/settings/settings.ts";
import type { RemoteReplica, RemoteStage } from "../../src/stages/remote.ts";
import { type History, openStage } from "../stages/support.ts";

export const lineage = "00112233aabbccdd";
export const call = {
  get deadlineAtMs() {
    return systemClock.now() + 20_000;
  },
};

export class CommandScene {
  readonly folder: string;
  readonly local: string;
  readonly remote: string;
  readonly memory: string;

  constructor(folder: string) {
    this.folder = folder;
    this.local = join(folder, "storage");
    this.remote = join(folder, "remote");
    this.memory = join(folder, "memory");
  }

  get #settings() {
    return loadSettings({
      STORAGE_LOCAL_DIRECTORY_PATH: this.local,
      STORAGE_REMOTE_DIRECTORY_PATH: this.remote,
      STORAGE_MEMORY_DIRECTORY_PATH: this.memory,
      EXECUTOR_COUNT_MAX: "1",
    });
  }

  async run(
    name: string,
    ...args: readonly string[]
  ): Promise<{ readonly code: ExitCode; readonly printed: string; readonly complaints: string }> {
    const output = { printed: "", complaints: "" };
    const code = await runCommand(name, {
      args,
      settings: this.#settings,
      clock: systemClock,
      randomBytes,
      random: Math.random,
      print: (text) => {
        output.printed += text;
      },
      complain: (text) => {
        output.complaints += text;
      },
      signal: new AbortController().signal,
    });
    return { code, ...output };
  }

  /** The report of `verify --json`, and the exit code. */
  async verify(...args: readonly string[]): Promise<VerifyReport & { readonly code: ExitCode }> {
    const { code, printed } = await this.run("verify", ...args, "--json");
    return { code, ...(JSON.parse(printed) as VerifyReport) };
  }

  /** Does something with the remote stage, as a server would. */
  async withRemote<T>(work: (stage: RemoteStage) => Promise<T>): Promise<T> {
    const store = await openDirectoryStore({ path: this.remote, clock: systemClock, random: randomBytes });
    try {
      return await work(await openStage(store, this.folder, { layout: "folder" }));
    } finally {
      await store.close();
    }
  }

  /** Batches 1 to `txid` under a prefix. */
  async fill(prefix: string, { batches }: History, txid: number): Promise<void> {
    await this.withRemote(async (stage) => {
      const replica: RemoteReplica = stage.replica(prefix);
      for (const batch of batches.slice(0, txid)) await replica.append(batch, call);
    });
  }

  /** A database of the remote stage, with a manifest, up to batch `txid`. */
  async publish(id: string, history: History, txid: number): Promise<void> {
    await this.fill(`${id}/${lineage}`, history, txid);
    await this.withRemote(async ({ manifests }) => {
      const facts = { id, lineage, prefix: `${id}/${lineage}`, createTimeMs: 1, labels: {}, foreignKeys: true };
      await manifests.create({ ...facts, etagVersion: 1, pageBytes: 4096, createRecord: undefined, retired: [] }, call);
    });
  }

  /** A database of the local folder: its file, database.json, and the batches of its log that are still there. */
  place(id: string, state: Buffer, { batches }: Pick<History, "batches">, facts: object = {}): string {
    const folder = join(this.local, "databases", id);
    mkdirSync(join(folder, "log"), { recursive: true });
    writeFileSync(join(folder, "db.sqlite"), state);
    const common = { version: 1, id, lineage, createTimeMs: 1, labels: {}, foreignKeys: true, etagVersion: 1 };
    const placed = { stage: "local", head: "local", baseTxid: 0, remotePrefix: `${id}/${lineage}` };
    writeFileSync(join(folder, "database.json"), JSON.stringify({ ...common, ...placed, ...facts }));
    for (const { path } of batches) copyFileSync(path, join(folder, "log", basename(path)));
    return join(folder, "db.sqlite");
  }

  /** The file of a head on the memory stage. */
  placeInMemory(id: string, state: Buffer): string {
    const { memoryDirectoryPath } = storagePlaces(this.#settings);
    const path = join(memoryDirectoryPath, "databases", `${id}.${lineage}`, "db.sqlite");
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, state);
    return path;
  }

  /** Paths of all files of the remote stage, below its folder. */
  remoteFiles(): string[] {
    return (readdirSync(this.remote, { recursive: true }) as string[]).filter((path) => path.endsWith(".ltx")).sort();
  }

  /** Flips a bit in the middle of a file. */
  damage(path: string): void {
    const bytes = readFileSync(path);
    const at = Math.floor(bytes.length / 2);
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(path, bytes);
  }
}
