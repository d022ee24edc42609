#include "guard.h"
#include "runner.h"
#include "sql.h"
#include <stdio.h>
#include <string.h>
SQLITE_EXTENSION_INIT3

static int is_one_of(const char *const *list, const char *name) {
  for (; *list; list++)
    if (!sqlite3_stricmp(*list, name)) return 1;
  return 0;
}

static const char *const denied_functions[] = {"load_extension", "fts3_tokenizer", 0};

static const char *const allowed_modules[] = {"fts5", "fts5vocab", "rtree", "rtree_i32", "geopoly", 0};

/* Virtual tables that need no CREATE, beside those that may be read (json_each, json_tree, generate_series, pragma_*). */
static const char *const denied_tables[] = {"dbstat", "sqlite_dbpage", "sqlite_dbdata", "sqlite_dbptr", "sqlite_stmt",
                                            "bytecode", "tables_used", "carray", "fts3tokenize", 0};

enum {
  PRAGMA_READ = 1,        /* without argument */
  PRAGMA_ASK = 2,         /* with an argument that says what to read */
  PRAGMA_TRANSACTION = 4, /* set for one transaction */
  PRAGMA_STORED = 8,      /* set in the file */
  PRAGMA_WRITES = 16
};

static const struct {
  const char *name;
  int allowed;
} pragmas[] = {
    {"application_id", PRAGMA_READ | PRAGMA_STORED},
    {"case_sensitive_like", PRAGMA_TRANSACTION},
    {"collation_list", PRAGMA_READ},
    {"compile_options", PRAGMA_READ},
    {"data_version", PRAGMA_READ},
    {"defer_foreign_keys", PRAGMA_TRANSACTION},
    {"encoding", PRAGMA_READ},
    {"foreign_key_check", PRAGMA_READ | PRAGMA_ASK},
    {"foreign_key_list", PRAGMA_READ | PRAGMA_ASK},
    {"foreign_keys", PRAGMA_READ},
    {"freelist_count", PRAGMA_READ},
    {"function_list", PRAGMA_READ},
    {"ignore_check_constraints", PRAGMA_TRANSACTION},
    {"index_info", PRAGMA_READ | PRAGMA_ASK},
    {"index_list", PRAGMA_READ | PRAGMA_ASK},
    {"index_xinfo", PRAGMA_READ | PRAGMA_ASK},
    {"integrity_check", PRAGMA_READ | PRAGMA_ASK},
    {"module_list", PRAGMA_READ},
    {"optimize", PRAGMA_READ | PRAGMA_ASK | PRAGMA_WRITES},
    {"page_count", PRAGMA_READ},
    {"page_size", PRAGMA_READ},
    {"quick_check", PRAGMA_READ | PRAGMA_ASK},
    {"recursive_triggers", PRAGMA_READ | PRAGMA_TRANSACTION},
    {"schema_version", PRAGMA_READ},
    {"table_info", PRAGMA_READ | PRAGMA_ASK},
    {"table_list", PRAGMA_READ},
    {"table_xinfo", PRAGMA_READ | PRAGMA_ASK},
    {"user_version", PRAGMA_READ | PRAGMA_STORED},
};
#define PRAGMA_COUNT (sizeof pragmas / sizeof *pragmas)

