import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Catalog, type CatalogRow, stageCodes, stateCodes } from "../../src/engine/catalog.ts";
import { type FilterTerm, filterCondition, parseFilter, parseOrder } from "../../src/engine/filter.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testLimits } from "./fixtures.ts";
import { failureOf, testRow } from "./support.ts";

const newFolder = temporaryFolders();
const parse = (text: string) => parseFilter(text, testLimits);

/** The meaning of a filter, written as plainly as possible. */
function naive(row: CatalogRow, terms: readonly FilterTerm[]): boolean {
  return terms.every((term) => {
    if (term.field !== "id" && term.field !== "label") {
      const values = {
        stage: stageCodes[row.stage],
        state: stateCodes[row.state],
        size_bytes: row.sizeBytes,
        create_time: row.createTimeMs,
        last_access_time: row.lastAccessTimeMs,
      };
      return holds(Math.sign(values[term.field] - term.value), term.operator);
    }
    const value = term.field === "id" ? row.id : row.labels[term.key];
    if (value === undefined) return term.operator === "!=";
    if (term.operator === ":") return matches([...value], [...term.value]);
    return holds(Buffer.compare(Buffer.from(value), Buffer.from(term.value)), term.operator);
  });
}

function holds(sign: number, operator: string): boolean {
  return {
    "=": sign === 0,
    "!=": sign !== 0,
    "<": sign < 0,
    "<=": sign <= 0,
    ">": sign > 0,
    ">=": sign >= 0,
  }[operator] as boolean;
}

function matches(value: string[], pattern: string[]): boolean {
  const [first, ...rest] = pattern;
  if (first === undefined) return value.length === 0;
  if (first === "*") return matches(value, rest) || (value.length > 0 && matches(value.slice(1), pattern));
  return value[0] === first && matches(value.slice(1), rest);
}

function print(term: FilterTerm): string {
  const field = term.field === "label" ? `labels.${term.key}` : term.field;
  if (term.field === "id" || term.field === "label") {
    return `${field} ${term.operator} "${term.value.replace(/["\\]/g, "\\$&")}"`;
  }
  const value = {
    stage: ["", "STAGE_MEMORY", "STAGE_LOCAL", "STAGE_REMOTE"][term.value],
    state: ["", "CREATING", "READY", "READ_ONLY", "DELETING", "FAULTED"].map((name) => `DATABASE_STATE_${name}`)[
      term.value
    ],
    size_bytes: String(term.value),
    create_time: new Date(term.value).toISOString(),
    last_access_time: new Date(term.value).toISOString(),
  }[term.field];
  return `${field}${term.operator}${value}`;
}

const keys = fc.constantFrom("team", "a.b", "x-1", "missing");
const text = fc.oneof(
  fc.string({
    unit: fc.constantFrom("a", "b", "A", "*", "?", "[", "]", "^", "-", '"', "\\", "'", "%", "é", "😀", "﷐"),
    maxLength: 5,
  }),
  fc.string({ unit: "grapheme", maxLength: 8 }).filter((value) => !value.includes("\0")),
);
const textOperator = fc.constantFrom(...(["=", "!=", "<", "<=", ">", ">=", ":"] as const));
const numberOperator = fc.constantFrom(...(["=", "!=", "<", "<=", ">", ">="] as const));
const number = fc.integer({ min: 0, max: 4 }).map((step) => step * 1000);
const term: fc.Arbitrary<FilterTerm> = fc.oneof(
  fc.record({ field: fc.constant("id" as const), operator: textOperator, value: text }),
  fc.record({ field: fc.constant("label" as const), key: keys, operator: textOperator, value: text }),
  fc.record({ field: fc.constant("stage" as const), operator: numberOperator, value: fc.integer({ min: 1, max: 3 }) }),
  fc.record({
    field: fc.constant("state" as const),
    operator: fc.constantFrom("=" as const, "!=" as const),
    value: fc.integer({ min: 1, max: 5 }),
  }),
  fc.record({
    field: fc.constantFrom("size_bytes" as const, "create_time" as const, "last_access_time" as const),
    operator: numberOperator,
    value: number,
  }),
);
const row = fc.record({
  id: fc.stringMatching(/^[a-c](?:[abc.]{0,3}[a-c])?$/),
  state: fc.constantFrom(...(["ready", "faulted"] as const)),
  stage: fc.constantFrom(...(["local", "remote"] as const)),
  sizeBytes: number,
  createTimeMs: number,
  lastAccessTimeMs: number,
  labels: fc.dictionary(fc.constantFrom("team", "a.b", "x-1"), text),
});

