/** SQLite's result codes, as far as this server tells them apart or names them to callers. */

export const SQLITE_BUSY = 5;
export const SQLITE_LOCKED = 6;
export const SQLITE_NOMEM = 7;
export const SQLITE_READONLY = 8;
export const SQLITE_INTERRUPT = 9;
export const SQLITE_IOERR = 10;
export const SQLITE_CORRUPT = 11;
export const SQLITE_FULL = 13;
export const SQLITE_CANTOPEN = 14;
export const SQLITE_PROTOCOL = 15;
export const SQLITE_SCHEMA = 17;
export const SQLITE_TOOBIG = 18;
export const SQLITE_CONSTRAINT = 19;
export const SQLITE_AUTH = 23;
export const SQLITE_NOTADB = 26;

const primaryNames: readonly string[] = [
  "OK",
  "ERROR",
  "INTERNAL",
  "PERM",
  "ABORT",
  "BUSY",
  "LOCKED",
  "NOMEM",
  "READONLY",
  "INTERRUPT",
  "IOERR",
  "CORRUPT",
  "NOTFOUND",
  "FULL",
  "CANTOPEN",
  "PROTOCOL",
  "EMPTY",
  "SCHEMA",
  "TOOBIG",
  "CONSTRAINT",
  "MISMATCH",
  "MISUSE",
  "NOLFS",
  "AUTH",
  "FORMAT",
  "RANGE",
  "NOTADB",
];

/** Kinds of constraints by the second byte of the extended code, as callers read them. */
const constraintKinds: readonly string[] = [
  "",
  "CHECK",
  "COMMITHOOK",
  "FOREIGNKEY",
  "FUNCTION",
  "NOTNULL",
  "PRIMARYKEY",
  "TRIGGER",
  "UNIQUE",
  "VTAB",
  "ROWID",
  "PINNED",
  "DATATYPE",
];

/** The primary code of an extended one. */
export function primaryCode(code: number): number {
  return code & 0xff;
}

/** Kinds of I/O errors that tell of a flush. */
const flushKinds: Readonly<Record<number, string>> = { 4: "FSYNC", 5: "DIR_FSYNC" };

/** For example SQLITE_CONSTRAINT_UNIQUE or SQLITE_IOERR_FSYNC; most other kinds are named by their primary code. */
export function codeName(code: number): string {
  const name = primaryNames[primaryCode(code)];
  if (name === undefined) return `SQLITE_${code}`;
  const kinds = { [SQLITE_CONSTRAINT]: constraintKinds, [SQLITE_IOERR]: flushKinds }[primaryCode(code)];
  const kind = kinds?.[code >> 8];
  return kind ? `SQLITE_${name}_${kind}` : `SQLITE_${name}`;
}

/** "UNIQUE" for SQLITE_CONSTRAINT_UNIQUE, "FOREIGN KEY", "NOT NULL" and "PRIMARY KEY" with their blank. */
export function constraintKind(code: number): string {
  const kind = constraintKinds[code >> 8] ?? "";
  return kind.replace(/^(FOREIGN|NOT|PRIMARY)/, "$1 ");
}

/** The code that a name of better-sqlite3 (SqliteError.code) stands for; 1 for names unknown here. */
export function codeOfName(name: string): number {
  const parts = name.split("_");
  const primary = primaryNames.indexOf(parts[1] ?? "");
  return primary < 0 ? 1 : primary;
}
