/* The protobuf wire format: bytes being written, bytes being read. Little-endian machines only. */
#ifndef PERSISTO_WIRE_H
#define PERSISTO_WIRE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes that belong to somebody else. */
typedef struct Slice {
  const uint8_t *p;
  size_t n;
} Slice;

/* Bytes being written. Begins in memory that the caller lends; moves to the heap (`owned`) when that is too small. `failed`
** sticks: once memory was short nothing more is written. */
typedef struct Out {
  uint8_t *data;
  size_t len, cap;
  int owned, failed;
} Out;

int out_grow(Out *o, size_t more);
void out_free(Out *o);

/* Room for n more bytes; false when memory is short. */
static inline int out_room(Out *o, size_t n) {
  return o->cap - o->len >= n || out_grow(o, n);
}

static inline uint8_t *write_varint(uint8_t *p, uint64_t v) {
  while (v > 127) {
    *p++ = (uint8_t)(v | 128);
    v >>= 7;
  }
  *p++ = (uint8_t)v;
  return p;
}

static inline unsigned varint_size(uint64_t v) {
  return (unsigned)(((63 - __builtin_clzll(v | 1)) * 9 + 73) / 64);
}

static inline uint64_t zigzag(int64_t v) {
  return ((uint64_t)v << 1) ^ (uint64_t)(v >> 63);
}

static inline void put_varint(Out *o, uint64_t v) {
  if (out_room(o, 10)) o->len = (size_t)(write_varint(o->data + o->len, v) - o->data);
}

static inline void put_bytes(Out *o, const void *p, size_t n) {
  if (n && out_room(o, n)) {
    memcpy(o->data + o->len, p, n);
    o->len += n;
  }
}

/* A field of wire type 2. */
void put_field(Out *o, uint8_t tag, const void *p, size_t n);

/* A length stands before what it measures. The caller leaves `width` bytes at `start`, writes, then closes: what was written
** moves only when the width was guessed wrong. Returns the width that was needed, a good guess for the next one. */
unsigned close_length(Out *o, size_t start, unsigned width);

/* Readers return false at the first byte that is not protobuf, and never read past the slice. */
int read_varint(Slice *in, uint64_t *v);
int read_tag(Slice *in, uint32_t *tag);
int read_slice(Slice *in, Slice *out);
int read_fixed64(Slice *in, uint64_t *v);
/* Skips the field whose tag was read; groups nest at most 32 deep. */
int skip_field(Slice *in, uint32_t tag);

/* Strict: no overlong forms, no surrogates, nothing above U+10FFFF. */
int is_utf8(const uint8_t *p, size_t n);

#endif
