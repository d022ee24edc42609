/* Prepared statements of a connection: compiled by the rules, cached, bound. */
#ifndef PERSISTO_STATEMENT_H
#define PERSISTO_STATEMENT_H
#include "failure.h"
#include "wire.h"

typedef struct Connection Connection;
typedef struct Statement Statement;

struct Statement {
  sqlite3_stmt *stmt;
  char *sql; /* a copy, NUL at the end; NULL when the text is somebody else's */
  size_t sql_size;
  uint32_t scope, rights, hash;
  int busy, cached;
  int makes_virtual; /* what it inserts is the virtual table's own doing */
  int parameter_count, named_count;
  char **names; /* by index - 1, without the prefix; NULL for ? and ?7. Copies: SQLite's own move when it compiles again */
  uint8_t *columns; /* encoded Column messages */
  size_t columns_size;
  int column_count, columns_of; /* columns_of: SQLITE_STMTSTATUS_REPREPARE when they were made, -1 before */
  Statement *next;              /* in the bucket */
  Statement *newer, *older;     /* by use */
};

#define CACHE_BUCKETS 64

typedef struct Cache {
  int count_max, count;
  Statement *bucket[CACHE_BUCKETS];
  Statement *newest, *oldest;
} Cache;

/* Compiles, or takes from the cache, one statement. Cached by text and rights: whatever the authorizer's answers depend on is
** part of the key, because it is not asked again. NULL with the failure set. */
Statement *statement_take(Connection *c, Slice sql, uint32_t scope, uint32_t flags, Failure *f);

/* Compiles the first statement of a text of n bytes, uncached. NULL with f->kind 0 when there is only blank; *tail is what
** follows. */
Statement *statement_compile(Connection *c, const char *sql, size_t n, uint32_t flags, const char **tail, Failure *f);

/* Binds the parameters of `request`, without copies: its bytes must stay until statement_give. */
int statement_bind(Connection *c, Statement *s, Failure *f);

/* Ends the statement, and drops it or gives it back to the cache. */
void statement_give(Connection *c, Statement *s);

/* Makes what statement_columns appends. To be called again after the first step: a changed schema makes SQLite compile again
** inside it. False when memory is short. */
int statement_make_columns(Statement *s);
/* Appends `repeated Column columns = 1`. */
int statement_columns(Statement *s, Out *o);

void cache_clear(Connection *c);

/* SQLite does not say whether a statement inserted: its last row id is left from before. So a random number stands there while
** a write runs; if it is still there afterwards nothing was inserted. SQL does not meet it: last_insert_rowid() is replaced. */
void statement_mark_inserts(Connection *c);
/* True, and the row id, when there was an insert. */
int statement_unmark_inserts(Connection *c, sqlite3_int64 *rowid);
int statement_replace_last_insert_rowid(Connection *c);

#endif
