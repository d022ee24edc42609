import { Durability, Stage } from "../gen/persisto/v1/database_pb.js";
import { atMost, type Bench, type Benchmark, type BenchmarkResult } from "./benchmark.ts";
import { Client } from "./client.ts";
import { load, startLoad } from "./drive.ts";
import { insertFrame, insertTable, integerOf, service } from "./requests.ts";
import { startServer, staysLocal } from "./server.ts";

const database = "moving";
const writesPerSecond = 200;
const blobBytes = 1000;
/** One statement each, so that none takes long. */
const fillStepMB = 10;

async function run(bench: Bench): Promise<BenchmarkResult> {
  const sizeMB = bench.short ? 20 : 100;
  const server = await startServer({ folder: bench.folder, prefix: bench.placement.servers, settings: staysLocal });
  bench.onEnd(() => server.stop());
  const client = new Client(server.port);
  bench.onEnd(async () => client.close());
  await client.createDatabase(database);
  await client.script(database, "CREATE TABLE filler (id INTEGER PRIMARY KEY, data BLOB NOT NULL)");
  for (const script of insertTable) await client.script(database, script);
  for (let filledMB = 0; filledMB < sizeMB; filledMB += fillStepMB) await client.script(database, fillSql);

  const loading = await startLoad(bench);
  const calls = [{ frame: insertFrame(database, Durability.COMMITTED).toString("base64"), contains: "" }];
  const question = { port: server.port, path: `${service}/Execute`, calls, connections: 1, streams: 500 };
  let written = 0;
  /** The longest time a write took while `work` was under way, and how long that took. */
  const longestDuring = async (work: () => Promise<void>) => {
    const seconds = bench.short ? 2 : 4;
    const writing = load(loading, { ...question, seconds, callsPerSecond: writesPerSecond });
    await new Promise((resolve) => setTimeout(resolve, 300));
    const startedAt = performance.now();
    const [answer] = await Promise.all([writing, work()]);
    if (answer.wrong > 0) throw new Error(`${answer.wrong} writes went wrong`);
    written += answer.callsAnswered;
    return { pauseMs: answer.maxMicros / 1000, tookMs: performance.now() - startedAt };
  };
  const pauses = { none: [] as number[], promotion: [] as number[], demotion: [] as number[] };
  const rounds = bench.short ? 1 : 3;
  for (let round = 0; round <= rounds; round++) {
    const none = await longestDuring(async () => undefined);
    const promotion = await longestDuring(() => client.move("promote", database, Stage.MEMORY));
    const demotion = await longestDuring(() => client.move("demote", database, Stage.LOCAL));
    if (round === 0) continue;
    pauses.none.push(none.pauseMs);
    pauses.promotion.push(promotion.pauseMs);
    pauses.demotion.push(demotion.pauseMs);
    bench.progress(
      `round ${round}: longest write ${none.pauseMs.toFixed(1)} ms, promotion ${promotion.pauseMs.toFixed(1)}, ` +
        `demotion ${demotion.pauseMs.toFixed(1)}`,
    );
  }
  const rows = await integerOf(server.port, database, "SELECT count(*) FROM entry");
  if (rows !== written) throw new Error(`${written} acknowledged, ${rows} rows`);
  return {
    ratios: [
      {
        name: "longest pause of a writer, promotion",
        values: pauses.promotion,
        target: atMost(20),
        unit: "ms",
        isOfMachine: true,
      },
      {
        name: "longest pause of a writer, demotion",
        values: pauses.demotion,
        target: atMost(20),
        unit: "ms",
        isOfMachine: true,
      },
    ],
    figures: [
      { name: "size of the database", unit: "MB", values: [sizeMB] },
      { name: "longest write without a move", unit: "ms", values: pauses.none },
      { name: "longest write during a promotion", unit: "ms", values: pauses.promotion },
      { name: "longest write during a demotion", unit: "ms", values: pauses.demotion },
    ],
  };
}

const fillSql =
  `INSERT INTO filler (data) WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ` +
  `${(fillStepMB * 1_000_000) / blobBytes}) SELECT randomblob(${blobBytes}) FROM number`;

export const moves: Benchmark = {
  id: "B7",
  title: "Moves between stages under write load",
  method:
    "A database is promoted from the local disk to memory and demoted again while a client writes to it at a fixed 200 calls a " +
    "second. What counts is the longest time that one of these writes took, from the moment it was due. The same without a " +
    "move is what the machine does to a write by itself. Afterwards the rows are counted.",
  run,
};
