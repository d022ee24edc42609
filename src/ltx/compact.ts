/** One file out of several, and a database out of a chain. */
import type { ByteSource } from "./byte-reader.ts";
import { type EncodeOptions, encodeLtx, type LtxFileSummary } from "./encoder.ts";
import { LtxFailure } from "./ltx-failure.ts";
import { type Merge, mergeLtx } from "./merge.ts";
import { lockPageNumber, type Page, PageOrder } from "./pages.ts";
import { isSnapshot } from "./txid.ts";

/**
 * Merges files in the order of their TXIDs into one, in chunks; returns its summary. The sources are streamed and proven;
 * the file is good only if this ends without a failure. Throws LtxFailure.
 */
export async function* compactLtx(
  sources: readonly ByteSource[],
  options: EncodeOptions = {},
): AsyncGenerator<Buffer, LtxFileSummary, undefined> {
  const merge = await mergeLtx(sources);
  const { pageSize, commit, minTxid, maxTxid, timestampMs } = merge;
  if (commit === 0) {
    await merge.close();
    throw new LtxFailure("incomplete", "the files hold a database of no pages");
  }
  return yield* encodeLtx({ pageSize, commit, minTxid, maxTxid, timestampMs }, complete(merge), options);
}

/** What a restored database is. */
export interface RestoredDatabase {
  readonly pageSize: number;
  readonly pageCount: number;
  readonly maxTxid: bigint;
  readonly timestampMs: number;
}

/**
 * The database that a chain, from a snapshot on, leads to: its file page by page from the first byte, the lock page as
 * zeros; returns what it is. The bytes are proven only when this ends without a failure: write them under another name
 * before. Throws LtxFailure.
 */
export async function* restoreDatabase(
  sources: readonly ByteSource[],
): AsyncGenerator<Uint8Array, RestoredDatabase, undefined> {
  const merge = await mergeLtx(sources);
  const { pageSize, commit, maxTxid, timestampMs } = merge;
  const problem = !isSnapshot(merge)
    ? `the chain begins at TXID ${merge.minTxid}, not with a snapshot`
    : commit === 0 && "the files hold a database of no pages";
  if (problem) {
    await merge.close();
    throw new LtxFailure("chain", problem);
  }
  const lockPage = lockPageNumber(pageSize);
  for await (const { number, bytes } of complete(merge)) {
    if (number === lockPage + 1) yield new Uint8Array(pageSize);
    yield bytes;
  }
  if (commit === lockPage) yield new Uint8Array(pageSize);
  return { pageSize, pageCount: commit, maxTxid, timestampMs };
}

/** The pages of a merge, which lacks none if it is a snapshot. */
async function* complete(merge: Merge): AsyncGenerator<Page, void, undefined> {
  const order = new PageOrder({ ...merge, isSnapshot: isSnapshot(merge) });
  for await (const page of merge.pages) {
    const problem = order.take(page.number);
    if (problem !== undefined) throw new LtxFailure("incomplete", problem);
    yield page;
  }
  const problem = order.end();
  if (problem !== undefined) throw new LtxFailure("incomplete", problem);
}
