/* A connection of better-sqlite3 as the library knows it: from its opening to its closing, with or without a caller. */
#ifndef PERSISTO_CONNECTION_H
#define PERSISTO_CONNECTION_H
#include "guard.h"
#include "statement.h"
#include "wire.h"

typedef struct Cursor Cursor;

/* The server's own statements, compiled once and run with trust. */
typedef enum Fixed {
  FIXED_BEGIN,
  FIXED_BEGIN_IMMEDIATE,
  FIXED_COMMIT,
  FIXED_ROLLBACK,
  FIXED_PROTECT,  /* the savepoint around one statement */
  FIXED_ACCEPT,
  FIXED_UNDO,
  FIXED_COUNT
} Fixed;

#define CONNECTION_MAGIC 0x50434f4e

struct Connection {
  uint32_t magic;
  int refs;     /* SQLite holds one, the caller one, each cursor one */
  sqlite3 *db;  /* NULL once closed */
  Guard guard;
  Cache cache;
  Cursor *cursors;
  sqlite3_stmt *fixed[FIXED_COUNT];
  int wal_frames;
  int64_t commits, rollbacks;
  /* See statement_mark_inserts. */
  sqlite3_int64 marker, rowid_before;
  int marking;
};

/* For sqlite3_auto_extension: every connection that this process opens from now on is known. */
int connection_opened(sqlite3 *db, char **error, const sqlite3_api_routines *api);

/* The connection opened last, prepared for its work: no lookaside, no checkpoint but on demand, WAL hook. The caller owns one
** reference. NULL when there is none, or when SQLite refuses (`rc`). */
Connection *connection_take(int cache_count, int *rc);
void connection_unref(Connection *c);

/* Finalises every statement and cursor; happens by itself when the connection closes. */
void connection_release(Connection *c);

/* SQLite's result code; SQLITE_DONE when it ran. */
int connection_fixed(Connection *c, Fixed which);
/* Compiles it now, so that memory is not needed when it is. SQLITE_OK or SQLite's result code. */
int connection_prepare_fixed(Connection *c, Fixed which);
/* The same for text, once: SAVEPOINT and its kin. */
int connection_trusted(Connection *c, const char *sql);

#endif
