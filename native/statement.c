#include "connection.h"
#include "request.h"
#include "runner.h"
#include "sql.h"
#include <stdio.h>
#include <stdlib.h>
SQLITE_EXTENSION_INIT3

#define CACHED_SQL_BYTES_MAX 16384
#define CACHED_PROGRAM_BYTES_MAX 262144

/* ---- Cache ---- */

static uint32_t hash_of(const uint8_t *p, size_t n, uint32_t scope, uint32_t rights) {
  uint64_t h = 0x9E3779B97F4A7C15u ^ scope ^ (uint64_t)rights << 32 ^ n, word;
  for (; n >= 8; p += 8, n -= 8) {
    memcpy(&word, p, 8);
    h = (h ^ word) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  word = 0;
  memcpy(&word, p, n);
  h = (h ^ word) * 0xD6E8FEB86659FD93u;
  return (uint32_t)(h ^ (h >> 32));
}

static void link_statement(Cache *k, Statement *s) {
  Statement **bucket = &k->bucket[s->hash % CACHE_BUCKETS];
  s->cached = 1;
  s->next = *bucket;
  *bucket = s;
  s->older = k->newest;
  if (k->newest) k->newest->newer = s;
  else k->oldest = s;
  k->newest = s;
  k->count++;
}

static void unlink_statement(Cache *k, Statement *s) {
  Statement **at = &k->bucket[s->hash % CACHE_BUCKETS];
  while (*at != s) at = &(*at)->next;
  *at = s->next;
  if (s->newer) s->newer->older = s->older;
  else k->newest = s->older;
  if (s->older) s->older->newer = s->newer;
  else k->oldest = s->newer;
  s->newer = s->older = s->next = 0;
  s->cached = 0;
  k->count--;
}

static void free_statement(Statement *s) {
  sqlite3_finalize(s->stmt);
  if (s->names)
    for (int i = 0; i < s->parameter_count; i++) free(s->names[i]);
  free(s->names);
  free(s->columns);
  free(s->sql);
  free(s);
}

static void evict(Cache *k) {
  for (Statement *s = k->oldest; s && k->count > k->count_max;) {
    Statement *newer = s->newer;
    if (!s->busy) {
      unlink_statement(k, s);
      free_statement(s);
    }
    s = newer;
  }
}

void cache_clear(Connection *c) {
  while (c->cache.newest) {
    Statement *s = c->cache.newest;
    unlink_statement(&c->cache, s);
    free_statement(s);
  }
}

/* ---- Compiling ---- */

static int fail_named(Failure *f, size_t count) {
  fail(f, FAILED_PARAMETERS, "too many named parameters");
  f->expected = NAMED_COUNT_MAX;
  f->actual = (int)count;
  f->limit = SQLITE_LIMIT_VARIABLE_NUMBER;
  return -1;
}

static int read_names(Statement *s) {
  s->parameter_count = sqlite3_bind_parameter_count(s->stmt);
  for (int i = 0; i < s->parameter_count; i++) {
    const char *name = sqlite3_bind_parameter_name(s->stmt, i + 1);
    if (!name || name[0] == '?') continue;
    if (!s->names && !(s->names = calloc((size_t)s->parameter_count, sizeof *s->names))) return 0;
    size_t n = strlen(name);
    if (!(s->names[i] = malloc(n))) return 0;
    memcpy(s->names[i], name + 1, n);
    s->named_count++;
  }
  return 1;
}

/* Compiles n bytes into s. 0, or -1 with the failure set; no statement and 0 when there is only blank. */
static int compile(Connection *c, Statement *s, const char *sql, size_t n, uint32_t flags, const char **tail, Failure *f) {
  *tail = sql;
  guard_begin(&c->guard, flags);
  if (guard_before(&c->guard, sql, f)) return -1;
  unsigned how = s->sql ? SQLITE_PREPARE_PERSISTENT : 0;
  /* With the NUL counted SQLite reads the text in place. */
  if (sqlite3_prepare_v3(c->db, sql, (int)n + 1, how, &s->stmt, tail)) {
    fail_sqlite(f, FAILED_PREPARE, c->db);
    guard_explain(&c->guard, f);
    return -1;
  }
  if (!s->stmt) return 0;
  s->makes_virtual = (c->guard.saw & SAW_VIRTUAL) != 0;
  if (guard_after(&c->guard, sql, *tail, f)) return -1;
  if ((flags & RUN_READ_ONLY || c->guard.read_only) && !sqlite3_stmt_readonly(s->stmt))
    return fail(f, FAILED_READ_ONLY, "the statement writes");
  return read_names(s) ? 0 : fail_memory(f);
}

Statement *statement_compile(Connection *c, const char *sql, size_t n, uint32_t flags, const char **tail, Failure *f) {
  Statement *s = calloc(1, sizeof *s);
  f->kind = 0;
  if (!s) {
    fail_memory(f);
    return 0;
  }
  s->columns_of = -1;
  s->busy = 1;
  if (!compile(c, s, sql, n, flags, tail, f) && s->stmt) return s;
  free_statement(s);
  return 0;
}

static Statement *find(Cache *k, uint32_t hash, Slice sql, uint32_t scope, uint32_t rights) {
  for (Statement *s = k->bucket[hash % CACHE_BUCKETS]; s; s = s->next) {
    if (s->hash != hash || s->busy || s->scope != scope || s->rights != rights || s->sql_size != sql.n) continue;
    if (memcmp(s->sql, sql.p, sql.n)) continue;
    if (k->newest != s) {
      s->newer->older = s->older;
      if (s->older) s->older->newer = s->newer;
      else k->oldest = s->newer;
      s->older = k->newest;
      s->newer = 0;
      k->newest->newer = s;
      k->newest = s;
    }
    return s;
  }
  return 0;
}

/* What cannot be a statement, seen without compiling. */
static int check_text(Connection *c, Slice sql, Failure *f) {
  const uint8_t *nul = sql.n ? memchr(sql.p, 0, sql.n) : 0;
  if (nul) {
    fail(f, FAILED_TEXT, "the SQL contains a NUL");
    f->offset = (int)(nul - sql.p);
    return -1;
  }
  if (sql.n > (size_t)sqlite3_limit(c->db, SQLITE_LIMIT_SQL_LENGTH, -1)) {
    fail(f, FAILED_PREPARE, "the SQL is too long");
    f->code = SQLITE_TOOBIG;
    f->limit = SQLITE_LIMIT_SQL_LENGTH;
    return -1;
  }
  return 0;
}

/* Not what has its effect while being compiled, is seldom the same twice, or holds much memory. */
static int is_worth_keeping(const Connection *c, const Statement *s) {
  return c->cache.count_max > 0 && !(c->guard.saw & SAW_PRAGMA) && s->sql_size <= CACHED_SQL_BYTES_MAX &&
         sqlite3_stmt_status(s->stmt, SQLITE_STMTSTATUS_MEMUSED, 0) <= CACHED_PROGRAM_BYTES_MAX;
}

Statement *statement_take(Connection *c, Slice sql, uint32_t scope, uint32_t flags, Failure *f) {
  uint32_t rights = (flags & (RUN_READ_ONLY | RUN_TRANSACTION_PRAGMAS)) | (c->guard.trusted ? 1u << 31 : 0);
  uint32_t hash = hash_of(sql.p, sql.n, scope, rights);
  Statement *s = find(&c->cache, hash, sql, scope, rights);
  if (s) {
    s->busy = 1;
    return s;
  }
  if (check_text(c, sql, f)) return 0;
  s = calloc(1, sizeof *s);
  if (!s || !(s->sql = malloc(sql.n + 1))) {
    free(s);
    fail_memory(f);
    return 0;
  }
  memcpy(s->sql, sql.p, sql.n);
  s->sql[sql.n] = 0;
  s->sql_size = sql.n;
  s->scope = scope;
  s->rights = rights;
  s->hash = hash;
  s->columns_of = -1;
  s->busy = 1;
  const char *tail;
  size_t named = count_named_parameters(s->sql);
  if (named > NAMED_COUNT_MAX) {
    fail_named(f, named);
  } else if (!compile(c, s, s->sql, sql.n, flags, &tail, f)) {
    if (!s->stmt) {
      fail(f, FAILED_TEXT, "the SQL has no statement");
    } else if (*(tail = skip_blank(tail))) {
      fail(f, FAILED_TEXT, "the SQL has more than one statement");
      f->offset = (int)(tail - s->sql);
    } else {
      if (is_worth_keeping(c, s)) {
        link_statement(&c->cache, s);
        evict(&c->cache);
      }
      return s;
    }
  }
  free_statement(s);
  return 0;
}

void statement_give(Connection *c, Statement *s) {
  sqlite3_reset(s->stmt);
  s->busy = 0;
  if (!s->cached) {
    free_statement(s);
    return;
  }
  /* What was bound points into a request that is about to go away. */
  if (s->parameter_count) sqlite3_clear_bindings(s->stmt);
  if (c->cache.count > c->cache.count_max) evict(&c->cache);
}

/* ---- Binding ---- */

static int bind_value(sqlite3_stmt *s, int i, const Value *v) {
  switch (v->kind) {
    case VALUE_NULL:
      return sqlite3_bind_null(s, i);
    case VALUE_INTEGER:
      return sqlite3_bind_int64(s, i, v->integer);
    case VALUE_REAL:
      return sqlite3_bind_double(s, i, v->real);
    case VALUE_TEXT:
      return sqlite3_bind_text64(s, i, (const char *)v->bytes.p, v->bytes.n, SQLITE_STATIC, SQLITE_UTF8);
    default: /* a null pointer would bind NULL */
      return sqlite3_bind_blob64(s, i, v->bytes.p ? (const void *)v->bytes.p : "", v->bytes.n, SQLITE_STATIC);
  }
}

static int compare_keys(Slice a, Slice b) {
  if (a.n != b.n) return a.n < b.n ? -1 : 1;
  return a.n ? memcmp(a.p, b.p, a.n) : 0;
}

static int compare_named(const void *a, const void *b) {
  const Named *x = a, *y = b;
  int r = compare_keys(x->key, y->key);
  return r ? r : (x->order < y->order ? -1 : 1);
}

static int fail_parameter(Failure *f, const char *message, const char *name, size_t n) {
  fail(f, FAILED_PARAMETERS, message);
  copy_text(f->parameter, sizeof f->parameter, name, n);
  return -1;
}

/* Binds one value, whose name is for the failure. */
static int bind_one(Connection *c, Statement *s, int i, const Value *v, const char *name, size_t n, Failure *f) {
  if (!v->kind) {
    fail(f, FAILED_REQUEST, "a value has no kind");
  } else {
    if (!bind_value(s->stmt, i, v)) return 0;
    fail_sqlite(f, FAILED_STEP, c->db);
  }
  copy_text(f->parameter, sizeof f->parameter, name, n);
  return -1;
}

static int bind_positional(Connection *c, Statement *s, Failure *f) {
  char number[16];
  size_t given = request.positional_count, expected = (size_t)s->parameter_count;
  if (given != expected) {
    size_t first = given < expected ? given : expected;
    int n = snprintf(number, sizeof number, "?%d", (int)first + 1);
    fail_parameter(f, given < expected ? "missing parameters" : "extra parameters", number, (size_t)n);
    f->expected = (int)expected;
    f->actual = (int)given;
    return -1;
  }
  for (int i = 0; i < s->parameter_count; i++) {
    const Value *v = &request.positional[i];
    if (v->kind && !bind_value(s->stmt, i + 1, v)) continue;
    int n = snprintf(number, sizeof number, "?%d", i + 1);
    return bind_one(c, s, i + 1, v, number, (size_t)n, f);
  }
  return 0;
}

static Named *find_named(size_t count, Slice key) {
  size_t lo = 0, hi = count;
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (compare_keys(request.named[mid].key, key) < 0) lo = mid + 1;
    else hi = mid;
  }
  return lo < count && !compare_keys(request.named[lo].key, key) ? &request.named[lo] : 0;
}

