/** LTX files applied one after another, with every check that a chain allows. */
import type { ByteSource } from "../ltx/byte-reader.ts";
import { LtxDecoder } from "../ltx/decoder.ts";
import type { LtxHeader } from "../ltx/header.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { Pacer } from "../ltx/pace.ts";
import { lockPageNumber } from "../ltx/pages.ts";
import { isSnapshot, type TxidRange, txidText } from "../ltx/txid.ts";
import { turn } from "./calls.ts";
import type { PageSink } from "./paged-file.ts";

/** Applied without a pause: less than a millisecond of work. */
const turnBytes = 256 * 1024;

/** What the pages so far make. */
export interface ChainState {
  readonly maxTxid: bigint;
  readonly pageSize: number;
  readonly pageCount: number;
  readonly timestampMs: number;
}

/**
 * Applies a file to what `before` left (nothing: it has to be a snapshot). `named`: what its name says, which its header has
 * to agree with. The pages have gone into the sink before all of them are proven; only when this resolves are they good.
 * Throws LtxFailure.
 */
export async function applyLtx(
  source: ByteSource,
  named: TxidRange,
  before: ChainState | undefined,
  open: (header: LtxHeader) => PageSink,
): Promise<ChainState> {
  const decoder = await LtxDecoder.open(source);
  try {
    const { header } = decoder;
    checkHeader(header, named);
    checkFollows(header, before);
    const sink = open(header);
    const pacer = new Pacer({ turn, pagesPerTurn: Math.max(1, Math.floor(turnBytes / header.pageSize)) });
    const pagesBefore = isSnapshot(header) ? 0 : (before?.pageCount ?? 0);
    let grown = 0;
    for (let page = await decoder.next(); page !== undefined; page = await decoder.next()) {
      if (page.number > pagesBefore) grown++;
      const room = sink.write(page);
      if (room !== undefined) await room;
      const turn = pacer.step();
      if (turn !== undefined) await turn;
    }
    checkGrowth(header, pagesBefore, grown);
    await sink.end(header.commit);
    const { maxTxid, pageSize, commit: pageCount, timestampMs } = header;
    return { maxTxid, pageSize, pageCount, timestampMs };
  } finally {
    await decoder.close();
  }
}

/** Throws LtxFailure `chain` unless a file is what its name says. */
export function checkHeader(header: LtxHeader, named: TxidRange): void {
  if (header.minTxid === named.minTxid && header.maxTxid === named.maxTxid) return;
  const text = ({ minTxid, maxTxid }: TxidRange) => `${txidText(minTxid)}-${txidText(maxTxid)}`;
  throw new LtxFailure("header", `the file named ${text(named)} holds ${text(header)}`);
}

function checkFollows(header: LtxHeader, before: ChainState | undefined): void {
  const { minTxid, maxTxid, pageSize, commit } = header;
  if (commit === 0) throw new LtxFailure("chain", "the file makes a database of no pages");
  if (before === undefined) {
    if (!isSnapshot(header)) throw new LtxFailure("chain", `the chain begins at TXID ${minTxid}, not with a snapshot`);
    return;
  }
  if (pageSize !== before.pageSize) {
    throw new LtxFailure("chain", `the page size changes from ${before.pageSize} to ${pageSize}`);
  }
  if (minTxid > before.maxTxid + 1n) {
    throw new LtxFailure("chain", `nothing holds TXID ${before.maxTxid + 1n} to ${minTxid - 1n}`);
  }
  if (maxTxid <= before.maxTxid) {
    throw new LtxFailure("chain", `a file ends at TXID ${maxTxid}, after one that ends at ${before.maxTxid}`);
  }
}

/** A file holds every page by which the database grows; else old pages would come back, or zeros. */
function checkGrowth({ pageSize, commit }: LtxHeader, pagesBefore: number, grown: number): void {
  const lockPage = lockPageNumber(pageSize);
  const isLockPageNew = lockPage > pagesBefore && lockPage <= commit;
  const wanted = Math.max(0, commit - pagesBefore - (isLockPageNew ? 1 : 0));
  if (grown === wanted) return;
  throw new LtxFailure("incomplete", `the file holds ${grown} of the ${wanted} pages by which the database grows`);
}
