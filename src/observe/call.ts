/** What is observed of a call, as the transport reports it when the call has ended. */
export interface ObservedCall {
  readonly service: string;
  readonly method: string;
  /** False: there is no such method, and the names are the caller's. */
  readonly exists: boolean;
  readonly protocol: string;
  /** gRPC status code as a number, 0 for OK. */
  readonly code: number;
  readonly durationMs: number;
  readonly requestBytes: number;
  readonly responseBytes: number;
  /** Facts for the log: database, request id. */
  readonly notes: Readonly<Record<string, string>>;
  /** W3C Trace Context, as the caller sent it. */
  readonly traceparent: string | undefined;
  readonly peer: string;
}

const codeNames = [
  "OK",
  "CANCELLED",
  "UNKNOWN",
  "INVALID_ARGUMENT",
  "DEADLINE_EXCEEDED",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "FAILED_PRECONDITION",
  "ABORTED",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
  "UNAUTHENTICATED",
];

/** Name of a gRPC status code. */
export function codeName(code: number): string {
  return codeNames[code] ?? `CODE_${code}`;
}

/** The trace id of a `traceparent` header; undefined when it is none of version 00 to fe, or all zeros. */
export function traceIdOf(traceparent: string | undefined): string | undefined {
  const [, traceId] =
    /^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$/.exec(traceparent ?? "") ??
    [];
  return traceId;
}
