/**
 * One log for the WALs of many databases: what they gained since the last flush goes to the disk in one write, instead of a
 * flush of each WAL (LOCAL durability; "Life of a write" in the architecture). The connections that write have to flush the
 * header of a WAL before its first frame, as SQLite does with `synchronous` NORMAL or more.
 *
 * Two files of a fixed size are written in turn. Before a file is written again, the WALs whose records it holds are
 * flushed themselves, in the background, long before. With one WAL to flush, or much to write, WALs are flushed directly.
 */
import { join } from "node:path";
import type { RedoFile, RedoFileSystem } from "./redo-files.ts";
import {
  keyBytesMax,
  type RedoRecord,
  readRedoRecords,
  redoBytesOffset,
  redoRecordBytes,
  writeRedoRecord,
} from "./redo-record.ts";
import { type ReplaySummary, type ReplayTarget, replayRedo } from "./redo-replay.ts";
import { frameHeaderBytes, type WalSalts, walHeaderBytes } from "./wal-format.ts";
import type { WalPosition, WalSource } from "./wal-reader.ts";

/** The WAL of a database as the log sees it. */
export interface RedoWal extends WalSource {
  /** Names the WAL for a replay: at most 255 bytes, and never used again for another database. */
  readonly key: string;
  /** Of a frame with its header. */
  readonly frameBytes: number;
  /**
   * Resolves when everything written to the WAL before the call is on the disk, or the database is gone. After a rejection
   * it always rejects.
   */
  flush(): Promise<void>;
}

/** How a log is opened. */
export interface RedoLogOptions {
  readonly fileSystem: RedoFileSystem;
  readonly folder: string;
  /** Size of each of the two files; default 32 MiB. */
  readonly fileBytes?: number;
  /** For the replay; undefined for a database that is gone. */
  readonly openWal: (key: string) => Promise<ReplayTarget | undefined>;
  /** The log cannot be written any more; from now on WALs are flushed one by one. */
  readonly onFault?: (error: unknown) => void;
}

const fileBytesDefault = 32 * 1024 * 1024;
/** More than this of one WAL is flushed there. */
const walBytesMax = 1024 * 1024;
/** What is gathered for one write. */
const batchBytesMax = 4 * 1024 * 1024;
const flushesAtOnceMax = 16;
/** Enough to end the first record of a file. */
const eraser = Buffer.alloc(512);

/** What the log knows of a WAL. */
interface WalState extends WalSalts {
  readonly wal: RedoWal;
  /** Of this life: what is on the disk, here or there, from its start; 0 when that is not known. */
  loggedOffset: number;
  /** What was committed. */
  endOffset: number;
  waiting: PromiseWithResolvers<void> | undefined;
}

interface Turn {
  readonly file: RedoFile;
  /** WALs with records in the file, written in this turn of it. */
  wals: Map<string, RedoWal>;
  /** Those of the turn before, until the first write of this one has made them worthless. */
  stale: Map<string, RedoWal>;
  /** Ends when the WALs are flushed and the file can be written again. */
  clean: Promise<void>;
}

interface Forgotten extends WalSalts {
  readonly key: string;
  readonly done: PromiseWithResolvers<void>;
}

export class RedoLog {
  /** What was put back when the log was opened. */
  readonly replayed: ReplaySummary;
  readonly #options: RedoLogOptions;
  readonly #fileBytes: number;
  readonly #turns: readonly [Turn, Turn];
  readonly #states = new Map<string, WalState>();
  #touched = new Set<WalState>();
  readonly #forgotten: Forgotten[] = [];
  #current: 0 | 1 = 0;
  #position = 0;
  #generation: bigint;
  #buffer = Buffer.allocUnsafe(65_536);
  #work: Promise<void> | undefined;
  #fault: { readonly error: unknown } | undefined;
  #isClosed = false;

