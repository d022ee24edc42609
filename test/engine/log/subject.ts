/** A real database with its log, and what a restore of the log gives. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import Database from "better-sqlite3";
import type { ClosedBatch, LogHead } from "../../../src/engine/log/batch.ts";
import { DatabaseLog, type LogOptions } from "../../../src/engine/log/database-log.ts";
import { SealSlots } from "../../../src/engine/log/seal-slots.ts";
import { noFailPoints } from "../../../src/fail-points.ts";
import { type FileSystem, nodeFileSystem } from "../../../src/files/file-system.ts";
import { restoreDatabase } from "../../../src/ltx/compact.ts";
import { ManualClock } from "../../support/manual-clock.ts";

export interface SubjectOptions {
  readonly folder: string;
  readonly pageBytes?: number;
  readonly fileSystem?: FileSystem;
  readonly log?: Partial<LogOptions>;
  readonly batchBytesMax?: number;
  readonly isVolatile?: boolean;
}

export class Subject {
  readonly options: SubjectOptions;
  readonly path: string;
  readonly logPath: string;
  readonly clock = new ManualClock();
  readonly warnings: string[] = [];
  readonly faults: string[] = [];
  db: Database.Database;
  log: DatabaseLog;
  /** Flushes of the WAL. */
  flushes = 0;
  /** All files that were ever closed, as they were then. */
  readonly history = new Map<bigint, Buffer>();

  constructor(options: SubjectOptions) {
    this.options = options;
    this.path = join(options.folder, "db.sqlite");
    this.logPath = join(options.folder, "log");
    this.db = this.#open();
    this.log = this.newLog();
  }

  #open(): Database.Database {
    const db = new Database(this.path);
    db.pragma(`page_size=${this.options.pageBytes ?? 4096}`);
    db.pragma("journal_mode=WAL");
    db.pragma("synchronous=NORMAL");
    db.pragma("wal_autocheckpoint=0");
    return db;
  }

  newLog(change: Partial<LogOptions> = {}): DatabaseLog {
    const fileSystem = this.options.fileSystem ?? nodeFileSystem;
    const slots = new SealSlots(fileSystem, {
      sealConcurrencyMax: 2,
      batchBytesMax: this.options.batchBytesMax ?? 64 * 1024 * 1024,
    });
    const log = (_level: string, message: string): void => {
      this.warnings.push(message);
    };
    return new DatabaseLog(
      { fileSystem, clock: this.clock, log, failPoints: noFailPoints, slots },
      {
        id: "a",
        folderPath: this.logPath,
        head: this.head(),
        position: 0n,
        baseTxid: 0n,
        durableTxid: 0n,
        isCarried: true,
        onFault: (problem) => this.faults.push(problem),
        ...this.options.log,
        ...change,
      },
    );
  }

  head(path = this.path): LogHead {
    return {
      path,
      isVolatile: this.options.isVolatile ?? false,
      flush: async () => {
        this.flushes++;
      },
    };
  }

  /** Commits, and is answered. */
  write(sql: string, ...parameters: unknown[]): bigint {
    this.db.prepare(sql).run(...parameters);
    return this.log.committed(this.walFrames);
  }

  get walFrames(): number {
    const pageBytes = this.options.pageBytes ?? 4096;
    const wal = existsSync(`${this.path}-wal`) ? readFileSync(`${this.path}-wal`) : Buffer.alloc(0);
    // Only of a WAL in its first life: enough for what it is used for.
    return Math.max(0, Math.floor((wal.length - 32) / (24 + pageBytes)));
  }

  async close(): Promise<ClosedBatch | undefined> {
    const batch = await this.log.close();
    if (batch !== undefined) this.history.set(batch.txid, readFileSync(batch.path));
    return batch;
  }

  /** Everything that is committed, as one file. */
  bytes(): Buffer {
    const scratch = join(this.options.folder, "scratch");
    rmSync(scratch, { recursive: true, force: true });
    mkdirSync(scratch);
    copyFileSync(this.path, join(scratch, "db"));
    if (existsSync(`${this.path}-wal`)) copyFileSync(`${this.path}-wal`, join(scratch, "db-wal"));
    const copy = new Database(join(scratch, "db"));
    copy.pragma("wal_checkpoint(TRUNCATE)");
    copy.close();
    return readFileSync(join(scratch, "db"));
  }

  /** What the files that were closed lead to, up to one of them. */
  async restored(upTo?: bigint): Promise<Buffer> {
    const files = [...this.history]
      .filter(([txid]) => upTo === undefined || txid <= upTo)
      .sort(([a], [b]) => Number(a - b));
    return restoreBytes(files.map(([, bytes]) => bytes));
  }

  names(): string[] {
    return existsSync(this.logPath) ? readdirSync(this.logPath).sort() : [];
  }

  /** The server ends without a word: a new log, positions as a start gives them out. */
  restart(position: bigint): void {
    this.log = this.newLog({ position });
  }

  /** The same with the executor's end: SQLite recovers the WAL when it opens the file again. */
  reopen(position: bigint): void {
    const wal = readFileSync(`${this.path}-wal`);
    const file = readFileSync(this.path);
    this.db.close();
    // Closing in the ordinary way copies everything back and removes the WAL: what a killed executor leaves is put back.
    writeFileSync(this.path, file);
    writeFileSync(`${this.path}-wal`, wal);
    this.db = this.#open();
    this.restart(position);
  }

  end(): void {
    this.db.close();
    rmSync(dirname(this.path), { recursive: true, force: true });
  }
}

export async function restoreBytes(files: readonly Buffer[]): Promise<Buffer> {
  const pages: Uint8Array[] = [];
  for await (const page of restoreDatabase(files.map((file) => [file]))) pages.push(Buffer.from(page));
  return Buffer.concat(pages);
}
