#include "runner.h"
#include "encode.h"
#include "request.h"
#include "sql.h"
#include "watchdog.h"
#include <stdlib.h>
SQLITE_EXTENSION_INIT3

int call_begin(Call *call, Connection *c, unsigned flags, double deadline_ms, double soft_ms, Failure *f) {
  *call = (Call){.c = c, .disarmed = 1};
  if (!c->db) return fail(f, FAILED_CLOSED, "the connection is closed");
  call->in_transaction = !sqlite3_get_autocommit(c->db);
  if (c->guard.pragmas && !(flags & RUN_TRANSACTION_PRAGMAS)) guard_reset_pragmas(&c->guard, c->db);
  guard_begin(&c->guard, flags);
  if (!watchdog_arm(c->db, deadline_ms, soft_ms)) return fail_memory(f);
  call->disarmed = 0;
  return 0;
}

void call_disarm(Call *call) {
  if (call->disarmed) return;
  call->cause = (int)watchdog_disarm();
  call->disarmed = 1;
}

int call_end(Call *call, int result, Failure *f) {
  call_disarm(call);
  if (result >= 0) return result;
  if (call->c->db) {
    guard_explain(&call->c->guard, f);
    f->transaction_ended = call->in_transaction && sqlite3_get_autocommit(call->c->db);
  }
  if ((f->kind == FAILED_PREPARE || f->kind == FAILED_STEP) && (f->code & 0xff) == SQLITE_INTERRUPT) {
    f->kind = FAILED_INTERRUPTED;
    f->expected = call->cause;
  }
  return result;
}

static void put_duration(Out *o, int64_t ns) {
  uint64_t seconds = (uint64_t)ns / 1000000000, rest = (uint64_t)ns % 1000000000;
  put_varint(o, 0x32);
  put_varint(o, (seconds ? 1 + varint_size(seconds) : 0) + (rest ? 1 + varint_size(rest) : 0));
  if (seconds) {
    put_varint(o, 0x08);
    put_varint(o, seconds);
  }
  if (rest) {
    put_varint(o, 0x10);
    put_varint(o, rest);
  }
}

/* Steps to the end and writes the rows. 0 when the statement came to its end. */
static int step_all(Connection *c, Statement *s, const Options *opt, Out *o, int *rc, Failure *f) {
  Bounds bounds = {UINT32_MAX, opt->bytes_max, opt->bytes_max};
  Encoded e = ENCODED;
  uint32_t rows = 0;
  *rc = sqlite3_step(s->stmt);
  if (*rc == SQLITE_ROW || *rc == SQLITE_DONE) {
    if (!statement_columns(s, o)) return fail_memory(f);
    e = encode_batch(o, s, opt->flags & RUN_COLUMNS, &bounds, rc, &rows);
  }
  if (e == ENCODE_TOO_LARGE) return fail(f, FAILED_SIZE, "the result is too large");
  if (e == ENCODE_NO_MEMORY) return fail_memory(f);
  if (*rc == SQLITE_ROW) return fail(f, FAILED_SIZE, "the result has too many rows");
  return *rc == SQLITE_DONE ? 0 : fail_sqlite(f, FAILED_STEP, c->db);
}

/* INSERT ... RETURNING has made all its changes when its first row comes, and a reset would keep them. Outside a transaction an
** interrupt makes the statement fail; inside one that would end the transaction, so there a savepoint is around it. */
static void abandon(Connection *c, Statement *s) {
  sqlite3_interrupt(c->db);
  while (sqlite3_step(s->stmt) == SQLITE_ROW) {
  }
}

/* Sets the savepoint, with all that is needed to go back to it. */
static int protect_transaction(Connection *c) {
  return !connection_prepare_fixed(c, FIXED_UNDO) && !connection_prepare_fixed(c, FIXED_ACCEPT) &&
         !connection_prepare_fixed(c, FIXED_ROLLBACK) && connection_fixed(c, FIXED_PROTECT) == SQLITE_DONE;
}

/* Runs a bound statement that writes. */
static int run_write(Call *call, Statement *s, const Options *opt, Out *o, Failure *f) {
  Connection *c = call->c;
  int protect = call->in_transaction && sqlite3_column_count(s->stmt) > 0, rc = SQLITE_OK;
  if (protect && !protect_transaction(c)) return fail_sqlite(f, FAILED_STEP, c->db);
  sqlite3_int64 total = sqlite3_total_changes64(c->db), rowid;
  statement_mark_inserts(c);
  int failed = step_all(c, s, opt, o, &rc, f);
  if (rc == SQLITE_ROW && !protect) abandon(c, s);
  int inserted = statement_unmark_inserts(c, &rowid);
  /* Schema changes leave the count of the statement before them; the total does not move then. */
  sqlite3_int64 changes = sqlite3_total_changes64(c->db) != total ? sqlite3_changes64(c->db) : 0;
  if (protect && !sqlite3_get_autocommit(c->db)) {
    sqlite3_reset(s->stmt);
    call_disarm(call);
    if (failed && connection_fixed(c, FIXED_UNDO) != SQLITE_DONE) connection_fixed(c, FIXED_ROLLBACK);
    if (!sqlite3_get_autocommit(c->db)) connection_fixed(c, FIXED_ACCEPT);
  }
  if (failed || s->makes_virtual) return failed;
  if (changes) {
    put_varint(o, 0x20);
    put_varint(o, (uint64_t)changes);
  }
  if (inserted) {
    put_varint(o, 0x28);
    put_varint(o, (uint64_t)rowid);
  }
  return 0;
}

