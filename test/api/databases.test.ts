import { create } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { DatabaseState, DatabaseView, Stage } from "../../gen/persisto/v1/database_pb.js";
import { describeEachProtocol, freshDatabase, freshId } from "../support/api-clients.ts";
import { expectFailure, expectFieldInvalid } from "../support/api-errors.ts";

const uuid = () => crypto.randomUUID();

describeEachProtocol("life cycle of databases", (api) => {
  describe("CreateDatabase", () => {
    it("makes an empty database and says all about it", async () => {
      const before = Date.now();
      const database = freshId();
      const created = await api.databases.createDatabase({ database, labels: { team: "billing" } });
      expect(created.database).toMatchObject({
        id: database,
        state: DatabaseState.READY,
        stage: Stage.LOCAL,
        labels: { team: "billing" },
        sqlOptions: { foreignKeys: true },
      });
      expect(created.database?.position?.lineage).toMatch(/^[0-9a-f]{16}$/);
      expect(created.database?.etag).not.toBe("");
      const createdMs = Number(created.database?.createTime?.seconds ?? 0n) * 1000;
      expect(createdMs).toBeGreaterThanOrEqual(before - 1000);
      const got = await api.databases.getDatabase({ database });
      expect(got.database).toMatchObject({
        id: database,
        labels: { team: "billing" },
        etag: created.database?.etag ?? "",
        position: created.database?.position ?? {},
      });
    });

    it("refuses an id that is taken, unless told that this is fine", async () => {
      const database = await freshDatabase(api);
      const facts = await expectFailure(api.databases.createDatabase({ database }), "DATABASE_EXISTS");
      expect(facts).toEqual({ database });
      const again = await api.databases.createDatabase({ database, allowExisting: true, labels: { a: "b" } });
      expect(again.database).toMatchObject({ id: database, labels: {} });
    });

    it("gives the first answer again to the same request_id, and refuses it with other content", async () => {
      const request = { database: freshId(), requestId: uuid(), labels: { a: "1", b: "2" } };
      const first = await api.databases.createDatabase(request);
      const second = await api.databases.createDatabase(request);
      expect(second.database).toMatchObject({
        id: request.database,
        etag: first.database?.etag ?? "",
        position: { lineage: first.database?.position?.lineage ?? "" },
      });
      await expectFieldInvalid(api.databases.createDatabase({ ...request, labels: {} }), "request_id");
    });

    it.each([
      ["", "empty"],
      ["A", "a capital"],
      ["-a", "a hyphen first"],
      ["a.", "a dot last"],
      ["a/b", "a slash"],
      ["..", "dots"],
      ["ä", "a letter beyond ASCII"],
      ["a b", "a blank"],
      ["a".repeat(129), "129 characters"],
    ])("refuses the id %j: %s", async (database) => {
      await expectFieldInvalid(api.databases.createDatabase({ database }), "database");
    });

    it.each(["a", "0", "a.db-wal", "a_b", "acme.orders.2026", "x".repeat(110)])(
      "takes ids such as %j",
      async (stem) => {
        const database = `${stem}-${freshId()}`.slice(-128);
        expect((await api.databases.createDatabase({ database })).database?.id).toBe(database);
      },
    );

    it("refuses wrong labels, each by its path", async () => {
      const labels = { Team: "a", "1a": "b", fine: "c", long: "x".repeat(257), [`k${"y".repeat(63)}`]: "d" };
      await expectFieldInvalid(
        api.databases.createDatabase({ database: freshId(), labels }),
        "labels.1a",
        "labels.Team",
        "labels.long",
        `labels.k${"y".repeat(63)}`,
      );
      const many = Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`k${index}`, ""]));
      await expectFieldInvalid(api.databases.createDatabase({ database: freshId(), labels: many }), "labels");
      const emoji = { emoji: "😀".repeat(256) };
      const created = await api.databases.createDatabase({ database: freshId(), labels: emoji });
      expect(created.database?.labels).toEqual(emoji);
    });

    it("starts a database on the stage that is asked for, and on none that there is not", async () => {
      for (const initialStage of [Stage.MEMORY, Stage.LOCAL, Stage.REMOTE]) {
        const database = freshId();
        const created = await api.databases.createDatabase({ database, initialStage });
        expect(created.database?.stage).toBe(initialStage);
        const { result } = await api.databases.execute({ database, statement: { sql: "CREATE TABLE t (a)" } });
        expect(result?.rowsAffected).toBe(0n);
      }
      await expectFieldInvalid(
        api.databases.createDatabase({ database: freshId(), initialStage: 9 as Stage }),
        "initial_stage",
      );
    });

    it("refuses a request_id that is not a UUID", async () => {
      await expectFieldInvalid(api.databases.createDatabase({ database: freshId(), requestId: "1" }), "request_id");
    });

    it("can leave foreign keys unchecked", async () => {
      const database = freshId();
      await api.databases.createDatabase({ database, sqlOptions: { foreignKeys: false } });
      expect((await api.databases.getDatabase({ database })).database?.sqlOptions?.foreignKeys).toBe(false);
      const { result } = await api.databases.execute({ database, statement: { sql: "PRAGMA foreign_keys" } });
      expect(result?.data).toMatchObject({ value: { rows: [{ values: [{ kind: { value: 0n } }] }] } });
    });
  });

  describe("GetDatabase", () => {
    it("shows the basic view on request", async () => {
      const database = await freshDatabase(api);
      const { database: basic } = await api.databases.getDatabase({ database, view: DatabaseView.BASIC });
      expect(basic).toMatchObject({ id: database, state: DatabaseState.READY, stage: Stage.LOCAL });
      expect(basic?.etag).not.toBe("");
      expect(basic?.position).toBeUndefined();
      expect(basic?.createTime).toBeUndefined();
    });

    it("knows no database that was not made, and no view that is not there", async () => {
      const database = freshId();
      expect(await expectFailure(api.databases.getDatabase({ database }), "DATABASE_NOT_FOUND")).toEqual({ database });
      await expectFieldInvalid(api.databases.getDatabase({ database: "NO" }), "database");
      await expectFieldInvalid(api.databases.getDatabase({ database, view: 7 as DatabaseView }), "view");
    });

    it("shows that the database grows", async () => {
      const database = await freshDatabase(api);
      const sql =
        "CREATE TABLE t AS SELECT hex(zeroblob(500)) AS a FROM (VALUES (1),(2),(3),(4)), (VALUES (1),(2),(3),(4)) x, (VALUES (1),(2),(3),(4)) y";
      await api.databases.execute({ database, statement: { sql } });
      expect(Number((await api.databases.getDatabase({ database })).database?.sizeBytes)).toBeGreaterThan(60_000);
    });
  });

  describe("UpdateDatabase", () => {
    it("changes what is present, and the etag with it", async () => {
      const database = await freshDatabase(api);
      const { database: before } = await api.databases.getDatabase({ database });
      const { database: after } = await api.databases.updateDatabase({
        database: { id: database, labels: { a: "b" } },
      });
      expect(after?.labels).toEqual({ a: "b" });
      expect(after?.sqlOptions?.foreignKeys).toBe(true);
      expect(after?.etag).not.toBe(before?.etag);
      const { database: later } = await api.databases.updateDatabase({
        database: { id: database, sqlOptions: { foreignKeys: false } },
      });
      expect(later).toMatchObject({ labels: { a: "b" }, sqlOptions: { foreignKeys: false } });
    });

    it("changes what the mask names", async () => {
      const database = freshId();
      await api.databases.createDatabase({ database, labels: { a: "b" }, sqlOptions: { foreignKeys: false } });
      const { database: cleared } = await api.databases.updateDatabase({
        database: { id: database, labels: {}, sqlOptions: { foreignKeys: true } },
        updateMask: create(FieldMaskSchema, { paths: ["labels"] }),
      });
      expect(cleared).toMatchObject({ labels: {}, sqlOptions: { foreignKeys: false } });
      const { database: reset } = await api.databases.updateDatabase({
        database: { id: database, labels: { c: "d" } },
        updateMask: create(FieldMaskSchema, { paths: ["*"] }),
      });
      expect(reset).toMatchObject({ labels: { c: "d" }, sqlOptions: { foreignKeys: true } });
      await expectFieldInvalid(
        api.databases.updateDatabase({
          database: { id: database },
          updateMask: create(FieldMaskSchema, { paths: ["stage"] }),
        }),
        "update_mask",
      );
      await expectFieldInvalid(
        api.databases.updateDatabase({ database: { id: database, labels: { Team: "a" } } }),
        "database.labels.Team",
      );
    });

    it("is guarded by the etag", async () => {
      const database = await freshDatabase(api);
      const { database: read } = await api.databases.getDatabase({ database });
      const etag = read?.etag ?? "";
      await api.databases.updateDatabase({ database: { id: database, labels: { a: "1" }, etag } });
      const stale = api.databases.updateDatabase({ database: { id: database, labels: { a: "2" }, etag } });
      expect(await expectFailure(stale, "ETAG_MISMATCH")).toEqual({ database });
      expect((await api.databases.getDatabase({ database })).database?.labels).toEqual({ a: "1" });
    });

    it("lets foreign keys be checked from now on", async () => {
      const database = freshId();
      await api.databases.createDatabase({ database, sqlOptions: { foreignKeys: false } });
      const run = (sql: string) => api.databases.execute({ database, statement: { sql } });
      await run("CREATE TABLE p (id INTEGER PRIMARY KEY)");
      await run("CREATE TABLE c (p REFERENCES p)");
      await run("INSERT INTO c VALUES (1)");
      await api.databases.updateDatabase({ database: { id: database, sqlOptions: { foreignKeys: true } } });
      const facts = await expectFailure(run("INSERT INTO c VALUES (2)"), "CONSTRAINT_VIOLATED");
      expect(facts.constraint).toMatch(/foreign/i);
    });

    it("needs a database that exists", async () => {
      await expectFieldInvalid(api.databases.updateDatabase({}), "database");
      await expectFieldInvalid(api.databases.updateDatabase({ database: { id: "" } }), "database.id");
      const call = api.databases.updateDatabase({ database: { id: freshId(), labels: { a: "b" } } });
      await expectFailure(call, "DATABASE_NOT_FOUND");
    });
  });

  describe("DeleteDatabase", () => {
    it("removes the database, and its id can be used again", async () => {
      const database = await freshDatabase(api);
      await api.databases.execute({ database, statement: { sql: "CREATE TABLE t (a)" } });
      const { database: first } = await api.databases.getDatabase({ database });
      await api.databases.deleteDatabase({ database });
      await expectFailure(api.databases.getDatabase({ database }), "DATABASE_NOT_FOUND");
      await expectFailure(api.databases.execute({ database, statement: { sql: "SELECT 1" } }), "DATABASE_NOT_FOUND");
      const { database: second } = await api.databases.createDatabase({ database });
      expect(second?.position?.lineage).not.toBe(first?.position?.lineage);
      const { result } = await api.databases.execute({
        database,
        statement: { sql: "SELECT name FROM sqlite_schema WHERE name = 't'" },
      });
      expect(result?.data).toMatchObject({ case: "rowBatch", value: { rows: [] } });
    });

    it("is guarded by the etag, and can be repeated with allow_missing", async () => {
      const database = await freshDatabase(api);
      await expectFailure(api.databases.deleteDatabase({ database, etag: "other" }), "ETAG_MISMATCH");
      const { database: read } = await api.databases.getDatabase({ database });
      await api.databases.deleteDatabase({ database, etag: read?.etag ?? "" });
      await expectFailure(api.databases.deleteDatabase({ database }), "DATABASE_NOT_FOUND");
      await api.databases.deleteDatabase({ database, allowMissing: true });
    });
  });

  describe("ListDatabases", () => {
    it("pages by id, each database once, and ends with an empty token", async () => {
      const prefix = freshId("page");
      const ids = ["a", "b", "c", "d", "e"].map((suffix) => `${prefix}.${suffix}`);
      await Promise.all(ids.map((database) => api.databases.createDatabase({ database })));
      const filter = `id : "${prefix}.*"`;
      const seen: string[] = [];
      let pageToken = "";
      let pages = 0;
      do {
        const page = await api.databases.listDatabases({ pageSize: 2, pageToken, filter });
        seen.push(...page.databases.map(({ id }) => id));
        expect(page.databases.length).toBeLessThanOrEqual(2);
        expect(page.databases[0]?.createTime).toBeUndefined();
        pageToken = page.nextPageToken;
        pages++;
      } while (pageToken !== "" && pages < 10);
      expect(seen).toEqual(ids);

      const first = await api.databases.listDatabases({ pageSize: 2, filter });
      const other = api.databases.listDatabases({ pageToken: first.nextPageToken, filter: `id : "x*"` });
      await expectFailure(other, "PAGE_TOKEN_INVALID");
      const forged = api.databases.listDatabases({ filter, pageToken: `${first.nextPageToken}A` });
      await expectFailure(forged, "PAGE_TOKEN_INVALID");
    });

    it("filters by labels and orders by what is asked", async () => {
      const prefix = freshId("filter");
      for (const [suffix, team] of [
        ["a", "x"],
        ["b", "y"],
        ["c", "x"],
      ] as const) {
        await api.databases.createDatabase({ database: `${prefix}.${suffix}`, labels: { team } });
      }
      const { databases } = await api.databases.listDatabases({
        filter: `id : "${prefix}.*" AND labels.team = "x" AND stage = STAGE_LOCAL`,
        orderBy: "id desc",
        view: DatabaseView.FULL,
      });
      expect(databases.map(({ id }) => id)).toEqual([`${prefix}.c`, `${prefix}.a`]);
      expect(databases[0]?.labels).toEqual({ team: "x" });
    });

    it.each([
      [{ pageSize: -1 }, "page_size"],
      [{ filter: "nothing = 1" }, "filter"],
      [{ filter: "stage = STAGE_MOON" }, "filter"],
      [{ filter: "id =" }, "filter"],
      [{ orderBy: "color" }, "order_by"],
      [{ view: 5 as DatabaseView }, "view"],
    ] as const)("refuses %j", async (request, field) => {
      await expectFieldInvalid(api.databases.listDatabases(request), field);
    });

    it("caps the page size", async () => {
      expect((await api.databases.listDatabases({ pageSize: 100_000 })).databases.length).toBeLessThanOrEqual(1000);
    });
  });
});
