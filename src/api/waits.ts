/** How long a call waits for the operation that it begins. */
import type { Duration } from "@bufbuild/protobuf/wkt";
import type { Clock } from "../clock.ts";
import type { OperationWait } from "../engine/engine.ts";
import type { RawCall } from "../transport/transport.ts";
import { checkWait } from "./fields.ts";
import type { StatementLimits } from "./statements.ts";

export interface WaitServices {
  readonly clock: Clock;
  readonly limits: Pick<StatementLimits, "statementTimeoutMs">;
  /** Longest wait, whatever the caller wishes. */
  readonly waitMsMax: number;
}

/** The answer has to be on its way before the caller's deadline, or it gets none. */
const marginMsMax = 250;
const marginShare = 0.1;

/** The caller's wish, within its deadline; `unsetMs` when there is none. */
export function callWait(
  { clock, waitMsMax }: WaitServices,
  wish: Duration | undefined,
  call: Pick<RawCall, "deadlineAtMs" | "cancelled" | "onCancel">,
  unsetMs = 0,
): OperationWait {
  const wishMs = checkWait(wish) ?? unsetMs;
  const leftMs = call.deadlineAtMs === undefined ? waitMsMax : call.deadlineAtMs - clock.now();
  const usableMs = leftMs - Math.min(marginMsMax, leftMs * marginShare);
  return { waitMs: Math.max(0, Math.min(wishMs, usableMs, waitMsMax)), cancel: call };
}
