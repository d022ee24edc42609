/** SQLite alone: one-row inserts with synchronous=FULL, one commit after another. Answers with commits a second. */
import Database from "better-sqlite3";
import { serveQuestions } from "../processes.ts";
import { insertSql, insertTable } from "../requests.ts";

export interface FullQuestion {
  readonly seconds: number;
}
export interface FullAnswer {
  readonly commitsPerSecond: number;
}

// SQLite's own checkpoints stay on: the WAL is written over again and again, which flushes twice as fast as one that grows.
const database = new Database(process.argv[2]);
database.pragma("journal_mode = WAL");
database.pragma("synchronous = FULL");
for (const statement of insertTable) database.exec(statement);
const insert = database.prepare(insertSql);

serveQuestions<FullQuestion>({}, ({ seconds }): FullAnswer => {
  const startedAt = performance.now();
  let commits = 0;
  while (performance.now() - startedAt < seconds * 1000) {
    insert.run("a name of some length", 1.5);
    commits++;
  }
  return { commitsPerSecond: (commits * 1000) / (performance.now() - startedAt) };
});
