#include "ipc/trace.h"

#include <stdio.h>

#include "ipc/base.h"
#include "ipc/clock.h"

static const char *const texts[TRACE_WHAT_COUNT] = {
#define X(id, text) [TRACE_##id] = text,
    TRACE_TABLE(X)
#undef X
};

void trace_note(struct trace_shm *trace, enum trace_what what, uint64_t step)
{
    /* relaxed, then release: pairs with the acquire in trace_first_ns(): the event before its count */
    uint64_t count = atomic_load_explicit(&trace->count, memory_order_relaxed);
    trace->events[count % TRACE_EVENTS] =
        (struct trace_event_shm){.at_ns = clock_ns(), .what = what, .step = (uint32_t)step};
    atomic_store_explicit(&trace->count, count + 1, memory_order_release);
}

uint64_t trace_first_ns(const struct trace_shm *trace, uint32_t whats, uint64_t behind_ns)
{
    uint64_t all = atomic_load_explicit(&trace->count, memory_order_acquire);
    uint64_t first = all >= TRACE_EVENTS ? all - TRACE_EVENTS + 1 : 0; /* the one before may be being written over */
    for (uint64_t k = first; k < all; k++) {
        const struct trace_event_shm *event = &trace->events[k % TRACE_EVENTS];
        if (event->what < TRACE_WHAT_COUNT && (whats >> event->what & 1) && event->at_ns > behind_ns)
            return event->at_ns;
    }
    return 0;
}

void trace_print(const struct trace_shm *trace, uint32_t count, uint64_t now_ns, char *text, size_t size)
{
    /* relaxed: its writer is dead */
    uint64_t all = atomic_load_explicit(&trace->count, memory_order_relaxed);
    size_t used = 0;
    text[0] = '\0';
    for (uint64_t k = all > count ? all - count : 0; k < all && used < size; k++) {
        const struct trace_event_shm *event = &trace->events[k % TRACE_EVENTS];
        if (event->what >= TRACE_WHAT_COUNT)
            continue;
        double ago_ms = event->at_ns <= now_ns ? (double)(now_ns - event->at_ns) / 1e6 : 0;
        used += (size_t)snprintf(text + used, size - used, "%s%s", used > 0 ? ", " : "", texts[event->what]);
        if (used < size && event->what != TRACE_READY)
            used += (size_t)snprintf(text + used, size - used, " %u", event->step);
        if (used < size)
            used += (size_t)snprintf(text + used, size - used, " (-%.1f ms)", ago_ms);
    }
}
