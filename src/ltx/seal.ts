/** What a seal writes: the LTX file of the commits that a scan of the WAL found. */
import type { LtxFileFacts } from "./header.ts";
import { lockPageNumber } from "./pages.ts";
import type { WalCommits } from "./wal-reader.ts";

/** What the next file follows on. */
export interface Sealed {
  readonly txid: bigint;
  /** Pages of the database after that file. */
  readonly commit: number;
  readonly pageSize: number;
}

/**
 * The facts of the file that holds `commits` and follows on `last`. Undefined when it cannot be a file that follows, and
 * only a snapshot goes on: the page size has changed, or a page by which the database grew is not among the frames, which
 * means that frames were missed.
 */
export function sealedFileFacts(commits: WalCommits, last: Sealed, timestampMs: number): LtxFileFacts | undefined {
  const { pageSize, commit, startOffset, endOffset, walSalt1, walSalt2 } = commits;
  if (pageSize !== last.pageSize || firstMissingPage(commits, last.commit) !== undefined) return undefined;
  const txid = last.txid + 1n;
  return {
    pageSize,
    commit,
    minTxid: txid,
    maxTxid: txid,
    timestampMs,
    walOffset: startOffset,
    walBytes: endOffset - startOffset,
    walSalt1,
    walSalt2,
  };
}

/** The first page by which the database grew, since it was at its smallest, that is not among the frames. */
function firstMissingPage(commits: WalCommits, commitBefore: number): number | undefined {
  const { pageSize, commit, commitMin, frames } = commits;
  const lockPage = lockPageNumber(pageSize);
  for (let number = Math.min(commitBefore, commitMin) + 1; number <= commit; number++) {
    if (number !== lockPage && !frames.has(number)) return number;
  }
  return undefined;
}
