/** The few file operations that the server needs, passed in so that tests can hold them back or make them fail. */
import {
  closeSync,
  constants,
  fdatasync,
  fstatSync,
  open,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from "node:fs";
import * as fs from "node:fs/promises";

/** A file that is open. Its calls may overlap. Everything rejects with Node's own errors, `code` set. */
export interface OpenFile {
  sizeBytes(): Promise<number>;
  /** Bytes from there on: all that were asked for, or fewer where the file ends. They belong to the caller. */
  read(offsetBytes: number, byteCount: number): Promise<Buffer>;
  /** All of them; the file grows as needed. */
  write(offsetBytes: number, bytes: Uint8Array): Promise<void>;
  /** Cuts it, or makes it longer by zeros. */
  truncate(sizeBytes: number): Promise<void>;
  /** Puts all of it on the disk, its length too. After a failure: never flush it again, write another file. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

/**
 * - `read`: it has to be there.
 * - `write`: it has to be there; it is read and written.
 * - `make`: an empty one is made, in place of what has the name.
 * - `log`: as `write`, and made where there is none; every write is on the disk when it resolves.
 */
export type OpenMode = "read" | "write" | "make" | "log";

/** What a disk, or the memory behind a tmpfs, has. */
export interface Space {
  readonly totalBytes: number;
  /** Free for this process. */
  readonly freeBytes: number;
  /** True for a tmpfs: its files end with the machine. */
  readonly isMemory: boolean;
}

/** Paths are absolute. Everything rejects with Node's own errors, `code` set. */
export interface FileSystem {
  makeFolder(path: string): Promise<void>;
  /** Names in a folder; none when it does not exist. */
  list(path: string): Promise<readonly string[]>;
  /** Bytes of a file, or undefined when there is none. For small files, and never for a database that SQLite has open. */
  read(path: string): Promise<Buffer | undefined>;
  /** The first bytes of a file, at most `byteCount`; undefined when there is none. The same warning. */
  readStart(path: string, byteCount: number): Promise<Buffer | undefined>;
  /** Writes a new file and flushes it; an old one of that name is replaced in place. */
  writeFlushed(path: string, bytes: Uint8Array): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  /** Removes a file or a whole folder; harmless when it is gone. */
  remove(path: string): Promise<void>;
  /** Flushes the names in a folder. */
  flushFolder(path: string): Promise<void>;
  /** When a file was made, milliseconds since 1970; undefined when there is none. */
  createTimeMs(path: string): Promise<number | undefined>;
  /** Bytes of a file, 0 when there is none. Answers at once: a look at what the kernel has in memory. */
  sizeBytes(path: string): number;
  /** A descriptor for `flush` alone. */
  openForFlush(path: string): Promise<number>;
  /** fdatasync. After a failure the kernel may have dropped what was not written: never flush that file again. */
  flush(descriptor: number): Promise<void>;
  /**
   * Fills `target` from an offset of a file that was opened for `flush`, and returns the bytes that were there. At once: for
   * what was written a moment ago, and is in memory.
   */
  readNow(descriptor: number, offsetBytes: number, target: Uint8Array): number;
  /** False when the descriptor's file has been removed: flushing it would keep nothing. */
  isLinked(descriptor: number): boolean;
  close(descriptor: number): void;
  openFile(path: string, mode: OpenMode): Promise<OpenFile>;
  /** Of the file system that holds a path which is there. */
  space(path: string): Promise<Space>;
}

/** The machine's own files. */
export const nodeFileSystem: FileSystem = {
  async makeFolder(path) {
    await fs.mkdir(path, { recursive: true });
  },
  list: async (path) => unlessMissing(() => readdirSync(path)) ?? [],
  // Small reads at once: a trip through the thread pool for each step costs ten times as much, and a start makes thousands.
  read: async (path) => unlessMissing(() => readFileSync(path)),
  readStart: async (path, byteCount) =>
    unlessMissing(() => {
      const descriptor = openSync(path, "r");
      try {
        const bytes = Buffer.alloc(byteCount);
        return bytes.subarray(0, readSync(descriptor, bytes, 0, byteCount, 0));
      } finally {
        closeSync(descriptor);
      }
    }),
  writeFlushed: (path, bytes) => fs.writeFile(path, bytes, { flush: true }),
  rename: (from, to) => fs.rename(from, to),
  remove: (path) => fs.rm(path, { recursive: true, force: true }),
  async flushFolder(path) {
    const folder = await fs.open(path, "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  },
  async createTimeMs(path) {
    const found = statSync(path, { throwIfNoEntry: false });
    return found && Math.floor(found.birthtimeMs || found.ctimeMs);
  },
  sizeBytes: (path) => statSync(path, { throwIfNoEntry: false })?.size ?? 0,
  openForFlush: (path) =>
    new Promise((resolve, reject) => {
      open(path, "r+", (error, descriptor) => (error ? reject(error) : resolve(descriptor)));
    }),
  flush: (descriptor) =>
    new Promise((resolve, reject) => {
      fdatasync(descriptor, (error) => (error ? reject(error) : resolve()));
    }),
  readNow: (descriptor, offsetBytes, target) => readSync(descriptor, target, 0, target.length, offsetBytes),
  isLinked: (descriptor) => fstatSync(descriptor).nlink > 0,
  close: closeSync,
  async openFile(path, mode) {
    return new NodeFile(await fs.open(path, openFlags[mode] | constants.O_NOFOLLOW));
  },
  async space(path) {
    const { type, bsize, blocks, bavail } = await fs.statfs(path);
    return { totalBytes: blocks * bsize, freeBytes: bavail * bsize, isMemory: memoryTypes.has(type) };
  },
};

const openFlags: Readonly<Record<OpenMode, number>> = {
  read: constants.O_RDONLY,
  write: constants.O_RDWR,
  make: constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC,
  log: constants.O_RDWR | constants.O_CREAT | constants.O_DSYNC,
};

/** Numbers that Linux gives to tmpfs and ramfs. */
const memoryTypes: ReadonlySet<number> = new Set([0x0102_1994, 0x8584_58f6]);

class NodeFile implements OpenFile {
  readonly #handle: fs.FileHandle;

  constructor(handle: fs.FileHandle) {
    this.#handle = handle;
  }

  async sizeBytes(): Promise<number> {
    return (await this.#handle.stat()).size;
  }

  async read(offsetBytes: number, byteCount: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafeSlow(byteCount);
    let filled = 0;
    while (filled < byteCount) {
      const { bytesRead } = await this.#handle.read(bytes, filled, byteCount - filled, offsetBytes + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return bytes.subarray(0, filled);
  }

  async write(offsetBytes: number, bytes: Uint8Array): Promise<void> {
    for (let written = 0; written < bytes.length; ) {
      const { bytesWritten } = await this.#handle.write(bytes, written, bytes.length - written, offsetBytes + written);
      written += bytesWritten;
    }
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#handle.truncate(sizeBytes);
  }

  flush(): Promise<void> {
    return this.#handle.datasync();
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

function unlessMissing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
