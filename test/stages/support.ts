/** What the tests of stages share: histories of real databases, as batches and as the states between them. */
import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { type Clock, systemClock } from "../../src/clock.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import type { Page } from "../../src/ltx/pages.ts";
import { ltxFileName } from "../../src/ltx/txid.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";
import { openRemoteStage, type RemoteStageOptions } from "../../src/stages/open-remote-stage.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import type { Batch, Snapshot } from "../../src/stages/stage.ts";
import { encode } from "../ltx/support.ts";

export const startMs = Date.UTC(2026, 0, 1);

/** A state of the database's file for each batch, and the batch that leads to it. Batches are a second apart. */
export interface History {
  readonly batches: readonly Batch[];
  readonly states: readonly Buffer[];
}

/** Statements for one batch each: growth, changes, a VACUUM that shrinks, growth again. */
export const eventfulSteps: readonly string[] = [
  "create table notes (id integer primary key, body blob); insert into notes (body) values (randomblob(300))",
  "insert into notes (body) select randomblob(400) from (with recursive n(i) as (select 1 union all select i + 1 from n where i < 60) select i from n)",
  "update notes set body = randomblob(500) where id % 7 = 0",
  "delete from notes where id > 5; vacuum",
  "insert into notes (body) select randomblob(700) from (with recursive n(i) as (select 1 union all select i + 1 from n where i < 90) select i from n)",
  "create index notes_by_size on notes (length(body))",
  "delete from notes where id % 2 = 0",
];

/** Runs the steps on a real database in WAL mode, and cuts what each has changed into a batch. */
export async function makeHistory(
  folder: string,
  { pageSize = 4096, steps = eventfulSteps }: { pageSize?: number; steps?: readonly string[] } = {},
): Promise<History> {
  const path = join(folder, `history-${pageSize}.db`);
  const database = new Database(path);
  database.pragma(`page_size = ${pageSize}`);
  database.pragma("journal_mode = wal");
  database.pragma("wal_autocheckpoint = 0");
  const batches: Batch[] = [];
  const states: Buffer[] = [];
  try {
    for (const step of steps) {
      database.exec(step);
      database.pragma("wal_checkpoint(truncate)");
      const state = readFileSync(path);
      batches.push(await makeBatch(folder, BigInt(batches.length + 1), pageSize, states.at(-1), state));
      states.push(state);
    }
  } finally {
    database.close();
  }
  return { batches, states };
}

/** The batch that leads from one state to the next. */
export async function makeBatch(
  folder: string,
  txid: bigint,
  pageSize: number,
  before: Buffer | undefined,
  after: Buffer,
): Promise<Batch> {
  const commit = after.length / pageSize;
  const pages = pagesOf(after, pageSize).filter(({ number, bytes }) => {
    const offset = (number - 1) * pageSize;
    const old = before?.subarray(offset, offset + pageSize);
    return old === undefined || Buffer.compare(old, bytes) !== 0;
  });
  const timestampMs = startMs + Number(txid) * 1000;
  const wal = { walOffset: 32, walBytes: 0, walSalt1: 1, walSalt2: Number(txid) };
  const bytes = await encode({ pageSize, commit, minTxid: txid, maxTxid: txid, timestampMs, ...wal }, pages);
  const path = join(folder, ltxFileName({ minTxid: txid, maxTxid: txid }));
  writeFileSync(path, bytes);
  return { txid, path, byteCount: bytes.length, pageSize, commit, timestampMs };
}

export function pagesOf(state: Buffer, pageSize: number): Page[] {
  return Array.from({ length: state.length / pageSize }, (_, index) => ({
    number: index + 1,
    bytes: state.subarray(index * pageSize, (index + 1) * pageSize),
  }));
}

/** A state as what a head gives to be stored whole. */
export function snapshotOf(state: Buffer, pageSize: number, txid: bigint): Snapshot {
  return {
    txid,
    pageSize,
    pageCount: state.length / pageSize,
    timestampMs: startMs + Number(txid) * 1000,
    pages: () => pagesOf(state, pageSize),
  };
}

/** The batch with other bytes in its file. */
export function damagedCopy(batch: Batch): Batch {
  const bytes = readFileSync(batch.path);
  const at = Math.floor(bytes.length / 2);
  bytes[at] = (bytes[at] ?? 0) ^ 0x10;
  const path = `${batch.path}.damaged`;
  writeFileSync(path, bytes);
  return { ...batch, path };
}

export function openStage(
  store: ObjectStore,
  folder: string,
  options: Partial<RemoteStageOptions> & { readonly clock?: Clock } = {},
): Promise<RemoteStage> {
  return openRemoteStage({
    store,
    layout: "bucket",
    displayName: "Remote Storage",
    fileSystem: nodeFileSystem,
    spoolDirectoryPath: join(folder, "spool"),
    clock: systemClock,
    random: randomBytes,
    ...options,
  });
}

/** A restore into a file, and the file. */
export async function restored(
  replica: {
    restore: (
      input: { path: string; flush: boolean; target?: { txid: bigint } | { beforeMs: number } },
      call: { deadlineAtMs: number },
    ) => Promise<{ txid: bigint }>;
  },
  folder: string,
  call: { deadlineAtMs: number },
  target?: { txid: bigint } | { beforeMs: number },
): Promise<{ txid: bigint; bytes: Buffer }> {
  const path = join(folder, `restored-${randomBytes(4).toString("hex")}`);
  const input = target === undefined ? { path, flush: false } : { path, flush: false, target };
  const { txid } = await replica.restore(input, call);
  return { txid, bytes: readFileSync(path) };
}
