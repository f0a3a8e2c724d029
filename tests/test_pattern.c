/* test_pattern.c - how work is spread over slots, and who fits the KV cache: pure functions. */
#include <criterion/criterion.h>
#include <math.h>

#include "engine/forecast.h"
#include "engine/pattern.h"

/* Four equal stages: weights are read in 10 ms, tokens take 0.1 ms, so 100 tokens are free. */
static struct timing four_stages(double link_us)
{
    struct timing timing = {.stage_count = 4};
    for (int i = 0; i < 4; i++)
        timing.stages[i] = (struct timing_stage){.row_us = 20, .weights_us = 10000, .token_us = 100};
    for (int i = 0; i < 3; i++)
        timing.links[i] = (struct timing_link){.latency_us = link_us};
    return timing;
}

static const struct aims saturated = {
    .depth = 8, .tokens_max = 2048, .rows_later = 100, .prompt_share = 4, .prompt_rate = INFINITY, .lone_speed = 1};

Test(pattern, decoding_rows_share_as_many_slots_as_a_traversal_has_room_for)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000};
    struct pattern pattern = pattern_choose(&timing, &load, &saturated);
    cr_expect_eq(pattern.decode_slots, 4);
    cr_expect_float_eq(pattern.cycle_us, 4 * 10200, 1); /* ten rows in each */
    timing = four_stages(10000);                        /* the way is as long as six of them and a bit */
    pattern = pattern_choose(&timing, &load, &saturated);
    cr_expect_eq(pattern.decode_slots, 6);
}

Test(pattern, there_are_no_more_slots_than_rows)
{
    struct timing timing = four_stages(0);
    for (uint32_t i = 0; i < 4; i++)
        timing.stages[i].row_us = 200;
    for (uint32_t rows = 1; rows <= 4; rows++) {
        struct load load = {.rows = rows, .context = 100 * rows};
        cr_expect_eq(pattern_choose(&timing, &load, &saturated).decode_slots, rows);
    }
}

Test(pattern, few_rows_share_one_slot_where_stages_help_one_that_is_alone)
{
    struct timing timing = four_stages(0);
    struct load few = {.rows = 4, .context = 400}, many = {.rows = 400, .context = 40000};
    struct aims aims = saturated;
    cr_expect_gt(pattern_choose(&timing, &few, &aims).decode_slots, 1);
    aims.lone_speed = 3;
    struct pattern pattern = pattern_choose(&timing, &few, &aims);
    cr_expect_eq(pattern.decode_slots, 1);
    cr_expect_float_eq(pattern.cycle_us, 4 * 10080.0 / 3, 1);
    cr_expect_eq(pattern_choose(&timing, &many, &aims).decode_slots, 4); /* enough work for all without helping */
}

Test(pattern, rows_are_not_split_where_that_cannot_pay)
{
    struct timing timing = four_stages(0);
    timing.stage_count = 1;
    struct load load = {.rows = 40, .context = 4000};
    cr_expect_eq(pattern_choose(&timing, &load, &saturated).decode_slots, 1); /* another slot reads the weights again */
}

Test(pattern, little_prompt_takes_what_is_free_while_weights_are_read)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000, .backlog = 500};
    struct aims aims = saturated;
    aims.prompt_rate = 0;
    struct pattern pattern = pattern_choose(&timing, &load, &aims);
    cr_expect_eq(pattern.decode_slots, 4);
    cr_expect_not(pattern.is_apart);
    cr_expect_leq(pattern.cycle_us, 1.21 * 4 * 10200);
    cr_expect_geq(pattern.prompt_slots * pattern.prompt_tokens, 100);
}

Test(pattern, rows_are_not_regrouped_for_the_last_of_the_prompts)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000, .backlog = 500};
    struct aims aims = saturated;
    for (aims.slots_now = 1; aims.slots_now <= 8; aims.slots_now++)
        cr_expect_eq(pattern_choose(&timing, &load, &aims).decode_slots, aims.slots_now);
    load.backlog = 100000;
    uint32_t slots = pattern_choose(&timing, &load, &aims).decode_slots;
    for (aims.slots_now = 1; aims.slots_now <= 8; aims.slots_now++)
        cr_expect_eq(pattern_choose(&timing, &load, &aims).decode_slots, slots);
}

/* Small chunks cost a link its latency more often, large ones come to the last stage late. */
static double through_us(uint64_t backlog, uint32_t tokens)
{
    double chunk_us = 20 + fmax(10000, 100.0 * tokens);
    return 4 * chunk_us + 3 * 300 + ((double)div_up_u64(backlog, tokens) - 1) * chunk_us;
}

Test(pattern, prompts_alone_have_the_chunk_with_which_the_last_is_through_soonest)
{
    struct timing timing = four_stages(300);
    struct aims aims = saturated;
    uint32_t before = 0;
    for (uint64_t backlog = 500; backlog <= 500000; backlog *= 10) {
        struct load load = {.backlog = backlog};
        uint32_t tokens = pattern_choose(&timing, &load, &aims).prompt_tokens;
        double best_us = INFINITY;
        for (uint32_t other = 16; other <= 2048; other *= 2)
            best_us = fmin(best_us, through_us(backlog, other));
        cr_expect_leq(through_us(backlog, tokens), best_us, "%llu tokens: chunks of %u", (unsigned long long)backlog,
                      tokens);
        cr_expect_geq(tokens, before);
        before = tokens;
    }
}

static double prompt_rate(const struct pattern *pattern)
{
    return pattern->prompt_slots * pattern->prompt_tokens / pattern->cycle_us;
}

