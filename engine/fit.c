#include "engine/fit.h"

#include <math.h>
#include <string.h>

/* Sizes found on recorded steps of a loaded engine; tests/test_fit.c says what they must bring about. */
#define FORGETTING     0.9975      /* of an older step's weight, by every newer one */
#define VARIANCE       1.0         /* of a weight at the start; what the covariance comes back to at most */
#define ERROR_MAX      0.4         /* of the predicted time */
#define SPEED_GAIN     0.4         /* of an error that is put down to the speed of the moment */
#define SPEED_RETURN   (1.0 / 512) /* of a lasting change of speed that passes over to the weights, a step */
#define SPEED_MAX      16.0
#define PRODUCTS_LEAST 0.02 /* products always take some time */

/* A usual step. If one term alone made up its time, its weight would be of the order of 1, whichever term it is. */
#define USUAL_ROWS    16.0
#define USUAL_CONTEXT 8192.0
#define USUAL_PAIRS   65536.0

enum term { TERM_BASE, TERM_ROWS, TERM_PRODUCTS, TERM_CONTEXT, TERM_PAIRS, TERM_HEAD, TERM_RESULTS, TERM_TAIL };
static_assert(TERM_TAIL + TIMING_TILE - 1 == FIT_TERMS, "terms");

/* Microseconds for a weight of 1. */
struct units {
    double base, row, context, pair; /* products have the table's own; tails that of rows */
    double head, result;             /* 0 where the table has no head */
};

static struct units units_of(const struct timing_stage *start)
{
    const struct shape usual = {
        .rows = USUAL_ROWS, .tokens = USUAL_ROWS, .context = USUAL_CONTEXT, .results = USUAL_ROWS};
    double time_us = timing_stage_us(start, &usual);
    bool has_head = start->head_us + start->result_us > 0;
    return (struct units){time_us,
                          time_us / USUAL_ROWS,
                          time_us / USUAL_CONTEXT,
                          time_us / USUAL_PAIRS,
                          has_head ? time_us : 0,
                          has_head ? time_us / USUAL_ROWS : 0};
}

void fit_init(struct stage_fit_shm *fit)
{
    *fit = (struct stage_fit_shm){.speed = 1};
    for (uint32_t i = 0; i < FIT_TERMS; i++)
        fit->covariance[i][i] = VARIANCE;
}

/* Weights are kept as changes to the table, so that all zero is the table. */
struct timing_stage fit_timing(const struct stage_fit_shm *fit, const struct timing_stage *start)
{
    const struct units units = units_of(start);
    const double *weight = fit->weight;
    double products = fit->speed * (1 + weight[TERM_PRODUCTS]);
    struct timing_stage timing = {
        .base_us = fit->speed * (start->base_us + weight[TERM_BASE] * units.base),
        .row_us = fit->speed * (start->row_us + weight[TERM_ROWS] * units.row),
        .weights_us = products * start->weights_us,
        .token_us = products * start->token_us,
        .context_us = fit->speed * (start->context_us + weight[TERM_CONTEXT] * units.context),
        .pair_us = fit->speed * (start->pair_us + weight[TERM_PAIRS] * units.pair),
        .head_us = fit->speed * (start->head_us + weight[TERM_HEAD] * units.head),
        .result_us = fit->speed * (start->result_us + weight[TERM_RESULTS] * units.result),
    };
    for (uint32_t i = 0; i < TIMING_TILE - 1; i++)
        timing.tail_us[i] = fit->speed * (start->tail_us[i] + weight[TERM_TAIL + i] * units.row);
    return timing;
}

static double at_least(double value, double least)
{
    return value > least ? value : least;
}

static void keep_positive(double *weight, const struct timing_stage *start, const struct units *units)
{
    weight[TERM_BASE] = at_least(weight[TERM_BASE], -start->base_us / units->base);
    weight[TERM_ROWS] = at_least(weight[TERM_ROWS], -start->row_us / units->row);
    weight[TERM_PRODUCTS] = at_least(weight[TERM_PRODUCTS], PRODUCTS_LEAST - 1);
    weight[TERM_CONTEXT] = at_least(weight[TERM_CONTEXT], -start->context_us / units->context);
    weight[TERM_PAIRS] = at_least(weight[TERM_PAIRS], -start->pair_us / units->pair);
    if (units->head > 0) {
        weight[TERM_HEAD] = at_least(weight[TERM_HEAD], -start->head_us / units->head);
        weight[TERM_RESULTS] = at_least(weight[TERM_RESULTS], -start->result_us / units->result);
    }
    for (uint32_t i = 0; i < TIMING_TILE - 1; i++)
        weight[TERM_TAIL + i] = at_least(weight[TERM_TAIL + i], -start->tail_us[i] / units->row);
}

/* One step of least squares: what each weight contributes to the relative time, and by how much all of it was wrong. */
static void learn(struct stage_fit_shm *fit, const double *contribution, double error)
{
    double spread[FIT_TERMS], scale = FORGETTING, trace = 0;
    for (uint32_t i = 0; i < FIT_TERMS; i++) {
        spread[i] = 0;
        for (uint32_t j = 0; j < FIT_TERMS; j++)
            spread[i] += fit->covariance[i][j] * contribution[j];
        scale += contribution[i] * spread[i];
    }
    for (uint32_t i = 0; i < FIT_TERMS; i++) {
        fit->weight[i] += spread[i] / scale * error;
        for (uint32_t j = 0; j < FIT_TERMS; j++)
            fit->covariance[i][j] = (fit->covariance[i][j] - spread[i] * spread[j] / scale) / FORGETTING;
        trace += fit->covariance[i][i];
    }
    for (uint32_t i = 0; i < FIT_TERMS && trace > FIT_TERMS * VARIANCE; i++)
        for (uint32_t j = 0; j < FIT_TERMS; j++)
            fit->covariance[i][j] *= FIT_TERMS * VARIANCE / trace;
}

void fit_observe(struct stage_fit_shm *fit, const struct timing_stage *start, const struct shape *shape,
                 double measured_us)
{
    const struct units units = units_of(start);
    const struct timing_stage now = fit_timing(fit, start);
    double predicted_us = timing_stage_us(&now, shape);
    if (!isfinite(measured_us) || measured_us <= 0 || predicted_us <= 0)
        return;
    double error = fmin(fmax((measured_us - predicted_us) / predicted_us, -ERROR_MAX), ERROR_MAX);
    double share = fit->speed / predicted_us; /* of the predicted time, for a microsecond at full speed */
    double contribution[FIT_TERMS] = {
        [TERM_BASE] = share * units.base,
        [TERM_ROWS] = share * units.row * shape->rows,
        [TERM_PRODUCTS] = share * fmax(start->weights_us, start->token_us * shape->tokens),
        [TERM_CONTEXT] = share * units.context * shape->context,
        [TERM_PAIRS] = share * units.pair * shape->pairs,
        [TERM_HEAD] = shape->results > 0 ? share * units.head : 0,
        [TERM_RESULTS] = share * units.result * shape->results,
    };
    uint32_t rest = (uint32_t)((uint64_t)shape->tokens % TIMING_TILE);
    if (rest > 0)
        contribution[TERM_TAIL + rest - 1] = share * units.row;
    learn(fit, contribution, error);
    keep_positive(fit->weight, start, &units);
    fit->speed += SPEED_GAIN * fit->speed * error + SPEED_RETURN * (1 - fit->speed);
    fit->speed = fmin(fmax(fit->speed, 1 / SPEED_MAX), SPEED_MAX);
}
