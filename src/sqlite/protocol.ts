/**
 * What the server and an executor say to each other: one place for both sides. Frames as in frames.ts, all numbers
 * little-endian.
 *
 * A call is answered once and in order, except that a query's chunks come under its id later. Controls are not answered.
 */

/** Words of the memory that both sides share; see DESIGN.md. */
export const WORD_BEGUN = 0;
export const WORD_REVOKED = 1;
export const WORD_CANCEL = 2;
export const WORD_RUNNING = 3;
/** Bytes of whole answers in the outbox that were not sent yet. */
export const WORD_OUTBOX_END = 4;
/** Grows when the outbox is emptied: what was read from it before and after is not one state. */
export const WORD_OUTBOX_TURN = 5;

/** Words first, then the outbox. */
export const WORDS_BYTES = 4096;
/** What an executor writes its answers to, before it sends them. */
export const OUTBOX_BYTES = 1 << 20;
/** Behind what native code may fill: room to move results by. */
export const OUTBOX_SLACK_BYTES = 4096;
export const PAGE_BYTES = WORDS_BYTES + OUTBOX_BYTES + OUTBOX_SLACK_BYTES;

/** Calls: from 1. Numbers are never stored, so they may change between versions. */
export const OP_EXECUTE = 1;
export const OP_READ = 2;
export const OP_BATCH = 3;
export const OP_SCRIPT = 4;
export const OP_QUERY = 5;
export const OP_BEGIN = 6;
export const OP_TRANSACTION_EXECUTE = 7;
export const OP_SAVEPOINT = 8;
export const OP_ROLLBACK_TO = 9;
export const OP_COMMIT = 10;
export const OP_ROLLBACK = 11;
export const OP_CREATE = 12;
export const OP_CHECKPOINT = 13;
/** Opens the database, which recovers its WAL, and tells the WAL's state. */
export const OP_INSPECT = 14;
/** Ends everything of a database and forgets it. */
export const OP_CLOSE = 15;
/** Begins a read that bounds what checkpoints copy; with a target, that of an earlier PIN begins anew. */
export const OP_PIN = 16;
/** Ends the read of a PIN and its connections. */
export const OP_UNPIN = 17;

/** Controls. */
export const CONTROL_DEFINE = 128;
export const CONTROL_CREDIT = 129;
export const CONTROL_CLOSE_QUERY = 130;
export const CONTROL_TIDY = 131;
/** Closes a database's connections that nobody uses. */
export const CONTROL_RELEASE = 132;

/** Flags of a call. */
export const CALL_COLUMNS = 1;
/** The payload starts with a request record. */
export const CALL_RECORD = 2;
/** A transaction that may write; a truncating checkpoint. */
export const CALL_WRITES = 4;
/** The answer to a commit is to tell the salt of the WAL: the server does not know it. */
export const CALL_SALT = 8;

/**
 * Header of a call or control, behind the frame's length: id, op (8 bits), flags (8), unused (16), database, scope,
 * target, deadline in ms from now, longest result in bytes, first and second argument.
 */
export const CALL_HEADER_BYTES = 36;
export const CALL_ID = 0;
export const CALL_OP = 4;
export const CALL_FLAGS = 5;
export const CALL_DATABASE = 8;
export const CALL_SCOPE = 12;
/** The id of the BEGIN, QUERY or PIN that this belongs to; a CHECKPOINT of a PIN lets its read go afterwards. */
export const CALL_TARGET = 16;
export const CALL_DEADLINE_MS = 20;
export const CALL_RESULT_BYTES_MAX = 24;
/** QUERY: rows a chunk, then bytes a chunk. CREATE: bytes a page. CREDIT: chunks. */
export const CALL_FIRST = 28;
export const CALL_SECOND = 32;

/** Kinds of answers: up to REVOKED they are the one answer to a call, in the order of calls. */
export const ANSWER_DONE = 1;
/** Payload: a FailureNote as JSON. */
export const ANSWER_FAILED = 2;
/** Not begun, because the server took it back. */
export const ANSWER_REVOKED = 3;
export const ANSWER_CHUNK = 4;
/** The last of a query: rows (64 bits), nanoseconds (64 bits). */
export const ANSWER_QUERY_END = 5;
export const ANSWER_QUERY_FAILED = 6;
/** Once, first: a Hello as JSON. */
export const ANSWER_HELLO = 7;
/** After TIDY: open connections (32 bits), resident bytes (64 bits). */
export const ANSWER_STATUS = 8;
/** Instead of HELLO: why the executor cannot start, as text. */
export const ANSWER_UNFIT = 9;

/** Flags of an answer. */
export const DONE_COMMITTED = 1;
export const DONE_REPLAYED = 2;
/** The payload starts with the 8 bytes of salt of the WAL. */
export const DONE_SALT = 4;
/** The transaction that was asked is still open. */
export const DONE_OPEN = 8;

/** Header of an answer, behind the frame's length: id, kind (8 bits), flags (8), unused (16), frames in the WAL. */
export const ANSWER_HEADER_BYTES = 12;
export const ANSWER_ID = 0;
export const ANSWER_KIND = 4;
export const ANSWER_FLAGS = 5;
export const ANSWER_WAL_FRAMES = 8;

export const SALT_BYTES = 8;

/** In front of a query's statement, 32 bits each: chunks that may be sent at first, ms of execution, ms of life. */
export const QUERY_HEAD_BYTES = 12;
export const QUERY_WINDOW = 0;
export const QUERY_EXECUTION_MS = 4;
export const QUERY_LIFE_MS = 8;

export interface Hello {
  readonly sqliteVersion: string;
}

/** What went wrong, as an executor tells it. */
export interface FailureNote {
  /** A reason of the table of failures; INTERNAL carries `detail` for the log. */
  readonly reason: string;
  readonly facts: Readonly<Record<string, string>>;
  /** SQLite was busy and nothing ran: the server tries again. */
  readonly busy?: true;
  /** Interrupted for its deadline, or because the server asked. */
  readonly interrupted?: "deadline" | "cancel";
  /** The deadline was that of a query's execution. */
  readonly ofExecution?: true;
  readonly field?: string;
  readonly detail?: string;
}

/** Longest answer that is kept with a request record. */
export const RECORDED_BODY_BYTES_MAX = 64 * 1024;

/** Frames that carry a request or answer of the greatest size, with room for headers. */
export const FRAME_BYTES_MAX = 128 * 1024 * 1024;

/** True when `id` is `from` or later; ids go around after 2^32. */
export function isFrom(id: number, from: number): boolean {
  return ((id - from) | 0) >= 0;
}

/** The id after `id`: never 0, which stands for none. */
export function nextId(id: number): number {
  const next = (id + 1) | 0;
  return next === 0 ? 1 : next;
}
