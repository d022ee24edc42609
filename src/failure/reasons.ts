/**
 * The closed table of failures: what goes wrong, the status it becomes, what the caller can do.
 * It mirrors `persisto.v1.ErrorReason` member by member; a test walks both, and docs/ERRORS.md is generated from them.
 */

/** Names of the gRPC status codes that a failure may become. */
export type StatusCode =
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

/**
 * What a caller may do with the same call: `never` repeat it unchanged; repeat it alone (`same`), at once or after RetryInfo;
 * `restart` one level up (read again, decide again); repeat it `later`, when something named in the message has changed.
 */
export type Retry = "never" | "same" | "restart" | "later";

/** One row of the table. `{name}` in a message stands for the metadata of that name; missing ones read as "unknown". */
export interface ReasonEntry {
  readonly code: StatusCode;
  readonly retry: Retry;
  /** What happened, and what to do. */
  readonly message: string;
  /** Metadata keys that may be sent; once sent they stay. */
  readonly metadata: readonly string[];
}

const entry = (code: StatusCode, retry: Retry, message: string, ...metadata: string[]): ReasonEntry => ({
  code,
  retry,
  message,
  metadata,
});

/** Every reason that a failure can have. */
export const reasons = {
  TOKEN_INVALID: entry("UNAUTHENTICATED", "never", "the token does not verify; send a valid one"),
  TOKEN_EXPIRED: entry("UNAUTHENTICATED", "never", "the token's time is over; get a new one"),
  ACCESS_DENIED: entry(
    "PERMISSION_DENIED",
    "never",
    "the token does not grant {action} on {resource}",
    "action",
    "resource",
  ),
  SQL_FORBIDDEN: entry(
    "PERMISSION_DENIED",
    "never",
    "no caller may use {resource} ({action}); see the SQL rules in docs/SQL.md",
    "action",
    "resource",
    "step",
  ),
  RATE_LIMITED: entry(
    "RESOURCE_EXHAUSTED",
    "same",
    "more calls than {limit} for {scope}; wait as RetryInfo says",
    "limit",
    "scope",
  ),

  FIELD_INVALID: entry("INVALID_ARGUMENT", "never", "{field} {description}", "field", "description"),
  SQL_INVALID: entry(
    "INVALID_ARGUMENT",
    "never",
    "the statement does not compile: {sqliteMessage}",
    "sqliteMessage",
    "sqliteCode",
    "offset",
    "step",
  ),
  PARAMETERS_MISMATCH: entry(
    "INVALID_ARGUMENT",
    "never",
    "parameters and placeholders do not match: {problem}",
    "problem",
    "parameter",
    "expected",
    "actual",
    "step",
  ),
  STATEMENT_NOT_READ_ONLY: entry(
    "INVALID_ARGUMENT",
    "never",
    "the statement writes; send it to Execute, or begin READ_WRITE",
    "step",
  ),
  PAGE_TOKEN_INVALID: entry(
    "INVALID_ARGUMENT",
    "never",
    "page_token is damaged or of another query; start again without it",
    "field",
  ),
  RESULT_TOO_LARGE: entry(
    "RESOURCE_EXHAUSTED",
    "never",
    "the result is larger than {limitBytes} bytes; use Query, or add a LIMIT",
    "limitBytes",
    "step",
  ),
  SQL_FAILED: entry(
    "INVALID_ARGUMENT",
    "never",
    "the statement failed while running: {sqliteMessage}",
    "sqliteMessage",
    "sqliteCode",
    "step",
  ),
  LIMIT_EXCEEDED: entry(
    "INVALID_ARGUMENT",
    "never",
    "{what} is over the limit {limit}",
    "what",
    "limit",
    "sqliteMessage",
    "sqliteCode",
    "step",
  ),

  DATABASE_NOT_FOUND: entry(
    "NOT_FOUND",
    "never",
    "database {database} does not exist; CreateDatabase makes it",
    "database",
  ),
  DATABASE_EXISTS: entry(
    "ALREADY_EXISTS",
    "never",
    "database {database} exists already; use another id, or set allow_existing",
    "database",
  ),
  DATABASE_BUSY: entry(
    "UNAVAILABLE",
    "same",
    "database {database} is busy ({problem}); nothing ran, try again as RetryInfo says",
    "database",
    "problem",
    "waitedMs",
  ),
  DATABASE_READ_ONLY: entry(
    "FAILED_PRECONDITION",
    "later",
    "database {database} takes no writes while operation {operation} runs",
    "database",
    "operation",
  ),
  CONSTRAINT_VIOLATED: entry(
    "FAILED_PRECONDITION",
    "never",
    "a constraint is not met: {sqliteMessage}",
    "constraint",
    "table",
    "columns",
    "sqliteMessage",
    "sqliteCode",
    "step",
  ),
  EXPECTATION_FAILED: entry(
    "ABORTED",
    "restart",
    "step {step} changed {actual} rows where {expected} were expected; the batch was rolled back",
    "step",
    "expected",
    "actual",
  ),
  ETAG_MISMATCH: entry(
    "ABORTED",
    "restart",
    "database {database} has changed; read it again and send its new etag",
    "database",
  ),
  TRANSACTION_EXPIRED: entry(
    "ABORTED",
    "restart",
    "the transaction was rolled back: its {limit} of {limitMs} ms is over",
    "limit",
    "limitMs",
  ),
  SNAPSHOT_TOO_OLD: entry(
    "ABORTED",
    "restart",
    "the read kept the log of {database} from being emptied for {frames} frames and was ended; read again, in less time or in parts",
    "database",
    "frames",
  ),
  TRANSACTION_NOT_OPEN: entry(
    "FAILED_PRECONDITION",
    "never",
    "{command} needs an open transaction; send begin first, and nothing after commit or rollback",
    "command",
  ),
  OPERATION_CONFLICT: entry(
    "ABORTED",
    "later",
    "operation {operation} works on the database; wait for its end",
    "operation",
  ),
  OPERATION_NOT_FOUND: entry(
    "NOT_FOUND",
    "never",
    "there is no operation {operation}; those that ended long ago are forgotten",
    "operation",
  ),
  OPERATION_CANCELLED: entry(
    "CANCELLED",
    "never",
    "the operation was cancelled; the database is as it was before it",
    "operation",
  ),
  OPERATION_INTERRUPTED: entry(
    "ABORTED",
    "restart",
    "the server ended while operation {operation} ran; the database is as it was before it, begin it again",
    "operation",
  ),
  DATABASE_FULL: entry(
    "RESOURCE_EXHAUSTED",
    "never",
    "database {database} has reached its limit of {limitBytes} bytes; delete rows, or raise the limit",
    "database",
    "limitBytes",
    "step",
  ),
  POSITION_NOT_REACHED: entry(
    "UNAVAILABLE",
    "same",
    "database {database} did not reach position {sequence} in time; try again",
    "database",
    "sequence",
    "current",
  ),
  DATABASE_FAULTED: entry(
    "FAILED_PRECONDITION",
    "later",
    "database {database} is stopped ({problem}); an operator has to look at the server's log",
    "database",
    "problem",
  ),

  RESUME_TOKEN_EXPIRED: entry(
    "OUT_OF_RANGE",
    "restart",
    "the log no longer reaches back that far; the earliest sequence is {earliestSequence}",
    "earliestSequence",
  ),
  LINEAGE_CHANGED: entry(
    "FAILED_PRECONDITION",
    "restart",
    "the position is of another history of the database, now {lineage}; read the database again",
    "lineage",
  ),
  HISTORY_OUT_OF_RANGE: entry(
    "OUT_OF_RANGE",
    "never",
    "database {database} has no state {wanted} to go back to: {problem}; choose one from position {earliestSequence} " +
      "({earliestTime}) to {latestSequence} ({latestTime})",
    "database",
    "wanted",
    "problem",
    "earliestSequence",
    "earliestTime",
    "latestSequence",
    "latestTime",
    "nearestBefore",
    "nearestAfter",
  ),
  HISTORY_NOT_KEPT: entry(
    "FAILED_PRECONDITION",
    "later",
    "no history of database {database} is kept; set SETTINGS_PERSISTENCE_STAGE to 3, for what comes from then on",
    "database",
  ),

  STAGE_FULL: entry(
    "RESOURCE_EXHAUSTED",
    "later",
    "stage {stage} is full; nothing was written, free some room and try again",
    "stage",
    "usedBytes",
    "capacityBytes",
  ),
  STAGE_UNAVAILABLE: entry("UNAVAILABLE", "same", "stage {stage} does not answer; try again", "stage"),
  DATA_CORRUPT: entry(
    "DATA_LOSS",
    "never",
    "stored data of database {database} is damaged: {sqliteMessage}; restore it from a copy",
    "database",
    "stage",
    "sequence",
    "sqliteMessage",
    "sqliteCode",
  ),
  STAGE_NOT_CONFIGURED: entry(
    "FAILED_PRECONDITION",
    "later",
    "this server has no {stage} stage; ask for one that ListStages shows",
    "stage",
  ),
  REMOTE_NOT_REACHED: entry(
    "DEADLINE_EXCEEDED",
    "restart",
    "database {database} holds the write at position {sequence}, and stage remote did not take it in time; " +
      "SyncDatabase waits for it, as does the same call with the same request_id",
    "database",
    "sequence",
    "durableSequence",
  ),
  SYNC_BACKLOG_FULL: entry(
    "UNAVAILABLE",
    "same",
    "{unsyncedBytes} bytes wait for stage remote where {limitBytes} may; nothing ran, try again as RetryInfo says",
    "unsyncedBytes",
    "limitBytes",
  ),
  DATABASE_FENCED: entry(
    "FAILED_PRECONDITION",
    "later",
    "another server writes database {database} from position {sequence} on; this one only reads what it has",
    "database",
    "sequence",
  ),

  STATEMENT_TIMEOUT: entry(
    "DEADLINE_EXCEEDED",
    "never",
    "the statement ran out of its {limitMs} ms (the {source}'s limit); make it cheaper, or allow it more time",
    "limitMs",
    "source",
    "step",
  ),
  SHUTTING_DOWN: entry("UNAVAILABLE", "same", "the server is draining before its exit; call another one, or again"),
  EXECUTOR_LOST: entry(
    "UNAVAILABLE",
    "same",
    "the process that ran the statement died; nothing of the call took effect",
    "signal",
  ),
  OUTCOME_UNKNOWN: entry(
    "UNKNOWN",
    "restart",
    "the process that ran the call died and the call may have taken effect; read back, or repeat it with the same request_id",
    "signal",
  ),
  NOT_IMPLEMENTED: entry("UNIMPLEMENTED", "never", "{method} is not served by this version of Persisto", "method"),
  INTERNAL: entry("INTERNAL", "never", "a defect of the server; the log holds its cause under {errorId}", "errorId"),
} as const satisfies Record<string, ReasonEntry>;

/** A reason: `ErrorReason` without its prefix. */
export type Reason = keyof typeof reasons;
