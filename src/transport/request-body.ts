/** The body of a request, read at the pace of whoever takes it. */
import type { Readable } from "node:stream";
import { Code, ConnectError } from "@connectrpc/connect";

interface Waiter {
  readonly resolve: (result: IteratorResult<Uint8Array, undefined>) => void;
  readonly reject: (error: unknown) => void;
}

/** Can be iterated once. Leaving the iteration early does not destroy the request, as Node's own iterator would. */
export class RequestBody implements AsyncIterableIterator<Uint8Array, undefined> {
  /** Bytes that were taken. */
  bytes = 0;
  /** Called when `bytes` has grown. */
  onBytes: (() => void) | undefined = undefined;
  /** Called when the last byte is there. */
  onEnd: (() => void) | undefined = undefined;
  readonly #source: Readable;
  readonly #queue: Uint8Array[] = [];
  #state: "unread" | "reading" | "ended" | "failed" | "stopped" = "unread";
  #error: ConnectError | undefined = undefined;
  #waiter: Waiter | undefined = undefined;

  constructor(source: Readable) {
    this.#source = source;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<Uint8Array, undefined>> {
    if (this.#state === "unread") this.#start();
    const chunk = this.#queue.shift();
    if (chunk !== undefined) return Promise.resolve({ done: false, value: chunk });
    if (this.#error !== undefined) return Promise.reject(this.#error);
    if (this.#state !== "reading") return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
      this.#source.resume();
    });
  }

  return(): Promise<IteratorResult<Uint8Array, undefined>> {
    this.stop();
    return Promise.resolve({ done: true, value: undefined });
  }

  /** Delivers nothing more. */
  stop(): void {
    this.#letGo();
    if (this.#state !== "failed" && this.#state !== "ended") this.#state = "stopped";
    this.#queue.length = 0;
    this.#wake();
  }

  /** Lets the reader see an error in place of the rest. */
  fail(error: ConnectError): void {
    if (this.#state === "ended" || this.#state === "failed") return;
    this.#letGo();
    this.#state = "failed";
    this.#error = error;
    this.#queue.length = 0;
    this.#wake();
  }

  #letGo(): void {
    if (this.#state !== "reading") return;
    this.#source.off("data", this.#onData);
    this.#source.pause();
  }

  readonly #onData = (chunk: Uint8Array): void => {
    this.bytes += chunk.length;
    this.#queue.push(chunk);
    if (this.#waiter === undefined) this.#source.pause();
    else this.#wake();
    this.onBytes?.();
  };

  #start(): void {
    const source = this.#source;
    this.#state = "reading";
    source.on("data", this.#onData);
    source.once("end", () => {
      if (this.#state !== "reading") return;
      this.#state = "ended";
      this.onEnd?.();
      this.#wake();
    });
    source.once("close", () => this.fail(new ConnectError("the request was cut off", Code.Canceled)));
    if (source.readableEnded) {
      this.#state = "ended";
      this.onEnd?.();
    } else if (source.destroyed) this.fail(new ConnectError("the request was cut off", Code.Canceled));
  }

  #wake(): void {
    const waiter = this.#waiter;
    if (waiter === undefined) return;
    this.#waiter = undefined;
    const chunk = this.#queue.shift();
    if (chunk !== undefined) waiter.resolve({ done: false, value: chunk });
    else if (this.#error !== undefined) waiter.reject(this.#error);
    else waiter.resolve({ done: true, value: undefined });
  }
}
