/* Statements run a chunk at a time. A cursor holds its snapshot until it is closed or at its end. A rollback on its connection
** ends it, and so does an interrupt there. */
#ifndef PERSISTO_CURSOR_H
#define PERSISTO_CURSOR_H
#include "runner.h"

/* The largest single row of a stream. */
#define CURSOR_ROW_BYTES_MAX (128 << 20)
#define CURSOR_MAGIC 0x50435552

struct Cursor {
  uint32_t magic;
  Connection *c; /* holds a reference */
  Statement *s;  /* NULL when closed */
  Cursor *next, *prev;
  uint8_t *request; /* bound without copies, so a copy of its own */
  uint32_t flags;
  int at_row, done; /* at_row: the row under the statement is not sent yet */
  int64_t rows, rollbacks; /* rollbacks: of the connection, when it was opened */
};

/* Begins a read (anything else is FAILED_READ_ONLY) and takes its snapshot. */
Cursor *cursor_open(Connection *c, Slice request, const Options *opt, Failure *f);
/* Appends `repeated Column columns = 1`, as ResultSet and QueryHeader have it. */
int cursor_columns(Cursor *k, Out *o, Failure *f);

typedef struct Chunk {
  uint32_t rows_max;
  size_t bytes_max;
  double soft_ms, deadline_ms; /* 0 or less: none */
} Chunk;
/* Appends one QueryResponse with the next rows, one at least. 1, 0 at the end, -1 on failure (the cursor is then closed). */
int cursor_next(Cursor *k, const Chunk *chunk, Out *o, Failure *f);
/* Ends the statement; the cursor itself stays until cursor_free. */
void cursor_close(Cursor *k);
void cursor_free(Cursor *k);

#endif
