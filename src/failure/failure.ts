import { type Reason, type ReasonEntry, reasons } from "./reasons.ts";

/** A field that breaks its rule: its path in the request (`labels.team`), and what it must be. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** What a failure may carry beside its facts. */
export interface FailureOptions {
  readonly cause?: unknown;
  /** Becomes RetryInfo. */
  readonly retryAfterMs?: number;
  /** Becomes BadRequest. */
  readonly violations?: readonly FieldViolation[];
}

/** Facts of a failure, by the metadata keys that its reason lists. */
export type Facts = Readonly<Record<string, string>>;

/** Thrown by every layer for what a caller can cause or must know; the API layer turns it into a status with details. */
export class Failure extends Error {
  readonly reason: Reason;
  readonly facts: Facts;
  readonly retryAfterMs: number | undefined;
  readonly violations: readonly FieldViolation[];

  constructor(reason: Reason, facts: Facts = {}, options: FailureOptions = {}) {
    super(
      reasons[reason].message.replace(/\{(\w+)\}/g, (_, name: string) => facts[name] ?? "unknown"),
      options.cause === undefined ? undefined : { cause: options.cause },
    );
    this.name = "Failure";
    this.reason = reason;
    this.facts = facts;
    this.retryAfterMs = options.retryAfterMs;
    this.violations = options.violations ?? [];
  }

  get entry(): ReasonEntry {
    return reasons[this.reason];
  }
}

/** FIELD_INVALID for one or more fields. */
export function fieldInvalid(field: string, description: string, ...more: FieldViolation[]): Failure {
  return new Failure("FIELD_INVALID", { field, description }, { violations: [{ field, description }, ...more] });
}
