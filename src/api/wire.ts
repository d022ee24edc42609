/**
 * Looks into requests without decoding them: finds the top-level fields of a protobuf message in its bytes, so that
 * statements and rows pass through as they came. Also writes the few fields that are added to answers.
 */
import { createHash } from "node:crypto";
import { type DescMessage, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { PositionSchema } from "../../gen/persisto/v1/database_pb.js";
import type { Position } from "../engine/engine.ts";

export const wireVarint = 0;
export const wireFixed64 = 1;
export const wireBytes = 2;
const wireGroupStart = 3;
const wireGroupEnd = 4;
const wireFixed32 = 5;

/** Deeper groups are refused, as protobuf's own decoders do. */
const groupDepthMax = 100;

/** Goes over the fields of one message, outermost level only. Refuses bytes that are not protobuf with `invalid_argument`. */
export class FieldReader {
  field = 0;
  wireType = 0;
  /** Where the field begins, tag included. */
  tagStart = 0;
  /** The contents: of a length-delimited field without its length. */
  start = 0;
  end = 0;
  /** The low 32 bits of a varint, unsigned. */
  varint = 0;

  readonly #bytes: Uint8Array;
  readonly #limit: number;
  #at: number;

  constructor(bytes: Uint8Array, from = 0, to = bytes.byteLength) {
    this.#bytes = bytes;
    this.#at = from;
    this.#limit = to;
  }

  /** Moves to the next field; false at the end. */
  next(): boolean {
    if (this.#at >= this.#limit) {
      return false;
    }
    this.tagStart = this.#at;
    const tag = this.#readVarint();
    this.field = tag >>> 3;
    this.wireType = tag & 7;
    if (this.field === 0) {
      throw malformed("a field has the number 0");
    }
    this.start = this.#at;
    switch (this.wireType) {
      case wireVarint:
        this.varint = this.#readVarint();
        break;
      case wireFixed64:
        this.#skip(8);
        break;
      case wireBytes: {
        const length = this.#readVarint();
        this.start = this.#at;
        this.#skip(length);
        break;
      }
      case wireFixed32:
        this.#skip(4);
        break;
      case wireGroupStart:
        this.#skipGroup(this.field);
        break;
      default:
        throw malformed(`a field has the wire type ${this.wireType}`);
    }
    this.end = this.#at;
    return true;
  }

  #readVarint(): number {
    const bytes = this.#bytes;
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.#at >= this.#limit) {
        throw malformed("it ends inside a number");
      }
      const byte = bytes[this.#at++] as number;
      if (shift < 32) {
        value |= (byte & 0x7f) << shift;
      }
      if (byte < 0x80) {
        return value >>> 0;
      }
    }
    throw malformed("a number is longer than 10 bytes");
  }

  #skip(length: number): void {
    if (length > this.#limit - this.#at) {
      throw malformed("it ends inside a field");
    }
    this.#at += length;
  }

  #skipGroup(field: number): void {
    const open = [field];
    while (open.length > 0) {
      if (this.#at >= this.#limit) {
        throw malformed("it ends inside a group");
      }
      const tag = this.#readVarint();
      switch (tag & 7) {
        case wireVarint:
          this.#readVarint();
          break;
        case wireFixed64:
          this.#skip(8);
          break;
        case wireBytes:
          this.#skip(this.#readVarint());
          break;
        case wireFixed32:
          this.#skip(4);
          break;
        case wireGroupStart:
          if (open.length >= groupDepthMax) {
            throw malformed("its groups are too deep");
          }
          open.push(tag >>> 3);
          break;
        case wireGroupEnd:
          if (open.pop() !== tag >>> 3) {
            throw malformed("a group ends that did not begin");
          }
          break;
        default:
          throw malformed(`a field has the wire type ${tag & 7}`);
      }
    }
  }
}

function malformed(problem: string): ConnectError {
  return new ConnectError(`the request is not a protobuf message: ${problem}`, Code.InvalidArgument);
}

/** What a field of a request is to the API. */
export type FieldRole =
  | "database"
  | "body"
  | "steps"
  | "rowFormat"
  | "durability"
  | "requestId"
  | "minPosition"
  | "chunkRowsMax"
  | "chunkBytesMax";

/** Where the fields of a request stand. */
export interface RequestLayout {
  readonly schema: DescMessage;
  /** Role by field number. */
  readonly roles: readonly (FieldRole | undefined)[];
  /** True when `body` is a message, whose parts would have to be merged if it came twice; false for a string. */
  readonly bodyIsMessage: boolean;
}

/** What was found in a request. Fields that are missing have protobuf's defaults. */
export interface RequestFields {
  /** The request itself, or its canonical form when it came with split submessages. */
  bytes: Uint8Array;
  database: string;
  /** Contents of the statement or script; undefined when the field is missing. */
  body: Uint8Array | undefined;
  stepCount: number;
  rowFormat: number;
  durability: number;
  requestId: string;
  minPosition: Position | undefined;
  chunkRowsMax: number;
  chunkBytesMax: number;
}

const numberRoles = new Set<FieldRole>(["rowFormat", "durability", "chunkRowsMax", "chunkBytesMax"]);

/** Reads a request as protobuf would: the last of several values wins, and parts of a submessage are merged. */
export function readRequest(request: Uint8Array, layout: RequestLayout): RequestFields {
  return scan(request, layout) ?? (scan(canonical(request, layout.schema), layout) as RequestFields);
}

