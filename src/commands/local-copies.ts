/** What the local folder and the memory stage hold of a database. Looks only: nothing is changed. */
import { join } from "node:path";
import { type Facts, readFacts } from "../engine/facts.ts";
import { type Part, parsePartName } from "../engine/log/parts.ts";
import type { FileSystem } from "../files/file-system.ts";
import { decodeHeader, headerBytes, type LtxHeader } from "../ltx/header.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { parseLtxFileName } from "../ltx/txid.ts";
import type { Batch } from "../stages/stage.ts";

/** A file of the log whose header can be read. */
export interface LogBatch extends Batch {
  readonly header: LtxHeader;
}

export interface LocalCopies {
  /** Undefined when database.json is missing or damaged. */
  readonly facts: Facts | undefined;
  /** The file in the local folder: the head, or what a head in memory is built on. Undefined when there is none. */
  readonly localPath: string | undefined;
  /** The file on the memory stage; undefined when there is none. */
  readonly memoryPath: string | undefined;
  readonly logPath: string;
  /** Closed ones, ascending. */
  readonly batches: readonly LogBatch[];
  /** Of the batch that is open behind them, in their order. */
  readonly parts: readonly Part[];
  /** The file holds commits that no file of the log has, and the next one will be a snapshot. */
  readonly hasGap: boolean;
  readonly problems: readonly string[];
}

export interface LocalPlaces {
  readonly localDirectoryPath: string;
  readonly memoryDirectoryPath: string;
}

/** Undefined when the folder has no such database. */
export async function findLocalCopies(
  fileSystem: FileSystem,
  { localDirectoryPath, memoryDirectoryPath }: LocalPlaces,
  id: string,
): Promise<LocalCopies | undefined> {
  const folder = join(localDirectoryPath, "databases", id);
  if ((await fileSystem.list(folder)).length === 0) return undefined;
  const facts = await readFacts(fileSystem, join(folder, "database.json"), id);
  const localPath = join(folder, "db.sqlite");
  const memoryPath = join(memoryDirectoryPath, "databases", `${id}.${facts?.lineage ?? ""}`, "db.sqlite");
  const has = (path: string) => (fileSystem.sizeBytes(path) > 0 ? path : undefined);
  const problems = facts === undefined ? [`${join(folder, "database.json")} is missing or damaged`] : [];
  return {
    facts,
    localPath: has(localPath),
    memoryPath: facts?.head === "memory" ? has(memoryPath) : undefined,
    ...(await readLog(fileSystem, join(folder, "log"), problems)),
  };
}

async function readLog(
  fileSystem: FileSystem,
  logPath: string,
  earlier: readonly string[],
): Promise<Pick<LocalCopies, "logPath" | "batches" | "parts" | "hasGap" | "problems">> {
  const batches: LogBatch[] = [];
  const parts: (Part & { readonly txid: bigint })[] = [];
  const problems = [...earlier];
  const names = [...(await fileSystem.list(logPath))].sort();
  for (const name of names) {
    const path = join(logPath, name);
    if (name.endsWith(".damaged")) problems.push(`${path} was found damaged and put aside`);
    const txid = parseLtxFileName(name)?.maxTxid ?? parsePartName(name)?.txid;
    if (txid === undefined) continue;
    const start = await fileSystem.readStart(path, headerBytes);
    // Released by a running server meanwhile.
    if (start === undefined) continue;
    try {
      const file = { path, byteCount: fileSystem.sizeBytes(path), header: decodeHeader(start) };
      if (parsePartName(name) === undefined) batches.push(batchOf(file));
      // Their names say which batch they are of; not all of them carry its number.
      else parts.push({ ...file, txid });
    } catch (error) {
      if (!(error instanceof LtxFailure)) throw error;
      problems.push(`${path}: ${sentenceOf(error)}`);
    }
  }
  // Parts that are left of a closed batch are in its file.
  const closedTxid = batches.at(-1)?.txid ?? 0n;
  const openTxid = parts.at(-1)?.txid ?? 0n;
  const open = parts.filter(({ txid }) => txid === openTxid && openTxid > closedTxid);
  return { logPath, batches, parts: open, hasGap: names.includes("gap"), problems };
}

export function batchOf(file: Part): LogBatch {
  const { maxTxid: txid, pageSize, commit, timestampMs } = file.header;
  return { ...file, txid, pageSize, commit, timestampMs };
}

/** What a damaged file's failure says. */
export function sentenceOf(error: Error & { readonly facts?: Readonly<Record<string, string>> }): string {
  return error.facts?.["sqliteMessage"] ?? error.message;
}
