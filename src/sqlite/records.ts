/**
 * Records of request ids: what was answered to a call is kept in the database itself, written in the transaction of the
 * call, so that a repeat is answered and not applied again, wherever the database has gone meanwhile.
 */
import type Database from "better-sqlite3";
import type { RequestRecord } from "./executor.ts";
import { NotedFailure } from "./failure-notes.ts";
import { RECORDED_BODY_BYTES_MAX } from "./protocol.ts";

/** The table; its name is reserved, so callers neither see nor change it. */
const SCHEMA = `CREATE TABLE IF NOT EXISTS _persisto_requests (
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  method TEXT NOT NULL,
  hash TEXT NOT NULL,
  body BLOB,
  time_ms INTEGER NOT NULL
)`;

/** Records removed with each one added: enough that the table cannot grow beyond its bounds. */
const REMOVED_EACH_TIME = 4;

interface Stored {
  readonly method: string;
  readonly hash: string;
  readonly body: Buffer | null;
}

/** Prepared statements of one connection; run them only inside its transaction and while it is trusted. */
export interface RecordStatements {
  /** The answer of an earlier call with this id, empty when it was too large to keep; undefined when there was none. */
  find(record: RequestRecord): Uint8Array | undefined;
  add(record: RequestRecord, body: Uint8Array, wallMs: number): void;
}

const nothing = new Uint8Array(0);

/** Call inside the transaction that will add the record: the table is made where it is missing. */
export function prepareRecords(
  database: Database.Database,
  bounds: { readonly requestRecordMs: number; readonly requestRecordCountMax: number },
): RecordStatements {
  const create = database.prepare(SCHEMA);
  create.run();
  const select = database.prepare<[Buffer], Stored>("SELECT method, hash, body FROM _persisto_requests WHERE id = ?");
  const insert = database.prepare(
    "INSERT INTO _persisto_requests (id, method, hash, body, time_ms) VALUES (?, ?, ?, ?, ?)",
  );
  const remove = database.prepare(
    `DELETE FROM _persisto_requests WHERE number IN (
      SELECT number FROM (SELECT number, time_ms FROM _persisto_requests ORDER BY number LIMIT ${REMOVED_EACH_TIME})
      WHERE time_ms < ? OR number <= ?)`,
  );
  return {
    find(record) {
      // Not once a connection: a transaction that made the table may have been rolled back.
      create.run();
      const stored = select.get(Buffer.from(record.id, "hex"));
      if (stored === undefined) return undefined;
      if (stored.method !== record.method || stored.hash !== record.hash)
        throw new NotedFailure({
          reason: "FIELD_INVALID",
          facts: { field: "request_id", description: "was used for another request; use a new UUID for each" },
          field: "request_id",
        });
      return stored.body ?? nothing;
    },
    add(record, body, wallMs) {
      const kept = body.length <= RECORDED_BODY_BYTES_MAX ? body : null;
      const { lastInsertRowid } = insert.run(Buffer.from(record.id, "hex"), record.method, record.hash, kept, wallMs);
      remove.run(wallMs - bounds.requestRecordMs, Number(lastInsertRowid) - bounds.requestRecordCountMax);
    },
  };
}