static const char *const actions[] = {
    [SQLITE_CREATE_INDEX] = "CREATE INDEX",
    [SQLITE_CREATE_TABLE] = "CREATE TABLE",
    [SQLITE_CREATE_TEMP_INDEX] = "CREATE TEMP INDEX",
    [SQLITE_CREATE_TEMP_TABLE] = "CREATE TEMP TABLE",
    [SQLITE_CREATE_TEMP_TRIGGER] = "CREATE TEMP TRIGGER",
    [SQLITE_CREATE_TEMP_VIEW] = "CREATE TEMP VIEW",
    [SQLITE_CREATE_TRIGGER] = "CREATE TRIGGER",
    [SQLITE_CREATE_VIEW] = "CREATE VIEW",
    [SQLITE_DELETE] = "DELETE",
    [SQLITE_DROP_INDEX] = "DROP INDEX",
    [SQLITE_DROP_TABLE] = "DROP TABLE",
    [SQLITE_DROP_TEMP_INDEX] = "DROP TEMP INDEX",
    [SQLITE_DROP_TEMP_TABLE] = "DROP TEMP TABLE",
    [SQLITE_DROP_TEMP_TRIGGER] = "DROP TEMP TRIGGER",
    [SQLITE_DROP_TEMP_VIEW] = "DROP TEMP VIEW",
    [SQLITE_DROP_TRIGGER] = "DROP TRIGGER",
    [SQLITE_DROP_VIEW] = "DROP VIEW",
    [SQLITE_INSERT] = "INSERT",
    [SQLITE_PRAGMA] = "PRAGMA",
    [SQLITE_READ] = "READ",
    [SQLITE_SELECT] = "SELECT",
    [SQLITE_TRANSACTION] = "TRANSACTION",
    [SQLITE_UPDATE] = "UPDATE",
    [SQLITE_ATTACH] = "ATTACH",
    [SQLITE_DETACH] = "DETACH",
    [SQLITE_ALTER_TABLE] = "ALTER TABLE",
    [SQLITE_REINDEX] = "REINDEX",
    [SQLITE_ANALYZE] = "ANALYZE",
    [SQLITE_CREATE_VTABLE] = "CREATE VIRTUAL TABLE",
    [SQLITE_DROP_VTABLE] = "DROP VIRTUAL TABLE",
    [SQLITE_FUNCTION] = "FUNCTION",
    [SQLITE_SAVEPOINT] = "SAVEPOINT",
    [SQLITE_RECURSIVE] = "RECURSIVE",
};

/* Remembers the first refusal of a statement: what comes after it is its consequence. */
static int refuse(Guard *g, int kind, int op, const char *resource) {
  if (g->refused) return SQLITE_DENY;
  const char *action = op >= 0 && (size_t)op < sizeof actions / sizeof *actions ? actions[op] : 0;
  if (!action) action = "UNKNOWN";
  g->refused = kind;
  copy_text(g->action, sizeof g->action, action, strlen(action));
  copy_text(g->resource, sizeof g->resource, resource ? resource : "", resource ? strlen(resource) : 0);
  return SQLITE_DENY;
}

static int is_reserved_name(const char *name) {
  return name && is_reserved(name, strlen(name));
}

static int reads_only(const Guard *g) {
  return g->read_only || (g->flags & RUN_READ_ONLY);
}

static int authorize_pragma(Guard *g, const char *name, const char *argument, const char *schema) {
  if (schema && sqlite3_stricmp(schema, "main")) return refuse(g, FAILED_FORBIDDEN, SQLITE_PRAGMA, name);
  if (is_reserved_name(argument)) return refuse(g, FAILED_FORBIDDEN, SQLITE_PRAGMA, argument);
  size_t i = 0;
  while (i < PRAGMA_COUNT && sqlite3_stricmp(pragmas[i].name, name)) i++;
  int allowed = i < PRAGMA_COUNT ? pragmas[i].allowed : 0;
  if (!(g->flags & RUN_TRANSACTION_PRAGMAS)) allowed &= ~PRAGMA_TRANSACTION;
  if (!(allowed & (argument ? PRAGMA_ASK | PRAGMA_TRANSACTION | PRAGMA_STORED : PRAGMA_READ)))
    return refuse(g, FAILED_FORBIDDEN, SQLITE_PRAGMA, name);
  if (reads_only(g) && ((allowed & PRAGMA_WRITES) || (argument && (allowed & PRAGMA_STORED))))
    return refuse(g, FAILED_READ_ONLY, SQLITE_PRAGMA, name);
  if (argument && (allowed & PRAGMA_TRANSACTION)) g->pragmas |= 1u << i;
  return SQLITE_OK;
}

