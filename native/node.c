/* The two doors of the library: SQLite's (loadExtension) and Node's (require). Both open the same copy. What the functions do
** stands in src/sqlite/native.ts, their other side. */
#include "cursor.h"
#include "pages.h"
#include "parent.h"
#include "runner.h"
#include "watchdog.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#define NAPI_VERSION 8
#include <node_api.h>
SQLITE_EXTENSION_INIT1

static Failure failure; /* of the last call that failed */
static uint8_t *arena;  /* where answers go: a Buffer lent for good */
static size_t arena_size;
static napi_ref arena_ref, watched_ref;
static pthread_t owner;
static int owned;

__attribute__((visibility("default"))) int sqlite3_extension_init(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  (void)db;
  SQLITE_EXTENSION_INIT2(api);
  if (sqlite3_libversion_number() < SQLITE_VERSION_NUMBER) {
    *error = sqlite3_mprintf("the native library is built for SQLite %s, this is %s: run make", SQLITE_VERSION, sqlite3_libversion());
    return SQLITE_ERROR;
  }
  int rc = sqlite3_auto_extension((void (*)(void))connection_opened);
  return rc ? rc : SQLITE_OK_LOAD_PERMANENTLY;
}

/* ---- Arguments and answers ---- */

#define ARGUMENTS_MAX 10

typedef struct Arguments {
  napi_env env;
  napi_value v[ARGUMENTS_MAX];
} Arguments;

static napi_value throw(napi_env env, const char *message) {
  napi_throw_error(env, 0, message);
  return 0;
}

static Arguments arguments(napi_env env, napi_callback_info info) {
  Arguments a = {.env = env};
  size_t count = ARGUMENTS_MAX;
  napi_get_cb_info(env, info, &count, a.v, 0, 0);
  return a;
}

static double number(const Arguments *a, int i) {
  double d = 0;
  napi_get_value_double(a->env, a->v[i], &d);
  return d;
}

static uint32_t u32(const Arguments *a, int i) {
  double d = number(a, i);
  return d >= 0 && d <= UINT32_MAX ? (uint32_t)d : d > 0 ? UINT32_MAX : 0;
}

static size_t size(const Arguments *a, int i) {
  double d = number(a, i);
  return d >= 0 && d < 9e15 ? (size_t)d : d > 0 ? SIZE_MAX : 0;
}

static int flag(const Arguments *a, int i) {
  bool b = false;
  napi_get_value_bool(a->env, a->v[i], &b);
  return b;
}

static napi_value null(napi_env env) {
  napi_value v = 0;
  napi_get_null(env, &v);
  return v;
}

static napi_value to_number(napi_env env, double d) {
  napi_value v = 0;
  napi_create_double(env, d, &v);
  return v;
}

static napi_value to_boolean(napi_env env, int b) {
  napi_value v = 0;
  napi_get_boolean(env, b != 0, &v);
  return v;
}

static napi_value to_numbers(napi_env env, const double *d, uint32_t count) {
  napi_value array = 0;
  napi_create_array_with_length(env, count, &array);
  for (uint32_t i = 0; i < count; i++) napi_set_element(env, array, i, to_number(env, d[i]));
  return array;
}

/* A handle that connect or open gave, or NULL and an exception. Each begins with its magic number. */
static void *handle(const Arguments *a, int i, uint32_t magic) {
  void *p = 0;
  napi_valuetype type;
  if (a->v[i] && napi_typeof(a->env, a->v[i], &type) == napi_ok && type == napi_external &&
      napi_get_value_external(a->env, a->v[i], &p) == napi_ok && p && *(uint32_t *)p == magic)
    return p;
  napi_throw_type_error(a->env, 0, magic == CONNECTION_MAGIC ? "a connection is expected" : "a cursor is expected");
  return 0;
}

static Connection *connection(const Arguments *a) {
  return handle(a, 0, CONNECTION_MAGIC);
}

/* The same, still open. */
static Connection *open_connection(const Arguments *a) {
  Connection *c = connection(a);
  if (c && !c->db) {
    throw(a->env, "the connection is closed");
    return 0;
  }
  return c;
}

/* (buffer, start, end) from argument i on. */
static int bytes(const Arguments *a, int i, Slice *out) {
  void *data = 0;
  size_t n = 0, start = size(a, i + 1), end = size(a, i + 2);
  bool is_buffer = false;
  if (!a->v[i] || napi_is_buffer(a->env, a->v[i], &is_buffer) != napi_ok || !is_buffer ||
      napi_get_buffer_info(a->env, a->v[i], &data, &n) != napi_ok || start > end || end > n) {
    napi_throw_range_error(a->env, 0, "not a range of a Buffer");
    return 0;
  }
  *out = (Slice){data ? (const uint8_t *)data + start : (const uint8_t *)"", end - start};
  return 1;
}

