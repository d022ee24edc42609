/** Calls of the server's own: making a database, checkpoints, looking at a WAL. */
import type Database from "better-sqlite3";
import type { Connection } from "./connections.ts";
import type { Execution } from "./execution.ts";
import { busyNote, NotedFailure, noteOfCode } from "./failure-notes.ts";
import { ANSWER_DONE, CALL_WRITES } from "./protocol.ts";
import { primaryCode, SQLITE_BUSY } from "./sqlite-codes.ts";
import { walSalt } from "./wal-salt.ts";

/** Modes of sqlite3_wal_checkpoint_v2. */
const CHECKPOINT_LOOK = -1;
export const CHECKPOINT_PASSIVE = 0;
const CHECKPOINT_TRUNCATE = 3;

/** Runs a checkpoint; the two counts of the answer, zero where SQLite was too busy to say. */
export function runCheckpoint(execution: Execution, connection: Connection, mode: number): Buffer {
  const [code, frames, done] = execution.native.checkpoint(connection.native, mode);
  if (code !== 0 && primaryCode(code) !== SQLITE_BUSY)
    throw new NotedFailure(noteOfCode(code, "a checkpoint failed", undefined, execution.failureContext()));
  const counts = Buffer.alloc(8);
  counts.writeUInt32LE(Math.max(0, frames), 0);
  counts.writeUInt32LE(Math.max(0, done), 4);
  return counts;
}

export class Upkeep {
  readonly #execution: Execution;
  readonly #Database: typeof Database;

  constructor(execution: Execution, DatabaseClass: typeof Database) {
    this.#execution = execution;
    this.#Database = DatabaseClass;
  }

  create(): void {
    const { answers, call } = this.#execution;
    const created = new this.#Database(this.#execution.database().file.path, { timeout: 0 });
    try {
      created.exec(`PRAGMA synchronous=FULL; PRAGMA page_size=${call.first}; PRAGMA journal_mode=WAL`);
    } finally {
      created.close();
    }
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  checkpoint(): void {
    const { answers, call, connections } = this.#execution;
    const database = this.#execution.database();
    // Without a connection here this one is for the checkpoint alone: this executor is not the database's home.
    const connection = database.writer ?? connections.openPlain(database);
    try {
      const mode = call.flags & CALL_WRITES ? CHECKPOINT_TRUNCATE : CHECKPOINT_PASSIVE;
      answers.append(runCheckpoint(this.#execution, connection, mode));
    } finally {
      if (connection !== database.writer) connections.closePlain(connection);
    }
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  inspect(): void {
    const { answers, call, connections, native, nowMs } = this.#execution;
    const database = this.#execution.database();
    const connection = connections.writer(database, nowMs);
    this.#execution.touch(connection);
    const [code, frames] = native.checkpoint(connection.native, CHECKPOINT_LOOK);
    if (code !== 0) throw new NotedFailure(busyNote(database.file.id, "its log is being recovered"));
    answers.finish(call.id, ANSWER_DONE, 0, Math.max(0, frames), walSalt(database.file.path));
  }
}
