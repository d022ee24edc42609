import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { QueryResponseSchema, ResultSetSchema } from "../../gen/persisto/v1/database_service_pb.js";
import { ColumnBatchSchema, RowBatchSchema } from "../../gen/persisto/v1/value_pb.js";
import { FAILED_REQUEST, RUN_COLUMNS } from "../../src/sqlite/native.ts";
import { failureOf, type Kind, open, statement, value } from "./support.ts";

const layouts = [
  ["rows", 0],
  ["columns", RUN_COLUMNS],
] as const;

const texts = [
  "",
  "a",
  "äöü",
  "日本語",
  "😀",
  "x".repeat(126),
  "x".repeat(127),
  "x".repeat(128),
  "é".repeat(70),
  "nul\0inside",
  "\u{10ffff}",
  "\ud7ff\ue000",
  "\ufeffbom",
  "x".repeat(20_000),
];

const anyValue: fc.Arbitrary<Kind> = fc.oneof(
  fc.constant(value.null()),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(value.integer),
  fc.integer({ min: -130, max: 130 }).map(value.integer),
  fc.constantFrom(0n, 2n ** 53n + 1n, 2n ** 63n - 1n, -(2n ** 63n)).map(value.integer),
  fc.double({ noNaN: true }).map(value.real),
  fc.constantFrom(...texts).map(value.text),
  fc.string({ unit: "binary", maxLength: 40 }).map(value.text),
  fc.uint8Array({ maxLength: 300 }).map(value.blob),
  fc.constantFrom(0, 127, 128, 70_000).map((size) => value.blob(new Uint8Array(size).fill(0xa5))),
);

/** SQLite has one zero for reals stored in columns without affinity, and protobuf two. */
const stored = (kind: Kind): Kind => (kind.case === "real" && kind.value === 0 ? value.real(0) : kind);

const anyTable = fc
  .integer({ min: 1, max: 6 })
  .chain((width) =>
    fc
      .oneof(
        fc.array(fc.array(anyValue, { minLength: width, maxLength: width }), { maxLength: 30 }),
        fc.array(fc.array(fc.integer().map(value.integer), { minLength: width, maxLength: width }), { maxLength: 300 }),
      )
      .map((rows) => ({ width, rows: rows.map((row) => row.map(stored)) })),
  );

const classOf = { null: 0, integer: 1, real: 2, text: 3, blob: 4 } as const;

function columnBatch(rows: readonly Kind[][]) {
  const width = rows[0]?.length ?? 0;
  return create(ColumnBatchSchema, {
    rowCount: rows.length,
    columns: Array.from({ length: width }, (_, i) => {
      const column = rows.map((row) => row[i] as Kind);
      const classes = column.map((kind) => classOf[kind.case as keyof typeof classOf]);
      const alike = classes.every((one) => one === classes[0]);
      return {
        classes: Uint8Array.from(alike ? classes.slice(0, 1) : classes),
        integers: column.flatMap((kind) => (kind.case === "integer" ? [kind.value] : [])),
        reals: column.flatMap((kind) => (kind.case === "real" ? [kind.value] : [])),
        texts: column.flatMap((kind) => (kind.case === "text" ? [kind.value] : [])),
        blobs: column.flatMap((kind) => (kind.case === "blob" ? [kind.value] : [])),
      };
    }),
  });
}

function batch(rows: readonly Kind[][], flags: number) {
  return flags & RUN_COLUMNS
    ? ({ case: "columnBatch", value: columnBatch(rows) } as const)
    : ({
        case: "rowBatch",
        value: create(RowBatchSchema, { rows: rows.map((row) => ({ values: row.map((kind) => ({ kind })) })) }),
      } as const);
}

interface More {
  readonly rowsAffected?: bigint;
  readonly lastInsertRowid?: bigint;
}

function resultSet(columns: readonly object[], rows: readonly Kind[][], flags: number, more: More = {}): Buffer {
  const message = create(ResultSetSchema, { columns: [...columns], data: batch(rows, flags), ...more });
  return Buffer.from(toBinary(ResultSetSchema, message));
}

