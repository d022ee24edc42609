import * as fc from "fast-check";
import { xxhash32 } from "hash-wasm";
import { describe, expect, it } from "vitest";
import { loadCodecs } from "../../src/ltx/codecs.ts";
import { crc64 } from "../../src/ltx/crc64.ts";
import { verifyLtx } from "../../src/ltx/decoder.ts";
import { LtxRangedFile } from "../../src/ltx/ranged-file.ts";
import { decode, encode, fileCases, fixture, problemOf, ranged } from "./support.ts";

await loadCodecs();

const verified = (bytes: Uint8Array) => problemOf(verifyLtx([bytes]));

/** Reads all pages by the index; a damaged file either fails by type or gives pages of the right size. */
async function readByIndex(bytes: Buffer): Promise<void> {
  const file = await LtxRangedFile.open(ranged(bytes));
  for (const number of file.index.pageNumbers()) {
    const page = await file.page(number);
    expect(page?.bytes.length).toBe(file.header.pageSize);
  }
}

/** Page header, length and block of a page, as somebody else may write them. */
function blockPage(number: number, payload: Buffer, { length = payload.length, flags = 1 } = {}): Buffer {
  const head = Buffer.alloc(10);
  head.writeUInt32BE(number, 0);
  head.writeUInt16BE(flags, 4);
  head.writeUInt32BE(length, 6);
  return Buffer.concat([head, payload]);
}

const zeroBlock = Buffer.from("1f000100ffe8500000000000", "hex");
const zeroPage = Buffer.alloc(512);

/** A file of zero pages with a right checksum, built by hand so that it can break every other rule. */
function forged(
  numbers: readonly number[],
  change: {
    header?: (bytes: Buffer) => void;
    index?: (entries: number[][]) => number[][];
    indexLength?: (length: bigint) => bigint;
    postApply?: bigint;
    tail?: Buffer;
  } = {},
): Buffer {
  const header = Buffer.from(fixture("a-block.ltx").subarray(0, 100));
  change.header?.(header);
  const checked: Buffer[] = [header];
  const stored: Buffer[] = [header];
  let offset = 100;
  const entries = numbers.map((number) => {
    const page = blockPage(number, zeroBlock);
    checked.push(page.subarray(0, 10), zeroPage);
    stored.push(page);
    offset += page.length;
    return [number, offset - page.length, page.length];
  });
  const varints = (change.index?.(entries) ?? entries).flat().flatMap((value) => {
    const bytes: number[] = [];
    for (let rest = value; ; rest = Math.floor(rest / 128)) {
      bytes.push(rest >= 128 ? (rest % 128) | 128 : rest);
      if (rest < 128) return bytes;
    }
  });
  const index = Buffer.from([...varints, 0]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64BE(change.indexLength?.(BigInt(index.length)) ?? BigInt(index.length));
  const postApply = Buffer.alloc(8);
  postApply.writeBigUInt64BE(change.postApply ?? 0n);
  const end = [Buffer.alloc(6), index, length, postApply];
  const checksum = Buffer.alloc(8);
  checksum.writeBigUInt64BE((1n << 63n) | crc64(...checked, ...end));
  return Buffer.concat([...stored, ...end, checksum, change.tail ?? Buffer.alloc(0)]);
}

const commit = (count: number) => (header: Buffer) => header.writeUInt32BE(count, 12);
const increment = (count: number) => (header: Buffer) => {
  header.writeUInt32BE(count, 12);
  header.writeBigUInt64BE(2n, 16);
  header.writeBigUInt64BE(2n, 24);
};

describe("a damaged file", () => {
  it.each(["a-block.ltx", "a-frame.ltx", "f2.ltx", "f2-frame.ltx", "go12.ltx", "go12-frame.ltx", "c-checksummed.ltx"])(
    "%s: each flipped bit of each byte fails, or changes nothing",
    async (name) => {
      const good = fixture(name);
      const expected = await decode([good]);
      for (let at = 0; at < good.length; at++) {
        for (const bit of [1, 16, 128]) {
          const bad = Buffer.from(good);
          bad.writeUInt8((bad[at] as number) ^ bit, at);
          if ((await verified(bad)) === "none") expect((await decode([bad])).pages).toEqual(expected.pages);
          await problemOf(readByIndex(bad));
        }
      }
    },
  );

  it("fails at each length that is too short or too long", async () => {
    for (const name of ["a-block.ltx", "a-frame.ltx", "go12-frame.ltx"]) {
      const good = fixture(name);
      for (let length = 0; length < good.length; length++) {
        expect(await verified(good.subarray(0, length))).toBe("truncated");
        expect(await problemOf(readByIndex(good.subarray(0, length)))).not.toBe("none");
      }
      expect(await verified(Buffer.concat([good, Buffer.alloc(1)]))).toBe("trailing");
    }
  });

  it("fails by type under every random damage", async () => {
    const damage = fc.array(fc.record({ at: fc.nat(), bytes: fc.uint8Array({ minLength: 1, maxLength: 12 }) }), {
      minLength: 1,
      maxLength: 4,
    });
    await fc.assert(
      fc.asyncProperty(
        fileCases,
        damage,
        fc.constantFrom("frame" as const, "block" as const),
        async (file, places, encoding) => {
          const bytes = await encode(file.facts, file.pages, { encoding });
          const before = Buffer.from(bytes);
          for (const { at, bytes: patch } of places)
            bytes.set(patch.subarray(0, bytes.length - (at % bytes.length)), at % bytes.length);
          if ((await verified(bytes)) === "none" && !bytes.equals(before)) {
            expect((await decode([bytes])).pages).toEqual((await decode([before])).pages);
          }
          await problemOf(readByIndex(bytes));
        },
      ),
      { numRuns: 150 },
    );
  });

  it("fails by type when it is noise behind a good start", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 4_000 }), fc.nat(170), async (noise, keep) => {
        const bytes = Buffer.concat([fixture("a-frame.ltx").subarray(0, keep), noise]);
        expect(await verified(bytes)).not.toBe("none");
        await problemOf(readByIndex(bytes));
      }),
      { numRuns: 300 },
    );
  });
});

