/** Failures that several parts of the engine throw. */
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { ObjectStoreError } from "../objects/object-store.ts";
import { CallCancelled } from "../sqlite/executor.ts";
import type { DurabilityLevel, StageName } from "./engine.ts";
import { idRule, isDatabaseId } from "./names.ts";

const retryAfterMs = 1_000;

/** DATABASE_NOT_FOUND, or FIELD_INVALID when no database can have that id. */
export function databaseNotFound(id: string): Failure {
  return isDatabaseId(id) ? new Failure("DATABASE_NOT_FOUND", { database: id }) : fieldInvalid("database", idRule);
}

/** What a failed operation on the local stage's files is to a caller. */
export function localStageFailure(error: unknown): Failure {
  const { code } = error as NodeJS.ErrnoException;
  const full = code === "ENOSPC" || code === "EDQUOT" || code === "SQLITE_FULL";
  return new Failure(full ? "STAGE_FULL" : "STAGE_UNAVAILABLE", { stage: "local" }, { cause: error });
}

/** The same for any stage; what is a failure for callers already stays as it is, and so does a cancellation. */
export function stageFailure(stage: StageName, error: unknown): unknown {
  if (error instanceof Failure || error instanceof CallCancelled) return error;
  if (error instanceof ObjectStoreError) return objectStoreFailure(error);
  const { code } = error as NodeJS.ErrnoException;
  if (code === undefined) return error;
  return new Failure(localStageFailure(error).reason, { stage }, { cause: error });
}

/** What a failed call of the object store is to a caller. */
export function objectStoreFailure(error: ObjectStoreError): Failure {
  if (error.kind === "corrupt" || error.kind === "not_found") {
    return new Failure("DATA_CORRUPT", { stage: "remote", sqliteMessage: error.message }, { cause: error });
  }
  return new Failure("STAGE_UNAVAILABLE", { stage: "remote" }, { cause: error, retryAfterMs });
}

/** Throws STAGE_NOT_CONFIGURED for a stage that this server does not have. */
export function requireStage(stage: StageName | DurabilityLevel | undefined): void {
  if (stage === "memory" || stage === "remote") throw new Failure("STAGE_NOT_CONFIGURED", { stage });
}
