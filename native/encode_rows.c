#include "encode.h"
#include "watchdog.h"
SQLITE_EXTENSION_INIT3

/* The most that a value takes beside its bytes: two tags and two lengths. */
#define VALUE_OVERHEAD 24

/* Text, or blob when `blob`; text that is not UTF-8 becomes a blob. */
static Encoded put_bytes_value(Out *o, sqlite3_stmt *s, int i, int blob, size_t end_max) {
  const uint8_t *data = blob ? sqlite3_column_blob(s, i) : sqlite3_column_text(s, i);
  size_t n = (size_t)sqlite3_column_bytes(s, i);
  if (!data && (n || !blob)) return ENCODE_NO_MEMORY;
  if (n > end_max || o->len > end_max - n) return ENCODE_TOO_LARGE;
  if (!out_room(o, VALUE_OVERHEAD + n)) return ENCODE_NO_MEMORY;
  uint8_t *p = o->data + o->len;
  *p++ = 0x0a;
  p = write_varint(p, 1 + varint_size(n) + n);
  *p++ = blob || !is_utf8(data, n) ? 0x2a : 0x22;
  p = write_varint(p, n);
  if (n) memcpy(p, data, n);
  o->len = (size_t)(p + n - o->data);
  return ENCODED;
}

/* Appends `Row rows = 1`. Values are written in place; only the row's own length is a guess. */
static inline Encoded put_row(Out *o, sqlite3_stmt *s, int columns, unsigned *width, size_t end_max) {
  if (!out_room(o, 11)) return ENCODE_NO_MEMORY;
  o->data[o->len++] = 0x0a;
  size_t start = o->len;
  o->len += *width;
  for (int i = 0; i < columns; i++) {
    if (!out_room(o, VALUE_OVERHEAD)) return ENCODE_NO_MEMORY;
    uint8_t *p = o->data + o->len;
    int type = sqlite3_column_type(s, i);
    switch (type) {
      case SQLITE_INTEGER: {
        uint8_t *e = write_varint(p + 3, zigzag(sqlite3_column_int64(s, i)));
        p[0] = 0x0a;
        p[1] = (uint8_t)(e - p - 2);
        p[2] = 0x10;
        o->len = (size_t)(e - o->data);
        break;
      }
      case SQLITE_FLOAT: {
        double d = sqlite3_column_double(s, i);
        p[0] = 0x0a;
        p[1] = 9;
        p[2] = 0x19;
        memcpy(p + 3, &d, 8);
        o->len += 11;
        break;
      }
      case SQLITE_NULL:
        memcpy(p, "\x0a\x02\x08\x00", 4);
        o->len += 4;
        break;
      default: {
        Encoded e = put_bytes_value(o, s, i, type == SQLITE_BLOB, end_max);
        if (e) return e;
      }
    }
  }
  *width = close_length(o, start, *width);
  return o->failed ? ENCODE_NO_MEMORY : o->len > end_max ? ENCODE_TOO_LARGE : ENCODED;
}

Encoded encode_rows(Out *o, sqlite3_stmt *s, int columns, const Bounds *bounds, int *rc, uint32_t *rows) {
  static unsigned width = 1;
  size_t start = o->len, end_max = bounds->hard_max < SIZE_MAX - start ? start + bounds->hard_max : SIZE_MAX;
  while (*rc == SQLITE_ROW && *rows < bounds->rows_max) {
    size_t before = o->len;
    Encoded e = put_row(o, s, columns, &width, end_max);
    if (e == ENCODE_NO_MEMORY) return e;
    if (*rows && (e || o->len - start > bounds->bytes_max)) {
      /* The row that does not fit is the next batch's first, and fails there if it is too large for any. */
      o->len = before;
      return bounds->bytes_max < bounds->hard_max ? ENCODED : e;
    }
    if (e) return e;
    ++*rows;
    if (!out_room(o, ENCODE_TAIL)) return ENCODE_NO_MEMORY;
    *rc = sqlite3_step(s);
    if (atomic_load_explicit(&watchdog_soft, memory_order_relaxed)) break;
  }
  return ENCODED;
}
