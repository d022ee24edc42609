/**
 * `adopt DATABASE PREFIX [--folder] [--dry-run] [--json]`: makes a replica that Litestream wrote a database of this server.
 * One in the object store stays where it is; one in another folder is copied.
 */
import { rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { isDatabaseId } from "../engine/names.ts";
import { Failure } from "../failure/failure.ts";
import { nodeFileSystem } from "../files/file-system.ts";
import { openDirectoryStore, ownFolder } from "../objects/directory.ts";
import { isKey } from "../objects/object-store.ts";
import { remoteStageOf } from "../open-stages.ts";
import { storagePlaces } from "../settings/places.ts";
import { type AdoptInput, adoptReplica } from "../stages/adoption.ts";
import { openRemoteStage } from "../stages/open-remote-stage.ts";
import type { RemoteReplica, RemoteStage } from "../stages/remote.ts";
import type { StageCall } from "../stages/stage.ts";
import { CommandError, type CommandInput, type ExitCode, parseArguments } from "./command.ts";
import { sentenceOf } from "./local-copies.ts";
import { Scratch } from "./scratch.ts";
import { SqliteChecker } from "./sqlite-checks.ts";

export const adoptUsage = "usage: adopt DATABASE PREFIX [--dry-run] [--json], or adopt DATABASE PATH --folder …";

interface AdoptReport {
  readonly database: string;
  readonly prefix: string;
  readonly isAdopted: boolean;
  readonly txid: string;
  readonly fileCount: number;
  readonly byteCount: number;
  readonly pageBytes: number;
  readonly pageCount: number;
  /** When its newest state was committed; ISO 8601. */
  readonly time: string;
  readonly problems: readonly string[];
}

/** Longest that reading the replica may take. */
const adoptMsMax = 12 * 3_600_000;
/** Whoever wrote so short a time ago may go on. */
const recentMs = 120_000;

export async function adopt(input: CommandInput): Promise<ExitCode> {
  const flagNames = ["--folder", "--dry-run", "--json"];
  const { values, flags } = parseArguments(input.args, adoptUsage, { flags: flagNames, valueCounts: [2] });
  const [id = "", given = ""] = values;
  if (!isDatabaseId(id)) throw new CommandError(`${id} is no database's id\n${adoptUsage}`);
  const { localDirectoryPath } = storagePlaces(input.settings);
  if ((await nodeFileSystem.list(join(localDirectoryPath, "databases", id))).length > 0) {
    throw new CommandError(`the local folder has a database ${id} already`);
  }
  const call = { deadlineAtMs: input.clock.now() + adoptMsMax, signal: input.signal };
  const ends: (() => Promise<void>)[] = [];
  try {
    const scratch = await Scratch.open(localDirectoryPath, nodeFileSystem);
    ends.push(() => scratch.close());
    const to = await openRemote(input, scratch, ends);
    if ((await to.manifests.read(id, call)) !== undefined) {
      throw new CommandError(`the remote stage has a database ${id} already`);
    }
    const from = flags.has("--folder")
      ? await openFolder(given, input, scratch, ends)
      : { prefix: given.replace(/^\/+|\/+$/g, ""), stage: undefined };
    if (!isKey(from.prefix)) throw new CommandError(`${given} is no prefix in the object store\n${adoptUsage}`);
    const checker = await SqliteChecker.start({ ...input, limits: input.settings.executors });
    ends.push(() => checker.close());
    const replica = (from.stage ?? to).replica(from.prefix);
    const found = await inspect({ id, replica, checker, scratch }, call);
    if (found.problems.length === 0 && input.clock.wallMs() - Date.parse(found.time) < recentMs) {
      input.complain("it was written a moment ago: make sure that Litestream does not run any more\n");
    }
    const report = flags.has("--dry-run")
      ? { ...found, isAdopted: false }
      : await take(input, found, { to, from }, call);
    input.print(flags.has("--json") ? `${JSON.stringify(report, null, 2)}\n` : textOf(report));
    return report.problems.length === 0 ? 0 : 1;
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

async function openRemote(input: CommandInput, scratch: Scratch, ends: (() => Promise<void>)[]): Promise<RemoteStage> {
  const log = { warn: input.complain, error: input.complain };
  const { stage, store } = await remoteStageOf(input.settings, scratch.file("spool"), { ...input, log });
  ends.push(() => store.close());
  return stage;
}

/** A folder that Litestream wrote, as a stage with one prefix. What the store keeps for itself beside it goes afterwards. */
async function openFolder(
  path: string,
  { clock, randomBytes: random }: CommandInput,
  scratch: Scratch,
  ends: (() => Promise<void>)[],
): Promise<{ readonly prefix: string; readonly stage: RemoteStage }> {
  const folder = resolve(path);
  const root = dirname(folder);
  if ((await nodeFileSystem.list(join(folder, "ltx"))).length === 0) {
    throw new CommandError(`${folder} is no replica: it has no folder ltx`);
  }
  const own = join(root, ownFolder);
  const wasThere = (await nodeFileSystem.list(own)).length > 0;
  const store = await openDirectoryStore({ path: root, clock, random });
  ends.push(async () => {
    await store.close();
    if (!wasThere) await rm(own, { recursive: true, force: true });
  });
  const stage = await openRemoteStage({
    store,
    layout: "folder",
    displayName: folder,
    fileSystem: nodeFileSystem,
    spoolDirectoryPath: scratch.file("folder-spool"),
    clock,
    random,
  });
  return { prefix: basename(folder), stage };
}

interface InspectInput {
  readonly id: string;
  readonly replica: RemoteReplica;
  readonly checker: SqliteChecker;
  readonly scratch: Scratch;
}

/** Reads all of it: what cannot be restored, or is no good database, is not adopted. */
async function inspect(
  { id, replica, checker, scratch }: InspectInput,
  call: StageCall,
): Promise<Omit<AdoptReport, "isAdopted">> {
  const { prefix } = replica;
  const { txid, fileCount, byteCount, damaged, isWhole, problems: found } = await replica.verify(call);
  if (fileCount === 0) throw new CommandError(`there is no replica under ${replica.name}`);
  const problems = [...damaged.map(({ failure }) => sentenceOf(failure)), ...found];
  const facts = { database: id, prefix, txid: String(txid), fileCount, byteCount };
  const nothing = { pageBytes: 0, pageCount: 0, time: new Date(0).toISOString() };
  if (!isWhole) return { ...facts, ...nothing, problems };
  await scratch.needs(2 * byteCount);
  const path = scratch.file("adopted.sqlite");
  try {
    const { pageSize: pageBytes, pageCount, timestampMs } = await replica.restore({ path, flush: false }, call);
    for (const problem of await checker.integrityProblems(path)) problems.push(`integrity_check: ${problem}`);
    return { ...facts, pageBytes, pageCount, time: new Date(timestampMs).toISOString(), problems };
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    return { ...facts, ...nothing, problems: [...problems, sentenceOf(error)] };
  }
}

async function take(
  { clock, randomBytes }: CommandInput,
  found: Omit<AdoptReport, "isAdopted">,
  stages: Pick<AdoptInput, "to" | "from">,
  call: StageCall,
): Promise<AdoptReport> {
  if (found.problems.length > 0) return { ...found, isAdopted: false };
  const nowMs = clock.wallMs();
  const facts = {
    id: found.database,
    lineage: Buffer.from(randomBytes(8)).toString("hex"),
    createTimeMs: nowMs,
    labels: {},
    foreignKeys: true,
    etagVersion: 1,
    createRecord: undefined,
  };
  const adoption = await adoptReplica({ ...stages, facts, nowMs }, call);
  if (adoption.kind === "refused") return { ...found, isAdopted: false, problems: [adoption.problem] };
  return { ...found, isAdopted: true, prefix: adoption.manifest.prefix, txid: String(adoption.txid) };
}

function textOf(report: AdoptReport): string {
  const { database, prefix, isAdopted, txid, fileCount, byteCount, pageBytes, pageCount, time, problems } = report;
  const lines = [`${prefix}: ${fileCount} files, ${byteCount} bytes, up to ${txid}`];
  if (pageCount > 0) lines.push(`a database of ${pageCount} pages of ${pageBytes} bytes, as it was at ${time}`);
  for (const problem of problems) lines.push(`! ${problem}`);
  if (problems.length > 0) lines.push("not adopted");
  else if (isAdopted) lines.push(`adopted as ${database}; a server finds it when it starts`);
  else lines.push(`can be adopted as ${database}`);
  return `${lines.join("\n")}\n`;
}