static Out output_at(size_t at) {
  Out o = {0};
  if (at < arena_size) {
    o.data = arena + at;
    o.cap = arena_size - at;
  }
  return o;
}

static void drop_heap(napi_env env, void *p, void *hint) {
  (void)env;
  (void)hint;
  free(p);
}

/* The length, when the answer lies in the arena; a Buffer of its own, when it did not fit. */
static napi_value answer(napi_env env, Out *o) {
  napi_value v = 0;
  if (!o->owned) {
    napi_create_uint32(env, (uint32_t)o->len, &v);
    return v;
  }
  uint8_t *exact = realloc(o->data, o->len ? o->len : 1);
  if (exact) o->data = exact;
  if (napi_create_external_buffer(env, o->len, o->data, drop_heap, 0, &v) == napi_ok) return v;
  napi_create_buffer_copy(env, o->len, o->data, 0, &v);
  free(o->data);
  return v;
}

static napi_value no_answer(napi_env env, Out *o) {
  out_free(o);
  return null(env);
}

/* ---- The process ---- */

/* Scratch and output are the process's: one thread uses them. False, and an exception, on any other. */
static int own(napi_env env) {
  if (!owned) {
    owner = pthread_self();
    owned = 1;
  }
  if (pthread_equal(owner, pthread_self())) return 1;
  throw(env, "the native library serves one thread a process");
  return 0;
}

static napi_value js_output(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  void *data = 0;
  size_t n = 0;
  bool is_buffer = false;
  if (!own(env)) return 0;
  if (!a.v[0] || napi_is_buffer(env, a.v[0], &is_buffer) != napi_ok || !is_buffer ||
      napi_get_buffer_info(env, a.v[0], &data, &n) != napi_ok)
    return throw(env, "a Buffer is expected");
  if (arena_ref) napi_delete_reference(env, arena_ref);
  napi_create_reference(env, a.v[0], 1, &arena_ref);
  arena = data;
  arena_size = n > UINT32_MAX ? UINT32_MAX : n;
  return 0;
}

static napi_value js_trim(napi_env env, napi_callback_info info) {
  (void)env;
  (void)info;
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return 0;
}

static void drop_page(napi_env env, void *p, void *hint) {
  (void)env;
  pages_unmap(p, (size_t)(uintptr_t)hint);
}

static napi_value js_shared_page(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  napi_value v = 0;
  size_t n = size(&a, 1);
  void *page = pages_map((int)number(&a, 0), n);
  if (!page) return throw(env, strerror(errno));
  if (napi_create_external_arraybuffer(env, page, n, drop_page, (void *)(uintptr_t)n, &v) == napi_ok) return v;
  pages_unmap(page, n);
  return throw(env, "this runtime does not take memory from outside");
}

static napi_value js_watch(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  void *data = 0;
  size_t n = 0, begun = size(&a, 1), cancel = size(&a, 2);
  bool is_buffer = false;
  if (!a.v[0] || napi_is_arraybuffer(env, a.v[0], &is_buffer) != napi_ok || !is_buffer ||
      napi_get_arraybuffer_info(env, a.v[0], &data, &n) != napi_ok || begun >= n / 4 || cancel >= n / 4)
    return throw(env, "an ArrayBuffer with both words is expected");
  /* The page must stay for as long as the watchdog looks at it. */
  watchdog_watch((const int32_t *)data + begun, (const int32_t *)data + cancel);
  if (watched_ref) napi_delete_reference(env, watched_ref);
  napi_create_reference(env, a.v[0], 1, &watched_ref);
  return 0;
}

static napi_value js_memory_limit(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  double d = number(&a, 0);
  watchdog_memory_limit(d > 0 && d < 9e15 ? (int64_t)d : 0);
  return 0;
}

static napi_value js_exit_with_parent(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  if (!exit_with_parent((int)number(&a, 0))) return throw(env, strerror(errno));
  return 0;
}

static void set_number(napi_env env, napi_value o, const char *name, int value) {
  napi_set_named_property(env, o, name, to_number(env, value));
}

static void set_text(napi_env env, napi_value o, const char *name, const char *text) {
  napi_value v = 0;
  napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &v);
  napi_set_named_property(env, o, name, v);
}

