/** A SQLite database whose WAL is read behind its back. */
import { closeSync, copyFileSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { encodeLtx } from "../../src/ltx/encoder.ts";
import type { Page } from "../../src/ltx/pages.ts";
import { sealedFileFacts } from "../../src/ltx/seal.ts";
import { readWalPages, scanWal, type WalPosition, type WalScan, type WalSource } from "../../src/ltx/wal-reader.ts";
import { collect, encode, snapshotFacts } from "./support.ts";

export const walBytes = (bytes: Buffer): WalSource => ({
  read: (offset, target) => bytes.copy(target, 0, Math.min(offset, bytes.length)),
});

export class WalDatabase {
  readonly path: string;
  readonly #folder: string;
  db: Database.Database;

  constructor(folder: string, pageSize = 4096) {
    this.#folder = folder;
    this.path = join(folder, "db.sqlite");
    this.db = new Database(this.path);
    this.db.pragma(`page_size=${pageSize}`);
    this.db.pragma("journal_mode=WAL");
    this.db.pragma("wal_autocheckpoint=0");
    this.db.pragma("synchronous=OFF");
  }

  get walPath(): string {
    return `${this.path}-wal`;
  }

  /** Reads the file anew each time, as another process does. */
  get wal(): WalSource {
    return {
      read: (offset, target) => {
        const file = openSync(this.walPath, "r");
        try {
          return readSync(file, target, 0, target.length, offset);
        } finally {
          closeSync(file);
        }
      },
    };
  }

  bytesOfWal(): Buffer {
    return readFileSync(this.walPath);
  }

  /** What the database holds when all of its WAL is applied; the database itself is left as it is. */
  state(wal: Buffer = this.bytesOfWal()): Buffer {
    const copy = join(this.#folder, "copy.sqlite");
    for (const ending of ["", "-wal", "-shm"]) rmSync(`${copy}${ending}`, { force: true });
    copyFileSync(this.path, copy);
    writeFileSync(`${copy}-wal`, wal);
    const db = new Database(copy);
    db.pragma("wal_checkpoint(TRUNCATE)");
    db.close();
    return readFileSync(copy);
  }

  close(): void {
    this.db.close();
  }
}

/** The seals of a database: a chain of files, the first a snapshot. */
export class Sealer {
  readonly files: Buffer[] = [];
  readonly kinds: string[] = [];
  readonly #database: WalDatabase;
  readonly #pageSize: number;
  #position: WalPosition | undefined;
  #commit = 0;

  constructor(database: WalDatabase, pageSize: number) {
    this.#database = database;
    this.#pageSize = pageSize;
  }

  get position(): WalPosition | undefined {
    return this.#position;
  }

  async seal(frameCountMax?: number): Promise<WalScan> {
    const { wal } = this.#database;
    const scan = await scanWal(wal, this.#position, frameCountMax === undefined ? {} : { frameCountMax });
    this.kinds.push(scan.kind);
    if (scan.kind !== "commits") return scan;
    const txid = BigInt(this.files.length);
    if (txid === 0n) {
      const pages = await pagesOf(wal, scan);
      this.files.push(await encode(snapshotFacts(this.#pageSize, scan.commit), pages));
    } else {
      const facts = sealedFileFacts(scan, { txid, commit: this.#commit, pageSize: this.#pageSize }, Number(txid));
      if (facts === undefined) throw new Error("a snapshot is needed");
      this.files.push((await collect(encodeLtx(facts, readWalPages(wal, scan)))).bytes);
    }
    this.#position = scan;
    this.#commit = scan.commit;
    return scan;
  }
}

export async function pagesOf(wal: WalSource, scan: WalScan): Promise<Page[]> {
  if (scan.kind !== "commits") throw new Error(`the scan found ${scan.kind}`);
  const pages: Page[] = [];
  for await (const page of readWalPages(wal, scan)) pages.push(page);
  return pages;
}

/** The checksum of WALs, written down once more: from the format's description, word by word. */
export function walSums(
  bytes: Buffer,
  [first, second]: readonly [number, number],
  isBigEndian: boolean,
): [number, number] {
  let sum0 = first;
  let sum1 = second;
  const word = (at: number) => (isBigEndian ? bytes.readUInt32BE(at) : bytes.readUInt32LE(at));
  for (let at = 0; at < bytes.length; at += 8) {
    sum0 = (sum0 + word(at) + sum1) % 2 ** 32;
    sum1 = (sum1 + word(at + 4) + sum0) % 2 ** 32;
  }
  return [sum0, sum1];
}

/** The same WAL with checksums over words of the other order, as a machine of that order writes it. */
export function asBigEndian(wal: Buffer, pageSize: number): Buffer {
  const bytes = Buffer.from(wal);
  bytes.writeUInt32BE(0x377f0683, 0);
  let sums = walSums(bytes.subarray(0, 24), [0, 0], true);
  bytes.writeUInt32BE(sums[0], 24);
  bytes.writeUInt32BE(sums[1], 28);
  for (let at = 32; at + 24 + pageSize <= bytes.length; at += 24 + pageSize) {
    sums = walSums(bytes.subarray(at, at + 8), sums, true);
    sums = walSums(bytes.subarray(at + 24, at + 24 + pageSize), sums, true);
    bytes.writeUInt32BE(sums[0], at + 16);
    bytes.writeUInt32BE(sums[1], at + 20);
  }
  return bytes;
}
