/**
 * The folder of a database's log: one LTX file for each batch, `<txid>-<txid>.ltx`. Files that nobody needs any more go, the
 * newest never: its header says how far the WAL was sealed. `gap` says that frames of the WAL were copied back which no file
 * holds, so that the next file has to hold the whole database.
 */
import { dirname, join } from "node:path";
import type { FileSystem } from "../../files/file-system.ts";
import { decodeHeader, headerBytes, type LtxHeader } from "../../ltx/header.ts";
import { LtxFailure } from "../../ltx/ltx-failure.ts";
import { ltxFileName, parseLtxFileName } from "../../ltx/txid.ts";
import { decodeWalHeader, frameHeaderBytes, walHeaderBytes } from "../../ltx/wal-format.ts";
import type { WalPosition } from "../../ltx/wal-reader.ts";
import { openWal } from "./wal-file.ts";

const gapName = "gap";
/** Of a file that is being written. */
const temporarySuffix = ".new";
/** Of a file that was damaged and put aside. */
const damagedSuffix = ".damaged";

/** A file of the log, by its header. */
export interface FoundBatch {
  readonly txid: bigint;
  readonly path: string;
  readonly byteCount: number;
  readonly header: LtxHeader;
}

export interface FoundLog {
  /** Ascending. */
  readonly batches: readonly FoundBatch[];
  /** The largest number that any file had, damaged ones among them; 0: there is none. */
  readonly lastTxid: bigint;
  readonly hasGap: boolean;
  /** Names of files that are no LTX files any more and were put aside. */
  readonly damaged: readonly string[];
}

export class LogFolder {
  readonly path: string;
  readonly #fileSystem: FileSystem;
  #isMade = false;

  constructor(fileSystem: FileSystem, path: string) {
    this.#fileSystem = fileSystem;
    this.path = path;
  }

  batchPath(txid: bigint): string {
    return join(this.path, ltxFileName({ minTxid: txid, maxTxid: txid }));
  }

  temporaryPath(txid: bigint): string {
    return `${this.batchPath(txid)}${temporarySuffix}`;
  }

  /** Reads what is there, removes what an interrupted seal has left, and puts damaged files aside. */
  async read(): Promise<FoundLog> {
    const fileSystem = this.#fileSystem;
    const batches: FoundBatch[] = [];
    const damaged: string[] = [];
    let hasGap = false;
    let lastTxid = 0n;
    const names = [...(await fileSystem.list(this.path))].sort();
    this.#isMade = names.length > 0;
    for (const name of names) {
      const path = join(this.path, name);
      if (name === gapName) hasGap = true;
      if (name.endsWith(temporarySuffix)) await fileSystem.remove(path);
      const range = parseLtxFileName(name.endsWith(damagedSuffix) ? name.slice(0, -damagedSuffix.length) : name);
      if (range === undefined || range.minTxid !== range.maxTxid) continue;
      const txid = range.maxTxid;
      if (txid > lastTxid) lastTxid = txid;
      if (name.endsWith(damagedSuffix)) {
        hasGap = true;
        continue;
      }
      const header = headerIn(await fileSystem.readStart(path, headerBytes), txid);
      if (header === undefined) {
        await fileSystem.rename(path, `${path}${damagedSuffix}`);
        damaged.push(name);
        hasGap = true;
      } else batches.push({ txid, path, byteCount: fileSystem.sizeBytes(path), header });
    }
    return { batches, lastTxid, hasGap, damaged };
  }

  /** To be called before the first file is written. */
  async make(): Promise<void> {
    if (this.#isMade) return;
    await this.#fileSystem.makeFolder(this.path);
    await this.#fileSystem.flushFolder(dirname(this.path));
    this.#isMade = true;
  }

  /** On the disk when it resolves. */
  async markGap(): Promise<void> {
    await this.make();
    await this.#fileSystem.writeFlushed(join(this.path, gapName), new Uint8Array(0));
    await this.#fileSystem.flushFolder(this.path);
  }

  async closeGap(): Promise<void> {
    await this.#fileSystem.remove(join(this.path, gapName));
    for (const name of await this.#fileSystem.list(this.path)) {
      if (name.endsWith(damagedSuffix)) await this.#fileSystem.remove(join(this.path, name));
    }
  }
}

function headerIn(bytes: Buffer | undefined, txid: bigint): LtxHeader | undefined {
  try {
    const header = decodeHeader(bytes ?? new Uint8Array(0));
    return header.minTxid === txid && header.maxTxid === txid ? header : undefined;
  } catch (error) {
    if (error instanceof LtxFailure) return undefined;
    throw error;
  }
}

/** Up to where a file says that the WAL was sealed. */
export function sealedEnd(header: LtxHeader): WalPosition {
  const { walSalt1, walSalt2, walOffset, walBytes } = header;
  return { walSalt1, walSalt2, endOffset: walOffset + walBytes };
}

/** What a start after an unclean end wants to know of a log. */
export interface LogState {
  /** The newest batch that has a file; `baseTxid` where none has. */
  readonly txid: bigint;
  /** True when the WAL is known to hold nothing that is in no file. */
  readonly isSealed: boolean;
}

/**
 * Looks at a log whose database nobody has open. Positions up to `txid + 2` may have been given out if it is not sealed, up to
 * `txid + 1` if it is.
 */
export async function inspectLog(
  fileSystem: FileSystem,
  folderPath: string,
  headPath: string,
  baseTxid = 0n,
): Promise<LogState> {
  const { batches, lastTxid, hasGap } = await new LogFolder(fileSystem, folderPath).read();
  const newest = batches.at(-1);
  const txid = lastTxid > baseTxid ? lastTxid : baseTxid;
  if (fileSystem.sizeBytes(`${headPath}-wal`) < walHeaderBytes) return { txid, isSealed: !hasGap };
  if (newest === undefined || hasGap) return { txid, isSealed: false };
  return { txid, isSealed: await isSealedTo(fileSystem, headPath, sealedEnd(newest.header)) };
}

/** Whether a WAL that is not empty holds no commit behind `end`. When in doubt it says no. */
export async function isSealedTo(fileSystem: FileSystem, headPath: string, end: WalPosition): Promise<boolean> {
  const wal = await openWal(fileSystem, headPath);
  try {
    const bytes = Buffer.alloc(walHeaderBytes);
    const header = decodeWalHeader(bytes.subarray(0, await wal.read(0, bytes)));
    if (header === undefined) return true;
    if (header.walSalt1 !== end.walSalt1 || header.walSalt2 !== end.walSalt2) return false;
    const frame = Buffer.alloc(frameHeaderBytes);
    if ((await wal.read(end.endOffset, frame)) < frameHeaderBytes) return true;
    return frame.readUInt32BE(8) !== end.walSalt1 || frame.readUInt32BE(12) !== end.walSalt2;
  } catch (error) {
    if (error instanceof LtxFailure) return false;
    throw error;
  } finally {
    await wal.close();
  }
}