/** Undefined when a submessage is in parts. */
function scan(bytes: Uint8Array, layout: RequestLayout): RequestFields | undefined {
  const found: RequestFields = {
    bytes,
    database: "",
    body: undefined,
    stepCount: 0,
    rowFormat: 0,
    durability: 0,
    requestId: "",
    minPosition: undefined,
    chunkRowsMax: 0,
    chunkBytesMax: 0,
  };
  const reader = new FieldReader(bytes);
  while (reader.next()) {
    const role = layout.roles[reader.field];
    if (role === undefined) {
      continue;
    }
    if (reader.wireType !== (numberRoles.has(role) ? wireVarint : wireBytes)) {
      throw malformed(`field ${reader.field} has the wire type ${reader.wireType}`);
    }
    switch (role) {
      case "database":
        found.database = text(bytes, reader.start, reader.end);
        break;
      case "body":
        if (found.body !== undefined && layout.bodyIsMessage) {
          return undefined;
        }
        found.body = bytes.subarray(reader.start, reader.end);
        break;
      case "steps":
        if (isSplit(bytes, reader.start, reader.end)) {
          return undefined;
        }
        found.stepCount++;
        break;
      case "rowFormat":
        found.rowFormat = reader.varint | 0;
        break;
      case "durability":
        found.durability = reader.varint | 0;
        break;
      case "requestId":
        found.requestId = text(bytes, reader.start, reader.end);
        break;
      case "minPosition":
        if (found.minPosition !== undefined) {
          return undefined;
        }
        found.minPosition = decodePosition(bytes.subarray(reader.start, reader.end));
        break;
      case "chunkRowsMax":
        found.chunkRowsMax = reader.varint;
        break;
      case "chunkBytesMax":
        found.chunkBytesMax = reader.varint;
        break;
    }
  }
  return found;
}

/** True when a BatchStep holds its statement in several parts. */
function isSplit(bytes: Uint8Array, from: number, to: number): boolean {
  const reader = new FieldReader(bytes, from, to);
  let statements = 0;
  while (reader.next()) {
    if (reader.field === 1) {
      statements++;
    }
  }
  return statements > 1;
}

function canonical(request: Uint8Array, schema: DescMessage): Uint8Array {
  try {
    return toBinary(schema, fromBinary(schema, request));
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error));
  }
}

function decodePosition(bytes: Uint8Array): Position {
  try {
    const { lineage, sequence } = fromBinary(PositionSchema, bytes);
    return { lineage, sequence };
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error));
  }
}

/** Ids are ASCII: anything else comes out as letters that no rule accepts. */
function text(bytes: Uint8Array, start: number, end: number): string {
  const view = bytes instanceof Buffer ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return view.toString("latin1", start, end);
}

/** How a message is hashed: fields left out, fields of maps (whose order means nothing), and fields that hold such a message. */
export interface HashShape {
  readonly omit?: number;
  readonly map?: number;
  readonly nested?: Readonly<Record<number, HashShape>>;
}

/** The same for two requests that say the same, though their maps were written in another order. */
export function hashRequest(bytes: Uint8Array, shape: HashShape): string {
  return digest(bytes, 0, bytes.byteLength, shape).toString("hex");
}

function digest(bytes: Uint8Array, from: number, to: number, shape: HashShape): Buffer {
  const hash = createHash("sha256");
  const entries: Buffer[] = [];
  const reader = new FieldReader(bytes, from, to);
  while (reader.next()) {
    if (reader.field === shape.omit) {
      continue;
    }
    const nested = shape.nested?.[reader.field];
    if (reader.field === shape.map) {
      entries.push(Buffer.from(bytes.subarray(reader.tagStart, reader.end)));
    } else if (nested !== undefined && reader.wireType === wireBytes) {
      hash.update(`${reader.field}`).update(digest(bytes, reader.start, reader.end, nested));
    } else {
      hash.update(bytes.subarray(reader.tagStart, reader.end));
    }
  }
  for (const entry of entries.sort(Buffer.compare)) {
    hash.update(entry);
  }
  return hash.digest();
}

const lineageBytesMax = 100;

/** Bytes of a field that holds a Position. */
export function encodePositionField(field: number, position: Position): Uint8Array {
  const { lineage, sequence } = position;
  if (lineage.length > lineageBytesMax) {
    throw new RangeError(`a lineage has ${lineage.length} characters`);
  }
  const out = Buffer.allocUnsafe(lineage.length + 16);
  let at = 2;
  if (lineage.length > 0) {
    out[at++] = (1 << 3) | wireBytes;
    out[at++] = lineage.length;
    // Sixteen hex digits, written for every answer: a call into Node's own encoder costs more than the loop.
    for (let index = 0; index < lineage.length; index++) {
      out[at++] = lineage.charCodeAt(index);
    }
  }
  if (sequence > 0n) {
    out[at++] = (2 << 3) | wireVarint;
    at = writeVarint(out, at, sequence);
  }
  out[0] = (field << 3) | wireBytes;
  out[1] = at - 2;
  return out.subarray(0, at);
}

function writeVarint(out: Buffer, from: number, value: bigint): number {
  let at = from;
  let rest = value;
  while (rest > 0x1f_ffff_ffff_ffffn) {
    out[at++] = Number(rest & 0x7fn) | 0x80;
    rest >>= 7n;
  }
  let small = Number(rest);
  while (small > 0x7f) {
    out[at++] = (small % 128) | 0x80;
    small = Math.floor(small / 128);
  }
  out[at++] = small;
  return at;
}

/** A length-delimited field of several parts. */
export function encodeBytesField(field: number, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const out = Buffer.allocUnsafe(length + 6);
  out[0] = (field << 3) | wireBytes;
  let at = writeVarint(out, 1, BigInt(length));
  for (const part of parts) {
    out.set(part, at);
    at += part.byteLength;
  }
  return out.subarray(0, at);
}
