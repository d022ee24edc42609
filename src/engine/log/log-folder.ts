/**
 * The folder of a database's log: one LTX file for each closed batch, `<txid>-<txid>.ltx`, and parts of the open one. Files
 * that nobody needs any more go, the newest never: its header says how far the WAL was sealed. `gap` says that frames of the
 * WAL were copied back which no file holds, so that the next file has to hold the whole database.
 */
import { basename, dirname, join } from "node:path";
import type { FileSystem } from "../../files/file-system.ts";
import { decodeHeader, headerBytes, type LtxHeader } from "../../ltx/header.ts";
import { LtxFailure } from "../../ltx/ltx-failure.ts";
import { ltxFileName, parseLtxFileName } from "../../ltx/txid.ts";
import { decodeWalHeader, frameHeaderBytes, walHeaderBytes } from "../../ltx/wal-format.ts";
import type { WalPosition } from "../../ltx/wal-reader.ts";
import { mergeParts, type Part, parsePartName, partName, partTxid } from "./parts.ts";
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

/** The newest batch, which stays open: it has no file, so nobody can have tried to upload it. */
export interface OpenBatch {
  readonly txid: bigint;
  readonly part: Part;
  /** Of the next part. */
  readonly nextIndex: number;
}

export interface FoundLog {
  /** Ascending. */
  readonly batches: readonly FoundBatch[];
  /** The largest number that any file had, damaged ones among them; 0: there is none. */
  readonly lastTxid: bigint;
  readonly hasGap: boolean;
  /** Names of files that are no LTX files any more and were put aside. */
  readonly damaged: readonly string[];
  readonly open: OpenBatch | undefined;
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

  partPath(txid: bigint, index: number): string {
    return join(this.path, partName(txid, index));
  }

  /** Of a file until it gets its name. */
  temporaryPath(path: string): string {
    return `${path}${temporarySuffix}`;
  }

