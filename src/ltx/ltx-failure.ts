/** What can be wrong with a stored log. */
import { Failure } from "../failure/failure.ts";

/**
 * Which rule a file breaks, told apart by what the reader may do: `truncated` and `checksum` may be a bad transfer and can
 * be read once more; `chain` is a wrong choice of files; the rest is damage in the file itself.
 */
export type LtxProblem =
  | "header"
  | "page"
  | "order"
  | "incomplete"
  | "index"
  | "trailer"
  | "checksum"
  | "truncated"
  | "trailing"
  | "too-large"
  | "chain"
  | "wal";

/** DATA_CORRUPT of a log. Who knows the database and the stage throws it on with their facts. */
export class LtxFailure extends Failure {
  readonly problem: LtxProblem;

  constructor(problem: LtxProblem, message: string, cause?: unknown) {
    super("DATA_CORRUPT", { sqliteMessage: message }, cause === undefined ? {} : { cause });
    this.name = "LtxFailure";
    this.problem = problem;
  }
}
