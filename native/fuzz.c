/* Feeds the library what a hostile or unlucky world would: changed requests and scripts, allocations that fail, damaged database
** and WAL files. To be built with SQLite linked in, under the address and undefined sanitizers, with malloc wrapped.
** Usage: fuzz COUNT SEED FOLDER. Ends with 0 when nothing was wrong; the sanitizers end it otherwise. */
#include "cursor.h"
#include "runner.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- Chance ---- */

static uint64_t state;

static uint32_t below(uint32_t n) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)((state >> 20) % n);
}

static int one_in(uint32_t n) {
  return !below(n);
}

static void die(const char *what, const char *detail) {
  fprintf(stderr, "fuzz: %s: %s\n", what, detail);
  abort();
}

/* ---- Allocations that fail ---- */

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);

/* Allocations until the next failure, -1: none; afterwards all fail when `fail_on`. */
static long fail_after = -1;
static int fail_on;
static long failed_allocations;

static int fails(void) {
  if (fail_after < 0) return 0;
  if (fail_after-- > 0) return 0;
  if (fail_on) fail_after = 0;
  failed_allocations++;
  return 1;
}

void *__wrap_malloc(size_t n) {
  return fails() ? 0 : __real_malloc(n);
}

void *__wrap_calloc(size_t count, size_t n) {
  return fails() ? 0 : __real_calloc(count, n);
}

void *__wrap_realloc(void *p, size_t n) {
  return fails() ? 0 : __real_realloc(p, n);
}

static void short_of_memory(void) {
  fail_after = one_in(3) ? (long)below(60) : -1;
  fail_on = one_in(2);
}

static void enough_memory(void) {
  fail_after = -1;
}

/* ---- Requests ---- */

#define BYTES_MAX 4096

typedef struct Bytes {
  uint8_t b[BYTES_MAX];
  size_t n;
} Bytes;

static void add(Bytes *o, const void *p, size_t n) {
  if (o->n + n > BYTES_MAX) return;
  memcpy(o->b + o->n, p, n);
  o->n += n;
}

static void add_field(Bytes *o, uint8_t tag, const void *p, size_t n) {
  uint8_t head[3] = {tag, (uint8_t)(n | 128), (uint8_t)(n >> 7)};
  add(o, head, 3);
  add(o, p, n);
}

static const struct {
  const char *sql;
  int parameters;
} statements[] = {
    {"SELECT ?", 1},
    {"SELECT ?1, ?2", 2},
    {"SELECT :a, @b, $c", 3},
    {"INSERT INTO t VALUES (NULL, ?, ?) RETURNING *", 2},
    {"INSERT INTO t VALUES (1, ?, ?)", 2},
    {"SELECT * FROM t WHERE id = ?", 1},
    {"SELECT * FROM t, t AS u LIMIT 40", 0},
    {"SELECT abs(-9223372036854775808), ?", 1},
    {"UPDATE t SET v = :a WHERE id = :b", 2},
    {"UPDATE t SET v = v || 'x' RETURNING v, w, id", 0},
    {"DELETE FROM t WHERE id > ?; ", 1},
    {"INSERT OR ROLLBACK INTO t VALUES (2, 3, 4)", 0},
    {"WITH r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 20) SELECT n, 'x' || n, n / 2.0, NULL, x'00ff', CAST(x'ff' AS TEXT) FROM r", 0},
    {"CREATE TABLE IF NOT EXISTS u (a, b)", 0},
    {"ALTER TABLE u RENAME TO _persisto_u", 0},
    {"ALTER TABLE u RENAME /* x */ TO \"_persisto_u\"", 0},
    {"CREATE TABLE IF NOT EXISTS c (a REFERENCES _persisto_x)", 0},
    {"CREATE TRIGGER IF NOT EXISTS r AFTER INSERT ON t BEGIN DELETE FROM _persisto_x; END", 0},
    {"CREATE VIEW IF NOT EXISTS w AS SELECT * FROM _persisto_x", 0},
    {"SELECT * FROM w", 0},
    {"DROP VIEW IF EXISTS w", 0},
    {"DROP TRIGGER IF EXISTS r", 0},
    {"INSERT INTO _persisto_x VALUES (2)", 0},
    {"DROP TABLE _persisto_x", 0},
    {"DROP TABLE IF EXISTS u", 0},
    {"PRAGMA case_sensitive_like = 1", 0},
    {"PRAGMA user_version = 3", 0},
    {"SELECT * FROM pragma_table_info('t')", 0},
    {"SELECT * FROM pragma_journal_mode", 0},
    {"SELECT * FROM _persisto_x", 0},
    {"SELECT body FROM words WHERE words MATCH ?", 1},
    {"INSERT INTO words VALUES (?)", 1},
    {"SELECT key, value FROM json_tree(?)", 1},
    {"SELECT zeroblob(300000), ?", 1},
    {"VACUUM", 0},
    {"SELECT 1; SELECT 2", 0},
};
#define STATEMENTS (sizeof statements / sizeof *statements)

