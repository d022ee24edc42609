/**
 * The filter and the order of ListDatabases. The fields, in the language of filter-language.ts:
 *
 *   field  = id | stage | state | size_bytes | create_time | last_access_time | labels.KEY
 *
 * `!=` is true of a label that is not there, every other op is not. Text is compared by code points.
 */
import { fieldInvalid } from "../failure/failure.ts";
import { type PageOrder, type SqlCondition, stageCodes, stateCodes } from "./catalog.ts";
import {
  type FieldRule,
  type FilterLimits,
  type Grammar,
  globOf,
  type Operator,
  readTerms,
  type Term,
} from "./filter-language.ts";
import { isLabelKey } from "./names.ts";

/** One comparison. `value` is text for ids and labels, a number for the rest: bytes, milliseconds since 1970, or a code. */
export type FilterTerm =
  | { readonly field: "id"; readonly operator: Operator; readonly value: string }
  | { readonly field: "label"; readonly key: string; readonly operator: Operator; readonly value: string }
  | { readonly field: NumberField; readonly operator: Exclude<Operator, ":">; readonly value: number };

type NumberField = "stage" | "state" | "size_bytes" | "create_time" | "last_access_time";

const stages = new Map(Object.entries(stageCodes).map(([name, code]) => [`STAGE_${name.toUpperCase()}`, code]));
const states = new Map(
  Object.entries(stateCodes).map(([name, code]) => [`DATABASE_STATE_${name.toUpperCase()}`, code]),
);

const numberRules: Readonly<Record<NumberField, FieldRule>> = {
  stage: { type: "code", codes: stages, ordered: true },
  state: { type: "code", codes: states, ordered: false },
  size_bytes: { type: "bytes" },
  create_time: { type: "time" },
  last_access_time: { type: "time" },
};
const text: FieldRule = { type: "text" };
const labelPrefix = "labels.";

const grammar: Grammar = {
  ruleOf(field) {
    if (field.startsWith(labelPrefix)) return isLabelKey(field.slice(labelPrefix.length)) ? text : undefined;
    if (field === "id") return text;
    return Object.hasOwn(numberRules, field) ? numberRules[field as NumberField] : undefined;
  },
  fieldNames: `id, ${Object.keys(numberRules).join(", ")}, labels.KEY`,
  textNames: "ids and labels",
};

/** Reads a filter. Throws FIELD_INVALID that names the place, counting characters from 1. */
export function parseFilter(filter: string, limits: FilterLimits): readonly FilterTerm[] {
  return readTerms(filter, limits, grammar).map(databaseTerm);
}

function databaseTerm({ field, operator, value }: Term): FilterTerm {
  if (!field.startsWith(labelPrefix)) return { field, operator, value } as FilterTerm;
  return { field: "label", key: field.slice(labelPrefix.length), operator, value: String(value) };
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
