/**
 * The redo log of all local heads: replayed before a database is opened, and begun when two WALs are flushed at one time
 * for the first time; a server whose databases are written one at a time has none.
 */
import { dirname, join } from "node:path";
import type { FailPoints } from "../../fail-points.ts";
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import type { RedoFileSystem } from "../../ltx/redo-files.ts";
import { RedoLog } from "../../ltx/redo-log.ts";
import type { ReplaySummary, ReplayTarget } from "../../ltx/redo-replay.ts";
import type { EngineLog } from "../options.ts";

export interface RedoOptions {
  readonly fileSystem: FileSystem;
  /** Holds the files; made when it is needed. */
  readonly folderPath: string;
  /** Size of each of the two files. */
  readonly fileBytes: number;
  readonly log: EngineLog;
  readonly failPoints: FailPoints;
  /** Path of the WAL that a key names; undefined when its database is gone, or has its head elsewhere. */
  readonly walPath: (key: string) => Promise<string | undefined>;
}

const names = ["redo-0", "redo-1"];
const zeroBytes = 1024 * 1024;

export class Redo {
  readonly #options: RedoOptions;
  #log: RedoLog | undefined;
  #opening: Promise<void> | undefined;
  #isClosed = false;

  private constructor(options: RedoOptions, log: RedoLog | undefined) {
    this.#options = options;
    this.#log = log;
  }

  /** Replays what an earlier server left. No database may be open, or be opened before it ends. */
  static async open(options: RedoOptions): Promise<Redo> {
    const { fileSystem, folderPath, log } = options;
    const [first = 0, second = 0] = names.map((name) => fileSystem.sizeBytes(join(folderPath, name)));
    if (first === 0 && second === 0) return new Redo(options, undefined);
    if (first !== second) {
      // Their making was cut off, so nothing was ever written to them.
      await fileSystem.remove(folderPath);
      return new Redo(options, undefined);
    }
    // Their size stays: a start must need no room.
    const redo = await openLog({ ...options, fileBytes: first });
    if (redo.replayed.walCount > 0) tell(log, redo.replayed);
    return new Redo(options, redo);
  }

  /** Undefined until it is begun. */
  get log(): RedoLog | undefined {
    return this.#log;
  }

  /** Begins in the background, unless it has begun. When that fails, WALs are flushed one by one as before. */
  begin(): void {
    if (this.#opening !== undefined || this.#log !== undefined || this.#isClosed) return;
    const { log } = this.#options;
    this.#opening = openLog(this.#options).then(
      async (redo) => {
        if (this.#isClosed) await redo.close();
        else this.#log = redo;
      },
      async (error: unknown) => {
        log("error", "the redo log could not be made; logs are flushed one by one", { error });
        await this.#remove();
      },
    );
  }

  async #remove(): Promise<void> {
    const { fileSystem, folderPath, log } = this.#options;
    try {
      await fileSystem.remove(folderPath);
    } catch (error) {
      log("warn", "the files of a redo log that was never used could not be removed", { error });
    }
  }

  /** After the last flush. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#opening;
    const log = this.#log;
    this.#log = undefined;
    await log?.close();
  }
}

function tell(log: EngineLog, { walCount, recordCount }: ReplaySummary): void {
  log("info", "logs were completed from the redo log", { databases: walCount, records: recordCount });
}

async function openLog({ fileSystem, folderPath, fileBytes, log, walPath, failPoints }: RedoOptions): Promise<RedoLog> {
  await fileSystem.makeFolder(folderPath);
  await fileSystem.flushFolder(dirname(folderPath));
  return RedoLog.open({
    fileSystem: redoFiles(fileSystem, failPoints),
    folder: folderPath,
    fileBytes,
    openWal: (key) => replayTarget(fileSystem, walPath, key),
    onFault: (error) =>
      log("error", "the redo log cannot be written any more; logs are flushed one by one until the next start", {
        error,
      }),
  });
}

/** Files of a fixed size: a write never changes it, so each takes one flush of data alone. */
function redoFiles(fileSystem: FileSystem, failPoints: FailPoints): RedoFileSystem {
  return {
    async open(path, byteCount) {
      const file = await fileSystem.openFile(path, "log");
      try {
        await resize(file, byteCount);
        await fileSystem.flushFolder(dirname(path));
      } catch (error) {
        await file.close();
        throw error;
      }
      return {
        readAll: () => file.read(0, byteCount),
        async write(offset, bytes) {
          failPoints.reach("redo.write.begin");
          await file.write(offset, bytes);
          failPoints.reach("redo.write.end");
        },
        close: () => file.close(),
      };
    },
  };
}

/** Written, not only made longer: the first write into a hole would change more than data. */
async function resize(file: OpenFile, byteCount: number): Promise<void> {
  const sizeBytes = await file.sizeBytes();
  if (sizeBytes > byteCount) await file.truncate(byteCount);
  const zeros = Buffer.alloc(Math.min(zeroBytes, byteCount));
  for (let offset = sizeBytes; offset < byteCount; offset += zeros.length) {
    await file.write(offset, zeros.subarray(0, Math.min(zeros.length, byteCount - offset)));
  }
}

async function replayTarget(
  fileSystem: FileSystem,
  walPath: RedoOptions["walPath"],
  key: string,
): Promise<ReplayTarget | undefined> {
  const path = await walPath(key);
  if (path === undefined) return undefined;
  const file = await fileSystem.openFile(path, "log");
  return {
    async read(offset, target) {
      const bytes = await file.read(offset, target.length);
      target.set(bytes);
      return bytes.length;
    },
    write: (offset, bytes) => file.write(offset, bytes),
    async flush() {
      await file.flush();
      await fileSystem.flushFolder(dirname(path));
    },
    close: () => file.close(),
  };
}

/** What names the WAL of a database for a replay: a lineage is given out once, and ids may come again. */
export function redoKey(id: string, lineage: string): string {
  return `${lineage}/${id}`;
}

/** The reverse; undefined for a key of another kind. */
export function parseRedoKey(key: string): { readonly id: string; readonly lineage: string } | undefined {
  const at = key.indexOf("/");
  return at < 0 ? undefined : { lineage: key.slice(0, at), id: key.slice(at + 1) };
}

/** Where the redo log of a local folder lies. */
export const redoFolder = (directoryPath: string): string => join(directoryPath, "redo");
