#include <criterion/criterion.h>
#include <string.h>

#include "engine/account.h"
#include "ipc/stats.h"
#include "tests/plans.h"

/* Two stages; times in microseconds here. */
static struct plan plan;
static struct arena arena;
static struct account account;

static void setup(void)
{
    plan = plan_for_tests();
    plan.timing = (struct timing){.stage_count = 2, .stages = {{.weights_us = 1000}, {.weights_us = 1000}}};
    arena_in_memory(&arena, &plan);
    *arena_timing(&arena) = plan.timing;
    account_init(&account, &arena);
}

static void teardown(void)
{
    arena_in_memory_free(&arena);
}

TestSuite(account, .init = setup, .fini = teardown);

static struct step_time_shm took(uint64_t step, uint64_t input, uint64_t begin, uint64_t end, uint64_t cpu)
{
    return (struct step_time_shm){.step = step,
                                  .input_ns = input * 1000,
                                  .begin_ns = begin * 1000,
                                  .end_ns = end * 1000,
                                  .cpu_ns = cpu * 1000,
                                  .cost_ns = cpu * 1000};
}

static void step_back(uint64_t number, const struct account_step *step, struct step_time_shm first,
                      struct step_time_shm second)
{
    const struct step_time_shm times[] = {first, second};
    account_step(&account, number, step, times, second.end_ns / 1000);
}

static void step_back_alone(uint64_t number, const struct account_step *step, struct step_time_shm first,
                            struct step_time_shm second)
{
    first.lent_ns = first.cpu_ns;
    first.cost_ns = second.cost_ns = 0;
    second.lent_ns = second.cpu_ns;
    step_back(number, step, first, second);
}

static void expect_times(uint32_t stage, uint64_t busy, uint64_t no_work, uint64_t uneven, uint64_t hand_off,
                         uint64_t waiting_for_cpu)
{
    const uint64_t expected[STAGE_TIME_COUNT] = {busy, no_work, uneven, hand_off, waiting_for_cpu};
    for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++) {
        uint64_t us = account_read(&arena_accounts(&arena)[stage].ns[i]) / 1000;
        cr_expect_eq(us, expected[i], "stage %u, %s: %llu us, expected %llu", stage, stage_time_labels[i],
                     (unsigned long long)us, (unsigned long long)expected[i]);
    }
}

Test(account, every_moment_has_one_cause)
{
    struct account_step step = {.planned_us = 100, .sequences = 8, .results_us = 0};
    /* the first step: nothing is known of the time before; 100 of 500 on stage 0 were stolen */
    step_back(1, &step, took(1, 100, 120, 600, 380), took(1, 600, 650, 1650, 1000));
    expect_times(0, 380, 0, 0, 0, 100);
    expect_times(1, 1000, 0, 0, 0, 0);

    /* results ended at 1650, the next plan came at 1700: from 600 on stage 0 waited for the other one, then for the plan */
    step = (struct account_step){.planned_us = 1700, .sequences = 8, .results_us = 1650};
    step_back(2, &step, took(2, 1700, 1710, 2200, 490), took(2, 2230, 2230, 3230, 900));
    expect_times(0, 870, 0, 1050, 50, 110);
    /* stage 1: 1650..1700 the plan's way, 1700..1710 and 2200..2230 on the way, 490 in stage 0; 100 of 1000 stolen */
    expect_times(1, 1900, 0, 490, 50 + 10 + 30, 100);
}

Test(account, fewer_sequences_than_stages_are_no_work)
{
    struct account_step step = {.planned_us = 100, .sequences = 1};
    step_back(1, &step, took(1, 100, 100, 600, 500), took(1, 600, 600, 1100, 500));
    step = (struct account_step){.planned_us = 1150, .sequences = 1, .results_us = 1100};
    step_back(2, &step, took(2, 1150, 1150, 1650, 500), took(2, 1650, 1650, 2150, 500));
    expect_times(0, 1000, 550, 0, 0, 0);
    expect_times(1, 1000, 550, 0, 0, 0);
}

Test(account, a_stage_that_is_never_idle_waits_for_nothing)
{
    struct account_step step = {.planned_us = 100, .sequences = 8};
    step_back(1, &step, took(1, 100, 100, 600, 500), took(1, 600, 600, 1100, 500));
    step_back(2, &step, took(2, 100, 600, 1100, 500), took(2, 1100, 1100, 1600, 500)); /* its input was there early */
    expect_times(0, 1000, 0, 0, 0, 0);
    expect_times(1, 1000, 0, 0, 0, 0);
}

Test(account, measured_times_that_cannot_be_are_passed_over)
{
    struct account_step step = {.planned_us = 100, .sequences = 8, .predicted_us = {500, 500}};
    step_back(1, &step, took(7, 100, 100, 600, 500),
              took(1, 600, 500, 1100, 500)); /* of another step; begun too early */
    step_back(2, &step, took(2, 100, 700, 600, 500),
              took(2, 600, 600, 1100, UINT32_MAX)); /* ended too early; more than all */
    expect_times(0, 0, 0, 0, 0, 0);
    expect_times(1, 500, 0, 0, 0, 0);
}

