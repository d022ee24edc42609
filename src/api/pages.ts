/** Plain HTTP beside RPC: for probes, scrapers and people who open the port in a browser. */
import type { HealthState } from "./health.ts";

export interface Page {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
}

export interface PageServices {
  readonly health: HealthState;
  readonly name: string;
  readonly version: string;
  readonly metrics: () => Promise<{ readonly contentType: string; readonly body: string }>;
}

/** Exact paths and what they show. */
export function pages(services: PageServices): ReadonlyMap<string, () => Promise<Page>> {
  const { health, metrics } = services;
  return new Map<string, () => Promise<Page>>([
    ["/", async () => ({ status: 200, contentType: "text/html; charset=utf-8", body: frontPage(services) })],
    ["/healthz", async () => text(200, "ok\n")],
    ["/readyz", async () => (health.isServing ? text(200, "serving\n") : text(503, "not serving\n"))],
    ["/metrics", async () => ({ status: 200, ...(await metrics()) })],
  ]);
}

function text(status: number, body: string): Page {
  return { status, contentType: "text/plain; charset=utf-8", body };
}

function frontPage({ name, version }: PageServices): string {
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${escapeHtml(name)}</title>
<h1>${escapeHtml(name)} ${escapeHtml(version)}</h1>
<p>This port speaks gRPC, gRPC-Web and Connect. With reflection, no proto files are needed:</p>
<pre>grpcurl -plaintext HOST:PORT list
curl -H 'content-type: application/json' -d '{}' http://HOST:PORT/persisto.v1.DatabaseService/ListDatabases</pre>
<p><a href="/healthz">health</a> · <a href="/readyz">readiness</a> · <a href="/metrics">metrics</a></p>
</html>
`;
}

function escapeHtml(value: string): string {
  return value.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
