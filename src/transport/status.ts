/** Errors as they stand on the wire. */
import { constants } from "node:http2";
import { Code, ConnectError } from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import type { HeaderFields } from "./exchange.ts";

/** An error that can be written to headers: its message holds no half characters. */
export function writable(error: ConnectError): ConnectError {
  if (error.rawMessage.isWellFormed()) return error;
  const copy = new ConnectError(error.rawMessage.toWellFormed(), error.code, error.metadata, undefined, error.cause);
  copy.details = error.details;
  return copy;
}

/** grpc-status, grpc-message, grpc-status-details-bin and the error's own metadata. */
export function grpcTrailers(error: ConnectError): HeaderFields {
  const plain = writable(error);
  try {
    return trailersOf(setTrailerStatus(new Headers(), plain));
  } catch {
    // Details that do not encode: the status still has to arrive.
    const bare = new ConnectError(plain.rawMessage, plain.code);
    return trailersOf(setTrailerStatus(new Headers(), bare));
  }
}

/** gRPC trailers as Node takes them, the message encoded as gRPC demands: Connect encodes more than every client decodes. */
export function trailersOf(trailer: Headers): HeaderFields {
  const fields = fieldsOf(trailer);
  const message = fields["grpc-message"];
  if (typeof message === "string") fields["grpc-message"] = encodeMessage(decodeURIComponent(message));
  return fields;
}

/** Escapes all but printable ASCII, and the percent sign. */
function encodeMessage(message: string): string {
  return message.replace(/[^\x20-\x24\x26-\x7e]+/g, encodeURIComponent);
}

/** Headers as Node takes them. */
export function fieldsOf(headers: Headers | undefined): HeaderFields {
  const fields: HeaderFields = {};
  headers?.forEach((value, name) => {
    const before = fields[name];
    fields[name] = before === undefined ? value : [before, value].flat(); // only set-cookie comes more than once
  });
  return fields;
}

const resetCodes: ReadonlyMap<number, Code> = new Map([
  [constants.NGHTTP2_REFUSED_STREAM, Code.Unavailable],
  [constants.NGHTTP2_ENHANCE_YOUR_CALM, Code.ResourceExhausted],
  [constants.NGHTTP2_INADEQUATE_SECURITY, Code.PermissionDenied],
]);

/** Why a call ended whose stream the client closed or whose connection broke. */
export function leftError(resetCode: number | undefined): ConnectError {
  const code = (resetCode !== undefined && resetCodes.get(resetCode)) || Code.Canceled;
  return new ConnectError("the client left", code);
}

const endStreamFlag = 0b10;
const trailerFlag = 0x80;

/**
 * The status code of an answer that is not gRPC's, read from what is sent; `last` is the last piece of its body. Needed for
 * errors that Connect finds before it reaches the method (a message that does not parse, say).
 */
export function codeOfAnswer(status: number, contentType: string, last: Uint8Array | undefined): number {
  const enveloped = contentType.startsWith("application/connect+") || contentType.startsWith("application/grpc-web");
  if (status === 200 && !enveloped) return 0;
  if (last === undefined || last.length === 0) return status < 400 ? 0 : Code.Unimplemented;
  if (!enveloped) return codeInJson(Buffer.from(last).toString("utf8"));
  if (last[0] === endStreamFlag) return codeInJson(Buffer.from(last).toString("utf8", 5));
  if (last[0] !== trailerFlag) return 0;
  const found = /^grpc-status:\s*(\d+)/im.exec(Buffer.from(last).toString("latin1", 5));
  return found === null ? 0 : Number(found[1]);
}

function codeInJson(text: string): number {
  const found = /"code"\s*:\s*"(\w+)"/.exec(text.slice(0, 4_096));
  return found?.[1] === undefined ? 0 : (codeFromString(found[1]) ?? Code.Unknown);
}
