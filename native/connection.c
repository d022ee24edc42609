#include "connection.h"
#include "cursor.h"
#include <stdlib.h>
SQLITE_EXTENSION_INIT3

#define CLIENT_DATA "persisto"

static Connection *newest;

static void closed(void *p) {
  Connection *c = p;
  if (newest == c) newest = 0;
  c->db = 0;
  connection_unref(c);
}

/* better-sqlite3 calls sqlite3_close, which refuses while statements live, and ignores that. SQLite tells of the close before it
** looks for them: the moment to finalise ours. */
static int closing(unsigned what, void *context, void *p, void *x) {
  (void)p;
  (void)x;
  if (what == SQLITE_TRACE_CLOSE) connection_release(context);
  return 0;
}

static int committed(void *context, sqlite3 *db, const char *schema, int frames) {
  Connection *c = context;
  (void)db;
  (void)schema;
  c->wal_frames = frames;
  c->commits++;
  return SQLITE_OK;
}

static void rolled_back(void *context) {
  Connection *c = context;
  c->rollbacks++;
}

int connection_opened(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  (void)error;
  (void)api;
  Connection *c = calloc(1, sizeof *c);
  if (!c) return SQLITE_NOMEM;
  c->magic = CONNECTION_MAGIC;
  c->db = db;
  c->refs = 1;
  int rc = sqlite3_set_clientdata(db, CLIENT_DATA, c, closed);
  if (rc) return rc; /* SQLite has called closed() */
  rc = sqlite3_trace_v2(db, SQLITE_TRACE_CLOSE, closing, c);
  newest = c;
  return rc;
}

Connection *connection_take(int cache_count, int *rc) {
  Connection *c = newest;
  *rc = SQLITE_OK;
  if (!c) return 0;
  c->cache.count_max = cache_count;
  if ((*rc = sqlite3_db_config(c->db, SQLITE_DBCONFIG_LOOKASIDE, (void *)0, 0, 0))) return 0;
  if ((*rc = sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, (int *)0))) return 0;
  if ((*rc = sqlite3_wal_autocheckpoint(c->db, 0))) return 0;
  sqlite3_wal_hook(c->db, committed, c);
  sqlite3_rollback_hook(c->db, rolled_back, c);
  if ((*rc = statement_replace_last_insert_rowid(c))) return 0;
  newest = 0;
  c->refs++;
  return c;
}

void connection_unref(Connection *c) {
  if (!--c->refs) free(c);
}

void connection_release(Connection *c) {
  while (c->cursors) cursor_close(c->cursors);
  cache_clear(c);
  for (int i = 0; i < FIXED_COUNT; i++) {
    sqlite3_finalize(c->fixed[i]);
    c->fixed[i] = 0;
  }
}

static const char *const fixed_sql[FIXED_COUNT] = {
    [FIXED_BEGIN] = "BEGIN",
    [FIXED_BEGIN_IMMEDIATE] = "BEGIN IMMEDIATE",
    [FIXED_COMMIT] = "COMMIT",
    [FIXED_ROLLBACK] = "ROLLBACK",
    [FIXED_PROTECT] = "SAVEPOINT _persisto_statement",
    [FIXED_ACCEPT] = "RELEASE _persisto_statement",
    [FIXED_UNDO] = "ROLLBACK TO _persisto_statement",
};

int connection_prepare_fixed(Connection *c, Fixed which) {
  if (c->fixed[which]) return SQLITE_OK;
  int trusted = c->guard.trusted;
  c->guard.trusted = 1;
  int rc = sqlite3_prepare_v3(c->db, fixed_sql[which], -1, SQLITE_PREPARE_PERSISTENT, &c->fixed[which], 0);
  c->guard.trusted = trusted;
  return rc;
}

int connection_fixed(Connection *c, Fixed which) {
  int rc = connection_prepare_fixed(c, which);
  if (rc) return rc;
  int trusted = c->guard.trusted;
  c->guard.trusted = 1;
  rc = sqlite3_step(c->fixed[which]);
  sqlite3_reset(c->fixed[which]);
  c->guard.trusted = trusted;
  return rc;
}

int connection_trusted(Connection *c, const char *sql) {
  int trusted = c->guard.trusted;
  c->guard.trusted = 1;
  int rc = sqlite3_exec(c->db, sql, 0, 0, 0);
  c->guard.trusted = trusted;
  return rc;
}
