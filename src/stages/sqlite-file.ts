/** What the first page of a database file says about it. */
import { isPageSize } from "../ltx/pages.ts";

const magic = Buffer.from("SQLite format 3\0", "latin1");
/** As much of a file as `readSqliteHeader` needs. */
export const sqliteHeaderBytes = 100;

export interface SqliteHeader {
  readonly pageSize: number;
  /** Pages of the database; 0 when the header does not know. */
  readonly pageCount: number;
}

/** Undefined for what is no database file. */
export function readSqliteHeader(bytes: Buffer): SqliteHeader | undefined {
  if (bytes.length < sqliteHeaderBytes || !bytes.subarray(0, magic.length).equals(magic)) return undefined;
  const stored = bytes.readUInt16BE(16);
  const pageSize = stored === 1 ? 65_536 : stored;
  if (!isPageSize(pageSize)) return undefined;
  // Programs before SQLite 3.7 leave the count as it was; then the two counters of changes differ.
  const isCountValid = bytes.readUInt32BE(24) === bytes.readUInt32BE(92);
  return { pageSize, pageCount: isCountValid ? bytes.readUInt32BE(28) : 0 };
}
