import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { RedoFileSystem } from "../../src/ltx/redo-files.ts";
import { nodeRedoFileSystem } from "../../src/ltx/redo-files.ts";
import { RedoLog, type RedoWal } from "../../src/ltx/redo-log.ts";
import { readRedoRecords, redoBytesOffset, redoRecordBytes, writeRedoRecord } from "../../src/ltx/redo-record.ts";
import type { ReplayTarget } from "../../src/ltx/redo-replay.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { walSums } from "./wal-support.ts";

const folder = temporaryFolders();
const pageSize = 512;
const frameBytes = 24 + pageSize;

/** Files that know what of them is on the disk, in blocks of 512 bytes. */
class Disk {
  readonly files = new Map<string, { now: Buffer; flushed: Buffer }>();
  failWrites = false;
  /** Redo writes that only the cut decides on. */
  holdWrites = false;
  redoWrites = 0;

  fileOf(path: string) {
    let file = this.files.get(path);
    if (file === undefined) {
      file = { now: Buffer.alloc(0), flushed: Buffer.alloc(0) };
      this.files.set(path, file);
    }
    return file;
  }

  write(path: string, offset: number, bytes: Uint8Array): void {
    const file = this.fileOf(path);
    const missing = offset + bytes.length - file.now.length;
    if (missing > 0) file.now = Buffer.concat([file.now, Buffer.alloc(missing)]);
    file.now.set(bytes, offset);
  }

  flush(path: string): void {
    const file = this.fileOf(path);
    file.flushed = Buffer.from(file.now);
  }

  /** The machine dies: of what was not flushed each block is there or not. */
  cut(random: () => number): void {
    for (const file of this.files.values()) {
      const { now, flushed } = file;
      const length = random() < 0.5 ? now.length : Math.max(flushed.length, Math.floor(random() * now.length));
      const after = Buffer.alloc(length);
      for (let at = 0; at < length; at += 512) {
        const source = random() < 0.5 ? now : flushed;
        after.set(source.subarray(at, Math.min(at + 512, length)), at);
      }
      file.now = after;
      file.flushed = Buffer.from(after);
    }
  }

  get redo(): RedoFileSystem {
    return {
      open: async (path, byteCount) => {
        if (this.fileOf(path).now.length !== byteCount)
          this.files.set(path, { now: Buffer.alloc(byteCount), flushed: Buffer.alloc(byteCount) });
        return {
          readAll: async () => Buffer.from(this.fileOf(path).now),
          write: async (offset, bytes) => {
            if (this.failWrites) throw new Error("EIO");
            this.redoWrites++;
            this.write(path, offset, bytes);
            await Promise.resolve();
            if (!this.holdWrites) this.flush(path);
          },
          close: async () => undefined,
        };
      },
    };
  }

  openWal = async (key: string): Promise<ReplayTarget | undefined> => ({
    read: (offset, target) => this.fileOf(key).now.copy(target, 0, Math.min(offset, this.fileOf(key).now.length)),
    write: async (offset, bytes) => this.write(key, offset, bytes),
    flush: async () => this.flush(key),
    close: async () => undefined,
  });
}

/** A database as far as the log cares: a WAL of numbered frames, and how far they were copied back. */
class FakeWal implements RedoWal {
  readonly key: string;
  readonly frameBytes = frameBytes;
  readonly #disk: Disk;
  salts = { walSalt1: 1, walSalt2: 1 };
  endOffset = 0;
  next = 0;
  /** Frames of the state that the database file holds, flushed. */
  copiedBack = 0;
  /** The last number that was promised to be on the disk. */
  promised = 0;
  flushes = 0;
  failFlushes = false;

  constructor(disk: Disk, key: string) {
    this.#disk = disk;
    this.key = key;
  }

  read(offset: number, target: Uint8Array): number {
    const { now } = this.#disk.fileOf(this.key);
    return now.copy(target, 0, Math.min(offset, now.length));
  }

  async flush(): Promise<void> {
    await Promise.resolve();
    if (this.failFlushes) throw new Error("EIO in the WAL");
    this.flushes++;
    this.#disk.flush(this.key);
  }

