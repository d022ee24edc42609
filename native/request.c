#include "request.h"
#include <stdlib.h>

Request request;

/* Room for one more item; false when memory is short. */
static int grow(void **items, size_t *cap, size_t count, size_t size) {
  if (count < *cap) return 1;
  size_t more = *cap ? *cap * 2 : 16;
  void *r = realloc(*items, more * size);
  if (!r) return 0;
  *items = r;
  *cap = more;
  return 1;
}

static int read_value(Slice in, Value *out) {
  while (in.n) {
    uint32_t tag;
    uint64_t u;
    Slice s;
    if (!read_tag(&in, &tag)) return 0;
    switch (tag) {
      case 0x08: /* NullValue has one member */
        if (!read_varint(&in, &u) || u) return 0;
        out->kind = VALUE_NULL;
        break;
      case 0x10:
        if (!read_varint(&in, &u)) return 0;
        out->kind = VALUE_INTEGER;
        out->integer = (sqlite3_int64)((u >> 1) ^ (0 - (u & 1)));
        break;
      case 0x19:
        if (!read_fixed64(&in, &u)) return 0;
        out->kind = VALUE_REAL;
        memcpy(&out->real, &u, 8);
        break;
      case 0x22:
        if (!read_slice(&in, &s) || !is_utf8(s.p, s.n)) return 0;
        out->kind = VALUE_TEXT;
        out->bytes = s;
        break;
      case 0x2a:
        if (!read_slice(&in, &s)) return 0;
        out->kind = VALUE_BLOB;
        out->bytes = s;
        break;
      default:
        if (!skip_field(&in, tag)) return 0;
    }
  }
  return 1;
}

static int read_named(Slice in, Named *out) {
  while (in.n) {
    uint32_t tag;
    Slice s;
    if (!read_tag(&in, &tag)) return 0;
    if (tag == 0x0a) {
      if (!read_slice(&in, &out->key) || !is_utf8(out->key.p, out->key.n)) return 0;
    } else if (tag == 0x12) {
      if (!read_slice(&in, &s) || !read_value(s, &out->value)) return 0;
    } else if (!skip_field(&in, tag)) {
      return 0;
    }
  }
  return 1;
}

static int fail_count(Failure *f, const char *message, size_t most) {
  fail(f, FAILED_PARAMETERS, message);
  f->expected = (int)most;
  f->actual = (int)most + 1;
  f->limit = SQLITE_LIMIT_VARIABLE_NUMBER;
  return -1;
}

int request_read(Slice in, size_t positional_max, Failure *f) {
  static const char malformed[] = "not a persisto.v1.Statement";
  Request *r = &request;
  r->sql = (Slice){(const uint8_t *)"", 0};
  r->positional_count = r->named_count = 0;
  while (in.n) {
    uint32_t tag;
    Slice s;
    if (!read_tag(&in, &tag)) return fail(f, FAILED_REQUEST, malformed);
    switch (tag) {
      case 0x0a:
        if (!read_slice(&in, &r->sql) || !is_utf8(r->sql.p, r->sql.n)) return fail(f, FAILED_REQUEST, malformed);
        break;
      case 0x12: {
        if (!read_slice(&in, &s)) return fail(f, FAILED_REQUEST, malformed);
        if (r->positional_count == positional_max) return fail_count(f, "too many parameters", positional_max);
        if (!grow((void **)&r->positional, &r->positional_cap, r->positional_count, sizeof *r->positional)) return fail_memory(f);
        Value *v = &r->positional[r->positional_count++];
        memset(v, 0, sizeof *v);
        if (!read_value(s, v)) return fail(f, FAILED_REQUEST, malformed);
        break;
      }
      case 0x1a: {
        if (!read_slice(&in, &s)) return fail(f, FAILED_REQUEST, malformed);
        if (r->named_count == NAMED_COUNT_MAX) return fail_count(f, "too many named parameters", NAMED_COUNT_MAX);
        if (!grow((void **)&r->named, &r->named_cap, r->named_count, sizeof *r->named)) return fail_memory(f);
        Named *v = &r->named[r->named_count];
        memset(v, 0, sizeof *v);
        v->key.p = (const uint8_t *)"";
        v->order = (uint32_t)r->named_count++;
        if (!read_named(s, v)) return fail(f, FAILED_REQUEST, malformed);
        break;
      }
      default:
        if (!skip_field(&in, tag)) return fail(f, FAILED_REQUEST, malformed);
    }
  }
  return 0;
}
