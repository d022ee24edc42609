/** The first batch of a history: an LTX file of a whole database, out of a database file. */
import type { FileSystem, OpenFile } from "../files/file-system.ts";
import { encodeLtx } from "../ltx/encoder.ts";
import { lockPageNumber, type Page } from "../ltx/pages.ts";
import type { Batch } from "../stages/stage.ts";

/** What is to be written, and from what. */
export interface FirstBatchInput {
  readonly databasePath: string;
  readonly path: string;
  readonly pageSize: number;
  readonly pageCount: number;
  readonly timestampMs: number;
  /** Called now and then; throws to end it. */
  check(): void;
}

const readBytes = 1024 * 1024;

/** Where a WAL's frames begin; Litestream wants no smaller offset in a file of level 0. */
const walHeaderBytes = 32;

/**
 * Writes the file. The same bytes for the same database: an upload whose answer was lost is recognised when it is tried
 * again. Nobody may have the database file open for writing.
 */
export async function writeFirstBatch(fileSystem: FileSystem, input: FirstBatchInput): Promise<Batch> {
  const { path, databasePath, pageSize, pageCount, timestampMs } = input;
  const facts = { minTxid: 1n, maxTxid: 1n, pageSize, commit: pageCount, timestampMs, walOffset: walHeaderBytes };
  const source = await fileSystem.openFile(databasePath, "read");
  try {
    const file = await fileSystem.openFile(path, "make");
    try {
      const chunks = encodeLtx(facts, pagesOf(source, input));
      let byteCount = 0;
      for await (const chunk of chunks) {
        await file.write(byteCount, chunk);
        byteCount += chunk.length;
      }
      return { txid: 1n, path, byteCount, pageSize, commit: pageCount, timestampMs };
    } finally {
      await file.close();
    }
  } finally {
    await source.close();
  }
}

async function* pagesOf(file: OpenFile, { pageSize, pageCount, check }: FirstBatchInput): AsyncGenerator<Page> {
  const lockPage = lockPageNumber(pageSize);
  const pagesAtOnce = Math.max(1, Math.floor(readBytes / pageSize));
  for (let first = 1; first <= pageCount; first += pagesAtOnce) {
    check();
    const count = Math.min(pagesAtOnce, pageCount - first + 1);
    const bytes = await file.read((first - 1) * pageSize, count * pageSize);
    if (bytes.length !== count * pageSize) throw new Error(`a database file ends before page ${first + count - 1}`);
    for (let at = 0; at < count; at++) {
      if (first + at === lockPage) continue;
      yield { number: first + at, bytes: bytes.subarray(at * pageSize, (at + 1) * pageSize) };
    }
  }
}
