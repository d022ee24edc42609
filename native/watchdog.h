/* One thread that interrupts the statement being run: when its time is over, when its call is cancelled through a shared page,
** or while the process holds too much memory. At most one statement runs at a time, so there is one slot to arm. */
#ifndef PERSISTO_WATCHDOG_H
#define PERSISTO_WATCHDOG_H
#include "sqlite3ext.h"
#include <stdatomic.h>
#include <stdint.h>

typedef enum Cause { CAUSE_NONE, CAUSE_DEADLINE, CAUSE_CANCEL, CAUSE_MEMORY } Cause;

/* Nanoseconds of the monotonic clock. */
int64_t now_ns(void);

/* Begins to watch a statement; 0 or less: no deadline. Until watchdog_disarm it is interrupted again and again once there is a
** cause. `soft_ms`: when watchdog_soft becomes true, which interrupts nothing. False when the thread could not be started. */
int watchdog_arm(sqlite3 *db, double deadline_ms, double soft_ms);
extern atomic_int watchdog_soft;
/* A Cause while what is armed is being interrupted: for work that SQLite does not see. */
extern atomic_int watchdog_cause;
/* Ends it. No interrupt comes after this returns. Says what had come. */
Cause watchdog_disarm(void);

/* Words of a page shared between processes: cancelled when *cancel equals *begun and is not 0. NULLs end it. */
void watchdog_watch(const int32_t *begun, const int32_t *cancel);
/* Bound of the process's resident memory; 0: none. */
void watchdog_memory_limit(int64_t bytes);

#endif
