import { readFileSync } from "node:fs";
import { toBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";
import { DatabaseService } from "../../gen/persisto/v1/database_service_pb.js";
import { ErrorReasonSchema } from "../../gen/persisto/v1/error_reason_pb.js";
import { OperationErrorSchema } from "../../gen/persisto/v1/operation_pb.js";
import { codes, createToConnectError, failureToConnectError, failureToOperationError } from "../../src/api/errors.ts";
import { Failure, fieldInvalid } from "../../src/failure/failure.ts";
import { type Reason, type ReasonEntry, reasons } from "../../src/failure/reasons.ts";
import { CallCancelled } from "../../src/sqlite/executor.ts";
import type { RawCall } from "../../src/transport/transport.ts";

const allReasons = Object.keys(reasons) as Reason[];

describe("the table of failures and the enum ErrorReason", () => {
  const proto = readFileSync(new URL("../../proto/persisto/v1/error_reason.proto", import.meta.url), "utf8");
  /** Code named first in the comment above each value. */
  const documented = new Map(
    [...proto.matchAll(/((?:^ *\/\/.*\n)+) *ERROR_REASON_(\w+) = \d+;/gm)].map(([, comment = "", name = ""]) => {
      return [name, /\/\/ ([A-Z_]+)/.exec(comment)?.[1]] as const;
    }),
  );

  it("have the same members", () => {
    const members = ErrorReasonSchema.values.map((value) => value.name.replace("ERROR_REASON_", ""));
    expect(members.filter((name) => name !== "UNSPECIFIED").sort()).toEqual([...allReasons].sort());
  });

  it.each(allReasons)("agree on the status of %s", (reason) => {
    expect(documented.get(reason)).toBe(reasons[reason].code);
  });

  it.each(allReasons)("%s names no fact in its message that it may not send", (reason) => {
    const { message, metadata }: ReasonEntry = reasons[reason];
    const names = [...message.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
    expect(metadata).toEqual(expect.arrayContaining(names));
  });
});

describe("failureToConnectError()", () => {
  it.each(allReasons)("sends %s with its status and ErrorInfo", (reason) => {
    const { metadata, code }: ReasonEntry = reasons[reason];
    const facts = Object.fromEntries(metadata.map((key) => [key, `the ${key}`]));
    const error = failureToConnectError(new Failure(reason, facts));
    expect(error.code).toBe(codes[code]);
    expect(error.findDetails(ErrorInfoSchema)).toMatchObject([{ reason, domain: "persisto.v1", metadata: facts }]);
  });

  it("sends only the facts that the reason lists", () => {
    const error = failureToConnectError(new Failure("DATABASE_EXISTS", { database: "a", path: "/secret" }));
    expect(error.findDetails(ErrorInfoSchema)[0]?.metadata).toEqual({ database: "a" });
  });

  it("adds RetryInfo where waiting helps", () => {
    const failure = new Failure("DATABASE_BUSY", { database: "a", problem: "queue" }, { retryAfterMs: 1250.2 });
    const [info] = failureToConnectError(failure).findDetails(RetryInfoSchema);
    expect(info?.retryDelay).toMatchObject({ seconds: 1n, nanos: 251_000_000 });
  });

  it("adds BadRequest with every violation", () => {
    const failure = fieldInvalid("labels.A", "is bad", { field: "database", description: "is worse" });
    expect(failureToConnectError(failure).findDetails(BadRequestSchema)[0]?.fieldViolations).toMatchObject([
      { field: "labels.A", description: "is bad" },
      { field: "database", description: "is worse" },
    ]);
  });

  it("adds PreconditionFailure for constraints", () => {
    const facts = { constraint: "unique", table: "t", columns: "a, b", sqliteMessage: "UNIQUE constraint failed: t.a" };
    const [detail] = failureToConnectError(new Failure("CONSTRAINT_VIOLATED", facts)).findDetails(
      PreconditionFailureSchema,
    );
    expect(detail?.violations).toMatchObject([
      { type: "unique", subject: "t(a, b)", description: "UNIQUE constraint failed: t.a" },
    ]);
  });

  it("keeps message and details under 4 KiB in trailers, whatever the facts", () => {
    const long = fc.oneof(
      fc.string({ minLength: 0, maxLength: 20 }),
      fc.constant("x".repeat(10_000)),
      fc.constant("語".repeat(5_000)),
      fc.constant("😀".repeat(5_000)),
      fc.constant(`${"a".repeat(198)}😀😀`),
      fc.constant("\ud83d".repeat(300)),
    );
    fc.assert(
      fc.property(
        fc.constantFrom(...allReasons),
        fc.array(long, { minLength: 8, maxLength: 8 }),
        fc.array(fc.record({ field: long, description: long }), { maxLength: 40 }),
        (reason, texts, violations) => {
          const { metadata }: ReasonEntry = reasons[reason];
          const facts = Object.fromEntries(metadata.map((key, index) => [key, texts[index] ?? ""]));
          const failure = new Failure(reason, facts, { violations, retryAfterMs: 1000 });
          const status = failureToOperationError(failure);
          const bytes = toBinary(OperationErrorSchema, status);
          expect(encodeURIComponent(status.message).length).toBeLessThan(4096);
          expect(Buffer.from(bytes).toString("base64").length).toBeLessThanOrEqual(4096);
          expect(status.message.isWellFormed()).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });

  it("cuts a fact to 200 characters", () => {
    const error = failureToConnectError(new Failure("SQL_INVALID", { sqliteMessage: "y".repeat(500) }));
    expect(error.findDetails(ErrorInfoSchema)[0]?.metadata.sqliteMessage).toBe(`${"y".repeat(199)}…`);
  });
});

describe("failureToOperationError()", () => {
  it("carries the same status and details as a call's error", () => {
    const failure = new Failure("SQL_INVALID", { sqliteMessage: "near x", offset: "3" });
    const status = failureToOperationError(failure);
    const error = failureToConnectError(failure);
    expect(status).toMatchObject({ code: Code.InvalidArgument, message: error.rawMessage });
    const [detail] = status.details;
    expect(detail && anyUnpack(detail, ErrorInfoSchema)).toEqual(error.findDetails(ErrorInfoSchema)[0]);
  });
});

describe("createToConnectError()", () => {
  const call = { method: DatabaseService.method.read } as unknown as RawCall;

  function recording() {
    const logged: unknown[][] = [];
    const toConnectError = createToConnectError({
      newErrorId: () => `id-${logged.length}`,
      onInternal: (...entry) => logged.push(entry),
    });
    return { convert: (error: unknown) => toConnectError(error, call), logged };
  }

  it("hides an unforeseen error behind an id under which the cause is logged", () => {
    const { convert, logged } = recording();
    const cause = new TypeError("x is not a function at /srv/secret.ts");
    const error = convert(cause);
    expect(error.code).toBe(Code.Internal);
    expect(error.rawMessage).toContain("id-0");
    expect(error.rawMessage).not.toContain("secret");
    expect(error.findDetails(ErrorInfoSchema)).toMatchObject([{ reason: "INTERNAL", metadata: { errorId: "id-0" } }]);
    expect(logged).toEqual([["id-0", cause, call]]);
  });

  it("gives an id to defects that were found as such", () => {
    const { convert, logged } = recording();
    const defect = new Failure("INTERNAL", {}, { cause: new Error("executor sent nonsense") });
    expect(convert(defect).findDetails(ErrorInfoSchema)[0]?.metadata).toEqual({ errorId: "id-0" });
    expect(logged).toEqual([["id-0", defect, call]]);
  });

  it("passes the transport's own errors, and turns a cancelled call into canceled", () => {
    const { convert, logged } = recording();
    const own = new ConnectError("protocol error", Code.InvalidArgument);
    expect(convert(own)).toBe(own);
    expect(convert(new CallCancelled()).code).toBe(Code.Canceled);
    expect(logged).toEqual([]);
  });

  it.each([undefined, null, "text", 7, { code: 3 }])("takes %s for a defect too", (thrown) => {
    const { convert, logged } = recording();
    expect(convert(thrown).code).toBe(Code.Internal);
    expect(logged).toEqual([["id-0", thrown, call]]);
  });
});
