#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/log.h"
#include "ipc/steps.h"
#include "stages/stage.h"
#include "tests/plans.h"
#include "tests/tiny_model.h"

/* Two stages over a tiny model in plain memory, driven by hand. The test plays sched. */
static struct plan plan;
static struct arena arena;          /* sched's view */
static struct arena stage_arena[2]; /* the stages' */
static struct stage *stages[2];
static struct ring_consumer results;
static struct gguf *gguf;

static void start_stage(uint32_t index)
{
    struct err err = {0};
    stage_arena[index] = arena;
    stage_arena[index].role = ROLE_STAGE;
    stage_arena[index].index = index;
    stages[index] = calloc(1, sizeof(*stages[index]));
    cr_assert_eq(stage_init(stages[index], &stage_arena[index], kernels_pick("ref"), NULL, gguf, &err), 0, "%s",
                 err.text);
    stage_begin(stages[index]);
}

static void setup(void)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    log_open("test", LOG_ERROR);
    gguf = tiny_model_open(&tiny);
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    plan = plan_for_tests();
    plan.layers = desc.layers;
    plan.width = desc.width;
    plan.heads = desc.heads;
    plan.kv_heads = desc.kv_heads;
    plan.head_dim = desc.head_dim;
    plan.vocab_size = desc.vocab_size;
    plan.kv_block_bytes = kv_block_bytes(KV_F16, desc.kv_heads, desc.head_dim, plan.block_size);
    plan.slices[0] = (struct plan_slice){.layer_count = 1, .weights_bytes = model_slice_bytes(&desc, 0, 1)};
    plan.slices[1] =
        (struct plan_slice){.first_layer = 1, .layer_count = 2, .weights_bytes = model_slice_bytes(&desc, 1, 2)};
    arena_in_memory(&arena, &plan);
    for (uint32_t i = 0; i < 2; i++) {
        struct model_slice slice;
        cr_assert_eq(model_load(&slice, &desc, plan.slices[i].first_layer, plan.slices[i].layer_count,
                                arena.regions[REGION_WEIGHTS + i], gguf, &err),
                     0);
        model_unbind(&slice);
        start_stage(i);
    }
    arena_ring_stage_consumer(&arena, 1, &results);
}

static void teardown(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        stage_free(stages[i]);
        free(stages[i]);
    }
    arena_in_memory_free(&arena);
    gguf_close(gguf);
}

TestSuite(stage, .init = setup, .fini = teardown);

/* A step of one row: `count` tokens from position `first`, the last one sampled. Blocks 5, 4, 3, ... */
static struct step_shm *fill_step(uint64_t number, uint32_t first, uint32_t count)
{
    struct step_shm *record = step_begin(&arena, number);
    struct row_shm *row = arena_step_rows(&arena, record);
    record->row_count = 1;
    record->token_count = count;
    record->block_count = (uint32_t)div_up_u64(first + count, plan.block_size);
    record->result_count = 1;
    *row = (struct row_shm){.first_pos = first,
                            .token_count = count,
                            .block_count = record->block_count,
                            .result_count = 1,
                            .flags = ROW_SAMPLE | ROW_LOGITS_HASH,
                            .top_p = 1};
    for (uint32_t i = 0; i < record->block_count; i++)
        arena_step_blocks(&arena, record)[i] = 5 - i;
    for (uint32_t i = 0; i < count; i++)
        arena_step_tokens(&arena, record)[i] = (first + i) * 29 % plan.vocab_size;
    return record;
}

static struct token_shm take_result(uint64_t number)
{
    struct msg_step message;
    cr_assert_eq(ring_peek(&results, &message), RING_OK);
    cr_assert_eq(message.step, number);
    cr_assert_eq(message.count, 1);
    ring_release(&results);
    return *arena_results(&arena, number);
}

Test(stage, steps_go_through_in_order_and_nothing_happens_without_input)
{
    cr_expect_eq(stage_do_work(stages[0]), 0);
    cr_expect_eq(stage_do_work(stages[1]), 0);
    step_publish(fill_step(1, 0, 20));
    step_publish(fill_step(2, 20, 1));
    cr_expect_eq(stage_do_work(stages[1]), 0); /* the record alone is no input */
    cr_expect_eq(stage_do_work(stages[0]), 1);
    cr_expect_eq(stage_do_work(stages[0]), 1);
    cr_expect_eq(stage_do_work(stages[0]), 0);
    cr_expect_eq(stage_do_work(stages[1]), 1);
    cr_expect_eq(stage_do_work(stages[1]), 1);
    cr_expect_eq(stage_do_work(stages[1]), 0);
    struct token_shm first = take_result(1), second = take_result(2);
    cr_expect_neq(first.logits_hash, 0);
    cr_expect_neq(first.logits_hash, second.logits_hash);
    cr_expect(ring_is_empty(&results));
    cr_expect_eq(counter_read(stages[1]->process, COUNTER_STAGE_STEPS), 2);
    cr_expect_eq(counter_read(stages[1]->process, COUNTER_STAGE_TOKENS), 21);
}