/* CREATE, DROP and ALTER: of which table or the like, and of which other. */
static int authorize_schema(Guard *g, int op, const char *name, const char *other, const char *schema) {
  if (schema && sqlite3_stricmp(schema, "main")) return refuse(g, FAILED_FORBIDDEN, op, name);
  if (is_reserved_name(name)) return refuse(g, FAILED_FORBIDDEN, op, name);
  if (is_reserved_name(other)) return refuse(g, FAILED_FORBIDDEN, op, other);
  if (reads_only(g)) return refuse(g, FAILED_READ_ONLY, op, name);
  return SQLITE_OK;
}

static int authorize(void *context, int op, const char *a, const char *b, const char *schema, const char *via) {
  Guard *g = context;
  if (op == SQLITE_PRAGMA) g->saw |= SAW_PRAGMA;
  if (op == SQLITE_CREATE_TABLE) g->saw |= SAW_NAME;
  if (op == SQLITE_ALTER_TABLE) g->saw |= SAW_NAME | SAW_ALTER;
  if (op == SQLITE_CREATE_VTABLE) g->saw |= SAW_VIRTUAL;
  if (!g->on || (g->trusted && !via)) return SQLITE_OK;
  switch (op) {
    case SQLITE_SELECT:
    case SQLITE_RECURSIVE:
      return SQLITE_OK;
    case SQLITE_READ:
      if (is_reserved_name(a) || is_one_of(denied_tables, a)) return refuse(g, FAILED_FORBIDDEN, op, a);
      /* ALTER looks for itself whether the TEMP schema refers to the table. */
      if (schema && !sqlite3_stricmp(schema, "temp") && !(g->saw & SAW_ALTER)) return refuse(g, FAILED_FORBIDDEN, op, a);
      return SQLITE_OK;
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE:
      /* That reads only read is left to sqlite3_stmt_readonly: opening an R*Tree compiles writes, too. */
      return is_reserved_name(a) ? refuse(g, FAILED_FORBIDDEN, op, a) : SQLITE_OK;
    case SQLITE_FUNCTION:
      return is_one_of(denied_functions, b) || is_reserved_name(b) ? refuse(g, FAILED_FORBIDDEN, op, b) : SQLITE_OK;
    case SQLITE_PRAGMA:
      return authorize_pragma(g, a, b, schema);
    case SQLITE_CREATE_VTABLE:
      if (!is_one_of(allowed_modules, b)) return refuse(g, FAILED_FORBIDDEN, op, b);
      return authorize_schema(g, op, a, 0, schema);
    case SQLITE_CREATE_TABLE:
    case SQLITE_CREATE_VIEW:
      if (is_one_of(denied_tables, a)) return refuse(g, FAILED_FORBIDDEN, op, a);
      return authorize_schema(g, op, a, 0, schema);
    case SQLITE_CREATE_INDEX:
    case SQLITE_CREATE_TRIGGER:
    case SQLITE_DROP_INDEX:
    case SQLITE_DROP_TRIGGER:
      return authorize_schema(g, op, a, b, schema);
    case SQLITE_DROP_TABLE:
    case SQLITE_DROP_VIEW:
    case SQLITE_DROP_VTABLE:
      return authorize_schema(g, op, a, 0, schema);
    case SQLITE_ALTER_TABLE: /* here the schema comes first */
      return authorize_schema(g, op, b, 0, a);
    case SQLITE_ANALYZE: /* without a name they take every table, the server's too */
    case SQLITE_REINDEX:
      return reads_only(g) ? refuse(g, FAILED_READ_ONLY, op, a) : SQLITE_OK;
    default:
      return refuse(g, FAILED_FORBIDDEN, op, a);
  }
}

int guard_on(Guard *g, sqlite3 *db, const int32_t *limits, size_t count, int read_only) {
  static const struct {
    int option, value;
  } options[] = {{SQLITE_DBCONFIG_DEFENSIVE, 1},         {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0}, {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
                 {SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0}, {SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0}};
  for (size_t i = 0; i < count; i++)
    if (limits[i] >= 0) sqlite3_limit(db, (int)i, limits[i]);
  for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
    int rc = sqlite3_db_config(db, options[i].option, options[i].value, (int *)0);
    if (rc) return rc;
  }
  g->read_only = read_only;
  if (g->on) return SQLITE_OK;
  g->on = 1;
  return sqlite3_set_authorizer(db, authorize, g);
}

