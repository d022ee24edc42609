#include "sql.h"
#include <string.h>
#include <strings.h>

typedef enum Kind { TOKEN_END, TOKEN_BLANK, TOKEN_WORD, TOKEN_QUOTED, TOKEN_VARIABLE, TOKEN_OTHER } Kind;

static int is_digit(char c) {
  return c >= '0' && c <= '9';
}

/* Bytes of identifiers: letters, digits, underscore, dollar, and all of UTF-8 outside ASCII. */
static int is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' || c == '$' || (unsigned char)c >= 0x80;
}

static int is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r';
}

static const char *skip_word(const char *p) {
  while (is_word(*p)) p++;
  return p;
}

/* The token at p ends at *end. */
static Kind token(const char *p, const char **end) {
  const char *e = p + 1;
  Kind kind = TOKEN_OTHER;
  char c = *p;
  if (!c) {
    *end = p;
    return TOKEN_END;
  }
  if (is_blank(c)) {
    while (is_blank(*e)) e++;
    kind = TOKEN_BLANK;
  } else if (c == '-' && p[1] == '-') {
    while (*e && *e != '\n') e++;
    kind = TOKEN_BLANK;
  } else if (c == '/' && p[1] == '*' && p[2]) {
    e = strstr(p + 2, "*/");
    e = e ? e + 2 : p + strlen(p);
    kind = TOKEN_BLANK;
  } else if (!strncmp(p, "\xEF\xBB\xBF", 3)) {
    e = p + 3;
    kind = TOKEN_BLANK;
  } else if (c == '\'' || c == '"' || c == '`') {
    while (*e && (*e != c || e[1] == c)) e += *e == c ? 2 : 1;
    if (*e) e++;
    kind = TOKEN_QUOTED;
  } else if (c == '[') {
    while (*e && *e != ']') e++;
    if (*e) e++;
    kind = TOKEN_QUOTED;
  } else if (c == '?') {
    while (is_digit(*e)) e++;
    kind = TOKEN_VARIABLE;
  } else if (c == ':' || c == '@' || c == '#' || c == '$') {
    e = skip_word(e);
    kind = TOKEN_VARIABLE;
  } else if (is_word(c)) {
    e = skip_word(e);
    kind = TOKEN_WORD;
  }
  *end = e;
  return kind;
}

int is_reserved(const char *name, size_t n) {
  size_t prefix = sizeof RESERVED_PREFIX - 1;
  if (n == prefix - 1) return !strncasecmp(name, RESERVED_PREFIX, n);
  return n >= prefix && !strncasecmp(name, RESERVED_PREFIX, prefix);
}

const char *skip_blank(const char *sql) {
  const char *end;
  while (token(sql, &end) == TOKEN_BLANK) sql = end;
  return sql;
}

size_t count_named_parameters(const char *sql) {
  size_t count = 0;
  Kind kind;
  for (const char *end; (kind = token(sql, &end)) != TOKEN_END; sql = end) count += kind == TOKEN_VARIABLE && end - sql > 1;
  return count;
}

const char *first_word(const char *sql, size_t *n) {
  const char *end;
  while (*(sql = skip_blank(sql)) == ';') sql++;
  *n = token(sql, &end) == TOKEN_WORD ? (size_t)(end - sql) : 0;
  return sql;
}

const char *find_reserved_target(const char *sql, const char *end, size_t *n) {
  const char *next;
  int armed = 0;
  for (Kind kind; sql < end && (kind = token(sql, &next)) != TOKEN_END; sql = next) {
    if (kind == TOKEN_BLANK) continue;
    size_t size = (size_t)(next - sql);
    if (armed && kind == TOKEN_WORD && is_reserved(sql, size)) {
      *n = size;
      return sql;
    }
    if (armed && kind == TOKEN_QUOTED && size >= 2 && is_reserved(sql + 1, size - 2)) {
      *n = size - 2;
      return sql + 1;
    }
    armed = kind == TOKEN_WORD && ((size == 2 && !strncasecmp(sql, "to", 2)) || (size == 10 && !strncasecmp(sql, "references", 10)));
  }
  return 0;
}