static void add_value(Bytes *v) {
  switch (below(6)) {
    case 0:
      add(v, "\x08\x00", 2);
      break;
    case 1:
      add(v, "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11);
      break;
    case 2:
      add(v, "\x19\0\0\0\0\0\0\xf0\x3f", 9);
      break;
    case 3:
      add_field(v, 0x22, "h\xc3\xa9llo \xf0\x9f\x98\x80", 11);
      break;
    case 4:
      add_field(v, 0x22, "[1,{\"a\":null}]", 14);
      break;
    default:
      add_field(v, 0x2a, "\0\xff\x80", 3);
  }
}

static void make_request(Bytes *o) {
  size_t which = below(STATEMENTS);
  int named = which == 2 || which == 8 ? !one_in(4) : one_in(8);
  o->n = 0;
  add_field(o, 0x0a, statements[which].sql, strlen(statements[which].sql));
  for (int k = 0; k < statements[which].parameters; k++) {
    Bytes v = {.n = 0}, entry = {.n = 0};
    char key = (char)('a' + k);
    add_value(&v);
    if (named) {
      add_field(&entry, 0x0a, &key, 1);
      add_field(&entry, 0x12, v.b, v.n);
      add_field(o, 0x1a, entry.b, entry.n);
    } else {
      add_field(o, 0x12, v.b, v.n);
    }
  }
  /* Unknown fields, a group among them. */
  if (one_in(8)) add(o, "\x23\x28\x01\x24\x79\1\2\3\4\5\6\7\x08\x7d\1\2\3\4", 18);
}

static void mutate(uint8_t *b, size_t *n, size_t cap) {
  for (int times = one_in(3) ? 1 + (int)below(4) : 1; times && *n; times--) {
    size_t at = below((uint32_t)*n), k = 1 + below(8);
    switch (below(6)) {
      case 0:
        b[at] ^= (uint8_t)(1 << below(8));
        break;
      case 1:
        b[at] = (uint8_t)below(256);
        break;
      case 2:
        b[at] = "\xff\x80\x7f\x00\x0a\x12\x1a\x08\x22\x2a"[below(10)];
        break;
      case 3:
        *n = at;
        break;
      case 4:
        if (*n + k > cap) break;
        memmove(b + at + k, b + at, *n - at);
        *n += k;
        break;
      default:
        if (k > *n - at) k = *n - at;
        memmove(b + at, b + at + k, *n - at - k);
        *n -= k;
    }
  }
}

/* ---- What must hold ---- */

/* An answer is protobuf through and through. */
static void check_answer(const Out *o) {
  Slice in = {o->data, o->len};
  while (in.n) {
    uint32_t tag;
    if (!read_tag(&in, &tag) || !skip_field(&in, tag)) die("an answer is not protobuf", "");
  }
}

/* The server asks for a number; -1 when there is none: an interrupt stays for as long as cursors are open. */
static int64_t ask(Connection *c, const char *sql) {
  sqlite3_stmt *s = 0;
  int64_t answer = -1;
  c->guard.trusted = 1;
  if (!sqlite3_prepare_v2(c->db, sql, -1, &s, 0) && sqlite3_step(s) == SQLITE_ROW) answer = sqlite3_column_int64(s, 0);
  sqlite3_finalize(s);
  c->guard.trusted = 0;
  return answer;
}

/* What stands in the table. */
static int64_t contents(Connection *c) {
  return ask(c, "SELECT total(id) + count(*) * 1000003 + total(length(v)) * 31 + total(length(w)) FROM t");
}

/* What belongs to the server is as it was, and nothing more carries its name. */
static void check_reserved(Connection *c) {
  int64_t names = ask(c, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '$_persisto$_%' ESCAPE '$'");
  int64_t rows = ask(c, "SELECT count(*) * 100 + total(a) FROM _persisto_x");
  if ((names >= 0 && names != 1) || (rows >= 0 && rows != 101)) die("a caller reached the server's own", "");
}

/* Between calls nothing is half done. (Beside an open cursor SQLite may leave a write transaction that did nothing: a changed
** schema is found after it began, and memory ends while the statement is compiled again.) */
static void check_settled(Connection *c) {
  if (!c->cursors && sqlite3_get_autocommit(c->db) && sqlite3_txn_state(c->db, "main") == SQLITE_TXN_WRITE) die("a write was not committed", "");
}

/* ---- A connection and its calls ---- */

#define CURSORS 8
static Cursor *cursors[CURSORS];
static long counts[16];

static void count(int failed, const Failure *f) {
  if (failed && (f->kind < FAILED_REQUEST || f->kind > FAILED_INTERRUPTED)) die("a failure without a kind", f->message);
  counts[failed ? f->kind : 0]++;
}

static Connection *connect_to(const char *path) {
  static const int32_t limits[] = {1 << 20, 1 << 18, 100, 50, 20, 20000, 20, 0, 200, 500, 8, 0};
  sqlite3 *db = 0;
  int rc;
  if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 0)) {
    sqlite3_close(db);
    return 0;
  }
  sqlite3_extended_result_codes(db, 1);
  Connection *c = connection_take(8, &rc);
  if (!c) die("connection_take", sqlite3_errstr(rc));
  sqlite3_exec(db, "PRAGMA cell_size_check = ON", 0, 0, 0);
  if ((rc = guard_on(&c->guard, db, limits, sizeof limits / sizeof *limits, 0))) die("guard_on", sqlite3_errstr(rc));
  return c;
}

