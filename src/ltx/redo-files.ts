/** The files of the redo log, passed in so that tests can hold them back, make them fail, or lose what was not flushed. */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";

/** A file of a fixed size. */
export interface RedoFile {
  readAll(): Promise<Buffer>;
  /** Resolves when the bytes are on the disk. After a rejection nothing is known of them. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/** Makes and opens them. */
export interface RedoFileSystem {
  /** Opens a file; one that is not there, or has another size, first gets `byteCount` bytes, zeros if new, and its name is flushed. */
  open(path: string, byteCount: number): Promise<RedoFile>;
}

const chunkBytes = 1024 * 1024;

/** The machine's own. Every write is flushed as part of it: one trip to the thread pool, and the size never changes. */
export const nodeRedoFileSystem: RedoFileSystem = {
  async open(path, byteCount) {
    const { O_RDWR, O_CREAT, O_DSYNC } = constants;
    const file = await open(path, O_RDWR | O_CREAT | O_DSYNC, 0o600);
    try {
      await resize(file, byteCount);
      const folder = await open(dirname(path), "r");
      await folder.sync().finally(() => folder.close());
    } catch (error) {
      await file.close();
      throw error;
    }
    return {
      readAll: async () => readFully(file, byteCount),
      write: (offset, bytes) => writeFully(file, offset, bytes),
      close: () => file.close(),
    };
  },
};

/** Written, not only allocated: the first write into a hole would change the file's metadata. */
async function resize(file: FileHandle, byteCount: number): Promise<void> {
  const { size } = await file.stat();
  if (size > byteCount) await file.truncate(byteCount);
  const zeros = Buffer.alloc(chunkBytes);
  for (let offset = size; offset < byteCount; offset += chunkBytes) {
    await writeFully(file, offset, zeros.subarray(0, Math.min(chunkBytes, byteCount - offset)));
  }
}

async function readFully(file: FileHandle, byteCount: number): Promise<Buffer> {
  const bytes = Buffer.alloc(byteCount);
  let length = 0;
  while (length < byteCount) {
    const { bytesRead } = await file.read(bytes, length, byteCount - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return bytes.subarray(0, length);
}

async function writeFully(file: FileHandle, offset: number, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}
