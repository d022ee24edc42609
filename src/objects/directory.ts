/**
 * An object store in a folder: a file for each object, a folder for each name before a slash. Nothing but the objects' bytes
 * is in the files, so other tools read them as they are. Several processes may use one folder.
 */
import { constants, lstatSync, renameSync } from "node:fs";
import * as fs from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import type { Clock } from "../clock.ts";
import { bounded } from "./bounded.ts";
import { FolderLock } from "./folder-lock.ts";
import { Limiter } from "./limiter.ts";
import {
  checkFolderPrefix,
  checkKey,
  checkPrefix,
  checkRange,
  checkSize,
  collect,
  compareKeys,
  type GetBytesOptions,
  type GetOptions,
  type ListOptions,
  type ObjectBytes,
  type ObjectCall,
  type ObjectInfo,
  type ObjectSource,
  type ObjectStore,
  ObjectStoreError,
  type ObjectStream,
  type PutCondition,
  type PutOptions,
  placeOf,
  readSource,
  SourceFailure,
  sourceOf,
  unwrapSource,
} from "./object-store.ts";
import { probeStore } from "./probe.ts";

export interface DirectoryStoreOptions {
  /** Made when it is not there. */
  readonly path: string;
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  /** A half-written file that nobody has touched for so long belongs to no living process; an hour unless told otherwise. */
  readonly leftoverMs?: number | undefined;
  /** Told of leftovers that could not be removed. */
  readonly onProblem?: ((message: string, error: unknown) => void) | undefined;
}

/** Opens a folder as an object store, and removes what processes that died have left half-written. */
export async function openDirectoryStore(options: DirectoryStoreOptions): Promise<ObjectStore> {
  const store = new DirectoryStore(options);
  await store.prepare();
  return store;
}

/** Our own folder in the root. Names of objects never begin with a dot there: see `fileName`. */
export const ownFolder = ".persisto-objects";
const LEFTOVER_MS = 3_600_000;
const READ_BYTES = 1024 * 1024;
const WRITE_BYTES = 1024 * 1024;
const CONCURRENCY_MAX = 64;
const WAITING_COUNT_MAX = 100_000;
/** Entries of a folder that are looked at together. */
const LIST_PAGE_COUNT = 128;
/** Files renamed without a pause while the lock is held. */
const DELETE_TURN_COUNT = 64;
const FLUSHED_FOLDER_COUNT_MAX = 4096;
/** Somebody else removed the folder between two steps; it cannot happen for ever. */
const PUBLISH_TRY_COUNT_MAX = 16;

class DirectoryStore implements ObjectStore {
  readonly name: string;
  readonly #root: string;
  readonly #temporary: string;
  readonly #clock: Clock;
  readonly #random: (byteCount: number) => Uint8Array;
  readonly #onProblem: (message: string, error: unknown) => void;
  readonly #leftoverMs: number;
  readonly #limiter: Limiter;
  readonly #ended = new AbortController();
  /** Folders whose names are known to be on disk, with what tells them from later ones of the same name. */
  readonly #flushedFolders = new Map<string, string>();
  #lock: FolderLock | undefined;
  #lastMicros = 0;

  constructor({ path, clock, random, leftoverMs, onProblem }: DirectoryStoreOptions) {
    this.#root = resolve(path);
    this.#temporary = join(this.#root, ownFolder, "new");
    this.name = `folder ${this.#root}`;
    this.#clock = clock;
    this.#random = random;
    this.#leftoverMs = leftoverMs ?? LEFTOVER_MS;
    this.#onProblem = onProblem ?? (() => undefined);
    this.#limiter = new Limiter({ clock, concurrencyMax: CONCURRENCY_MAX, waitingCountMax: WAITING_COUNT_MAX });
  }

