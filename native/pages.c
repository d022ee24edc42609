#include "pages.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

void *pages_map(int fd, size_t bytes) {
  struct stat file;
  if (fstat(fd, &file)) return 0;
  /* Touching what is mapped behind the end of a file kills the process. */
  if (!bytes || file.st_size < 0 || (size_t)file.st_size < bytes) {
    errno = EINVAL;
    return 0;
  }
  void *page = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return page == MAP_FAILED ? 0 : page;
}

void pages_unmap(void *page, size_t bytes) {
  munmap(page, bytes);
}