static int bind_named(Connection *c, Statement *s, Failure *f) {
  char number[16];
  size_t count = 0;
  if (request.named_count > 1) qsort(request.named, request.named_count, sizeof(Named), compare_named);
  /* Of equal keys the last counts, as in every protobuf map. */
  for (size_t i = 0; i < request.named_count; i++) {
    if (i + 1 < request.named_count && !compare_keys(request.named[i].key, request.named[i + 1].key)) continue;
    request.named[count++] = request.named[i];
  }
  for (int i = 0; i < s->parameter_count; i++) {
    const char *name = s->names ? s->names[i] : 0;
    if (!name) {
      int n = snprintf(number, sizeof number, "?%d", i + 1);
      return fail_parameter(f, "missing parameter", number, (size_t)n);
    }
    Slice key = {(const uint8_t *)name, strlen(name)};
    Named *v = find_named(count, key);
    if (!v) return fail_parameter(f, "missing parameter", name, key.n);
    v->used = 1;
    if (bind_one(c, s, i + 1, &v->value, name, key.n, f)) return -1;
  }
  for (size_t i = 0; i < count; i++)
    if (!request.named[i].used) return fail_parameter(f, "extra parameter", (const char *)request.named[i].key.p, request.named[i].key.n);
  return 0;
}

