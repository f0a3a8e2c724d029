/* account.h - where the stages' time goes, how deep the pipeline is filled, and how far from the best possible it is.
 *
 * Used by: sched.   Owns: the account; totals lie in sched's region, for front.   Never blocks, reads no clock.
 *
 * Of a step, a stage's time from the end of the step before to the end of this one is split exactly:
 *
 *   the step before ended ─ nothing planned ─ planned ─ on its way here ─ input there ─ computing ─ ended
 *                            no work, uneven            uneven: others    busy: on a processor
 *                            or hand-off                compute it;       waiting for a CPU: the rest
 *                                                       else hand-off
 *
 *   no work     fewer sequences were there than stages: somebody had to be idle
 *   uneven      enough were there, but they were all in other stages, or held back
 *   hand-off    results on their way to the scheduler, plans and activations on theirs to the stage; links
 */
#ifndef EVENFLOW_ACCOUNT_H
#define EVENFLOW_ACCOUNT_H

#include "engine/bound.h"
#include "ipc/arena.h"

/* What was known of a step when it was planned, and what it does. */
struct account_step {
    struct shape shape;
    uint64_t planned_us;
    uint64_t results_us; /* when the last results before it had ended; 0: there were none */
    uint32_t sequences;  /* that waited or ran */
    uint32_t decode_rows;
    uint64_t decode_blocks;                 /* held by those rows */
    double predicted_us[TIMING_STAGES_MAX]; /* by stage, as the plan went by it */
};

struct account {
    const struct arena *arena;
    uint64_t ended_ns[TIMING_STAGES_MAX]; /* of each stage's last step; 0: there was none */
    double recent_ns[TIMING_STAGES_MAX][STAGE_TIME_COUNT];
    double recent_error[TIMING_STAGES_MAX];
    struct shape shape;                  /* of the last step */
    uint64_t cost_ns[TIMING_STAGES_MAX]; /* of it; 0: nobody knows */
    uint64_t returned_us;                /* the last step */
    double recent_loaded_us, recent_flight_us;

    /* since the last bound */
    struct bound_load load;
    uint32_t steps;
    double loaded_us, request_us; /* time with steps in flight; times the sequences there */
    uint64_t step_us, all_loaded_us, all_bound_us, efficiency_permille; /* totals, for counters */
};

void account_init(struct account *account, const struct arena *arena);

/* A step is back: what was known of it, and what each stage measured. Entries that are of another step, or cannot be, are
 * passed over. */
void account_step(struct account *account, uint64_t number, const struct account_step *step,
                  const struct step_time_shm *times, uint64_t now_us);

/* Lately: steps in flight on average, in thousandths. */
uint64_t account_depth_milli(const struct account *account);

/* Times that a stage can have measured, in order and on this step. */
bool account_is_sound(const struct step_time_shm *time, uint64_t number);

#endif
