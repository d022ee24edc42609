/** Calls by plain HTTP with JSON, as curl makes them: for tests that start the program. */

type Json = Readonly<Record<string, unknown>>;

/** Calls a method of persisto.v1, such as `DatabaseService/Read`; rejects with what the server says when it fails. */
export async function callByHttp(port: number, method: string, body: Json): Promise<Json> {
  const response = await fetch(`http://127.0.0.1:${port}/persisto.v1.${method}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = (await response.json()) as Json;
  if (!response.ok) throw new Error(`${method}: ${answer["code"]}: ${answer["message"]}`);
  return answer;
}

/** Runs a script, and then a statement that is acknowledged as `durability` says. */
export async function write(
  port: number,
  database: string,
  sql: string,
  durability: "COMMITTED" | "LOCAL" | "REMOTE" = "REMOTE",
): Promise<Json> {
  return callByHttp(port, "DatabaseService/Execute", {
    database,
    durability: `DURABILITY_${durability}`,
    statement: { sql },
  });
}

/** The first value of the first row, as JSON has it: integers as text. */
export async function readOne(port: number, database: string, sql: string): Promise<unknown> {
  const { result } = await callByHttp(port, "DatabaseService/Read", { database, statement: { sql } });
  const { rowBatch } = result as { rowBatch: { rows: { values: Json[] }[] } };
  return Object.values(rowBatch.rows[0]?.values[0] ?? {})[0];
}
