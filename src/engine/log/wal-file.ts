/** The WAL beside a database file, to read. It carries no locks: any descriptor of it may be opened and closed. */
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import { decodeWalHeader, type WalHeader, walHeaderBytes } from "../../ltx/wal-format.ts";
import type { WalSource } from "../../ltx/wal-reader.ts";

export interface OpenWal extends WalSource {
  close(): Promise<void>;
}

/** What was just written is in the kernel's memory: reading a little of it costs less than asking others to do it. */
const readNowBytesMax = 64 * 1024;

/** One that is not there reads as empty. */
export async function openWal(fileSystem: FileSystem, databasePath: string): Promise<OpenWal> {
  const path = `${databasePath}-wal`;
  let descriptor: number;
  try {
    descriptor = await fileSystem.openForFlush(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return { read: () => 0, close: async () => undefined };
  }
  let file: Promise<OpenFile> | undefined;
  return {
    read(offset, target) {
      if (target.length <= readNowBytesMax) return fileSystem.readNow(descriptor, offset, target);
      file ??= fileSystem.openFile(path, "read");
      return file.then(async (opened) => {
        const bytes = await opened.read(offset, target.length);
        target.set(bytes);
        return bytes.length;
      });
    },
    async close() {
      fileSystem.close(descriptor);
      await (await file)?.close();
    },
  };
}

/** The header of the life that a WAL is in; undefined when there are no frames. */
export async function readWalHeader(wal: WalSource): Promise<WalHeader | undefined> {
  const bytes = Buffer.alloc(walHeaderBytes);
  return decodeWalHeader(bytes.subarray(0, await wal.read(0, bytes)));
}
