/** A program for container engines: exit code 0 when the server of this machine serves, by the same settings as the server's. */
import { get as getPlain } from "node:http";
import { get as getSecure } from "node:https";
import { connect } from "node:net";
import { loadSettings, processEnvironment, type Settings } from "./settings/settings.ts";

const TIMEOUT_MS = 2000;

const { server } = loadSettings(processEnvironment());
const host = loopbackOf(server.host);

// A server that asks for certificates answers nobody without one: that it listens is all that can be seen.
if (server.tlsClientCaPath !== undefined) {
  const socket = connect({ host, port: server.port, timeout: TIMEOUT_MS });
  socket.once("connect", () => end(true)).once("timeout", () => end(false));
  socket.once("error", () => end(false));
} else {
  const isTls = server.tlsCertificatePath !== undefined;
  // The certificate is made out to the server's name, not to the loopback address.
  const options = { host, port: server.port, path: "/readyz", timeout: TIMEOUT_MS, rejectUnauthorized: false };
  const request = (isTls ? getSecure : getPlain)(options, (response) => end(response.statusCode === 200));
  request.once("timeout", () => end(false)).once("error", () => end(false));
}

function loopbackOf(listening: Settings["server"]["host"]): string {
  if (listening === "0.0.0.0") return "127.0.0.1";
  return listening === "::" ? "::1" : listening;
}

function end(isServing: boolean): never {
  process.exit(isServing ? 0 : 1);
}
