/** A query's cursor that tells when it is over. */
import type { QueryCursor } from "../sqlite/executor.ts";

export class HeldCursor implements QueryCursor {
  readonly #cursor: QueryCursor;
  #onEnd: (() => void) | undefined;

  /** `onEnd` is called once: at the end, at a failure, or when the cursor is closed. */
  constructor(cursor: QueryCursor, onEnd: () => void) {
    this.#cursor = cursor;
    this.#onEnd = onEnd;
  }

  get columns(): Uint8Array {
    return this.#cursor.columns;
  }

  async next(): Promise<Uint8Array | undefined> {
    try {
      const chunk = await this.#cursor.next();
      if (chunk === undefined) this.#end();
      return chunk;
    } catch (error) {
      this.#end();
      throw error;
    }
  }

  summary(): { readonly rowCount: bigint; readonly elapsedNs: bigint } {
    return this.#cursor.summary();
  }

  close(): void {
    this.#cursor.close();
    this.#end();
  }

  #end(): void {
    const onEnd = this.#onEnd;
    this.#onEnd = undefined;
    onEnd?.();
  }
}
