/* bell.h - one doorbell per process: how a process sleeps until somebody has put something where it looks.
 *
 * Used by: every process.   Owns: nothing; the eventfd belongs to the supervisor.   bell_wait() blocks, the rest never.
 *
 * The doorbell is an eventfd; the word `sleeping` lies in the sleeper's own region (one writer per word).
 *
 *   sleeper: bell_announce()  sleeping = 1; full fence   |  waker: commit its data (release)
 *            look again at everything                    |         bell_ring(): full fence;
 *            something there: bell_retract()             |           if (sleeping) write(eventfd)
 *            else: bell_wait(), or poll the descriptor   |
 *
 * The two full fences make it impossible that the sleeper misses the data and the waker misses the word. A waker pays
 * a system call only when the other side said that it sleeps. Rings in plenty are harmless: a bell says "look", no more.
 */
#ifndef EVENFLOW_BELL_H
#define EVENFLOW_BELL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct bell {
    int fd;
    _Atomic uint32_t *sleeping; /* W: the process that owns the bell */
};

/* The other side's view. */
struct bell_pull {
    int fd;
    const _Atomic uint32_t *sleeping;
};

void bell_announce(struct bell *bell);
void bell_retract(struct bell *bell);

/* Sleeps until the bell has been rung since the last wait; then retracts. */
void bell_wait(struct bell *bell);

/* Sleeps until the moment (clock_ns()) has come or the bell is rung, which then counts as heard: true. Without
 * bell_announce() only bell_ring_always() rings it. */
bool bell_wait_until(struct bell *bell, uint64_t moment_ns);

/* Takes what has been rung so far without sleeping; for a loop that polls bell.fd by other means. */
void bell_drain(struct bell *bell);

/* After committing data for the sleeper. */
void bell_ring(const struct bell_pull *pull);

/* Rings whether it sleeps or not: commands, new lives. */
void bell_ring_always(const struct bell_pull *pull);

#endif
