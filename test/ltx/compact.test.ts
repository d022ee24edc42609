import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { compactLtx, restoreDatabase } from "../../src/ltx/compact.ts";
import { mergeLtx } from "../../src/ltx/merge.ts";
import type { Page } from "../../src/ltx/pages.ts";
import { collect, decode, encode, incrementFacts, ModelDatabase, problemOf, snapshotFacts } from "./support.ts";

interface Step {
  readonly commit: number;
  readonly changed: readonly number[];
}

const steps = fc.array(
  fc.record({
    commit: fc.integer({ min: 1, max: 20 }),
    changed: fc.array(fc.integer({ min: 1, max: 20 }), { maxLength: 8 }),
  }),
  { minLength: 1, maxLength: 8 },
);

/** One file for each state of a database, and what each state is. */
async function history(pageSize: number, changes: readonly Step[]) {
  const model = new ModelDatabase(pageSize);
  const files: Buffer[] = [];
  const states: Buffer[] = [];
  for (const [index, { commit, changed }] of changes.entries()) {
    const pages = model.apply(commit, changed, index);
    const facts = index === 0 ? snapshotFacts(pageSize, commit) : incrementFacts(pageSize, commit, BigInt(index + 1));
    files.push(await encode(facts, pages, { encoding: index % 2 === 0 ? "frame" : "block" }));
    states.push(model.bytes());
  }
  return { files, states };
}

const restored = async (files: readonly Buffer[]) =>
  (await collect(restoreDatabase(files.map((file) => [file])))).bytes;
const compacted = async (files: readonly Buffer[]) => (await collect(compactLtx(files.map((file) => [file])))).bytes;

describe("a chain of files", () => {
  it("leads to each state of a database that grows, shrinks and grows again", async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.constantFrom(512, 4096), async (changes, pageSize) => {
        const { files, states } = await history(pageSize, changes);
        for (const [index, state] of states.entries()) {
          expect((await restored(files.slice(0, index + 1))).equals(state)).toBe(true);
        }
      }),
      { numRuns: 60 },
    );
  });

  it("leads to the same after any compaction of neighbours, and of those again", async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.array(fc.nat()), async (changes, cuts) => {
        const { files, states } = await history(512, changes);
        let current = files;
        for (const cut of cuts.slice(0, 3)) {
          const at = cut % current.length;
          const end = at + 1 + (cut % (current.length - at));
          current = [...current.slice(0, at), await compacted(current.slice(at, end)), ...current.slice(end)];
        }
        expect((await restored(current)).equals(states.at(-1) as Buffer)).toBe(true);
        const whole = await decode([await compacted(current)]);
        expect(whole.header).toMatchObject({ minTxid: 1n, maxTxid: BigInt(changes.length), walOffset: 0, walSalt1: 0 });
        expect(whole.header.timestampMs).toBe((await decode([files.at(-1) as Buffer])).header.timestampMs);
      }),
      { numRuns: 60 },
    );
  });

  it("may overlap", async () => {
    const { files, states } = await history(512, [
      { commit: 3, changed: [] },
      { commit: 4, changed: [1] },
      { commit: 2, changed: [2] },
      { commit: 5, changed: [1] },
    ]);
    const [first, second, third, fourth] = files as [Buffer, Buffer, Buffer, Buffer];
    const overlapping = [
      await compacted([first, second]),
      await compacted([second, third]),
      await compacted([third, fourth]),
    ];
    expect((await restored(overlapping)).equals(states[3] as Buffer)).toBe(true);
  });
});

describe("files that do not belong together", () => {
  const page = (number: number, byteCount = 512): Page => ({ number, bytes: Buffer.alloc(byteCount, number) });
  const snapshot = encode(snapshotFacts(512, 2), [page(1), page(2)]);
  const merging = async (...files: Promise<Buffer>[]) => {
    const all = await Promise.all(files);
    return problemOf(collect(compactLtx(all.map((file) => [file]))));
  };

  it("are refused before anything is written", async () => {
    const third = encode(incrementFacts(512, 2, 3n), [page(2)]);
    expect(await merging(snapshot, third)).toBe("chain");
    expect(await merging(third, snapshot)).toBe("chain");
    expect(await merging(snapshot, snapshot)).toBe("chain");
    const within = encode(snapshotFacts(512, 2, 5n), [page(1), page(2)]);
    expect(await merging(within, third)).toBe("chain");
    const larger = encode(incrementFacts(1024, 2, 2n), [page(2, 1024)]);
    expect(await merging(snapshot, larger)).toBe("chain");
  });

  it("give no database without a snapshot at the start", async () => {
    const second = await encode(incrementFacts(512, 2, 2n), [page(2)]);
    expect(await problemOf(collect(restoreDatabase([[second]])))).toBe("chain");
  });

  it("are found incomplete instead of giving a page from before a shrink", async () => {
    const shrink = encode(incrementFacts(512, 1, 2n), [page(1)]);
    const regrow = encode(incrementFacts(512, 3, 3n), [page(3)]);
    const grown = encode(snapshotFacts(512, 3), [page(1), page(2), page(3)]);
    expect(await merging(grown, shrink, regrow)).toBe("incomplete");
  });

  it("are found damaged although their pages are not needed", async () => {
    const bad = Buffer.from(await snapshot);
    bad.writeUInt8((bad[90] as number) ^ 1, 90);
    const second = encode(incrementFacts(512, 2, 2n), [page(1), page(2)]);
    expect(await merging(Promise.resolve(bad), second)).toBe("checksum");
  });

  it("are all let go", async () => {
    let open = 0;
    async function* source(bytes: Buffer) {
      open++;
      try {
        for (let at = 0; at < bytes.length; at += 40) yield bytes.subarray(at, at + 40);
      } finally {
        open--;
      }
    }
    const files = [await snapshot, await encode(incrementFacts(512, 2, 2n), [page(2)])];
    for await (const _ of (await mergeLtx(files.map(source))).pages) break;
    expect(open).toBe(0);
    await (await mergeLtx(files.map(source))).close();
    expect(open).toBe(0);
    await problemOf(mergeLtx([...files.map(source), source(files[0] as Buffer)]));
    expect(open).toBe(0);
    await expect(mergeLtx([])).rejects.toThrow("nothing to merge");
  });
});
