/** The few pieces of protobuf's wire format that an executor needs to walk requests and wrap answers. */
import { NotedFailure } from "./failure-notes.ts";

/** Where the last read ended. Module state instead of an allocation per field: one thread, never across an await. */
let position = 0;

export const TYPE_VARINT = 0;
export const TYPE_FIXED64 = 1;
export const TYPE_LENGTH = 2;
export const TYPE_FIXED32 = 5;

/** Reads a varint of at most 32 bits from a range; the next byte is then at `readEnd()`. */
export function readVarint(bytes: Uint8Array, at: number, end: number): number {
  let value = 0;
  let factor = 1;
  for (let index = at; index < end && index < at + 10; index++) {
    const byte = bytes[index] as number;
    value += (byte & 127) * factor;
    if (byte < 128) {
      position = index + 1;
      return value;
    }
    factor *= 128;
  }
  throw malformed();
}

/** Reads a varint as a signed 64-bit integer. */
export function readInt64(bytes: Uint8Array, at: number, end: number): bigint {
  let value = 0n;
  let shift = 0n;
  for (let index = at; index < end && index < at + 10; index++) {
    const byte = bytes[index] as number;
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) {
      position = index + 1;
      return BigInt.asIntN(64, value);
    }
    shift += 7n;
  }
  throw malformed();
}

export function readEnd(): number {
  return position;
}

/** The end of the field whose value starts at `at`. */
export function skipValue(bytes: Uint8Array, at: number, end: number, type: number): number {
  let next = end + 1;
  if (type === TYPE_VARINT) {
    readInt64(bytes, at, end);
    next = position;
  } else if (type === TYPE_FIXED64) next = at + 8;
  else if (type === TYPE_FIXED32) next = at + 4;
  else if (type === TYPE_LENGTH) {
    const length = readVarint(bytes, at, end);
    next = position + length;
  }
  if (next > end) throw malformed();
  return next;
}

/** Bytes that a varint of this value takes. */
export function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest > 127; rest = Math.floor(rest / 128)) size++;
  return size;
}

/** Returns where the next byte goes. */
export function writeVarint(bytes: Uint8Array, at: number, value: number): number {
  let rest = value;
  let index = at;
  while (rest > 127) {
    bytes[index++] = (rest % 128) | 128;
    rest = Math.floor(rest / 128);
  }
  bytes[index++] = rest;
  return index;
}

function malformed(): NotedFailure {
  return new NotedFailure({
    reason: "FIELD_INVALID",
    facts: { field: "request", description: "is not a message of this method" },
    field: "request",
  });
}