  async prepare(): Promise<void> {
    try {
      await fs.mkdir(this.#temporary, { recursive: true });
      await this.#sweep();
      this.#lock = new FolderLock(join(this.#root, ownFolder, "lock.sqlite"), this.#clock);
    } catch (error) {
      const { kind, cause, message } = failureOf(error, this.name);
      throw new ObjectStoreError(kind, message, { cause, missing: kind === "denied" ? "permission" : "endpoint" });
    }
  }

  put(key: string, body: Uint8Array | ObjectSource, options: PutOptions): Promise<ObjectInfo> {
    const put = this.#run(key, options, async (signal) => {
      const temporary = join(this.#temporary, this.#uniqueName());
      let isThere = false;
      try {
        const handle = await fs.open(temporary, "wx");
        isThere = true;
        let info: ObjectInfo;
        try {
          await this.#fill(handle, sourceOf(body), options.timestampMs, signal);
          // Of this file, not of what may have the key by the time it could be asked.
          info = infoOf(key, await handle.stat({ bigint: true }));
        } finally {
          await handle.close();
        }
        isThere = await this.#publish(temporary, key, options.condition, signal);
        return info;
      } finally {
        if (isThere) await this.#discard(temporary);
      }
    });
    return unwrapSource(put);
  }

  async get(key: string, options: GetBytesOptions): Promise<ObjectBytes> {
    const stream = await this.open(key, options);
    checkSize(stream, options.bytesMax);
    return { info: stream.info, bytes: await collect(stream) };
  }

