/* test_policy.c - the example of docs/policies.md is what stands there, and does what it says. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/sched.h"
#include "ipc/journal.h"
#include "tests/plans.h"

extern const struct policy policy_example;

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file, "%s", path);
    char *text = calloc(1, 1 << 20);
    size_t size = fread(text, 1, (1 << 20) - 1, file);
    cr_assert_gt(size, 0);
    fclose(file);
    return text;
}

Test(policy, the_example_in_the_documents_is_the_one_that_is_tested)
{
    char *document = read_text("docs/policies.md"), *code = read_text("tests/policy_example.c");
    cr_assert_not_null(strstr(document, code));
}

Test(policy, there_is_no_policy_of_an_unknown_name)
{
    cr_assert_eq(policy_find("default"), &policy_default);
    cr_assert_null(policy_find("shortest-first"));
}

Test(policy, the_example_runs_the_shortest_first_and_everything_to_its_end)
{
    struct plan plan = plan_for_tests();
    plan.num_blocks = 12;
    plan.max_model_len = 128;
    struct arena arena;
    struct sched sched;
    arena_in_memory(&arena, &plan);
    sched_init(&sched, &arena, &policy_example);
    static const uint32_t lengths[] = {60, 20, 40, 10, 30};
    for (uint32_t slot = 0; slot < ARRAY_COUNT(lengths); slot++) {
        struct request_shm *request = arena_request(&arena, slot);
        *request = (struct request_shm){.generation = 1,
                                        .order = slot + 1,
                                        .prompt_tokens = lengths[slot],
                                        .max_tokens = 20,
                                        .choices = 1,
                                        .top_p = 1};
        arena_prompt_list(&arena, slot)[0] = slot;
        journal_request_set_state(request, REQUEST_ACCEPTED);
        sched_accept(&sched, slot);
    }
    uint32_t first_admitted[8], admitted = 0;
    struct token_shm results[64] = {0};
    uint64_t oldest = 1;
    for (;;) {
        struct step_shm *record = sched_plan(&sched);
        if (record != NULL) {
            step_publish(record);
            const struct row_shm *rows = arena_step_rows(&arena, record);
            for (uint32_t i = 0; i < record->row_count; i++)
                if (rows[i].first_pos == 0)
                    first_admitted[admitted++] = lengths[arena_sequence(&arena, rows[i].sequence)->request];
        } else if (sched.in_flight == 0) {
            break;
        } else {
            uint32_t count = arena_step(&arena, oldest)->result_count;
            cr_assert(sched_return(&sched, oldest++, results, count));
        }
    }
    const uint32_t expected[] = {10, 20, 30, 40, 60};
    cr_assert_eq(admitted, 5);
    cr_assert_arr_eq(first_admitted, expected, sizeof(expected));
    cr_assert_eq(sched.preemptions, 0);
    cr_assert_eq(sched.generated_tokens, 5 * 20);
    cr_assert_eq(sched.kv.free_count, plan.num_blocks);
    sched_fini(&sched);
    arena_in_memory_free(&arena);
}