describe("filter", () => {
  it("means in SQL what the grammar says", () => {
    const catalog = Catalog.open(newFolder());
    fc.assert(
      fc.property(fc.array(row, { maxLength: 8 }), fc.array(term, { maxLength: 4 }), (rows, terms) => {
        for (const id of catalog.ids()) catalog.delete(id);
        for (const each of rows) catalog.put(testRow(each.id, each));
        const parsed = parse(terms.map(print).join(" AND "));
        expect(parsed).toEqual(terms);
        const page = catalog.page(filterCondition(parsed), parseOrder(""), undefined, 100, 100);
        const all = catalog.page({ sql: "", parameters: [] }, parseOrder(""), undefined, 100, 100);
        expect(page.rows.map((each) => each.id)).toEqual(
          all.rows.filter((each) => naive(each, terms)).map((each) => each.id),
        );
      }),
      { numRuns: 1000 },
    );
    catalog.close();
  });

  it("throws nothing but FIELD_INVALID, whatever the text", () => {
    const pieces = fc.constantFrom(
      "id",
      "labels.a",
      "state",
      "AND",
      "OR",
      "=",
      ":",
      "<",
      '"',
      "\\",
      "x*",
      "(",
      " ",
      "1",
      "create_time",
    );
    const texts = fc.oneof(
      fc.string(),
      fc.array(pieces, { maxLength: 12 }).map((parts) => parts.join("")),
    );
    fc.assert(
      fc.property(texts, (given) => {
        try {
          filterCondition(parse(given));
        } catch (error) {
          expect(error).toMatchObject({ reason: "FIELD_INVALID", facts: { field: "filter" } });
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("reads values without quotes", () => {
    expect(parse("id:acme.* AND labels.team=billing AND create_time>2026-01-01T00:00:00+01:00")).toEqual([
      { field: "id", operator: ":", value: "acme.*" },
      { field: "label", key: "team", operator: "=", value: "billing" },
      { field: "create_time", operator: ">", value: Date.UTC(2025, 11, 31, 23) },
    ]);
  });

  it.each([
    ["owner = me", "character 1 where one of id"],
    ["labels. = x", "character 1"],
    ["labels.Team = x", "character 1"],
    ["id", "the end at character 3 where one of = != < <= > >= :"],
    ["id = ", "the end at character 6"],
    ["id ~ x", "character 4"],
    ["id = x OR id = y", 'has "OR id = y" at character 8 where AND'],
    ["id = x ANDid = y", "character 8"],
    ["id = x AND", "character 8"],
    ["(id = x)", "character 1"],
    ['id = "x', "character 6"],
    ['id = "\\n"', "character 6"],
    ["state < DATABASE_STATE_READY", "= or !=: states have no order"],
    ["state = READY", "DATABASE_STATE_READY"],
    ["stage = STAGE_TAPE", "STAGE_MEMORY, STAGE_LOCAL, STAGE_REMOTE"],
    ["stage : STAGE_*", "only ids and labels"],
    ["size_bytes = 1.5", "a number of bytes"],
    ["size_bytes = 99999999999999999", "a number of bytes"],
    ["create_time = yesterday", "a time like"],
    ["create_time = 2026-02-30T00:00:00Z", "a time like"],
    ["create_time = 2026-02-28T24:00:00Z", "a time like"],
    [`id : ${"*a".repeat(17)}`, "at most 16 stars"],
    [`id = ${"x".repeat(5000)}`, "at most 4096 bytes"],
    ["id = x\0", "without NUL"],
    [Array.from({ length: 33 }, () => "id = x").join(" AND "), "at most 32 terms"],
  ])("refuses %j", async (given, problem) => {
    const failure = await failureOf(() => parse(given), "FIELD_INVALID");
    expect(failure.facts["description"]).toContain(problem);
    expect(failure.message.length).toBeLessThan(400);
  });
});

describe("order_by", () => {
  it("takes one field and a direction", () => {
    expect(parseOrder("")).toEqual({ column: "id", descending: false });
    expect(parseOrder(" create_time ")).toEqual({ column: "create_time_ms", descending: false });
    expect(parseOrder("size_bytes desc")).toEqual({ column: "size_bytes", descending: true });
  });

  it.each(["labels.x", "id, create_time", "id down", "id desc asc", "toString", "state"])(
    "refuses %j",
    async (given) => {
      await failureOf(() => parseOrder(given), "FIELD_INVALID");
    },
  );
});
