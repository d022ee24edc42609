/**
 * The filter and the order of ListDatabases.
 *
 *   filter = [ term { "AND" term } ]
 *   term   = field op value
 *   field  = id | stage | state | size_bytes | create_time | last_access_time | labels.KEY
 *   op     = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
 *   value  = "text in quotes, with \" and \\" | text without blanks, quotes and brackets
 *
 * `:` matches the whole value, `*` standing for any text. `!=` is true of a label that is not there, every other op is not.
 * Text is compared by code points.
 */
import { type Failure, fieldInvalid } from "../failure/failure.ts";
import { type PageOrder, type SqlCondition, stageCodes, stateCodes } from "./catalog.ts";
import { isLabelKey } from "./names.ts";

export type Operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":";

/** One comparison. `value` is text for ids and labels, a number for the rest: bytes, milliseconds since 1970, or a code. */
export type FilterTerm =
  | { readonly field: "id"; readonly operator: Operator; readonly value: string }
  | { readonly field: "label"; readonly key: string; readonly operator: Operator; readonly value: string }
  | { readonly field: NumberField; readonly operator: Exclude<Operator, ":">; readonly value: number };

type NumberField = "stage" | "state" | "size_bytes" | "create_time" | "last_access_time";

export interface FilterLimits {
  readonly filterBytesMax: number;
  readonly filterTermCountMax: number;
}

/** More stars than a pattern can need. */
const wildcardCountMax = 16;

const stages = new Map(Object.entries(stageCodes).map(([name, code]) => [`STAGE_${name.toUpperCase()}`, code]));
const states = new Map(
  Object.entries(stateCodes).map(([name, code]) => [`DATABASE_STATE_${name.toUpperCase()}`, code]),
);

/** Reads a filter. Throws FIELD_INVALID that names the place, counting characters from 1. */
export function parseFilter(text: string, limits: FilterLimits): readonly FilterTerm[] {
  if (Buffer.byteLength(text) > limits.filterBytesMax) {
    throw fieldInvalid("filter", `must be at most ${limits.filterBytesMax} bytes`);
  }
  if (text.includes("\0") || !text.isWellFormed()) throw fieldInvalid("filter", "must be text without NUL");
  const reader = new Reader(text);
  const terms: FilterTerm[] = [];
  reader.skipBlanks();
  if (reader.atEnd) return terms;
  for (;;) {
    if (terms.length === limits.filterTermCountMax) throw reader.failure(`at most ${limits.filterTermCountMax} terms`);
    terms.push(readTerm(reader));
    reader.skipBlanks();
    if (reader.atEnd) return terms;
    if (reader.take(/AND(?=[ \t\r\n])/y) === undefined) throw reader.failure("AND or the end");
    reader.skipBlanks();
  }
}

/** The same condition in SQL over the catalog's columns. Values are parameters, never text of the statement. */
export function filterCondition(terms: readonly FilterTerm[]): SqlCondition {
  const parts: string[] = [];
  const parameters: (number | string)[] = [];
  for (const term of terms) {
    let column = numberColumns[term.field as NumberField] ?? "id";
    if (term.field === "label") {
      column = "(labels ->> ?)";
      parameters.push(`$."${term.key}"`);
    }
    if (term.operator === ":") {
      parts.push(`${column} GLOB ?`);
      parameters.push(globOf(String(term.value)));
    } else if (term.operator === "!=" && term.field === "label") {
      parts.push(`${column} IS NOT ?`);
      parameters.push(term.value);
    } else {
      parts.push(`${column} ${term.operator} ?`);
      parameters.push(term.value);
    }
  }
  return { sql: parts.join(" AND "), parameters };
}

const orderColumns = {
  id: "id",
  create_time: "create_time_ms",
  last_access_time: "last_access_time_ms",
  size_bytes: "size_bytes",
} as const;

/** Reads order_by: one field, with `desc` or `asc` behind it or not; by id when empty. Throws FIELD_INVALID. */
export function parseOrder(text: string): PageOrder {
  const [field = "id", direction = "asc", ...rest] = text.slice(0, 100).split(" ").filter(Boolean);
  if (!Object.hasOwn(orderColumns, field) || !["asc", "desc"].includes(direction) || rest.length > 0) {
    throw fieldInvalid(
      "order_by",
      `must be one of ${Object.keys(orderColumns).join(", ")}, with desc behind it or not`,
    );
  }
  return { column: orderColumns[field as keyof typeof orderColumns], descending: direction === "desc" };
}

