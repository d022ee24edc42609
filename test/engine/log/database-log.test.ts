/** The log of a database on real SQLite files: whatever is sealed leads to the same bytes. */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { inspectLog } from "../../../src/engine/log/log-folder.ts";
import { type FileSystem, nodeFileSystem } from "../../../src/files/file-system.ts";
import { verifyLtx } from "../../../src/ltx/decoder.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { failureOf, until } from "../support.ts";
import { restoreBytes, Subject, type SubjectOptions } from "./subject.ts";

const newFolder = temporaryFolders();

/** Numbers from 0 to below 1, always the same for a seed. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}
const subject = (options: Omit<SubjectOptions, "folder"> = {}) => new Subject({ folder: newFolder(), ...options });

async function ready(options: Omit<SubjectOptions, "folder"> = {}): Promise<Subject> {
  const made = subject(options);
  await made.log.load();
  return made;
}

describe("batches", () => {
  it("begin with the whole database, also what its WAL does not hold", async () => {
    const s = subject();
    s.db.exec("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(40000))");
    s.db.pragma("wal_checkpoint(TRUNCATE)");
    s.db.exec("INSERT INTO t VALUES (1)");
    await s.log.load();
    s.log.committed(s.walFrames);
    const batch = await s.close();
    expect(batch).toMatchObject({ txid: 1n, pageSize: 4096 });
    expect(await s.restored()).toEqual(s.bytes());
    expect(s.flushes).toBe(1);
    s.end();
  });

  it("of a database that was only made hold it, and then there is nothing more to close", async () => {
    const s = await ready();
    expect(s.log).toMatchObject({ openTxid: 1n, closedTxid: 0n, position: 0n, hasOpen: true });
    expect(await s.close()).toMatchObject({ txid: 1n });
    expect(await s.restored()).toEqual(s.bytes());
    expect(s.log).toMatchObject({ openTxid: 2n, closedTxid: 1n, position: 1n, hasOpen: false });
    expect(await s.close()).toBeUndefined();
    s.end();
  });

  it.each([512, 4096, 65_536])("follow growth, deletion and VACUUM, with pages of %i bytes", async (pageBytes) => {
    const s = await ready({ pageBytes });
    const steps = [
      "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
      "INSERT INTO t (v) SELECT randomblob(3000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 80) SELECT i FROM n)",
      "DELETE FROM t WHERE id % 3 > 0",
      "VACUUM",
      "INSERT INTO t (v) SELECT randomblob(2000) FROM t",
      "DELETE FROM t",
      "VACUUM",
    ];
    for (const [index, sql] of steps.entries()) {
      expect(s.write(sql)).toBe(BigInt(index + 1));
      await s.close();
      expect(await s.restored()).toEqual(s.bytes());
    }
    expect(s.warnings).toEqual([]);
    s.end();
  });

  it("stay open over seals, and become one file when they are closed", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (id INTEGER PRIMARY KEY, v)");
    await s.close();
    const before = s.history.get(1n) as Buffer;
    for (const sql of [
      "INSERT INTO t (v) VALUES (zeroblob(20000))",
      "UPDATE t SET v = randomblob(30000)",
      "DELETE FROM t",
      "VACUUM",
      "INSERT INTO t (v) VALUES (randomblob(9000))",
    ]) {
      expect(s.write(sql)).toBe(2n);
      expect(s.log.isDirty).toBe(true);
      await s.log.seal();
      expect(s.log).toMatchObject({ isDirty: false, openTxid: 2n, closedTxid: 1n, hasOpen: true });
    }
    expect(s.names()).toEqual([
      "0000000000000001-0000000000000001.ltx",
      ...Array.from({ length: 5 }, (_, index) => `0000000000000002.0000000${index}.part`),
    ]);
    expect(await s.close()).toMatchObject({ txid: 2n });
    expect(s.names()).toEqual(["0000000000000001-0000000000000001.ltx", "0000000000000002-0000000000000002.ltx"]);
    expect(s.history.get(1n)).toEqual(before);
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("have few parts, however often they are sealed", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    let partsMax = 0;
    for (let round = 0; round < 40; round++) {
      s.write("INSERT INTO t VALUES (randomblob(?))", round * 50);
      await s.log.seal();
      partsMax = Math.max(partsMax, s.names().length);
    }
    expect(partsMax).toBeLessThan(24);
    await s.close();
    expect(s.names()).toHaveLength(2);
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("that were open when the server ended are closed by the next start, also in the middle of closing", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    for (const size of [9000, 50_000]) {
      s.write("INSERT INTO t VALUES (zeroblob(?))", size);
      await s.log.seal();
    }
    s.write("DELETE FROM t");
    s.write("VACUUM");
    await s.log.seal();
    const parts = s.names().filter((name) => name.endsWith(".part"));
    expect(parts).toHaveLength(3);
    const kept = parts.map((name) => [name, readFileSync(join(s.logPath, name))] as const);
    expect(await inspectLog(nodeFileSystem, s.logPath, s.path)).toEqual({ txid: 2n, isSealed: true });
    s.restart(3n);
    await s.log.load();
    expect(s.log).toMatchObject({ closedTxid: 2n, position: 3n, isDirty: false });
    const second = s.log.pending()[1];
    s.history.set(2n, readFileSync(second?.path ?? ""));
    expect(await s.restored()).toEqual(s.bytes());
    // The file had its name, and not all parts were gone.
    for (const [name, bytes] of kept.slice(1)) writeFileSync(join(s.logPath, name), bytes);
    s.restart(3n);
    await s.log.load();
    expect(s.names()).toEqual(["0000000000000001-0000000000000001.ltx", "0000000000000002-0000000000000002.ltx"]);
    expect(readFileSync(second?.path ?? "")).toEqual(s.history.get(2n));
    s.write("INSERT INTO t VALUES (1)");
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("go on over a WAL that has started over", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    for (let round = 0; round < 4; round++) {
      s.write("INSERT INTO t VALUES (zeroblob(9000))");
      await s.log.seal();
      s.db.pragma("wal_checkpoint(PASSIVE)");
    }
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    const { walOffset } = await verifyLtx([s.history.get(2n) as Buffer]);
    expect(walOffset).toBe(32);
    expect(s.warnings).toEqual([]);
    s.end();
  });

  it("are closed by a seal when they are large", async () => {
    const s = await ready({ batchBytesMax: 1024 * 1024 });
    s.write("CREATE TABLE t (x)");
    for (let round = 0; round < 6; round++) {
      s.write("INSERT INTO t VALUES (randomblob(400000))");
      await s.log.seal();
    }
    await until(() => s.log.closedTxid > 0n);
    for (const { path, txid } of s.log.files()) s.history.set(txid, readFileSync(path));
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("share seals, and take one at a time", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    const first = s.log.seal();
    expect(s.log.seal()).toBe(first);
    await first;
    expect(await Promise.all([s.log.close(), s.log.close()])).toMatchObject([{ txid: 1n }, undefined]);
    s.end();
  });
});

describe("positions", () => {
  it("that were given out while a batch was closed become durable in the next one, without pages if need be", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    s.write("INSERT INTO t VALUES (1)");
    // Committed before the scan, answered after it.
    s.db.exec("INSERT INTO t VALUES (2)");
    const closing = s.close();
    await new Promise(setImmediate);
    expect(s.log.openTxid).toBe(3n);
    expect(s.log.committed(undefined)).toBe(3n);
    expect(await closing).toMatchObject({ txid: 2n });
    expect(await s.restored()).toEqual(s.bytes());
    expect(s.log).toMatchObject({ hasOpen: true, closedTxid: 2n, position: 3n });
    expect(await s.close()).toMatchObject({ txid: 3n });
    expect((await verifyLtx([s.history.get(3n) as Buffer])).pageCount).toBe(0);
    expect(await s.restored()).toEqual(s.bytes());
    expect(s.log.hasOpen).toBe(false);
    expect(await s.close()).toBeUndefined();
    // A batch without pages says where the WAL was sealed, too.
    s.write("INSERT INTO t VALUES (3)");
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("go on after an unclean end, and everything that may have been given out is owed", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    expect(await inspectLog(nodeFileSystem, s.logPath, s.path)).toEqual({ txid: 1n, isSealed: true });
    s.write("INSERT INTO t VALUES (1)");
    expect(await inspectLog(nodeFileSystem, s.logPath, s.path)).toEqual({ txid: 1n, isSealed: false });
    s.reopen(3n);
    await s.log.load();
    expect(s.log).toMatchObject({ closedTxid: 1n, openTxid: 2n, position: 3n, isDirty: true });
    expect(s.log.committed(undefined)).toBe(3n);
    expect(await s.close()).toMatchObject({ txid: 2n });
    expect(await s.close()).toMatchObject({ txid: 3n });
    expect(await s.close()).toBeUndefined();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("of a file that was open when the server ended are closed with it", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.log.seal();
    s.restart(2n);
    await s.log.load();
    expect(s.names()).toEqual(["0000000000000001-0000000000000001.ltx"]);
    expect(s.log).toMatchObject({ closedTxid: 1n, position: 2n, isDirty: false });
    expect(s.log.pending()).toMatchObject([{ txid: 1n }]);
    s.history.set(1n, readFileSync(join(s.logPath, "0000000000000001-0000000000000001.ltx")));
    s.write("INSERT INTO t VALUES (1)");
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("begin at the batch that a head came with, and the first file follows on that", async () => {
    const first = await ready();
    first.write("CREATE TABLE t (x)");
    first.write("INSERT INTO t VALUES (zeroblob(9000))");
    await first.close();
    const base = await restoreBytes([...first.history.values()]);
    const folder = newFolder();
    writeFileSync(join(folder, "db.sqlite"), base);
    const s = new Subject({ folder, log: { baseTxid: 7n } });
    await s.log.load();
    expect(s.log).toMatchObject({ closedTxid: 7n, position: 7n, hasOpen: false });
    s.write("INSERT INTO t VALUES (zeroblob(20000))");
    expect(await s.close()).toMatchObject({ txid: 8n });
    const { pageCount, commit } = await verifyLtx([s.history.get(8n) as Buffer]);
    expect(pageCount).toBeLessThan(commit);
    s.end();
    first.end();
  });
});

describe("a WAL that lost frames", () => {
  it("is found out, and the next file holds everything", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    s.write("INSERT INTO t VALUES (zeroblob(40000))");
    await s.close();
    s.write("INSERT INTO t VALUES (1)");
    s.db.pragma("wal_checkpoint(PASSIVE)");
    s.write("INSERT INTO t VALUES (2)");
    await s.close();
    expect(s.warnings).toHaveLength(1);
    const { pageCount, commit } = await verifyLtx([s.history.get(2n) as Buffer]);
    expect(pageCount).toBe(commit);
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("on purpose is marked before, also over an end of the server", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    s.write("INSERT INTO t VALUES (zeroblob(40000))");
    await s.log.skip();
    expect(s.log.skip()).toBeUndefined();
    s.db.pragma("wal_checkpoint(TRUNCATE)");
    s.db.exec("INSERT INTO t VALUES (1)");
    s.reopen(3n);
    await s.log.load();
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    expect(s.names()).not.toContain("gap");
    s.write("INSERT INTO t VALUES (2)");
    await s.close();
    expect((await verifyLtx([s.history.get(3n) as Buffer])).pageCount).toBeLessThan(5);
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("needs no mark while there is no file", async () => {
    const s = await ready({ log: { isCarried: false } });
    expect(s.log.skip()).toBeUndefined();
    expect(s.log.mustSeal).toBe(false);
    expect(s.names()).toEqual([]);
    s.end();
  });
});

describe("snapshots", () => {
  it("are the state at the end of a closed batch while writes go on, and keep the file as it is", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    s.write(
      "INSERT INTO t SELECT zeroblob(4000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120) SELECT i FROM n)",
    );
    s.db.pragma("wal_checkpoint(PASSIVE)");
    s.write("UPDATE t SET x = randomblob(4000) WHERE rowid % 2 = 0");
    const expected = s.bytes();
    const snapshot = await s.log.snapshot();
    expect(snapshot).toMatchObject({ txid: 1n, pageSize: 4096, pageCount: expected.length / 4096 });
    const pages: Uint8Array[] = [];
    for await (const { number, bytes } of snapshot.pages()) {
      pages.push(Buffer.from(bytes));
      if (number % 64 === 0) s.write("UPDATE t SET x = randomblob(100) WHERE rowid = ?", number);
    }
    expect(Buffer.concat(pages)).toEqual(expected);
    expect(s.log.copy(async () => undefined)).toBeUndefined();
    snapshot.release();
    snapshot.release();
    expect(s.log.copy(async () => undefined)).toBeInstanceOf(Promise);
    s.end();
  });

  it("are right although the WAL starts over under them", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    s.write(
      "INSERT INTO t SELECT randomblob(4000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120) SELECT i FROM n)",
    );
    await s.close();
    // All is copied back: the next write starts the WAL over.
    s.db.pragma("wal_checkpoint(PASSIVE)");
    const expected = s.bytes();
    const snapshot = await s.log.snapshot();
    s.write("UPDATE t SET x = randomblob(4000)");
    const pages: Uint8Array[] = [];
    for await (const { bytes } of snapshot.pages()) pages.push(Buffer.from(bytes));
    expect(Buffer.concat(pages)).toEqual(expected);
    snapshot.release();
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("wait for what is being copied", async () => {
    const s = await ready();
    const copying = Promise.withResolvers<void>();
    void s.log.copy(() => copying.promise);
    let taken = false;
    const snapshot = s.log.snapshot().then((found) => {
      taken = true;
      return found;
    });
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
    expect(taken).toBe(false);
    copying.resolve();
    (await snapshot).release();
    s.end();
  });
});

describe("files", () => {
  const closeThree = async (s: Subject) => {
    s.write("CREATE TABLE t (x)");
    await s.close();
    for (const value of [1, 2, 3]) {
      s.write("INSERT INTO t VALUES (?)", value);
      await s.close();
    }
  };
  const txids = (s: Subject) => s.log.files().map(({ txid }) => txid);

  it("go when they are released, the newest never", async () => {
    const s = await ready();
    await closeThree(s);
    expect(s.log.pending().map(({ txid }) => txid)).toEqual([1n, 2n, 3n, 4n]);
    expect(s.log.unsyncedBytes).toBe(s.log.pending().reduce((sum, { byteCount }) => sum + byteCount, 0));
    s.log.release(2n);
    expect(s.log.pending().map(({ txid }) => txid)).toEqual([3n, 4n]);
    s.log.release(1n);
    expect(txids(s)).toEqual([3n, 4n]);
    s.log.release(4n);
    await s.log.stop();
    expect(s.names()).toEqual(["0000000000000004-0000000000000004.ltx"]);
    expect(s.log.unsyncedBytes).toBe(0);
    s.restart(4n);
    await s.log.load();
    s.write("INSERT INTO t VALUES (4)");
    await s.close();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("stay while the base in the local folder needs them, and while somebody holds them", async () => {
    const s = await ready({ isVolatile: true });
    expect(s.log.mustSeal).toBe(true);
    const letGo = s.log.keepFrom(0n);
    await closeThree(s);
    s.log.release(4n);
    expect(txids(s)).toEqual([1n, 2n, 3n, 4n]);
    s.log.setBase(2n);
    expect(txids(s)).toEqual([1n, 2n, 3n, 4n]);
    letGo();
    expect(txids(s)).toEqual([3n, 4n]);
    s.log.setBase(undefined);
    expect(txids(s)).toEqual([4n]);
    // Nothing is flushed in memory.
    expect(s.flushes).toBe(0);
    s.end();
  });

  it("that nobody carries go at once", async () => {
    const s = await ready({ log: { isCarried: false } });
    await closeThree(s);
    expect(txids(s)).toEqual([4n]);
    expect(s.log.unsyncedBytes).toBe(0);
    s.end();
  });

  it("that an interrupted seal has left are removed; a damaged one is put aside, and the next holds everything", async () => {
    const s = await ready();
    await closeThree(s);
    writeFileSync(join(s.logPath, "0000000000000005-0000000000000005.ltx.new"), "half");
    writeFileSync(join(s.logPath, "0000000000000004-0000000000000004.ltx"), "damaged");
    s.restart(5n);
    await s.log.load();
    expect(s.names()).toContain("0000000000000004-0000000000000004.ltx.damaged");
    expect(s.names().some((name) => name.endsWith(".new"))).toBe(false);
    expect(s.log.closedTxid).toBe(4n);
    expect(s.warnings).toHaveLength(1);
    await s.close();
    expect(s.names().some((name) => name.endsWith(".damaged"))).toBe(false);
    const { pageCount, commit } = await verifyLtx([s.history.get(5n) as Buffer]);
    expect(pageCount).toBe(commit);
    s.end();
  });
});

describe("a head that is switched", () => {
  it("goes on in another file with a WAL of its own", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    s.write("INSERT INTO t VALUES (zeroblob(30000))");
    await s.close();
    const other = new Subject({ folder: newFolder() });
    other.db.close();
    rmSync(`${other.path}-wal`, { force: true });
    writeFileSync(other.path, s.bytes());
    const moved = new Subject({ folder: join(other.path, "..") });
    s.log.rebase(s.head(other.path));
    moved.db.exec("INSERT INTO t VALUES (zeroblob(9000))");
    s.log.committed(3);
    await s.close();
    expect(await s.restored()).toEqual(moved.bytes());
    expect((await verifyLtx([s.history.get(2n) as Buffer])).pageCount).toBeLessThan(8);
    s.write("INSERT INTO t VALUES (1)");
    expect(() => s.log.rebase(s.head())).toThrow("closed batch");
    expect(s.warnings).toEqual([]);
    moved.end();
    s.end();
  });
});

describe("a disk that fails", () => {
  /** Files whose next writes, names or flushes fail with a code. */
  function failing() {
    const state: { code: string | undefined; freeBytes: number | undefined; step: "write" | "flush" | "rename" } = {
      code: undefined,
      freeBytes: undefined,
      step: "write",
    };
    const fail = (step: typeof state.step) => {
      if (state.code !== undefined && state.step === step) {
        throw Object.assign(new Error(state.code), { code: state.code });
      }
    };
    const fileSystem: FileSystem = {
      ...nodeFileSystem,
      async openFile(path, mode) {
        const file = await nodeFileSystem.openFile(path, mode);
        return {
          sizeBytes: () => file.sizeBytes(),
          read: (offset, count) => file.read(offset, count),
          truncate: (size) => file.truncate(size),
          close: () => file.close(),
          async write(offset, bytes) {
            fail("write");
            await file.write(offset, bytes);
          },
          async flush() {
            fail("flush");
            await file.flush();
          },
        };
      },
      async rename(from, to) {
        fail("rename");
        await nodeFileSystem.rename(from, to);
      },
      async space(path) {
        const space = await nodeFileSystem.space(path);
        return { ...space, freeBytes: state.freeBytes ?? space.freeBytes };
      },
    };
    return { state, fileSystem };
  }

  it.each(["write", "flush", "rename"] as const)("full at a %s loses nothing, and goes on later", async (step) => {
    const { state, fileSystem } = failing();
    const s = await ready({ fileSystem });
    s.write("CREATE TABLE t (x)");
    await s.log.seal();
    s.write("INSERT INTO t VALUES (zeroblob(30000))");
    state.code = "ENOSPC";
    state.step = step;
    await failureOf(s.log.seal(), "STAGE_FULL");
    await failureOf(s.log.close(), "STAGE_FULL");
    expect(s.log.problem).toMatchObject({ reason: "STAGE_FULL", facts: { stage: "local" } });
    expect(s.log).toMatchObject({ isDirty: true, closedTxid: 0n, openTxid: 1n });
    expect(s.names()).toEqual(["0000000000000001.00000000.part"]);
    expect(s.faults).toEqual([]);
    state.code = undefined;
    await s.close();
    expect(s.log.problem).toBeUndefined();
    expect(await s.restored()).toEqual(s.bytes());
    s.end();
  });

  it("is not filled: the room is looked at before", async () => {
    const { state, fileSystem } = failing();
    const s = await ready({ fileSystem });
    s.write("CREATE TABLE t (x)");
    state.freeBytes = 16 * 1024 * 1024;
    await failureOf(s.log.seal(), "STAGE_FULL");
    state.freeBytes = undefined;
    await s.log.seal();
    s.end();
  });

  it("with errors stops the database", async () => {
    const { state, fileSystem } = failing();
    const s = await ready({ fileSystem });
    s.write("CREATE TABLE t (x)");
    state.code = "EIO";
    await expect(s.log.seal()).rejects.toThrow("EIO");
    expect(s.faults).toHaveLength(1);
    s.end();
  });

  it("that cannot flush the WAL gives no name to what was written", async () => {
    const s = await ready();
    s.write("CREATE TABLE t (x)");
    await s.close();
    s.log = s.newLog({ head: { path: s.path, isVolatile: false, flush: () => Promise.reject(new Error("EIO")) } });
    await s.log.load();
    s.write("INSERT INTO t VALUES (1)");
    await expect(s.log.close()).rejects.toThrow("EIO");
    expect(s.names()).toHaveLength(1);
    expect(s.faults).toHaveLength(1);
    s.end();
  });
});

