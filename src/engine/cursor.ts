/** A query's cursor that holds its database until it is over. */
import type { CallOptions, QueryCursor } from "../sqlite/executor.ts";

/** The database, as far as its cursors know it. */
export interface CursorHolder {
  /** Called once: at the end, at a failure, or when the cursor is closed. */
  leave(): void;
  /** What a caller is to be told of an error. */
  causeOf(error: unknown, options: CallOptions): unknown;
}

export class HeldCursor implements QueryCursor {
  readonly #cursor: QueryCursor;
  readonly #options: CallOptions;
  readonly #holder: CursorHolder;
  #isOver = false;
  /** Why the engine has ended it. */
  #expired: Error | undefined;

  constructor(cursor: QueryCursor, holder: CursorHolder, options: CallOptions) {
    this.#cursor = cursor;
    this.#holder = holder;
    this.#options = options;
  }

  get columns(): Uint8Array {
    return this.#cursor.columns;
  }

  async next(): Promise<Uint8Array | undefined> {
    if (this.#expired !== undefined) throw this.#expired;
    try {
      const chunk = await this.#cursor.next();
      if (chunk === undefined) this.#end();
      return chunk;
    } catch (error) {
      this.#end();
      throw this.#expired ?? this.#holder.causeOf(error, this.#options);
    }
  }

  summary(): { readonly rowCount: bigint; readonly elapsedNs: bigint } {
    return this.#cursor.summary();
  }

  /** Ends it; its reader is told so with the next chunk that it asks for. */
  expire(failure: Error): void {
    if (this.#isOver) return;
    this.#expired = failure;
    this.close();
  }

  close(): void {
    this.#cursor.close();
    this.#end();
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#holder.leave();
  }
}
