import * as fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { restoreDatabase } from "../../src/ltx/compact.ts";
import { sealedFileFacts } from "../../src/ltx/seal.ts";
import { readWalPages, scanWal, type WalCommits, type WalSource } from "../../src/ltx/wal-reader.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { collect, problemOf } from "./support.ts";
import { asBigEndian, pagesOf, Sealer, WalDatabase, walBytes } from "./wal-support.ts";

const folder = temporaryFolders();
const opened: WalDatabase[] = [];

function open(pageSize = 4096): WalDatabase {
  const database = new WalDatabase(folder(), pageSize);
  opened.push(database);
  return database;
}

afterEach(() => {
  for (const database of opened.splice(0)) database.close();
});

const commits = async (
  wal: WalSource,
  ...rest: Parameters<typeof scanWal> extends [unknown, ...infer Rest] ? Rest : never
) => {
  const scan = await scanWal(wal, ...rest);
  if (scan.kind !== "commits") throw new Error(`the scan found ${scan.kind}`);
  return scan;
};

const restored = async (files: readonly Buffer[]) =>
  (await collect(restoreDatabase(files.map((file) => [file])))).bytes;

/** A table and commits of one row each; the end of the WAL and what the database holds after each. */
async function committed(database: WalDatabase, count: number) {
  database.db.exec("create table t (id integer primary key, v)");
  const ends = [(await commits(database.wal)).endOffset];
  const insert = database.db.prepare("insert into t (v) values (randomblob(?))");
  for (let turn = 0; turn < count; turn++) {
    insert.run((turn * 997) % 9000);
    ends.push((await commits(database.wal)).endOffset);
  }
  return ends;
}

describe("sealing a database that lives on", () => {
  it.each([512, 4096, 65_536])("leads back to each of its states, pages of %d bytes", async (pageSize) => {
    const database = open(pageSize);
    const sealer = new Sealer(database, pageSize);
    const { db } = database;
    const steps = [
      () =>
        db.exec(
          "create table t (id integer primary key, v); create index i on t (v); insert into t (v) values ('first')",
        ),
      () =>
        db.exec(
          "with recursive n(i) as (values (1) union all select i+1 from n where i < 3000) insert into t (v) select i || 'x' from n",
        ),
      () => db.exec("delete from t where id > 10; vacuum"),
      () =>
        db.exec(
          "with recursive n(i) as (values (1) union all select i+1 from n where i < 500) insert into t (v) select i || 'y' from n",
        ),
      () => {
        db.pragma("wal_checkpoint(RESTART)");
        db.exec("update t set v = v || 'z' where id % 7 = 0");
      },
      () => {
        db.pragma("wal_checkpoint(TRUNCATE)");
        db.exec("insert into t (v) values ('after')");
      },
      () => db.exec("delete from t where id % 2 = 0; vacuum; insert into t (v) values (zeroblob(100000))"),
    ];
    for (const [index, step] of steps.entries()) {
      step();
      await sealer.seal();
      expect(sealer.kinds[index]).toBe("commits");
      expect((await restored(sealer.files)).equals(database.state())).toBe(true);
    }
    expect(await sealer.seal()).toEqual({ kind: "nothing" });
  });

  it("finds the same in small portions as at once", async () => {
    const database = open(1024);
    const atOnce = new Sealer(database, 1024);
    const inPortions = new Sealer(database, 1024);
    for (let turn = 0; turn < 5; turn++) {
      if (turn === 0) await committed(database, 20);
      else database.db.exec("update t set v = randomblob(3000) where id % 3 = 1");
      await atOnce.seal();
      for (let scan = await inPortions.seal(5); scan.kind !== "nothing"; scan = await inPortions.seal(5)) {
        if (scan.kind === "lost") throw new Error(scan.reason);
      }
    }
    expect(inPortions.files.length).toBeGreaterThan(atOnce.files.length);
    expect((await restored(inPortions.files)).equals(await restored(atOnce.files))).toBe(true);
    expect((await restored(atOnce.files)).equals(database.state())).toBe(true);
  });

  it("sees no frame of a transaction that runs, is rolled back, or spilled into the WAL", async () => {
    const database = open(1024);
    const { db } = database;
    db.pragma("cache_size=5");
    db.exec("create table t (id integer primary key, v)");
    const sealer = new Sealer(database, 1024);
    await sealer.seal();
    const before = database.bytesOfWal().length;
    db.exec(
      "begin; with recursive n(i) as (values (1) union all select i+1 from n where i < 300) insert into t (v) select randomblob(500) from n",
    );
    expect(database.bytesOfWal().length).toBeGreaterThan(before + 100_000);
    expect(await sealer.seal()).toEqual({ kind: "nothing" });
    db.exec("rollback");
    expect(await sealer.seal()).toEqual({ kind: "nothing" });
    db.exec("insert into t (v) values ('kept')");
    await sealer.seal();
    expect((await restored(sealer.files)).equals(database.state())).toBe(true);
  });

  it("reads while commits go on, and stops where one is not whole yet", async () => {
    const database = open();
    await committed(database, 3);
    const insert = database.db.prepare("insert into t (v) values (randomblob(20000))");
    const source: WalSource = {
      read: (offset, target) => {
        insert.run();
        return database.wal.read(offset, target);
      },
    };
    const scan = await commits(source, undefined, { framesPerRead: 4, frameCountMax: 200 });
    expect(scan.isComplete).toBe(false);
    let turns = 0;
    const turn = async () => void turns++;
    const again = await commits(database.wal, undefined, { framesPerRead: 10, frameCountMax: 200, turn });
    expect(again.endOffset).toBe(scan.endOffset);
    expect(turns).toBeGreaterThan(15);
    const same = await commits(walBytes(database.bytesOfWal().subarray(0, scan.endOffset)));
    expect(same).toEqual({ ...scan, isComplete: true });
    const pages = await pagesOf(database.wal, scan);
    const { commit } = scan;
    expect(pages.every(({ number }) => number <= commit)).toBe(true);
  });
});

