import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { Durability } from "../../gen/persisto/v1/database_pb.js";
import { TransactionMode } from "../../gen/persisto/v1/database_service_pb.js";
import { RowFormat } from "../../gen/persisto/v1/value_pb.js";
import {
  type ApiUnderTest,
  bidiClientKinds,
  describeEachProtocol,
  freshDatabase,
  freshId,
} from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid } from "../support/api-errors.ts";
import { rowsOf, statement } from "../support/rows.ts";
import { type Command, openTransaction, outcomeOf, pipeline } from "../support/transaction-client.ts";

const readWrite = TransactionMode.READ_WRITE;
const readOnly = TransactionMode.READ_ONLY;

async function counter(api: ApiUnderTest): Promise<string> {
  const database = await freshDatabase(api);
  await api.databases.executeScript({ database, script: "CREATE TABLE n (v UNIQUE); INSERT INTO n VALUES (1)" });
  return database;
}

async function valuesIn(api: ApiUnderTest, database: string): Promise<unknown[]> {
  const { result } = await api.databases.execute({ database, statement: statement("SELECT v FROM n ORDER BY v") });
  return rowsOf(result).map(([v]) => v);
}

const begin = (database: string, mode = readWrite): Command => ({ case: "begin", value: { database, mode } });
const run = (sql: string): Command => ({ case: "execute", value: { sql } });
const commit: Command = { case: "commit", value: {} };
const rollback: Command = { case: "rollback", value: {} };

