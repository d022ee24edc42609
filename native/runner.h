/* Runs SQL for a caller that speaks protobuf: from the bytes of a persisto.v1.Statement to those of a ResultSet. */
#ifndef PERSISTO_RUNNER_H
#define PERSISTO_RUNNER_H
#include "connection.h"

/* RUN_READ_ONLY: FAILED_READ_ONLY for whatever writes. RUN_TRANSACTION_PRAGMAS: a transaction or batch, which may set the
** PRAGMAs that guard_reset_pragmas takes back. */
enum { RUN_COLUMNS = 1, RUN_READ_ONLY = 2, RUN_ELAPSED = 4, RUN_TRANSACTION_PRAGMAS = 8 };

typedef struct Options {
  uint32_t flags;
  uint32_t scope; /* callers with different rights have different scopes: the authorizer speaks only while compiling */
  size_t bytes_max;
  double deadline_ms; /* from now; 0 or less: none */
} Options;

/* Runs a statement to its end and appends a ResultSet. 0, or -1 with the failure set and nothing appended. When it fails
** nothing of the statement has taken effect, also where SQLite itself would have kept it (a result that is too large). */
int runner_run(Connection *c, Slice request, const Options *opt, Out *o, Failure *f);

typedef struct ScriptResult {
  int64_t statements, rows_affected;
} ScriptResult;

/* Runs the statements of a text one by one, each by the same rules, and drops their rows. On failure `actual` is the
** statement's number from 0, and the offset counts from the begin of the text. */
int runner_script(Connection *c, Slice text, const Options *opt, ScriptResult *result, Failure *f);

/* What surrounds every call: rights, deadline, and what a failure did to the transaction. call_end returns what it is given. */
typedef struct Call {
  Connection *c;
  int in_transaction, disarmed;
  int cause;
} Call;
int call_begin(Call *call, Connection *c, unsigned flags, double deadline_ms, double soft_ms, Failure *f);
void call_disarm(Call *call);
int call_end(Call *call, int result, Failure *f);

#endif