void guard_begin(Guard *g, unsigned flags) {
  g->flags = flags;
  g->saw = 0;
  g->refused = 0;
}

static int fail_forbidden(Failure *f, int op, const char *action, const char *resource, size_t n) {
  fail(f, FAILED_FORBIDDEN, "not authorized");
  f->code = SQLITE_AUTH;
  if (op) action = actions[op];
  copy_text(f->action, sizeof f->action, action, strlen(action));
  copy_text(f->resource, sizeof f->resource, resource, n);
  return -1;
}

int guard_before(Guard *g, const char *sql, Failure *f) {
  size_t n;
  if (!g->on || g->trusted) return 0;
  const char *word = first_word(sql, &n);
  if (n != 6 || sqlite3_strnicmp(word, "vacuum", 6)) return 0;
  return fail_forbidden(f, 0, "VACUUM", "VACUUM", 6);
}

int guard_after(const Guard *g, const char *sql, const char *end, Failure *f) {
  size_t n;
  if (!g->on || g->trusted || !(g->saw & SAW_NAME)) return 0;
  const char *name = find_reserved_target(sql, end, &n);
  return name ? fail_forbidden(f, g->saw & SAW_ALTER ? SQLITE_ALTER_TABLE : SQLITE_CREATE_TABLE, 0, name, n) : 0;
}

/* What DEFENSIVE and untrusted schemas refuse says so in its message only. Between the words before and after is the name. */
static int refused_by_message(Failure *f) {
  static const struct {
    const char *before, *after, *action;
  } known[] = {
      {"table ", " may not be modified", "WRITE"}, {"table ", " may not be dropped", "DROP TABLE"},
      {"table ", " may not be altered", "ALTER TABLE"}, {"table ", " may not be indexed", "CREATE INDEX"},
      {"unsafe use of virtual table \"", "\"", "READ"}, {"unsafe use of ", "()", "FUNCTION"},
      {"not authorized to use function: ", "", "FUNCTION"},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    size_t n = strlen(known[i].before);
    if (strncmp(f->message, known[i].before, n)) continue;
    const char *name = f->message + n, *end = *known[i].after ? strstr(name, known[i].after) : name + strlen(name);
    if (!end) continue;
    f->kind = FAILED_FORBIDDEN;
    copy_text(f->action, sizeof f->action, known[i].action, strlen(known[i].action));
    copy_text(f->resource, sizeof f->resource, name, (size_t)(end - name));
    return 1;
  }
  return 0;
}

void guard_explain(const Guard *g, Failure *f) {
  if (!g->on || (f->kind != FAILED_PREPARE && f->kind != FAILED_STEP)) return;
  if (g->refused) {
    f->kind = g->refused;
    memcpy(f->action, g->action, sizeof f->action);
    memcpy(f->resource, g->resource, sizeof f->resource);
  } else if ((f->code & 0xff) == SQLITE_READONLY && reads_only(g)) {
    f->kind = FAILED_READ_ONLY;
  } else if (!refused_by_message(f) && (f->code & 0xff) == SQLITE_AUTH) {
    f->kind = FAILED_FORBIDDEN;
  }
}

void guard_reset_pragmas(Guard *g, sqlite3 *db) {
  unsigned set = g->pragmas;
  int trusted = g->trusted;
  g->trusted = 1;
  for (size_t i = 0; i < PRAGMA_COUNT; i++) {
    char sql[64];
    if (!(set & 1u << i)) continue;
    snprintf(sql, sizeof sql, "PRAGMA %s = 0", pragmas[i].name);
    sqlite3_exec(db, sql, 0, 0, 0);
  }
  g->trusted = trusted;
  g->pragmas = 0;
}