  /** Commits some frames; each holds its number and that of its life. */
  commit(frameCount: number): number {
    if (this.endOffset === 0) {
      const header = Buffer.alloc(32);
      header.writeUInt32BE(0x377f0682, 0);
      header.writeUInt32BE(3_007_000, 4);
      header.writeUInt32BE(pageSize, 8);
      header.writeUInt32BE(this.salts.walSalt1, 16);
      header.writeUInt32BE(this.salts.walSalt2, 20);
      const sums = walSums(header.subarray(0, 24), [0, 0], false);
      header.writeUInt32BE(sums[0], 24);
      header.writeUInt32BE(sums[1], 28);
      this.#disk.write(this.key, 0, header);
      // SQLite flushes the header of a WAL that starts over before its first frame.
      this.#flushStart();
      this.endOffset = 32;
    }
    for (let count = 0; count < frameCount; count++) {
      const frame = Buffer.alloc(frameBytes, ++this.next & 255);
      frame.writeUInt32BE(this.next, 0);
      frame.writeUInt32BE(count === frameCount - 1 ? 1 : 0, 4);
      frame.writeUInt32BE(this.salts.walSalt1, 8);
      frame.writeUInt32BE(this.salts.walSalt2, 12);
      this.#disk.write(this.key, this.endOffset, frame);
      this.endOffset += frameBytes;
    }
    return this.next;
  }

  /** Everything is copied back, and the next commit starts the WAL over. */
  checkpoint(random: () => number): { walSalt1: number; walSalt2: number } {
    const life = this.salts;
    this.#disk.flush(this.key);
    this.copiedBack = this.next;
    this.salts = { walSalt1: Math.floor(random() * 2 ** 32), walSalt2: Math.floor(random() * 2 ** 32) };
    this.endOffset = 0;
    return life;
  }

  truncate(): void {
    this.#disk.files.set(this.key, { now: Buffer.alloc(0), flushed: Buffer.alloc(0) });
  }

  /** What SQLite would find: the frames of the WAL's life that follow one another, applied to the database. */
  recovered(): { last: number; isMixed: boolean } {
    const { now } = this.#disk.fileOf(this.key);
    if (now.length < 32) return { last: this.copiedBack, isMixed: false };
    const [salt1, salt2] = [now.readUInt32BE(16), now.readUInt32BE(20)];
    let last = 0;
    for (let at = 32; at + frameBytes <= now.length; at += frameBytes) {
      const number = now.readUInt32BE(at);
      const isWhole = now.subarray(at + 24, at + frameBytes).every((byte) => byte === (number & 255));
      if (!isWhole || now.readUInt32BE(at + 8) !== salt1 || now.readUInt32BE(at + 12) !== salt2) break;
      if (last !== 0 && number !== last + 1) break;
      last = number;
    }
    // Frames older than the database: an old WAL lies beside a newer file.
    return { last: Math.max(last, this.copiedBack), isMixed: last !== 0 && last < this.copiedBack };
  }

  #flushStart(): void {
    const file = this.#disk.fileOf(this.key);
    const flushed = Buffer.alloc(Math.max(32, file.flushed.length));
    file.flushed.copy(flushed);
    file.now.copy(flushed, 0, 0, 32);
    file.flushed = flushed;
  }
}

const openLog = (disk: Disk, fileBytes = 64 * 1024, onFault?: (error: unknown) => void) =>
  RedoLog.open({
    fileSystem: disk.redo,
    folder: "/log",
    fileBytes,
    openWal: disk.openWal,
    ...(onFault && { onFault }),
  });

const end = (wal: FakeWal) => ({ ...wal.salts, endOffset: wal.endOffset });