int statement_bind(Connection *c, Statement *s, Failure *f) {
  if (request.positional_count && request.named_count) return fail(f, FAILED_PARAMETERS, "positional and named parameters together");
  return request.named_count || s->named_count ? bind_named(c, s, f) : bind_positional(c, s, f);
}

/* ---- Columns ---- */

static void put_name(Out *o, uint8_t tag, const char *name) {
  if (name && *name) put_field(o, tag, name, strlen(name));
}

int statement_make_columns(Statement *s) {
  int prepared = sqlite3_stmt_status(s->stmt, SQLITE_STMTSTATUS_REPREPARE, 0);
  if (s->columns_of == prepared) return 1;
  Out all = {0}, one = {0};
  s->column_count = sqlite3_column_count(s->stmt);
  for (int i = 0; i < s->column_count; i++) {
    const char *name = sqlite3_column_name(s->stmt, i);
    if (!name) all.failed = 1;
    one.len = 0;
    put_name(&one, 0x0a, name);
    put_name(&one, 0x12, sqlite3_column_decltype(s->stmt, i));
    put_name(&one, 0x1a, sqlite3_column_table_name(s->stmt, i));
    put_name(&one, 0x22, sqlite3_column_origin_name(s->stmt, i));
    put_field(&all, 0x0a, one.data, one.len);
  }
  int bad = all.failed | one.failed;
  if (bad) out_free(&all);
  out_free(&one);
  free(s->columns);
  s->columns = all.data;
  s->columns_size = all.len;
  s->columns_of = bad ? -1 : prepared;
  return !bad;
}

