#include <criterion/criterion.h>
#include <math.h>

#include "engine/fit.h"

/* What the stage really takes, and a start-up table that is wrong by up to a half in every term. */
static const struct timing_stage truth = {.base_us = 300,
                                          .row_us = 120,
                                          .weights_us = 4000,
                                          .token_us = 250,
                                          .context_us = 0.8,
                                          .pair_us = 0.01,
                                          .tail_us = {150, 300, 200}};
static const struct timing_stage start = {
    .base_us = 200, .row_us = 60, .weights_us = 6000, .token_us = 375, .context_us = 0.4, .pair_us = 0.02};

static uint64_t state;

static double random_share(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull; /* Knuth's MMIX */
    return (double)(state >> 11) / 9007199254740992.0;
}

static uint32_t between(uint32_t low, uint32_t high)
{
    return low + (uint32_t)(random_share() * (high - low + 1));
}

/* Decoding rows of some context, now and then a chunk of a prompt beside them, or nothing but one. */
static struct shape some_step(uint32_t rows_max)
{
    struct shape shape = {0};
    if (between(0, 3) == 0) {
        shape_add(&shape, between(0, 500), between(2, 64), 0);
        return shape;
    }
    for (uint32_t row = between(1, rows_max); row > 0; row--)
        shape_add(&shape, between(50, 900), 1, 1);
    if (between(0, 7) == 0)
        shape_add(&shape, between(0, 500), between(16, 256), between(0, 1));
    return shape;
}

/* Runs steps; the mean relative error of predictions made before each was learned. */
static double run_stage(struct stage_fit_shm *fit, const struct timing_stage *real,
                        const struct timing_stage *table_at_start, uint32_t steps, double slowness, double noise)
{
    double sum = 0;
    for (uint32_t i = 0; i < steps; i++) {
        struct shape shape = some_step(32);
        const struct timing_stage table = fit_timing(fit, table_at_start);
        double measured = slowness * timing_stage_us(real, &shape) * (1 + noise * (random_share() - 0.5));
        sum += fabs(timing_stage_us(&table, &shape) - measured) / measured;
        fit_observe(fit, table_at_start, &shape, measured);
    }
    return sum / steps;
}

static double run(struct stage_fit_shm *fit, uint32_t steps, double slowness, double noise)
{
    return run_stage(fit, &truth, &start, steps, slowness, noise);
}

Test(fit, nothing_learned_is_the_table)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    const struct timing_stage table = fit_timing(&fit, &start);
    cr_expect_arr_eq(&table, &start, sizeof(start));
}

Test(fit, a_table_that_is_half_wrong_is_right_within_a_few_hundred_steps)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    cr_expect_gt(run(&fit, 20, 1, 0), 0.05);
    run(&fit, 400, 1, 0);
    cr_expect_lt(run(&fit, 200, 1, 0), 0.02);
}

/* As of a small model's last stage, where logits cost as much as several layers. */
static struct timing_stage with_head(struct timing_stage stage, double wrong_by)
{
    stage.head_us = wrong_by * 2000;
    stage.result_us = wrong_by * 700;
    return stage;
}

Test(fit, a_step_without_results_costs_no_head)
{
    const struct timing_stage last = with_head(truth, 1);
    struct shape chunk = {0}, end = {0};
    shape_add(&chunk, 200, 16, 0);
    shape_add(&end, 200, 16, 1);
    cr_expect_eq(timing_stage_us(&last, &chunk), timing_stage_us(&truth, &chunk));
    cr_expect_float_eq(timing_stage_us(&last, &end) - timing_stage_us(&last, &chunk), 2700, 1e-6);
    shape_remove(&end, 200, 16, 1);
    cr_expect_eq(end.results, 0);
}

Test(fit, a_head_that_is_half_wrong_is_told_apart_from_rows_and_tokens)
{
    const struct timing_stage real = with_head(truth, 1), table = with_head(start, 0.5);
    struct stage_fit_shm fit;
    fit_init(&fit);
    run_stage(&fit, &real, &table, 600, 1, 0);
    cr_expect_lt(run_stage(&fit, &real, &table, 200, 1, 0), 0.02);
    const struct timing_stage learned = fit_timing(&fit, &table);
    cr_expect_float_eq(learned.head_us, 2000, 300);
    cr_expect_float_eq(learned.result_us + learned.row_us, 820, 120);
}

Test(fit, a_stage_without_a_head_learns_none)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    run(&fit, 600, 1.5, 0.1);
    const struct timing_stage learned = fit_timing(&fit, &start);
    cr_expect_eq(learned.head_us + learned.result_us, 0);
}

Test(fit, noise_of_a_tenth_leaves_an_error_below_four_percent)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    run(&fit, 500, 1, 0.1);
    cr_expect_lt(run(&fit, 500, 1, 0.1), 0.04); /* the noise alone is 2.5 % on average */
}

Test(fit, a_machine_that_slows_down_is_followed_in_ten_steps)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    run(&fit, 500, 1, 0.02);
    run(&fit, 10, 1.8, 0.02);
    cr_expect_lt(run(&fit, 100, 1.8, 0.02), 0.04);
    run(&fit, 10, 1, 0.02);
    cr_expect_lt(run(&fit, 100, 1, 0.02), 0.04);
}

Test(fit, thousands_of_equal_steps_do_not_spoil_the_rest)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    run(&fit, 500, 1, 0.05);
    struct shape one = {0};
    shape_add(&one, 100, 1, 1);
    for (uint32_t i = 0; i < 50000; i++)
        fit_observe(&fit, &start, &one, timing_stage_us(&truth, &one) * (1 + 0.05 * (random_share() - 0.5)));
    cr_expect_lt(run(&fit, 20, 1, 0.05), 0.12);
    cr_expect_lt(run(&fit, 200, 1, 0.05), 0.03);
}

Test(fit, no_time_is_ever_negative)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    for (uint32_t i = 0; i < 5000; i++) {
        struct shape shape = some_step(64);
        fit_observe(&fit, &start, &shape, random_share() * 50000); /* anything at all */
        const struct timing_stage t = fit_timing(&fit, &start);
        cr_assert_geq(fmin(fmin(t.base_us, t.row_us), fmin(t.context_us, t.pair_us)), 0);
        cr_assert_gt(t.weights_us, 0);
        cr_assert_gt(t.token_us, 0);
        cr_assert(isfinite(timing_stage_us(&t, &shape)));
    }
}

Test(fit, times_that_cannot_be_teach_nothing)
{
    struct stage_fit_shm fit, before;
    struct shape shape = some_step(8);
    fit_init(&fit);
    before = fit;
    fit_observe(&fit, &start, &shape, 0);
    fit_observe(&fit, &start, &shape, NAN);
    fit_observe(&fit, &start, &shape, INFINITY);
    cr_expect_arr_eq(&fit, &before, sizeof(fit));
}

Test(fit, one_step_of_an_hour_changes_little)
{
    struct stage_fit_shm fit;
    fit_init(&fit);
    run(&fit, 500, 1, 0);
    struct shape shape = some_step(8);
    fit_observe(&fit, &start, &shape, 3.6e9);
    cr_expect_lt(run(&fit, 20, 1, 0), 0.1);
}