  private constructor(
    options: RedoLogOptions,
    files: readonly [RedoFile, RedoFile],
    generation: bigint,
    replayed: ReplaySummary,
  ) {
    const turnOf = (file: RedoFile): Turn => ({
      file,
      wals: new Map(),
      stale: new Map(),
      clean: Promise.resolve(),
    });
    this.#options = options;
    this.#fileBytes = options.fileBytes ?? fileBytesDefault;
    this.#turns = [turnOf(files[0]), turnOf(files[1])];
    this.#generation = generation;
    this.replayed = replayed;
  }

  /** Replays what an earlier life of the log left, and begins anew. No database may be open, or be opened before it ends. */
  static async open(options: RedoLogOptions): Promise<RedoLog> {
    const { fileSystem, folder, fileBytes = fileBytesDefault, openWal } = options;
    const first = await fileSystem.open(join(folder, "redo-0"), fileBytes);
    const second = await fileSystem
      .open(join(folder, "redo-1"), fileBytes)
      .catch((error: unknown) => closeThenThrow([first], error));
    try {
      const found = [];
      for (const file of [first, second]) found.push({ file, records: [...readRedoRecords(await file.readAll())] });
      const replayed = await replayRedo(
        found.flatMap(({ records }) => records),
        openWal,
      );
      // The older one first: its records may be forgotten in the newer one.
      found.sort((a, b) => Number(generationOf(a.records) - generationOf(b.records)));
      for (const { file } of found) await file.write(0, eraser);
      const generation = generationOf(found[1]?.records ?? []) + 1n;
      return new RedoLog(options, [first, second], generation, replayed);
    } catch (error) {
      return await closeThenThrow([first, second], error);
    }
  }