describe("a hostile file with a right checksum", () => {
  it("is read when it breaks no rule", async () => {
    expect(await verified(forged([1, 2, 3], { header: commit(3) }))).toBe("none");
    expect(await verified(forged([2, 9], { header: increment(9) }))).toBe("none");
  });

  it.each([
    ["pages that go back", forged([2, 1], { header: increment(2) }), "order"],
    ["a page twice", forged([1, 1], { header: increment(2) }), "order"],
    ["a page beyond the database", forged([3], { header: increment(2) }), "order"],
    ["the lock page", forged([2_097_153], { header: increment(2_097_153) }), "order"],
    ["a snapshot with a hole", forged([1, 3], { header: commit(3) }), "order"],
    ["a snapshot without its end", forged([1, 2], { header: commit(3) }), "incomplete"],
    ["an index of other pages", forged([1], { index: () => [[2, 100, 22]] }), "index"],
    ["an index of other places", forged([1], { index: () => [[1, 99, 22]] }), "index"],
    ["an index that lacks a page", forged([1, 2], { header: commit(2), index: (all) => all.slice(1) }), "index"],
    ["a wrong length of the index", forged([1], { indexLength: (length) => length + 1n }), "index"],
    ["a checksum of the state, where there is none", forged([1], { postApply: 1n << 63n }), "trailer"],
    ["bytes behind its end", forged([1], { tail: Buffer.alloc(3) }), "trailing"],
    ["unknown flags", forged([1], { header: (bytes) => bytes.writeUInt32BE(1, 4) }), "header"],
    ["a page size that is none", forged([1], { header: (bytes) => bytes.writeUInt32BE(131_072, 8) }), "header"],
    ["a time out of range", forged([1], { header: (bytes) => bytes.writeBigInt64BE(1n << 62n, 32) }), "header"],
    ["a negative WAL offset", forged([1], { header: (bytes) => bytes.writeBigInt64BE(-1n, 48) }), "header"],
  ])("%s", async (_, bytes, problem) => {
    expect(await verified(bytes)).toBe(problem);
  });

  it("with an index that lies is found out by who reads single pages", async () => {
    const swapped = forged([1, 2], {
      header: commit(2),
      index: ([first, second]) => [
        [1, ...(second as number[]).slice(1)],
        [2, ...(first as number[]).slice(1)],
      ],
    });
    expect(await problemOf(readByIndex(swapped))).toBe("index");
    const huge = forged([1], { indexLength: () => (1n << 64n) - 1n });
    expect(await problemOf(readByIndex(huge))).toBe("index");
    const endless = forged([1], { index: () => [[1, 100, 2 ** 40]] });
    expect(await problemOf(readByIndex(endless))).toBe("index");
  });
});

