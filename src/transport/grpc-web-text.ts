/** grpc-web-text: gRPC-Web whose bytes travel as base64, for the classic browser client, which streams in no other way. */
import { Code, ConnectError } from "@connectrpc/connect";

const textType = "application/grpc-web-text";

export function isGrpcWebText(contentType: string): boolean {
  return contentType === textType || contentType.startsWith(`${textType}+`) || contentType.startsWith(`${textType};`);
}

/** The binary content type that a text one stands for, and back. */
export function binaryTypeOf(textContentType: string): string {
  return textContentType.replace(textType, "application/grpc-web").replace(/web$/, "web+proto");
}

export function textTypeOf(binaryContentType: string): string {
  return binaryContentType.replace("application/grpc-web", textType);
}

/** Text to bytes. Padding may stand after any group of four; groups may be cut anywhere between two chunks. */
export async function* decodeText(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let rest = "";
  for await (const chunk of body) {
    const text = rest + Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength).toString("latin1");
    const whole = text.length - (text.length % 4);
    rest = text.slice(whole);
    if (whole > 0) yield decodeGroups(text.slice(0, whole));
  }
  if (rest.length > 0) yield decodeGroups(rest);
}

/** Bytes to text, padded, so that every chunk can be read when it arrives. */
export function encodeText(bytes: Uint8Array): Uint8Array {
  return Buffer.from(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64"), "latin1");
}

function decodeGroups(text: string): Uint8Array {
  if (/[^A-Za-z0-9+/=]/.test(text)) throw new ConnectError("protocol error: no base64", Code.InvalidArgument);
  // Node stops at the first padding, so each padded run is decoded by itself.
  const runs = text.match(/[^=]+={0,2}/g) ?? [];
  return runs.length === 1 ? Buffer.from(text, "base64") : Buffer.concat(runs.map((run) => Buffer.from(run, "base64")));
}