/** A generator of numbers in [0, 1) that a property can hold. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Random commits, checkpoints and waits on six databases, then a power cut; what is wrong after the replay. */
async function round(seed: number, replay = true): Promise<string[]> {
  const random = randomOf(seed);
  const disk = new Disk();
  const log = await openLog(disk, 48 * 1024);
  const wals = Array.from({ length: 6 }, (_, index) => new FakeWal(disk, `wal-${index}`));
  const waiting = new Map<FakeWal, Promise<void>>();
  const forgotten = new Map<FakeWal, Promise<void>>();
  const settleAll = async () => {
    await Promise.all(waiting.values());
    waiting.clear();
  };
  const steps = 40 + Math.floor(random() * 200);
  for (let step = 0; step < steps; step++) {
    const wal = wals[Math.floor(random() * wals.length)] as FakeWal;
    if (random() < 0.04 && wal.next > 0) {
      if (random() < 0.5) await settleAll();
      // The next checkpoint of a database comes after the life before was forgotten.
      await forgotten.get(wal);
      const life = wal.checkpoint(random);
      wal.promised = wal.next;
      forgotten.set(wal, log.forget(wal.key, life));
      if (random() < 0.3) {
        await forgotten.get(wal);
        wal.truncate();
      }
      continue;
    }
    const number = wal.commit(1 + Math.floor(random() * 5));
    if (random() < 0.7) {
      const done = log.commit(wal, end(wal)).then(() => {
        wal.promised = Math.max(wal.promised, number);
      });
      waiting.set(
        wal,
        Promise.all([waiting.get(wal), done]).then(() => undefined),
      );
    }
    if (random() < 0.3) await settleAll();
  }
  disk.holdWrites = random() < 0.5;
  await Promise.resolve();
  const promises = wals.map(({ promised }) => promised);
  if (!disk.holdWrites) await settleAll();
  else await log.close();
  disk.cut(random);
  if (replay) await openLog(disk, 48 * 1024);
  return wals.flatMap((wal, index) => {
    const { last, isMixed } = wal.recovered();
    if (isMixed) return [`${wal.key}: an old WAL beside a newer database`];
    return last < (promises[index] as number) ? [`${wal.key}: ${last} of ${promises[index]}`] : [];
  });
}

