/** The WAL beside a database file, to read. It carries no locks: any descriptor of it may be opened and closed. */
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import { decodeWalHeader, type WalHeader, walHeaderBytes } from "../../ltx/wal-format.ts";
import type { WalSource } from "../../ltx/wal-reader.ts";

export interface OpenWal extends WalSource {
  close(): Promise<void>;
}

/** One that is not there reads as empty. */
export async function openWal(fileSystem: FileSystem, databasePath: string): Promise<OpenWal> {
  let file: OpenFile;
  try {
    file = await fileSystem.openFile(`${databasePath}-wal`, "read");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return { read: () => 0, close: async () => undefined };
  }
  return {
    async read(offset, target) {
      const bytes = await file.read(offset, target.length);
      target.set(bytes);
      return bytes.length;
    },
    close: () => file.close(),
  };
}

/** The header of the life that a WAL is in; undefined when there are no frames. */
export async function readWalHeader(wal: WalSource): Promise<WalHeader | undefined> {
  const bytes = Buffer.alloc(walHeaderBytes);
  return decodeWalHeader(bytes.subarray(0, await wal.read(0, bytes)));
}