  async open(key: string, options: GetOptions): Promise<ObjectStream> {
    checkRange(options.range);
    const release = await this.#turn(options);
    try {
      return await this.#run(
        key,
        options,
        async () => {
          const handle = await fs.open(
            this.#path(key),
            constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
          );
          try {
            return this.#stream(handle, infoOf(key, await handle.stat({ bigint: true })), options, release);
          } catch (error) {
            await handle.close();
            throw error;
          }
        },
        { isHeld: true, dropped: (stream) => stream.close() },
      );
    } catch (error) {
      release();
      throw error;
    }
  }

  head(key: string, call: ObjectCall): Promise<ObjectInfo> {
    return this.#run(key, call, async () => infoOf(key, await fs.lstat(this.#path(key), { bigint: true })));
  }

  async delete(keys: readonly string[], call: ObjectCall): Promise<void> {
    for (const key of keys) checkKey(key);
    for (let index = 0; index < keys.length; index += DELETE_TURN_COUNT) {
      const turn = keys.slice(index, index + DELETE_TURN_COUNT);
      await this.#run(turn[0] ?? "", call, (signal) => this.#remove(turn, signal));
    }
  }

  async *list(prefix: string, options: ListOptions): AsyncIterable<ObjectInfo> {
    checkPrefix(prefix);
    const folder = prefix.slice(0, prefix.lastIndexOf("/") + 1);
    yield* this.#walk(folder, prefix, options);
  }

  async *listFolders(prefix: string, call: ObjectCall): AsyncIterable<string> {
    checkFolderPrefix(prefix);
    for (const { name, isFolder } of await this.#entries(prefix, call)) if (isFolder) yield name;
  }

  probe(call: ObjectCall): Promise<void> {
    return probeStore(this, this.#clock, this.#uniqueName(), call);
  }

  async close(): Promise<void> {
    this.#ended.abort(new ObjectStoreError("unavailable", `${this.name} is closed`));
    this.#lock?.close();
  }

  /** Every call goes through here: bounds around it, and one kind of error out of it. */
  async #run<T>(
    key: string,
    call: ObjectCall,
    work: (signal: AbortSignal) => Promise<T>,
    { isHeld = false, dropped }: { readonly isHeld?: boolean; readonly dropped?: (result: T) => void } = {},
  ): Promise<T> {
    checkKey(key);
    const release = isHeld ? undefined : await this.#turn(call);
    try {
      const ended = this.#ended.signal;
      const result = await bounded(this.#clock, call, work, dropped === undefined ? { ended } : { ended, dropped });
      this.#limiter.succeeded();
      return result;
    } catch (error) {
      if (error === call.signal?.reason || error instanceof SourceFailure) throw error;
      throw failureOf(error, `${this.name}: ${key}`);
    } finally {
      release?.();
    }
  }

  #turn(call: ObjectCall): Promise<() => void> {
    return bounded(this.#clock, call, (signal) => this.#limiter.acquire(signal), {
      ended: this.#ended.signal,
      dropped: (release) => release(),
    });
  }

  async #fill(
    handle: fs.FileHandle,
    source: ObjectSource,
    timestampMs: number | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    for (let offset = 0; offset < source.sizeBytes; offset += WRITE_BYTES) {
      signal.throwIfAborted();
      const bytes = await readSource(source, offset, Math.min(WRITE_BYTES, source.sizeBytes - offset));
      for (let written = 0; written < bytes.length; ) {
        written += (await handle.write(bytes, written, bytes.length - written)).bytesWritten;
      }
    }
    const seconds = this.#micros(timestampMs) / 1e6;
    await handle.utimes(seconds, seconds);
    await handle.sync();
  }

  /**
   * The time of change that a new file gets: the timestamp, and below its millisecond what no other put of this process has
   * had in a row, by chance in other processes. With the file's number and size it makes the etag.
   */
  #micros(timestampMs: number | undefined): number {
    const [high = 0, low = 0] = this.#random(2);
    const wanted = (timestampMs ?? this.#clock.wallMs()) * 1000 + ((high * 256 + low) % 1000);
    if (wanted === this.#lastMicros) return this.#micros(timestampMs);
    this.#lastMicros = wanted;
    return wanted;
  }

  /** Gives a finished file its key, durably. True when the temporary name is still there. */
  async #publish(
    temporary: string,
    key: string,
    condition: PutCondition | undefined,
    signal: AbortSignal,
  ): Promise<boolean> {
    const path = this.#path(key);
    const folder = dirname(path);
    for (let tries = 1; ; tries++) {
      try {
        await this.#ensureFolder(folder);
        signal.throwIfAborted();
        if (condition?.ifNoneMatch === "*") await fs.link(temporary, path);
        else await this.#locked(signal, () => replace(temporary, path, condition?.ifMatch));
        break;
      } catch (error) {
        const { code, syscall } = error as NodeJS.ErrnoException;
        const isTaken = code === "EEXIST" && syscall === "link" && unlessMissing(() => isFile(path)) !== false;
        if (isTaken || error === unmet) {
          throw new ObjectStoreError("precondition", `${key} does not meet the condition`, { cause: error });
        }
        // Others remove folders that are empty.
        if (code !== "ENOENT") throw error;
        if (tries === PUBLISH_TRY_COUNT_MAX) {
          throw new ObjectStoreError("unavailable", `${key}: its folder is removed again and again`, { cause: error });
        }
      }
    }
    try {
      // The folder may have been removed and made again since it was looked at.
      await this.#ensureFolder(folder);
      await flushFolder(folder);
    } catch (error) {
      // Gone again, and the object with it: deleted by another.
      if (codeOf(error) !== "ENOENT") throw error;
    }
    return condition?.ifNoneMatch === "*";
  }

  async #remove(keys: readonly string[], signal: AbortSignal): Promise<void> {
    const removed: string[] = [];
    const folders = new Set<string>();
    await this.#locked(signal, () => {
      for (const key of keys) {
        const path = this.#path(key);
        const away = join(this.#temporary, this.#uniqueName());
        // Renamed first: to free the blocks of a large file takes long, and nobody may wait for the lock meanwhile.
        if (!unlessMissing(() => isFile(path) && rename(path, away))) continue;
        removed.push(away);
        folders.add(dirname(path));
      }
    });
    for (const folder of folders) await this.#tidyFolder(folder);
    for (const path of removed) await this.#discard(path);
  }

  /** Flushes a folder that lost names; removes it, and those above it, when it is empty. */
  async #tidyFolder(folder: string): Promise<void> {
    for (let path = folder; ; path = dirname(path)) {
      let isGone = path !== this.#root;
      if (isGone) {
        try {
          await fs.rmdir(path);
          this.#flushedFolders.delete(path);
        } catch (error) {
          const code = codeOf(error);
          if (code !== "ENOTEMPTY" && code !== "EEXIST" && code !== "ENOENT") throw error;
          isGone = code === "ENOENT";
        }
      }
      if (!isGone) {
        try {
          return await flushFolder(path);
        } catch (error) {
          // Removed by another process just now: then the one above is to be flushed.
          if (codeOf(error) !== "ENOENT") throw error;
        }
      }
    }
  }

  /** Makes a folder whose name, and the names above it, are on disk. */
  async #ensureFolder(folder: string): Promise<void> {
    const found = await folderIdentity(folder);
    if (found !== undefined && found === this.#flushedFolders.get(folder)) return;
    await fs.mkdir(folder, { recursive: true });
    const identity = await folderIdentity(folder);
    for (let path = folder; path !== this.#root; ) {
      path = dirname(path);
      await flushFolder(path);
    }
    if (identity === undefined) return;
    if (this.#flushedFolders.size >= FLUSHED_FOLDER_COUNT_MAX) this.#flushedFolders.clear();
    this.#flushedFolders.set(folder, identity);
  }

  #stream(handle: fs.FileHandle, info: ObjectInfo, options: GetOptions, release: () => void): ObjectStream {
    const { offsetBytes, byteCount } = placeOf(options.range, info.sizeBytes);
    const clock = this.#clock;
    const ended = this.#ended.signal;
    const broken = (error: unknown) => failureOf(error, `${this.name}: ${info.key}`);
    let isOpen = true;
    const close = () => {
      if (!isOpen) return;
      isOpen = false;
      cancelTimer();
      release();
      handle.close().catch((error: unknown) => this.#onProblem(`${info.key} could not be closed`, error));
    };
    const cancelTimer = clock.after(Math.min(options.deadlineAtMs - clock.now(), 2 ** 31 - 1), close);
    async function* read(): AsyncGenerator<Uint8Array> {
      try {
        for (let done = 0; done < byteCount; ) {
          const chunk = await bounded(
            clock,
            options,
            async () => {
              if (!isOpen) throw new ObjectStoreError("unavailable", `${info.key} was closed while it was read`);
              const bytes = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, byteCount - done));
              const { bytesRead } = await handle.read(bytes, 0, bytes.length, offsetBytes + done);
              if (bytesRead === 0) throw new ObjectStoreError("corrupt", `${info.key} was cut while it was read`);
              return bytes.subarray(0, bytesRead);
            },
            { ended },
          );
          done += chunk.length;
          yield chunk;
        }
      } catch (error) {
        throw error === options.signal?.reason ? error : broken(error);
      } finally {
        close();
      }
    }
    return { info, byteCount, chunks: read(), close };
  }

  async *#walk(folder: string, prefix: string, options: ListOptions): AsyncGenerator<ObjectInfo> {
    const after = options.startAfter ?? "";
    let page: string[] = [];
    for (const { name, isFolder } of await this.#entries(folder, options)) {
      const key = `${folder}${name}`;
      if (!isFolder) {
        if (key.startsWith(prefix) && compareKeys(key, after) > 0) page.push(key);
        if (page.length === LIST_PAGE_COUNT) {
          yield* await this.#infos(page, options);
          page = [];
        }
        continue;
      }
      const inner = `${key}/`;
      const mayMatch = inner.startsWith(prefix);
      if (!mayMatch || (compareKeys(inner, after) < 0 && !after.startsWith(inner))) continue;
      yield* await this.#infos(page, options);
      page = [];
      yield* this.#walk(inner, prefix, options);
    }
    yield* await this.#infos(page, options);
  }

  /** What is in a folder (a key with its slash), in the order in which a list has it. */
  async #entries(folder: string, call: ObjectCall): Promise<{ name: string; isFolder: boolean }[]> {
    const path = folder === "" ? this.#root : this.#path(folder.slice(0, -1));
    const found = await this.#run(folder === "" ? "root" : folder.slice(0, -1), call, async () => {
      try {
        return await fs.readdir(path, { withFileTypes: true });
      } catch (error) {
        if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return [];
        throw error;
      }
    });
    return found
      .flatMap((entry) => {
        const name = keyName(entry.name);
        if (name === undefined || !(entry.isFile() || entry.isDirectory())) return [];
        const isFolder = entry.isDirectory();
        return [{ name, isFolder, place: isFolder ? `${name}/` : name }];
      })
      .sort((a, b) => compareKeys(a.place, b.place));
  }

  async #infos(keys: readonly string[], call: ObjectCall): Promise<ObjectInfo[]> {
    const [first] = keys;
    if (first === undefined) return [];
    return this.#run(first, call, async () => {
      const found = await Promise.all(
        keys.map(async (key) => {
          try {
            return [infoOf(key, await fs.lstat(this.#path(key), { bigint: true }))];
          } catch (error) {
            if (codeOf(error) === "ENOENT") return [];
            throw error;
          }
        }),
      );
      return found.flat();
    });
  }

  async #locked<T>(signal: AbortSignal, work: () => T): Promise<T> {
    if (this.#lock === undefined) throw new ObjectStoreError("unavailable", `${this.name} is not open`);
    return this.#lock.hold(signal, work);
  }

  /** By the file system's own clock, which may be another machine's. */
  async #sweep(): Promise<void> {
    const reference = join(this.#temporary, this.#uniqueName());
    await fs.writeFile(reference, "", { flag: "wx" });
    const nowMs = (await fs.lstat(reference)).ctimeMs;
    await fs.rm(reference);
    for (const name of await fs.readdir(this.#temporary)) {
      const path = join(this.#temporary, name);
      const found = await fs.lstat(path).catch((error: unknown) => {
        if (codeOf(error) === "ENOENT") return undefined;
        throw error;
      });
      if (found !== undefined && nowMs - found.ctimeMs > this.#leftoverMs) await this.#discard(path);
    }
  }

  async #discard(path: string): Promise<void> {
    try {
      await fs.rm(path, { force: true });
    } catch (error) {
      this.#onProblem(`${path} is left over; a later start removes it`, error);
    }
  }

  #uniqueName(): string {
    return Buffer.from(this.#random(16)).toString("hex");
  }

  #path(key: string): string {
    return join(this.#root, ...key.split("/").map(fileName));
  }
}

/** Thrown inside of the lock, where a condition does not hold. */
const unmet = new Error("another etag");

/** Puts a file in the place of another; while the lock is held. */
function replace(temporary: string, path: string, etag: string | undefined): void {
  if (etag !== undefined) {
    const found = unlessMissing(() => lstatSync(path, { bigint: true }));
    if (found === undefined || !found.isFile() || etagOf(found) !== etag) throw unmet;
  }
  renameSync(temporary, path);
}

function isFile(path: string): boolean {
  return lstatSync(path).isFile();
}

function rename(from: string, to: string): boolean {
  renameSync(from, to);
  return true;
}

function unlessMissing<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined;
    throw error;
  }
}

