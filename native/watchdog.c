#include "watchdog.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
SQLITE_EXTENSION_INIT3

/* How often the page and the deadline are looked at while statements run, the memory, and how long after the last statement
** the thread goes on ticking: so that arming seldom has to wake it. */
#define TICK_NS 2000000
#define MEMORY_NS 5000000
#define AWAKE_NS 100000000

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
static int started, asleep;

/* All below is guarded by the mutex. */
static sqlite3 *armed;
static int64_t deadline_ns, soft_ns, awake_until_ns, memory_seen_ns, memory_limit;
static const int32_t *begun_word, *cancel_word;

atomic_int watchdog_soft, watchdog_cause;

int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t resident_bytes(void) {
  static int fd = -2;
  char text[128];
  long long size, resident;
  if (fd == -2) fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = 0;
  return sscanf(text, "%lld %lld", &size, &resident) == 2 ? resident * sysconf(_SC_PAGESIZE) : 0;
}

static Cause look(int64_t now) {
  if (deadline_ns && now >= deadline_ns) return CAUSE_DEADLINE;
  if (cancel_word) {
    int32_t cancelled = __atomic_load_n(cancel_word, __ATOMIC_SEQ_CST);
    if (cancelled && cancelled == __atomic_load_n(begun_word, __ATOMIC_SEQ_CST)) return CAUSE_CANCEL;
  }
  if (memory_limit && now - memory_seen_ns >= MEMORY_NS) {
    memory_seen_ns = now;
    if (resident_bytes() > memory_limit) return CAUSE_MEMORY;
  }
  return CAUSE_NONE;
}

static void wait_until(int64_t at) {
#ifdef __APPLE__
  int64_t rest = at - now_ns();
  struct timespec t = {rest > 0 ? rest / 1000000000 : 0, rest > 0 ? rest % 1000000000 : 0};
  pthread_cond_timedwait_relative_np(&wake, &mutex, &t);
#else
  struct timespec t = {at / 1000000000, at % 1000000000};
  pthread_cond_timedwait(&wake, &mutex, &t);
#endif
}

static void *watch(void *unused) {
  (void)unused;
  pthread_mutex_lock(&mutex);
  for (;;) {
    int64_t now = now_ns(), next = now + TICK_NS;
    if (armed) {
      Cause cause = (Cause)atomic_load(&watchdog_cause);
      if (!cause) atomic_store(&watchdog_cause, cause = look(now));
      /* Again at each tick: SQLite forgets an interrupt when no statement is active, as between compiling and running. */
      if (cause) sqlite3_interrupt(armed);
      else if (deadline_ns && deadline_ns < next) next = deadline_ns;
      if (soft_ns && now >= soft_ns) {
        soft_ns = 0;
        atomic_store_explicit(&watchdog_soft, 1, memory_order_relaxed);
      } else if (soft_ns && soft_ns < next) {
        next = soft_ns;
      }
    }
    if (armed || now < awake_until_ns) {
      wait_until(next);
    } else {
      asleep = 1;
      pthread_cond_wait(&wake, &mutex);
      asleep = 0;
    }
  }
  return 0;
}

/* With all signals masked, so that none meant for the program is taken here. */
static int start(void) {
  pthread_condattr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  pthread_condattr_init(&attributes);
#ifndef __APPLE__
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
  pthread_cond_init(&wake, &attributes);
  pthread_condattr_destroy(&attributes);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  started = !pthread_create(&thread, 0, watch, 0);
  pthread_sigmask(SIG_SETMASK, &before, 0);
  if (started) pthread_detach(thread);
  return started;
}

/* When a wait of so many milliseconds ends; 0 for one without end. */
static int64_t after(int64_t now, double ms) {
  return ms > 0 && ms < 1e12 ? now + (int64_t)(ms * 1e6) : 0;
}

int watchdog_arm(sqlite3 *db, double deadline_ms, double soft_ms) {
  if (!started && !start()) return 0;
  int64_t now = now_ns();
  pthread_mutex_lock(&mutex);
  armed = db;
  atomic_store(&watchdog_cause, CAUSE_NONE);
  deadline_ns = after(now, deadline_ms);
  soft_ns = after(now, soft_ms);
  awake_until_ns = now + AWAKE_NS;
  atomic_store_explicit(&watchdog_soft, 0, memory_order_relaxed);
  if (asleep) {
    asleep = 0;
    pthread_cond_signal(&wake);
  }
  pthread_mutex_unlock(&mutex);
  return 1;
}

Cause watchdog_disarm(void) {
  pthread_mutex_lock(&mutex);
  Cause seen = (Cause)atomic_exchange(&watchdog_cause, CAUSE_NONE);
  armed = 0;
  pthread_mutex_unlock(&mutex);
  return seen;
}

void watchdog_watch(const int32_t *begun, const int32_t *cancel) {
  pthread_mutex_lock(&mutex);
  begun_word = begun;
  cancel_word = begun ? cancel : 0;
  pthread_mutex_unlock(&mutex);
}

void watchdog_memory_limit(int64_t bytes) {
  pthread_mutex_lock(&mutex);
  memory_limit = bytes;
  memory_seen_ns = 0;
  pthread_mutex_unlock(&mutex);
}
