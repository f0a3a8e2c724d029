/* timing.h - how long a microbatch takes on every stage and every link: the stage-time model.
 *
 * Used by: sched and its policies, stages that take described times, the simulator, reports.   Owns: nothing; plain data,
 * part of the plan and of sched's region.   Never blocks.
 *
 * Times are in microseconds. A stage computes one microbatch at a time, a link carries one at a time and overlaps with
 * computing:
 *
 *   stage = base + row * rows + max(weights, token * tokens) + context * (sum over rows of past + chunk)
 *           + pair * (sum over prefill chunks of chunk * (past + chunk / 2))
 *   link  = latency + token * tokens
 *
 * The max is the roofline: below weights / token tokens a microbatch only waits for the weights to be read. A described
 * pipeline ends there. A measured one adds two things:
 *
 *   head  once where some of its tokens have results, and result * results: most chunks of a prompt have none
 *   tail  kernels take TIMING_TILE tokens together, and one, two or three at the end take longer than their share
 */
#ifndef EVENFLOW_TIMING_H
#define EVENFLOW_TIMING_H

#include <assert.h>
#include <stdint.h>

#include "ipc/base.h"

#define TIMING_STAGES_MAX 32
#define TIMING_TILE       4u

struct timing_stage {
    double base_us, row_us, weights_us, token_us, context_us, pair_us;
    double head_us, result_us;       /* of the last stage */
    double tail_us[TIMING_TILE - 1]; /* by tokens at the end, 1.. */
};

struct timing_link {
    double latency_us, token_us;
};

struct timing {
    uint64_t stage_count; /* 0: nothing is known */
    struct timing_stage stages[TIMING_STAGES_MAX];
    struct timing_link links[TIMING_STAGES_MAX]; /* (stage_count - 1) */
    double return_us;                            /* last stage -> scheduler */
    double plan_us;                              /* the scheduler's own time before a plan reaches stage 0 */
};

/* What of a microbatch its time follows from. */
struct shape {
    double rows, tokens; /* whole numbers, but where a policy thinks in shares */
    double context;      /* sum over rows of past + chunk */
    double pairs;        /* sum over chunks of more than one token of chunk * (past + chunk / 2) */
    double results;      /* tokens whose logits are computed */
};

static inline double shape_pairs(uint32_t past, uint32_t tokens)
{
    return tokens > 1 ? (double)tokens * ((double)past + 0.5 * (double)tokens) : 0;
}

/* Adds a row, or takes one away again, that computes `tokens` tokens behind `past` others, with results for the last ones. */
static inline void shape_add(struct shape *shape, uint32_t past, uint32_t tokens, uint32_t results)
{
    shape->rows++;
    shape->tokens += tokens;
    shape->context += (double)past + (double)tokens;
    shape->pairs += shape_pairs(past, tokens);
    shape->results += results;
}

static inline void shape_remove(struct shape *shape, uint32_t past, uint32_t tokens, uint32_t results)
{
    shape->rows--;
    shape->tokens -= tokens;
    shape->context -= (double)past + (double)tokens;
    shape->pairs -= shape_pairs(past, tokens);
    shape->results -= results;
}

/* Where tokens are a share, not a whole number, the tail is the mean one. */
double timing_stage_us(const struct timing_stage *stage, const struct shape *shape);
double timing_link_us(const struct timing_link *link, const struct shape *shape);

/* The longest time that one server, stage or link, is taken for. */
double timing_bottleneck_us(const struct timing *timing, const struct shape *shape);

/* From the plan to the results at the scheduler when nothing is in the way. */
double timing_traversal_us(const struct timing *timing, const struct shape *shape);

/* 0, or -EINVAL with err naming the field: times are finite and not negative, a stage takes some time. */
int timing_validate(const struct timing *timing, struct err *err);

/* What sched has learned of a stage (engine/fit.h), kept for its successor. */
#define FIT_TERMS 10u
struct stage_fit_shm {
    double weight[FIT_TERMS];                /* W: sched   R: its successor */
    double covariance[FIT_TERMS][FIT_TERMS]; /* likewise */
    double speed;                            /* likewise; 0: nothing learned yet */
    double pad;
};
static_assert(sizeof(struct stage_fit_shm) == 896, "shared");

#endif