/** A name of a key as a file's name. Dots at the beginning are ours. */
function fileName(name: string): string {
  return name.replaceAll("%", "%25").replace(/^\./, "%2E");
}

/** Back again; undefined for files that are no objects. */
function keyName(name: string): string | undefined {
  if (name.startsWith(".")) return undefined;
  const key = name.replace(/^%2E/, ".").replaceAll("%25", "%");
  return fileName(key) === name ? key : undefined;
}

interface Found {
  readonly size: bigint;
  readonly ino: bigint;
  readonly mtimeNs: bigint;
  isFile(): boolean;
}

function infoOf(key: string, found: Found): ObjectInfo {
  if (!found.isFile()) throw new ObjectStoreError("not_found", `${key} is no object`);
  return {
    key,
    sizeBytes: Number(found.size),
    etag: etagOf(found),
    timestampMs: Math.floor(microsOf(found) / 1000),
  };
}

function etagOf(found: Found): string {
  return `${microsOf(found).toString(36)}-${found.size.toString(36)}-${found.ino.toString(36)}`;
}

/** Rounded: times are set in fractions of seconds, which lose a little. */
function microsOf({ mtimeNs }: Found): number {
  return Number((mtimeNs + 500n) / 1000n);
}

/** Tells a folder from a later one of the same name. */
async function folderIdentity(path: string): Promise<string | undefined> {
  try {
    const { ino, birthtimeNs } = await fs.lstat(path, { bigint: true });
    return `${ino}-${birthtimeNs}`;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function flushFolder(path: string): Promise<void> {
  const folder = await fs.open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
}

function failureOf(error: unknown, what: string): ObjectStoreError {
  if (error instanceof ObjectStoreError) return error;
  const failed = (kind: ObjectStoreError["kind"], reason: string) =>
    new ObjectStoreError(kind, `${what}: ${reason}`, { cause: error });
  switch (codeOf(error)) {
    case "ENOENT":
      return failed("not_found", "there is no such object");
    case "ENOTDIR":
    case "EISDIR":
    case "EEXIST":
    case "ENOTEMPTY":
      return failed("denied", "a name cannot be an object and a folder");
    case "ENAMETOOLONG":
      return failed("denied", "the name is too long for the file system");
    case "ELOOP":
      return failed("denied", "it is a link, and no object");
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return failed("denied", "this process may not do that there");
    case "EMFILE":
    case "ENFILE":
      return failed("throttled", "too many files are open");
    case "ENOSPC":
    case "EDQUOT":
      return failed("unavailable", "the disk is full");
    default:
      return failed("unavailable", error instanceof Error ? error.message : String(error));
  }
}
