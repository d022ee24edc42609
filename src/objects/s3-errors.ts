/** What S3 stores answer when they do not do what was asked, in our words. */
import { type MissingAbility, ObjectStoreError, type ObjectStoreErrorKind } from "./object-store.ts";

/** What the SDK's errors have in common. */
interface S3Error {
  readonly name: string;
  readonly message: string;
  readonly status: number | undefined;
  readonly attemptCount: number;
}

/** Reads an error of the SDK, or of what lies under it. */
export function readS3Error(error: unknown): S3Error {
  const { name, Code, code, message, $metadata } = (error ?? {}) as {
    name?: string;
    Code?: string;
    code?: string;
    message?: string;
    $metadata?: { httpStatusCode?: number; attempts?: number };
  };
  const generic = name === undefined || name === "Error" || name === "UnknownError" || name === "AggregateError";
  return {
    name: (generic ? (Code ?? code) : name) ?? "Error",
    message: message ?? String(error),
    status: $metadata?.httpStatusCode,
    attemptCount: $metadata?.attempts ?? 1,
  };
}

const throttlingNames =
  /^(SlowDown|SlowDownRead|SlowDownWrite|Throttling\w*|TooManyRequests\w*|RequestLimitExceeded|BandwidthLimitExceeded)$/;

/** The store asks for fewer calls. */
export function isThrottling({ name, status }: S3Error): boolean {
  return status === 429 || throttlingNames.test(name);
}

/** Two conditional puts met; this one did nothing, and may be repeated at once. */
export function isConflict({ name, status }: S3Error): boolean {
  return status === 409 && (name === "ConditionalRequestConflict" || name === "OperationAborted");
}

/**
 * The object is not there. Other answers with 404 are about other things, and must never be taken for the absence of data.
 * HEAD has no body: its answer for a bucket that is gone is the same.
 */
export function isAbsence({ name, status }: S3Error): boolean {
  return status === 404 && (name === "NoSuchKey" || name === "NotFound" || name === "404");
}

const credentialNames =
  /^(InvalidAccessKeyId|SignatureDoesNotMatch|CredentialsProviderError|InvalidToken|ExpiredToken|TokenRefreshRequired|RequestTimeTooSkewed|InvalidSecurity|XAdminUserNotFound)$/;

/** `action` is the permission that S3 has for what was tried. */
export function s3Failure(error: unknown, action: string, where: string): ObjectStoreError {
  if (error instanceof ObjectStoreError) return error;
  const found = readS3Error(error);
  const { name, status } = found;
  const failed = (kind: ObjectStoreErrorKind, reason: string, missing?: MissingAbility) =>
    new ObjectStoreError(kind, `${where}: ${reason} (${action} answered ${[status, name].filter(Boolean).join(" ")})`, {
      cause: error,
      missing,
    });
  if (name === "NoSuchBucket") return failed("unavailable", "the bucket does not exist", "bucket");
  if (credentialNames.test(name)) {
    return failed("denied", "the access key, its secret or this machine's clock is wrong", "credentials");
  }
  if (isThrottling(found)) return failed("throttled", "the store takes no more calls now");
  if (name === "AuthorizationHeaderMalformed" || status === 301) {
    return failed("denied", "the region is not that of the bucket", "endpoint");
  }
  if (status === 401 || status === 403) {
    return failed("denied", `these credentials lack the permission s3:${action}`, "permission");
  }
  if (isAbsence(found)) return failed("not_found", "there is no such object");
  if (status === 412) return failed("precondition", "the condition does not hold");
  if (status === 501) return failed("denied", "the store does not know what was asked", "conditional_put");
  if (/checksum mismatch/i.test(found.message)) return failed("corrupt", "the bytes do not match their checksum");
  return failed("unavailable", found.message, status === undefined ? "endpoint" : undefined);
}