Test(stage, one_chunk_or_two_give_the_same_result)
{
    step_publish(fill_step(1, 0, 33));
    cr_assert_eq(stage_do_work(stages[0]), 1);
    cr_assert_eq(stage_do_work(stages[1]), 1);
    struct token_shm whole = take_result(1);
    struct step_shm *record = fill_step(2, 0, 17); /* again from position 0, other blocks' content is overwritten */
    arena_step_rows(&arena, record)->flags = 0;
    arena_step_rows(&arena, record)->result_count = 0;
    record->result_count = 0;
    step_publish(record);
    cr_assert_eq(stage_do_work(stages[0]), 1);
    cr_assert_eq(stage_do_work(stages[1]), 1);
    ring_release(&results);
    step_publish(fill_step(3, 17, 16));
    cr_assert_eq(stage_do_work(stages[0]), 1);
    cr_assert_eq(stage_do_work(stages[1]), 1);
    struct token_shm halves = take_result(3);
    cr_expect_arr_eq(&whole, &halves, sizeof(whole));
}

Test(stage, a_successor_goes_on_with_the_first_step_that_was_not_published)
{
    step_publish(fill_step(1, 0, 20));
    cr_assert_eq(stage_do_work(stages[0]), 1);
    cr_assert_eq(stage_do_work(stages[1]), 1);
    struct token_shm first = take_result(1);
    cr_expect_neq(first.logits_hash, 0);

    /* It died between its message and the release of its input: the entry is still in the ring. */
    atomic_store_explicit(&stages[1]->process->consumed, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < 2; i++) {
        stage_free(stages[i]);
        free(stages[i]);
        start_stage(i);
    }
    cr_expect_eq(stage_do_work(stages[0]), 0);
    cr_expect_eq(stage_do_work(stages[1]), 0); /* lets go of it, computes nothing */
    cr_expect(ring_is_empty(&results));
    step_publish(fill_step(2, 20, 1));
    cr_expect_eq(stage_do_work(stages[0]), 1);
    cr_expect_eq(stage_do_work(stages[1]), 1);
    take_result(2);
}

static void start_helper(void *context, uint32_t part)
{
    (void)context;
    (void)part;
    kernels_thread_init();
}

Test(stage, computes_with_more_threads_while_no_other_stage_has_anything_to_do)
{
    struct team *teams[2];
    struct process_shm *sched = arena_process(&arena, ROLE_SCHED, 0);
    for (uint32_t i = 0; i < 2; i++) {
        cr_assert_eq(team_open(&teams[i], 3, start_helper, NULL, NULL), 0);
        forward_lend(&stages[i]->forward, teams[i]);
    }
    process_note(&sched->step, 1);
    step_publish(fill_step(1, 0, 20));
    cr_assert_eq(stage_do_work(stages[0]), 1);
    cr_assert_eq(stage_do_work(stages[1]), 1);
    struct token_shm alone = take_result(1);
    process_note(&sched->step, 3);
    step_publish(fill_step(2, 0, 20)); /* the same once more */
    step_publish(fill_step(3, 20, 1));
    cr_assert_eq(stage_do_work(stages[0]), 1); /* what is behind it is for this stage too */
    cr_assert_eq(stage_do_work(stages[0]), 1); /* the other one has step 2 */
    cr_assert_eq(stage_do_work(stages[1]), 1); /* the other one may be at step 3, as far as it knows */
    struct token_shm in_company = take_result(2);
    cr_expect_arr_eq(&alone, &in_company, sizeof(alone));
    cr_assert_eq(stage_do_work(stages[1]), 1);
    take_result(3);
    static const bool was_lone[2][4] = {{0, true, true, false}, {0, true, false, true}};
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t step = 1; step <= 3; step++) {
            const struct step_time_shm *time = arena_step_time(&arena, i, step);
            cr_expect_eq(time->lent_ns > 0, was_lone[i][step], "stage %u, step %u", i, step);
            cr_expect_eq(time->cost_ns, was_lone[i][step] ? 0 : time->cpu_ns, "stage %u, step %u", i, step);
        }
        cr_expect_eq(counter_read(stages[i]->process, COUNTER_STAGE_LONE_STEPS), 2);
        team_close(teams[i]);
    }
}

/* ---- hostile records ---- */

typedef void spoil(struct step_shm *record, struct row_shm *row);

static void expect_refused(spoil *change, const char *what)
{
    struct step_shm *record = fill_step(1, 10, 20);
    change(record, arena_step_rows(&arena, record));
    step_publish(record);
    cr_expect_lt(stage_do_work(stages[0]), 0, "%s", what);
    cr_expect(ring_is_empty(&stages[1]->in));
}