const numberColumns: Readonly<Record<NumberField, string>> = {
  stage: "stage",
  state: "state",
  size_bytes: "size_bytes",
  create_time: "create_time_ms",
  last_access_time: "last_access_time_ms",
};

function readTerm(reader: Reader): FilterTerm {
  reader.skipBlanks();
  const fieldAt = reader.at;
  const field = reader.take(/[A-Za-z0-9_.-]+/y);
  if (field === undefined) throw reader.failure("a field");
  const key = field.startsWith("labels.") ? field.slice("labels.".length) : undefined;
  if (key !== undefined ? !isLabelKey(key) : field !== "id" && !Object.hasOwn(numberColumns, field)) {
    throw reader.failure(`one of id, ${Object.keys(numberColumns).join(", ")}, labels.KEY`, fieldAt);
  }
  reader.skipBlanks();
  const operatorAt = reader.at;
  const operator = reader.take(/!=|<=|>=|=|<|>|:/y) as Operator | undefined;
  if (operator === undefined) throw reader.failure("one of = != < <= > >= :");
  reader.skipBlanks();
  const valueAt = reader.at;
  const value = readValue(reader);
  if (field === "id" || key !== undefined) {
    if (operator === ":" && value.split("*").length - 1 > wildcardCountMax) {
      throw reader.failure(`at most ${wildcardCountMax} stars`, valueAt);
    }
    return key === undefined ? { field: "id", operator, value } : { field: "label", key, operator, value };
  }
  if (operator === ":") throw reader.failure("another op: only ids and labels are text", operatorAt);
  if (field === "state" && operator !== "=" && operator !== "!=") {
    throw reader.failure("= or !=: states have no order", operatorAt);
  }
  return { field: field as NumberField, operator, value: readNumber(reader, field as NumberField, value, valueAt) };
}

function readValue(reader: Reader): string {
  const quoted = reader.take(/"(?:[^"\\]|\\["\\])*"/y);
  if (quoted !== undefined) return quoted.slice(1, -1).replace(/\\(["\\])/g, "$1");
  const bare = reader.take(/[^\s"()]+/y);
  if (bare === undefined) throw reader.failure('a value, like billing or "two words"');
  return bare;
}

function readNumber(reader: Reader, field: NumberField, value: string, at: number): number {
  if (field === "stage" || field === "state") {
    const codes = field === "stage" ? stages : states;
    const code = codes.get(value);
    if (code === undefined) throw reader.failure(`one of ${[...codes.keys()].join(", ")}`, at);
    return code;
  }
  if (field === "size_bytes") {
    const bytes = /^\d{1,16}$/.test(value) ? Number(value) : Number.NaN;
    if (!Number.isSafeInteger(bytes)) throw reader.failure("a number of bytes", at);
    return bytes;
  }
  const timeMs = parseTime(value);
  if (timeMs === undefined) throw reader.failure('a time like "2026-01-31T08:00:00Z"', at);
  return timeMs;
}

/** Milliseconds of an RFC 3339 time; finer digits are cut off. Undefined when it is none. */
function parseTime(text: string): number | undefined {
  const found = /^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))$/.exec(
    text,
  );
  if (found === null) return undefined;
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = found.slice(1, 7).map(Number);
  const milliseconds = Number((found[7] ?? "").slice(0, 3).padEnd(3, "0"));
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return undefined;
  const offsetHours = Number(found[9] ?? 0);
  const offsetMinutes = Number(found[10] ?? 0);
  if (hour > 23 || minute > 59 || second > 59 || offsetHours > 23 || offsetMinutes > 59) return undefined;
  const offset = (found[8] === "-" ? -1 : 1) * (offsetHours * 60 + offsetMinutes);
  return date.setUTCHours(hour, minute - offset, second, milliseconds);
}

/** GLOB knows more wildcards than `*`: they are put in brackets to mean themselves. */
function globOf(pattern: string): string {
  return pattern.replace(/[?[]/g, "[$&]");
}

class Reader {
  at = 0;
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  get atEnd(): boolean {
    return this.at === this.#text.length;
  }

  skipBlanks(): void {
    this.take(/[ \t\r\n]+/y);
  }

  /** Takes what a sticky expression matches here. */
  take(expression: RegExp): string | undefined {
    expression.lastIndex = this.at;
    const found = expression.exec(this.#text)?.[0];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  failure(expected: string, at = this.at): Failure {
    const found = at === this.#text.length ? "the end" : `"${this.#text.slice(at, at + 20)}"`;
    return fieldInvalid("filter", `has ${found} at character ${at + 1} where ${expected} is expected`);
  }
}
