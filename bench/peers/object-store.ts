/**
 * An object store in memory that speaks as much of S3 as Persisto does. It answers every request after the time that is
 * given as its argument, sends no faster than a network of 1 Gbit/s would, and counts the requests. Signatures are not
 * looked at.
 */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import { serveQuestions } from "../processes.ts";

export interface StoreReady {
  readonly port: number;
}
/** Sets the counts back after they were told. */
export interface StoreQuestion {
  readonly latencyMs?: number;
}
export interface StoreAnswer {
  /** Since the last question. */
  readonly puts: number;
  readonly gets: number;
  readonly lists: number;
  readonly deletes: number;
  readonly bytesPut: number;
  readonly bytesGot: number;
  /** Keys of the last gets, in order. */
  readonly keysGot: readonly string[];
  /** In all. */
  readonly objects: number;
}

const keysGotMax = 10_000;
const bytesPerMs = 125_000;
const sliceBytes = 64 * 1024;

interface Stored {
  readonly bytes: Buffer;
  readonly etag: string;
  readonly headers: Record<string, string>;
}

const objects = new Map<string, Stored>();
/** Keys in order; undefined when one has come or gone since. */
let ordered: string[] | undefined;
const uploads = new Map<string, { readonly headers: Record<string, string>; readonly parts: Map<number, Buffer> }>();
let latencyMs = Number(process.argv[2] ?? 0);
let counts = { puts: 0, gets: 0, lists: 0, deletes: 0, bytesPut: 0, bytesGot: 0 };
let keysGot: string[] = [];
let uploadCount = 0;

class Refused extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

const etagOf = (bytes: Buffer) => `"${createHash("md5").update(bytes).digest("hex")}"`;
const escaped = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const unescaped = (text: string) =>
  text
    .replace(/&lt;/g, "<")
    .replace(/&gt;/g, ">")
    .replace(/&quot;/g, '"')
    .replace(/&amp;/g, "&");

function metadataOf(request: IncomingMessage): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(request.headers)) {
    if (name.startsWith("x-amz-meta-")) headers[name] = String(value);
  }
  return headers;
}

function checkConditions(request: IncomingMessage, key: string): void {
  const present = objects.get(key);
  const { "if-match": ifMatch, "if-none-match": ifNoneMatch } = request.headers;
  if (ifNoneMatch === "*" && present !== undefined) throw new Refused(412, "PreconditionFailed");
  if (ifMatch !== undefined && present === undefined) throw new Refused(404, "NoSuchKey");
  if (ifMatch !== undefined && ifMatch !== present?.etag) throw new Refused(412, "PreconditionFailed");
}

function store(key: string, bytes: Buffer, headers: Record<string, string>): Stored {
  const stored = { bytes, etag: etagOf(bytes), headers };
  if (!objects.has(key)) ordered = undefined;
  objects.set(key, stored);
  return stored;
}

function xml(response: ServerResponse, body: string): void {
  response.setHeader("content-type", "application/xml");
  response.end(`<?xml version="1.0" encoding="UTF-8"?>${body}`);
}

function put(
  request: IncomingMessage,
  response: ServerResponse,
  key: string,
  query: URLSearchParams,
  body: Buffer,
): void {
  counts.puts++;
  counts.bytesPut += body.length;
  const upload = uploads.get(query.get("uploadId") ?? "");
  if (upload !== undefined) {
    upload.parts.set(Number(query.get("partNumber")), body);
    response.setHeader("etag", etagOf(body));
  } else {
    checkConditions(request, key);
    response.setHeader("etag", store(key, body, metadataOf(request)).etag);
  }
  response.end();
}

function get(request: IncomingMessage, response: ServerResponse, key: string): void {
  counts.gets++;
  if (keysGot.length < keysGotMax) keysGot.push(key);
  const found = objects.get(key);
  if (found === undefined) throw new Refused(404, "NoSuchKey");
  let { bytes } = found;
  const [, first = "", last = ""] = /^bytes=(\d*)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
  if (first !== "" || last !== "") {
    const size = bytes.length;
    const from = first === "" ? Math.max(0, size - Number(last)) : Number(first);
    const to = first === "" || last === "" ? size : Math.min(size, Number(last) + 1);
    if (from >= size) throw new Refused(416, "InvalidRange");
    bytes = bytes.subarray(from, to);
    response.statusCode = 206;
    response.setHeader("content-range", `bytes ${from}-${to - 1}/${size}`);
  }
  for (const [name, value] of Object.entries(found.headers)) response.setHeader(name, value);
  response.setHeader("etag", found.etag);
  response.setHeader("last-modified", new Date().toUTCString());
  response.setHeader("content-length", bytes.length);
  if (request.method === "HEAD") response.end();
  else {
    counts.bytesGot += bytes.length;
    void sendPaced(response, bytes);
  }
}

/** When everything that was sent so far would be through a network. */
let throughAtMs = 0;

/** All answers share the network. */
async function sendPaced(response: ServerResponse, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; at += sliceBytes) {
    const slice = bytes.subarray(at, at + sliceBytes);
    const now = performance.now();
    throughAtMs = Math.max(now, throughAtMs) + slice.length / bytesPerMs;
    // Timers are no finer than this: what is due within it may go now.
    if (throughAtMs - now > 2) await new Promise((resolve) => setTimeout(resolve, throughAtMs - now));
    response.write(slice);
  }
  response.end();
}