/** Compares without printing megabytes. */
function same(actual: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(actual, expected) !== 0)
    expect(Buffer.from(actual).toString("hex").slice(0, 2000)).toBe(
      Buffer.from(expected).toString("hex").slice(0, 2000),
    );
}

describe("values", () => {
  it("are protobuf-es to the byte, in both layouts, whole and in chunks", () => {
    fc.assert(
      fc.property(
        anyTable,
        fc.integer({ min: 1, max: 60 }),
        fc.constantFrom(1, 200, 5000, 65_536),
        fc.boolean(),
        ({ width, rows }, rowsMax, bytesMax, positional) => {
          const db = open();
          const names = Array.from({ length: width }, (_, i) => `c${i}`);
          db.run(`CREATE TABLE t (${names.join(",")})`);
          db.control("begin");
          for (const row of rows) {
            if (positional) db.run(`INSERT INTO t VALUES (${names.map(() => "?").join(",")})`, row);
            else
              db.bytes(
                statement(
                  `INSERT INTO t VALUES (${names.map((name, i) => `${":@$"[i % 3]}${name}`).join(",")})`,
                  [],
                  Object.fromEntries(names.map((name, i) => [name, row[i] as Kind])),
                ),
              );
          }
          db.control("commit");
          const columns = names.map((name) => ({ name, originTable: "t", originColumn: name }));
          const query = statement("SELECT * FROM t ORDER BY rowid");
          for (const [, flags] of layouts) {
            same(db.bytes(query, { flags }), resultSet(columns, rows, flags));
            const cursor = db.cursor(query, { flags });
            let at = 0;
            for (
              let chunk = db.next(cursor, { rowsMax, bytesMax });
              chunk;
              chunk = db.next(cursor, { rowsMax, bytesMax })
            ) {
              const { message } = fromBinary(QueryResponseSchema, chunk);
              const count =
                message.case === "columnBatch"
                  ? message.value.rowCount
                  : message.case === "rowBatch"
                    ? message.value.rows.length
                    : 0;
              expect(count).toBeGreaterThan(0);
              expect(count).toBeLessThanOrEqual(rowsMax);
              if (count > 1) expect(chunk.length).toBeLessThanOrEqual(bytesMax + 8);
              same(
                chunk,
                toBinary(
                  QueryResponseSchema,
                  create(QueryResponseSchema, { message: batch(rows.slice(at, at + count), flags) }),
                ),
              );
              at += count;
            }
            expect(at).toBe(rows.length);
          }
          db.database.close();
        },
      ),
      { numRuns: 60 },
    );
  });

  it.each(layouts)("may be large (%s)", (_, flags) => {
    const db = open({ limits: Int32Array.of(64 << 20) });
    const big = new Uint8Array(5 << 20).map((_, i) => i * 31);
    same(
      db.bytes(statement("SELECT ?1 AS b", [value.blob(big)]), { flags }),
      resultSet([{ name: "b" }], [[value.blob(big)]], flags),
    );
    db.database.close();
  });

  it.each(layouts)("may be none (%s)", (_, flags) => {
    const db = open();
    same(db.bytes(statement("SELECT 1 AS a WHERE 0"), { flags }), resultSet([{ name: "a" }], [], flags));
    same(db.bytes(statement("CREATE TABLE t (a)"), { flags }), resultSet([], [], flags));
    db.database.close();
  });

  it.each(layouts)("that are text but not UTF-8 come as blobs, their bytes kept (%s)", (_, flags) => {
    const db = open();
    const bad = [
      "ff",
      "c080",
      "c3",
      "e280",
      "eda080",
      "f4908080",
      "61ff62",
      "f0808080",
      "e08080",
      "c328",
      "6161616161616161ff",
      "616161616161616161e280",
    ];
    for (const hex of bad)
      same(
        db.bytes(statement(`SELECT CAST(x'${hex}' AS TEXT) AS t`), { flags }),
        resultSet([{ name: "t" }], [[value.blob(Buffer.from(hex, "hex"))]], flags),
      );
    for (const text of texts)
      same(
        db.bytes(statement("SELECT ? AS t", [value.text(text)]), { flags }),
        resultSet([{ name: "t" }], [[value.text(text)]], flags),
      );
    db.database.close();
  });

  it("in a request must be UTF-8", () => {
    const db = open();
    const request = statement("SELECT ?", [value.blob(Buffer.of(0xff))]);
    request[request.length - 3] = 0x22;
    expect(failureOf(() => db.bytes(request)).kind).toBe(FAILED_REQUEST);
    db.database.close();
  });

  it.each(["UTF-16le", "UTF-16be"])("come from %s databases as UTF-8", (encoding) => {
    const db = open({ guard: false });
    db.database.pragma(`encoding = '${encoding}'`);
    db.run("CREATE TABLE t (a)");
    for (const text of texts) db.run("INSERT INTO t VALUES (?)", [value.text(text)]);
    same(
      db.bytes(statement("SELECT a FROM t")),
      resultSet(
        [{ name: "a", originTable: "t", originColumn: "a" }],
        texts.map((text) => [value.text(text)]),
        0,
      ),
    );
    db.database.close();
  });

  it("store NaN as NULL and keep infinities", () => {
    const db = open();
    expect(
      db.rows("SELECT ?, ?, ?", [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map(value.real)),
    ).toEqual([[null, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]]);
    db.database.close();
  });
});

describe("counts and row ids", () => {
  const empty = (more?: More) => resultSet([], [], 0, more);

  it("are this statement's alone", () => {
    const db = open();
    const expectBytes = (sql: string, expected: Buffer) => same(db.bytes(statement(sql)), expected);
    expectBytes("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", empty());
    expectBytes("INSERT INTO t VALUES (-5, 'a'), (7, 'b')", empty({ rowsAffected: 2n, lastInsertRowid: 7n }));
    expectBytes("CREATE TABLE u (x)", empty());
    expectBytes("UPDATE t SET v = 'c'", empty({ rowsAffected: 2n }));
    expectBytes("INSERT OR IGNORE INTO t VALUES (7, 'x')", empty());
    expectBytes("INSERT INTO t VALUES (7, 'x') ON CONFLICT DO UPDATE SET v = 'y'", empty({ rowsAffected: 1n }));
    expectBytes("INSERT INTO u VALUES (last_insert_rowid())", empty({ rowsAffected: 1n, lastInsertRowid: 1n }));
    expect(db.rows("SELECT x FROM u")).toEqual([[7n]]);
    expectBytes("INSERT INTO t VALUES (0, NULL)", empty({ rowsAffected: 1n, lastInsertRowid: 0n }));
    expectBytes("DELETE FROM t WHERE id = 99", empty());
    db.database.close();
  });

  it("leave out triggers and tables without row ids", () => {
    const db = open();
    db.script(`CREATE TABLE w (k PRIMARY KEY) WITHOUT ROWID; CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE log (x);
      CREATE TRIGGER tr AFTER UPDATE ON t BEGIN INSERT INTO log VALUES (last_insert_rowid()); END;
      INSERT INTO t VALUES (3, 'a')`);
    same(db.bytes(statement("INSERT INTO w VALUES (1)")), empty({ rowsAffected: 1n }));
    same(db.bytes(statement("UPDATE t SET v = 'd'")), empty({ rowsAffected: 1n }));
    expect(db.rows("SELECT x FROM log")).toEqual([[3n]]);
    db.database.close();
  });

  it("leave out what a virtual table does when it is made", () => {
    const db = open();
    for (const sql of ["CREATE VIRTUAL TABLE f USING fts5(x)", "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1)"])
      same(db.bytes(statement(sql)), empty());
    same(db.bytes(statement("INSERT INTO f VALUES ('a')")), empty({ rowsAffected: 1n, lastInsertRowid: 1n }));
    same(db.bytes(statement("DROP TABLE f")), empty());
    db.database.close();
  });

  it("come with RETURNING", () => {
    const db = open();
    db.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)");
    same(
      db.bytes(statement("INSERT INTO t VALUES (9, NULL) RETURNING id, v")),
      resultSet(
        [
          { name: "id", declaredType: "INTEGER", originTable: "t", originColumn: "id" },
          { name: "v", declaredType: "TEXT", originTable: "t", originColumn: "v" },
        ],
        [[value.integer(9), value.null()]],
        0,
        { rowsAffected: 1n, lastInsertRowid: 9n },
      ),
    );
    db.database.close();
  });
});
