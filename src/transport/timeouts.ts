/** Deadlines that clients send: longer ones than the server allows are cut, never refused. */
import type { DescMethod } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";

/** Node's timers take no longer time. */
const timerMsMax = 2 ** 31 - 1;

const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

/** The longest deadline that a method's calls may have. */
export function deadlineMsMaxOf(method: DescMethod, unaryMsMax: number): number {
  return method.methodKind === "unary" ? unaryMsMax : timerMsMax;
}

/** A client's wish, cut to what is allowed. */
export interface Timeout {
  readonly ms: number;
  readonly clamped: boolean;
}

/** Of a `grpc-timeout`; undefined when there is none. Throws INVALID_ARGUMENT. */
export function parseGrpcTimeout(value: string | undefined, msMax: number): Timeout | undefined {
  if (value === undefined) return undefined;
  const unit = unitMs[value.charAt(value.length - 1)];
  const digits = value.slice(0, -1);
  if (unit === undefined || !/^\d{1,8}$/.test(digits)) throw invalid("grpc-timeout", value);
  return clamp(Number(digits) * unit, msMax);
}

/** Of a `connect-timeout-ms`; undefined when there is none. Throws INVALID_ARGUMENT. */
export function parseConnectTimeout(value: string | undefined, msMax: number): Timeout | undefined {
  if (value === undefined) return undefined;
  if (!/^\d{1,10}$/.test(value)) throw invalid("connect-timeout-ms", value);
  return clamp(Number(value), msMax);
}

/** A `grpc-timeout` of about that many milliseconds, never more. */
export function formatGrpcTimeout(ms: number): string {
  return ms < 1e8 ? `${Math.floor(ms)}m` : `${Math.floor(ms / 1_000)}S`;
}

function clamp(ms: number, msMax: number): Timeout {
  const most = Math.min(msMax, timerMsMax);
  return ms > most ? { ms: most, clamped: true } : { ms, clamped: false };
}

function invalid(name: string, value: string): ConnectError {
  return new ConnectError(`protocol error: invalid ${name}: ${value.slice(0, 40)}`, Code.InvalidArgument);
}
