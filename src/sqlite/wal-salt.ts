import { closeSync, openSync, readSync } from "node:fs";
import { SALT_BYTES } from "./protocol.ts";

/** Where the two salts lie in the header of a WAL file. */
const SALT_OFFSET = 16;

/**
 * The salts of a database's WAL: when it is started over it gets others. Zero when there is no header. The WAL carries no
 * locks, so opening and closing it here loses none.
 */
export function walSalt(databasePath: string): Buffer {
  const salt = Buffer.alloc(SALT_BYTES);
  let descriptor: number;
  try {
    descriptor = openSync(`${databasePath}-wal`, "r");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return salt;
    throw error;
  }
  try {
    readSync(descriptor, salt, 0, SALT_BYTES, SALT_OFFSET);
  } finally {
    closeSync(descriptor);
  }
  return salt;
}
