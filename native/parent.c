#include "parent.h"
#include <errno.h>
#include <signal.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>

int exit_with_parent(int parent) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL)) return 0;
  /* It may have gone before that. */
  if (getppid() != parent) _exit(1);
  return 1;
}
#else
#include <pthread.h>
#include <stdint.h>

#define LOOK_EVERY_US 100000

static void *look(void *parent) {
  while (getppid() == (pid_t)(intptr_t)parent) usleep(LOOK_EVERY_US);
  _exit(1);
}

int exit_with_parent(int parent) {
  sigset_t all, before;
  pthread_t thread;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  errno = pthread_create(&thread, 0, look, (void *)(intptr_t)parent);
  pthread_sigmask(SIG_SETMASK, &before, 0);
  if (errno) return 0;
  pthread_detach(thread);
  return 1;
}
#endif
