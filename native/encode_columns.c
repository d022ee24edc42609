#include "encode.h"
#include "watchdog.h"
#include <stdlib.h>
SQLITE_EXTENSION_INIT3

/* The most that the tags and lengths around one column take. */
#define COLUMN_OVERHEAD 32
/* Larger scratch is given back after use. */
#define KEPT_BYTES_MAX 262144

/* One ColumnVector in the making: a class a row, and the encoded values of each class. `last` and `last_len` undo one row. */
typedef struct Vector {
  Out classes, integers, reals, texts, blobs;
  Out *last;
  size_t last_len;
} Vector;

static struct {
  Vector *v;
  int count;
} vectors;

static int vectors_begin(int columns) {
  if (columns > vectors.count) {
    Vector *v = realloc(vectors.v, (size_t)columns * sizeof *v);
    if (!v) return 0;
    memset(v + vectors.count, 0, (size_t)(columns - vectors.count) * sizeof *v);
    vectors.v = v;
    vectors.count = columns;
  }
  for (int i = 0; i < columns; i++) {
    Vector *v = &vectors.v[i];
    v->classes.len = v->integers.len = v->reals.len = v->texts.len = v->blobs.len = 0;
  }
  return 1;
}

static void trim(Out *o) {
  if (o->cap > KEPT_BYTES_MAX || o->failed) out_free(o);
}

/* A large value must not keep its memory for ever. */
static void vectors_end(int columns) {
  for (int i = 0; i < columns && i < vectors.count; i++) {
    Vector *v = &vectors.v[i];
    trim(&v->classes);
    trim(&v->integers);
    trim(&v->reals);
    trim(&v->texts);
    trim(&v->blobs);
  }
}

static Encoded add_bytes(Vector *v, sqlite3_stmt *s, int i, int blob, size_t rest, int *class) {
  const uint8_t *data = blob ? sqlite3_column_blob(s, i) : sqlite3_column_text(s, i);
  size_t n = (size_t)sqlite3_column_bytes(s, i);
  if (!data && (n || !blob)) return ENCODE_NO_MEMORY;
  if (n > rest) return ENCODE_TOO_LARGE;
  *class = blob || !is_utf8(data, n) ? 4 : 3;
  Out *o = v->last = *class == 3 ? &v->texts : &v->blobs;
  v->last_len = o->len;
  if (!out_room(o, 11 + n)) return ENCODE_NO_MEMORY;
  uint8_t *p = o->data + o->len;
  *p++ = *class == 3 ? 0x22 : 0x2a;
  p = write_varint(p, n);
  if (n) memcpy(p, data, n);
  o->len = (size_t)(p + n - o->data);
  return ENCODED;
}

/* Adds one row: to so many columns as *added says, when it fails in the middle. *sum grows by the bytes it took. */
static inline Encoded add_row(sqlite3_stmt *s, int columns, size_t *sum, size_t sum_max, int *added) {
  for (int i = 0; i < columns; i++) {
    Vector *v = &vectors.v[i];
    *added = i;
    int class = 0, type = sqlite3_column_type(s, i);
    v->last = 0;
    if (!out_room(&v->classes, 1)) return ENCODE_NO_MEMORY;
    switch (type) {
      case SQLITE_INTEGER:
        v->last = &v->integers;
        v->last_len = v->integers.len;
        put_varint(v->last, zigzag(sqlite3_column_int64(s, i)));
        class = 1;
        break;
      case SQLITE_FLOAT: {
        double d = sqlite3_column_double(s, i);
        v->last = &v->reals;
        v->last_len = v->reals.len;
        put_bytes(v->last, &d, 8);
        class = 2;
        break;
      }
      case SQLITE_NULL:
        break;
      default: {
        Encoded e = add_bytes(v, s, i, type == SQLITE_BLOB, *sum < sum_max ? sum_max - *sum : 0, &class);
        if (e) return e;
      }
    }
    v->classes.data[v->classes.len++] = (uint8_t)class;
    if (v->last) {
      if (v->last->failed) return ENCODE_NO_MEMORY;
      *sum += v->last->len - v->last_len;
    }
    ++*sum;
  }
  *added = columns;
  return *sum > sum_max ? ENCODE_TOO_LARGE : ENCODED;
}

static void undo_row(int added) {
  for (int i = 0; i < added; i++) {
    Vector *v = &vectors.v[i];
    v->classes.len--;
    if (v->last) v->last->len = v->last_len;
  }
}

/* Writes ColumnBatch; there is room for it. */
static void put_vectors(Out *o, int columns, uint32_t rows) {
  if (!rows) return;
  put_varint(o, 0x08);
  put_varint(o, rows);
  for (int i = 0; i < columns; i++) {
    const Vector *v = &vectors.v[i];
    size_t classes = v->classes.len;
    if (classes > 1 && !memcmp(v->classes.data, v->classes.data + 1, classes - 1)) classes = 1;
    size_t n = 1 + varint_size(classes) + classes + v->texts.len + v->blobs.len;
    if (v->integers.len) n += 1 + varint_size(v->integers.len) + v->integers.len;
    if (v->reals.len) n += 1 + varint_size(v->reals.len) + v->reals.len;
    put_varint(o, 0x12);
    put_varint(o, n);
    put_field(o, 0x0a, v->classes.data, classes);
    if (v->integers.len) put_field(o, 0x12, v->integers.data, v->integers.len);
    if (v->reals.len) put_field(o, 0x1a, v->reals.data, v->reals.len);
    put_bytes(o, v->texts.data, v->texts.len);
    put_bytes(o, v->blobs.data, v->blobs.len);
  }
}

static Encoded collect(Out *o, sqlite3_stmt *s, int columns, const Bounds *bounds, int *rc, uint32_t *rows) {
  size_t overhead = 16 + (size_t)columns * COLUMN_OVERHEAD, sum = 0;
  if (!vectors_begin(columns)) return ENCODE_NO_MEMORY;
  while (*rc == SQLITE_ROW && *rows < bounds->rows_max) {
    int added = 0;
    Encoded e = add_row(s, columns, &sum, bounds->hard_max, &added);
    if (e == ENCODE_NO_MEMORY) return e;
    if (*rows && bounds->bytes_max < bounds->hard_max && (e || overhead + sum > bounds->bytes_max)) {
      undo_row(added);
      return ENCODED;
    }
    if (e) return e;
    ++*rows;
    /* Before the step that may end the statement: afterwards nothing may fail any more. */
    if (!out_room(o, overhead + sum + ENCODE_TAIL)) return ENCODE_NO_MEMORY;
    *rc = sqlite3_step(s);
    if (atomic_load_explicit(&watchdog_soft, memory_order_relaxed)) break;
  }
  return ENCODED;
}

Encoded encode_columns(Out *o, sqlite3_stmt *s, int columns, const Bounds *bounds, int *rc, uint32_t *rows) {
  Encoded e = collect(o, s, columns, bounds, rc, rows);
  if (!e) put_vectors(o, columns, *rows);
  vectors_end(columns);
  return e;
}