  /**
   * Resolves when the WAL up to the end of a committed frame is on the disk. Nothing that was not committed by then is
   * written. Rejects when the WAL's own flush fails.
   */
  commit(wal: RedoWal, end: WalPosition): Promise<void> {
    if (Buffer.byteLength(wal.key) > keyBytesMax)
      throw new RangeError(`the key of a WAL is longer than ${keyBytesMax} bytes`);
    if (this.#isClosed) throw new Error("the redo log is closed");
    const state = this.#stateOf(wal, end);
    state.endOffset = Math.max(state.endOffset, end.endOffset);
    if (state.endOffset <= state.loggedOffset) return Promise.resolve();
    state.waiting ??= Promise.withResolvers();
    const { promise } = state.waiting;
    this.#touched.add(state);
    this.#start();
    return promise;
  }

  /**
   * A life of a WAL is over: everything in it is copied back into the database and flushed, and the WAL may start over, by
   * SQLite itself, at any time. Resolves when that is on the disk, which has to be before the next checkpoint of this
   * database copies anything, and, with no commit in between, before the WAL is truncated or removed. Records of earlier
   * lives go with it; to be called before a commit of a later life is. Rejects when the log holds records of the WAL and
   * cannot be written: then none of this may follow.
   */
  forget(key: string, life: WalSalts): Promise<void> {
    if (this.#isClosed) throw new Error("the redo log is closed");
    const state = this.#states.get(key);
    if (state !== undefined && hasSalts(state, life)) {
      this.#states.delete(key);
      this.#touched.delete(state);
      state.waiting?.resolve();
      state.waiting = undefined;
    }
    if (!this.#holds(key) && this.#work === undefined) return Promise.resolve();
    const done = Promise.withResolvers<void>();
    this.#forgotten.push({ key, walSalt1: life.walSalt1, walSalt2: life.walSalt2, done });
    this.#start();
    return done.promise;
  }

  /** Drops what is known of a WAL that is closed, or whose database was deleted; nobody may wait for it. */
  release(key: string): void {
    const state = this.#states.get(key);
    if (state?.waiting === undefined) this.#states.delete(key);
  }

  /** Waits for what was asked for and closes the files. They are replayed at the next open, harmlessly. */
  async close(): Promise<void> {
    this.#isClosed = true;
    while (this.#work !== undefined) await this.#work;
    await Promise.allSettled(this.#turns.map(({ clean }) => clean));
    await Promise.all(this.#turns.map(({ file }) => file.close()));
  }

  #stateOf(wal: RedoWal, { walSalt1, walSalt2 }: WalSalts): WalState {
    const known = this.#states.get(wal.key);
    if (known !== undefined && known.wal === wal && hasSalts(known, { walSalt1, walSalt2 })) return known;
    const state = { wal, walSalt1, walSalt2, loggedOffset: 0, endOffset: 0, waiting: undefined };
    this.#states.set(wal.key, state);
    return state;
  }

  #start(): void {
    this.#work ??= this.#run();
  }

  async #run(): Promise<void> {
    // Everyone who asks in this turn of the event loop is in the first batch.
    await Promise.resolve();
    while (this.#touched.size > 0 || this.#forgotten.length > 0) {
      const batch = [...this.#touched].map((state) => ({ state, endOffset: state.endOffset, waiting: take(state) }));
      const forgotten = this.#forgotten.splice(0, forgottenMax(this.#fileBytes));
      this.#touched = new Set();
      if (forgotten.length === 0 && batch.length === 1) await this.#flushWals(batch);
      else await this.#flushTogether(batch, forgotten);
    }
    // In the same turn as the look at what is left: who comes later starts anew.
    this.#work = undefined;
  }

  async #flushTogether(batch: readonly Commit[], forgotten: readonly Forgotten[]): Promise<void> {
    const direct: Commit[] = [];
    const logged: Commit[] = [];
    try {
      if (this.#fault !== undefined) throw this.#fault.error;
      let end = 0;
      const records: { commit: Commit; from: number; byteCount: number }[] = [];
      for (const { key } of forgotten) end += redoRecordBytes(key, 0);
      for (const commit of batch) {
        const from = commit.state.loggedOffset;
        const byteCount = commit.endOffset - from;
        const recordBytes = redoRecordBytes(commit.state.wal.key, byteCount);
        if (byteCount > walBytesMax || end + recordBytes > Math.min(batchBytesMax, this.#fileBytes)) {
          direct.push(commit);
          continue;
        }
        records.push({ commit, from, byteCount });
        end += recordBytes;
      }
      if (this.#buffer.length < end) this.#buffer = Buffer.allocUnsafe(Math.max(end, 2 * this.#buffer.length));
      await this.#makeRoom(end);
      const turn = this.#turns[this.#current];
      const generation = this.#generation;
      let offset = 0;
      for (const { key, walSalt1, walSalt2 } of forgotten) {
        const record = { kind: "forget", key, generation, walOffset: 0, walSalt1, walSalt2 } as const;
        offset = writeRedoRecord(this.#buffer, offset, record, 0);
      }
      for (const { commit, from, byteCount } of records) {
        const { state } = commit;
        const bytesAt = offset + redoBytesOffset(state.wal.key);
        const target = this.#buffer.subarray(bytesAt, bytesAt + byteCount);
        if (!(await readLife(state, from, target))) {
          direct.push(commit);
          continue;
        }
        const { walSalt1, walSalt2 } = state;
        const record = { kind: "frames", key: state.wal.key, generation, walOffset: from, walSalt1, walSalt2 } as const;
        offset = writeRedoRecord(this.#buffer, offset, record, byteCount);
        turn.wals.set(state.wal.key, state.wal);
        logged.push(commit);
      }
      if (offset > 0) {
        await turn.file.write(this.#position, this.#buffer.subarray(0, offset));
        this.#position += offset;
        turn.stale.clear();
      }
    } catch (error) {
      this.#stop(error);
      for (const { key, done } of forgotten) {
        if (this.#holds(key)) done.reject(error);
        else done.resolve();
      }
      await this.#flushWals(batch);
      return;
    }
    for (const { done } of forgotten) done.resolve();
    for (const commit of logged) settle(commit);
    await this.#flushWals(direct);
  }

  /** Flushes each WAL by itself. */
  async #flushWals(commits: readonly Commit[]): Promise<void> {
    await atMost(flushesAtOnceMax, commits, async (commit) => {
      try {
        await commit.state.wal.flush();
        settle(commit);
      } catch (error) {
        commit.waiting?.reject(error);
      }
    });
  }

  /** Goes on in the other file when this one has no room; waits until that one's WALs are flushed. */
  async #makeRoom(byteCount: number): Promise<void> {
    if (this.#position + byteCount <= this.#fileBytes) return;
    const full = this.#turns[this.#current];
    const wals = [...full.wals.values()];
    full.clean = atMost(flushesAtOnceMax, wals, (wal) => wal.flush());
    // Looked at when the file is to be written again.
    full.clean.catch((error: unknown) => this.#stop(error));
    const current = this.#current === 0 ? 1 : 0;
    const next = this.#turns[current];
    await next.clean;
    for (const [key, wal] of next.wals) next.stale.set(key, wal);
    next.wals = new Map();
    this.#current = current;
    this.#position = 0;
    this.#generation++;
  }

  /** Whether a replay would find records of a WAL, or may. */
  holds(key: string): boolean {
    return this.#holds(key) || this.#states.has(key);
  }

  #holds(key: string): boolean {
    return this.#turns.some(({ wals, stale }) => wals.has(key) || stale.has(key));
  }

  #stop(error: unknown): void {
    if (this.#fault !== undefined) return;
    this.#fault = { error };
    this.#options.onFault?.(error);
  }
}

interface Commit {
  readonly state: WalState;
  readonly endOffset: number;
  readonly waiting: PromiseWithResolvers<void> | undefined;
}

/** Those that surely fit into half a write. */
function forgottenMax(fileBytes: number): number {
  return Math.max(1, Math.floor(Math.min(batchBytesMax, fileBytes) / 2 / redoRecordBytes("", keyBytesMax)));
}

function take(state: WalState): PromiseWithResolvers<void> | undefined {
  const { waiting } = state;
  state.waiting = undefined;
  return waiting;
}

function settle({ state, endOffset, waiting }: Commit): void {
  state.loggedOffset = Math.max(state.loggedOffset, endOffset);
  waiting?.resolve();
}

function hasSalts(a: WalSalts, b: WalSalts): boolean {
  return a.walSalt1 === b.walSalt1 && a.walSalt2 === b.walSalt2;
}

/**
 * Reads what a WAL gained. False when it started over meanwhile, is gone, or cannot be read: its own flush tells. Frames of one
 * life are written in order, and do not change once the commit behind them is written, so that the first and the last tell
 * for all.
 */
async function readLife(state: WalState, from: number, target: Buffer): Promise<boolean> {
  try {
    return (
      (await state.wal.read(from, target)) === target.length &&
      beginsWith(target, from, state) &&
      endsWithCommit(target, state.wal.frameBytes, state)
    );
  } catch {
    return false;
  }
}

function endsWithCommit(bytes: Buffer, frameBytes: number, life: WalSalts): boolean {
  const at = bytes.length - frameBytes;
  if (at < 0 || bytes.readUInt32BE(at + 4) === 0) return false;
  return bytes.readUInt32BE(at + 8) === life.walSalt1 && bytes.readUInt32BE(at + 12) === life.walSalt2;
}

/** Whether bytes of a WAL from an offset on are of this life. */
function beginsWith(bytes: Buffer, walOffset: number, life: WalSalts): boolean {
  const at = walOffset === 0 ? 16 : 8;
  if (bytes.length < (walOffset === 0 ? walHeaderBytes : frameHeaderBytes)) return false;
  return bytes.readUInt32BE(at) === life.walSalt1 && bytes.readUInt32BE(at + 4) === life.walSalt2;
}

function generationOf(records: readonly RedoRecord[]): bigint {
  return records[0]?.generation ?? 0n;
}

/** Runs all, so many at a time; rejects with the first failure when all have ended. */
async function atMost<T>(count: number, items: readonly T[], run: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values();
  const workers = Array.from({ length: Math.min(count, items.length) }, async () => {
    for (const item of queue) await run(item);
  });
  for (const result of await Promise.allSettled(workers)) if (result.status === "rejected") throw result.reason;
}

async function closeThenThrow(files: readonly RedoFile[], error: unknown): Promise<never> {
  await Promise.allSettled(files.map((file) => file.close()));
  throw error;
}
