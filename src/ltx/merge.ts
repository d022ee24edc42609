/** Several files of one history as one: the newest version of each page (ltx.md 6). */
import type { ByteSource } from "./byte-reader.ts";
import { LtxDecoder } from "./decoder.ts";
import type { LtxHeader } from "./header.ts";
import { LtxFailure } from "./ltx-failure.ts";
import type { Page } from "./pages.ts";
import type { TxidRange } from "./txid.ts";

/** Files that are merged at one time hold a page and a chunk each. */
export const mergedFilesMax = 4_096;

/** An opened merge: what the merged file is, and its pages. */
export interface Merge extends TxidRange {
  readonly pageSize: number;
  readonly commit: number;
  readonly timestampMs: number;
  /** Ascending. At the end every input has been read to its end and proven. May be read once. */
  readonly pages: AsyncGenerator<Page, void, undefined>;
  /** Ends the inputs; needed only when `pages` is not read at all. */
  close(): Promise<void>;
}

/**
 * Opens files in the order of their TXIDs, all of them at one time: a source that comes from afar should be fetched whole if
 * it is small, and go on after a cut if it is not, for it may wait long between two chunks. They may overlap, but not leave a gap, and none may end where the one before
 * does or earlier. A page that a later file's database no longer has is gone, also when the database grew again after.
 * Throws LtxFailure, `chain` when the files do not belong together.
 */
export async function mergeLtx(sources: readonly ByteSource[]): Promise<Merge> {
  if (sources.length === 0) throw new Error("there is nothing to merge");
  if (sources.length > mergedFilesMax) throw new LtxFailure("too-large", `${sources.length} files in one merge`);
  const opened = await Promise.allSettled(sources.map((source) => LtxDecoder.open(source)));
  const inputs = opened.flatMap((result, rank) =>
    result.status === "fulfilled" ? [new Input(result.value, rank)] : [],
  );
  try {
    for (const result of opened) if (result.status === "rejected") throw result.reason;
    const headers = inputs.map(({ decoder }) => decoder.header);
    checkChain(headers);
    limitCommits(inputs);
    const first = headers[0] as LtxHeader;
    const last = headers[headers.length - 1] as LtxHeader;
    return {
      pageSize: first.pageSize,
      minTxid: first.minTxid,
      maxTxid: last.maxTxid,
      commit: last.commit,
      timestampMs: last.timestampMs,
      pages: newestPages(inputs),
      close: () => closeAll(inputs),
    };
  } catch (error) {
    await closeAll(inputs);
    throw error;
  }
}

/** Throws LtxFailure `chain` unless the files, in this order, can be merged. */
export function checkChain(headers: readonly (TxidRange & { readonly pageSize: number })[]): void {
  for (const [index, next] of headers.entries()) {
    const previous = headers[index - 1];
    if (previous === undefined) continue;
    if (next.pageSize !== previous.pageSize) {
      throw new LtxFailure("chain", `the page size changes from ${previous.pageSize} to ${next.pageSize}`);
    }
    if (next.minTxid > previous.maxTxid + 1n) {
      throw new LtxFailure("chain", `nothing holds TXID ${previous.maxTxid + 1n} to ${next.minTxid - 1n}`);
    }
    if (next.maxTxid <= previous.maxTxid) {
      throw new LtxFailure("chain", `a file ends at TXID ${next.maxTxid}, after one that ends at ${previous.maxTxid}`);
    }
  }
}

class Input {
  readonly decoder: LtxDecoder;
  /** Place among the inputs: the later one wins. */
  readonly rank: number;
  /** Pages beyond are not wanted. */
  pageNumberMax: number;
  page: Page | undefined;

  constructor(decoder: LtxDecoder, rank: number) {
    this.decoder = decoder;
    this.rank = rank;
    this.pageNumberMax = decoder.header.commit;
  }

  /** Goes on to the next wanted page; false at the end. */
  async advance(): Promise<boolean> {
    do this.page = await this.decoder.next();
    while (this.page !== undefined && this.page.number > this.pageNumberMax);
    return this.page !== undefined;
  }
}

function limitCommits(inputs: readonly Input[]): void {
  let smallest = Number.POSITIVE_INFINITY;
  for (const input of inputs.toReversed()) {
    smallest = Math.min(smallest, input.decoder.header.commit);
    input.pageNumberMax = smallest;
  }
}

async function* newestPages(inputs: readonly Input[]): AsyncGenerator<Page, void, undefined> {
  try {
    const heap = new InputHeap();
    for (const input of inputs) {
      if (await input.advance()) heap.push(input);
    }
    let lastNumber = 0;
    for (let input = heap.first; input !== undefined; input = heap.first) {
      const page = input.page as Page;
      // The newest version comes first.
      if (page.number !== lastNumber) yield page;
      lastNumber = page.number;
      if (await input.advance()) heap.settle();
      else heap.shift();
    }
  } finally {
    await closeAll(inputs);
  }
}

async function closeAll(inputs: readonly Input[]): Promise<void> {
  const results = await Promise.allSettled(inputs.map(({ decoder }) => decoder.close()));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

/** Inputs by page number, the newest first among equals. */
class InputHeap {
  readonly #items: Input[] = [];

  get first(): Input | undefined {
    return this.#items[0];
  }

  push(input: Input): void {
    const items = this.#items;
    let at = items.length;
    items.push(input);
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (!isBefore(input, items[parent] as Input)) break;
      items[at] = items[parent] as Input;
      at = parent;
    }
    items[at] = input;
  }

  shift(): void {
    const last = this.#items.pop();
    if (last === undefined || this.#items.length === 0) return;
    this.#items[0] = last;
    this.settle();
  }

  /** Puts the first one where it belongs after it has gone on. */
  settle(): void {
    const items = this.#items;
    const input = items[0] as Input;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && isBefore(items[child + 1] as Input, items[child] as Input)) child++;
      if (!isBefore(items[child] as Input, input)) break;
      items[at] = items[child] as Input;
      at = child;
    }
    items[at] = input;
  }
}

function isBefore(a: Input, b: Input): boolean {
  const difference = (a.page as Page).number - (b.page as Page).number;
  return difference < 0 || (difference === 0 && a.rank > b.rank);
}
