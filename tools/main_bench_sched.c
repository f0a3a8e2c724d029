/* main_bench_sched.c - what one plan costs: make bench-sched.
 *
 * 512 sequences decode while many wait; the time of sched_plan() and of sched_return(), median over many steps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/policy.h"
#include "engine/sched.h"
#include "ipc/clock.h"
#include "ipc/journal.h"

#define RUNNING 512u
#define PROMPT  200u
#define STEPS   400u

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double median_us(uint64_t *values)
{
    qsort(values, STEPS, sizeof(values[0]), compare);
    return (double)values[STEPS / 2] / 1000;
}

/* In an engine every page of it is there from the start (SHM_POPULATE). */
static void touch(const struct arena *arena, enum region_id id)
{
    int ret = madvise(arena->regions[id], arena->layout.region_bytes[id], MADV_POPULATE_WRITE);
    check(ret == 0);
}

static void measure(const struct policy *policy, uint32_t waiting)
{
    uint32_t requests = RUNNING + waiting;
    struct plan plan = {.magic = PLAN_MAGIC,
                        .layout_hash = LAYOUT_HASH,
                        .layers = 1,
                        .width = 1,
                        .heads = 1,
                        .kv_heads = 1,
                        .head_dim = 1,
                        .vocab_size = 50000,
                        .stage_count = 1,
                        .threads_per_stage = 1,
                        .lone_threads = 1,
                        .window = 1,
                        .slices = {{.layer_count = 1}},
                        .max_model_len = 1024,
                        .max_num_seqs = RUNNING,
                        .max_num_batched_tokens = RUNNING * PROMPT,
                        .enable_chunked_prefill = 1,
                        .enable_prefix_caching = 1,
                        .reserve_full_isl = 1,
                        .block_size = 16,
                        .num_blocks = RUNNING * 64,
                        .requests_max = requests,
                        .sequences_max = requests,
                        .prompt_pages = requests,
                        .log_pages = requests * 16,
                        .timing = {.stage_count = 1, /* so that all of them in one step is what is best */
                                   .stages = {{.row_us = 10, .weights_us = 60000, .token_us = 100}}},
                        .connections_max = 1,
                        .body_bytes_max = 1024};
    strcpy(plan.policy, policy->name);
    struct arena arena;
    struct sched sched;
    arena_in_memory(&arena, &plan);
    touch(&arena, REGION_FRONT);
    touch(&arena, REGION_SCHED);
    sched_init(&sched, &arena, policy);
    for (uint32_t slot = 0; slot < requests; slot++) {
        struct request_shm *request = arena_request(&arena, slot);
        *request = (struct request_shm){.generation = 1,
                                        .order = slot + 1,
                                        .prompt_tokens = PROMPT,
                                        .max_tokens = 800,
                                        .choices = 1,
                                        .top_p = 1,
                                        .flags = REQUEST_IGNORE_EOS};
        arena_prompt_list(&arena, slot)[0] = slot;
        for (uint32_t i = 0; i < PROMPT; i++)
            journal_prompt_write(&arena, slot, i, 1, &(uint32_t){(slot * 31 + i) % 50000});
        journal_request_set_state(request, REQUEST_ACCEPTED);
        sched_accept(&sched, slot);
    }
    static uint64_t plan_ns[STEPS], return_ns[STEPS];
    struct token_shm *results = base_alloc(arena.layout.step_results_max * sizeof(*results));
    for (uint32_t i = 0; i < STEPS;) {
        check(sched.steps < 2 * STEPS);
        uint64_t start_ns = clock_ns();
        struct step_shm *record = sched_plan(&sched);
        uint64_t planned_ns = clock_ns();
        step_publish(record);
        uint64_t begin_ns = clock_ns();
        check(sched_return(&sched, record->step, results, record->result_count));
        if (record->row_count == RUNNING && record->token_count == RUNNING) { /* not those that hold the prompts */
            plan_ns[i] = planned_ns - start_ns;
            return_ns[i++] = clock_ns() - begin_ns;
        }
        uint32_t slot;
        while (sched_next_news(&sched, &slot)) {
        }
    }
    printf("%-8s %7u %8u %16.1f %18.1f\n", policy->name, RUNNING, waiting, median_us(plan_ns), median_us(return_ns));
    free(results);
    sched_fini(&sched);
    arena_in_memory_free(&arena);
}

int main(void)
{
    static const struct policy *const policies[] = {&policy_default, &policy_even};
    printf("policy   running  waiting  plan, median us  return, median us\n");
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++) {
        measure(policies[i], 0);
        measure(policies[i], 1000);
        measure(policies[i], 10000);
    }
    return 0;
}
