/**
 * What the open batch has on the disk: parts, each an LTX file of what one seal found. A part never changes; several are
 * merged into one, the newest version of each page. Merging parts again that were merged before changes nothing.
 */
import type { FileSystem, OpenFile } from "../../files/file-system.ts";
import { LtxDecoder } from "../../ltx/decoder.ts";
import { encodeLtx, type LtxFileSummary } from "../../ltx/encoder.ts";
import type { LtxFileFacts, LtxHeader } from "../../ltx/header.ts";
import type { Page, PageSource } from "../../ltx/pages.ts";
import { txidText } from "../../ltx/txid.ts";
import { walHeaderBytes } from "../../ltx/wal-format.ts";

/** A file of an open batch. */
export interface Part {
  readonly path: string;
  readonly byteCount: number;
  readonly header: LtxHeader;
}

const namePattern = /^([0-9a-f]{16})\.([0-9]{8})\.part$/;
const readBytes = 256 * 1024;

/** Others get their turn on the event loop. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Names of a batch's parts are ordered as the parts are. */
export function partName(txid: bigint, index: number): string {
  return `${txidText(txid)}.${String(index).padStart(8, "0")}.part`;
}

export function parsePartName(name: string): { readonly txid: bigint; readonly index: number } | undefined {
  const [, txid, index] = namePattern.exec(name) ?? [];
  return txid === undefined ? undefined : { txid: BigInt(`0x${txid}`), index: Number(index) };
}

/** The TXID that a part carries: that of its batch, but a file of TXID 1 would have to hold every page. */
export function partTxid(txid: bigint, index: number): bigint {
  return txid === 1n && index > 0 ? 2n : txid;
}

/** Writes the file that parts of one batch, in their order, are together. It is flushed, its name is not. */
export async function mergeParts(
  fileSystem: FileSystem,
  parts: readonly Part[],
  path: string,
): Promise<LtxFileSummary> {
  const files: OpenFile[] = [];
  try {
    for (const part of parts) files.push(await fileSystem.openFile(part.path, "read"));
    const decoders: LtxDecoder[] = [];
    for (const file of files) decoders.push(await LtxDecoder.open(chunksOf(file)));
    const newest = decoders.at(-1);
    if (newest === undefined) throw new Error("there are no parts to merge");
    let pages: PageSource = newest.pages();
    let pageNumberMax = newest.header.commit;
    for (const decoder of decoders.slice(0, -1).reverse()) {
      pages = newerFirst(decoder, pageNumberMax, pages);
      pageNumberMax = Math.min(pageNumberMax, decoder.header.commit);
    }
    return await writeLtx(fileSystem, path, mergedFacts(parts.map(({ header }) => header)), pages);
  } finally {
    for (const file of files) await file.close();
  }
}

/** Writes a new file and flushes it; its name is not flushed. */
export async function writeLtx(
  fileSystem: FileSystem,
  path: string,
  facts: LtxFileFacts,
  pages: PageSource,
): Promise<LtxFileSummary> {
  const file = await fileSystem.openFile(path, "make");
  try {
    const chunks = encodeLtx(facts, pages, { turn });
    let offset = 0;
    for (let next = await chunks.next(); ; next = await chunks.next()) {
      if (next.done === true) {
        await file.flush();
        return next.value;
      }
      await file.write(offset, next.value);
      offset += next.value.length;
    }
  } finally {
    await file.close();
  }
}

/** The WAL was sealed up to where the newest part says; the range begins where the oldest does, in the same life. */
function mergedFacts(headers: readonly LtxHeader[]): LtxFileFacts {
  const first = headers[0] as LtxHeader;
  const last = headers[headers.length - 1] as LtxHeader;
  const isOneLife = headers.every((header) => header.walSalt1 === last.walSalt1 && header.walSalt2 === last.walSalt2);
  const walOffset = isOneLife ? first.walOffset : walHeaderBytes;
  const { minTxid, maxTxid } = first;
  const { pageSize, commit, timestampMs, walSalt1, walSalt2 } = last;
  const walBytes = last.walOffset + last.walBytes - walOffset;
  return { pageSize, commit, minTxid, maxTxid, timestampMs, walOffset, walBytes, walSalt1, walSalt2 };
}

/**
 * The pages of an older part under newer ones, ascending. Pages beyond `pageNumberMax` are left out: the database was shorter
 * at some time since, and what it got there again is among the newer pages. Ends the decoder.
 */
async function* newerFirst(
  older: LtxDecoder,
  pageNumberMax: number,
  newer: PageSource,
): AsyncGenerator<Page, void, undefined> {
  try {
    let old = await older.next();
    for await (const page of newer) {
      for (; old !== undefined && old.number < page.number; old = await older.next()) {
        if (old.number <= pageNumberMax) yield old;
      }
      if (old?.number === page.number) old = await older.next();
      yield page;
    }
    for (; old !== undefined; old = await older.next()) if (old.number <= pageNumberMax) yield old;
  } finally {
    await older.close();
  }
}

async function* chunksOf(file: OpenFile): AsyncGenerator<Buffer, void, undefined> {
  for (let offset = 0; ; offset += readBytes) {
    const chunk = await file.read(offset, readBytes);
    if (chunk.length > 0) yield chunk;
    if (chunk.length < readBytes) return;
  }
}
