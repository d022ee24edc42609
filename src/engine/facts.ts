/** database.json: the facts that live with a database's files, so that a lost catalog can be made again. */
import { dirname } from "node:path";
import * as z from "zod";
import type { FileSystem } from "./file-system.ts";
import { isDatabaseId } from "./names.ts";

/** What is known of a repeatable CreateDatabase: enough to tell a repeat and to give its first answer again. */
export interface CreateRecord {
  readonly id: string;
  readonly method: string;
  readonly hash: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly foreignKeys: boolean;
}

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
  /** No sequence above this has been given out. */
  readonly sequenceReserved: number;
  readonly createRecord: CreateRecord | undefined;
}

/** Longest database.json that is read: as many labels as can be allowed, of the longest kind, twice, and room. */
const factsBytesMax = 8 * 1024 * 1024;

const labels = z.record(z.string(), z.string());
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const factsSchema = z.object({
  version: z.literal(1),
  id: z.string().refine(isDatabaseId),
  lineage: z.string().regex(/^[0-9a-f]{16}$/),
  createTimeMs: count,
  labels,
  foreignKeys: z.boolean(),
  etagVersion: count,
  sequenceReserved: count,
  createRecord: z
    .object({ id: z.string(), method: z.string(), hash: z.string(), labels, foreignKeys: z.boolean() })
    .optional(),
});

/** Reads the facts at `path`. Undefined when the file is missing, is damaged, or belongs to another id. */
export async function readFacts(fileSystem: FileSystem, path: string, id: string): Promise<Facts | undefined> {
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
  if (!parsed.success || parsed.data.id !== id) return undefined;
  const { version: _, createRecord, ...facts } = parsed.data;
  return { ...facts, createRecord };
}

/** Replaces the facts at `path` at once: after a crash there is the old file or the new one. On the disk when it resolves. */
export async function writeFacts(fileSystem: FileSystem, path: string, facts: Facts): Promise<void> {
  const temporary = `${path}.new`;
  await fileSystem.writeFlushed(temporary, Buffer.from(`${JSON.stringify({ version: 1, ...facts }, null, 2)}\n`));
  await fileSystem.rename(temporary, path);
  await fileSystem.flushFolder(dirname(path));
}