#define SPOIL(name, change)                                                                                            \
    static void spoil_##name(struct step_shm *record, struct row_shm *row)                                             \
    {                                                                                                                  \
        (void)record;                                                                                                  \
        (void)row;                                                                                                     \
        change;                                                                                                        \
    }

SPOIL(rows, record->row_count = plan.max_num_seqs + 1)
SPOIL(rows_huge, record->row_count = UINT32_MAX)
SPOIL(tokens, record->token_count = UINT32_MAX)
SPOIL(blocks, record->block_count = UINT32_MAX)
SPOIL(results_count, record->result_count = UINT32_MAX)
SPOIL(no_row, record->row_count = 0)
SPOIL(source, row->source_step = 1)
SPOIL(token_first, row->token_first = 1)
SPOIL(token_count_less, row->token_count = 19)
SPOIL(token_count_more, row->token_count = 21)
SPOIL(token_count_none, row->token_count = 0)
SPOIL(token_count_wrap, row->token_count = UINT32_MAX)
SPOIL(first_pos, row->first_pos = plan.max_model_len - 19)
SPOIL(first_pos_wrap, row->first_pos = UINT32_MAX - 5)
SPOIL(block_first, row->block_first = 1)
SPOIL(block_first_wrap, row->block_first = UINT32_MAX)
SPOIL(block_count, row->block_count = 1)
SPOIL(block_number, arena_step_blocks(&arena, record)[1] = plan.num_blocks)
SPOIL(flags, row->flags |= 1u << 31)
SPOIL(both_flags, row->flags = ROW_SAMPLE | ROW_SCORE) /* a result for its last token alone */
SPOIL(log_first, row->bias_count = 1; row->prompt_tokens = 3; row->log_first = 4)
SPOIL(result_first, row->result_first = 1)
SPOIL(result_first_wrap, row->result_first = UINT32_MAX)
SPOIL(result_count, row->result_count = 0)
SPOIL(result_count_none, row->flags = 0)
SPOIL(drafts, record->result_count = row->result_count = 21)
SPOIL(drafts_penalty, record->result_count = row->result_count = 2; row->presence_penalty = 1)
SPOIL(drafts_no_end, record->result_count = row->result_count = 2; row->flags |= ROW_NO_END)
SPOIL(drafts_grammar, record->result_count = row->result_count = 2; row->grammar_words = 1)
SPOIL(score, row->flags = ROW_SCORE)
SPOIL(token, arena_step_tokens(&arena, record)[19] = plan.vocab_size)
SPOIL(score_next, record->result_count = row->result_count = 20; row->flags = ROW_SCORE; row->score_next = UINT32_MAX)

Test(stage, refuses_every_field_that_is_out_of_bounds)
{
#define REFUSED(name) expect_refused(spoil_##name, #name)
    REFUSED(rows);
    REFUSED(rows_huge);
    REFUSED(tokens);
    REFUSED(blocks);
    REFUSED(results_count);
    REFUSED(no_row);
    REFUSED(source);
    REFUSED(token_first);
    REFUSED(token_count_less);
    REFUSED(token_count_more);
    REFUSED(token_count_none);
    REFUSED(token_count_wrap);
    REFUSED(first_pos);
    REFUSED(first_pos_wrap);
    REFUSED(block_first);
    REFUSED(block_first_wrap);
    REFUSED(block_count);
    REFUSED(block_number);
    REFUSED(flags);
    REFUSED(both_flags);
    REFUSED(log_first);
    REFUSED(result_first);
    REFUSED(result_first_wrap);
    REFUSED(result_count);
    REFUSED(result_count_none);
    REFUSED(drafts);
    REFUSED(drafts_penalty);
    REFUSED(drafts_no_end);
    REFUSED(drafts_grammar);
    REFUSED(score);
    REFUSED(token);
    REFUSED(score_next);
    step_publish(fill_step(1, 10, 20));
    cr_expect_eq(stage_do_work(stages[0]), 1); /* and takes the one that is right */
}

Test(stage, refuses_a_message_that_does_not_fit_its_record)
{
    step_publish(fill_step(1, 0, 20));
    cr_assert_eq(stage_do_work(stages[0]), 1);
    arena_step(&arena, 1)->token_count = 19;
    arena_step_rows(&arena, arena_step(&arena, 1))->token_count = 19;
    cr_expect_lt(stage_do_work(stages[1]), 0);
}

Test(stage, refuses_a_message_of_a_later_step)
{
    step_publish(fill_step(1, 0, 20));
    struct msg_step message = {.step = 2, .count = 20};
    cr_assert_eq(ring_push(&stages[0]->out, &message), RING_OK);
    cr_expect_lt(stage_do_work(stages[1]), 0);
}