describe("a page with a huge or false length", () => {
  const header = fixture("a-block.ltx").subarray(0, 100);
  const frame = (rest: string) => Buffer.from(`000000010000${rest}`, "hex");
  const start = "04224d186440a7";

  it.each([
    ["a block of 4 GiB", blockPage(1, zeroBlock, { length: 0xffff_ffff }), "page"],
    ["a block of nothing", blockPage(1, Buffer.alloc(0)), "page"],
    [
      "a block that grows to more than a page",
      blockPage(1, Buffer.from("1f000100ffffffffff000000000000", "hex")),
      "page",
    ],
    ["a block of less than a page", blockPage(1, Buffer.from("500000000000", "hex")), "page"],
    ["a block that refers to what is not there", blockPage(1, Buffer.from("1f000900ffe8500000000000", "hex")), "page"],
    ["unknown page flags", blockPage(1, zeroBlock, { flags: 3 }), "page"],
    ["page 0 with flags", blockPage(0, zeroBlock), "page"],
    ["a frame that is none", frame("00000000000000000000"), "page"],
    ["a frame's block of 2 GiB", frame(`${start}ffffff7f`), "page"],
    ["a stored block of 2 GiB", frame(`${start}ffffffff`), "page"],
    ["a frame without a block", frame(`${start}0000000002cc5d05`), "page"],
    ["a frame of larger blocks", frame("04224d186470734000000000"), "page"],
    ["a frame with a dictionary", frame("04224d186540a700000000000000"), "page"],
    ["a frame with a wrong header checksum", frame("04224d186440a80c000000"), "page"],
    ["a frame of two blocks", frame(`${start}0c0000001f000100ffe85000000000000c000000`), "page"],
    [
      "a frame with a wrong content checksum",
      frame(`${start}0c0000001f000100ffe850000000000000000000de53c133`),
      "page",
    ],
    ["a frame that is cut", frame(`${start}0c0000001f00`), "truncated"],
  ])("%s", async (_, page, problem) => {
    expect(await verified(Buffer.concat([header, page]))).toBe(problem);
  });

  it.each([
    ["the size of the content", 0x6c, Buffer.from("0002000000000000", "hex"), true],
    ["no checksum", 0x60, Buffer.alloc(0), false],
    ["dependent blocks", 0x44, Buffer.alloc(0), true],
  ])("is none in a frame with %s", async (_, flags, contentBytes, hasChecksum) => {
    const descriptor = Buffer.concat([Buffer.from([flags, 0x40]), contentBytes]);
    const descriptorHash = Buffer.from(await xxhash32(descriptor), "hex").readUInt32BE();
    const frameBytes = Buffer.concat([
      Buffer.from("00000001000004224d18", "hex"),
      descriptor,
      Buffer.from([(descriptorHash >>> 8) & 255]),
      Buffer.from("0c0000001f000100ffe850000000000000000000", "hex"),
      Buffer.from(hasChecksum ? "de53c132" : "", "hex"),
    ]);
    const index = Buffer.from([1, 100, frameBytes.length, 0]);
    const rest = Buffer.concat([
      Buffer.alloc(6),
      index,
      Buffer.from([0, 0, 0, 0, 0, 0, 0, index.length]),
      Buffer.alloc(8),
    ]);
    const checksum = Buffer.alloc(8);
    checksum.writeBigUInt64BE((1n << 63n) | crc64(header, frameBytes.subarray(0, 6), zeroPage, rest));
    expect(await verified(Buffer.concat([header, frameBytes, rest, checksum]))).toBe("none");
  });

  it("costs no more memory than its pages", async () => {
    async function* bomb() {
      yield header;
      // Sixty-four thousand times the same wish for 4 GiB would need a heap of its own.
      for (let turn = 0; turn < 65_536; turn++) yield blockPage(1, Buffer.alloc(0), { length: 0xffff_ffff });
    }
    const before = process.memoryUsage().arrayBuffers;
    expect(await problemOf(verifyLtx(bomb()))).toBe("page");
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1024 * 1024);
  });
});