static napi_value js_failure(napi_env env, napi_callback_info info) {
  napi_value o = 0;
  (void)info;
  napi_create_object(env, &o);
  set_number(env, o, "kind", failure.kind);
  set_number(env, o, "code", failure.code);
  set_number(env, o, "offset", failure.offset);
  set_number(env, o, "expected", failure.expected);
  set_number(env, o, "actual", failure.actual);
  set_number(env, o, "limit", failure.limit);
  set_text(env, o, "message", failure.message);
  set_text(env, o, "parameter", failure.parameter);
  set_text(env, o, "action", failure.action);
  set_text(env, o, "resource", failure.resource);
  napi_set_named_property(env, o, "transactionOpen", to_boolean(env, !failure.transaction_ended));
  return o;
}

/* ---- Connections ---- */

static void drop_connection(napi_env env, void *p, void *hint) {
  (void)env;
  (void)hint;
  connection_unref(p);
}

static napi_value js_connect(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  napi_value v = 0;
  int rc;
  if (!sqlite3_api) return throw(env, "the library is not loaded into SQLite");
  if (!own(env)) return 0;
  uint32_t cache_count = u32(&a, 0);
  Connection *c = connection_take(cache_count > 4096 ? 4096 : (int)cache_count, &rc);
  if (!c) return throw(env, rc ? sqlite3_errstr(rc) : "no connection has been opened since");
  if (napi_create_external(env, c, drop_connection, 0, &v) == napi_ok) return v;
  connection_unref(c);
  return throw(env, "out of memory");
}

static napi_value js_guard(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = open_connection(&a);
  napi_typedarray_type type;
  void *limits = 0;
  size_t count = 0;
  if (!c) return 0;
  if (!a.v[1] || napi_get_typedarray_info(env, a.v[1], &type, &count, &limits, 0, 0) != napi_ok || type != napi_int32_array)
    return throw(env, "limits: an Int32Array is expected");
  int rc = guard_on(&c->guard, c->db, limits, count, flag(&a, 2));
  return rc ? throw(env, sqlite3_errstr(rc)) : 0;
}

static napi_value js_trust(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  if (c) c->guard.trusted = flag(&a, 1);
  return 0;
}

static napi_value js_run(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  Slice request;
  if (!c || !bytes(&a, 1, &request)) return 0;
  Options opt = {.flags = u32(&a, 5), .scope = u32(&a, 6), .bytes_max = size(&a, 7), .deadline_ms = number(&a, 8)};
  Out o = output_at(size(&a, 4));
  return runner_run(c, request, &opt, &o, &failure) ? no_answer(env, &o) : answer(env, &o);
}

static napi_value js_script(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  Slice text;
  ScriptResult result;
  if (!c || !bytes(&a, 1, &text)) return 0;
  Options opt = {.flags = u32(&a, 4), .scope = u32(&a, 5), .deadline_ms = number(&a, 6)};
  if (runner_script(c, text, &opt, &result, &failure)) return null(env);
  return to_numbers(env, (double[]){(double)result.statements, (double)result.rows_affected}, 2);
}

static napi_value js_control(napi_env env, napi_callback_info info) {
  static const struct {
    const char *name;
    Fixed what;
  } commands[] = {{"begin", FIXED_BEGIN}, {"beginImmediate", FIXED_BEGIN_IMMEDIATE}, {"commit", FIXED_COMMIT}, {"rollback", FIXED_ROLLBACK}};
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  char name[32] = "";
  Call call;
  if (!c) return 0;
  napi_get_value_string_utf8(env, a.v[1], name, sizeof name, 0);
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (strcmp(name, commands[i].name)) continue;
    int failed = call_begin(&call, c, RUN_TRANSACTION_PRAGMAS, number(&a, 2), 0, &failure);
    if (!failed && connection_fixed(c, commands[i].what) != SQLITE_DONE) failed = fail_sqlite(&failure, FAILED_STEP, c->db);
    return to_boolean(env, !call_end(&call, failed, &failure));
  }
  return throw(env, "unknown command");
}

/* SQLite compares names of savepoints without case; ours differ by it. */
static void keep_case(char *to, const char *from) {
  for (; *from; from++) {
    int upper = *from >= 'A' && *from <= 'Z';
    if (upper || *from == '^') *to++ = '^';
    *to++ = upper ? (char)(*from + 'a' - 'A') : *from;
  }
  *to = 0;
}

static napi_value js_savepoint(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  char what[16] = "", given[1024] = "", name[2 * sizeof given];
  size_t size = 0;
  Call call;
  if (!c) return 0;
  napi_get_value_string_utf8(env, a.v[1], what, sizeof what, 0);
  napi_get_value_string_utf8(env, a.v[2], given, sizeof given, &size);
  if (size >= sizeof given - 4 || size != strlen(given)) return throw(env, "the name is too long, or holds a NUL");
  keep_case(name, given);
  const char *command = !strcmp(what, "savepoint") ? "SAVEPOINT" : !strcmp(what, "release") ? "RELEASE" : !strcmp(what, "rollbackTo") ? "ROLLBACK TO" : 0;
  if (!command) return throw(env, "unknown command");
  int failed = call_begin(&call, c, RUN_TRANSACTION_PRAGMAS, 0, 0, &failure);
  if (!failed) {
    char *sql = sqlite3_mprintf("%s \"%w\"", command, name);
    if (!sql) failed = fail_memory(&failure);
    else if (connection_trusted(c, sql)) failed = fail_sqlite(&failure, FAILED_STEP, c->db);
    sqlite3_free(sql);
  }
  return to_boolean(env, !call_end(&call, failed, &failure));
}

