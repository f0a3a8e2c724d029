/* trace.h - a small flight recorder in every process's own region: what it did last, for whoever asks why it died.
 *
 * Used by: front, sched, stages (write), supervisor (reads, of the dead), evenflow stress (reads).   Owns: nothing.
 * Never blocks.
 */
#ifndef EVENFLOW_TRACE_H
#define EVENFLOW_TRACE_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_EVENTS 64u /* power of two */

/* X(identifier, what it reads as) */
#define TRACE_TABLE(X)                                                                                                 \
    X(READY, "ready")                                                                                                  \
    X(BEGIN, "begins step")                                                                                            \
    X(END, "publishes step")                                                                                           \
    X(PASS, "passes over step")                                                                                        \
    X(PLAN, "plans step")                                                                                              \
    X(RESULTS, "takes results of step")                                                                                \
    X(ALONE, "suspects step")

enum trace_what {
#define X(id, text) TRACE_##id,
    TRACE_TABLE(X)
#undef X
        TRACE_WHAT_COUNT
};

struct trace_event_shm {
    uint64_t at_ns; /* monotonic clock */
    uint32_t what;  /* enum trace_what */
    uint32_t step;  /* low half */
};
static_assert(sizeof(struct trace_event_shm) == 16, "shared");

struct trace_shm {
    /* W: the process, release: event k is at k % TRACE_EVENTS   R: supervisor; evenflow stress, acquire */
    _Atomic uint64_t count;
    struct trace_event_shm events[TRACE_EVENTS];
};
static_assert(sizeof(struct trace_shm) == 8 + 16 * TRACE_EVENTS, "shared");

/* When the first of these (1 << TRACE_...) behind a moment was noted, as far as the last events go back; 0: none was. */
uint64_t trace_first_ns(const struct trace_shm *trace, uint32_t whats, uint64_t behind_ns);

void trace_note(struct trace_shm *trace, enum trace_what what, uint64_t step);

/* The last `count` events, oldest first, as "begins step 7 (-0.2 ms), ..."; times before now_ns. */
void trace_print(const struct trace_shm *trace, uint32_t count, uint64_t now_ns, char *text, size_t size);

#endif
