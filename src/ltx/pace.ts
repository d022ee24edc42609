/** Long work in slices. Streams give way to others when they wait for their next chunk; what is in memory already does not. */

/** How long work is cut up. */
export interface Pace {
  /** Awaited after each slice, so that others get their turn on the event loop. Without it there are no slices. */
  readonly turn?: () => Promise<void>;
  /** Pages in a slice; by itself 32, about a millisecond of work. */
  readonly pagesPerTurn?: number;
}

const pagesPerTurnDefault = 32;

/** Counts pages and takes the turns. */
export class Pacer {
  readonly #turn: (() => Promise<void>) | undefined;
  readonly #pagesPerTurn: number;
  #pages = 0;

  constructor({ turn, pagesPerTurn = pagesPerTurnDefault }: Pace) {
    this.#turn = turn;
    this.#pagesPerTurn = pagesPerTurn;
  }

  /** To be awaited after each page, or after so many. */
  step(pageCount = 1): Promise<void> | undefined {
    this.#pages += pageCount;
    if (this.#turn === undefined || this.#pages < this.#pagesPerTurn) return undefined;
    this.#pages = 0;
    return this.#turn();
  }
}
