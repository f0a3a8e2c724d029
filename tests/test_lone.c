/* test_lone.c - a stage that alone has something to do computes with the cores of all: the same bits, also when work for the
 * others comes and goes and when stages die. On the real model, through real processes. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine.h"

#define REQUESTS 10u
#define TOKENS   16u

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];

/* Prompts of about 10 to 200 tokens: of one tile and of several. */
static void make_bodies(void)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        char prompt[2048];
        int used = snprintf(prompt, sizeof(prompt), "Story number %u of many, and it goes like this:", i);
        for (uint32_t j = 0; j < i * i / 4; j++)
            used += snprintf(prompt + used, sizeof(prompt) - (size_t)used, " In the year %u it rained.", 1800 + i + j);
        bodies[i] = malloc(4096);
        snprintf(bodies[i], 4096,
                 "{\"prompt\":\"%s\",\"max_tokens\":%u,\"temperature\":%s,\"seed\":%u,\"ignore_eos\":true,"
                 "\"return_token_ids\":true,\"return_logits_hash\":true}",
                 prompt, TOKENS, i % 3 ? "0" : "0.8", i);
    }
}

static void expect_the_truth(const char *what)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        cr_assert_eq(seen[i].count, TOKENS);
        cr_expect_arr_eq(seen[i].tokens, truth[i].tokens, TOKENS * sizeof(*truth[i].tokens), "%s, answer %u", what, i);
        cr_expect_arr_eq(seen[i].hashes, truth[i].hashes, TOKENS * sizeof(*truth[i].hashes), "%s, answer %u", what, i);
    }
}

/* Each stage in turn, when the one killed before has a successor that is ready. */
static void *kill_stages(void *pointer)
{
    const struct own_engine *engine = pointer;
    for (int i = 0; i < 6; i++) {
        kill(engine_pid(engine, "stage", i % 2), SIGKILL);
        do
            wait_ms(20);
        while (!engine_is_ready(engine, "stage", i % 2));
    }
    return NULL;
}

Test(lone, the_same_bits_with_the_cores_of_all_stages_whoever_comes_goes_or_dies, .timeout = 300)
{
    struct own_engine engine;
    pthread_t killer;
    make_bodies();
    engine_start(&engine, "-p 2 --lone-threads 1 --no-enable-prefix-caching");
    engine_complete(&engine, bodies, REQUESTS, 4, truth);
    cr_expect_eq(engine_metric(&engine, "evenflow_stage_lone_steps_total"), 0);
    cr_assert_eq(own_engine_stop(&engine), 0);

    engine_start(&engine, "-p 2 --lone-threads 3 --no-enable-prefix-caching");
    engine_complete(&engine, bodies, REQUESTS, 1, seen);
    expect_the_truth("one at a time");
    uint64_t lone = engine_metric(&engine, "evenflow_stage_lone_steps_total");
    uint64_t steps = engine_metric(&engine, "evenflow_stage_steps_total");
    cr_expect_geq(lone, 2 * REQUESTS * (TOKENS - 1), "%llu of %llu steps were alone", (unsigned long long)lone,
                  (unsigned long long)steps);

    engine_complete(&engine, bodies, REQUESTS, 2, seen);
    expect_the_truth("two at a time");
    cr_assert_eq(pthread_create(&killer, NULL, kill_stages, &engine), 0);
    engine_complete(&engine, bodies, REQUESTS, 1, seen);
    pthread_join(killer, NULL);
    expect_the_truth("with stages killed");
    cr_assert_eq(own_engine_stop(&engine), 0);
    for (uint32_t i = 0; i < REQUESTS; i++)
        free(bodies[i]);
}
