/** Rules of single fields, shared by all methods. Each raises FIELD_INVALID with the path of the field. */
import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";
import { Stage } from "../../gen/persisto/v1/database_pb.js";
import type { DurabilityLevel, Position, StageName } from "../engine/engine.ts";
import { idRule, isDatabaseId } from "../engine/names.ts";
import { type Failure, type FieldViolation, fieldInvalid } from "../failure/failure.ts";
import { durationMs } from "./messages.ts";

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

/** Undefined when it is not set. */
export function checkStage(stage: Stage, field: string): StageName | undefined {
  switch (stage) {
    case Stage.UNSPECIFIED:
      return undefined;
    case Stage.MEMORY:
      return "memory";
    case Stage.LOCAL:
      return "local";
    case Stage.REMOTE:
      return "remote";
    default:
      throw fieldInvalid(field, "must be STAGE_MEMORY, STAGE_LOCAL or STAGE_REMOTE");
  }
}

/** From the year 1 to the year 9999, as protobuf says. */
const timeSecondsMin = -62_135_596_800n;
const timeSecondsMax = 253_402_300_799n;

/** Milliseconds since 1970; what is finer is cut off. */
export function checkTime({ seconds, nanos }: Pick<Timestamp, "seconds" | "nanos">, field: string): number {
  if (seconds < timeSecondsMin || seconds > timeSecondsMax || nanos < 0 || nanos > 999_999_999) {
    throw fieldInvalid(field, "must be a time from the year 1 to the year 9999");
  }
  return Number(seconds) * 1000 + Math.floor(nanos / 1_000_000);
}

const waitSecondsMax = 315_576_000_000n;

/** Milliseconds, rounded up; undefined when it is not set. */
export function checkWait(wait: Pick<Duration, "seconds" | "nanos"> | undefined, field = "wait"): number | undefined {
  if (wait === undefined) {
    return undefined;
  }
  const { seconds, nanos } = wait;
  if (seconds < 0n || seconds > waitSecondsMax || nanos < 0 || nanos > 999_999_999) {
    throw fieldInvalid(field, "must be a time that is not negative");
  }
  return durationMs(wait);
}

export function optional(text: string): string | undefined {
  return text === "" ? undefined : text;
}

export function checkMinPosition(position: Position, field?: string): Position;
export function checkMinPosition(position: Position | undefined, field?: string): Position | undefined;
export function checkMinPosition(position: Position | undefined, field = "min_position"): Position | undefined {
  if (position !== undefined && position.lineage === "") {
    throw fieldInvalid(`${field}.lineage`, "must be set, as an earlier answer gave it");
  }
  return position;
}

export function required(field: string): Failure {
  return fieldInvalid(field, "must be set");
}
