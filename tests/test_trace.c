#include <criterion/criterion.h>

#include "ipc/trace.h"

static struct trace_shm trace;

static void note_at(uint64_t at_ns, enum trace_what what)
{
    trace_note(&trace, what, 0);
    trace.events[(trace.count - 1) % TRACE_EVENTS].at_ns = at_ns;
}

Test(trace, says_when_the_first_of_some_events_behind_a_moment_was)
{
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END, 0), 0);
    note_at(10, TRACE_END);
    note_at(20, TRACE_READY);
    note_at(30, TRACE_BEGIN);
    note_at(40, TRACE_END);
    note_at(50, TRACE_END);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_READY, 5), 20);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END, 20), 40);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END | 1u << TRACE_BEGIN, 20), 30);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END, 50), 0);
}

Test(trace, an_event_that_may_be_in_the_writers_hands_is_not_looked_at)
{
    for (uint64_t at_ns = 1; at_ns <= TRACE_EVENTS; at_ns++)
        note_at(at_ns, TRACE_END);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END, 0), 2);
    note_at(TRACE_EVENTS + 1, TRACE_END);
    cr_expect_eq(trace_first_ns(&trace, 1u << TRACE_END, 0), 3);
}
