/** What a fenced database answers. */
import { Failure } from "../../failure/failure.ts";

/** DATABASE_FENCED for one that the remote stage holds up to there, and that another server has written on. */
export function fencedFailure(database: string, durableTxid: bigint): Failure {
  return new Failure("DATABASE_FENCED", { database, sequence: String(durableTxid + 1n) });
}
