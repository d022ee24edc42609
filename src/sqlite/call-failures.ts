/** What callers are told when a call does not run to its end. */
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { type Reason, reasons } from "../failure/reasons.ts";
import type { Call, CallInput } from "./call.ts";
import { CallCancelled } from "./executor.ts";
import type { PoolDatabase } from "./pool-database.ts";
import type { FailureNote } from "./protocol.ts";

/** How long callers should wait before they try again. */
const RETRY_AFTER_MS = 50;

/** Nothing ran, because of `problem`. */
export function busy(database: PoolDatabase, problem: string, waitedMs: number): Failure {
  return new Failure(
    "DATABASE_BUSY",
    { database: database.file.id, problem, waitedMs: `${Math.round(waitedMs)}` },
    { retryAfterMs: RETRY_AFTER_MS },
  );
}

/** The call's time is over. */
export function timeout(input: CallInput, facts: Readonly<Record<string, string>> = {}): Failure {
  return new Failure("STATEMENT_TIMEOUT", {
    ...facts,
    limitMs: `${Math.max(0, Math.round(input.deadlineAtMs - input.submittedAtMs))}`,
    source: input.deadlineSource,
  });
}

/** SQLite has spent all the time on a query that it may. */
export function executionTimeout(executionMsMax: number): Failure {
  return new Failure("STATEMENT_TIMEOUT", { limitMs: `${Math.round(executionMsMax)}`, source: "server" });
}

/** The executor died, and the call had no effect. */
export function lost(how: string): Failure {
  return new Failure("EXECUTOR_LOST", { signal: how }, { retryAfterMs: RETRY_AFTER_MS });
}

/** The same for the call that ran at that moment: it may be the reason for which the server killed the executor. */
export function lostRunning(call: Call, wasKilled: boolean, how: string): Error {
  if (!wasKilled || call.stopCause === undefined) return lost(how);
  return call.stopCause === "cancel" ? new CallCancelled() : timeout(call.input);
}

/** A call was stopped before it was sent. */
export function neverSent(call: Call, nowMs: number): Error {
  if (call.stopCause === "cancel") return new CallCancelled();
  const { database, submittedAtMs } = call.input;
  const problem =
    database.lockHolder !== undefined && call.takesLock
      ? "another transaction holds the write lock"
      : "its executor is busy";
  return busy(database, problem, nowMs - submittedAtMs);
}

/** Failures that come before the record of an earlier run was looked for. */
const EARLY_REASONS: ReadonlySet<Reason> = new Set<Reason>([
  "DATABASE_BUSY",
  "EXECUTOR_LOST",
  "SHUTTING_DOWN",
  "STAGE_UNAVAILABLE",
  "STATEMENT_TIMEOUT",
]);

/** What a call is told that may have been committed before: `error` counts only when it says that no record was there. */
export function inDoubt(error: Error, how: string): Error {
  const isEarly = error instanceof CallCancelled || (error instanceof Failure && EARLY_REASONS.has(error.reason));
  return isEarly ? new Failure("OUTCOME_UNKNOWN", { signal: how }) : error;
}

/** What an executor says went wrong. */
export function errorOfNote(note: FailureNote, call: Call, nowMs: number): Error {
  const { input } = call;
  if (note.interrupted !== undefined) {
    const cause = note.interrupted === "cancel" ? call.stopCause : "deadline";
    return cause === "cancel" ? new CallCancelled() : timeout(input, note.facts);
  }
  if (note.busy) return busy(input.database, note.facts.problem ?? "", nowMs - input.submittedAtMs);
  if (note.field !== undefined) return fieldInvalid(note.field, note.facts.description ?? "");
  if (note.detail !== undefined || !isReason(note.reason)) return new Error(note.detail ?? note.reason);
  return new Failure(note.reason, note.facts);
}

function isReason(name: string): name is Reason {
  return name in reasons;
}