describe("a WAL that is cut or damaged", () => {
  it("counts up to its last whole commit, at whatever byte it ends", async () => {
    const database = open(512);
    const ends = await committed(database, 12);
    const wal = database.bytesOfWal();
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: wal.length }), async (length) => {
        const scan = await scanWal(walBytes(wal.subarray(0, length)));
        const expected = ends.findLast((end) => end <= length);
        expect(scan.kind === "commits" ? scan.endOffset : undefined).toBe(expected);
      }),
      { numRuns: 200 },
    );
  });

  it("counts up to the last commit before a changed byte, as SQLite does", async () => {
    const database = open(512);
    const ends = await committed(database, 12);
    const wal = database.bytesOfWal();
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 32, max: wal.length - 1 }),
        fc.integer({ min: 1, max: 255 }),
        async (at, change) => {
          const bad = Buffer.from(wal);
          bad.writeUInt8((bad[at] as number) ^ change, at);
          const scan = await scanWal(walBytes(bad));
          const expected = ends.findLast((end) => end <= at);
          expect(scan.kind === "commits" ? scan.endOffset : undefined).toBe(expected);
        },
      ),
      { numRuns: 200 },
    );
    const bad = Buffer.from(wal);
    const at = (ends[6] as number) + 30;
    bad.writeUInt8((bad[at] as number) ^ 1, at);
    expect(database.state(bad).equals(database.state(wal.subarray(0, ends[6])))).toBe(true);
  });

  it("counts not at all when its header is cut, being written, or zeros", async () => {
    const database = open();
    await committed(database, 1);
    const wal = database.bytesOfWal();
    const torn = Buffer.from(wal);
    torn.writeUInt8((torn[17] as number) ^ 1, 17);
    for (const bytes of [Buffer.alloc(0), wal.subarray(0, 31), Buffer.alloc(64), torn, wal.subarray(0, 32)]) {
      expect(await scanWal(walBytes(bytes))).toEqual({ kind: "nothing" });
    }
  });

  it("is refused when it is none", async () => {
    expect(await problemOf(scanWal(walBytes(Buffer.from("SQLite format 3, and this is no WAL"))))).toBe("wal");
  });
});

describe("the other order of bytes", () => {
  it.each([512, 65_536])("is read alike, pages of %d bytes", async (pageSize) => {
    const database = open(pageSize);
    await committed(database, 8);
    const wal = database.bytesOfWal();
    const swapped = asBigEndian(wal, pageSize);
    // SQLite itself reads it: the test's own checksum is right.
    expect(database.state(swapped).equals(database.state(wal))).toBe(true);
    const [found, expected] = [await commits(walBytes(swapped)), await commits(walBytes(wal))];
    expect(found).toEqual(expected);
    const middle = { ...expected, endOffset: 32 + (24 + pageSize) * 2 };
    const rest = await commits(walBytes(swapped), middle);
    expect(rest.endOffset).toBe(expected.endOffset);
    swapped.writeUInt8((swapped[expected.endOffset - 1] as number) ^ 1, expected.endOffset - 1);
    expect((await commits(walBytes(swapped))).endOffset).toBeLessThan(expected.endOffset);
  });
});

