/** Prepared statements by their text: for texts that are put together, of which there are few in use at one time. */
import type Database from "better-sqlite3";

export class StatementCache {
  readonly #database: Database.Database;
  readonly #countMax: number;
  readonly #statements = new Map<string, Database.Statement>();

  /** `countMax`: with more texts than this it begins anew. */
  constructor(database: Database.Database, countMax: number) {
    this.#database = database;
    this.#countMax = countMax;
  }

  prepare(sql: string): Database.Statement {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      if (this.#statements.size >= this.#countMax) this.#statements.clear();
      statement = this.#database.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}
