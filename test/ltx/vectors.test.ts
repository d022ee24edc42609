import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { loadCodecs } from "../../src/ltx/codecs.ts";
import { compactLtx, restoreDatabase } from "../../src/ltx/compact.ts";
import { Crc64, crc64 } from "../../src/ltx/crc64.ts";
import { DatabaseChecksum, pageChecksum } from "../../src/ltx/database-checksum.ts";
import { lockPageNumber } from "../../src/ltx/pages.ts";
import { collect, decode, encode, fixture, incrementFacts, pageSizes, snapshotFacts } from "./support.ts";

await loadCodecs();

const zeros = Buffer.alloc(512);
const ramp = Buffer.from(Array.from({ length: 512 }, (_, index) => index & 255));
const letters = Buffer.alloc(512, 0x41);
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

describe("checksums", () => {
  it("are CRC-64/GO-ISO, one-shot and running", async () => {
    expect(crc64(Buffer.from("123456789")).toString(16)).toBe("b90956c775a41001");
    expect(crc64()).toBe(0n);
    const running = (await Crc64.open()).update(Buffer.from("1234")).update(Buffer.from("56789"));
    expect(running.digest().toString(16)).toBe("b90956c775a41001");
    expect(() => running.update(zeros)).toThrow("taken already");
  });

  it("run as in the worked example", () => {
    const file = fixture("a-block.ltx");
    const parts = [file.subarray(0, 100), file.subarray(100, 106), file.subarray(106, 110), zeros]
      .concat([file.subarray(122, 128), file.subarray(128, 132), file.subarray(132, 140), file.subarray(140, 148)])
      .map((_, index, all) => crc64(...all.slice(0, index + 1)).toString(16));
    expect(parts).toEqual([
      "bec8a5ef8e80ff18",
      "87b4beb76f79aec8",
      "3762296697b4beb7",
      "ea75d97edd7407aa",
      "cc867a483b0f9a75",
      "4db85e989c867a48",
      "14370011b762107e",
      "8716efe5beb684b6",
    ]);
  });

  it("of pages and databases", () => {
    expect(pageChecksum({ number: 1, bytes: zeros }).toString(16)).toBe("efb1f44fecd99000");
    expect(pageChecksum({ number: 2, bytes: ramp }).toString(16)).toBe("c6232e56cb62cc9f");
    const database = new DatabaseChecksum(512).toggle({ number: 1, bytes: zeros }).toggle({ number: 2, bytes: ramp });
    expect(database.value.toString(16)).toBe("a992da1927bb5c9f");
    database.toggle({ number: 2, bytes: ramp }).toggle({ number: 2, bytes: zeros });
    expect(database.value.toString(16)).toBe("80d21cd000000000");
    const filled = (pageSize: number, ...fill: number[]) =>
      fill.reduce(
        (sum, byte, index) => sum.toggle({ number: index + 1, bytes: Buffer.alloc(pageSize, byte) }),
        new DatabaseChecksum(pageSize),
      ).value;
    expect(filled(512, 1, 2, 3).toString(16)).toBe("efffffffecd99000");
    expect(filled(512, 0x31).toString(16)).toBe("eb1a999231044ddd");
    expect(filled(1024, 0x32, 0x33).toString(16)).toBe("e1899b6d587aaaaa");
  });

  it("leave the lock page out", () => {
    expect(pageSizes.map(lockPageNumber)).toEqual([
      2_097_153, 1_048_577, 524_289, 262_145, 131_073, 65_537, 32_769, 16_385,
    ]);
    const lock = { number: 16_385, bytes: Buffer.alloc(65_536, 7) };
    expect(new DatabaseChecksum(65_536).toggle(lock).value).toBe(1n << 63n);
  });
});

