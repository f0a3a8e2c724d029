/* test_watch.c - who hangs, and who only waits. */
#include <criterion/criterion.h>
#include <unistd.h>

#include "engine/watch.h"

#define MS 1000000ull

static struct watch watch;
static struct watch_look look;

static void begin(char state)
{
    watch_begin(&watch);
    look = (struct watch_look){.now_ns = 1000 * MS, .has_work = true, .progress = 5, .state = state};
    cr_assert_eq(watch_judge(&watch, &look), WATCH_FINE);
}

/* Looks every 100 ms, in each of which so much processor time is used. The verdict, and when it fell. */
static enum watch_verdict look_on(uint64_t for_ms, uint64_t cpu_ms_per_tick, uint64_t *after_ms)
{
    uint64_t start_ns = look.now_ns;
    enum watch_verdict verdict = WATCH_FINE;
    while (verdict == WATCH_FINE && look.now_ns - start_ns < for_ms * MS) {
        look.now_ns += 100 * MS;
        look.cpu_ns += cpu_ms_per_tick * MS;
        verdict = watch_judge(&watch, &look);
    }
    *after_ms = (look.now_ns - start_ns) / MS;
    return verdict;
}

Test(watch, a_stopped_process_hangs)
{
    uint64_t after_ms;
    begin('T');
    cr_expect_eq(look_on(10000, 0, &after_ms), WATCH_STOPPED);
    cr_expect_leq(after_ms, 500);
}

Test(watch, a_process_that_sleeps_over_its_work_hangs)
{
    uint64_t after_ms;
    begin('S');
    cr_expect_eq(look_on(10000, 0, &after_ms), WATCH_SLEEPS);
    cr_expect_leq(after_ms, 2200);
    begin('D');
    cr_expect_eq(look_on(10000, 0, &after_ms), WATCH_SLEEPS);
}

Test(watch, a_process_that_ran_and_then_sleeps_over_its_work_hangs)
{
    uint64_t after_ms;
    begin('S');
    cr_assert_eq(look_on(1000, 10, &after_ms), WATCH_FINE);
    cr_expect_eq(look_on(10000, 0, &after_ms), WATCH_SLEEPS);
    cr_expect_leq(after_ms, 2200);
    begin('R');
    look.state = 'D'; /* it may wait for a disk */
    look.cpu_ns += MS;
    cr_expect_eq(look_on(60000, 0, &after_ms), WATCH_FINE);
}

Test(watch, a_process_that_runs_without_an_end_hangs)
{
    uint64_t after_ms;
    begin('R');
    cr_expect_eq(look_on(10000, 100, &after_ms), WATCH_SPINS);
    cr_expect_leq(after_ms, 2200);
}

Test(watch, long_work_has_long_time)
{
    uint64_t after_ms;
    begin('R');
    look.predicted_us = 1000000;
    cr_expect_eq(look_on(21000, 100, &after_ms), WATCH_FINE);
    cr_expect_eq(look_on(2000, 100, &after_ms), WATCH_SPINS);
}

Test(watch, a_starved_process_is_left_alone)
{
    uint64_t after_ms;
    begin('R');
    cr_expect_eq(look_on(3600000, 0, &after_ms), WATCH_FINE);
    begin('R'); /* a hundredth of a processor: an hour for 36 s */
    cr_expect_eq(look_on(100000, 1, &after_ms), WATCH_FINE);
}

Test(watch, a_paused_machine_is_left_alone)
{
    begin('S');
    for (int i = 0; i < 100; i++) { /* each time the supervisor itself was away for a second */
        look.now_ns += 1000 * MS;
        cr_expect_eq(watch_judge(&watch, &look), WATCH_FINE);
    }
}

Test(watch, who_is_found_stopped_behind_a_late_look_is_looked_at_again)
{
    /* the supervisor goes on first after a pause that stopped everybody, one by one */
    for (uint64_t pause_ms = 100; pause_ms <= 500; pause_ms += 50) {
        begin('S');
        look.now_ns += 100 * MS;
        look.state = 'T';
        cr_expect_eq(watch_judge(&watch, &look), WATCH_FINE);
        look.now_ns += pause_ms * MS;
        cr_expect_eq(watch_judge(&watch, &look), WATCH_FINE, "behind a pause of %u ms", (unsigned)pause_ms);
    }
}

Test(watch, progress_and_idleness_begin_anew)
{
    uint64_t after_ms;
    begin('S');
    cr_expect_eq(look_on(1900, 0, &after_ms), WATCH_FINE);
    look.progress++;
    cr_expect_eq(look_on(1900, 0, &after_ms), WATCH_FINE);
    look.has_work = false;
    cr_expect_eq(look_on(60000, 0, &after_ms), WATCH_FINE);
    look.has_work = true;
    cr_expect_eq(look_on(1900, 0, &after_ms), WATCH_FINE);
}

Test(watch, state_and_processor_time_are_read)
{
    struct watch_look own = {0};
    cr_assert(watch_read(getpid(), &own));
    cr_expect_eq(own.state, 'R');
    cr_expect_not(watch_read(0x7ffffff0, &own));
    cr_expect_eq(own.state, 0);
}
