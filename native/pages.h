/* Files mapped into memory and shared between processes. */
#ifndef PERSISTO_PAGES_H
#define PERSISTO_PAGES_H
#include <stddef.h>

/* Maps the first bytes of an open file, which must be as long. NULL with errno set. The descriptor may be closed afterwards. */
void *pages_map(int fd, size_t bytes);
void pages_unmap(void *page, size_t bytes);

#endif
