/* Rows of a statement as RowBatch or ColumnBatch. */
#ifndef PERSISTO_ENCODE_H
#define PERSISTO_ENCODE_H
#include "statement.h"

/* What the encoders leave free behind the rows, so that what ends a message fits without another allocation. */
#define ENCODE_TAIL 96

typedef struct Bounds {
  uint32_t rows_max;
  size_t bytes_max; /* a batch is cut before the row that would pass it, but has at least one row */
  size_t hard_max;  /* no batch is larger, not even of one row */
} Bounds;

typedef enum Encoded { ENCODED, ENCODE_NO_MEMORY, ENCODE_TOO_LARGE } Encoded;

/* Appends one batch: `row_batch = 2` or `column_batch = 3`, the same numbers in ResultSet and QueryResponse. *rc is what the
** last step returned, and becomes what the last step here returned: SQLITE_ROW when a bound cut the batch; the statement then
** stands on the first row that is not written. Also cuts when watchdog_soft becomes true. */
Encoded encode_batch(Out *o, Statement *s, int by_column, const Bounds *bounds, int *rc, uint32_t *rows);

/* The two layouts; encode_batch writes what is around them. */
Encoded encode_rows(Out *o, sqlite3_stmt *s, int columns, const Bounds *bounds, int *rc, uint32_t *rows);
Encoded encode_columns(Out *o, sqlite3_stmt *s, int columns, const Bounds *bounds, int *rc, uint32_t *rows);

#endif