describe("files of the format's examples", () => {
  it.each(["a-block.ltx", "a-frame.ltx"])("%s: one zero page", async (name) => {
    const { header, trailer, pages } = await decode([fixture(name)]);
    expect(header).toMatchObject({
      pageSize: 512,
      commit: 1,
      minTxid: 1n,
      maxTxid: 1n,
      timestampMs: 1_700_000_000_000,
    });
    expect(header.tracksChecksum).toBe(false);
    expect(pages).toEqual([{ number: 1, bytes: zeros }]);
    const checksums = { "a-block.ltx": 0x8716efe5beb684b6n, "a-frame.ltx": 0xf5715aa46949c070n };
    expect(trailer).toEqual({ postApplyChecksum: 0n, fileChecksum: checksums[name as keyof typeof checksums] });
  });

  it.each(["f1.ltx", "f1-frame.ltx"])("%s: a snapshot of two pages", async (name) => {
    const { pages } = await decode([fixture(name)]);
    expect(pages).toEqual([
      { number: 1, bytes: zeros },
      { number: 2, bytes: ramp },
    ]);
  });

  it.each(["f2.ltx", "f2-frame.ltx"])("%s: an increment with its place in the WAL", async (name) => {
    const { header, pages } = await decode([fixture(name)]);
    expect(header).toMatchObject({ minTxid: 2n, maxTxid: 2n, commit: 3, timestampMs: 1_700_000_001_000 });
    expect(header).toMatchObject({ walOffset: 32, walBytes: 0x430, walSalt1: 1, walSalt2: 2 });
    expect(pages).toEqual([
      { number: 2, bytes: zeros },
      { number: 3, bytes: letters },
    ]);
  });

  it.each(["f12.ltx", "go12.ltx", "go12-frame.ltx"])("%s: both merged", async (name) => {
    const { header, pages } = await decode([fixture(name)]);
    expect(header).toMatchObject({ minTxid: 1n, maxTxid: 2n, commit: 3, timestampMs: 1_700_000_001_000, walOffset: 0 });
    expect(pages.map(({ bytes }) => sha256(bytes))).toEqual([zeros, zeros, letters].map(sha256));
  });

  it("decode with mixed encodings and WAL facts", async () => {
    const block = await decode([fixture("b-block.ltx")]);
    const frame = await decode([fixture("b-frame.ltx")]);
    expect(frame.header).toEqual(block.header);
    expect(frame.pages).toEqual(block.pages);
    expect(block.header).toMatchObject({ minTxid: 2n, maxTxid: 3n });
    expect(block.header.walOffset).toBeGreaterThanOrEqual(32);
  });

  it("decode with rolling checksums of other tools", async () => {
    const whole = await decode([fixture("c-checksummed.ltx")]);
    expect(whole.header).toMatchObject({ tracksChecksum: true, commit: 2 });
    expect(whole.trailer.postApplyChecksum).toBe(0xa992da1927bb5c9fn);
    expect(whole.trailer.fileChecksum).toBe(0xa0fc4682d5431fbbn);
    const increment = await decode([fixture("d-checksummed-incr.ltx")]);
    expect(increment.header.preApplyChecksum).toBe(0xa992da1927bb5c9fn);
    expect(increment.trailer.postApplyChecksum).toBe(0x80d21cd000000000n);
  });

  it("merge to what the other implementation made of them", async () => {
    for (const kind of ["", "-frame"]) {
      const inputs = [[fixture(`f1${kind}.ltx`)], [fixture(`f2${kind}.ltx`)]];
      const { bytes } = await collect(compactLtx(inputs, { encoding: kind === "" ? "block" : "frame" }));
      const [ours, theirs] = await Promise.all([decode([bytes]), decode([fixture(`go12${kind}.ltx`)])]);
      expect(ours.header).toEqual(theirs.header);
      expect(ours.pages).toEqual(theirs.pages);
    }
  });

  it.each(["block", "frame"])("e-%s: three states of a database, restored in turn", async (kind) => {
    for (const last of [1, 2, 3]) {
      const chain = [1, 2, 3].slice(0, last).map((number) => [fixture(`e-${kind}-${number}.ltx`)]);
      const { bytes, result } = await collect(restoreDatabase(chain));
      expect(bytes.equals(fixture(`e${last}.db`))).toBe(true);
      expect(result.pageCount * result.pageSize).toBe(bytes.length);
      if (last === 3) expect(sha256(bytes)).toBe("baff8ee27991ca67798a28a00d9aaa86e83da7eb3ecbc10b139439b033d7ea3d");
    }
  });
});

describe("files written here", () => {
  // The LZ4 library ends its blocks two bytes later than the example's; everything around the block is the same.
  it("equal the example but for the compressor's choices", async () => {
    const facts = { ...snapshotFacts(512, 1) };
    const block = await encode(facts, [{ number: 1, bytes: zeros }], { encoding: "block" });
    const example = fixture("a-block.ltx");
    const payload = Buffer.from("1f000100ffe760000000000000", "hex");
    expect(block.subarray(0, 106).equals(example.subarray(0, 106))).toBe(true);
    expect(block.readUInt32BE(106)).toBe(payload.length);
    expect(block.subarray(110, 110 + payload.length).equals(payload)).toBe(true);
    const index = block.subarray(110 + payload.length + 6, -16);
    expect(index.toString("hex")).toBe("0164170000000000000000" + "04");
    const frame = await encode(facts, [{ number: 1, bytes: zeros }]);
    expect(frame.subarray(100, 121).toString("hex")).toBe(
      `00000001000004224d186440a70d000000${"1f0001"}00`.slice(0, 42),
    );
    expect(frame.subarray(-16 - 8 - 4 - 6 - 4, -16 - 8 - 4 - 6).toString("hex")).toBe("de53c132");
  });

  it("hold the facts of an increment where the example has them", async () => {
    const facts = { ...incrementFacts(512, 3, 2n), timestampMs: 1_700_000_001_000 };
    const wal = { walOffset: 32, walBytes: 0x430, walSalt1: 1, walSalt2: 2 };
    const pages = [
      { number: 2, bytes: zeros },
      { number: 3, bytes: letters },
    ];
    const bytes = await encode({ ...facts, ...wal }, pages);
    expect(bytes.subarray(0, 100).equals(fixture("f2.ltx").subarray(0, 100))).toBe(true);
  });
});