int statement_columns(Statement *s, Out *o) {
  if (!statement_make_columns(s)) return 0;
  put_bytes(o, s->columns, s->columns_size);
  return !o->failed;
}

/* ---- Row ids ---- */

void statement_mark_inserts(Connection *c) {
  static uint64_t state;
  if (!state) sqlite3_randomness(sizeof state, &state);
  state += 0x9E3779B97F4A7C15u;
  uint64_t z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
  c->marker = (sqlite3_int64)(z ^ (z >> 27));
  c->rowid_before = sqlite3_last_insert_rowid(c->db);
  c->marking = 1;
  sqlite3_set_last_insert_rowid(c->db, c->marker);
}

int statement_unmark_inserts(Connection *c, sqlite3_int64 *rowid) {
  c->marking = 0;
  *rowid = sqlite3_last_insert_rowid(c->db);
  if (*rowid != c->marker) return 1;
  sqlite3_set_last_insert_rowid(c->db, c->rowid_before);
  return 0;
}

static void last_insert_rowid(sqlite3_context *context, int argc, sqlite3_value **argv) {
  Connection *c = sqlite3_user_data(context);
  sqlite3_int64 id = sqlite3_last_insert_rowid(sqlite3_context_db_handle(context));
  (void)argc;
  (void)argv;
  sqlite3_result_int64(context, c->marking && id == c->marker ? c->rowid_before : id);
}

int statement_replace_last_insert_rowid(Connection *c) {
  return sqlite3_create_function_v2(c->db, "last_insert_rowid", 0, SQLITE_UTF8 | SQLITE_INNOCUOUS, c, last_insert_rowid, 0, 0, 0);
}
