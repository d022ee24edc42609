/** Power cuts under SQLite itself: what was promised through the redo log is there afterwards, and databases are whole. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { nodeRedoFileSystem } from "../../src/ltx/redo-files.ts";
import { RedoLog, type RedoWal } from "../../src/ltx/redo-log.ts";
import type { ReplayTarget } from "../../src/ltx/redo-replay.ts";
import { scanWal, type WalCommits } from "../../src/ltx/wal-reader.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { walBytes } from "./wal-support.ts";

const folder = temporaryFolders();
const blockBytes = 4096;

function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** A database whose WAL is known as it is and as it is on the disk. */
class Victim {
  readonly db: Database.Database;
  readonly path: string;
  readonly wal: RedoWal;
  flushed: Buffer = Buffer.alloc(0);
  rows = 0;
  promised = 0;

  constructor(path: string, key: string) {
    this.path = path;
    this.db = new Database(path);
    this.db.pragma("journal_mode=WAL");
    this.db.pragma("synchronous=NORMAL");
    this.db.pragma("wal_autocheckpoint=0");
    this.db.exec("create table t (id integer primary key, v)");
    // The table itself is taken as flushed.
    this.flushed = this.now;
    this.wal = {
      key,
      frameBytes: 24 + 4096,
      read: (offset, target) => this.now.copy(target, 0, Math.min(offset, this.now.length)),
      flush: async () => {
        this.flushed = this.now;
      },
    };
  }

  get now(): Buffer {
    return readFileSync(`${this.path}-wal`);
  }

  async life(): Promise<WalCommits> {
    const scan = await scanWal(walBytes(this.now));
    if (scan.kind !== "commits") throw new Error("nothing is committed");
    return scan;
  }

  async write(random: () => number): Promise<WalCommits> {
    const before = this.now.subarray(0, 32);
    const id = ++this.rows;
    this.db.transaction(() => {
      this.db.prepare("insert into t values (?, ?)").run(id, "x".repeat(random() * 3000));
      this.db.prepare("update t set v = v || 'y' where id = ?").run(id - 3);
    })();
    const { now } = this;
    if (!before.equals(now.subarray(0, 32))) {
      // SQLite flushes the new header before the first frame.
      this.flushed = Buffer.concat([now.subarray(0, 32), this.flushed.subarray(32)]);
    }
    return this.life();
  }

  /** Copies everything back, which SQLite does with both files flushed. */
  async checkpoint(): Promise<WalCommits> {
    const life = await this.life();
    this.db.pragma("wal_checkpoint(PASSIVE)");
    this.flushed = this.now;
    this.promised = this.rows;
    return life;
  }

  /** The files as they are after the power is back. */
  cut(to: string, random: () => number): void {
    const { now, flushed } = this;
    const length = random() < 0.5 ? now.length : Math.max(flushed.length, Math.floor(now.length * random()));
    const after = Buffer.alloc(length);
    for (let at = 0; at < length; at += blockBytes) {
      after.set((random() < 0.5 ? now : flushed).subarray(at, Math.min(at + blockBytes, length)), at);
    }
    copyFileSync(this.path, to);
    writeFileSync(`${to}-wal`, after);
    this.db.close();
  }
}

async function openTarget(path: string): Promise<ReplayTarget> {
  const file = await open(path, existsSync(path) ? "r+" : "w+");
  return {
    read: async (offset, target) => (await file.read(target, 0, target.length, offset)).bytesRead,
    write: async (offset, bytes) => void (await file.write(bytes, 0, bytes.length, offset)),
    flush: () => file.sync(),
    close: () => file.close(),
  };
}

/** What is wrong after a random history and a cut. */
async function round(seed: number, replay: boolean): Promise<string[]> {
  const random = randomOf(seed);
  const base = folder();
  mkdirSync(join(base, "cut"));
  const victims = Array.from({ length: 5 }, (_, index) => new Victim(join(base, `d${index}`), `d${index}`));
  const pathAfter = (key: string) => join(base, "cut", key);
  const options = { fileSystem: nodeRedoFileSystem, folder: base, fileBytes: 256 * 1024 };
  const log = await RedoLog.open({ ...options, openWal: async () => undefined });
  const forgotten: Promise<void>[] = [];
  let unflushed: { victim: Victim; end: WalCommits; rows: number }[] = [];
  /** All that was written since the last time goes to the log together. */
  const settle = async () => {
    const batch = unflushed;
    unflushed = [];
    await Promise.all(batch.map(({ victim, end }) => log.commit(victim.wal, end)));
    await Promise.all(forgotten.splice(0));
    for (const { victim, rows } of batch) victim.promised = Math.max(victim.promised, rows);
  };
  for (let step = 0; step < 60 + random() * 120; step++) {
    const victim = victims[Math.floor(random() * victims.length)] as Victim;
    if (random() < 0.05 && victim.rows > 0) {
      await settle();
      const life = await victim.checkpoint();
      forgotten.push(log.forget(victim.wal.key, life));
      continue;
    }
    const end = await victim.write(random);
    // The others are never waited for.
    if (random() < 0.6) unflushed.push({ victim, end, rows: victim.rows });
    if (random() < 0.3) await settle();
  }
  await log.close();
  for (const victim of victims) victim.cut(pathAfter(victim.wal.key), random);
  if (replay) await (await RedoLog.open({ ...options, openWal: (key) => openTarget(`${pathAfter(key)}-wal`) })).close();
  return victims.flatMap(({ wal: { key }, promised }) => {
    const db = new Database(pathAfter(key));
    try {
      const { last, count } = db.prepare("select coalesce(max(id), 0) last, count(*) count from t").get() as Record<
        string,
        number
      >;
      const integrity = db.pragma("integrity_check", { simple: true });
      if (integrity !== "ok") return [`${key}: ${integrity}`];
      return (last as number) < promised || last !== count
        ? [`${key}: ${count} rows to ${last}, promised ${promised}`]
        : [];
    } catch (error) {
      return [`${key}: ${(error as Error).message}`];
    } finally {
      db.close();
    }
  });
}

describe("SQLite and the redo log", () => {
  it("lose nothing that was promised in a power cut", { timeout: 60_000 }, async () => {
    for (let seed = 1; seed <= 15; seed++) expect([seed, await round(seed, true)]).toEqual([seed, []]);
  });

  it("would lose it without the replay", { timeout: 60_000 }, async () => {
    let lost = 0;
    for (let seed = 1; seed <= 4; seed++) lost += (await round(seed, false)).length;
    expect(lost).toBeGreaterThan(3);
  });
});
