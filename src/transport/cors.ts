/** Cross-origin calls from browsers, by a list of allowed origins. */
import type { IncomingHttpHeaders } from "node:http";
import { cors } from "@connectrpc/connect";
import type { HeaderFields } from "./exchange.ts";

const allowedHeaders = [
  ...cors.allowedHeaders,
  "Authorization",
  "If-None-Match",
  "Traceparent",
  "Tracestate",
  "X-Request-Id",
].map((name) => name.toLowerCase());
const exposedHeaders = [...cors.exposedHeaders, "ETag", "X-Request-Id"].join(", ");
/** How long a browser may remember a preflight. */
const maxAgeSeconds = 7_200;
/** The asked-for list of header names, longer ones are not answered. */
const askedLengthMax = 2_048;

export class Cors {
  readonly #origins: ReadonlySet<string>;
  readonly #any: boolean;

  /** `*` allows every origin. */
  constructor(origins: readonly string[]) {
    this.#origins = new Set(origins.map((origin) => origin.toLowerCase()));
    this.#any = this.#origins.has("*");
  }

  isPreflight(method: string, headers: IncomingHttpHeaders): boolean {
    return method === "OPTIONS" && headers.origin !== undefined && "access-control-request-method" in headers;
  }

  /** Header fields of the answer to a preflight; without permission when the origin is not on the list. */
  preflight(headers: IncomingHttpHeaders): HeaderFields {
    const vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    const allowed = this.#allowedOrigin(headers.origin);
    if (allowed === undefined) return { vary };
    return {
      vary,
      "access-control-allow-origin": allowed,
      "access-control-allow-methods": cors.allowedMethods.join(", "),
      "access-control-allow-headers": headersFor(headers["access-control-request-headers"]),
      "access-control-max-age": String(maxAgeSeconds),
    };
  }

  /** Header fields for the answer to any other request. */
  fields(headers: IncomingHttpHeaders): HeaderFields | undefined {
    if (headers.origin === undefined || this.#origins.size === 0) return undefined;
    const allowed = this.#allowedOrigin(headers.origin);
    if (allowed === undefined) return { vary: "Origin" };
    return {
      vary: "Origin",
      "access-control-allow-origin": allowed,
      "access-control-expose-headers": exposedHeaders,
    };
  }

  #allowedOrigin(origin: string | undefined): string | undefined {
    if (this.#any) return "*";
    return origin !== undefined && this.#origins.has(origin.toLowerCase()) ? origin : undefined;
  }
}

/** The known names, and the asked-for ones: call metadata may have any name. */
function headersFor(asked: string | undefined): string {
  const names = new Set(allowedHeaders);
  if (asked !== undefined && asked.length <= askedLengthMax) {
    for (const name of asked.toLowerCase().split(",")) if (/^[a-z0-9._-]+$/.test(name.trim())) names.add(name.trim());
  }
  return [...names].join(", ");
}