/* With statements cached and cursors open. */
static void disconnect(Connection *c) {
  if (sqlite3_close(c->db)) die("close", sqlite3_errmsg(c->db));
  for (int i = 0; i < CURSORS; i++) {
    if (cursors[i]) cursor_free(cursors[i]);
    cursors[i] = 0;
  }
  connection_unref(c);
}

static void run_one(Connection *c, Slice request) {
  static uint8_t arena[BYTES_MAX];
  Options opt = {below(16), below(3), 1 + below(3) * 2000, 50};
  Out o = {arena, 0, below(sizeof arena), 0, 0};
  Failure f = {0};
  int in_transaction = !sqlite3_get_autocommit(c->db), check = one_in(2);
  int64_t before = check ? contents(c) : 0;
  short_of_memory();
  int failed = runner_run(c, request, &opt, &o, &f);
  enough_memory();
  count(failed, &f);
  if (!failed) check_answer(&o);
  int ended = in_transaction && sqlite3_get_autocommit(c->db);
  if (failed && f.kind != FAILED_REQUEST && f.transaction_ended != ended) die("transaction_ended is wrong", f.message);
  if (check && failed && !ended && before >= 0) {
    int64_t after = contents(c);
    if (after >= 0 && after != before) die("a failed statement took effect", f.message);
  }
  out_free(&o);
}

static void use_cursor(Connection *c, Slice request) {
  Cursor **k = &cursors[below(CURSORS)];
  Options opt = {below(16), below(3), 0, 50};
  Chunk chunk = {1 + below(5), 1 + below(300), one_in(4) ? 1 : 0, 50};
  Failure f = {0};
  Out o = {0};
  short_of_memory();
  if (!*k || one_in(4)) {
    if (*k) cursor_free(*k);
    *k = cursor_open(c, request, &opt, &f);
    count(!*k, &f);
  }
  if (*k && one_in(3)) cursor_columns(*k, &o, &f);
  o.len = 0;
  for (int i = below(4); *k && i; i--) {
    int result = cursor_next(*k, &chunk, &o, &f);
    if (result > 0) check_answer(&o);
    if (result <= 0) break;
    o.len = 0;
  }
  if (*k && one_in(5)) cursor_close(*k);
  enough_memory();
  out_free(&o);
}

static void run_script(Connection *c) {
  char sql[1024] = "";
  for (int i = 1 + (int)below(4); i; i--) {
    size_t n = strlen(sql);
    snprintf(sql + n, sizeof sql - n, "%s;", statements[below(STATEMENTS)].sql);
  }
  size_t n = strlen(sql);
  if (one_in(2)) mutate((uint8_t *)sql, &n, sizeof sql);
  uint8_t *exact = malloc(n ? n : 1);
  memcpy(exact, sql, n);
  Options opt = {below(16), 0, 0, 50};
  ScriptResult result;
  Failure f = {0};
  short_of_memory();
  int failed = runner_script(c, (Slice){exact, n}, &opt, &result, &f);
  enough_memory();
  count(failed, &f);
  free(exact);
}