describe("the redo log", () => {
  it("loses nothing that was promised when the machine dies", async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(), async (seed) => {
        expect(await round(seed)).toEqual([]);
      }),
      { numRuns: 120 },
    );
  });

  it("is what keeps it: without the replay the same test finds losses", async () => {
    let lost = 0;
    for (let seed = 0; seed < 40; seed++) if ((await round(seed, false)).length > 0) lost++;
    expect(lost).toBeGreaterThan(20);
  });

  it.each([true, false])(
    "puts no old WAL beside a newer database that was truncated: forgotten %s",
    async (isForgotten) => {
      const disk = new Disk();
      const log = await openLog(disk);
      const wals = ["a", "b"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal];
      for (const wal of wals) wal.commit(3);
      await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
      for (const wal of wals) {
        // Nobody waits for these.
        wal.commit(2);
        const life = wal.checkpoint(() => 0.5);
        if (isForgotten) await log.forget(wal.key, life);
        wal.truncate();
      }
      await log.close();
      expect((await openLog(disk)).replayed.walCount).toBe(isForgotten ? 0 : 2);
      expect(wals.map((wal) => wal.recovered().isMixed)).toEqual([!isForgotten, !isForgotten]);
    },
  );

  it("forgets the lives before the one that is forgotten, of which nothing was logged", async () => {
    const disk = new Disk();
    const log = await openLog(disk);
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal];
    const [a] = wals;
    for (const wal of wals) wal.commit(3);
    await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    a.checkpoint(() => 0.5);
    a.commit(2);
    // Alone: its WAL is flushed, and the log holds nothing of this life.
    await log.commit(a, end(a));
    await log.forget(
      a.key,
      a.checkpoint(() => 0.7),
    );
    a.truncate();
    await log.close();
    expect((await openLog(disk)).replayed).toEqual({ walCount: 1, recordCount: 1 });
    expect(a.recovered()).toEqual({ last: 5, isMixed: false });
  });

  it("leaves a WAL alone that has started over, forgotten or not", async () => {
    const disk = new Disk();
    const log = await openLog(disk);
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal];
    for (const wal of wals) wal.commit(3);
    await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    for (const wal of wals) {
      wal.commit(2);
      wal.checkpoint(() => 0.5);
      wal.commit(1);
    }
    await log.close();
    disk.cut(() => 0.9);
    expect((await openLog(disk)).replayed.walCount).toBe(0);
    expect(wals.map((wal) => wal.recovered())).toEqual(Array(2).fill({ last: 5, isMixed: false }));
  });

  it("writes once for all that wait, and flushes a single WAL directly", async () => {
    const disk = new Disk();
    const log = await openLog(disk);
    const wals = ["a", "b", "c"].map((key) => new FakeWal(disk, key));
    const before = disk.redoWrites;
    for (const wal of wals) wal.commit(2);
    await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    expect(disk.redoWrites - before).toBe(1);
    expect(wals.map(({ flushes }) => flushes)).toEqual([0, 0, 0]);
    const [first] = wals as [FakeWal];
    first.commit(1);
    await Promise.all([log.commit(first, end(first)), log.commit(first, end(first))]);
    expect([disk.redoWrites - before, first.flushes]).toEqual([1, 1]);
    await log.commit(first, end(first));
    expect([disk.redoWrites - before, first.flushes]).toEqual([1, 1]);
    await log.close();
  });

  it("flushes WALs with much to write, and reuses its files after their WALs are flushed", async () => {
    const disk = new Disk();
    const log = await openLog(disk, 16 * 1024);
    const [large, a, b] = ["large", "a", "b"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal, FakeWal];
    large.commit(60);
    a.commit(1);
    await Promise.all([log.commit(large, end(large)), log.commit(a, end(a))]);
    expect([large.flushes, a.flushes]).toEqual([1, 0]);
    for (let turn = 0; turn < 60; turn++) {
      a.commit(2);
      b.commit(2);
      await Promise.all([log.commit(a, end(a)), log.commit(b, end(b))]);
    }
    expect(a.flushes).toBeGreaterThan(3);
    expect(disk.fileOf("/log/redo-0").now.length).toBe(16 * 1024);
    await log.close();
    disk.cut(() => 0.9);
    expect((await openLog(disk, 16 * 1024)).replayed.recordCount).toBeGreaterThan(0);
    expect(a.recovered().last).toBe(a.next);
    expect(b.recovered().last).toBe(b.next);
  });

  it("begins anew after a replay, and replays nothing twice", async () => {
    const disk = new Disk();
    const log = await openLog(disk);
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key));
    for (const wal of wals) wal.commit(1);
    await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    await log.close();
    expect((await openLog(disk)).replayed).toEqual({ walCount: 2, recordCount: 2 });
    expect((await openLog(disk)).replayed).toEqual({ walCount: 0, recordCount: 0 });
  });

  it("skips databases that are gone", async () => {
    const disk = new Disk();
    const log = await openLog(disk);
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key));
    for (const wal of wals) wal.commit(1);
    await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    log.release("a");
    await log.close();
    const openWal = async (key: string) => (key === "a" ? undefined : disk.openWal(key));
    const next = await RedoLog.open({ fileSystem: disk.redo, folder: "/log", fileBytes: 64 * 1024, openWal });
    expect(next.replayed).toEqual({ walCount: 1, recordCount: 1 });
  });

  it("goes on with flushes of single WALs when it cannot be written, and lets no checkpoint follow", async () => {
    const disk = new Disk();
    const faults: unknown[] = [];
    const log = await openLog(disk, 64 * 1024, (error) => faults.push(error));
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key));
    const [a, b] = wals as [FakeWal, FakeWal];
    const commitBoth = () => {
      for (const wal of wals) wal.commit(1);
      return Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    };
    await commitBoth();
    disk.failWrites = true;
    await commitBoth();
    expect([a.flushes, b.flushes, faults.length]).toEqual([1, 1, 1]);
    await expect(log.forget("a", a.salts)).rejects.toThrow("EIO");
    await log.forget("c", a.salts);
    a.failFlushes = true;
    a.commit(1);
    b.commit(1);
    const results = await Promise.allSettled(wals.map((wal) => log.commit(wal, end(wal))));
    expect(results.map(({ status }) => status)).toEqual(["rejected", "fulfilled"]);
    expect(faults.length).toBe(1);
    await log.close();
    expect(() => log.commit(a, end(a))).toThrow("closed");
    expect(() => log.forget("a", a.salts)).toThrow("closed");
  });

  it("flushes a WAL that cannot be read, and goes on for the others", async () => {
    const disk = new Disk();
    const faults: unknown[] = [];
    const log = await openLog(disk, 64 * 1024, (error) => faults.push(error));
    const [a, b] = ["a", "b"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal];
    a.commit(1);
    b.commit(1);
    a.read = () => {
      throw new Error("EIO");
    };
    await Promise.all([log.commit(a, end(a)), log.commit(b, end(b))]);
    expect([a.flushes, b.flushes, faults.length]).toEqual([1, 0, 0]);
    await log.close();
  });

  it("keeps its file when a WAL in it cannot be flushed", async () => {
    const disk = new Disk();
    const faults: unknown[] = [];
    const log = await openLog(disk, 16 * 1024, (error) => faults.push(error));
    const [a, b, c] = ["a", "b", "c"].map((key) => new FakeWal(disk, key)) as [FakeWal, FakeWal, FakeWal];
    for (const wal of [a, b]) wal.commit(2);
    await Promise.all([log.commit(a, end(a)), log.commit(b, end(b))]);
    const promised = a.next;
    a.failFlushes = true;
    for (let turn = 0; turn < 40; turn++) {
      b.commit(2);
      c.commit(2);
      await Promise.all([log.commit(b, end(b)), log.commit(c, end(c))]);
    }
    expect(faults.length).toBe(1);
    await log.close();
    disk.cut(() => 0.9);
    await openLog(disk, 16 * 1024);
    expect([a, b, c].map((wal) => wal.recovered().last)).toEqual([promised, b.next, c.next]);
  });

  it("works on real files", async () => {
    const disk = new Disk();
    const options = { fileSystem: nodeRedoFileSystem, folder: folder(), fileBytes: 256 * 1024, openWal: disk.openWal };
    const log = await RedoLog.open(options);
    const wals = ["a", "b"].map((key) => new FakeWal(disk, key));
    for (let turn = 0; turn < 20; turn++) {
      for (const wal of wals) wal.commit(2);
      await Promise.all(wals.map((wal) => log.commit(wal, end(wal))));
    }
    await log.close();
    disk.cut(() => 0.9);
    expect(wals.map((wal) => wal.recovered().last)).toEqual([0, 0]);
    const next = await RedoLog.open(options);
    await next.close();
    expect(next.replayed).toEqual({ walCount: 2, recordCount: 40 });
    expect(wals.map((wal) => wal.recovered().last)).toEqual(wals.map(({ next }) => next));
  });
});

