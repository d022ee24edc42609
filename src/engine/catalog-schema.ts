/** Schema of the catalog, as steps forward. A released step is never changed; new ones are appended. */

/** Step n takes a catalog from version n to n + 1. */
export const catalogSteps: readonly string[] = [
  `
  CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE databases (
    id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    lineage TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    sequence_reserved INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    create_time_ms INTEGER NOT NULL,
    last_access_time_ms INTEGER NOT NULL,
    labels TEXT NOT NULL,
    etag_version INTEGER NOT NULL,
    foreign_keys INTEGER NOT NULL,
    create_record TEXT
  ) STRICT;

  CREATE INDEX databases_by_create_time ON databases (create_time_ms, id);
  CREATE INDEX databases_by_last_access_time ON databases (last_access_time_ms, id);
  CREATE INDEX databases_by_size ON databases (size_bytes, id);
  `,
  `
  CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    database TEXT NOT NULL,
    kind INTEGER NOT NULL,
    bytes_done INTEGER NOT NULL,
    bytes_total INTEGER NOT NULL,
    create_time_ms INTEGER NOT NULL,
    end_time_ms INTEGER,
    error TEXT,
    request TEXT,
    input TEXT
  ) STRICT;

  CREATE INDEX operations_by_database ON operations (database, id);
  `,
  `
  ALTER TABLE databases ADD COLUMN head INTEGER NOT NULL DEFAULT 2;
  ALTER TABLE databases ADD COLUMN base_txid INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN durable_sequence INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN remote_prefix TEXT NOT NULL DEFAULT '';
  ALTER TABLE databases ADD COLUMN manifest_version INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN fenced INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN upkeep_at_ms INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN successor TEXT;
  ALTER TABLE databases ADD COLUMN pin_stage INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN pin_expire_ms INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE databases ADD COLUMN moved_at_ms INTEGER NOT NULL DEFAULT 0;

  -- What has a file, by where it is and how long it was not used: the policy looks at the oldest only.
  CREATE INDEX databases_by_head ON databases (head, last_access_time_ms, id) WHERE head <> 0;
  CREATE INDEX databases_by_upkeep ON databases (upkeep_at_ms) WHERE upkeep_at_ms <> 0;
  CREATE INDEX databases_unsynced ON databases (id) WHERE sequence > durable_sequence;
  `,
  `
  -- Positions are numbers of batches, which the log knows.
  ALTER TABLE databases DROP COLUMN sequence_reserved;
  `,
];
