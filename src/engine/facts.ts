/** database.json: the facts that live with a database's files, so that a lost catalog can be made again. */
import { dirname } from "node:path";
import * as z from "zod";
import { type FailPoints, noFailPoints } from "../fail-points.ts";
import type { FileSystem } from "../files/file-system.ts";
import type { PinInfo, StageName } from "./engine.ts";
import { isDatabaseId } from "./names.ts";

/** What is known of a repeatable CreateDatabase: enough to tell a repeat and to give its first answer again. */
export interface CreateRecord {
  readonly id: string;
  readonly method: string;
  readonly hash: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly foreignKeys: boolean;
}

/** Where the file is that a database's calls run in; `none`: only the remote stage holds the database. */
export type HeadPlace = "memory" | "local" | "none";

/** Facts of one database. */
export interface Facts {
  readonly id: string;
  /** 16 hex digits. */
  readonly lineage: string;
  /** Milliseconds since 1970. */
  readonly createTimeMs: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly foreignKeys: boolean;
  /** Grows with every change of labels and SQL options. */
  readonly etagVersion: number;
  readonly createRecord: CreateRecord | undefined;
  /** Where the policy, or a caller, has placed it. A remote database has a local head while it is used. */
  readonly stage: StageName;
  readonly head: HeadPlace;
  /**
   * The batch that db.sqlite in the local folder holds at least: where the remote stage was when it was brought here, or how
   * far the log has been applied to it while the head is in memory. 0 for one that was made here.
   */
  readonly baseTxid: number;
  /** Of the replica in the remote stage; empty while there is none. */
  readonly remotePrefix: string;
  readonly pin: PinInfo | undefined;
  /** The lineage that a restore in place is about to switch to. */
  readonly successor: string | undefined;
}

/** The facts among the columns of a row. */
export function factsOf(row: Facts): Facts {
  const { id, lineage, createTimeMs, labels, foreignKeys, etagVersion, createRecord } = row;
  const { stage, head, baseTxid, remotePrefix, pin, successor } = row;
  return {
    id,
    lineage,
    createTimeMs,
    labels,
    foreignKeys,
    etagVersion,
    createRecord,
    stage,
    head,
    baseTxid,
    remotePrefix,
    pin,
    successor,
  };
}

/** Longest database.json that is read: as many labels as can be allowed, of the longest kind, twice, and room. */
const factsBytesMax = 8 * 1024 * 1024;

const labels = z.record(z.string(), z.string());
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const lineage = z.string().regex(/^[0-9a-f]{16}$/);
const stageName = z.enum(["memory", "local", "remote"]);
const factsSchema = z.object({
  version: z.literal(1),
  id: z.string().refine(isDatabaseId),
  lineage,
  createTimeMs: count,
  labels,
  foreignKeys: z.boolean(),
  etagVersion: count,
  createRecord: z
    .object({ id: z.string(), method: z.string(), hash: z.string(), labels, foreignKeys: z.boolean() })
    .optional(),
  stage: stageName.default("local"),
  head: z.enum(["memory", "local", "none"]).default("local"),
  baseTxid: count.default(0),
  remotePrefix: z.string().default(""),
  pin: z.object({ stage: stageName, expireTimeMs: count.optional() }).optional(),
  successor: lineage.optional(),
});

/** Reads the facts at `path`. Undefined when the file is missing, is damaged, or belongs to another id than the one given. */
export async function readFacts(fileSystem: FileSystem, path: string, id?: string): Promise<Facts | undefined> {
  if (fileSystem.sizeBytes(path) > factsBytesMax) return undefined;
  const bytes = await fileSystem.read(path);
  if (bytes === undefined) return undefined;
  let given: unknown;
  try {
    given = JSON.parse(bytes.toString("utf8"));
  } catch {
    // Not JSON: damaged, as the caller is told by undefined.
    return undefined;
  }
  const parsed = factsSchema.safeParse(given);
  if (!parsed.success || (id !== undefined && parsed.data.id !== id)) return undefined;
  const { version: _, createRecord, pin, successor, ...facts } = parsed.data;
  return {
    ...facts,
    createRecord,
    pin: pin && { stage: pin.stage, expireTimeMs: pin.expireTimeMs },
    successor,
  };
}

/** Replaces the facts at `path` at once: after a crash there is the old file or the new one. On the disk when it resolves. */
export async function writeFacts(
  fileSystem: FileSystem,
  path: string,
  facts: Facts,
  failPoints: FailPoints = noFailPoints,
): Promise<void> {
  const temporary = `${path}.new`;
  await fileSystem.writeFlushed(temporary, Buffer.from(`${JSON.stringify({ version: 1, ...facts }, null, 2)}\n`));
  failPoints.reach("facts.written");
  await fileSystem.rename(temporary, path);
  failPoints.reach("facts.named");
  await fileSystem.flushFolder(dirname(path));
}