static int run(Call *call, Slice bytes, const Options *opt, Out *o, Failure *f) {
  Connection *c = call->c;
  int rc, result = -1;
  int64_t began = opt->flags & RUN_ELAPSED ? now_ns() : 0;
  if (request_read(bytes, (size_t)sqlite3_limit(c->db, SQLITE_LIMIT_VARIABLE_NUMBER, -1), f)) return -1;
  Statement *s = statement_take(c, request.sql, opt->scope, opt->flags, f);
  if (!s) return -1;
  /* What is written after the step that ends a statement must not fail any more: it has taken effect by then. */
  if (!statement_make_columns(s) || !out_room(o, s->columns_size + 2 * ENCODE_TAIL)) fail_memory(f);
  else if (!statement_bind(c, s, f))
    result = sqlite3_stmt_readonly(s->stmt) ? step_all(c, s, opt, o, &rc, f) : run_write(call, s, opt, o, f);
  statement_give(c, s);
  if (!result && began) put_duration(o, now_ns() - began);
  return result;
}

int runner_run(Connection *c, Slice bytes, const Options *opt, Out *o, Failure *f) {
  Call call;
  size_t start = o->len;
  int result = call_begin(&call, c, opt->flags, opt->deadline_ms, 0, f);
  if (!result) result = run(&call, bytes, opt, o, f);
  if (result) o->len = start;
  return call_end(&call, result, f);
}

/* Runs a statement of a script, and counts. */
static int run_scripted(Connection *c, Statement *s, ScriptResult *result, Failure *f) {
  int rc, writes = !sqlite3_stmt_readonly(s->stmt);
  if (s->parameter_count) {
    fail(f, FAILED_PARAMETERS, "a script has no parameters");
    f->actual = s->parameter_count;
    return -1;
  }
  sqlite3_int64 total = sqlite3_total_changes64(c->db);
  while ((rc = sqlite3_step(s->stmt)) == SQLITE_ROW) {
  }
  if (rc != SQLITE_DONE) return fail_sqlite(f, FAILED_STEP, c->db);
  if (writes && !s->makes_virtual && sqlite3_total_changes64(c->db) != total) result->rows_affected += sqlite3_changes64(c->db);
  result->statements++;
  return 0;
}

static int script(Connection *c, const char *sql, size_t n, const Options *opt, ScriptResult *result, Failure *f) {
  const char *at = sql, *tail;
  if (count_named_parameters(sql) > NAMED_COUNT_MAX) return fail(f, FAILED_PARAMETERS, "a script has no parameters");
  for (;;) {
    while (*(at = skip_blank(at)) == ';') at++;
    if (!*at) return 0;
    int failed = 0;
    if (atomic_load(&watchdog_cause)) { /* many small statements: each forgets the interrupt before it looks */
      fail(f, FAILED_STEP, "interrupted");
      f->code = SQLITE_INTERRUPT;
      return -1;
    }
    Statement *s = statement_compile(c, at, n - (size_t)(at - sql), opt->flags, &tail, f);
    if (s) {
      failed = run_scripted(c, s, result, f);
      statement_give(c, s);
    } else if (f->kind || tail == at) {
      failed = f->kind ? -1 : fail(f, FAILED_TEXT, "the SQL has no statement");
      if (f->offset >= 0) f->offset += (int)(at - sql);
    }
    if (failed) return -1;
    at = tail;
  }
}

int runner_script(Connection *c, Slice text, const Options *opt, ScriptResult *result, Failure *f) {
  Call call;
  *result = (ScriptResult){0, 0};
  const uint8_t *nul = text.n ? memchr(text.p, 0, text.n) : 0;
  if (!is_utf8(text.p, text.n)) return fail(f, FAILED_REQUEST, "the script is not UTF-8");
  if (nul) {
    fail(f, FAILED_TEXT, "the SQL contains a NUL");
    f->offset = (int)(nul - text.p);
    return -1;
  }
  char *sql = text.n < INT32_MAX ? malloc(text.n + 1) : 0;
  if (!sql) return fail_memory(f);
  if (text.n) memcpy(sql, text.p, text.n);
  sql[text.n] = 0;
  int failed = call_begin(&call, c, opt->flags, opt->deadline_ms, 0, f);
  if (!failed) failed = script(c, sql, text.n, opt, result, f);
  failed = call_end(&call, failed, f);
  if (failed) f->actual = (int)result->statements;
  free(sql);
  return failed;
}