  /**
   * Reads what an earlier server has left: removes what an interrupted seal has left, closes the open batch (whose parts
   * become one file), and puts damaged files aside. The newest batch stays open where `staysOpen` says so, which is told up to
   * where its parts have the WAL.
   */
  async read(staysOpen?: (txid: bigint, end: WalPosition) => Promise<boolean>): Promise<FoundLog> {
    const fileSystem = this.#fileSystem;
    const { files, parts, hasGap } = await this.#list();
    const batches: FoundBatch[] = [];
    const damaged: string[] = [];
    let lastTxid = 0n;
    const last = (txid: bigint): void => {
      if (txid > lastTxid) lastTxid = txid;
    };
    for (const { name, txid, isDamaged } of files) {
      last(txid);
      if (isDamaged) continue;
      const path = join(this.path, name);
      const header = headerIn(await fileSystem.readStart(path, headerBytes), txid);
      if (header === undefined) damaged.push(await this.#putAside(name));
      else batches.push({ txid, path, byteCount: fileSystem.sizeBytes(path), header });
    }
    let open: OpenBatch | undefined;
    const newestTxid = [...parts.keys()].at(-1);
    for (const [txid, names] of parts) {
      if (txid <= lastTxid) {
        // They are in the file of their batch.
        for (const name of names) await fileSystem.remove(join(this.path, name));
        continue;
      }
      const left = await this.#left(names);
      const end = left?.at(-1);
      if (left !== undefined && end !== undefined && txid === newestTxid) {
        if (await staysOpen?.(txid, sealedEnd(end.header))) open = await this.#openLeft(txid, left);
        if (open !== undefined) break;
      }
      last(txid);
      const batch = left && (await unlessDamaged(() => this.close(txid, left)));
      if (batch !== undefined) batches.push(batch);
      else for (const name of names) damaged.push(await this.#putAside(name));
    }
    return { batches, lastTxid, hasGap: hasGap || damaged.length > 0, damaged, open };
  }

  /** What is there, looked at only: the header of the newest file, and the largest number that any has. */
  async newest(): Promise<{ readonly txid: bigint; readonly header: LtxHeader | undefined; readonly hasGap: boolean }> {
    const { files, parts, hasGap } = await this.#list();
    const file = files.at(-1);
    const part = [...parts].at(-1);
    const isPart = part !== undefined && (file === undefined || part[0] > file.txid);
    const txid = isPart ? part[0] : (file?.txid ?? 0n);
    const name = isPart ? part[1].at(-1) : file?.name;
    if (name === undefined) return { txid, header: undefined, hasGap };
    const bytes = await this.#fileSystem.readStart(join(this.path, name), headerBytes);
    const header = isPart ? partHeaderIn(bytes, name) : headerIn(bytes, txid);
    return { txid, header, hasGap: hasGap || header === undefined };
  }

  /** Names in the folder, ascending. */
  async #list() {
    const fileSystem = this.#fileSystem;
    const files: { readonly name: string; readonly txid: bigint; readonly isDamaged: boolean }[] = [];
    const parts = new Map<bigint, string[]>();
    let hasGap = false;
    const names = [...(await fileSystem.list(this.path))].sort();
    this.#isMade = names.length > 0;
    for (const name of names) {
      if (name === gapName) hasGap = true;
      if (name.endsWith(temporarySuffix)) await fileSystem.remove(join(this.path, name));
      const isDamaged = name.endsWith(damagedSuffix);
      hasGap ||= isDamaged;
      const range = parseLtxFileName(isDamaged ? name.slice(0, -damagedSuffix.length) : name);
      if (range?.minTxid !== undefined && range.minTxid === range.maxTxid) {
        files.push({ name, txid: range.maxTxid, isDamaged });
      }
      const part = parsePartName(name);
      if (part === undefined) continue;
      const others = parts.get(part.txid);
      if (others === undefined) parts.set(part.txid, [name]);
      else others.push(name);
    }
    return { files, parts, hasGap };
  }

  /** The parts of a batch; undefined when one of them is damaged. */
  async #left(names: readonly string[]): Promise<readonly Part[] | undefined> {
    const parts: Part[] = [];
    for (const name of names) {
      const path = join(this.path, name);
      const header = partHeaderIn(await this.#fileSystem.readStart(path, headerBytes), name);
      if (header === undefined) return undefined;
      parts.push({ path, byteCount: this.#fileSystem.sizeBytes(path), header });
    }
    return parts;
  }

  /** Makes one part of those of a batch that stays open; undefined when one of them is damaged. */
  async #openLeft(txid: bigint, parts: readonly Part[]): Promise<OpenBatch | undefined> {
    const [only] = parts;
    const part = parts.length === 1 ? only : await unlessDamaged(() => this.merge(parts));
    const lastIndex = parsePartName(basename(parts.at(-1)?.path ?? ""))?.index;
    return part && lastIndex !== undefined ? { txid, part, nextIndex: lastIndex + 1 } : undefined;
  }

  /** Makes one file of the parts of a batch, on the disk when it resolves; the parts are gone then. */
  async close(txid: bigint, parts: readonly Part[]): Promise<FoundBatch> {
    const fileSystem = this.#fileSystem;
    const path = this.batchPath(txid);
    const [only] = parts;
    if (only !== undefined && parts.length === 1) {
      if (only.path !== path) {
        await fileSystem.rename(only.path, path);
        await fileSystem.flushFolder(this.path);
      }
      return { txid, path, byteCount: only.byteCount, header: only.header };
    }
    const { header, byteCount } = await mergeParts(fileSystem, parts, this.temporaryPath(path));
    await fileSystem.rename(this.temporaryPath(path), path);
    await fileSystem.flushFolder(this.path);
    for (const part of parts) await fileSystem.remove(part.path);
    return { txid, path, byteCount, header };
  }

  /** Puts one part in the place of the first of several that follow one another. */
  async merge(parts: readonly Part[]): Promise<Part> {
    const fileSystem = this.#fileSystem;
    const [first, ...others] = parts;
    if (first === undefined) throw new Error("there are no parts to merge");
    const temporaryPath = this.temporaryPath(first.path);
    const { header, byteCount } = await mergeParts(fileSystem, parts, temporaryPath);
    await fileSystem.rename(temporaryPath, first.path);
    await fileSystem.flushFolder(this.path);
    for (const part of others) await fileSystem.remove(part.path);
    return { path: first.path, byteCount, header };
  }

  async #putAside(name: string): Promise<string> {
    const path = join(this.path, name);
    await this.#fileSystem.rename(path, `${path}${damagedSuffix}`);
    return name;
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

  /** On the disk when it resolves: a mark that came back would be taken for a new gap. */
  async closeGap(): Promise<void> {
    const names = (await this.#fileSystem.list(this.path)).filter(
      (name) => name === gapName || name.endsWith(damagedSuffix),
    );
    if (names.length === 0) return;
    for (const name of names) await this.#fileSystem.remove(join(this.path, name));
    await this.#fileSystem.flushFolder(this.path);
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

async function unlessDamaged<T>(make: () => Promise<T>): Promise<T | undefined> {
  try {
    return await make();
  } catch (error) {
    if (error instanceof LtxFailure) return undefined;
    throw error;
  }
}

function partHeaderIn(bytes: Buffer | undefined, name: string): LtxHeader | undefined {
  const part = parsePartName(name);
  return part && headerIn(bytes, partTxid(part.txid, part.index));
}

/** Up to where a file says that the WAL was sealed. */
export function sealedEnd(header: LtxHeader): WalPosition {
  const { walSalt1, walSalt2, walOffset, walBytes } = header;
  return { walSalt1, walSalt2, endOffset: walOffset + walBytes };
}

/** What a start after an unclean end wants to know of a log. */
export interface LogState {
  /** The newest batch that has a file or parts; `baseTxid` where none has. */
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
  const found = await new LogFolder(fileSystem, folderPath).newest();
  const { header, hasGap } = found;
  const txid = found.txid > baseTxid ? found.txid : baseTxid;
  if (fileSystem.sizeBytes(`${headPath}-wal`) < walHeaderBytes) return { txid, isSealed: !hasGap };
  if (header === undefined || hasGap) return { txid, isSealed: false };
  return { txid, isSealed: await isSealedTo(fileSystem, headPath, sealedEnd(header)) };
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