/** Where the key would be among all in order. */
function placeOf(keys: readonly string[], key: string): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((keys[middle] as string) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

function list(response: ServerResponse, query: URLSearchParams): void {
  counts.lists++;
  ordered ??= [...objects.keys()].sort();
  const prefix = query.get("prefix") ?? "";
  const delimiter = query.get("delimiter") ?? "";
  const after = query.get("continuation-token") ?? query.get("start-after") ?? "";
  const countMax = Number(query.get("max-keys") ?? 1000);
  const entries: string[] = [];
  let folder = "";
  let last = "";
  let truncated = false;
  const from = Math.max(placeOf(ordered, prefix), placeOf(ordered, after));
  for (let at = from; at < ordered.length; at++) {
    const key = ordered[at] as string;
    if (!key.startsWith(prefix)) break;
    if (key === after || (folder !== "" && key.startsWith(folder))) continue;
    if (delimiter !== "" && after.endsWith(delimiter) && key.startsWith(after)) continue;
    if (entries.length === countMax) {
      truncated = true;
      break;
    }
    const end = delimiter === "" ? -1 : key.indexOf(delimiter, prefix.length);
    if (end >= 0) {
      folder = key.slice(0, end + delimiter.length);
      last = folder;
      entries.push(`<CommonPrefixes><Prefix>${escaped(folder)}</Prefix></CommonPrefixes>`);
      continue;
    }
    last = key;
    const found = objects.get(key) as Stored;
    entries.push(
      `<Contents><Key>${escaped(key)}</Key><Size>${found.bytes.length}</Size><ETag>${escaped(found.etag)}</ETag>` +
        `<LastModified>${new Date().toISOString()}</LastModified></Contents>`,
    );
  }
  xml(
    response,
    `<ListBucketResult><IsTruncated>${truncated}</IsTruncated><KeyCount>${entries.length}</KeyCount>` +
      `${truncated ? `<NextContinuationToken>${escaped(last)}</NextContinuationToken>` : ""}${entries.join("")}</ListBucketResult>`,
  );
}

function post(
  request: IncomingMessage,
  response: ServerResponse,
  key: string,
  query: URLSearchParams,
  body: Buffer,
): void {
  if (query.has("delete")) {
    const keys = [...body.toString("utf8").matchAll(/<Key>([^<]*)<\/Key>/g)].map(([, found = ""]) => unescaped(found));
    counts.deletes += keys.length;
    for (const found of keys) if (objects.delete(found)) ordered = undefined;
    xml(response, "<DeleteResult></DeleteResult>");
  } else if (query.has("uploads")) {
    counts.puts++;
    const id = `upload-${++uploadCount}`;
    uploads.set(id, { headers: metadataOf(request), parts: new Map() });
    xml(response, `<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`);
  } else {
    counts.puts++;
    const id = query.get("uploadId") ?? "";
    const upload = uploads.get(id);
    if (upload === undefined) throw new Refused(404, "NoSuchUpload");
    checkConditions(request, key);
    const parts = [...upload.parts].sort(([one], [other]) => one - other).map(([, bytes]) => bytes);
    const { etag } = store(key, Buffer.concat(parts), upload.headers);
    uploads.delete(id);
    xml(response, `<CompleteMultipartUploadResult><ETag>${escaped(etag)}</ETag></CompleteMultipartUploadResult>`);
  }
}

function answer(request: IncomingMessage, response: ServerResponse, body: Buffer): void {
  const url = new URL(request.url ?? "/", "http://store");
  const path = decodeURIComponent(url.pathname).slice(1);
  const slash = path.indexOf("/");
  const key = slash < 0 ? "" : path.slice(slash + 1);
  try {
    if (request.method === "PUT") put(request, response, key, url.searchParams, body);
    else if (request.method === "POST") post(request, response, key, url.searchParams, body);
    else if (request.method === "DELETE") {
      counts.deletes++;
      uploads.delete(url.searchParams.get("uploadId") ?? "");
      if (objects.delete(key)) ordered = undefined;
      response.statusCode = 204;
      response.end();
    } else if (key === "" && request.method === "GET") list(response, url.searchParams);
    else if (key === "") response.end();
    else get(request, response, key);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    response.statusCode = error.status;
    if (request.method === "HEAD") response.end();
    else xml(response, `<Error><Code>${error.code}</Code><Message>${error.code}</Message></Error>`);
  }
}

const server = createServer((request, response) => {
  buffer(request).then(
    (body) => {
      if (latencyMs > 0) setTimeout(answer, latencyMs, request, response, body);
      else answer(request, response, body);
    },
    () => undefined, // a client that has left waits for no answer
  );
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  const ready: StoreReady = { port: typeof address === "object" && address !== null ? address.port : 0 };
  serveQuestions<StoreQuestion>(ready, (question): StoreAnswer => {
    latencyMs = question.latencyMs ?? latencyMs;
    const told = { ...counts, keysGot, objects: objects.size };
    keysGot = [];
    counts = { puts: 0, gets: 0, lists: 0, deletes: 0, bytesPut: 0, bytesGot: 0 };
    return told;
  });
});
