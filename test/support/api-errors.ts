/** What an API test looks at in an error. */
import { ConnectError } from "@connectrpc/connect";
import { expect } from "vitest";
import {
  type BadRequest,
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";
import { codes } from "../../src/api/errors.ts";
import { type Reason, reasons } from "../../src/failure/reasons.ts";

/** The error of a call that must fail. */
export async function failureOf(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof ConnectError) {
      return error;
    }
    throw error;
  }
  throw new Error("the call succeeded");
}

/** Checks status, reason and domain; returns the metadata of ErrorInfo. */
export async function expectFailure(call: Promise<unknown>, reason: Reason): Promise<Readonly<Record<string, string>>> {
  const error = await failureOf(call);
  const [info] = error.findDetails(ErrorInfoSchema);
  expect({ reason: info?.reason, domain: info?.domain, code: error.code }, error.message).toEqual({
    reason,
    domain: "persisto.v1",
    code: codes[reasons[reason].code],
  });
  return info?.metadata ?? {};
}

/** Checks that these fields are refused, by their paths, in any order. */
export async function expectFieldInvalid(call: Promise<unknown>, ...fields: readonly string[]): Promise<void> {
  const error = await failureOf(call);
  const [info] = error.findDetails(ErrorInfoSchema);
  expect(info?.reason, error.message).toBe("FIELD_INVALID");
  const [badRequest] = error.findDetails(BadRequestSchema);
  expect(paths(badRequest).sort()).toEqual([...fields].sort());
}

function paths(badRequest: BadRequest | undefined): string[] {
  return badRequest?.fieldViolations.map((violation) => violation.field) ?? [];
}

export function retryDelayMs(error: ConnectError): number | undefined {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay && Number(delay.seconds) * 1000 + delay.nanos / 1_000_000;
}

export function preconditions(error: ConnectError) {
  return error.findDetails(PreconditionFailureSchema).flatMap((detail) => detail.violations);
}
