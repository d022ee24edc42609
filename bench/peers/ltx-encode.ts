/** A database as one LTX file, and the same pages through the compressor alone. Answers with the processor time
 * that each took. */
import { readFileSync } from "node:fs";
import Database from "better-sqlite3";
import { compressSync } from "lz4-napi";
import { encodeLtx } from "../../src/ltx/encoder.ts";
import { serveQuestions } from "../processes.ts";

export interface EncodeQuestion {
  readonly what: "ltx" | "lz4";
}
export interface EncodeAnswer {
  readonly ms: number;
  readonly bytes: number;
}
export interface EncodeReady {
  readonly sizeBytes: number;
}

const [path = "", sizeMB = "100"] = process.argv.slice(2);
const pageSize = 4096;

/** Text that compresses about as well as that of applications does. */
function fill(): Buffer {
  const database = new Database(path);
  database.pragma(`page_size = ${pageSize}`);
  database.exec("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, note TEXT, data BLOB)");
  const insert = database.prepare("INSERT INTO item (name, note, data) VALUES (?, ?, randomblob(100))");
  const count = (Number(sizeMB) * 1_000_000) / 400;
  database.transaction(() => {
    for (let id = 0; id < count; id++) {
      insert.run(
        `customer number ${id}`,
        `ordered ${id % 97} pieces of article ${(id * 7919) % 10_007}; paid in full. `.repeat(4),
      );
    }
  })();
  database.close();
  return readFileSync(path);
}

const bytes = fill();
const pages = Array.from({ length: bytes.length / pageSize }, (_, index) => ({
  number: index + 1,
  bytes: bytes.subarray(index * pageSize, (index + 1) * pageSize),
}));

async function encode(): Promise<number> {
  const facts = {
    pageSize,
    commit: pages.length,
    minTxid: 1n,
    maxTxid: 1n,
    timestampMs: 0,
  };
  let size = 0;
  for await (const chunk of encodeLtx(facts, pages)) size += chunk.length;
  return size;
}

function compress(): number {
  let size = 0;
  for (const page of pages) size += compressSync(page.bytes).length;
  return size;
}

serveQuestions<EncodeQuestion>(
  { sizeBytes: bytes.length } satisfies EncodeReady,
  async ({ what }): Promise<EncodeAnswer> => {
    const before = process.cpuUsage();
    const size = what === "ltx" ? await encode() : compress();
    const { user, system } = process.cpuUsage(before);
    return { ms: (user + system) / 1000, bytes: size };
  },
);
