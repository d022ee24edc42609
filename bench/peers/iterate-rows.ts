/** better-sqlite3 alone: iterate() over the rows in this process, counting. */
import Database from "better-sqlite3";
import { serveQuestions } from "../processes.ts";
import { streamSql, streamTable } from "../requests.ts";

export interface IterateAnswer {
  readonly ms: number;
  readonly rows: number;
}

const database = new Database(process.argv[2]);
database.pragma("journal_mode = WAL");
database.pragma("synchronous = OFF");
for (const statement of streamTable) database.exec(statement);
// Rows as arrays: faster than as objects.
const select = database.prepare(streamSql).raw(true);

serveQuestions({}, (): IterateAnswer => {
  const startedAt = performance.now();
  let rows = 0;
  for (const _ of select.iterate()) rows++;
  return { ms: performance.now() - startedAt, rows };
});
