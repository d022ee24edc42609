import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Catalog, type PageKey } from "../../src/engine/catalog.ts";
import { filterCondition, parseFilter, parseOrder } from "../../src/engine/filter.ts";
import { effectivePageSize, makePageToken, readPageToken } from "../../src/engine/page-token.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testLimits } from "./fixtures.ts";
import { failureOf, testRow } from "./support.ts";

const newFolder = temporaryFolders();
const secret = randomBytes(32);
const key: fc.Arbitrary<PageKey> = fc.tuple(
  fc.oneof(fc.nat(), fc.string({ maxLength: 20 })),
  fc.string({ maxLength: 128 }),
);

describe("page tokens", () => {
  it("give back what they were made of, URL-safe", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), key, (filter, orderBy, given) => {
        const token = makePageToken(secret, filter, orderBy, given);
        expect(token).toMatch(/^[A-Za-z0-9_-]+$/);
        expect(readPageToken(secret, filter, orderBy, token)).toEqual(given);
      }),
    );
  });

  it("are refused when a character, the filter, the order or the secret differs", async () => {
    const token = makePageToken(secret, "id = x", "id", ["b", "b"]);
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for (let at = 0; at < token.length; at++) {
      const other = alphabet[(alphabet.indexOf(token.charAt(at)) + 1) % 64];
      const forged = token.slice(0, at) + other + token.slice(at + 1);
      await failureOf(() => readPageToken(secret, "id = x", "id", forged), "PAGE_TOKEN_INVALID");
    }
    await failureOf(() => readPageToken(secret, "id = y", "id", token), "PAGE_TOKEN_INVALID");
    await failureOf(() => readPageToken(secret, "id = x", "id desc", token), "PAGE_TOKEN_INVALID");
    await failureOf(() => readPageToken(randomBytes(32), "id = x", "id", token), "PAGE_TOKEN_INVALID");
  });

  it.each(["", "x", "====", "é", "A".repeat(100_000)])("refuse what is none", async (token) => {
    await failureOf(() => readPageToken(secret, "", "", token), "PAGE_TOKEN_INVALID");
    await failureOf(
      () => readPageToken(secret, "", "", `${makePageToken(secret, "", "", [1, "a"])}=`),
      "PAGE_TOKEN_INVALID",
    );
  });
});

describe("page sizes", () => {
  it("are 50 for 0, and at most 1,000", () => {
    expect([0, 1, 1000, 1001, 2 ** 31 - 1].map(effectivePageSize)).toEqual([50, 1, 1000, 1000, 1000]);
  });

  it("must not be negative", async () => {
    await failureOf(() => effectivePageSize(-1), "FIELD_INVALID");
  });
});

describe("paging", () => {
  it("shows every row that stays exactly once, whatever is added and removed meanwhile", () => {
    const catalog = Catalog.open(newFolder());
    const ids = fc.uniqueArray(fc.integer({ min: 0, max: 99 }), { minLength: 1, maxLength: 30 });
    const change = fc.record({ remove: fc.integer({ min: 0, max: 99 }), add: fc.integer({ min: 100, max: 199 }) });
    const orders = fc.constantFrom(
      "id",
      "id desc",
      "create_time",
      "create_time desc",
      "size_bytes desc",
      "last_access_time",
    );
    const scans = fc.constantFrom(1, 3, 1000);
    fc.assert(
      fc.property(
        ids,
        fc.array(change),
        orders,
        fc.integer({ min: 1, max: 5 }),
        scans,
        fc.boolean(),
        (start, changes, orderBy, size, scan, filtered) => {
          for (const id of catalog.ids()) catalog.delete(id);
          const put = (number: number) =>
            catalog.put(
              testRow(`d${number}`, { createTimeMs: number % 3, sizeBytes: number % 2, lastAccessTimeMs: number % 5 }),
            );
          for (const number of start) put(number);
          const order = parseOrder(orderBy);
          const condition = filterCondition(parseFilter(filtered ? "size_bytes >= 1" : "", testLimits));
          const removed = new Set<string>();
          const seen: string[] = [];
          let next: PageKey | undefined;
          let round = 0;
          do {
            const page = catalog.page(condition, order, next, size, scan);
            expect(page.rows.length).toBeLessThanOrEqual(size);
            seen.push(...page.rows.map((row) => row.id));
            const now = changes[round++];
            if (now !== undefined) {
              removed.add(`d${now.remove}`);
              catalog.delete(`d${now.remove}`);
              put(now.add);
            }
            next = page.key;
          } while (next !== undefined);
          expect(new Set(seen).size).toBe(seen.length);
          const expected = start.filter((number) => !filtered || number % 2 >= 1).map((number) => `d${number}`);
          const missed = expected.filter((id) => !seen.includes(id) && !removed.has(id));
          expect(missed).toEqual([]);
        },
      ),
      { numRuns: 500 },
    );
    catalog.close();
  });
});
