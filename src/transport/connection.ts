/** The life of connections: how long they may idle, how old they get, whether the other end still lives, how they drain. */
import type { ServerHttp2Session } from "node:http2";
import { constants } from "node:http2";
import type { Socket } from "node:net";
import type { Clock } from "../clock.ts";
import type { TransportLimits } from "./transport.ts";

/**
 * A GOAWAY frame with NO_ERROR and the largest id that a stream can have: it refuses nothing and tells the client to move
 * on. Written by hand, because after Node's own `session.goaway()` new streams get no answer, whatever id was told.
 */
const goawayNotice = Buffer.from([0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
/** From the first GOAWAY to the one that counts: longer than a round trip. */
export const goawayNoticeMs = 1_000;
/** More pings than this in one look at the connections is a flood. */
const pingsPerSweepMax = 1_000;

export class Connection {
  readonly peer: string;
  /** `new` until the first bytes, or the TLS handshake, have told what it speaks. */
  kind: "new" | "http1" | "http2" = "new";
  /** True from the first sign of the end: HTTP/1.1 answers say so. */
  draining = false;
  exchanges = 0;
  session: ServerHttp2Session | undefined = undefined;
  /** Under the session: the TLS socket where there is one. Set when the session's first frames are out. */
  #frameSocket: Socket | undefined = undefined;
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #limits: TransportLimits;
  readonly #agesAtMs: number;
  #quietSinceMs: number;
  #bytesWhenQuiet = 0;
  /** When bytes of a request were seen whose headers are not all there. HTTP/1.1 only. */
  #requestBegunAtMs: number | undefined = undefined;
  #closingSinceMs: number | undefined = undefined;
  #pingedAtMs: number | undefined = undefined;
  #heardAtMs: number;
  #pings = 0;

  constructor(socket: Socket, clock: Clock, limits: TransportLimits, random: () => number) {
    this.#socket = socket;
    this.#clock = clock;
    this.#limits = limits;
    this.peer = `${socket.remoteAddress ?? "unknown"}:${socket.remotePort ?? 0}`;
    const now = clock.now();
    this.#quietSinceMs = now;
    this.#heardAtMs = now;
    const age = limits.connectionAgeMs;
    this.#agesAtMs = age > 0 ? now + age * (0.9 + 0.2 * random()) : Number.POSITIVE_INFINITY;
  }

  /** `bytesBefore`: what was read of the connection that is no part of a request: the TLS handshake. */
  startHttp1(bytesBefore: number): void {
    this.kind = "http1";
    this.#bytesWhenQuiet = bytesBefore;
  }

  startHttp2(session: ServerHttp2Session, socket: Socket): void {
    this.kind = "http2";
    this.session = session;
    session.once("localSettings", () => {
      this.#frameSocket = socket;
      if (this.draining) this.#giveNotice();
    });
    session.on("ping", () => this.#pings++);
  }

  get bytesRead(): number {
    return this.#socket.bytesRead;
  }

  opened(): void {
    this.exchanges++;
    this.#requestBegunAtMs = undefined;
  }

  closed(): void {
    this.exchanges--;
    if (this.exchanges > 0) return;
    this.#quietSinceMs = this.#clock.now();
    this.#bytesWhenQuiet = this.#socket.bytesRead;
    if (this.draining && this.kind === "http1") this.#socket.destroySoon();
  }

  /** Tells the client to go elsewhere with new calls; those that arrive all the same are served. */
  announceEnd(): void {
    if (this.draining) return;
    this.draining = true;
    this.#giveNotice();
  }

  /** Takes no new calls; closes when the last one is over. */
  endWhenQuiet(): void {
    this.draining = true;
    this.#closingSinceMs ??= this.#clock.now();
    const session = this.session;
    if (session !== undefined) {
      if (!session.destroyed && !session.closed) session.close();
    } else if (this.exchanges === 0) this.#socket.destroySoon();
  }

  destroy(): void {
    this.session?.destroy();
    this.#socket.destroy();
  }

  #giveNotice(): void {
    const { session } = this;
    // Node hands whole frames to the socket, so another one fits between any two of its writes.
    if (session !== undefined && !session.destroyed && !session.closed) this.#frameSocket?.write(goawayNotice);
  }

  /** Looks at all limits. */
  sweep(now: number): void {
    const limits = this.#limits;
    if (this.#closingSinceMs !== undefined) {
      const grace = this.exchanges > 0 ? limits.connectionAgeGraceMs : limits.readTimeoutMs;
      if (now - this.#closingSinceMs > grace) this.destroy();
      return;
    }
    if (this.#pings > pingsPerSweepMax) this.session?.destroy(undefined, constants.NGHTTP2_ENHANCE_YOUR_CALM);
    this.#pings = 0;
    if (this.exchanges === 0) this.#sweepQuiet(now);
    else if (this.session !== undefined && limits.pingIntervalMs > 0) this.#sweepPing(now, this.session);
    if (now > this.#agesAtMs) {
      this.announceEnd();
      if (now > this.#agesAtMs + goawayNoticeMs) this.endWhenQuiet();
    }
  }

  #sweepQuiet(now: number): void {
    if (this.kind === "new") {
      if (now - this.#quietSinceMs > this.#limits.readTimeoutMs) this.destroy();
      return;
    }
    if (this.kind === "http1" && this.#socket.bytesRead > this.#bytesWhenQuiet) {
      this.#requestBegunAtMs ??= now;
      if (now - this.#requestBegunAtMs > this.#limits.readTimeoutMs) this.destroy();
    } else if (now - this.#quietSinceMs > this.#limits.idleTimeoutMs) this.endWhenQuiet();
  }

  #sweepPing(now: number, session: ServerHttp2Session): void {
    if (this.#pingedAtMs !== undefined) {
      if (now - this.#pingedAtMs > this.#limits.pingTimeoutMs) this.destroy();
      return;
    }
    if (now - this.#heardAtMs < this.#limits.pingIntervalMs) return;
    const sent = session.ping((error) => {
      if (error !== null) return; // the session is ending and its streams are told
      this.#pingedAtMs = undefined;
      this.#heardAtMs = this.#clock.now();
    });
    if (sent) this.#pingedAtMs = now;
  }
}