describe("any order of things", () => {
  it.each([1, 2, 3, 4, 5, 6])("leads to the same bytes (seed %i)", async (seed) => {
    const random = randomOf(seed);
    const chance = (part: number) => random() < part;
    const s = await ready({ pageBytes: seed % 2 === 0 ? 1024 : 4096, batchBytesMax: 1024 * 1024 });
    s.write("CREATE TABLE t (id INTEGER PRIMARY KEY, v)");
    const states = new Map<bigint, Buffer>();
    const takeClosed = () => {
      for (const { txid, path } of s.log.files()) if (!s.history.has(txid)) s.history.set(txid, readFileSync(path));
    };
    for (let step = 0; step < 90; step++) {
      const pick = random();
      if (pick < 0.4) s.write("INSERT INTO t (v) VALUES (randomblob(?))", Math.floor(random() * 9000));
      else if (pick < 0.55)
        s.write("UPDATE t SET v = randomblob(?) WHERE id % 7 = ?", Math.floor(random() * 3000), step % 7);
      else if (pick < 0.62) s.write("DELETE FROM t WHERE id % 3 = ?", step % 3);
      else if (pick < 0.64) s.write("VACUUM");
      else if (pick < 0.74) await s.log.seal();
      else if (pick < 0.86) {
        if ((await s.close()) !== undefined) states.set(s.log.closedTxid, s.bytes());
      } else if (pick < 0.94) {
        await s.log.seal();
        await s.log.copy(async () => s.db.pragma(`wal_checkpoint(${chance(0.3) ? "TRUNCATE" : "PASSIVE"})`));
      } else if (chance(0.5)) s.reopen(s.log.position + (s.log.isDirty ? 2n : 1n));
      else s.log.release(BigInt(Math.floor(random() * Number(s.log.closedTxid))));
      await s.log.load();
      takeClosed();
    }
    while ((await s.close()) !== undefined);
    takeClosed();
    expect(await s.restored()).toEqual(s.bytes());
    for (const [txid, bytes] of states) expect(await s.restored(txid)).toEqual(bytes);
    expect(s.warnings).toEqual([]);
    expect(existsSync(join(s.logPath, "gap"))).toBe(false);
    expect(readdirSync(s.logPath).every((name) => name.endsWith(".ltx"))).toBe(true);
    s.end();
  });
});
