/** Rules of single fields, shared by all methods. Each raises FIELD_INVALID with the path of the field. */

import type { DurabilityLevel, Position } from "../engine/engine.ts";
import { idRule, isDatabaseId } from "../engine/names.ts";
import { type Failure, type FieldViolation, fieldInvalid } from "../failure/failure.ts";

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export function checkDatabaseId(id: string, field = "database"): void {
  if (!isDatabaseId(id)) {
    throw fieldInvalid(field, idRule);
  }
}

/** Returns the UUID as 32 hex digits, undefined when it is not set. */
export function checkRequestId(requestId: string): string | undefined {
  if (requestId === "") {
    return undefined;
  }
  if (!uuidPattern.test(requestId)) {
    throw fieldInvalid("request_id", "must be a UUID, as 123e4567-e89b-12d3-a456-426614174000");
  }
  return requestId.replaceAll("-", "").toLowerCase();
}

export function throwViolations(violations: readonly FieldViolation[]): void {
  const [first, ...more] = violations;
  if (first !== undefined) {
    throw fieldInvalid(first.field, first.description, ...more);
  }
}

/** True for columns. */
export function checkRowFormat(rowFormat: number): boolean {
  if (rowFormat < 0 || rowFormat > 2) {
    throw fieldInvalid("row_format", "must be ROW_FORMAT_ROWS or ROW_FORMAT_COLUMNS");
  }
  return rowFormat === 2;
}

const durabilityLevels: readonly DurabilityLevel[] = ["local", "committed", "local", "remote"];

export function checkDurability(durability: number, field = "durability"): DurabilityLevel {
  return durabilityLevels[durability] ?? refuseDurability(field);
}

function refuseDurability(field: string): never {
  throw fieldInvalid(field, "must be DURABILITY_COMMITTED, DURABILITY_LOCAL or DURABILITY_REMOTE");
}

export function checkMinPosition(position: Position | undefined, field = "min_position"): Position | undefined {
  if (position !== undefined && position.lineage === "") {
    throw fieldInvalid(`${field}.lineage`, "must be set, as an earlier answer gave it");
  }
  return position;
}

export function required(field: string): Failure {
  return fieldInvalid(field, "must be set");
}
