/* Looks at SQL text without compiling it, with SQLite's own idea of tokens. Texts end with a NUL. */
#ifndef PERSISTO_SQL_H
#define PERSISTO_SQL_H
#include <stddef.h>

/* Names that begin so belong to the server. */
#define RESERVED_PREFIX "_persisto_"

/* True for a name of the server, and for one whose shadow tables would be (`_persisto`). */
int is_reserved(const char *name, size_t n);

/* Past blanks and comments. */
const char *skip_blank(const char *sql);

/* How many parameters have a name or a number; SQLite's time to compile grows with the square of that. */
size_t count_named_parameters(const char *sql);

/* The first word, for example "vacuum", as SQLite sees it: behind empty statements. Its length is 0 when there is none. */
const char *first_word(const char *sql, size_t *n);

/* A reserved name after TO or REFERENCES, which the authorizer is not told: in the statement that begins at `sql` and ends
** before `end`. NULL when there is none. */
const char *find_reserved_target(const char *sql, const char *end, size_t *n);

#endif