describe("a WAL that starts over", () => {
  it("is read from its start when everything was sealed", async () => {
    const database = open();
    await committed(database, 10);
    const sealer = new Sealer(database, 4096);
    await sealer.seal();
    database.db.pragma("wal_checkpoint(PASSIVE)");
    expect(await sealer.seal()).toEqual({ kind: "nothing" });
    database.db.exec("insert into t (v) values ('new life')");
    const scan = await sealer.seal();
    expect(scan).toMatchObject({ kind: "commits", isRestarted: true, startOffset: 32 });
    expect((await restored(sealer.files)).equals(database.state())).toBe(true);
    for (let turn = 0; turn < 30; turn++) database.db.exec("insert into t (v) values (randomblob(5000))");
    expect(await sealer.seal()).toMatchObject({ kind: "commits", isRestarted: false });
    expect((await restored(sealer.files)).equals(database.state())).toBe(true);
  });

  it("tells when commits that were not sealed are gone", async () => {
    const database = open();
    await committed(database, 10);
    const sealer = new Sealer(database, 4096);
    await sealer.seal();
    for (let turn = 0; turn < 10; turn++) database.db.exec("insert into t (v) values (randomblob(5000))");
    database.db.pragma("wal_checkpoint(PASSIVE)");
    database.db.exec("insert into t (v) values ('new life')");
    expect(await sealer.seal()).toEqual({ kind: "lost", reason: "commits were overwritten before they were sealed" });
  });

  it("tells when it did so more than once", async () => {
    const database = open();
    await committed(database, 10);
    const sealer = new Sealer(database, 4096);
    await sealer.seal();
    database.db.pragma("wal_checkpoint(PASSIVE)");
    for (let turn = 0; turn < 4; turn++) database.db.exec("insert into t (v) values (randomblob(5000))");
    database.db.pragma("wal_checkpoint(PASSIVE)");
    database.db.exec("insert into t (v) values ('third life')");
    expect(await sealer.seal()).toEqual({ kind: "lost", reason: "the WAL started over more than once" });
  });

  it("tells when the position is not of this WAL", async () => {
    const database = open();
    await committed(database, 3);
    const scan = await commits(database.wal);
    const odd = { ...scan, endOffset: scan.endOffset - 1 };
    expect(await scanWal(database.wal, odd)).toMatchObject({ kind: "lost" });
    const far = { ...scan, endOffset: scan.endOffset + 50 * (24 + 4096) };
    expect(await scanWal(database.wal, far)).toEqual({ kind: "lost", reason: "the last sealed frame is gone" });
  });

  it("is noticed while its pages are read", async () => {
    const database = open();
    await committed(database, 10);
    const scan = await commits(database.wal);
    database.db.pragma("wal_checkpoint(PASSIVE)");
    database.db.exec("insert into t (v) values ('new life')");
    expect(await problemOf(collect(readWalPages(database.wal, scan) as never))).toBe("wal");
    const few: WalCommits = { ...scan, frames: new Map([...scan.frames].slice(-1)) };
    expect(await problemOf(pagesOf(database.wal, few))).toBe("wal");
  });
});

describe("a seal", () => {
  it("needs a snapshot when the page size changes or a grown page is missing", async () => {
    const database = open();
    await committed(database, 10);
    const scan = await commits(database.wal);
    const last = { txid: 4n, commit: 1, pageSize: 4096 };
    expect(sealedFileFacts(scan, last, 7)).toMatchObject({
      minTxid: 5n,
      maxTxid: 5n,
      commit: scan.commit,
      timestampMs: 7,
      walOffset: 32,
      walBytes: scan.endOffset - 32,
      walSalt1: scan.walSalt1,
    });
    expect(sealedFileFacts(scan, { ...last, pageSize: 512 }, 7)).toBeUndefined();
    const frames = new Map([...scan.frames].filter(([number]) => number !== scan.commit));
    expect(sealedFileFacts({ ...scan, frames }, last, 7)).toBeUndefined();
    const grown = { ...last, commit: scan.commit };
    expect(sealedFileFacts({ ...scan, frames, commitMin: scan.commit }, grown, 7)).toBeDefined();
    expect(sealedFileFacts({ ...scan, frames, commitMin: 1 }, grown, 7)).toBeUndefined();
  });
});
