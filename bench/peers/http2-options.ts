import type { ServerOptions } from "node:http2";

/** As Persisto's own port is set, so that the peers differ in what they do with a call alone. */
export const http2Options: ServerOptions = {
  settings: { initialWindowSize: 1 << 20, maxConcurrentStreams: 1000 },
};
