/* sim.h - the engine's scheduler in plain memory, driven by a scenario: in engine steps, or on a pipeline's clock.
 *
 * Used by: evenflow sim, evenflow bench-policies, tests.   Owns: its arena and scheduler, from sim_open() to sim_close().
 */
#ifndef EVENFLOW_SIM_H
#define EVENFLOW_SIM_H

#include <stdio.h>

#include "engine/policy.h"
#include "engine/sched.h"
#include "tools/scenario.h"

struct batch {
    uint64_t seq, step; /* step 0: empty */
    double returned_us; /* on a pipeline's clock */
};

/* A microbatch's way through the pipeline, for the picture. */
struct sim_span {
    uint64_t step;
    uint32_t rows, tokens, prefill_tokens;
    double planned_us, returned_us;
    double start_us[TIMING_STAGES_MAX], end_us[TIMING_STAGES_MAX];           /* on each stage */
    double link_start_us[TIMING_STAGES_MAX], link_end_us[TIMING_STAGES_MAX]; /* behind each stage but the last */
};

struct sim {
    struct plan plan;
    struct arena arena;
    struct sched sched;
    struct scenario scenario;
    uint32_t unfinished;
    struct batch *queue; /* (window), oldest first */
    uint32_t queued;
    uint64_t step, seq, steps_run, recomputed_tokens;
    struct token_shm *results;
    uint32_t *before;     /* (max_num_seqs): scratch */
    uint8_t *was_running; /* (request_count): before the last plan */
    FILE *out;            /* step lines; NULL: none */
    json_t *line;
    json_t *preempted; /* ids, of plans that gave no step: they belong to the next one's line */

    /* on a pipeline's clock */
    double now_us;
    struct sim_span *spans; /* (span_count), when spans are kept */
    size_t span_count, span_room;
    bool keeps_spans;
    double *itl_us; /* (itl_count): time between two tokens of a request */
    size_t itl_count, itl_room;
    double makespan_us, busy_us[TIMING_STAGES_MAX], window_area_us;
    double *slot_us; /* (steps_run): bottleneck time of each microbatch */
    size_t slot_room;
};

/* Reads the scenario and takes memory. timing: the pipeline, or NULL for time in steps. 0, or -EINVAL with err. */
int sim_open(struct sim *sim, json_t *root, const struct policy *policy, const struct timing *timing, struct err *err);
void sim_close(struct sim *sim);

/* vLLM's step_with_batch_queue(): each engine step schedules once and, when the queue of batches is full or nothing could
 * be scheduled, processes the oldest batch, empty ones included. */
void sim_run_ticks(struct sim *sim);

/* The engine's own driver on the clock of the pipeline: plans whenever fewer steps than the window are in flight and there
 * is something to plan; results are taken in order when they return. */
void sim_run_clock(struct sim *sim);

/* The summary of a run on the clock, a new object. */
json_t *sim_summary(const struct sim *sim);

/* Share of the requests whose first token came within so long and the others so often: 0 to 1. */
double sim_goodput(const struct sim *sim, double ttft_ms, double tpot_ms);

/* ---- for the drivers ---- */

void sim_accept(struct sim *sim, uint32_t index);
void sim_abort(struct sim *sim, uint32_t index, const char *key);
/* Before and after a plan: the rows go into the line of the step, if lines are written. */
void sim_note_running(struct sim *sim);
void sim_describe_rows(struct sim *sim, const struct step_shm *record);
/* The last plan gave no step, but may have preempted. */
void sim_note_preempted(struct sim *sim);
/* Results of a step to the scheduler; what followed from them into the line. */
void sim_return_step(struct sim *sim, uint64_t step);
void sim_write_line(struct sim *sim);
void sim_write_end(struct sim *sim);

#endif
