#include "encode.h"
#include "watchdog.h"

Encoded encode_batch(Out *o, Statement *s, int by_column, const Bounds *bounds, int *rc, uint32_t *rows) {
  static unsigned width = 1;
  *rows = 0;
  if (!out_room(o, 11 + ENCODE_TAIL)) return ENCODE_NO_MEMORY;
  o->data[o->len++] = by_column ? 0x1a : 0x12;
  size_t start = o->len;
  o->len += width;
  Encoded e = (by_column ? encode_columns : encode_rows)(o, s->stmt, s->column_count, bounds, rc, rows);
  if (e) return e;
  width = close_length(o, start, width);
  return o->failed ? ENCODE_NO_MEMORY : ENCODED;
}