static void one_call(Connection *c) {
  Bytes b;
  if (one_in(20)) connection_fixed(c, (Fixed[]){FIXED_BEGIN, FIXED_BEGIN_IMMEDIATE, FIXED_COMMIT, FIXED_ROLLBACK}[below(4)]);
  if (one_in(50)) {
    Slice own = {(const uint8_t *)"\x0a\x19" "SELECT * FROM _persisto_x", 27};
    c->guard.trusted = 1;
    run_one(c, own);
    c->guard.trusted = 0;
  }
  if (one_in(20)) check_reserved(c);
  if (one_in(50)) guard_reset_pragmas(&c->guard, c->db);
  if (one_in(200)) connection_release(c);
  if (one_in(12)) {
    run_script(c);
    return;
  }
  make_request(&b);
  if (below(5) < 2) mutate(b.b, &b.n, 3500);
  /* Exactly as long, so that a read behind the end is seen. */
  uint8_t *exact = malloc(b.n ? b.n : 1);
  memcpy(exact, b.b, b.n);
  if (one_in(4)) use_cursor(c, (Slice){exact, b.n});
  else run_one(c, (Slice){exact, b.n});
  check_settled(c);
  free(exact);
}

static const char schema[] =
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v, w TEXT);"
    "INSERT INTO t VALUES (1, 'a', 2.5), (2, x'00', NULL), (3, CAST(x'ff' AS TEXT), 'z');"
    "CREATE TABLE _persisto_x (a); INSERT INTO _persisto_x VALUES (1);"
    "CREATE VIRTUAL TABLE words USING fts5 (body); INSERT INTO words VALUES ('hello world')";

static void fuzz_requests(long times) {
  Connection *c = 0;
  for (long i = 0; i < times; i++) {
    if (i % 2000 == 0) {
      if (c) disconnect(c);
      if (!(c = connect_to(":memory:"))) die("open", ":memory:");
      if (connection_trusted(c, schema)) die("schema", sqlite3_errmsg(c->db));
    }
    one_call(c);
  }
  if (c) disconnect(c);
}

/* ---- Damaged files ---- */

static const char *const probes[] = {
    "PRAGMA integrity_check",
    "SELECT * FROM sqlite_schema",
    "SELECT count(*), total(length(v)) FROM t",
    "SELECT * FROM t ORDER BY v DESC",
    "SELECT * FROM t WHERE v > 'm' AND w IS NOT NULL",
    "SELECT * FROM k",
    "SELECT body FROM words WHERE words MATCH 'word5 OR hello'",
    "SELECT * FROM boxes WHERE x0 < 50",
    "UPDATE t SET v = v || 'y' WHERE id % 3 = 0 RETURNING id",
    "DELETE FROM t WHERE id % 5 = 0",
    "INSERT INTO t SELECT NULL, v, w FROM t LIMIT 20",
    "INSERT INTO words VALUES ('hello again')",
    "CREATE INDEX IF NOT EXISTS t_w ON t (w)",
    "DROP TABLE k",
};

typedef struct File {
  uint8_t *data;
  size_t n;
} File;

static File read_file(const char *path) {
  File f = {0, 0};
  FILE *in = fopen(path, "rb");
  if (!in) return f;
  fseek(in, 0, SEEK_END);
  f.n = (size_t)ftell(in);
  rewind(in);
  f.data = malloc(f.n + 1);
  if (fread(f.data, 1, f.n, in) != f.n) die("read", path);
  fclose(in);
  return f;
}

static void write_file(const char *path, const uint8_t *data, size_t n) {
  FILE *out = fopen(path, "wb");
  if (!out || fwrite(data, 1, n, out) != n) die("write", path);
  fclose(out);
}

/* Writes a copy with some bytes changed, most of them where pages have their structure. */
static void write_damaged(const char *path, const File *f) {
  uint8_t *copy = malloc(f->n + 1);
  size_t n = f->n;
  memcpy(copy, f->data, n);
  for (int i = 1 + (int)below(one_in(4) ? 60 : 6); i; i--) {
    size_t at = below((uint32_t)n);
    if (one_in(2)) at = at / 512 * 512 + below(110);
    if (at < n) copy[at] = one_in(3) ? (uint8_t)(copy[at] + (one_in(2) ? 1 : 255)) : (uint8_t)below(256);
  }
  if (one_in(10)) n = below((uint32_t)n);
  write_file(path, copy, n);
  free(copy);
}

