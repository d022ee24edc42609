#include "cursor.h"
#include "encode.h"
#include "request.h"
#include "watchdog.h"
#include <stdlib.h>
SQLITE_EXTENSION_INIT3

static void link_cursor(Connection *c, Cursor *k) {
  k->c = c;
  c->refs++;
  k->next = c->cursors;
  if (c->cursors) c->cursors->prev = k;
  c->cursors = k;
}

/* Compiles, binds, and takes the first step. */
static int begin(Cursor *k, Slice bytes, const Options *opt, Failure *f) {
  Connection *c = k->c;
  uint32_t flags = opt->flags | RUN_READ_ONLY;
  if (request_read(bytes, (size_t)sqlite3_limit(c->db, SQLITE_LIMIT_VARIABLE_NUMBER, -1), f)) return -1;
  k->s = statement_take(c, request.sql, opt->scope, flags, f);
  if (!k->s || statement_bind(c, k->s, f)) return -1;
  k->rollbacks = c->rollbacks;
  int rc = sqlite3_step(k->s->stmt);
  if (rc != SQLITE_ROW && rc != SQLITE_DONE) return fail_sqlite(f, FAILED_STEP, c->db);
  k->at_row = rc == SQLITE_ROW;
  k->done = rc == SQLITE_DONE;
  return statement_make_columns(k->s) ? 0 : fail_memory(f);
}

Cursor *cursor_open(Connection *c, Slice bytes, const Options *opt, Failure *f) {
  Call call;
  Cursor *k = calloc(1, sizeof *k);
  if (!k || !(k->request = malloc(bytes.n + 1))) {
    free(k);
    fail_memory(f);
    return 0;
  }
  if (bytes.n) memcpy(k->request, bytes.p, bytes.n);
  k->magic = CURSOR_MAGIC;
  k->flags = opt->flags;
  link_cursor(c, k);
  int failed = call_begin(&call, c, opt->flags | RUN_READ_ONLY, opt->deadline_ms, 0, f);
  if (!failed) failed = begin(k, (Slice){k->request, bytes.n}, opt, f);
  if (!call_end(&call, failed, f)) return k;
  cursor_free(k);
  return 0;
}

int cursor_columns(Cursor *k, Out *o, Failure *f) {
  if (!k->s) return fail(f, FAILED_CLOSED, "the cursor is closed");
  return statement_columns(k->s, o) ? 0 : fail_memory(f);
}

static int fill(Cursor *k, const Chunk *chunk, Out *o, Failure *f) {
  Bounds bounds = {chunk->rows_max ? chunk->rows_max : 1, chunk->bytes_max, CURSOR_ROW_BYTES_MAX};
  if (bounds.bytes_max >= bounds.hard_max) bounds.bytes_max = bounds.hard_max - 1;
  int rc = SQLITE_ROW;
  uint32_t rows = 0;
  Encoded e = encode_batch(o, k->s, k->flags & RUN_COLUMNS, &bounds, &rc, &rows);
  if (e == ENCODE_TOO_LARGE) return fail(f, FAILED_SIZE, "a row is too large");
  if (e == ENCODE_NO_MEMORY) return fail_memory(f);
  if (rc != SQLITE_ROW && rc != SQLITE_DONE) return fail_sqlite(f, FAILED_STEP, k->c->db);
  k->at_row = rc == SQLITE_ROW;
  k->done = rc == SQLITE_DONE;
  k->rows += rows;
  return 1;
}

int cursor_next(Cursor *k, const Chunk *chunk, Out *o, Failure *f) {
  Call call;
  size_t start = o->len;
  if (!k->s) return k->done ? 0 : fail(f, FAILED_CLOSED, "the cursor is closed");
  if (!k->at_row) {
    cursor_close(k);
    return 0;
  }
  int result = call_begin(&call, k->c, k->flags | RUN_READ_ONLY, chunk->deadline_ms, chunk->soft_ms, f);
  if (!result && k->rollbacks != k->c->rollbacks) {
    /* SQLite lets reads go on after a rollback; FTS5 frees what they use (3.54). */
    result = fail(f, FAILED_STEP, "the transaction was rolled back");
    f->code = SQLITE_ABORT_ROLLBACK;
  }
  if (!result) result = fill(k, chunk, o, f);
  call_disarm(&call);
  if (result > 0 && k->at_row && call.cause) {
    /* The interrupt came behind the last step, and would meet the next one. */
    fail(f, FAILED_STEP, "interrupted");
    f->code = SQLITE_INTERRUPT;
    result = -1;
  }
  result = call_end(&call, result, f);
  if (result < 0) {
    o->len = start;
    k->at_row = 0;
  }
  if (!k->at_row) cursor_close(k); /* the snapshot is let go at once */
  return result;
}

void cursor_close(Cursor *k) {
  if (!k->s && !k->request) return;
  Connection *c = k->c;
  if (k->s) statement_give(c, k->s);
  k->s = 0;
  free(k->request);
  k->request = 0;
  if (k->next) k->next->prev = k->prev;
  if (k->prev) k->prev->next = k->next;
  else c->cursors = k->next;
  k->next = k->prev = 0;
}

void cursor_free(Cursor *k) {
  cursor_close(k);
  connection_unref(k->c);
  free(k);
}
