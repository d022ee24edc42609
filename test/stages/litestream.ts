/** The real litestream, where it is installed: see tools/install-s3-servers.sh. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { accessKeyId, bucket, installed, secretAccessKey } from "../objects/s3-servers.ts";

export const litestreamPath = installed({ program: "litestream" });

/** Where litestream finds a replica. */
export type ReplicaPlace = { readonly folder: string } | { readonly endpoint: string; readonly prefix: string };

/** Runs `restore` into `output` with more arguments; throws what it wrote when it fails. */
export function litestreamRestore(place: ReplicaPlace, output: string, ...more: string[]): Promise<void> {
  return run(place, output, (config) => [
    "restore",
    "-config",
    config,
    "-o",
    output,
    ...more,
    "-integrity-check",
    "full",
    output,
  ]);
}

/** Replicates a database once. */
export function litestreamReplicate(place: ReplicaPlace, databasePath: string, ...more: string[]): Promise<void> {
  return run(place, databasePath, (config) => ["replicate", "-config", config, "-once", ...more]);
}

/** Not synchronously: the servers of the tests stop when nobody reads what they log. */
async function run(
  place: ReplicaPlace,
  databasePath: string,
  argumentsOf: (config: string) => string[],
): Promise<void> {
  if (litestreamPath === undefined) throw new Error("litestream is not installed");
  const folder = mkdtempSync(join(tmpdir(), "persisto-test-"));
  try {
    const config = join(folder, "litestream.yml");
    writeFileSync(config, JSON.stringify({ dbs: [{ path: databasePath, replica: replicaOf(place) }] }));
    // Nothing of the machine's: with AWS_CA_BUNDLE set it opens no bucket.
    const env = { HOME: folder, PATH: process.env["PATH"] };
    await promisify(execFile)(litestreamPath, argumentsOf(config), { timeout: 20_000, env });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function replicaOf(place: ReplicaPlace): Record<string, unknown> {
  if ("folder" in place) return { type: "file", path: place.folder };
  return {
    type: "s3",
    bucket,
    path: place.prefix,
    endpoint: place.endpoint,
    region: "us-east-1",
    "force-path-style": true,
    "access-key-id": accessKeyId,
    "secret-access-key": secretAccessKey,
  };
}
