/* Why a call failed: filled in by whoever notices, read once by JavaScript. */
#ifndef PERSISTO_FAILURE_H
#define PERSISTO_FAILURE_H
#include "sqlite3ext.h"
#include <stddef.h>

enum {
  FAILED_REQUEST = 1,     /* the bytes are no Statement, or a value has no kind */
  FAILED_PREPARE = 2,     /* SQLite refuses the SQL: code, message, offset */
  FAILED_TEXT = 3,        /* none, or more than one statement, or a NUL: offset */
  FAILED_PARAMETERS = 4,  /* a parameter is missing or extra: its name, or expected and actual counts */
  FAILED_STEP = 5,        /* SQLite stopped while running: code, message */
  FAILED_SIZE = 6,        /* the result is larger than the caller allows; nothing has taken effect */
  FAILED_READ_ONLY = 7,   /* a write where only reads may run */
  FAILED_CLOSED = 8,      /* the connection, or the cursor, is closed */
  FAILED_FORBIDDEN = 9,   /* against the SQL rules: action, resource */
  FAILED_INTERRUPTED = 10 /* `expected` says by what, see watchdog.h */
};

typedef struct Failure {
  int kind, code, offset, expected, actual;
  int limit;             /* the SQLITE_LIMIT_* that was exceeded, or -1 */
  int transaction_ended; /* there was a transaction, and the failure has ended it */
  char message[1024], parameter[128], action[48], resource[256];
} Failure;

/* Copies text, cut at a whole character. */
void copy_text(char *to, size_t cap, const char *from, size_t n);

/* Each returns -1, so that a caller can return it. */
int fail(Failure *f, int kind, const char *message);
int fail_memory(Failure *f);
/* What SQLite said last on this connection: kind is FAILED_PREPARE or FAILED_STEP. Finds out whether a limit was exceeded. */
int fail_sqlite(Failure *f, int kind, sqlite3 *db);

#endif
