/** Pages of a database, and the rules on their numbers that hold in every LTX file. */

/** One page of a database. */
export interface Page {
  /** From 1. */
  readonly number: number;
  /** Exactly one page size. */
  readonly bytes: Uint8Array;
}

/** Pages of one database, ascending by number. */
export type PageSource = AsyncIterable<Page> | Iterable<Page>;

export const pageBytesMin = 512;
export const pageBytesMax = 65_536;
export const pageNumberMax = 0xffff_ffff;

export function isPageSize(value: number): boolean {
  return value >= pageBytesMin && value <= pageBytesMax && (value & (value - 1)) === 0;
}

/** SQLite locks the bytes from 2^30 on; the page that holds them is never stored. */
export function lockPageNumber(pageSize: number): number {
  return 2 ** 30 / pageSize + 1;
}

/** What a file says about its pages. */
export interface PageOrderFacts {
  readonly pageSize: number;
  /** Pages of the database after the file. */
  readonly commit: number;
  readonly isSnapshot: boolean;
}

/**
 * The order of pages in one file: a snapshot holds all of 1..commit, every other file some of them, ascending; none holds
 * the lock page.
 */
export class PageOrder {
  readonly #facts: PageOrderFacts;
  readonly #lockPage: number;
  #last = 0;

  constructor(facts: PageOrderFacts) {
    this.#facts = facts;
    this.#lockPage = lockPageNumber(facts.pageSize);
  }

  /** The rule that `number` breaks as the next page; undefined when it breaks none, and then it is the last one. */
  take(number: number): string | undefined {
    const { commit, isSnapshot } = this.#facts;
    if (number === this.#lockPage) return `page ${number} is the lock page`;
    if (number > commit) return `page ${number} lies beyond the ${commit} pages of the database`;
    if (isSnapshot && number !== this.#after(this.#last)) {
      return `page ${number} follows page ${this.#last} in a snapshot`;
    }
    if (number <= this.#last) return `page ${number} follows page ${this.#last}`;
    this.#last = number;
    return undefined;
  }

  /** The rule that is broken when no page follows. */
  end(): string | undefined {
    const { commit, isSnapshot } = this.#facts;
    const next = this.#after(this.#last);
    return isSnapshot && next <= commit ? `page ${next} of ${commit} is missing in a snapshot` : undefined;
  }

  #after(number: number): number {
    return number + 1 === this.#lockPage ? number + 2 : number + 1;
  }
}
