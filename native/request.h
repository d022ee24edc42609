/* Decodes a persisto.v1.Statement. */
#ifndef PERSISTO_REQUEST_H
#define PERSISTO_REQUEST_H
#include "failure.h"
#include "wire.h"

/* Named parameters a statement may have: SQLite finds each by a walk over all of them. */
#define NAMED_COUNT_MAX 4096

typedef enum ValueKind { VALUE_NONE, VALUE_NULL, VALUE_INTEGER, VALUE_REAL, VALUE_TEXT, VALUE_BLOB } ValueKind;

typedef struct Value {
  ValueKind kind;
  union {
    sqlite3_int64 integer;
    double real;
    Slice bytes;
  };
} Value;

typedef struct Named {
  Slice key;
  Value value;
  uint32_t order;
  int used;
} Named;

/* Slices point into the request's bytes; the arrays are kept from one request to the next. */
typedef struct Request {
  Slice sql;
  Value *positional;
  Named *named;
  size_t positional_count, positional_cap, named_count, named_cap;
} Request;

/* The parameters of the statement that is being begun: one thread, one at a time. */
extern Request request;

/* Reads into `request`, at most `positional_max` positional parameters. 0, or -1 with the failure set. */
int request_read(Slice in, size_t positional_max, Failure *f);

#endif
