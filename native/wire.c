#include "wire.h"
#include <stdlib.h>

int out_grow(Out *o, size_t more) {
  if (o->failed) return 0;
  if (more > SIZE_MAX / 4 || o->len > SIZE_MAX / 4) {
    o->failed = 1;
    return 0;
  }
  size_t cap = o->cap < 256 ? 256 : o->cap;
  while (cap < o->len + more) cap *= 2;
  uint8_t *data = o->owned ? realloc(o->data, cap) : malloc(cap);
  if (!data) {
    o->failed = 1;
    return 0;
  }
  if (!o->owned && o->len) memcpy(data, o->data, o->len);
  o->data = data;
  o->cap = cap;
  o->owned = 1;
  return 1;
}

void out_free(Out *o) {
  if (o->owned) free(o->data);
  memset(o, 0, sizeof *o);
}

void put_field(Out *o, uint8_t tag, const void *p, size_t n) {
  put_varint(o, tag);
  put_varint(o, n);
  put_bytes(o, p, n);
}

unsigned close_length(Out *o, size_t start, unsigned width) {
  if (o->failed) return width;
  size_t n = o->len - start - width;
  unsigned needed = varint_size(n);
  if (needed != width) {
    if (needed > width && !out_room(o, needed - width)) return width;
    memmove(o->data + start + needed, o->data + start + width, n);
    o->len = start + needed + n;
  }
  write_varint(o->data + start, n);
  return needed;
}

int read_varint(Slice *in, uint64_t *v) {
  uint64_t r = 0;
  for (unsigned shift = 0; in->n && shift < 64; shift += 7) {
    uint8_t b = *in->p++;
    in->n--;
    r |= (uint64_t)(b & 127) << shift;
    if (b < 128) {
      *v = r;
      return 1;
    }
  }
  return 0;
}

int read_tag(Slice *in, uint32_t *tag) {
  uint64_t v;
  if (!read_varint(in, &v) || v > UINT32_MAX || v < 8) return 0;
  *tag = (uint32_t)v;
  return 1;
}

int read_slice(Slice *in, Slice *out) {
  uint64_t n;
  if (!read_varint(in, &n) || n > in->n) return 0;
  out->p = in->p;
  out->n = (size_t)n;
  in->p += n;
  in->n -= n;
  return 1;
}

int read_fixed64(Slice *in, uint64_t *v) {
  if (in->n < 8) return 0;
  memcpy(v, in->p, 8);
  in->p += 8;
  in->n -= 8;
  return 1;
}

#define GROUP_DEPTH_MAX 32

int skip_field(Slice *in, uint32_t tag) {
  uint32_t open[GROUP_DEPTH_MAX];
  int depth = 0;
  uint64_t v;
  Slice s;
  for (;;) {
    switch (tag & 7) {
      case 0:
        if (!read_varint(in, &v)) return 0;
        break;
      case 1:
        if (!read_fixed64(in, &v)) return 0;
        break;
      case 2:
        if (!read_slice(in, &s)) return 0;
        break;
      case 3:
        if (depth == GROUP_DEPTH_MAX) return 0;
        open[depth++] = tag >> 3;
        break;
      case 4:
        if (!depth || open[--depth] != tag >> 3) return 0;
        break;
      case 5:
        if (in->n < 4) return 0;
        in->p += 4;
        in->n -= 4;
        break;
      default:
        return 0;
    }
    if (!depth) return 1;
    if (!read_tag(in, &tag)) return 0;
  }
}

static inline int continues(uint8_t b) {
  return (b & 0xC0) == 0x80;
}

int is_utf8(const uint8_t *p, size_t n) {
  const uint8_t *end = p + n;
  while (p < end) {
    while (end - p >= 8) {
      uint64_t word;
      memcpy(&word, p, 8);
      if (word & 0x8080808080808080u) break;
      p += 8;
    }
    while (p < end && *p < 0x80) p++;
    if (p == end) return 1;
    uint8_t b = *p;
    if (b >= 0xC2 && b <= 0xDF) {
      if (end - p < 2 || !continues(p[1])) return 0;
      p += 2;
    } else if ((b & 0xF0) == 0xE0) {
      if (end - p < 3 || !continues(p[1]) || !continues(p[2])) return 0;
      if ((b == 0xE0 && p[1] < 0xA0) || (b == 0xED && p[1] > 0x9F)) return 0;
      p += 3;
    } else if (b >= 0xF0 && b <= 0xF4) {
      if (end - p < 4 || !continues(p[1]) || !continues(p[2]) || !continues(p[3])) return 0;
      if ((b == 0xF0 && p[1] < 0x90) || (b == 0xF4 && p[1] > 0x8F)) return 0;
      p += 4;
    } else {
      return 0;
    }
  }
  return 1;
}
