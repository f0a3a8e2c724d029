#include <criterion/criterion.h>

#include "engine/hitrate.h"

/* vLLM's test_metrics (tests/v1/core/test_kv_cache_utils.py). */
Test(hitrate, vllm_test_metrics)
{
    static struct hitrate rate;
    hitrate_init(&rate, 5);
    cr_assert_eq(hitrate_permille(&rate), 0);
    hitrate_observe(&rate, 1, 20, 9);
    cr_assert_eq(hitrate_permille(&rate), 450);
    hitrate_observe(&rate, 4, 80, 16);
    cr_assert_eq(hitrate_permille(&rate), 250);
    hitrate_observe(&rate, 1, 10, 2);
    cr_assert(rate.requests == 5 && rate.queried_tokens == 90 && rate.hit_tokens == 18);
    cr_assert_eq(hitrate_permille(&rate), 200);
    hitrate_init(&rate, 5);
    cr_assert_eq(hitrate_permille(&rate), 0);
}

Test(hitrate, keeps_the_window_for_ever)
{
    static struct hitrate rate;
    hitrate_init(&rate, HITRATE_WINDOW_MAX);
    for (uint32_t i = 0; i < 10000; i++)
        hitrate_observe(&rate, 1, 10, i >= 9000 ? 5 : 0);
    cr_assert(rate.requests == 1000 && rate.count == 1000);
    cr_assert_eq(hitrate_permille(&rate), 500);
    hitrate_observe(&rate, 5000, 100, 1); /* more than the window at once: it alone is kept */
    cr_assert(rate.count == 1 && rate.hit_tokens == 1);
}
