/* sched_process.h - the scheduler as a process: drains what front and the last stage say, plans while there is room in the
 * window, tells front what is new, sleeps.
 *
 * Used by: main_sched.c; tests that run it beside others in one process.   Owns: its core and its recording; the arena is the
 * caller's.   Blocks: sched_process_wait() only.
 */
#ifndef EVENFLOW_SCHED_PROCESS_H
#define EVENFLOW_SCHED_PROCESS_H

#include "engine/record.h"
#include "engine/sched.h"
#include "ipc/arena.h"
#include "ipc/bell.h"

struct sched_process {
    const struct arena *arena;
    struct sched core;
    struct record record;
    struct process_shm *shm;
    struct ring_consumer requests, results;
    struct ring_producer hints;
    struct bell bell;
    struct bell_pull front;
    struct bell_pull stages[STAGES_MAX]; /* those that begin with a step when there is a record of it */
    uint32_t stage_count;
    struct token_shm *tokens; /* (step_results_max): results at hand, copied before they are looked at */
};

/* Takes all memory, and what a predecessor has left. 0, or -errno with err. */
int sched_process_open(struct sched_process *p, const struct arena *arena, struct err *err);

/* One turn; the number of things done. */
uint32_t sched_process_do_work(struct sched_process *p);

/* Looks again for the plan's spin time, then sleeps until its bell is rung. */
void sched_process_wait(struct sched_process *p);

/* Before it leaves. False: the recording is not whole. */
bool sched_process_end(struct sched_process *p);

#endif
