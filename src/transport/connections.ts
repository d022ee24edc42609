/** All connections of the port. */
import type { Socket } from "node:net";
import type { Clock } from "../clock.ts";
import { Connection } from "./connection.ts";
import type { TransportOptions } from "./transport.ts";

export class Connections {
  readonly #options: TransportOptions;
  readonly #clock: Clock;
  readonly #all = new Set<Connection>();
  readonly #bySocket = new WeakMap<object, Connection>();
  readonly #byPeer = new Map<string, Connection>();
  readonly #stopSweep: () => void;
  readonly #whenEmpty = new Set<() => void>();

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#clock = options.clock;
    const { readTimeoutMs, idleTimeoutMs, pingIntervalMs, pingTimeoutMs, connectionAgeMs } = options.limits;
    const times = [readTimeoutMs, idleTimeoutMs, pingIntervalMs, pingTimeoutMs, connectionAgeMs].filter((ms) => ms > 0);
    const sweepIntervalMs = Math.min(1_000, Math.max(10, Math.min(...times) / 4));
    this.#stopSweep = options.clock.every(sweepIntervalMs, () => this.#sweep());
  }

  get size(): number {
    return this.#all.size;
  }

  /** Undefined when there are too many already. */
  accept(socket: Socket): Connection | undefined {
    if (this.#all.size >= this.#options.limits.connectionCountMax) return undefined;
    const connection = new Connection(socket, this.#clock, this.#options.limits, this.#options.random);
    this.#all.add(connection);
    this.#bySocket.set(socket, connection);
    this.#byPeer.set(connection.peer, connection);
    socket.once("close", () => this.#remove(connection));
    return connection;
  }

  /** The connection under a socket, its own or the TLS socket on it. */
  of(socket: Socket): Connection | undefined {
    const known = this.#bySocket.get(socket) ?? this.#byPeer.get(`${socket.remoteAddress}:${socket.remotePort}`);
    if (known !== undefined) this.#bySocket.set(socket, known);
    return known;
  }

  each(run: (connection: Connection) => void): void {
    for (const connection of [...this.#all]) run(connection);
  }

  /** Resolves when no connection is left, or after the time: then false. */
  empty(ms: number): Promise<boolean> {
    if (this.#all.size === 0) return Promise.resolve(true);
    return new Promise((resolve) => {
      const settle = (empty: boolean) => {
        this.#whenEmpty.delete(onEmpty);
        cancel();
        resolve(empty);
      };
      const onEmpty = () => settle(true);
      const cancel = this.#clock.after(Math.max(0, ms), () => settle(false));
      this.#whenEmpty.add(onEmpty);
    });
  }

  close(): void {
    this.#stopSweep();
    this.each((connection) => connection.destroy());
  }

  #remove(connection: Connection): void {
    this.#all.delete(connection);
    if (this.#byPeer.get(connection.peer) === connection) this.#byPeer.delete(connection.peer);
    if (this.#all.size === 0) for (const onEmpty of [...this.#whenEmpty]) onEmpty();
  }

  #sweep(): void {
    const now = this.#clock.now();
    for (const connection of [...this.#all]) connection.sweep(now);
  }
}
