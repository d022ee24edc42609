/** The calls that are in flight, the time limits on them, and the record of each one's end. */
import { Code, ConnectError } from "@connectrpc/connect";
import type { Clock } from "../clock.ts";
import type { Call } from "./call.ts";
import type { CallRecord, TransportOptions } from "./transport.ts";

/** How often limits are looked at. One sweep for all calls costs less than a timer each. */
const sweepIntervalMs = 25;
/** A handler that watches its deadline has this long to answer with its own reason. */
const deadlineGraceMs = 100;

export class CallBook {
  readonly clock: Clock;
  readonly toConnectError: TransportOptions["toConnectError"];
  readonly #onCallEnd: ((record: CallRecord) => void) | undefined;
  readonly #readTimeoutMs: number;
  readonly #writeTimeoutMs: number;
  /**
   * Not a Set: a Set that grows by as much as it shrinks leaves its outgrown tables behind, each pointing at the next and at
   * the calls of its time. One of them in the old generation keeps every later call from being collected young.
   */
  readonly #live: Call[] = [];
  readonly #bytesHeldMax: number;
  #bytesHeld = 0;
  #stopSweep: (() => void) | undefined = undefined;

  constructor(options: TransportOptions) {
    this.clock = options.clock;
    this.toConnectError = options.toConnectError;
    this.#onCallEnd = options.onCallEnd;
    this.#readTimeoutMs = options.limits.readTimeoutMs;
    this.#writeTimeoutMs = options.limits.writeTimeoutMs;
    this.#bytesHeldMax = options.limits.bytesHeldMax;
  }

  get active(): number {
    return this.#live.length;
  }

  get bytesHeld(): number {
    return this.#bytesHeld;
  }

  /** Counts bytes that a call keeps in memory until its end; false when all calls together keep too many. */
  hold(call: Call, bytes: number): boolean {
    if (this.#live[call.place] === call) {
      call.bytesHeld += bytes;
      this.#bytesHeld += bytes;
    }
    return this.#bytesHeld <= this.#bytesHeldMax;
  }

  /** True when somebody reads the records. */
  get recording(): boolean {
    return this.#onCallEnd !== undefined;
  }

  add(call: Call): void {
    call.place = this.#live.length;
    this.#live.push(call);
    this.#stopSweep ??= this.clock.every(sweepIntervalMs, () => this.#sweep());
  }

  remove(call: Call): void {
    const { place } = call;
    if (this.#live[place] !== call) return;
    this.#bytesHeld -= call.bytesHeld;
    const last = this.#live.pop();
    if (last === undefined || last === call) return;
    last.place = place;
    this.#live[place] = last;
  }

  record(call: Call, code: number): void {
    if (this.#onCallEnd === undefined || call.recorded) return;
    call.recorded = true;
    this.#onCallEnd({
      service: call.method.parent.typeName,
      method: call.method.name,
      exists: true,
      protocol: call.protocol,
      code,
      durationMs: this.clock.now() - call.startMs,
      requestBytes: call.requestBytes,
      responseBytes: call.responseBytes,
      notes: call.notes,
      traceparent: call.requestHeader("traceparent"),
      peer: call.peer,
    });
  }

  /** A call of a method that is not served. */
  recordUnknown(path: string, protocol: string, traceparent: string | undefined, peer: string): void {
    const [, service = "", method = ""] = path.split("/", 3);
    this.#onCallEnd?.({
      service: service.slice(0, 200),
      method: method.slice(0, 200),
      exists: false,
      protocol,
      code: Code.Unimplemented,
      durationMs: 0,
      requestBytes: 0,
      responseBytes: 0,
      notes: {},
      traceparent,
      peer,
    });
  }

  /** Ends every call that has not been answered. */
  endAll(error: () => ConnectError): void {
    for (const call of [...this.#live]) call.end(error());
  }

  close(): void {
    this.#stopSweep?.();
    this.#stopSweep = undefined;
  }

  #sweep(): void {
    if (this.#live.length === 0) {
      this.close();
      return;
    }
    const now = this.clock.now();
    for (const call of [...this.#live]) {
      if (call.stalledSinceMs !== undefined) this.#watchReader(call, now);
      else if (call.phase === "sending") call.stalledSinceMs = now;
      else if (call.phase === "receiving" && now - call.startMs > this.#readTimeoutMs) {
        call.end(new ConnectError(`the request did not arrive in ${this.#readTimeoutMs} ms`, Code.DeadlineExceeded));
      }
      if (call.deadlineAtMs !== undefined && now > call.deadlineAtMs + deadlineGraceMs) {
        call.end(new ConnectError("the deadline is over", Code.DeadlineExceeded));
      }
    }
  }

  #watchReader(call: Call, now: number): void {
    const progress = call.progress();
    if (progress !== call.progressSeen) {
      call.progressSeen = progress;
      call.stalledSinceMs = now;
    } else if (now - (call.stalledSinceMs ?? now) > this.#writeTimeoutMs) {
      call.code ??= Code.Canceled;
      call.abandon();
    }
  }
}
