/* test_death.c - kill -9 of processes of a real engine under load: every answer is whole and has the bits of a quiet run. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/engine.h"

#define REQUESTS_MAX 96u

static struct completion truth[REQUESTS_MAX], seen[REQUESTS_MAX];

static char **make_bodies(uint32_t count, uint32_t tokens)
{
    static const char *const openings[] = {"Once upon a time", "The pipeline of the future",
                                           "In the year 1815 the river", "A recipe for bread: take"};
    char **bodies = calloc(count, sizeof(*bodies));
    for (uint32_t i = 0; i < count; i++) {
        bodies[i] = malloc(1024);
        snprintf(bodies[i], 1024,
                 "{\"prompt\":\"%s, story number %u of many, and it goes like this:\",\"max_tokens\":%u,"
                 "\"temperature\":%s,\"seed\":%u,\"ignore_eos\":true,\"return_token_ids\":true,"
                 "\"return_logits_hash\":true%s}",
                 openings[i % 4], i, tokens + i % 7, i % 3 ? "0" : "0.8", i, engine_parameters(i));
    }
    return bodies;
}

struct killer {
    const struct own_engine *engine;
    const char *const *roles; /* "sched", "stage"; NULL at the end */
    int stage_count;
    uint32_t seed;
    long wait_us_max; /* between two kills */
    uint32_t kills_max;
    _Atomic uint32_t kills;
};

static void wait_us(long us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
}

/* A role at random, at a random moment, again and again; the next one is chosen when the victim has a successor. */
static void *kill_at_random(void *pointer)
{
    struct killer *k = pointer;
    uint32_t role_count = 0;
    while (k->roles[role_count] != NULL)
        role_count++;
    while (k->kills < k->kills_max) {
        const char *role = k->roles[(uint32_t)rand_r(&k->seed) % role_count];
        int index = strcmp(role, "stage") == 0 ? rand_r(&k->seed) % k->stage_count : 0;
        pid_t victim = engine_pid(k->engine, role, index);
        /* one in four may die while it starts; more of them in a row would be lives in vain, which end an engine */
        while (k->kills % 4 != 0 && !engine_is_ready(k->engine, role, index))
            wait_us(200);
        wait_us(rand_r(&k->seed) % k->wait_us_max);
        if (kill(victim, SIGKILL) != 0)
            continue;
        k->kills++;
        while (engine_pid(k->engine, role, index) == victim)
            wait_us(200); /* /status is the only place that says it */
    }
    return NULL;
}

static void expect_the_same(const char *options, uint32_t count, uint32_t kills)
{
    uint32_t differ = 0, tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        tokens += truth[i].count;
        cr_expect_eq(seen[i].count, truth[i].count, "%s: answer %u has %u tokens, not %u", options, i, seen[i].count,
                     truth[i].count);
        for (uint32_t j = 0; j < truth[i].count && j < seen[i].count; j++)
            differ += seen[i].tokens[j] != truth[i].tokens[j] || seen[i].hashes[j] != truth[i].hashes[j];
        cr_expect_eq(seen[i].choices, truth[i].choices, "%s: the choices of answer %u differ", options, i);
        cr_expect_str_eq(seen[i].text, truth[i].text);
        cr_expect_str_eq(seen[i].finish_reason, truth[i].finish_reason);
    }
    fprintf(stderr, "death: %s: %u kills, %u of %u tokens differ\n", options, kills, differ, tokens);
    cr_expect_eq(differ, 0, "%s", options);
}

/* The last answer's end and what it held comes to the scheduler behind the answer itself. */
static void expect_back(const struct own_engine *engine, const char *name, uint64_t expected)
{
    uint64_t value = 0;
    for (int tries = 0; tries < 2000; tries++, wait_us(1000))
        if ((value = engine_metric(engine, name)) == expected)
            return;
    cr_expect_eq(value, expected, "%s is %llu, not %llu as before", name, (unsigned long long)value,
                 (unsigned long long)expected);
}

/* Runs the requests again and again during `kills` kills, and compares every answer with those of a quiet run. */
static void survive(const char *options, const char *const *roles, int stage_count, uint32_t count, uint32_t tokens,
                    uint32_t kills, long wait_us_max)
{
    struct own_engine engine;
    engine_start(&engine, options);
    uint64_t blocks = engine_metric(&engine, "evenflow_kv_blocks_free");
    uint64_t pages = engine_metric(&engine, "evenflow_log_pages_free");
    uint64_t slots = engine_metric(&engine, "evenflow_sequence_slots_free");
    char **bodies = make_bodies(count, tokens);
    engine_complete(&engine, bodies, count, 16, truth);
    struct killer killer = {.engine = &engine,
                            .roles = roles,
                            .stage_count = stage_count,
                            .seed = 1,
                            .wait_us_max = wait_us_max,
                            .kills_max = kills};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, kill_at_random, &killer), 0);
    do {
        engine_complete(&engine, bodies, count, 16, seen);
        expect_the_same(options, count, killer.kills);
    } while (killer.kills < kills);
    pthread_join(thread, NULL);
    engine_complete(&engine, bodies, count, 16, seen); /* whoever died last is back, and nothing is held for ever */
    expect_the_same(options, count, killer.kills);
    expect_back(&engine, "evenflow_kv_blocks_free", blocks);
    expect_back(&engine, "evenflow_log_pages_free", pages);
    expect_back(&engine, "evenflow_sequence_slots_free", slots);
    cr_expect_eq(own_engine_stop(&engine), 0);
    for (uint32_t i = 0; i < count; i++)
        free(bodies[i]);
    free(bodies);
}

static const char *const stages[] = {"stage", NULL}, *const sched[] = {"sched", NULL},
                         *const both[] = {"sched", "stage", NULL};

Test(death, stages_are_followed_by_successors_that_go_on_with_the_same_bits, .timeout = 300)
{
    survive("--log-level error -p 2", stages, 2, 24, 24, 12, 100000);
}

Test(death, a_scheduler_is_followed_by_a_successor_that_goes_on_with_the_same_bits, .timeout = 300)
{
    survive("--log-level error -p 2 --num-blocks 96", sched, 2, 24, 24, 25, 50000);
}

Test(death, schedulers_and_stages_die_at_any_instant, .timeout = 300)
{
    survive("--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 160 "
            "--max-num-batched-tokens 48 "
            "--max-num-seqs 16",
            both, 3, 96, 60, 200, 10000);
}