describe("records of the redo log", () => {
  const record = (key: string, generation: bigint, bytes: Buffer) => {
    const target = Buffer.alloc(redoRecordBytes(key, bytes.length));
    bytes.copy(target, redoBytesOffset(key));
    const facts = { kind: "frames", key, generation, walOffset: 2 ** 40, walSalt1: 7, walSalt2: 2 ** 32 - 1 } as const;
    expect(writeRedoRecord(target, 0, facts, bytes.length)).toBe(target.length);
    return target;
  };

  it("read back up to the first that is cut, damaged, or of an earlier turn", () => {
    const keys = fc.string({ maxLength: 40 }).map((text) => `k${text.toWellFormed()}`);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(keys, fc.uint8Array({ maxLength: 300 })), { maxLength: 6 }),
        fc.nat(),
        (list, at) => {
          const all = list.map(([key, bytes]) => record(key, 5n, Buffer.from(bytes)));
          const file = Buffer.concat([...all, record("old", 3n, Buffer.from("stale")), Buffer.alloc(50)]);
          const found = [...readRedoRecords(file)];
          if (all.length > 0) expect(found.map(({ key }) => key)).toEqual(list.map(([key]) => key));
          for (const [index, { bytes, walOffset, walSalt2 }] of found.slice(0, all.length).entries()) {
            expect(Buffer.compare(bytes, Buffer.from(list[index]?.[1] ?? []))).toBe(0);
            expect([walOffset, walSalt2]).toEqual([2 ** 40, 2 ** 32 - 1]);
          }
          const cut = at % file.length;
          expect([...readRedoRecords(file.subarray(0, cut))].length).toBeLessThanOrEqual(found.length);
          file.writeUInt8((file[cut] as number) ^ 1, cut);
          const ends = all.map((_, index) => Buffer.concat(all.slice(0, index + 1)).length);
          const whole = ends.findIndex((end) => end > cut);
          if (whole >= 0) expect([...readRedoRecords(file)].length).toBeLessThanOrEqual(whole);
        },
      ),
      { numRuns: 200 },
    );
  });
});