describeEachProtocol(
  "Transact",
  (api) => {
    it("commits what was done, and shows it to itself alone before", async () => {
      const database = await counter(api);
      const transaction = openTransaction(api);
      const begun = await transaction.send(begin(database));
      const { snapshot, expireTime } = outcomeOf(begun, "begun");
      expect(snapshot?.lineage).toMatch(/^[0-9a-f]{16}$/);
      expect(Number(expireTime?.seconds)).toBeGreaterThan(Date.now() / 1000 - 1);
      const inserted = await transaction.send(run("INSERT INTO n VALUES (2) RETURNING v"));
      expect(inserted.outcome.case).toBe("result");
      const read = { database, statement: statement("SELECT count(*) FROM n") };
      expect(rowsOf((await api.databases.read(read)).result)).toEqual([[1n]]);
      const own = await transaction.send(run("SELECT count(*) FROM n"));
      expect(rowsOf(outcomeOf(own, "result"))).toEqual([[2n]]);
      const ended = await transaction.send({ case: "commit", value: { durability: Durability.LOCAL } });
      expect(ended.outcome).toMatchObject({ case: "ended", value: { committed: true } });
      const { position } = outcomeOf(ended, "ended");
      expect(position?.lineage).toBe(snapshot?.lineage);
      expect(position?.sequence).toBeGreaterThanOrEqual(snapshot?.sequence ?? 1n);
      await transaction.end();
      expect(await valuesIn(api, database)).toEqual([1n, 2n]);
    });

    it("answers pipelined commands in order, each with its id", async () => {
      const database = await counter(api);
      const commands = [
        begin(database),
        ...Array.from({ length: 50 }, (_, index) => run(`INSERT INTO n VALUES (${index + 10})`)),
        commit,
      ];
      const answers = await pipeline(api, commands);
      expect(answers.map(({ commandId }) => commandId)).toEqual(commands.map((_, index) => BigInt(index + 1)));
      expect(answers.at(-1)?.outcome.case).toBe("ended");
      expect(await valuesIn(api, database)).toHaveLength(51);
    });

    it.each([
      ["rollback", [rollback]],
      ["the end of the stream", []],
    ] as const)("drops everything on %s", async (_, last) => {
      const database = await counter(api);
      const answers = await pipeline(api, [begin(database), run("DELETE FROM n"), ...last]);
      if (last.length > 0) {
        expect(answers.at(-1)?.outcome).toMatchObject({ case: "ended", value: { committed: false } });
      }
      expect(await valuesIn(api, database)).toEqual([1n]);
    });

    it("drops everything when the client breaks the stream off", async () => {
      const database = await counter(api);
      const transaction = openTransaction(api);
      await transaction.send(begin(database));
      await transaction.send(run("DELETE FROM n"));
      transaction.abort();
      // Waits for the write lock, which the aborted transaction held.
      const { result } = await api.databases.execute({ database, statement: statement("UPDATE n SET v = v") });
      expect(result?.rowsAffected).toBe(1n);
    });

    it("goes on after a statement that failed", async () => {
      const database = await counter(api);
      const answers = await pipeline(api, [
        begin(database),
        run("INSERT INTO n VALUES (2)"),
        run("INSERT INTO n VALUES (1)"),
        run("nonsense"),
        run("INSERT INTO n VALUES (3)"),
        commit,
      ]);
      expect(answers.map(({ outcome }) => outcome.case)).toEqual([
        "begun",
        "result",
        "statementError",
        "statementError",
        "result",
        "ended",
      ]);
      const error = outcomeOf(answers[2], "statementError");
      expect(error.code).toBe(Code.FailedPrecondition);
      const [detail] = error.details;
      expect(detail && anyUnpack(detail, ErrorInfoSchema)?.reason).toBe("CONSTRAINT_VIOLATED");
      expect(await valuesIn(api, database)).toEqual([1n, 2n, 3n]);
    });

    it("has savepoints", async () => {
      const database = await counter(api);
      const answers = await pipeline(api, [
        begin(database),
        run("INSERT INTO n VALUES (2)"),
        { case: "savepoint", value: { savepointId: 'a "quoted" name' } },
        run("INSERT INTO n VALUES (3)"),
        { case: "rollbackTo", value: { savepointId: 'a "quoted" name' } },
        run("INSERT INTO n VALUES (4)"),
        { case: "rollbackTo", value: { savepointId: "unknown" } },
        commit,
      ]);
      expect(answers.map(({ outcome }) => outcome.case).slice(2)).toEqual([
        "result",
        "result",
        "result",
        "result",
        "statementError",
        "ended",
      ]);
      expect(await valuesIn(api, database)).toEqual([1n, 2n, 4n]);
    });

    it("reads one snapshot and refuses writes when it is read only", async () => {
      const database = await counter(api);
      const transaction = openTransaction(api);
      await transaction.send(begin(database, readOnly));
      const count = async () => rowsOf(outcomeOf(await transaction.send(run("SELECT count(*) FROM n")), "result"));
      expect(await count()).toEqual([[1n]]);
      await api.databases.execute({ database, statement: statement("INSERT INTO n VALUES (5)") });
      expect(await count()).toEqual([[1n]]);
      const write = await transaction.send(run("INSERT INTO n VALUES (6)"));
      expect(write.outcome.case).toBe("statementError");
      expect((await transaction.send(commit)).outcome.case).toBe("ended");
      await transaction.end();
      expect(await valuesIn(api, database)).toEqual([1n, 5n]);
    });

    it("lays results out by column on request, and reads at a position", async () => {
      const database = await counter(api);
      const { position } = await api.databases.execute({ database, statement: statement("INSERT INTO n VALUES (2)") });
      const value = {
        database,
        mode: readOnly,
        rowFormat: RowFormat.COLUMNS,
        ...(position && { minPosition: position }),
      };
      const answers = await pipeline(api, [{ case: "begin", value }, run("SELECT v FROM n ORDER BY v"), rollback]);
      const result = outcomeOf(answers[1], "result");
      expect(result.data.case).toBe("columnBatch");
      expect(rowsOf(result)).toEqual([[1n], [2n]]);
    });

    it("waits for another's write lock", async () => {
      const database = await counter(api);
      const first = openTransaction(api);
      await first.send(begin(database));
      await first.send(run("INSERT INTO n VALUES (2)"));
      const second = pipeline(api, [begin(database), run("INSERT INTO n VALUES (3)"), commit]);
      await first.send(commit);
      await first.end();
      expect((await second).at(-1)?.outcome.case).toBe("ended");
      expect(await valuesIn(api, database)).toEqual([1n, 2n, 3n]);
    });

    describe("ends the stream on what breaks its rules:", () => {
      it("no begin first", async () => {
        expect(await expectFailure(pipeline(api, [run("SELECT 1")]), "TRANSACTION_NOT_OPEN")).toEqual({
          command: "execute",
        });
        await expectFailure(pipeline(api, [commit]), "TRANSACTION_NOT_OPEN");
      });

      it("commands after the end", async () => {
        const database = await counter(api);
        const late = pipeline(api, [begin(database), run("INSERT INTO n VALUES (2)"), commit, run("SELECT 1")]);
        await expectFailure(late, "TRANSACTION_NOT_OPEN");
        expect(await valuesIn(api, database)).toEqual([1n, 2n]);
      });

      it("a second begin, which rolls back", async () => {
        const database = await counter(api);
        await expectFieldInvalid(pipeline(api, [begin(database), run("DELETE FROM n"), begin(database)]), "begin");
        expect(await valuesIn(api, database)).toEqual([1n]);
      });

      it("no command, no mode, no name", async () => {
        const database = await counter(api);
        await expectFieldInvalid(pipeline(api, [begin(database), { case: undefined }]), "command");
        await expectFieldInvalid(pipeline(api, [begin(database, TransactionMode.UNSPECIFIED)]), "begin.mode");
        const unnamed: Command = { case: "savepoint", value: {} };
        await expectFieldInvalid(pipeline(api, [begin(database), unnamed]), "savepoint.savepoint_id");
      });

      it("a database that is not there", async () => {
        await expectFailure(pipeline(api, [begin(freshId())]), "DATABASE_NOT_FOUND");
        await expectFieldInvalid(pipeline(api, [begin("No")]), "begin.database");
      });
    });

    it("refuses transactions inside the transaction", async () => {
      const database = await counter(api);
      const answers = await pipeline(api, [begin(database), run("BEGIN"), run("COMMIT"), run("SAVEPOINT x"), rollback]);
      expect(answers.map(({ outcome }) => outcome.case)).toEqual([
        "begun",
        "statementError",
        "statementError",
        "statementError",
        "ended",
      ]);
    });

    it("ends with nothing when nothing was sent", async () => {
      expect(await pipeline(api, [])).toEqual([]);
    });

    it("expires when it waits too long for a command", async () => {
      const database = await counter(api);
      const transaction = openTransaction(api);
      await transaction.send({
        case: "begin",
        value: { database, mode: readWrite, idleTimeout: { seconds: 0n, nanos: 100_000_000 } },
      });
      await transaction.send(run("DELETE FROM n"));
      expect(await expectFailure(transaction.end({ keepOpen: true }), "TRANSACTION_EXPIRED")).toMatchObject({
        limitMs: "100",
      });
      expect(await valuesIn(api, database)).toEqual([1n]);
    });
  },
  { kinds: bidiClientKinds },
);
