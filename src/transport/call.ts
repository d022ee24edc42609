/** One RPC from its headers to the end of its stream, whatever the protocol. */
import { type IncomingHttpHeaders, validateHeaderName, validateHeaderValue } from "node:http";
import type { DescMethod } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import type { CallBook } from "./call-book.ts";
import type { HeaderFields } from "./exchange.ts";
import { ignore } from "./ignore.ts";
import { leftError, writable } from "./status.ts";
import type { RawCall } from "./transport.ts";

/** `receiving` until a unary request is there, `sending` from its last byte handed over to the end of the stream. */
export type CallPhase = "receiving" | "running" | "sending" | "over";

export interface CallInit {
  readonly book: CallBook;
  readonly method: DescMethod;
  readonly protocol: RawCall["protocol"];
  readonly isGet: boolean;
  readonly headers: IncomingHttpHeaders;
  readonly peer: string;
}

/** What the two ways of serving a call share. Lives in its book until its stream is closed. */
export abstract class Call implements RawCall {
  readonly method: DescMethod;
  readonly protocol: RawCall["protocol"];
  readonly isGet: boolean;
  readonly peer: string;
  readonly headers: IncomingHttpHeaders;
  readonly startMs: number;
  deadlineAtMs: number | undefined = undefined;
  deadlineClamped = false;
  /** The method answered that the client has the answer already. */
  notModified = false;
  phase: CallPhase = "receiving";
  /** Since when the reader has taken nothing; undefined while nothing waits for it. */
  stalledSinceMs: number | undefined = undefined;
  /** `progress()` when it was last looked at. */
  progressSeen = -1;
  requestBytes = 0;
  /** What its book has counted for it. */
  bytesHeld = 0;
  responseBytes = 0;
  /** The status that was decided, 0 for OK. */
  code: number | undefined = undefined;
  /** Where its book keeps it. */
  place = -1;
  /** True when its end has been recorded. */
  recorded = false;
  /** Why the call was ended from outside. */
  ended: ConnectError | undefined = undefined;
  /** Answer headers that the method has set. */
  fields: HeaderFields | undefined = undefined;
  readonly #book: CallBook;
  #left = false;
  #headersSent = false;
  #notes: Record<string, string> | undefined = undefined;
  /** Nearly always one at most, so it needs no set. */
  #listener: (() => void) | undefined = undefined;
  #moreListeners: Set<() => void> | undefined = undefined;

  constructor(init: CallInit) {
    this.#book = init.book;
    this.method = init.method;
    this.protocol = init.protocol;
    this.isGet = init.isGet;
    this.headers = init.headers;
    this.peer = init.peer;
    this.startMs = init.book.clock.now();
    init.book.add(this);
  }

  /** Answers with the error, or gives up where the answer has begun and cannot be finished. */
  protected abstract answerEnd(error: ConnectError): void;
  /** Drops the stream without a further word. */
  abstract abandon(): void;
  /** Grows while the reader reads; constant where that cannot be seen. */
  abstract progress(): number;

  get cancelled(): boolean {
    return this.ended !== undefined;
  }

  get notes(): Readonly<Record<string, string>> {
    return this.#notes ?? {};
  }

  requestHeader(name: string): string | undefined {
    const value = this.headers[name];
    return Array.isArray(value) ? value.join(", ") : value;
  }

  setHeader(name: string, value: string): void {
    if (this.#headersSent) throw new Error(`the answer has begun: too late for header ${name}`);
    validateHeaderName(name);
    validateHeaderValue(name, value);
    this.fields ??= {};
    this.fields[name] = value;
  }

  note(key: string, value: string): void {
    if (!this.#book.recording) return;
    this.#notes ??= {};
    this.#notes[key] = value;
  }

  onCancel(listener: () => void): () => void {
    if (this.ended !== undefined) {
      let wanted = true;
      queueMicrotask(() => wanted && listener());
      return () => {
        wanted = false;
      };
    }
    if (this.#listener === undefined) {
      this.#listener = listener;
      return () => {
        if (this.#listener === listener) this.#listener = undefined;
      };
    }
    this.#moreListeners ??= new Set();
    this.#moreListeners.add(listener);
    return () => void this.#moreListeners?.delete(listener);
  }

  /** True when the headers of the answer are decided. */
  get answerBegun(): boolean {
    return this.#headersSent;
  }

  /** Takes over what the client wishes. */
  setDeadline(wish: { readonly ms: number; readonly clamped: boolean } | undefined): void {
    if (wish === undefined) return;
    this.deadlineAtMs = this.startMs + wish.ms;
    this.deadlineClamped = wish.clamped;
  }

  /** Counts the request, of which so many bytes are in memory now; throws when the server holds too many. */
  holdRequest(bytes: number): void {
    const more = bytes - this.bytesHeld;
    if (more <= 0 || this.#book.hold(this, more)) return;
    throw new ConnectError("the server holds as many bytes of requests as it may; try again", Code.Unavailable);
  }

  /** Counts an answer: it is there, so only requests after it are refused. */
  holdAnswer(bytes: number): void {
    this.#book.hold(this, bytes);
  }

  /** The reader keeps the answer waiting, or no longer. */
  setStalled(stalled: boolean): void {
    this.stalledSinceMs = stalled ? this.#book.clock.now() : undefined;
  }

  /** Takes the headers that the method has set; later ones are a defect. */
  takeFields(): HeaderFields | undefined {
    this.#headersSent = true;
    return this.fields;
  }

  /** Ends the call from outside: its deadline is over, or the server goes. */
  end(error: ConnectError): void {
    if (this.ended !== undefined || this.phase === "sending" || this.phase === "over") return;
    this.ended = error;
    this.#fire();
    this.answerEnd(error);
  }

  /** The stream is closed. When the answer was not complete, the client has left. */
  closed(resetCode: number | undefined): void {
    if (this.phase === "over") return;
    if (this.phase !== "sending" && this.ended === undefined) {
      this.#left = true;
      this.ended = leftError(resetCode);
      this.code = this.ended.code;
    }
    this.phase = "over";
    this.#book.remove(this);
    this.finish(this.code ?? this.ended?.code ?? 0);
    if (this.#left) this.#fire();
  }

  /** The error to send for what a method threw; notes its code. */
  failure(error: unknown): ConnectError {
    if (this.#left || (this.ended !== undefined && error === this.ended)) {
      const ended = this.ended ?? leftError(undefined);
      this.code = ended.code;
      return ended;
    }
    const mapped = writable(this.#book.toConnectError(error, this));
    this.code = mapped.code;
    return mapped;
  }

  /** The outcome of the work, or a rejection as soon as the call is ended from outside. */
  race<T>(work: PromiseLike<T> | T): PromiseLike<T> | T {
    if (this.ended !== undefined) {
      if (isThenable(work)) work.then(undefined, ignore);
      return Promise.reject(this.ended);
    }
    if (!isThenable(work)) return work;
    return new Promise<T>((resolve, reject) => {
      const undo = this.onCancel(() => reject(this.ended));
      work.then(
        (value) => {
          undo();
          resolve(value);
        },
        (error: unknown) => {
          undo();
          reject(error);
        },
      );
    });
  }

  /** The answer is decided and handed over. The first time counts. */
  finish(code: number): void {
    this.#book.record(this, code);
  }

  #fire(): void {
    const listener = this.#listener;
    const more = this.#moreListeners;
    this.#listener = undefined;
    this.#moreListeners = undefined;
    listener?.();
    if (more !== undefined) for (const another of more) another();
  }
}

function isThenable<T>(value: PromiseLike<T> | T): value is PromiseLike<T> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";
}
