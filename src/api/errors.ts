/** What was thrown becomes what is sent: a status with google.rpc details, the same on every protocol. */
import { create, type DescMessage, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";
import { type OperationError, OperationErrorSchema } from "../../gen/persisto/v1/operation_pb.js";
import { Failure } from "../failure/failure.ts";
import type { StatusCode } from "../failure/reasons.ts";
import { CallCancelled } from "../sqlite/executor.ts";
import type { RawCall } from "../transport/transport.ts";

/** `ErrorInfo.domain` of every error that Persisto raises. */
export const errorDomain = "persisto.v1";

/** Message and details travel in HTTP trailers, encoded twice over; some clients refuse more than 8 KiB of those. */
const statusBytesMax = 4096;
const textCharactersMax = 200;
const violationCountMax = 16;

/** What an unforeseen error needs: an id to send, and a place to keep its cause. */
export interface ErrorReporting {
  /** A fresh id, shown to the caller and logged beside the cause. */
  readonly newErrorId: () => string;
  readonly onInternal: (errorId: string, cause: unknown, call: RawCall) => void;
}

/** Turns anything thrown into the error that is sent. ConnectErrors pass as they are: they are the transport's own. */
export type ToConnectError = (error: unknown, call: RawCall) => ConnectError;

export function createToConnectError(reporting: ErrorReporting): ToConnectError {
  return (error, call) => {
    if (error instanceof Failure && error.reason !== "INTERNAL") {
      return failureToConnectError(error);
    }
    if (error instanceof ConnectError) {
      return error;
    }
    if (error instanceof CallCancelled) {
      return new ConnectError("the call was cancelled", Code.Canceled);
    }
    const errorId = reporting.newErrorId();
    reporting.onInternal(errorId, error, call);
    return failureToConnectError(new Failure("INTERNAL", { errorId }));
  };
}

/** The answer to a statement that failed inside a transaction which goes on. */
export function failureToOperationError(failure: Failure): OperationError {
  const { message, details } = describe(failure);
  return create(OperationErrorSchema, {
    code: codes[failure.entry.code],
    message,
    details: details.map(({ desc, value }) => anyPack(desc, value)),
  });
}

export function failureToConnectError(failure: Failure): ConnectError {
  const { message, details } = describe(failure);
  return new ConnectError(message, codes[failure.entry.code], undefined, details, failure);
}

/** gRPC's number of each status. */
export const codes: Readonly<Record<StatusCode, Code>> = {
  CANCELLED: Code.Canceled,
  UNKNOWN: Code.Unknown,
  INVALID_ARGUMENT: Code.InvalidArgument,
  DEADLINE_EXCEEDED: Code.DeadlineExceeded,
  NOT_FOUND: Code.NotFound,
  ALREADY_EXISTS: Code.AlreadyExists,
  PERMISSION_DENIED: Code.PermissionDenied,
  RESOURCE_EXHAUSTED: Code.ResourceExhausted,
  FAILED_PRECONDITION: Code.FailedPrecondition,
  ABORTED: Code.Aborted,
  OUT_OF_RANGE: Code.OutOfRange,
  UNIMPLEMENTED: Code.Unimplemented,
  INTERNAL: Code.Internal,
  UNAVAILABLE: Code.Unavailable,
  DATA_LOSS: Code.DataLoss,
  UNAUTHENTICATED: Code.Unauthenticated,
};

interface Detail {
  readonly desc: DescMessage;
  readonly value: MessageShape<DescMessage>;
}

interface Described {
  readonly message: string;
  readonly details: Detail[];
}

/** Texts are cut once; what is still too large (many long violations, scripts of three bytes a letter) is cut harder. */
function describe(failure: Failure): Described {
  let charactersMax = textCharactersMax;
  let violationsMax = violationCountMax;
  for (;;) {
    const described = describeWithin(failure, charactersMax, violationsMax);
    if (statusBytes(described) <= statusBytesMax || charactersMax <= 10) {
      return described;
    }
    charactersMax = Math.floor(charactersMax / 2);
    violationsMax = Math.max(1, Math.floor(violationsMax / 2));
  }
}

function describeWithin(failure: Failure, charactersMax: number, violationsMax: number): Described {
  const metadata: Record<string, string> = {};
  for (const key of failure.entry.metadata) {
    const value = failure.facts[key];
    if (value !== undefined) {
      metadata[key] = cut(value, charactersMax);
    }
  }
  const details = [
    detail(ErrorInfoSchema, create(ErrorInfoSchema, { reason: failure.reason, domain: errorDomain, metadata })),
  ];
  if (failure.retryAfterMs !== undefined) {
    const retryAfterMs = Math.max(0, Math.ceil(failure.retryAfterMs));
    const retryDelay = { seconds: BigInt(Math.floor(retryAfterMs / 1000)), nanos: (retryAfterMs % 1000) * 1_000_000 };
    details.push(detail(RetryInfoSchema, create(RetryInfoSchema, { retryDelay })));
  }
  if (failure.violations.length > 0) {
    const fieldViolations = failure.violations.slice(0, violationsMax).map((violation) => ({
      field: cut(violation.field, charactersMax),
      description: cut(violation.description, charactersMax),
    }));
    details.push(detail(BadRequestSchema, create(BadRequestSchema, { fieldViolations })));
  }
  if (failure.reason === "CONSTRAINT_VIOLATED") {
    const violations = [
      {
        type: cut(failure.facts.constraint ?? "constraint", charactersMax),
        subject: cut(constraintSubject(failure), charactersMax),
        description: cut(failure.facts.sqliteMessage ?? "", charactersMax),
      },
    ];
    details.push(detail(PreconditionFailureSchema, create(PreconditionFailureSchema, { violations })));
  }
  return { message: cut(failure.message, charactersMax * 2), details };
}

function constraintSubject(failure: Failure): string {
  const { table, columns } = failure.facts;
  if (table === undefined) {
    return columns ?? "";
  }
  return columns === undefined ? table : `${table}(${columns})`;
}

function detail<Desc extends DescMessage>(desc: Desc, value: MessageShape<Desc>): Detail {
  return { desc, value };
}

/** What message and details weigh once they stand in trailers: percent-encoded, and in base64. */
function statusBytes({ message, details }: Described): number {
  let binary = message.length;
  for (const { desc, value } of details) {
    binary += toBinary(desc, value).byteLength + desc.typeName.length + 32;
  }
  return encodeURI(message).length + Math.ceil((binary * 4) / 3);
}

/** Cuts by characters, never through a pair of surrogates; lone ones, which UTF-8 cannot carry, are replaced. */
function cut(text: string, charactersMax: number): string {
  const whole = text.toWellFormed();
  if (whole.length <= charactersMax) {
    return whole;
  }
  let end = charactersMax - 1;
  const last = whole.charCodeAt(end - 1);
  if (last >= 0xd800 && last <= 0xdbff) {
    end--;
  }
  return `${whole.slice(0, end)}…`;
}
