/** What SQLite and the native library report, as failures of the table. Runs in the executor. */
import { statfsSync } from "node:fs";
import { dirname } from "node:path";
import type { ExecutorLimits } from "./executor.ts";
import {
  FAILED_CLOSED,
  FAILED_FORBIDDEN,
  FAILED_INTERRUPTED,
  FAILED_PARAMETERS,
  FAILED_PREPARE,
  FAILED_READ_ONLY,
  FAILED_REQUEST,
  FAILED_SIZE,
  FAILED_STEP,
  FAILED_TEXT,
  limitNames,
  type NativeFailure,
} from "./native.ts";
import type { FailureNote } from "./protocol.ts";
import {
  codeName,
  codeOfName,
  constraintKind,
  primaryCode,
  SQLITE_AUTH,
  SQLITE_BUSY,
  SQLITE_CANTOPEN,
  SQLITE_CONSTRAINT,
  SQLITE_CORRUPT,
  SQLITE_FULL,
  SQLITE_IOERR,
  SQLITE_NOMEM,
  SQLITE_NOTADB,
  SQLITE_PROTOCOL,
  SQLITE_READONLY,
  SQLITE_SCHEMA,
  SQLITE_TOOBIG,
} from "./sqlite-codes.ts";

/** Causes of FAILED_INTERRUPTED. */
const INTERRUPTED_BY_DEADLINE = 1;
const INTERRUPTED_BY_CANCEL = 2;

/** A disk with no more room than this is full: one value may need as much. */
const DISK_FULL_BYTES = 16 * 1024 * 1024;

/** Longest text of SQLite that is passed on: it may quote the statement. */
const MESSAGE_CHARACTERS_MAX = 500;

export interface FailureContext {
  readonly database: string;
  /** Where its file lies. */
  readonly path: string;
  readonly limits: ExecutorLimits;
  /** Bound of the result that was asked for. */
  readonly resultBytesMax: number;
}

/** A failure that was found above SQLite, on its way to the caller. */
export class NotedFailure extends Error {
  override readonly name = "NotedFailure";
  readonly note: FailureNote;

  constructor(note: FailureNote) {
    super(note.reason);
    this.note = note;
  }
}

export const busyNote = (database: string, problem: string): FailureNote => ({
  reason: "DATABASE_BUSY",
  facts: { database, problem },
  busy: true,
});

/** The note for what the native library says went wrong. */
export function noteOfNative(failure: NativeFailure, context: FailureContext): FailureNote {
  const sqliteMessage = failure.message.slice(0, MESSAGE_CHARACTERS_MAX);
  switch (failure.kind) {
    case FAILED_REQUEST:
      return {
        reason: "FIELD_INVALID",
        facts: { field: "statement", description: `is not valid: ${sqliteMessage}` },
        field: "statement",
      };
    case FAILED_TEXT:
      return note("SQL_INVALID", { sqliteMessage, sqliteCode: "SQLITE_ERROR", ...offsetFact(failure.offset) });
    case FAILED_PARAMETERS:
      return note("PARAMETERS_MISMATCH", {
        problem: sqliteMessage,
        ...(failure.parameter === "" ? {} : { parameter: failure.parameter }),
        ...(failure.expected === failure.actual
          ? {}
          : { expected: `${failure.expected}`, actual: `${failure.actual}` }),
      });
    case FAILED_SIZE:
      return note("RESULT_TOO_LARGE", { limitBytes: `${context.resultBytesMax}` });
    case FAILED_READ_ONLY:
      return note("STATEMENT_NOT_READ_ONLY", {});
    case FAILED_FORBIDDEN:
      return note("SQL_FORBIDDEN", { action: failure.action, resource: failure.resource });
    case FAILED_INTERRUPTED:
      return noteOfInterrupt(failure.expected, context);
    case FAILED_PREPARE:
    case FAILED_STEP:
      if (failure.limit >= 0)
        return note("LIMIT_EXCEEDED", {
          what: limitNames[failure.limit] ?? "a limit of SQLite",
          limit: `${limitValues[failure.limit]?.(context.limits)}`,
          sqliteMessage,
          sqliteCode: codeName(failure.code),
        });
      return noteOfCode(
        failure.code,
        sqliteMessage,
        failure.kind === FAILED_PREPARE ? failure.offset : undefined,
        context,
      );
    case FAILED_CLOSED:
      return { reason: "INTERNAL", facts: {}, detail: `a closed connection or cursor was used: ${sqliteMessage}` };
    default:
      return { reason: "INTERNAL", facts: {}, detail: `unknown kind of failure ${failure.kind}: ${sqliteMessage}` };
  }
}

/** The note for an error that better-sqlite3 throws, for example when a database is opened. */
export function noteOfError(error: unknown, context: FailureContext): FailureNote {
  if (error instanceof NotedFailure) return error.note;
  if (error instanceof Error && "code" in error && typeof error.code === "string" && error.code.startsWith("SQLITE_"))
    return noteOfCode(codeOfName(error.code), error.message, undefined, context);
  return {
    reason: "INTERNAL",
    facts: {},
    detail: error instanceof Error ? (error.stack ?? error.message) : `${error}`,
  };
}

