/** `verify [database] [--json]`: whether every copy of the databases is whole, and whether they agree. */
import { join } from "node:path";
import { isDatabaseId } from "../engine/names.ts";
import { nodeFileSystem } from "../files/file-system.ts";
import { isBucket } from "../objects/open-object-store.ts";
import { remoteStageOf } from "../open-stages.ts";
import { storagePlaces } from "../settings/places.ts";
import type { RemoteStage } from "../stages/remote.ts";
import { CommandError, type CommandInput, type ExitCode, parseArguments } from "./command.ts";
import { holdFolder } from "./folder-hold.ts";
import { Scratch } from "./scratch.ts";
import { SqliteChecker } from "./sqlite-checks.ts";
import { type VerifyContext, verifyDatabase } from "./verify-database.ts";
import { type DatabaseReport, textOfReport, type VerifyReport } from "./verify-report.ts";

export const verifyUsage = "usage: verify [DATABASE] [--json]";

/** Longest that listing the bucket may take. */
const listMsMax = 3_600_000;

export async function verify(input: CommandInput): Promise<ExitCode> {
  const { values, flags } = parseArguments(input.args, verifyUsage, { flags: ["--json"], valueCounts: [0, 1] });
  const [only] = values;
  if (only !== undefined && !isDatabaseId(only)) throw new CommandError(`${only} is no database's id\n${verifyUsage}`);
  const asJson = flags.has("--json");
  const places = storagePlaces(input.settings);
  const hold = holdFolder(places.localDirectoryPath);
  const ends: (() => Promise<void> | void)[] = [() => hold.release()];
  try {
    const scratch = await Scratch.open(places.localDirectoryPath, nodeFileSystem);
    ends.push(() => scratch.close());
    const remote = await openRemote(input, scratch, ends);
    const checker = await SqliteChecker.start({ ...input, limits: input.settings.executors });
    ends.push(() => checker.close());
    const context: VerifyContext = {
      ...input,
      fileSystem: nodeFileSystem,
      places,
      remote,
      checker,
      scratch,
      isServed: hold.isServed,
    };
    const databases: DatabaseReport[] = [];
    for (const id of only === undefined ? await allIds(input, places.localDirectoryPath, remote) : [only]) {
      input.signal.throwIfAborted();
      const report = await verifyDatabase(id, context);
      if (report === undefined) continue;
      databases.push(report);
      if (!asJson) input.print(textOfReport(report));
    }
    if (only !== undefined && databases.length === 0) throw new CommandError(`no stage has a database ${only}`);
    const report: VerifyReport = { isGood: databases.every(({ isGood }) => isGood), databases };
    if (asJson) input.print(`${JSON.stringify(report, null, 2)}\n`);
    else input.print(summary(report));
    return report.isGood ? 0 : 1;
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

function summary({ databases }: VerifyReport): string {
  const bad = databases.filter(({ isGood }) => !isGood).length;
  return `${databases.length} databases verified, ${bad} with problems\n`;
}

/** Undefined when the folder that would be the remote stage is not there: looking must not make it. */
async function openRemote(
  input: CommandInput,
  scratch: Scratch,
  ends: (() => Promise<void> | void)[],
): Promise<RemoteStage | undefined> {
  const { objectStore } = storagePlaces(input.settings);
  if (!isBucket(objectStore) && (await nodeFileSystem.list(objectStore.directoryPath)).length === 0) return undefined;
  const log = { warn: input.complain, error: input.complain };
  const { stage, store } = await remoteStageOf(input.settings, scratch.file("spool"), { ...input, log });
  ends.push(() => store.close());
  return stage;
}

/** Every id that some stage may have, each once. */
async function allIds(
  { clock, signal }: CommandInput,
  localDirectoryPath: string,
  remote: RemoteStage | undefined,
): Promise<readonly string[]> {
  const ids = new Set((await nodeFileSystem.list(join(localDirectoryPath, "databases"))).filter(isDatabaseId));
  for await (const id of remote?.manifests.ids({ deadlineAtMs: clock.now() + listMsMax, signal }) ?? []) {
    if (isDatabaseId(id)) ids.add(id);
  }
  return [...ids].sort();
}
