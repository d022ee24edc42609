/**
 * The language of filters, whatever they filter.
 *
 *   filter = [ term { "AND" term } ]
 *   term   = field op value
 *   op     = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
 *   value  = "text in quotes, with \" and \\" | text without blanks, quotes and brackets
 *
 * `:` matches the whole value, `*` standing for any text.
 */
import { type Failure, fieldInvalid } from "../failure/failure.ts";

export type Operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":";

/** What the values of a field are. */
export type FieldRule =
  | { readonly type: "text" }
  /** Names that stand for numbers; compared by them when they are ordered. */
  | { readonly type: "code"; readonly codes: ReadonlyMap<string, number>; readonly ordered: boolean }
  | { readonly type: "bytes" }
  | { readonly type: "time" };

/** The fields of one kind of list. */
export interface Grammar {
  /** Undefined when there is no such field. */
  ruleOf(field: string): FieldRule | undefined;
  /** All of them, and those that are text, for messages. */
  readonly fieldNames: string;
  readonly textNames: string;
}

/** One comparison. `value` is text for text, a number for the rest: bytes, milliseconds since 1970, or a code. */
export interface Term {
  readonly field: string;
  readonly operator: Operator;
  readonly value: string | number;
}

export interface FilterLimits {
  /** Longest filter. */
  readonly filterBytesMax: number;
  readonly filterTermCountMax: number;
}

/** More stars than a pattern can need. */
const wildcardCountMax = 16;

/** Reads a filter. Throws FIELD_INVALID that names the place, counting characters from 1. */
export function readTerms(text: string, limits: FilterLimits, grammar: Grammar): readonly Term[] {
  if (Buffer.byteLength(text) > limits.filterBytesMax) {
    throw fieldInvalid("filter", `must be at most ${limits.filterBytesMax} bytes`);
  }
  if (text.includes("\0") || !text.isWellFormed()) throw fieldInvalid("filter", "must be text without NUL");
  const reader = new Reader(text);
  const terms: Term[] = [];
  reader.skipBlanks();
  if (reader.atEnd) return terms;
  for (;;) {
    if (terms.length === limits.filterTermCountMax) throw reader.failure(`at most ${limits.filterTermCountMax} terms`);
    terms.push(readTerm(reader, grammar));
    reader.skipBlanks();
    if (reader.atEnd) return terms;
    if (reader.take(/AND(?=[ \t\r\n])/y) === undefined) throw reader.failure("AND or the end");
    reader.skipBlanks();
  }
}

/** GLOB knows more wildcards than `*`: they are put in brackets to mean themselves. */
export function globOf(pattern: string): string {
  return pattern.replace(/[?[]/g, "[$&]");
}

function readTerm(reader: Reader, grammar: Grammar): Term {
  reader.skipBlanks();
  const fieldAt = reader.at;
  const field = reader.take(/[A-Za-z0-9_.-]+/y);
  if (field === undefined) throw reader.failure("a field");
  const rule = grammar.ruleOf(field);
  if (rule === undefined) throw reader.failure(`one of ${grammar.fieldNames}`, fieldAt);
  reader.skipBlanks();
  const operatorAt = reader.at;
  const operator = reader.take(/!=|<=|>=|=|<|>|:/y) as Operator | undefined;
  if (operator === undefined) throw reader.failure("one of = != < <= > >= :");
  reader.skipBlanks();
  const valueAt = reader.at;
  const value = readValue(reader);
  if (rule.type === "text") {
    if (operator === ":" && value.split("*").length - 1 > wildcardCountMax) {
      throw reader.failure(`at most ${wildcardCountMax} stars`, valueAt);
    }
    return { field, operator, value };
  }
  if (operator === ":") throw reader.failure(`another op: only ${grammar.textNames} are text`, operatorAt);
  if (rule.type === "code" && !rule.ordered && operator !== "=" && operator !== "!=") {
    throw reader.failure(`= or !=: ${field}s have no order`, operatorAt);
  }
  return { field, operator, value: readNumber(reader, rule, value, valueAt) };
}

function readValue(reader: Reader): string {
  const quoted = reader.take(/"(?:[^"\\]|\\["\\])*"/y);
  if (quoted !== undefined) return quoted.slice(1, -1).replace(/\\(["\\])/g, "$1");
  const bare = reader.take(/[^\s"()]+/y);
  if (bare === undefined) throw reader.failure('a value, like billing or "two words"');
  return bare;
}

function readNumber(reader: Reader, rule: Exclude<FieldRule, { type: "text" }>, value: string, at: number): number {
  if (rule.type === "code") {
    const code = rule.codes.get(value);
    if (code === undefined) throw reader.failure(`one of ${[...rule.codes.keys()].join(", ")}`, at);
    return code;
  }
  if (rule.type === "bytes") {
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