static napi_value js_reset_pragmas(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  if (c && c->db) guard_reset_pragmas(&c->guard, c->db);
  return 0;
}

static napi_value js_in_transaction(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  return c ? to_boolean(env, c->db && !sqlite3_get_autocommit(c->db)) : 0;
}

static napi_value js_commits(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  return c ? to_number(env, (double)c->commits) : 0;
}

static napi_value js_frames(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  return c ? to_number(env, c->wal_frames) : 0;
}

static napi_value js_checkpoint(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = open_connection(&a);
  int frames = -1, done = -1;
  if (!c) return 0;
  int rc = sqlite3_wal_checkpoint_v2(c->db, "main", (int)number(&a, 1), &frames, &done);
  return to_numbers(env, (double[]){rc, frames, done}, 3);
}

static napi_value js_shrink(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  if (c && c->db) sqlite3_db_release_memory(c->db);
  return 0;
}

static napi_value js_release(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  if (c) connection_release(c);
  return 0;
}

/* ---- Cursors ---- */

static void drop_cursor(napi_env env, void *p, void *hint) {
  (void)env;
  (void)hint;
  cursor_free(p);
}

static napi_value js_open(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Connection *c = connection(&a);
  Slice request;
  napi_value v = 0;
  if (!c || !bytes(&a, 1, &request)) return 0;
  Options opt = {.flags = u32(&a, 4), .scope = u32(&a, 5), .deadline_ms = number(&a, 6)};
  Cursor *k = cursor_open(c, request, &opt, &failure);
  if (!k) return null(env);
  if (napi_create_external(env, k, drop_cursor, 0, &v) == napi_ok) return v;
  cursor_free(k);
  return throw(env, "out of memory");
}

static napi_value js_columns(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Cursor *k = handle(&a, 0, CURSOR_MAGIC);
  if (!k) return 0;
  Out o = output_at(size(&a, 1));
  return cursor_columns(k, &o, &failure) ? no_answer(env, &o) : answer(env, &o);
}

static napi_value js_next(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Cursor *k = handle(&a, 0, CURSOR_MAGIC);
  if (!k) return 0;
  Chunk chunk = {.rows_max = u32(&a, 2), .bytes_max = size(&a, 3), .soft_ms = number(&a, 4), .deadline_ms = number(&a, 5)};
  Out o = output_at(size(&a, 1));
  int result = cursor_next(k, &chunk, &o, &failure);
  if (result > 0) return answer(env, &o);
  napi_value v = no_answer(env, &o);
  return result ? v : 0;
}

static napi_value js_rows(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Cursor *k = handle(&a, 0, CURSOR_MAGIC);
  return k ? to_number(env, (double)k->rows) : 0;
}

static napi_value js_close(napi_env env, napi_callback_info info) {
  Arguments a = arguments(env, info);
  Cursor *k = handle(&a, 0, CURSOR_MAGIC);
  if (k) cursor_close(k);
  return 0;
}

NAPI_MODULE_INIT() {
  static const struct {
    const char *name;
    napi_callback function;
  } functions[] = {
      {"output", js_output},       {"trim", js_trim},
      {"sharedPage", js_shared_page}, {"watch", js_watch},
      {"memoryLimit", js_memory_limit}, {"failure", js_failure},
      {"exitWithParent", js_exit_with_parent},
      {"connect", js_connect},     {"guard", js_guard},
      {"trust", js_trust},         {"run", js_run},
      {"script", js_script},       {"control", js_control},
      {"savepoint", js_savepoint}, {"resetPragmas", js_reset_pragmas},
      {"inTransaction", js_in_transaction}, {"commits", js_commits},
      {"frames", js_frames},       {"checkpoint", js_checkpoint},
      {"shrink", js_shrink},       {"release", js_release},
      {"open", js_open},           {"columns", js_columns},
      {"next", js_next},           {"rows", js_rows},
      {"close", js_close},
  };
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    napi_value f;
    if (napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].function, 0, &f) != napi_ok) return 0;
    napi_set_named_property(env, exports, functions[i].name, f);
  }
  return exports;
}