Test(account, the_error_is_of_the_prediction_that_was_planned_by)
{
    struct account_step step = {.planned_us = 100, .sequences = 8, .predicted_us = {450, 600}};
    step_back(1, &step, took(1, 100, 100, 600, 500), took(1, 600, 600, 1100, 500));
    step.predicted_us[0] = 500;
    step_back(2, &step, took(2, 100, 600, 1100, 500), took(2, 1100, 1100, 1600, 500));
    const struct stage_account_shm *accounts = arena_accounts(&arena);
    cr_expect_eq(account_read(&accounts[0].predicted_steps), 2);
    cr_expect_float_eq((double)account_read(&accounts[0].error_millionths), 100000, 2);
    cr_expect_float_eq((double)account_read(&accounts[1].error_millionths), 400000, 2);
    cr_expect_float_eq((double)account_read(&accounts[1].recent_error), 200000, 2);
    step_back_alone(3, &step, took(3, 1100, 1100, 1300, 200), took(3, 1300, 1300, 1500, 200));
    cr_expect_eq(account_read(&accounts[0].predicted_steps), 2, "no prediction is about a step that others help with");
}

Test(account, steps_that_did_the_same_say_how_much_the_machine_differs)
{
    struct account_step step = {.planned_us = 100, .sequences = 8};
    const struct stage_account_shm *accounts = arena_accounts(&arena);
    step.shape = (struct shape){.rows = 8, .tokens = 8, .context = 800, .results = 8};
    step_back(1, &step, took(1, 100, 100, 600, 500), took(1, 600, 600, 1100, 500));
    step.shape.context += 8;
    step_back(2, &step, took(2, 100, 600, 1100, 400), took(2, 1100, 1100, 1600, 500));
    cr_expect_eq(account_read(&accounts[0].repeated_steps), 1);
    cr_expect_float_eq((double)account_read(&accounts[0].repeat_millionths), 250000, 2);
    cr_expect_eq(account_read(&accounts[1].repeat_millionths), 0);
    step.shape.context += 100; /* more to look at */
    step_back(3, &step, took(3, 1100, 1100, 1600, 500), took(3, 1600, 1600, 2100, 500));
    step.shape.results--; /* less for the head */
    step_back(4, &step, took(4, 1600, 1600, 2100, 500), took(4, 2100, 2100, 2600, 500));
    step_back_alone(5, &step, took(5, 2100, 2100, 2600, 500), took(5, 2600, 2600, 3100, 500)); /* with others' help */
    step_back(6, &step, took(6, 2600, 2600, 3100, 500), took(6, 3100, 3100, 3600, 500));
    cr_expect_eq(account_read(&accounts[0].repeated_steps), 1);
    step_back(7, &step, took(7, 3100, 3100, 3600, 500), took(7, 3600, 3600, 4100, 500));
    cr_expect_eq(account_read(&accounts[0].repeated_steps), 2);
}

/* Two stages of 1 ms, whatever a step holds, and always two steps of 16 rows in flight: it could not be better. */
Test(account, a_full_pipeline_has_efficiency_one_and_a_half_empty_one_half)
{
    struct account_step step = {.sequences = 32, .decode_rows = 16, .decode_blocks = 16};
    step.shape = (struct shape){.rows = 16, .tokens = 16, .context = 160};
    uint64_t number = 1, now = 1000;
    for (; number <= 600; number++, now += 1000) {
        step.planned_us = now;
        step_back(number, &step, took(number, now, now, now + 1000, 1000),
                  took(number, now + 1000, now + 1000, now + 2000, 1000));
    }
    cr_expect_geq(account.efficiency_permille, 990);
    cr_expect_leq(account.efficiency_permille, 1010);
    cr_expect_geq(account_depth_milli(&account), 1980);
    cr_expect_leq(account_depth_milli(&account), 2020);
    for (uint32_t i = 0; i < 600; i++, number++, now += 1200) { /* steps that are alone are not the pipeline's */
        step.planned_us = now;
        step_back_alone(number, &step, took(number, now, now, now + 600, 600),
                        took(number, now + 600, now + 600, now + 1200, 600));
    }
    cr_expect_leq(account.efficiency_permille, 1010);
    for (uint32_t i = 0; i < 600; i++, number++, now += 2000) { /* one step at a time */
        step.planned_us = now;
        step_back(number, &step, took(number, now, now, now + 1000, 1000),
                  took(number, now + 1000, now + 1000, now + 2000, 1000));
    }
    cr_expect_geq(account.efficiency_permille, 490);
    cr_expect_leq(account.efficiency_permille, 510);
    cr_expect_leq(account_depth_milli(&account), 1200);
}
