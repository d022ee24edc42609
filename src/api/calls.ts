/** Typed handlers and the call they serve. */
import type { HandlerContext } from "@connectrpc/connect";
import { callKey, type RawCall } from "../transport/transport.ts";

export type CallNotes = Pick<HandlerContext, "values">;

export function noteDatabase(context: CallNotes, database: string): void {
  context.values.get(callKey)?.note("database", database);
}

/** The transport sets it on every call that it serves. */
export function callOf(context: CallNotes): RawCall {
  const call = context.values.get(callKey);
  if (call === undefined) {
    throw new Error("the handler runs outside the transport");
  }
  return call;
}
