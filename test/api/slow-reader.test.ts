/** A stream of a million rows to a client that does not read: what waits, waits in SQLite and not in memory. */
import { setTimeout as delay } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { RowFormat } from "../../gen/persisto/v1/value_pb.js";
import { type ApiUnderTest, describeEachProtocol, freshDatabase } from "../support/api-clients.ts";
import { collect } from "../support/rows.ts";
import { until } from "../support/until.ts";

const rowCount = 1_000_000;
const millionRows = `WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c LIMIT ${rowCount}) SELECT x, 'text of row ' || x, x / 8.0 FROM c`;
const mebibyte = 1024 * 1024;
/** Of server and client together, which share this process; the whole result has 45 MB. */
const growthBytesMax = 24 * mebibyte;
const pauseMs = 300;

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

function usedBytes(api: ApiUnderTest): number {
  collectGarbage();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external + api.testServer.executors.stats().residentBytes;
}

describeEachProtocol(
  "a million rows to a slow reader",
  (api) => {
    describe("who stops after the first chunk", () => {
      it("cost no memory while they wait, and all come in the end", async () => {
        const database = await freshDatabase(api);
        // What the first query of a process costs once is not the point.
        await collect(api.databases.query({ database, statement: { sql: `${millionRows} LIMIT 20000` } }));
        await until("executors have reported", () => api.testServer.executors.stats().residentBytes > 0);
        const before = usedBytes(api);
        let rows = 0;
        let sum = 0n;
        let summaryCount = 0n;
        let peak = 0;
        const request = { database, statement: { sql: millionRows }, rowFormat: RowFormat.COLUMNS };
        for await (const { message } of api.databases.query(request)) {
          if (message.case === "columnBatch") {
            if (rows === 0) {
              for (let waited = 0; waited < pauseMs; waited += 50) {
                await delay(50);
                peak = Math.max(peak, usedBytes(api));
              }
            }
            rows += message.value.rowCount;
            for (const integer of message.value.columns[0]?.integers ?? []) {
              sum += integer;
            }
          } else if (message.case === "summary") {
            summaryCount = message.value.rowCount;
          }
        }
        expect(peak - before).toBeLessThan(growthBytesMax);
        expect([rows, sum, summaryCount]).toEqual([
          rowCount,
          BigInt((rowCount * (rowCount + 1)) / 2),
          BigInt(rowCount),
        ]);
      });
    });
  },
  // One executor: the memory of another, which may report later, is not the stream's.
  { kinds: ["grpc h2", "connect h1"], environment: { EXECUTOR_COUNT_MIN: "1", EXECUTOR_COUNT_MAX: "1" } },
);
