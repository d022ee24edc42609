import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { LtxDecoder, verifyLtx } from "../../src/ltx/decoder.ts";
import { encodeLtx, LtxEncoder } from "../../src/ltx/encoder.ts";
import { LtxRangedFile } from "../../src/ltx/ranged-file.ts";
import {
  collect,
  cut,
  decode,
  encode,
  encodeWithSummary,
  fileCases,
  incrementFacts,
  pageContent,
  problemOf,
  ranged,
  snapshotFacts,
} from "./support.ts";

const encodings = ["frame", "block"] as const;

describe("a file", () => {
  it("reads back as it was written, whatever its pages, however it comes in pieces", async () => {
    const chunkSizes = fc.array(fc.integer({ min: 1, max: 9_000 }), { minLength: 1, maxLength: 5 });
    await fc.assert(
      fc.asyncProperty(
        fileCases,
        fc.constantFrom(...encodings),
        chunkSizes,
        async ({ facts, pages }, encoding, sizes) => {
          const { bytes, result } = await encodeWithSummary(facts, pages, { encoding, chunkBytes: sizes[0] ?? 1 });
          const { header, trailer, pages: found } = await decode(cut(bytes, sizes));
          expect(header).toMatchObject(facts);
          expect(found.map(({ number }) => number)).toEqual(pages.map(({ number }) => number));
          for (const [index, page] of pages.entries()) {
            expect(Buffer.compare(found[index]?.bytes ?? Buffer.alloc(0), page.bytes)).toBe(0);
          }
          expect(result).toMatchObject({ byteCount: bytes.length, pageCount: pages.length });
          expect(trailer).toEqual({ postApplyChecksum: 0n, fileChecksum: result.fileChecksum });
        },
      ),
      { numRuns: 120 },
    );
  });

  it("gives single pages by its index, in few reads", async () => {
    await fc.assert(
      fc.asyncProperty(fileCases, fc.constantFrom(...encodings), async ({ facts, pages }, encoding) => {
        const source = ranged(await encode(facts, pages, { encoding }));
        const file = await LtxRangedFile.open(source);
        expect(source.reads).toBeLessThanOrEqual(3);
        expect([...file.index.pageNumbers()]).toEqual(pages.map(({ number }) => number));
        const before = source.reads;
        for (const { number, bytes } of pages) {
          expect(Buffer.compare((await file.page(number))?.bytes ?? Buffer.alloc(0), bytes)).toBe(0);
        }
        expect(source.reads - before).toBe(pages.length);
        expect(await file.page(25)).toBeUndefined();
      }),
      { numRuns: 60 },
    );
  });

  it("has an index longer than the first read of its tail", async () => {
    const count = 6_000;
    const pages = Array.from({ length: count }, (_, index) => ({
      number: index + 1,
      bytes: pageContent(512, 1, index),
    }));
    const source = ranged(await encode(snapshotFacts(512, count), pages));
    const file = await LtxRangedFile.open(source);
    expect(source.reads).toBe(3);
    expect(file.index.pageCount).toBe(count);
    expect((await file.page(count))?.bytes).toEqual(pages[count - 1]?.bytes);
    expect(await problemOf(LtxRangedFile.open(source, { indexBytesMax: 32_768 }))).toBe("too-large");
  });

  it("may hold no page at all", async () => {
    const bytes = await encode(incrementFacts(4096, 7, 3n), []);
    expect(await verifyLtx([bytes])).toMatchObject({ pageCount: 0, commit: 7, maxTxid: 3n });
    expect((await LtxRangedFile.open(ranged(bytes))).index.pageCount).toBe(0);
  });

  it("holds many pages, and leaves the event loop to others", async () => {
    const page = pageContent(512, 1, 1);
    function* pages() {
      for (let number = 1; number <= 20_000; number++) yield { number, bytes: page };
    }
    let turns = 0;
    const turn = () => new Promise<void>((resolve) => setImmediate(() => resolve(void turns++)));
    const { bytes, result } = await collect(
      encodeLtx(snapshotFacts(512, 20_000), pages(), { turn, pagesPerTurn: 1_000 }),
    );
    expect(result.pageCount).toBe(20_000);
    expect(turns).toBe(20);
    await verifyLtx([bytes], { turn, pagesPerTurn: 500 });
    expect(turns).toBe(60);
  });

  it("is written page by page as well", async () => {
    const encoder = await LtxEncoder.open(snapshotFacts(1024, 2));
    const bytes = pageContent(1024, 3, 1);
    encoder.add({ number: 1, bytes });
    bytes.fill(0);
    const first = encoder.take();
    expect(encoder.pendingBytes).toBe(0);
    encoder.add({ number: 2, bytes });
    encoder.end();
    const { pages } = await decode([first, encoder.take()]);
    expect(pages.map((page) => Buffer.compare(page.bytes, bytes))).toEqual([1, 0]);
  });

  it("lets go of its source when its reader stops", async () => {
    const bytes = await encode(
      snapshotFacts(512, 3),
      [1, 2, 3].map((number) => ({ number, bytes: Buffer.alloc(512) })),
    );
    let ended = 0;
    async function* source() {
      try {
        yield* cut(bytes, [150]);
      } finally {
        ended++;
      }
    }
    for await (const page of (await LtxDecoder.open(source())).pages()) if (page.number === 2) break;
    expect(ended).toBe(1);
    await (await LtxDecoder.open(source())).close();
    expect(ended).toBe(2);
  });
});

describe("the writer refuses", () => {
  const page = (number: number, byteCount = 512) => ({ number, bytes: Buffer.alloc(byteCount) });

  it.each([
    ["a page size that is none", { ...snapshotFacts(500, 1) }, /500 is no page size/],
    ["a database without pages", snapshotFacts(512, 0), /no pages/],
    ["TXID 0", { ...snapshotFacts(512, 1), minTxid: 0n, maxTxid: 0n }, /no range/],
    ["a range that goes back", { ...incrementFacts(512, 1, 5n), maxTxid: 4n }, /no range/],
    ["a negative WAL offset", { ...snapshotFacts(512, 1), walOffset: -1 }, /negative/],
    ["salts without an offset", { ...snapshotFacts(512, 1), walSalt1: 1 }, /salts/],
    ["a WAL size without an offset", { ...snapshotFacts(512, 1), walBytes: 1 }, /WAL size/],
  ])("%s", async (_, facts, message) => {
    await expect(encode(facts, [page(1, facts.pageSize)])).rejects.toThrow(message);
  });

  it.each([
    ["a snapshot that begins late", snapshotFacts(512, 2), [page(2)], /follows page 0 in a snapshot/],
    ["a snapshot with a hole", snapshotFacts(512, 3), [page(1), page(3)], /follows page 1 in a snapshot/],
    ["a snapshot that ends early", snapshotFacts(512, 2), [page(1)], /page 2 of 2 is missing/],
    ["a page twice", incrementFacts(512, 2, 2n), [page(1), page(1)], /follows page 1/],
    ["pages that go back", incrementFacts(512, 2, 2n), [page(2), page(1)], /follows page 2/],
    ["page 0", incrementFacts(512, 2, 2n), [page(0)], /follows page 0/],
    ["a page beyond the end", incrementFacts(512, 2, 2n), [page(3)], /beyond/],
    ["the lock page", incrementFacts(65_536, 20_000, 2n), [page(16_385, 65_536)], /lock page/],
    ["a page of another size", incrementFacts(512, 2, 2n), [page(1, 513)], /513 bytes/],
  ])("%s", async (_, facts, pages, message) => {
    await expect(encode(facts, pages)).rejects.toThrow(message);
  });
});
