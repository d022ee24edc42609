import { Call } from "./call.ts";
import { busy, lost } from "./call-failures.ts";
import type { CheckpointCounts, Checkpointer } from "./executor.ts";
import type { Pipeline } from "./pipeline.ts";
import type { PoolDatabase } from "./pool-database.ts";
import { OP_CHECKPOINT, OP_PIN, OP_UNPIN } from "./protocol.ts";

/** A pin and its checkpoints, in one executor. */
export class PoolCheckpointer implements Checkpointer {
  readonly #database: PoolDatabase;
  /** The executor that has the pin, and the id of the call that began it there. */
  #place: { readonly pipeline: Pipeline; readonly id: number } | undefined;

  constructor(database: PoolDatabase) {
    this.#database = database;
  }

  async pin(): Promise<void> {
    if (this.#place?.pipeline.state === "dead") this.#place = undefined;
    const done = await this.#run(OP_PIN);
    this.#place ??= { pipeline: done.call.ranIn as Pipeline, id: done.call.id };
  }

  async checkpoint(): Promise<CheckpointCounts> {
    if (this.#place === undefined) throw lost("the executor of the pin has ended");
    const database = this.#database;
    let mayStartOver = true;
    database.checkpointBegins();
    try {
      const counts = countsIn((await this.#run(OP_CHECKPOINT)).body);
      mayStartOver = counts.done >= counts.frames;
      return counts;
    } finally {
      database.checkpointed(mayStartOver);
    }
  }

  async close(): Promise<void> {
    if (this.#place === undefined) return;
    try {
      await this.#run(OP_UNPIN);
    } catch {
      // Its executor is dead, and the pin with it, or has been told to forget the database.
    }
    this.#place = undefined;
  }

  #run(op: number): Promise<{ readonly call: Call; readonly body: Buffer }> {
    const place = this.#place;
    // Its executors end what is pinned as they forget the database.
    if (this.#database.closing) return Promise.reject(busy(this.#database, "it is being closed", 0));
    return new Promise((resolve, reject) => {
      const call = new Call({
        ...this.#database.ownInput(op),
        target: place?.id ?? 0,
        pinned: place?.pipeline,
        onDone: (done, _flags, _frames, body) => resolve({ call: done, body }),
        onFailed: (_, error) => {
          // A pin that could not begin anew is closed there.
          if (op === OP_PIN) this.#place = undefined;
          reject(error);
        },
      });
      this.#database.pool.dispatcher.submit(call, false);
    });
  }
}

/** What the answer to a checkpoint says. */
export function countsIn(body: Buffer): CheckpointCounts {
  return { frames: body.readUInt32LE(0), done: body.readUInt32LE(4) };
}
