#include "failure.h"
#include <string.h>
SQLITE_EXTENSION_INIT3

void copy_text(char *to, size_t cap, const char *from, size_t n) {
  if (n >= cap) {
    n = cap - 1;
    while (n && ((unsigned char)from[n] & 0xC0) == 0x80) n--;
  }
  memcpy(to, from, n);
  to[n] = 0;
}

int fail(Failure *f, int kind, const char *message) {
  memset(f, 0, offsetof(Failure, message));
  f->kind = kind;
  f->offset = f->limit = -1;
  f->parameter[0] = f->action[0] = f->resource[0] = 0;
  copy_text(f->message, sizeof f->message, message, strlen(message));
  return -1;
}

int fail_memory(Failure *f) {
  fail(f, FAILED_STEP, "out of memory");
  f->code = SQLITE_NOMEM;
  return -1;
}

/* SQLite has one code for values (TOOBIG) and none for its other limits: there only the message tells. */
static int exceeded_limit(int kind, int code, const char *message) {
  static const struct {
    const char *begins;
    int limit;
  } known[] = {
      {"too many columns", SQLITE_LIMIT_COLUMN},
      {"too many terms in compound SELECT", SQLITE_LIMIT_COMPOUND_SELECT},
      {"too many arguments on ", SQLITE_LIMIT_FUNCTION_ARG},
      {"too many SQL variables", SQLITE_LIMIT_VARIABLE_NUMBER},
      {"variable number must be between", SQLITE_LIMIT_VARIABLE_NUMBER},
      {"too many terms in ", SQLITE_LIMIT_COLUMN}, /* ORDER BY, GROUP BY */
      {"triggers nested too deep", SQLITE_LIMIT_TRIGGER_DEPTH},
      {"too many attached databases", SQLITE_LIMIT_ATTACHED},
      {"Expression tree is too large", SQLITE_LIMIT_EXPR_DEPTH},
      {"Recursion limit", SQLITE_LIMIT_EXPR_DEPTH}, /* of the parser */
      {"VIEWs and/or subqueries nested too deep", SQLITE_LIMIT_EXPR_DEPTH},
      {"LIKE or GLOB pattern too complex", SQLITE_LIMIT_LIKE_PATTERN_LENGTH},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strncmp(message, known[i].begins, strlen(known[i].begins))) return known[i].limit;
  if ((code & 0xff) == SQLITE_TOOBIG) return kind == FAILED_PREPARE ? SQLITE_LIMIT_SQL_LENGTH : SQLITE_LIMIT_LENGTH;
  /* A program with more instructions than allowed looks like memory that ran out. */
  if (kind == FAILED_PREPARE && (code & 0xff) == SQLITE_NOMEM) return SQLITE_LIMIT_VDBE_OP;
  return -1;
}

int fail_sqlite(Failure *f, int kind, sqlite3 *db) {
  fail(f, kind, sqlite3_errmsg(db));
  f->code = sqlite3_extended_errcode(db);
  f->offset = kind == FAILED_PREPARE ? sqlite3_error_offset(db) : -1;
  f->limit = exceeded_limit(kind, f->code, f->message);
  return -1;
}
