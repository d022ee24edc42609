/* The SQL rules: what callers may not do, whatever text, view or trigger they do it through. */
#ifndef PERSISTO_GUARD_H
#define PERSISTO_GUARD_H
#include "failure.h"
#include <stdint.h>

/* State of a connection's guard. */
typedef struct Guard {
  int on, read_only;
  int trusted;            /* the server's own statement runs: its text may do anything, views and triggers may not */
  unsigned flags;         /* RUN_* of the call that runs */
  unsigned saw;           /* SAW_*: what the statement that was compiled last does */
  unsigned pragmas;       /* those set for a transaction, as bits; see guard_reset_pragmas */
  int refused;            /* FAILED_FORBIDDEN or FAILED_READ_ONLY once the authorizer has said no, else 0 */
  char action[48], resource[256];
} Guard;

enum {
  SAW_PRAGMA = 1, /* takes effect while being compiled, so it must not be cached */
  SAW_NAME = 2,   /* may bring a new name that the authorizer is not told */
  SAW_ALTER = 4,
  SAW_VIRTUAL = 8 /* makes a virtual table, which fills tables of its own */
};

/* Turns it on, or changes its limits: by SQLITE_LIMIT_* number, -1 keeps one. The authorizer is told `g`, which must live as
** long as the connection. */
int guard_on(Guard *g, sqlite3 *db, const int32_t *limits, size_t count, int read_only);

/* To be called before anything is compiled or stepped for a call. */
void guard_begin(Guard *g, unsigned flags);

/* What the text itself tells: before compiling (VACUUM), and after (reserved names). -1 with the failure set. */
int guard_before(Guard *g, const char *sql, Failure *f);
int guard_after(const Guard *g, const char *sql, const char *end, Failure *f);

/* Turns what SQLite answered into FAILED_FORBIDDEN or FAILED_READ_ONLY when the rules were the cause. */
void guard_explain(const Guard *g, Failure *f);

/* Takes back the PRAGMAs that hold for one transaction. */
void guard_reset_pragmas(Guard *g, sqlite3 *db);

#endif
