/** The lock of the local folder, which is that of its catalog: who has it may be sure that no server changes the files. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import SQLite from "better-sqlite3";

export interface FolderHold {
  /** A server has the folder. */
  readonly isServed: boolean;
  /** Lets servers start again. */
  release(): void;
}

/** Takes the lock where there is something to lock and nobody has it. Changes nothing in the catalog. */
export function holdFolder(localDirectoryPath: string): FolderHold {
  const path = join(localDirectoryPath, "catalog.sqlite");
  if (!existsSync(path)) return { isServed: false, release: () => undefined };
  const catalog = new SQLite(path, { timeout: 0, fileMustExist: true });
  try {
    catalog.pragma("locking_mode = EXCLUSIVE");
    catalog.exec("BEGIN EXCLUSIVE");
  } catch (error) {
    catalog.close();
    if (!(error instanceof SQLite.SqliteError)) throw error;
    // A damaged catalog is the next server's to replace; the databases are there all the same.
    return { isServed: error.code.startsWith("SQLITE_BUSY"), release: () => undefined };
  }
  return {
    isServed: false,
    release() {
      catalog.exec("ROLLBACK");
      catalog.close();
    },
  };
}
