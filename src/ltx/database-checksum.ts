/** The rolling checksum of a database that files of other tools carry (ltx.md 3.3). Files of this server carry none. */
import { crc64 } from "./crc64.ts";
import { checksumFlag } from "./header.ts";
import { lockPageNumber, type Page } from "./pages.ts";

export function pageChecksum({ number, bytes }: Page): bigint {
  const numberBytes = Buffer.allocUnsafe(4);
  numberBytes.writeUInt32BE(number);
  return checksumFlag | crc64(numberBytes, bytes);
}

/** All pages of a database, in any order; the lock page does not count. */
export class DatabaseChecksum {
  readonly #lockPage: number;
  #value = checksumFlag;

  constructor(pageSize: number) {
    this.#lockPage = lockPageNumber(pageSize);
  }

  /** Takes a page in, or one that was taken in out again. */
  toggle(page: Page): this {
    if (page.number !== this.#lockPage) this.#value = checksumFlag | (this.#value ^ pageChecksum(page));
    return this;
  }

  get value(): bigint {
    return this.#value;
  }
}