static void run_probe(Connection *c, const char *sql) {
  Bytes b = {.n = 0};
  Failure f = {0};
  Out o = {0};
  add_field(&b, 0x0a, sql, strlen(sql));
  if (one_in(3)) {
    Options opt = {below(2), 0, 0, 200};
    Chunk chunk = {1 + below(20), 1 + below(5000), 0, 200};
    Cursor *k = cursor_open(c, (Slice){b.b, b.n}, &opt, &f);
    while (k && cursor_next(k, &chunk, &o, &f) > 0) {
      check_answer(&o);
      o.len = 0;
      if (one_in(10)) break;
    }
    if (k) cursor_free(k);
  } else {
    Options opt = {below(2), 0, 1 << 20, 200};
    int failed = runner_run(c, (Slice){b.b, b.n}, &opt, &o, &f);
    count(failed, &f);
    if (!failed) check_answer(&o);
  }
  out_free(&o);
}

static void fuzz_files(long times, const char *folder) {
  char path[512], wal[520], shm[520];
  if (snprintf(path, sizeof path, "%s/fuzz-%ld.sqlite", folder, (long)getpid()) >= (int)sizeof path) die("folder", folder);
  snprintf(wal, sizeof wal, "%s-wal", path);
  snprintf(shm, sizeof shm, "%s-shm", path);
  Connection *c = connect_to(path);
  if (!c) die("open", path);
  static const char rows[] =
      "CREATE INDEX t_v ON t (v); CREATE TABLE k (a, b, PRIMARY KEY (b, a)) WITHOUT ROWID;"
      "CREATE VIRTUAL TABLE boxes USING rtree (id, x0, x1);"
      "WITH RECURSIVE r(n) AS (SELECT 4 UNION ALL SELECT n + 1 FROM r LIMIT 200) INSERT INTO t SELECT n, hex(n * 7919), printf('%.*c', n % 7 * 300, 'x') FROM r;"
      "INSERT INTO k SELECT id, v FROM t; INSERT INTO words SELECT 'word' || id || ' ' || v FROM t;"
      "INSERT INTO boxes SELECT id, id, id + 2 FROM t;";
  if (connection_trusted(c, "PRAGMA page_size = 512; PRAGMA journal_mode = WAL") || connection_trusted(c, schema) || connection_trusted(c, rows))
    die("schema", sqlite3_errmsg(c->db));
  sqlite3_wal_checkpoint_v2(c->db, "main", SQLITE_CHECKPOINT_TRUNCATE, 0, 0);
  connection_trusted(c, "UPDATE t SET w = w || 'more' WHERE id % 4 = 0");
  File main_file = read_file(path), wal_file = read_file(wal);
  disconnect(c);
  for (long i = 0; i < times; i++) {
    unlink(shm);
    write_damaged(path, &main_file);
    if (one_in(2)) write_damaged(wal, &wal_file);
    else if (one_in(2)) write_file(wal, wal_file.data, wal_file.n);
    else unlink(wal);
    if (!(c = connect_to(path))) continue;
    for (int k = 0; k < 8; k++) run_probe(c, probes[below(sizeof probes / sizeof *probes)]);
    disconnect(c);
  }
  unlink(path);
  unlink(wal);
  unlink(shm);
  free(main_file.data);
  free(wal_file.data);
}

int main(int argc, char **argv) {
  long times = argc > 1 ? atol(argv[1]) : 10000;
  state = 88172645463325252u + (argc > 2 ? (uint64_t)atol(argv[2]) * 0x9E3779B97F4A7C15u : 0);
  sqlite3_initialize();
  sqlite3_auto_extension((void (*)(void))connection_opened);
  fuzz_requests(times);
  fuzz_files(times / 100, argc > 3 ? argv[3] : ".");
  printf("fuzz: %ld calls went well; failed by kind:", counts[0]);
  for (int i = FAILED_REQUEST; i <= FAILED_INTERRUPTED; i++) printf(" %d: %ld", i, counts[i]);
  printf("; %ld allocations failed; %ld damaged files\n", failed_allocations, times / 100);
  return 0;
}
