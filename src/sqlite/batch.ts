/** Walks the bytes of an ExecuteBatchRequest and of ResultSets without decoding statements or rows. */
import { readEnd, readInt64, readVarint, skipValue, TYPE_LENGTH, TYPE_VARINT } from "./wire.ts";

/** Field numbers of persisto.v1. */
const REQUEST_STEPS = 2;
const STEP_STATEMENT = 1;
const STEP_EXPECTED_ROWS_AFFECTED = 2;
const RESULT_ROWS_AFFECTED = 4;

/** Where a step's statement lies, and how many rows it is expected to change. */
export interface BatchStep {
  readonly start: number;
  readonly end: number;
  readonly expected: bigint | undefined;
}

/** Calls `each` for the steps in their order. */
export function forEachStep(request: Uint8Array, start: number, end: number, each: (step: BatchStep) => void): void {
  let at = start;
  while (at < end) {
    const tag = readVarint(request, at, end);
    at = readEnd();
    const next = skipValue(request, at, end, tag & 7);
    if (tag >>> 3 === REQUEST_STEPS && (tag & 7) === TYPE_LENGTH) {
      readVarint(request, at, end);
      each(readStep(request, readEnd(), next));
    }
    at = next;
  }
}

function readStep(request: Uint8Array, start: number, end: number): BatchStep {
  // A step without a statement has an empty one, which SQLite refuses by name.
  let from = start;
  let to = start;
  let expected: bigint | undefined;
  let at = start;
  while (at < end) {
    const tag = readVarint(request, at, end);
    at = readEnd();
    const next = skipValue(request, at, end, tag & 7);
    if (tag >>> 3 === STEP_STATEMENT && (tag & 7) === TYPE_LENGTH) {
      readVarint(request, at, end);
      from = readEnd();
      to = next;
    } else if (tag >>> 3 === STEP_EXPECTED_ROWS_AFFECTED && (tag & 7) === TYPE_VARINT)
      expected = readInt64(request, at, end);
    at = next;
  }
  return { start: from, end: to, expected };
}

/** `rows_affected` of an encoded ResultSet. */
export function rowsAffected(result: Uint8Array, start: number, end: number): bigint {
  let rows = 0n;
  let at = start;
  while (at < end) {
    const tag = readVarint(result, at, end);
    at = readEnd();
    if (tag >>> 3 === RESULT_ROWS_AFFECTED && (tag & 7) === TYPE_VARINT) {
      rows = readInt64(result, at, end);
      at = readEnd();
    } else at = skipValue(result, at, end, tag & 7);
  }
  return rows;
}