Test(pattern, prompts_keep_up_with_those_that_come)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000, .backlog = 100000};
    struct aims aims = saturated;
    for (aims.prompt_rate = 0.001; aims.prompt_rate < 0.012; aims.prompt_rate += 0.002) {
        struct pattern pattern = pattern_choose(&timing, &load, &aims);
        cr_expect_geq(prompt_rate(&pattern), fmin(aims.prompt_rate, 0.008));
    }
}

Test(pattern, the_more_wait_the_more_prompt_is_computed_and_the_longer_is_a_cycle)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000, .backlog = 20000};
    struct aims aims = saturated;
    aims.prompt_rate = 0;
    for (uint32_t i = 0; i < 4; i++)
        timing.stages[i].base_us = 3000; /* so that large chunks are cheaper */
    aims.waiting = 1;
    struct pattern few = pattern_choose(&timing, &load, &aims);
    aims.waiting = 1000;
    struct pattern many = pattern_choose(&timing, &load, &aims);
    cr_expect_leq(few.cycle_us, 1.1 * 4 * 13200);
    cr_expect_geq(many.cycle_us, 1.5 * few.cycle_us);
    cr_expect_geq(prompt_rate(&many), 1.1 * prompt_rate(&few));
}

Test(pattern, no_cycle_is_longer_than_the_target_where_that_can_be)
{
    struct timing timing = four_stages(0);
    struct load load = {.rows = 40, .context = 4000, .backlog = 100000};
    struct aims aims = saturated;
    for (aims.cycle_max_us = 45000; aims.cycle_max_us < 400000; aims.cycle_max_us *= 1.5)
        cr_expect_leq(pattern_choose(&timing, &load, &aims).cycle_us, aims.cycle_max_us);
    aims.cycle_max_us = 1000; /* it cannot: then the shortest there is */
    cr_expect_leq(pattern_choose(&timing, &load, &aims).cycle_us, 1.05 * 4 * 10200 + 4 * 20 + 2000);
}

Test(pattern, tiny_budgets_and_loads_have_a_pattern)
{
    struct timing timing = four_stages(100);
    struct aims aims = saturated;
    for (aims.depth = 1; aims.depth <= 64; aims.depth *= 2)
        for (aims.tokens_max = 1; aims.tokens_max <= 64; aims.tokens_max *= 4)
            for (uint32_t rows = 0; rows < 3; rows++)
                for (uint32_t backlog = 0; backlog < 3; backlog++) {
                    struct load load = {.rows = rows, .context = 10 * rows, .backlog = backlog};
                    struct pattern pattern = pattern_choose(&timing, &load, &aims);
                    cr_expect_leq(pattern.decode_slots, aims.depth);
                    cr_expect_leq(pattern.prompt_tokens, aims.tokens_max);
                    cr_expect(backlog == 0 || (pattern.prompt_slots >= 1 && pattern.prompt_tokens >= 1));
                    cr_expect(rows == 0 || pattern.decode_slots >= 1);
                }
}

Test(forecast, sequences_that_end_make_room_for_those_that_come)
{
    struct lengths lengths = {0};
    struct forecast forecast;
    const struct outlook young = {.known = 100, .more = 60}, old = {.known = 150, .generated = 50, .more = 10};
    lengths_estimate(&lengths);
    forecast_begin(&forecast, &lengths, 16, 60);
    forecast_add(&forecast, &old);
    cr_expect(forecast_try(&forecast, &young, 18)); /* 10 + 7 now, 10 + 8 when the old one ends, 10 later */
    forecast_begin(&forecast, &lengths, 16, 60);
    forecast_add(&forecast, &young);
    cr_expect_not(forecast_try(&forecast, &young, 19)); /* both come to ten */
    cr_expect(forecast_try(&forecast, &young, 20));
}

Test(forecast, what_does_not_fit_changes_nothing)
{
    struct lengths lengths = {0};
    struct forecast forecast;
    const struct outlook outlook = {.known = 100, .more = 60};
    lengths_estimate(&lengths);
    forecast_begin(&forecast, &lengths, 16, 60);
    forecast_add(&forecast, &outlook);
    double before = forecast.usage[FORECAST_POINTS - 1];
    cr_expect_not(forecast_try(&forecast, &outlook, 12));
    cr_expect_eq(forecast.usage[FORECAST_POINTS - 1], before);
}

Test(forecast, limits_that_nobody_reaches_are_not_reserved)
{
    struct lengths lengths = {0};
    struct forecast forecast;
    const struct outlook outlook = {.known = 16, .more = 1000};
    for (int i = 0; i < 200; i++)
        lengths_observe(&lengths, 20 + (uint32_t)i % 20, 0);
    lengths_estimate(&lengths);
    forecast_begin(&forecast, &lengths, 16, 1000);
    uint32_t admitted = 0;
    while (admitted < 100 && forecast_try(&forecast, &outlook, 64))
        admitted++;
    cr_expect_geq(admitted, 8); /* of 63 blocks each, if all went to the limit, there would be room for one */
    cr_expect_leq(admitted, 32);
}

Test(lengths, the_mean_follows_what_was_seen_up_to_the_limit)
{
    struct lengths lengths = {0};
    lengths_estimate(&lengths);
    cr_expect_float_eq(lengths_mean(&lengths, 500), 500, 1); /* nothing was seen: it goes to the limit */
    for (int i = 0; i < 300; i++)
        lengths_observe(&lengths, 100, 0);
    lengths_estimate(&lengths);
    cr_expect_float_eq(lengths_mean(&lengths, 500), 100, 15);
    cr_expect_float_eq(lengths_mean(&lengths, 50), 50, 1);
}
