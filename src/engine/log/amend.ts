/** The pages of a file of the log and, in their place or besides, those that were committed since. */
import type { LtxDecoder } from "../../ltx/decoder.ts";
import type { Page, PageSource } from "../../ltx/pages.ts";

/**
 * Ascending. Pages of the file beyond `pageNumberMax` are left out: the database was shorter at some time since, and what it
 * got there again is among the new pages. Ends the decoder.
 */
export async function* amendedPages(
  before: LtxDecoder,
  pageNumberMax: number,
  newer: PageSource,
): AsyncGenerator<Page, void, undefined> {
  try {
    let old = await before.next();
    for await (const page of newer) {
      for (; old !== undefined && old.number < page.number; old = await before.next()) {
        if (old.number <= pageNumberMax) yield old;
      }
      if (old?.number === page.number) old = await before.next();
      yield page;
    }
    for (; old !== undefined; old = await before.next()) if (old.number <= pageNumberMax) yield old;
  } finally {
    await before.close();
  }
}
