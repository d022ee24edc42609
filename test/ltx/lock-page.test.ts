import { closeSync, createReadStream, ftruncateSync, openSync, readSync, writeFileSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { restoreDatabase } from "../../src/ltx/compact.ts";
import { verifyLtx } from "../../src/ltx/decoder.ts";
import { encodeLtx } from "../../src/ltx/encoder.ts";
import { lockPageNumber, type Page } from "../../src/ltx/pages.ts";
import { LtxRangedFile } from "../../src/ltx/ranged-file.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { collect, encode, incrementFacts, pageContent, snapshotFacts } from "./support.ts";

const folder = temporaryFolders();
const pageSize = 65_536;
const lockPage = lockPageNumber(pageSize);
const commit = lockPage + 2;

/** A database of a little more than a gibibyte, nearly all of it a hole in its file. */
function sparseDatabase(): string {
  const path = join(folder(), "sparse.db");
  const file = openSync(path, "w");
  ftruncateSync(file, commit * pageSize);
  for (const number of [1, lockPage - 1, lockPage + 1, lockPage + 2]) {
    writeSync(file, pageContent(pageSize, 2, number), 0, pageSize, (number - 1) * pageSize);
  }
  closeSync(file);
  return path;
}

function* pagesOf(path: string): Generator<Page, void, undefined> {
  const file = openSync(path, "r");
  try {
    const bytes = Buffer.alloc(pageSize);
    for (let number = 1; number <= commit; number++) {
      if (number === lockPage) continue;
      readSync(file, bytes, 0, pageSize, (number - 1) * pageSize);
      yield { number, bytes };
    }
  } finally {
    closeSync(file);
  }
}

describe("a database beyond a gibibyte", () => {
  it("is stored without its lock page and comes back with zeros there", { timeout: 60_000 }, async () => {
    const path = join(folder(), "sparse.ltx");
    const file = await open(path, "w");
    for await (const chunk of encodeLtx(snapshotFacts(pageSize, commit), pagesOf(sparseDatabase())))
      await file.write(chunk);
    await file.close();
    expect(await verifyLtx(createReadStream(path))).toMatchObject({ commit, pageCount: commit - 1 });

    const handle = await open(path, "r");
    const { size } = await handle.stat();
    const single = await LtxRangedFile.open({
      byteCount: size,
      read: async (offset, byteCount) => (await handle.read(Buffer.alloc(byteCount), 0, byteCount, offset)).buffer,
    });
    expect(await single.page(lockPage)).toBeUndefined();
    expect((await single.page(lockPage + 1))?.bytes).toEqual(pageContent(pageSize, 2, lockPage + 1));
    await handle.close();

    const changed = { number: lockPage + 2, bytes: pageContent(pageSize, 3, 9) };
    const increment = await encode(incrementFacts(pageSize, commit, 2n), [changed]);
    let number = 0;
    for await (const bytes of restoreDatabase([createReadStream(path), [increment]])) {
      number++;
      if (number === lockPage) expect(bytes.every((byte) => byte === 0)).toBe(true);
      if (number === lockPage - 1 || number === lockPage + 1) expect(bytes).toEqual(pageContent(pageSize, 2, number));
      if (number === commit) expect(bytes).toEqual(changed.bytes);
    }
    expect(number).toBe(commit);
  });

  it("may end with its lock page", { timeout: 60_000 }, async () => {
    const empty = Buffer.alloc(pageSize);
    function* pages() {
      for (let number = 1; number < lockPage; number++) yield { number, bytes: empty };
    }
    const path = join(folder(), "end.ltx");
    writeFileSync(path, (await collect(encodeLtx(snapshotFacts(pageSize, lockPage), pages()))).bytes);
    let count = 0;
    for await (const _ of restoreDatabase([createReadStream(path)])) count++;
    expect(count).toBe(lockPage);
  });
});
