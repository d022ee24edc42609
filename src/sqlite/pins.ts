/**
 * Reads that bound what checkpoints copy. A checkpoint copies back at most what the oldest read still sees, so what is
 * committed after a pin stays in the WAL until it is pinned, too.
 */
import type { Connection, OpenDatabase } from "./connections.ts";
import type { Execution } from "./execution.ts";
import { NotedFailure } from "./failure-notes.ts";
import { ANSWER_DONE } from "./protocol.ts";
import { CHECKPOINT_PASSIVE, runCheckpoint } from "./upkeep.ts";

interface Pin {
  readonly number: number;
  readonly reader: Connection;
  /** A connection that reads cannot checkpoint. */
  readonly checkpointer: Connection;
}

export class Pins {
  readonly #execution: Execution;
  /** By the id of the call that began them. */
  readonly #open = new Map<number, Pin>();

  constructor(execution: Execution) {
    this.#execution = execution;
  }

  pin(): void {
    const { answers, call } = this.#execution;
    const pin = call.target === 0 ? this.#begin(this.#execution.database()) : this.#get();
    try {
      this.#execution.rollBack(pin.reader);
      this.#execution.control(pin.reader, "begin");
      this.#execution.touch(pin.reader);
    } catch (error) {
      this.#end(call.target === 0 ? call.id : call.target, pin);
      throw error;
    }
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  checkpoint(): void {
    const { answers, call } = this.#execution;
    const pin = this.#get();
    if (!this.#execution.native.inTransaction(pin.reader.native)) throw new Error("a checkpoint without its pin");
    try {
      answers.append(runCheckpoint(this.#execution, pin.checkpointer, CHECKPOINT_PASSIVE));
    } finally {
      this.#execution.rollBack(pin.reader);
    }
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  /** Also of one that is over. */
  unpin(): void {
    const { answers, call } = this.#execution;
    const pin = this.#open.get(call.target);
    if (pin !== undefined) this.#end(call.target, pin);
    answers.finish(call.id, ANSWER_DONE, 0, 0, undefined);
  }

  /** Ends those of a database, or all. */
  close(number?: number): void {
    for (const [id, pin] of [...this.#open]) if (number === undefined || pin.number === number) this.#end(id, pin);
  }

  #begin(database: OpenDatabase): Pin {
    const { call, connections } = this.#execution;
    const reader = connections.openPlain(database);
    try {
      const pin = { number: call.number, reader, checkpointer: connections.openPlain(database) };
      this.#open.set(call.id, pin);
      return pin;
    } catch (error) {
      connections.closePlain(reader);
      throw error;
    }
  }

  #get(): Pin {
    const pin = this.#open.get(this.#execution.call.target);
    if (pin === undefined) throw new NotedFailure({ reason: "EXECUTOR_LOST", facts: { signal: "the pin is gone" } });
    return pin;
  }

  #end(id: number, pin: Pin): void {
    const { connections } = this.#execution;
    this.#open.delete(id);
    this.#execution.rollBack(pin.reader);
    connections.closePlain(pin.reader);
    connections.closePlain(pin.checkpointer);
  }
}