const note = (reason: string, facts: Readonly<Record<string, string>>): FailureNote => ({ reason, facts });

function noteOfInterrupt(cause: number, context: FailureContext): FailureNote {
  if (cause === INTERRUPTED_BY_DEADLINE) return { reason: "STATEMENT_TIMEOUT", facts: {}, interrupted: "deadline" };
  if (cause === INTERRUPTED_BY_CANCEL) return { reason: "STATEMENT_TIMEOUT", facts: {}, interrupted: "cancel" };
  return note("LIMIT_EXCEEDED", { what: "memory", limit: `${context.limits.executorMemoryBytesMax} bytes` });
}

/** Values of the limits by SQLITE_LIMIT_* number, the order of `limitNames`. */
const limitValues: readonly ((limits: ExecutorLimits) => number)[] = [
  (limits) => limits.valueBytesMax,
  (limits) => limits.sqlBytesMax,
  (limits) => limits.columnCountMax,
  (limits) => limits.expressionDepthMax,
  (limits) => limits.compoundSelectCountMax,
  (limits) => limits.vdbeOpCountMax,
  (limits) => limits.functionArgumentCountMax,
  () => 0,
  (limits) => limits.likePatternBytesMax,
  (limits) => limits.parameterCountMax,
  (limits) => limits.triggerDepthMax,
  () => 0,
];

/** `offset` undefined: it happened while running; below 0: SQLite does not know where. */
export function noteOfCode(
  code: number,
  message: string,
  offset: number | undefined,
  context: FailureContext,
): FailureNote {
  const sqliteMessage = message.slice(0, MESSAGE_CHARACTERS_MAX);
  const sqliteCode = codeName(code);
  const { database, limits } = context;
  switch (primaryCode(code)) {
    case SQLITE_CONSTRAINT:
      return note("CONSTRAINT_VIOLATED", {
        constraint: constraintKind(code),
        ...violatedColumns(message),
        sqliteMessage,
        sqliteCode,
      });
    case SQLITE_BUSY:
    case SQLITE_PROTOCOL:
    case SQLITE_SCHEMA:
      return busyNote(database, sqliteMessage);
    case SQLITE_AUTH:
      return note("SQL_FORBIDDEN", { action: "use", resource: sqliteMessage });
    case SQLITE_READONLY:
      return note("STATEMENT_NOT_READ_ONLY", {});
    case SQLITE_TOOBIG:
      return note("LIMIT_EXCEEDED", {
        what: offset === undefined ? "a value" : "the statement",
        limit: `${offset === undefined ? limits.valueBytesMax : limits.sqlBytesMax} bytes`,
        sqliteMessage,
        sqliteCode,
      });
    case SQLITE_NOMEM:
      return note("LIMIT_EXCEEDED", {
        what: "memory or the size of the compiled statement",
        limit: `${limits.executorMemoryBytesMax} bytes, ${limits.vdbeOpCountMax} instructions`,
        sqliteMessage,
        sqliteCode,
      });
    case SQLITE_FULL:
      return stageFull(context.path) ?? note("DATABASE_FULL", { database, limitBytes: `${limits.databaseBytesMax}` });
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return note("DATA_CORRUPT", { database, stage: "local", sqliteMessage, sqliteCode });
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
      return note("STAGE_UNAVAILABLE", { stage: "local", sqliteCode });
  }
  if (offset === undefined) return note("SQL_FAILED", { sqliteMessage, sqliteCode });
  return note("SQL_INVALID", { sqliteMessage, sqliteCode, ...offsetFact(offset) });
}

const offsetFact = (offset: number): Readonly<Record<string, string>> => (offset < 0 ? {} : { offset: `${offset}` });

/** A note when the disk has no room left: SQLite has one code for that and for its own limit. */
function stageFull(databasePath: string): FailureNote | undefined {
  const { bavail, blocks, bsize } = statfsSync(dirname(databasePath));
  const capacityBytes = blocks * bsize;
  const freeBytes = bavail * bsize;
  if (freeBytes > DISK_FULL_BYTES) return undefined;
  return note("STAGE_FULL", {
    stage: "local",
    usedBytes: `${capacityBytes - freeBytes}`,
    capacityBytes: `${capacityBytes}`,
  });
}

/** Table and columns of "UNIQUE constraint failed: t.a, t.b" and its like. */
function violatedColumns(message: string): Readonly<Record<string, string>> {
  const listed = /^(?:UNIQUE|NOT NULL) constraint failed: (.+)$/s.exec(message)?.[1];
  if (listed === undefined || listed.startsWith("index ")) return {};
  const columns = listed.split(", ");
  const dot = (columns[0] as string).indexOf(".");
  if (dot < 0) return {};
  const table = (columns[0] as string).slice(0, dot);
  return { table, columns: columns.map((column) => column.slice(dot + 1)).join(",") };
}
