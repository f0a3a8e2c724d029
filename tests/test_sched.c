/* test_sched.c - the scheduler's core in plain memory, with a model that is a formula. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/recover.h"
#include "engine/sched.h"
#include "ipc/journal.h"
#include "tests/plans.h"

static const struct policy *tested_policy = &policy_default;

/* The engine as the core sees it: front is this file, the stages are token_at(). */
struct world {
    struct plan plan;
    struct arena arena;
    struct sched sched;
    uint32_t next_page;
    uint64_t order;
    uint64_t oldest; /* step in flight that returns next */
    uint64_t in_flight_max;
    uint64_t rows_seen;
    uint8_t *pages_used; /* prompt pages, by number */
    uint32_t families;   /* 0: no two prompts have anything in common */
};

static uint32_t period; /* 0: no token of a text comes twice; else nearly all do, after so many */

/* What the model says at a position of a sequence of the request in a slot. Never the end token, which is 7. */
static uint32_t token_at(uint32_t order, uint32_t choice, uint32_t position)
{
    if (period > 0 && position % (4 * period + 1) != 3)
        position %= period;
    return 10 + (order * 131 + choice * 977 + position * 7) % 900;
}

static void open_world(struct world *w, const struct plan *plan)
{
    *w = (struct world){.plan = *plan, .oldest = 1};
    w->plan.end_token_count = 1;
    w->plan.end_tokens[0] = 7;
    arena_in_memory(&w->arena, &w->plan);
    sched_init(&w->sched, &w->arena, tested_policy);
    w->pages_used = base_alloc(w->plan.prompt_pages);
}

static void close_world(struct world *w)
{
    sched_fini(&w->sched);
    arena_in_memory_free(&w->arena);
    free(w->pages_used);
}

static struct request_shm *request_at(struct world *w, uint32_t slot)
{
    return arena_request(&w->arena, slot);
}

/* Prepares a request; prompt token i is token_at(id, 99, i): requests of one id have a common beginning. */
static struct request_shm *prepare(struct world *w, uint32_t slot, uint32_t prompt_tokens, uint32_t max_tokens)
{
    struct request_shm *request = request_at(w, slot);
    uint32_t generation = request->generation + 1;
    memset(request, 0, sizeof(*request));
    request->generation = generation;
    request->order = ++w->order;
    request->id = w->families > 0 ? request->order % w->families : request->order;
    request->prompt_tokens = prompt_tokens;
    request->max_tokens = max_tokens;
    request->choices = 1;
    request->top_p = 1;
    for (uint32_t page = 0, i = 0; i < (prompt_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS; page++) {
        cr_assert_lt(page, w->plan.prompt_pages);
        if (w->pages_used[page])
            continue;
        w->pages_used[page] = 1;
        arena_prompt_list(&w->arena, slot)[i++] = page;
    }
    for (uint32_t i = 0; i < prompt_tokens; i++) {
        uint32_t token = token_at((uint32_t)request->id, 99, i);
        journal_prompt_write(&w->arena, slot, i, 1, &token);
    }
    return request;
}

static void accept(struct world *w, uint32_t slot)
{
    journal_request_set_state(request_at(w, slot), REQUEST_ACCEPTED);
    sched_accept(&w->sched, slot);
}

static void add(struct world *w, uint32_t slot, uint32_t prompt_tokens, uint32_t max_tokens)
{
    prepare(w, slot, prompt_tokens, max_tokens);
    accept(w, slot);
}

static void drain(struct world *w, uint32_t slot)
{
    struct request_shm *request = request_at(w, slot);
    for (uint32_t i = 0; i < (request->prompt_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS; i++)
        w->pages_used[arena_prompt_list(&w->arena, slot)[i]] = 0;
    journal_request_set_state(request, REQUEST_DRAINED);
    sched_drained(&w->sched, slot);
    cr_assert_eq(journal_answer_generation(arena_answer(&w->arena, slot)), 0);
    journal_request_set_state(request, REQUEST_FREE);
}

static const struct sequence_shm *sequence_at(struct world *w, uint32_t slot, uint32_t choice)
{
    const struct answer_shm *answer = arena_answer(&w->arena, slot);
    cr_assert_lt(choice, answer->sequence_count);
    return arena_sequence(&w->arena, answer->sequences[choice]);
}

static bool is_done(struct world *w, uint32_t slot)
{
    const struct answer_shm *answer = arena_answer(&w->arena, slot);
    if (journal_answer_generation(answer) != request_at(w, slot)->generation)
        return false;
    for (uint32_t i = 0; i < answer->sequence_count; i++)
        if (journal_sequence_state(arena_sequence(&w->arena, answer->sequences[i])) != SEQUENCE_DONE)
            return false;
    return true;
}

enum block_use { UNUSED, READ, WRITTEN };

/* What stages insist on, and what a step promises. */
static void check_record(struct world *w, const struct step_shm *record)
{
    const struct layout *layout = &w->arena.layout;
    const struct row_shm *rows = arena_step_rows(&w->arena, record);
    const uint32_t *tokens = arena_step_tokens(&w->arena, record), *blocks = arena_step_blocks(&w->arena, record);
    uint32_t token = 0, block = 0, result = 0;
    uint8_t *uses = calloc(w->plan.num_blocks, 1), *has_row = calloc(w->plan.sequences_max, 1);
    cr_assert(record->row_count > 0 && record->row_count <= layout->step_rows_max);
    cr_assert_leq(record->token_count, w->plan.max_num_batched_tokens);
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct row_shm *row = &rows[i];
        const struct sequence_shm *shm = arena_sequence(&w->arena, row->sequence);
        const struct request_shm *request = request_at(w, shm->request);
        cr_assert(row->token_first == token && row->block_first == block && row->result_first == result);
        cr_assert_gt(row->token_count, 0);
        cr_assert_eq(has_row[row->sequence]++, 0);
        cr_assert_geq(row->block_count * w->plan.block_size, row->first_pos + row->token_count);
        /* A block is written by one row at most, and before anybody reads it. */
        for (uint32_t b = 0; b < row->block_count; b++) {
            bool is_written = (b + 1) * w->plan.block_size > row->first_pos;
            uint8_t *use = &uses[blocks[block + b]];
            cr_assert(!is_written || *use == UNUSED, "step %llu row %u", (unsigned long long)record->step, i);
            *use = is_written ? WRITTEN : *use == WRITTEN ? WRITTEN : READ;
        }
        uint32_t drafts = step_drafts(row), behind = row->first_pos + row->token_count - drafts;
        for (uint32_t t = 0; t < row->token_count - drafts; t++) {
            uint32_t position = row->first_pos + t;
            bool is_prompt = position < shm->prompt_tokens;
            uint32_t source = (uint32_t)(is_prompt ? request->id : request->order);
            cr_assert_eq(tokens[token + t], token_at(source, is_prompt ? 99 : shm->choice, position),
                         "sequence %u position %u", row->sequence, position);
        }
        /* the row itself says whether an end may be drawn: it depends on the place alone */
        bool is_early = behind - shm->prompt_tokens < request->min_tokens;
        cr_assert_eq((row->flags & ROW_NO_END) != 0, row->flags & ROW_SAMPLE && is_early);
        cr_assert_eq(row->result_count, row->flags & ROW_SCORE    ? row->token_count
                                        : row->flags & ROW_SAMPLE ? 1 + drafts
                                                                  : 0);
        cr_assert(drafts == 0 || (drafts <= DRAFTS_MAX && row->token_count == 1 + drafts && !is_early &&
                                  behind - shm->prompt_tokens + drafts < request->max_tokens));
        if (row->flags & ROW_SCORE && !(row->flags & ROW_SAMPLE) && behind < shm->prompt_tokens)
            cr_assert_eq(row->score_next, token_at((uint32_t)request->id, 99, behind));
        token += row->token_count;
        block += row->block_count;
        result += row->result_count;
    }
    cr_assert(token == record->token_count && block == record->block_count && result == record->result_count);
    w->rows_seen += record->row_count;
    free(uses);
    free(has_row);
}

static const struct step_shm *plan_step(struct world *w)
{
    const struct step_shm *record;
    do
        record = sched_plan(&w->sched);
    while (record == NULL && w->sched.wants_another_plan);
    if (record != NULL) {
        check_record(w, record);
        step_publish((struct step_shm *)(uintptr_t)record);
    }
    return record;
}

/* The oldest step in flight returns what the model says. */
static void return_step(struct world *w)
{
    static struct token_shm results[4096];
    const struct step_shm *record = arena_step(&w->arena, w->oldest);
    const struct row_shm *rows = arena_step_rows(&w->arena, record);
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct row_shm *row = &rows[i];
        const struct sequence_shm *shm = arena_sequence(&w->arena, row->sequence);
        const struct request_shm *request = request_at(w, shm->request);
        const uint32_t *tokens = arena_step_tokens(&w->arena, record) + row->token_first;
        bool is_true = true; /* behind a wrong draft, nothing is */
        for (uint32_t r = 0; r < row->result_count; r++) {
            uint32_t position = row->first_pos + row->token_count - row->result_count + r + 1;
            bool is_score = position < request->prompt_tokens;
            uint32_t order = (uint32_t)(is_score ? request->id : request->order);
            results[row->result_first + r] =
                (struct token_shm){.token = is_true ? token_at(order, is_score ? 99 : row->choice, position) : 8};
            if (r < step_drafts(row))
                is_true =
                    is_true && tokens[row->token_count - step_drafts(row) + r] == results[row->result_first + r].token;
        }
    }
    cr_assert(sched_return(&w->sched, w->oldest, results, record->result_count));
    w->oldest++;
}

static void run_until_quiet(struct world *w)
{
    for (;;) {
        while (plan_step(w) != NULL) {
        }
        if (w->sched.in_flight == 0)
            break;
        return_step(w);
    }
    /* Nobody would call again: the scheduler sleeps now. */
    cr_assert_eq(w->sched.table.running.count + w->sched.table.waiting.count, 0);
}

static void check_tokens(struct world *w, uint32_t slot, uint32_t choice)
{
    const struct sequence_shm *shm = sequence_at(w, slot, choice);
    const struct request_shm *request = request_at(w, slot);
    uint32_t sequence = arena_answer(&w->arena, slot)->sequences[choice], first = journal_log_first(request);
    for (uint32_t i = 0; i < journal_log_committed(shm); i++) {
        uint32_t position = shm->prompt_tokens + i - first;
        uint32_t token = i < first ? token_at((uint32_t)request->id, 99, position)
                                   : token_at((uint32_t)request->order, choice, position);
        cr_assert_eq(journal_log_entry(&w->arena, sequence, i)->token, token, "slot %u entry %u", slot, i);
    }
}

static void check_nothing_is_held(struct world *w)
{
    cr_assert_eq(w->sched.kv.free_count, w->plan.num_blocks);
    cr_assert_eq(w->sched.free_log_page_count, w->plan.log_pages);
    cr_assert_eq(w->sched.table.free.count, w->plan.sequences_max);
    cr_assert_eq(w->sched.table.running.count + w->sched.table.waiting.count, 0);
    cr_assert_eq(w->sched.in_flight, 0);
}

/* ---- what the default policy decides ---- */

Test(sched, requests_run_in_the_order_of_acceptance_under_one_budget)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.max_num_batched_tokens = 64;
    open_world(&w, &plan);
    add(&w, 3, 40, 4);
    add(&w, 1, 40, 4);
    add(&w, 2, 10, 4);
    const struct step_shm *first = plan_step(&w);
    const struct row_shm *rows = arena_step_rows(&w.arena, first);
    cr_assert_eq(first->row_count, 2);
    cr_assert(rows[0].token_count == 40 && rows[0].flags & ROW_SAMPLE);
    cr_assert(rows[1].token_count == 24 && !(rows[1].flags & ROW_SAMPLE)); /* what the budget leaves of the prompt */
    const struct step_shm *second = plan_step(&w);
    rows = arena_step_rows(&w.arena, second);
    cr_assert_eq(second->row_count, 2); /* the first one's token is in flight: nothing of it can be computed */
    cr_assert(rows[0].first_pos == 24 && rows[0].token_count == 16 && rows[0].flags & ROW_SAMPLE);
    cr_assert(rows[1].token_count == 10);
    cr_assert_null(plan_step(&w)); /* the window is two */
    run_until_quiet(&w);
    for (uint32_t slot = 1; slot <= 3; slot++) {
        cr_assert(is_done(&w, slot));
        cr_assert_eq(sequence_at(&w, slot, 0)->finish_reason, FINISH_LENGTH);
        cr_assert_eq(journal_log_committed(sequence_at(&w, slot, 0)), 4);
        check_tokens(&w, slot, 0);
        drain(&w, slot);
    }
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, without_chunks_a_prompt_runs_whole_or_waits)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.enable_chunked_prefill = 0;
    open_world(&w, &plan);
    add(&w, 0, 40, 2);
    add(&w, 1, 40, 2);
    add(&w, 2, 5, 2);
    const struct step_shm *first = plan_step(&w);
    cr_assert_eq(first->row_count, 1); /* the second does not fit, and nobody overtakes */
    const struct step_shm *second = plan_step(&w);
    cr_assert(second->row_count == 2 && second->token_count == 45);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 0) && is_done(&w, 1) && is_done(&w, 2));
    close_world(&w);
}

Test(sched, a_threshold_limits_prompts_only_when_there_are_others)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.long_prefill_token_threshold = 8;
    open_world(&w, &plan);
    add(&w, 0, 40, 1);
    cr_assert_eq(plan_step(&w)->token_count, 40);
    run_until_quiet(&w);
    add(&w, 1, 40, 1);
    add(&w, 2, 40, 1);
    cr_assert_eq(plan_step(&w)->token_count, 16);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 1) && is_done(&w, 2));
    close_world(&w);
}

Test(sched, no_more_sequences_run_than_allowed)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.max_num_seqs = 3;
    open_world(&w, &plan);
    for (uint32_t slot = 0; slot < 8; slot++)
        add(&w, slot, 4, 5);
    plan_step(&w);
    cr_assert_eq(w.sched.table.running.count, 3);
    cr_assert_null(plan_step(&w));
    run_until_quiet(&w);
    for (uint32_t slot = 0; slot < 8; slot++)
        cr_assert(is_done(&w, slot));
    close_world(&w);
}

Test(sched, preemption_loses_and_repeats_no_token)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.num_blocks = 8;
    plan.max_model_len = 128;
    open_world(&w, &plan);
    for (uint32_t slot = 0; slot < 4; slot++)
        add(&w, slot, 20, 60);
    run_until_quiet(&w);
    cr_assert_gt(w.sched.preemptions, 0);
    for (uint32_t slot = 0; slot < 4; slot++) {
        cr_assert(is_done(&w, slot));
        cr_assert_eq(journal_log_committed(sequence_at(&w, slot, 0)), 60);
        check_tokens(&w, slot, 0);
        drain(&w, slot);
    }
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, what_has_begun_finishes_and_nothing_else_begins_until_it_may)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.num_blocks = 8; /* so that sequences that have begun are preempted, too */
    plan.max_model_len = 128;
    plan.max_num_seqs = 3;
    open_world(&w, &plan);
    for (uint32_t slot = 0; slot < 5; slot++)
        add(&w, slot, 20, 60);
    prepare(&w, 5, 4, 3)->choices = 2;
    accept(&w, 5);
    cr_assert_not_null(plan_step(&w));
    cr_expect_not(sched_has_finished(&w.sched));
    sched_finish_begun(&w.sched, true);
    add(&w, 6, 4, 3);
    run_until_quiet(&w);
    cr_assert_gt(w.sched.preemptions, 0);
    cr_expect(sched_has_finished(&w.sched));
    for (uint32_t slot = 0; slot < 3; slot++) {
        cr_assert(is_done(&w, slot), "slot %u had begun", slot);
        check_tokens(&w, slot, 0);
    }
    for (uint32_t slot = 3; slot < 7; slot++)
        cr_expect_not(is_done(&w, slot), "slot %u had not begun", slot);
    cr_expect_null(plan_step(&w));
    request_at(&w, 4)->cancelled = 1;
    sched_cancel(&w.sched, 4); /* a client may leave meanwhile */
    cr_expect(is_done(&w, 4));
    sched_finish_begun(&w.sched, false);
    cr_expect_not(sched_has_finished(&w.sched));
    run_until_quiet(&w);
    for (uint32_t slot = 0; slot < 7; slot++) {
        cr_assert(is_done(&w, slot));
        for (uint32_t choice = 0; choice < request_at(&w, slot)->choices; choice++)
            check_tokens(&w, slot, choice);
        drain(&w, slot);
    }
    check_nothing_is_held(&w);
    close_world(&w);
}

/* ---- ends ---- */

Test(sched, end_and_stop_tokens_end_an_answer_and_are_its_last)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    w.plan.end_tokens[0] = token_at(1, 0, 10 + 3);
    add(&w, 0, 10, 20); /* order 1 */
    prepare(&w, 1, 10, 20)->flags = REQUEST_IGNORE_EOS;
    request_at(&w, 1)->order = request_at(&w, 1)->id = 1; /* the same tokens */
    w.pages_used[0] = 1;
    for (uint32_t i = 0; i < 10; i++) {
        uint32_t token = token_at(1, 99, i);
        journal_prompt_write(&w.arena, 1, i, 1, &token);
    }
    accept(&w, 1);
    struct request_shm *third = prepare(&w, 2, 10, 20);
    third->stop_token_count = 1;
    third->stop_tokens[0] = token_at((uint32_t)third->order, 0, 10 + 5);
    accept(&w, 2);
    struct request_shm *fourth = prepare(&w, 3, 10, 20);
    fourth->stop_token_count = 1;
    fourth->stop_tokens[0] = token_at((uint32_t)fourth->order, 0, 10 + 5);
    fourth->min_tokens = 7;
    accept(&w, 3);
    run_until_quiet(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 0, 0)), 4);
    cr_assert_eq(sequence_at(&w, 0, 0)->finish_reason, FINISH_STOP);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 20);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 2, 0)), 6);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 3, 0)), 20);
    close_world(&w);
}

Test(sched, an_abort_ends_a_sequence_in_every_state)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.max_num_seqs = 2;
    plan.log_pages = 4;
    open_world(&w, &plan);
    add(&w, 0, 10, 50);  /* runs, one log page */
    add(&w, 1, 10, 50);  /* runs */
    add(&w, 2, 10, 50);  /* waits */
    add(&w, 3, 10, 150); /* in the intake: three pages */
    prepare(&w, 4, 10, 5);
    accept(&w, 4);
    sched_cancel(&w.sched, 4); /* in the intake too, behind the third */
    plan_step(&w);
    cr_assert_eq(journal_answer_generation(arena_answer(&w.arena, 3)), 0);
    cr_assert(is_done(&w, 4));
    for (uint32_t slot = 0; slot < 4; slot++) {
        journal_request_cancel(request_at(&w, slot));
        sched_cancel(&w.sched, slot);
        cr_assert(is_done(&w, slot), "slot %u", slot);
    }
    cr_assert_eq(w.sched.kv.free_count, w.plan.num_blocks); /* although a step is in flight */
    run_until_quiet(&w);
    for (uint32_t slot = 0; slot < 5; slot++)
        drain(&w, slot);
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, a_stop_string_ends_its_choice_and_no_other)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    prepare(&w, 0, 10, 40)->choices = 3;
    accept(&w, 0);
    for (int i = 0; i < 8; i++) {
        plan_step(&w);
        return_step(&w);
    }
    plan_step(&w); /* and rows of it are in flight */
    uint32_t blocks = w.sched.kv.free_count, seen = journal_log_committed(sequence_at(&w, 0, 1));
    sched_stop(&w.sched, 0, 2);
    cr_expect_eq(journal_sequence_state(sequence_at(&w, 0, 1)), SEQUENCE_DONE);
    cr_expect_eq(sequence_at(&w, 0, 1)->finish_reason, FINISH_STOP);
    cr_expect_gt(w.sched.kv.free_count, blocks);
    sched_stop(&w.sched, 0, 2); /* a repeated hint */
    run_until_quiet(&w);
    cr_expect_eq(journal_log_committed(sequence_at(&w, 0, 1)), seen);
    for (uint32_t choice = 0; choice < 3; choice += 2) {
        check_tokens(&w, 0, choice);
        cr_expect_eq(sequence_at(&w, 0, choice)->finish_reason, FINISH_LENGTH);
        cr_expect_eq(journal_log_committed(sequence_at(&w, 0, choice)), 40);
    }
    drain(&w, 0);
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, results_for_a_sequence_that_is_gone_go_nowhere)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.sequences_max = 1;
    open_world(&w, &plan);
    add(&w, 0, 10, 50);
    plan_step(&w);
    sched_cancel(&w.sched, 0);
    drain(&w, 0);
    add(&w, 1, 10, 3); /* takes the same sequence slot */
    cr_assert_eq(sequence_at(&w, 1, 0)->generation, 2);
    return_step(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 0);
    run_until_quiet(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 3);
    check_tokens(&w, 1, 0);
    close_world(&w);
}

Test(sched, requests_wait_in_order_until_their_logs_are_reserved)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.log_pages = 5;
    open_world(&w, &plan);
    add(&w, 5, 8, 64 * 3);
    add(&w, 4, 8, 64 * 3); /* must wait */
    add(&w, 3, 8, 10);     /* would fit, but nobody overtakes */
    cr_assert_eq(w.sched.table.waiting.count, 1);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 5));
    cr_assert_eq(w.sched.table.waiting.count, 0);
    drain(&w, 5);
    cr_assert_eq(w.sched.table.waiting.count, 2);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 4) && is_done(&w, 3));
    drain(&w, 4);
    drain(&w, 3);
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, results_for_a_forgotten_sequence_go_nowhere)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    add(&w, 0, 10, 50);
    plan_step(&w);
    sched_cancel(&w.sched, 0);
    drain(&w, 0);
    return_step(&w); /* the slot is free, and nobody has taken it since */
    check_nothing_is_held(&w);
    close_world(&w);
}

/* ---- kinds of requests ---- */

Test(sched, choices_are_sequences_of_their_own)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    prepare(&w, 0, 20, 6)->choices = 3;
    accept(&w, 0);
    run_until_quiet(&w);
    cr_assert_eq(arena_answer(&w.arena, 0)->sequence_count, 3);
    for (uint32_t choice = 0; choice < 3; choice++) {
        cr_assert_eq(journal_log_committed(sequence_at(&w, 0, choice)), 6);
        check_tokens(&w, 0, choice);
    }
    drain(&w, 0);
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, a_scored_prompt_has_an_entry_for_every_token_but_the_first)
{
    static const uint32_t block_counts[] = {64, 7}; /* with room, and with preemptions */
    for (size_t run = 0; run < ARRAY_COUNT(block_counts); run++) {
        struct world w;
        struct plan plan = plan_for_tests();
        plan.num_blocks = block_counts[run];
        plan.max_model_len = 112;
        plan.max_num_batched_tokens = 16;
        open_world(&w, &plan);
        for (uint32_t slot = 0; slot < 3; slot++) {
            prepare(&w, slot, 100, 0)->flags = REQUEST_SCORE;
            accept(&w, slot);
        }
        add(&w, 3, 10, 40);
        run_until_quiet(&w);
        for (uint32_t slot = 0; slot < 3; slot++) {
            cr_assert_eq(journal_log_committed(sequence_at(&w, slot, 0)), 99);
            check_tokens(&w, slot, 0);
        }
        cr_assert(is_done(&w, 3));
        close_world(&w);
    }
}

/* Entries of the prompt's tokens, then of the answer's: whatever is preempted, whichever rows hold the end of the prompt. */
Test(sched, a_scored_prompt_may_have_an_answer)
{
    static const uint32_t block_counts[] = {64, 9, 7};
    uint64_t preemptions = 0;
    for (size_t run = 0; run < ARRAY_COUNT(block_counts); run++) {
        struct world w;
        struct plan plan = plan_for_tests();
        plan.num_blocks = block_counts[run];
        plan.max_model_len = 112;
        plan.max_num_batched_tokens = 16 + 7 * (uint32_t)run;
        plan.enable_prefix_caching = 1;
        open_world(&w, &plan);
        w.families = 1;
        for (uint32_t slot = 0; slot < 3; slot++) {
            struct request_shm *request = prepare(&w, slot, 1 + 30 * slot, 40);
            request->flags = REQUEST_SCORE;
            request->choices = 2;
            request->min_tokens = 3;
            accept(&w, slot);
        }
        add(&w, 3, 10, 40);
        run_until_quiet(&w);
        for (uint32_t slot = 0; slot < 3; slot++)
            for (uint32_t choice = 0; choice < 2; choice++) {
                cr_assert_eq(journal_log_committed(sequence_at(&w, slot, choice)), 30 * slot + 40);
                check_tokens(&w, slot, choice);
            }
        preemptions += w.sched.preemptions;
        close_world(&w);
    }
    cr_expect_gt(preemptions, 0, "nothing was preempted, so nothing was shown");
}

/* ---- other processes' words ---- */

Test(sched, results_that_are_not_the_steps_are_refused)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    struct token_shm result = {.token = 5};
    cr_assert_not(sched_return(&w.sched, 1, &result, 1)); /* nothing is in flight */
    add(&w, 0, 10, 5);
    plan_step(&w);
    cr_assert_not(sched_return(&w.sched, 2, &result, 1));
    cr_assert_not(sched_return(&w.sched, 1, &result, 0));
    result.token = w.plan.vocab_size;
    cr_assert_not(sched_return(&w.sched, 1, &result, 1));
    result.token = 5;
    cr_assert(sched_return(&w.sched, 1, &result, 1));
    cr_assert_not(sched_return(&w.sched, 1, &result, 1));
    close_world(&w);
}

Test(sched, a_request_that_cannot_be_is_answered_with_no_choices)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    prepare(&w, 0, 10, 5)->choices = CHOICES_MAX + 1;
    accept(&w, 0);
    prepare(&w, 1, 10, 5)->max_tokens = w.plan.max_model_len;
    accept(&w, 1);
    prepare(&w, 2, 10, 5)->stop_token_count = STOP_TOKENS_MAX + 1;
    accept(&w, 2);
    uint32_t slot, news = 0;
    while (sched_next_news(&w.sched, &slot))
        news++;
    cr_assert_eq(news, 3);
    for (slot = 0; slot < 3; slot++) {
        cr_assert_eq(arena_answer(&w.arena, slot)->sequence_count, 0);
        cr_assert(is_done(&w, slot));
        drain(&w, slot);
    }
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, repeated_and_late_hints_change_nothing)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    sched_cancel(&w.sched, 3);
    sched_drained(&w.sched, 3);
    add(&w, 3, 10, 5);
    sched_accept(&w.sched, 3);
    sched_accept(&w.sched, 3);
    sched_drained(&w.sched, 3); /* it is not */
    cr_assert_eq(w.sched.table.waiting.count, 1);
    run_until_quiet(&w);
    drain(&w, 3);
    sched_drained(&w.sched, 3);
    check_nothing_is_held(&w);
    close_world(&w);
}

/* ---- the prefix cache ---- */

Test(sched, a_common_beginning_is_computed_once)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.enable_prefix_caching = 1;
    open_world(&w, &plan);
    w.families = 1;
    add(&w, 0, 40, 4);
    add(&w, 1, 50, 4);
    const struct step_shm *first =
        plan_step(&w); /* in the same step: the second begins behind the first one's blocks */
    const struct row_shm *rows = arena_step_rows(&w.arena, first);
    cr_assert_eq(first->row_count, 2);
    cr_assert_eq(rows[1].first_pos, 32);
    cr_assert_eq(sequence_at(&w, 1, 0)->cached_tokens, 32);
    run_until_quiet(&w);
    check_tokens(&w, 1, 0);
    add(&w, 2, 48, 4); /* all three of its blocks are known, but its last token must be computed */
    plan_step(&w);
    cr_assert_eq(sequence_at(&w, 2, 0)->cached_tokens, 32);
    run_until_quiet(&w);
    for (uint32_t slot = 0; slot < 3; slot++)
        drain(&w, slot);
    check_nothing_is_held(&w);
    close_world(&w);
}

Test(sched, the_choices_of_a_request_share_its_prompt)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.enable_prefix_caching = 1;
    open_world(&w, &plan);
    prepare(&w, 0, 50, 6)->choices = 3;
    accept(&w, 0);
    run_until_quiet(&w);
    for (uint32_t choice = 0; choice < 3; choice++) {
        cr_assert_eq(sequence_at(&w, 0, choice)->cached_tokens, choice > 0 ? 48 : 0);
        check_tokens(&w, 0, choice);
    }
    close_world(&w);
}

Test(sched, scores_are_never_taken_from_the_cache)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.enable_prefix_caching = 1;
    open_world(&w, &plan);
    w.families = 1;
    add(&w, 0, 60, 1);
    run_until_quiet(&w);
    prepare(&w, 1, 60, 0)->flags = REQUEST_SCORE;
    accept(&w, 1);
    run_until_quiet(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 59);
    close_world(&w);
}

/* Two sequences, priority: the one that has its row already is the victim, and what its row was to fill must not be found. */
Test(sched, blocks_of_a_row_that_was_undone_cannot_be_found)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.enable_prefix_caching = 1;
    plan.uses_priority = 1;
    plan.num_blocks = 6;
    plan.max_model_len = 96;
    plan.window = 1;
    open_world(&w, &plan);
    prepare(&w, 0, 31, 40)->priority = 5; /* admitted first, since it comes alone */
    accept(&w, 0);
    plan_step(&w);
    return_step(&w);
    prepare(&w, 1, 47, 40)->priority = 1;
    accept(&w, 1);
    for (uint32_t turn = 0; turn < 200 && !(is_done(&w, 0) && is_done(&w, 1)); turn++) {
        plan_step(&w);
        if (w.sched.in_flight > 0)
            return_step(&w);
    }
    cr_assert(is_done(&w, 0) && is_done(&w, 1));
    cr_assert_gt(w.sched.preemptions, 0);
    check_tokens(&w, 0, 0);
    check_tokens(&w, 1, 0);
    close_world(&w);
}

/* ---- vLLM's own cases (tests/v1/core/test_scheduler.py, tests/v1/engine/test_engine_core.py) ---- */

/* Plans one step and compares the rows' token counts with a list that ends with 0. */
static void expect_rows(struct world *w, const uint32_t *tokens)
{
    const struct step_shm *record = plan_step(w);
    uint32_t count = 0;
    while (tokens[count] != 0)
        count++;
    cr_assert_eq(record != NULL ? record->row_count : 0, count, "%u rows, not %u", record ? record->row_count : 0,
                 count);
    for (uint32_t i = 0; i < count; i++)
        cr_assert_eq(arena_step_rows(&w->arena, record)[i].token_count, tokens[i], "row %u: %u tokens, not %u", i,
                     arena_step_rows(&w->arena, record)[i].token_count, tokens[i]);
}

#define EXPECT_ROWS(w, ...) expect_rows(w, (const uint32_t[]){__VA_ARGS__, 0})

static struct plan plan_of_vllm(uint32_t budget, uint32_t seqs, uint32_t window)
{
    struct plan plan = plan_for_tests();
    plan.max_num_batched_tokens = budget;
    plan.max_num_seqs = seqs;
    plan.window = window;
    plan.max_model_len = plan.context_length = 4096;
    plan.num_blocks = 1000;
    plan.prompt_pages = 256;
    return plan;
}

Test(sched, vllm_test_schedule_concurrent_batches)
{
    struct world w;
    struct plan plan = plan_of_vllm(1024, 2, 2);
    open_world(&w, &plan);
    add(&w, 0, 512, 8);
    EXPECT_ROWS(&w, 512);
    add(&w, 1, 512, 8);
    EXPECT_ROWS(&w, 512);
    return_step(&w);
    EXPECT_ROWS(&w, 1); /* the first one decodes while the second is in flight */
    run_until_quiet(&w);
    close_world(&w);
}

Test(sched, vllm_test_engine_core_concurrent_batches)
{
    struct world w;
    struct plan plan = plan_of_vllm(10, 2, 2);
    open_world(&w, &plan);
    add(&w, 0, 12, 5);
    add(&w, 1, 12, 5);
    EXPECT_ROWS(&w, 10);
    EXPECT_ROWS(&w, 2, 8);
    return_step(&w);
    EXPECT_ROWS(&w, 4);
    return_step(&w);
    EXPECT_ROWS(&w, 1);
    return_step(&w);
    EXPECT_ROWS(&w, 1);
    run_until_quiet(&w);
    check_tokens(&w, 0, 0);
    check_tokens(&w, 1, 0);
    close_world(&w);
}

Test(sched, vllm_test_schedule_concurrent_partial_requests)
{
    for (uint32_t caching = 0; caching < 2; caching++) {
        struct world w;
        struct plan plan = plan_of_vllm(1024, 16, 1);
        plan.long_prefill_token_threshold = 400;
        plan.enable_prefix_caching = caching;
        open_world(&w, &plan);
        for (uint32_t slot = 0; slot < 3; slot++)
            add(&w, slot, 800, 8);
        EXPECT_ROWS(&w, 400, 400, 224);
        return_step(&w);
        EXPECT_ROWS(&w, 400, 400, 224);
        return_step(&w);
        EXPECT_ROWS(&w, 1, 1, 352);
        run_until_quiet(&w);
        close_world(&w);
    }
}

Test(sched, vllm_test_schedule_order)
{
    for (uint32_t chunks = 0; chunks < 2; chunks++) {
        struct world w;
        struct plan plan = plan_of_vllm(1024, 3, 1);
        plan.enable_chunked_prefill = chunks;
        open_world(&w, &plan);
        const uint32_t prompts[] = {800, 800, 10, 10};
        for (uint32_t slot = 0; slot < 4; slot++)
            add(&w, slot, prompts[slot], 2);
        if (chunks)
            EXPECT_ROWS(&w, 800, 224);
        else
            EXPECT_ROWS(&w, 800); /* the short ones do not overtake */
        run_until_quiet(&w);
        close_world(&w);
    }
}

Test(sched, vllm_test_preempt_during_execution)
{
    struct world w;
    struct plan plan = plan_of_vllm(100, 16, 2);
    plan.num_blocks = 10;
    plan.max_model_len = 160;
    open_world(&w, &plan);
    add(&w, 0, 80, 8);
    EXPECT_ROWS(&w, 80);
    add(&w, 1, 80, 8);
    EXPECT_ROWS(&w, 80);
    return_step(&w);
    EXPECT_ROWS(&w, 1); /* a sixth block: the second gives its five back */
    cr_assert_eq(journal_sequence_state(sequence_at(&w, 1, 0)), SEQUENCE_WAITING);
    return_step(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 1); /* its late token counts */
    run_until_quiet(&w);
    check_tokens(&w, 1, 0);
    close_world(&w);
}

Test(sched, vllm_test_priority_scheduling_preemption)
{
    struct world w;
    struct plan plan = plan_of_vllm(200, 10, 1);
    plan.uses_priority = 1;
    plan.num_blocks = 5;
    plan.max_model_len = 80;
    open_world(&w, &plan);
    prepare(&w, 0, 32, 20)->priority = 5;
    accept(&w, 0);
    EXPECT_ROWS(&w, 32);
    return_step(&w);
    prepare(&w, 1, 32, 20)->priority = 0;
    accept(&w, 1);
    EXPECT_ROWS(&w, 1, 32);
    return_step(&w);
    const struct step_shm *record = plan_step(&w); /* the second needs a third block */
    cr_assert_eq(record->row_count, 1);
    cr_assert_eq(arena_sequence(&w.arena, arena_step_rows(&w.arena, record)[0].sequence)->request, 1);
    cr_assert_eq(journal_sequence_state(sequence_at(&w, 0, 0)), SEQUENCE_WAITING);
    run_until_quiet(&w);
    check_tokens(&w, 0, 0);
    close_world(&w);
}

Test(sched, vllm_test_prefix_caching_for_multi_turn)
{
    struct world w;
    struct plan plan = plan_of_vllm(1024, 4, 1);
    plan.enable_prefix_caching = 1;
    open_world(&w, &plan);
    add(&w, 0, 50, 30);
    run_until_quiet(&w);
    /* the second turn is all of the first: prompt, then answer */
    struct request_shm *second = prepare(&w, 1, 80, 4);
    uint32_t sequence = arena_answer(&w.arena, 0)->sequences[0];
    for (uint32_t i = 0; i < 80; i++) {
        uint32_t token = i < 50 ? token_at(1, 99, i) : journal_log_entry(&w.arena, sequence, i - 50)->token;
        journal_prompt_write(&w.arena, 1, i, 1, &token);
    }
    journal_request_set_state(second, REQUEST_ACCEPTED);
    sched_accept(&w.sched, 1);
    const struct step_shm *record = sched_plan(&w.sched);
    /* 79 tokens of the first turn have KV, so four blocks are known: 80 mod 16 would be none, and the last block is redone */
    cr_assert_eq(arena_step_rows(&w.arena, record)[0].first_pos, 64);
    cr_assert_eq(arena_step_rows(&w.arena, record)[0].token_count, 16);
    close_world(&w);
}

Test(sched, vllm_test_decode)
{
    struct world w;
    struct plan plan = plan_of_vllm(1024, 4, 1);
    plan.enable_prefix_caching = 1;
    open_world(&w, &plan);
    add(&w, 0, 55, 40);
    const struct sequence_shm *shm;
    uint32_t sequence = 0;
    do {
        plan_step(&w);
        sequence = arena_answer(&w.arena, 0)->sequences[0];
        shm = sequence_at(&w, 0, 0);
        cr_assert_eq(shm->block_count, (shm->computed + 15) / 16);
        cr_assert_eq(w.sched.table.seqs[sequence].published, shm->computed / 16);
        return_step(&w);
    } while (shm->computed < 78);
    run_until_quiet(&w);
    close_world(&w);
}

Test(sched, vllm_test_kv_pressure_preemption_with_inflight_output)
{
    struct world w;
    struct plan plan = plan_of_vllm(64, 8, 4);
    plan.num_blocks = 5;
    plan.max_model_len = 32;
    open_world(&w, &plan);
    for (uint32_t slot = 0; slot < 8; slot++)
        add(&w, slot, 8, 24);
    run_until_quiet(&w);
    cr_assert_gt(w.sched.preemptions, 0);
    for (uint32_t slot = 0; slot < 8; slot++) {
        cr_assert_eq(journal_log_committed(sequence_at(&w, slot, 0)), 24);
        check_tokens(&w, slot, 0);
    }
    close_world(&w);
}

/* ---- liveness and other words of front's ---- */

/* The least important one is first in the list, needs a block and is its own victim; the other one had no turn. */
Test(sched, a_plan_that_only_preempted_is_followed_by_one_with_rows)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.uses_priority = 1;
    plan.num_blocks = 5;
    plan.max_model_len = 80;
    plan.window = 1;
    open_world(&w, &plan);
    prepare(&w, 0, 40, 20)->priority = 5; /* three of five blocks, the fourth after nine tokens */
    accept(&w, 0);
    cr_assert_not_null(plan_step(&w));
    prepare(&w, 1, 20, 20)->priority = 1;
    accept(&w, 1);
    return_step(&w);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 0) && is_done(&w, 1));
    close_world(&w);
}

Test(sched, a_prompt_with_tokens_outside_the_vocabulary_has_no_choices)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    prepare(&w, 0, 10, 5);
    uint32_t token = w.plan.vocab_size;
    journal_prompt_write(&w.arena, 0, 9, 1, &token);
    accept(&w, 0);
    cr_assert(is_done(&w, 0));
    cr_assert_eq(arena_answer(&w.arena, 0)->sequence_count, 0);
    close_world(&w);
}

Test(sched, a_prompt_on_pages_that_do_not_exist_has_no_choices)
{
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    prepare(&w, 0, 300, 5);
    w.pages_used[arena_prompt_list(&w.arena, 0)[1]] = 0;
    arena_prompt_list(&w.arena, 0)[1] = w.plan.prompt_pages;
    accept(&w, 0);
    cr_assert(is_done(&w, 0));
    cr_assert_eq(arena_answer(&w.arena, 0)->sequence_count, 0);
    close_world(&w);
}

Test(sched, a_request_whose_logs_can_never_be_reserved_stops_nobody)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.log_pages = 5;
    plan.sequences_max = 4;
    open_world(&w, &plan);
    prepare(&w, 0, 8, 100)->choices = 3; /* six pages */
    accept(&w, 0);
    prepare(&w, 1, 8, 5)->choices = 5;
    accept(&w, 1);
    add(&w, 2, 8, 5);
    run_until_quiet(&w);
    cr_assert(is_done(&w, 0) && is_done(&w, 1) && is_done(&w, 2));
    cr_assert_eq(journal_log_committed(sequence_at(&w, 2, 0)), 5);
    close_world(&w);
}

/* ---- policies that ask for too much ---- */

static void plan_hasty(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    if (table->running.count > 0 && policy_schedulable(sched, table->running.first) == 0)
        policy_preempt(sched, table->running.first); /* its token is in flight */
    uint32_t s = table->waiting.first;
    struct policy_hit hit = policy_find_prefix(sched, s);
    policy_admit(sched, s, &hit, table->seqs[s].known - hit.tokens);
}

Test(sched, a_sequence_with_a_token_in_flight_is_not_admitted)
{
    static const struct policy hasty = {.name = "hasty", .source = "this file", .plan = plan_hasty};
    struct world w;
    struct plan plan = plan_for_tests();
    open_world(&w, &plan);
    w.sched.policy = &hasty;
    add(&w, 0, 10, 3);
    cr_assert_not_null(plan_step(&w));
    cr_assert_null(plan_step(&w));
    return_step(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 0, 0)), 1); /* a victim gets it all the same */
    cr_assert_not_null(plan_step(&w));
    cr_assert_null(plan_step(&w));
    return_step(&w);
    cr_assert_not_null(plan_step(&w));
    cr_assert_null(plan_step(&w));
    return_step(&w); /* its last one, while it waits */
    cr_assert(is_done(&w, 0));
    cr_assert_eq(sequence_at(&w, 0, 0)->finish_reason, FINISH_LENGTH);
    cr_assert_eq(sequence_at(&w, 0, 0)->preemptions, 3);
    check_tokens(&w, 0, 0);
    drain(&w, 0);
    check_nothing_is_held(&w);

    add(&w, 1, 10, 3);
    cr_assert_not_null(plan_step(&w));
    cr_assert_null(plan_step(&w)); /* preempted, its token in flight */
    sched_cancel(&w.sched, 1);
    cr_assert(is_done(&w, 1));
    return_step(&w);
    cr_assert_eq(journal_log_committed(sequence_at(&w, 1, 0)), 0);
    drain(&w, 1);
    check_nothing_is_held(&w);
    close_world(&w);
}

/* The budget of batch is a share of what is queued and in flight: what was cancelled while it was queued is neither. */
Test(sched, queued_work_that_is_cancelled_no_longer_counts_for_the_budget_of_batch)
{
    struct world w;
    struct plan plan = plan_for_tests();
    plan.max_num_batched_tokens = 400;
    plan.num_blocks = 256;
    tested_policy = &policy_batch;
    open_world(&w, &plan);
    for (uint32_t slot = 0; slot < 8; slot++)
        add(&w, slot, 40, 4);
    const struct step_shm *record = plan_step(&w);
    cr_assert_eq(record->token_count, 160); /* half of all */
    for (uint32_t slot = 4; slot < 6; slot++) {
        journal_request_cancel(request_at(&w, slot));
        sched_cancel(&w.sched, slot);
    }
    record = plan_step(&w); /* two are queued, four in flight: (80 + 160) / 2 tokens would fit, two rows are there */
    cr_assert_eq(record->row_count, 2);
    return_step(&w);
    record = plan_step(&w); /* four decode, two prompts of 40 are in flight: (4 + 80) / 2 */
    cr_assert_eq(record->row_count, 4);
    run_until_quiet(&w);
    for (uint32_t slot = 0; slot < 8; slot++)
        drain(&w, slot);
    check_nothing_is_held(&w);
    close_world(&w);
    tested_policy = &policy_default;
}

/* ---- everything at once ---- */

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 16) % n);
}

static void check_conservation(struct world *w)
{
    uint32_t held = 0;
    uint32_t *references = calloc(w->plan.num_blocks, sizeof(*references));
    for (uint32_t s = w->sched.table.running.first; s != SEQ_NONE; s = w->sched.table.seqs[s].next)
        for (uint32_t b = 0; b < arena_sequence(&w->arena, s)->block_count; b++)
            held += references[arena_block_table(&w->arena, s)[b]]++ == 0;
    for (uint32_t b = 0; b < w->plan.num_blocks; b++)
        cr_assert_eq(references[b], w->sched.kv.blocks[b].references);
    free(references);
    cr_assert_eq(held + w->sched.kv.free_count, w->plan.num_blocks);
    for (uint32_t s = w->sched.table.waiting.first; s != SEQ_NONE; s = w->sched.table.seqs[s].next)
        cr_assert_eq(arena_sequence(&w->arena, s)->block_count, 0);
    cr_assert_leq(w->sched.table.running.count, w->plan.max_num_seqs);
}

static struct plan plan_with_times(void)
{
    struct plan plan = plan_for_tests();
    plan.timing = (struct timing){.stage_count = 2,
                                  .stages = {{.row_us = 100, .weights_us = 1000, .token_us = 50},
                                             {.base_us = 10, .weights_us = 2000, .token_us = 70}}};
    return plan;
}

/* Random arrivals, aborts and returns. Returns a digest of every step record. */
struct totals {
    uint64_t steps, preemptions, cached_tokens, drafted, accepted;
};

static bool speculates;

static uint64_t random_run(uint64_t seed, uint32_t turns, struct totals *totals)
{
    struct world w;
    struct plan plan = plan_for_tests();
    random_state = seed * 2654435761u + 1;
    plan.num_blocks = 9 + random_below(20);
    plan.max_model_len = 16 * (uint32_t)min_u64(plan.num_blocks, 16);
    plan.window = plan.stage_count = 2;
    plan.window = 1 + random_below(4);
    plan.max_num_seqs = 1 + random_below(8);
    plan.max_num_batched_tokens = plan.max_num_seqs + random_below(60);
    plan.log_pages = 8 + random_below(40);
    plan.sequences_max = 4 + random_below(20);
    plan.enable_prefix_caching = random_below(4) > 0;
    plan.uses_priority = random_below(2);
    plan.reserve_full_isl = random_below(3) > 0;
    plan.watermark_blocks = random_below(3) * (plan.num_blocks / 9);
    plan.long_prefill_token_threshold = random_below(3) * 7;
    if (speculates) {
        plan.speculate = SPECULATE_NGRAM;
        plan.timing = plan_with_times().timing;
        period = 2 + random_below(9);
    }
    open_world(&w, &plan);
    w.families = random_below(4);
    uint64_t digest = 14695981039346656037ull, ended = 0;
    for (uint32_t turn = 0; turn < turns; turn++) {
        uint32_t slot = random_below(w.plan.requests_max);
        enum request_state state = journal_request_state(request_at(&w, slot));
        if (state == REQUEST_FREE && random_below(2) == 0) {
            uint32_t prompt = 2 + random_below(w.plan.max_model_len / 2 - 2);
            struct request_shm *request = prepare(&w, slot, prompt, 1 + random_below(w.plan.max_model_len - prompt));
            request->priority = (int32_t)random_below(3);
            request->min_tokens = request->max_tokens / 3;
            request->choices = 1 + (random_below(6) == 0) * random_below(3);
            if (request->choices * ((request->max_tokens + 63) / 64) > w.plan.log_pages)
                request->choices = 1;
            if (random_below(9) == 0) {
                request->flags = REQUEST_SCORE;
                if (random_below(2) == 0)
                    request->max_tokens = 0;
                if (request->choices * journal_log_pages(request) > w.plan.log_pages)
                    request->choices = 1;
            }
            accept(&w, slot);
        } else if (state == REQUEST_ACCEPTED && is_done(&w, slot)) {
            for (uint32_t c = 0; c < arena_answer(&w.arena, slot)->sequence_count; c++) {
                check_tokens(&w, slot, c);
                const struct sequence_shm *shm = sequence_at(&w, slot, c);
                if (shm->finish_reason == FINISH_LENGTH)
                    cr_assert_eq(journal_log_committed(shm), journal_log_entries(request_at(&w, slot)));
            }
            drain(&w, slot);
            ended++;
        } else if (state == REQUEST_ACCEPTED && random_below(150) == 0) {
            sched_stop(&w.sched, slot, random_below(8));
        } else if (state == REQUEST_ACCEPTED && random_below(150) == 0) {
            journal_request_cancel(request_at(&w, slot));
            sched_cancel(&w.sched, slot);
        }
        const struct step_shm *record = plan_step(&w);
        for (uint32_t i = 0; record != NULL && i < record->token_count; i++)
            digest = (digest ^ arena_step_tokens(&w.arena, record)[i]) * 1099511628211ull;
        for (uint32_t i = 0; record != NULL && i < record->block_count; i++)
            digest = (digest ^ arena_step_blocks(&w.arena, record)[i]) * 1099511628211ull;
        if (w.sched.in_flight > 0 && random_below(3) != 0)
            return_step(&w);
        check_conservation(&w);
        if (turn % 500 == 499) /* nobody comes any more: all that was taken in ends by itself */
            run_until_quiet(&w);
    }
    run_until_quiet(&w); /* everything accepted ends */
    for (uint32_t round = 0; round < w.plan.requests_max; round++) {
        for (uint32_t slot = 0; slot < w.plan.requests_max; slot++)
            if (journal_request_state(request_at(&w, slot)) == REQUEST_ACCEPTED && is_done(&w, slot))
                drain(&w, slot);
        run_until_quiet(&w);
    }
    cr_assert_gt(ended, 0);
    check_nothing_is_held(&w);
    totals->steps += w.sched.steps;
    totals->preemptions += w.sched.preemptions;
    totals->cached_tokens += w.sched.cached_tokens;
    totals->drafted += w.sched.drafts.drafted;
    totals->accepted += w.sched.drafts.accepted;
    close_world(&w);
    return digest;
}

static const char *const policy_names[] = {"default",    "even",     "batch",   "batch-as-published",
                                           "decode-cap", "throttle", "chunked", "fastpp"};

Test(sched, under_anything_at_random_nothing_is_lost_or_held, .timeout = 300)
{
    for (size_t i = 0; i < ARRAY_COUNT(policy_names); i++) {
        struct totals totals = {0};
        tested_policy = policy_find(policy_names[i]);
        cr_assert_not_null(tested_policy);
        uint64_t seeds = tested_policy == &policy_default ? 600 : 100;
        for (uint64_t seed = 1; seed <= seeds; seed++)
            random_run(seed, 4000, &totals);
        fprintf(stderr, "sched: %s: %llu steps, %llu preemptions, %llu cached tokens\n", tested_policy->name,
                (unsigned long long)totals.steps, (unsigned long long)totals.preemptions,
                (unsigned long long)totals.cached_tokens);
        cr_assert_gt(totals.steps, seeds * 1500);
        cr_assert_gt(totals.cached_tokens, 1000);
        if (tested_policy != &policy_even) /* which forecasts */
            cr_assert_gt(totals.preemptions, 1000);
    }
}

Test(sched, the_same_events_give_the_same_steps, .timeout = 60)
{
    struct totals totals = {0};
    for (size_t i = 0; i < ARRAY_COUNT(policy_names); i++) {
        tested_policy = policy_find(policy_names[i]);
        for (uint64_t seed = 100; seed < 103; seed++)
            cr_assert_eq(random_run(seed, 3000, &totals), random_run(seed, 3000, &totals));
        cr_assert_neq(random_run(100, 3000, &totals), random_run(101, 3000, &totals));
    }
}

/* ---- drafts ---- */

/* Texts that nearly repeat themselves, on stages that have time for drafts. */
static struct plan plan_with_drafts(void)
{
    struct plan plan = plan_with_times();
    plan.speculate = SPECULATE_NGRAM;
    period = 6;
    return plan;
}

Test(sched, drafts_bring_the_same_tokens_in_fewer_steps)
{
    uint64_t steps[2];
    for (uint32_t run = 0; run < 2; run++) {
        struct world w;
        struct plan plan = plan_with_drafts();
        plan.speculate = run;
        open_world(&w, &plan);
        add(&w, 0, 30, 200);
        run_until_quiet(&w);
        cr_assert_eq(journal_log_committed(sequence_at(&w, 0, 0)), 200);
        check_tokens(&w, 0, 0);
        steps[run] = w.sched.steps;
        cr_expect_eq(w.sched.drafts.accepted + w.sched.steps, 200); /* the first step computes the prompt */
        cr_expect_eq(w.sched.drafts.drafted > 0, run == SPECULATE_NGRAM);
        drain(&w, 0);
        check_nothing_is_held(&w);
        close_world(&w);
    }
    cr_expect_lt(2 * steps[1], steps[0], "%llu steps, not %llu", (unsigned long long)steps[1],
                 (unsigned long long)steps[0]);
}

Test(sched, with_drafts_an_answer_ends_where_it_would_without)
{
    uint64_t accepted = 0;
    for (uint32_t end = 30; end < 60; end++) {
        struct world w;
        struct plan plan = plan_with_drafts();
        open_world(&w, &plan);
        uint32_t last = token_at(1, 0, 20 + end + end % 5); /* comes in every period, and counts from some day on */
        struct request_shm *request = prepare(&w, 0, 20, 100);
        request->stop_tokens[request->stop_token_count++] = last;
        request->min_tokens = end;
        accept(&w, 0);
        prepare(&w, 1, 20, end);
        accept(&w, 1);
        for (uint32_t turn = 0; turn < 400 && !(is_done(&w, 0) && is_done(&w, 1)); turn++) {
            plan_step(&w);
            return_step(&w);
        }
        check_tokens(&w, 0, 0);
        check_tokens(&w, 1, 0);
        uint32_t expected = end;
        while (expected < 100 && token_at(1, 0, 20 + expected - 1) != last)
            expected++;
        cr_expect_eq(journal_log_committed(sequence_at(&w, 0, 0)), expected, "%u", end);
        cr_expect_eq(sequence_at(&w, 0, 0)->finish_reason, FINISH_STOP);
        cr_expect_eq(journal_log_committed(sequence_at(&w, 1, 0)), end);
        accepted += w.sched.drafts.accepted;
        close_world(&w);
    }
    cr_expect_gt(accepted, 100);
}

/* What each would need is in a row's history, or in the log, which drafts are not. */
static void ask_grammar(struct request_shm *request)
{
    request->grammar_words = 10;
}
static void ask_bias(struct request_shm *request)
{
    request->bias_count = 1;
}
static void ask_presence(struct request_shm *request)
{
    request->presence_penalty = 0.5f;
}
static void ask_frequency(struct request_shm *request)
{
    request->frequency_penalty = 0.5f;
}
static void ask_repetition(struct request_shm *request)
{
    request->repetition_penalty = 1.1f;
}
static void ask_min_tokens(struct request_shm *request)
{
    request->min_tokens = request->max_tokens;
}

Test(sched, what_depends_on_the_tokens_before_has_no_drafts)
{
    static void (*const asks[])(struct request_shm *) = {ask_grammar,   ask_bias,       ask_presence,
                                                         ask_frequency, ask_repetition, ask_min_tokens};
    for (size_t i = 0; i < ARRAY_COUNT(asks); i++) {
        struct world w;
        struct plan plan = plan_with_drafts();
        open_world(&w, &plan);
        asks[i](prepare(&w, 0, 30, 100));
        accept(&w, 0);
        run_until_quiet(&w);
        cr_assert(is_done(&w, 0));
        cr_expect_eq(w.sched.drafts.drafted, 0, "%zu", i);
        close_world(&w);
    }
}

Test(sched, drafts_are_worth_their_time_or_are_not_made)
{
    struct {
        struct timing_stage stage;
        uint32_t period;
        uint64_t least, most;
    } cases[] = {
        {{.weights_us = 5000, .token_us = 10, .row_us = 10}, 6, 100, 600}, /* nearly for nothing */
        {{.weights_us = 10, .token_us = 1000}, 6, 0, 0},                   /* each as dear as a token of its own */
        {{.weights_us = 5000, .token_us = 10, .row_us = 10}, 0, 0, 0},     /* nothing ever comes again */
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct world w;
        struct plan plan = plan_with_drafts();
        plan.timing.stages[0] = plan.timing.stages[1] = cases[i].stage;
        period = cases[i].period;
        open_world(&w, &plan);
        add(&w, 0, 1, 200);
        run_until_quiet(&w);
        check_tokens(&w, 0, 0);
        uint64_t drafted = w.sched.drafts.drafted;
        cr_expect(drafted >= cases[i].least && drafted <= cases[i].most, "case %zu: %llu", i,
                  (unsigned long long)drafted);
        close_world(&w);
    }
}

/* A scheduler dies with drafts in flight, having committed so many of the step's results; and, in the second half, having
 * taken over the right ones, which it does behind the last of them. */
Test(sched, a_successor_finds_drafts_in_flight_wherever_their_results_are)
{
    uint32_t died = 0;
    for (uint32_t run = 0; run < 2 * (DRAFTS_MAX + 2); run++) {
        uint32_t committed = run % (DRAFTS_MAX + 2);
        bool is_kept = run >= DRAFTS_MAX + 2;
        struct world w;
        struct plan plan = plan_with_drafts();
        plan.enable_prefix_caching = 1;
        open_world(&w, &plan);
        add(&w, 0, 30, 400);
        const struct row_shm *row = NULL;
        for (uint32_t turn = 0; turn < 15 || step_drafts(row) + 1 < committed; turn++) {
            if (w.sched.in_flight > 0)
                return_step(&w);
            row = arena_step_rows(&w.arena, plan_step(&w));
        }
        uint32_t sequence = row->sequence, behind = row->first_pos + 1, right = 1;
        const uint32_t *drafts = arena_step_tokens(&w.arena, arena_step(&w.arena, w.oldest)) + row->token_first + 1;
        while (right <= step_drafts(row) && drafts[right - 1] == token_at(1, 0, behind + right - 1))
            right++;
        if (committed <= right) {
            for (uint32_t i = 0; i < committed; i++) {
                const struct token_shm token = {.token = token_at(1, 0, behind + i)};
                journal_log_append(&w.arena, sequence, &token, NULL);
            }
            if (is_kept && committed == right)
                arena_sequence(&w.arena, sequence)->computed = behind + committed - 1;
            died++;
            sched_fini(&w.sched);
            sched_init(&w.sched, &w.arena, tested_policy);
            sched_recover(&w.sched, w.oldest - 1);
            add(&w, 1, 30, 30);
        }
        run_until_quiet(&w);
        check_tokens(&w, 0, 0);
        cr_assert_eq(journal_log_committed(sequence_at(&w, 0, 0)), 400);
        drain(&w, 0);
        if (committed <= right)
            drain(&w, 1);
        check_nothing_is_held(&w);
        close_world(&w);
    }
    cr_expect_gt(died, DRAFTS_MAX);
}

Test(sched, with_drafts_nothing_is_lost_or_held_either, .timeout = 300)
{
    speculates = true;
    for (size_t i = 0; i < ARRAY_COUNT(policy_names); i++) {
        struct totals totals = {0};
        tested_policy = policy_find(policy_names[i]);
        for (uint64_t seed = 1; seed <= 40; seed++)
            random_run(seed, 4000, &totals);
        cr_assert_eq(random_run(50, 3000, &totals), random_run(50, 3000, &totals));
        fprintf(stderr, "sched: %s: %llu steps, %llu preemptions, %llu drafts, %llu of them right\n",
                tested_policy->name, (unsigned long long)totals.steps, (unsigned long long)totals.preemptions,
                (unsigned long long)totals.drafted, (unsigned long long)totals.accepted);
        cr_assert_gt(totals.accepted, 10000);
        cr_assert_gt(totals.drafted, totals.accepted);
    }
}

/* ---- measured times ---- */

/* Runs one request; every stage takes twice what the table says, with the help of others or not. */
static void run_slowly(struct world *w, uint32_t slot, bool is_lone)
{
    add(w, slot, 10, 40);
    while (!is_done(w, slot)) {
        const struct step_shm *record = sched_plan(&w->sched);
        const struct token_shm result = {.token = 500};
        struct step_time_shm times[2] = {0};
        cr_assert_not_null(record);
        for (uint32_t i = 0; i < 2; i++) {
            uint64_t cpu_ns = (uint64_t)(2000 * timing_stage_us(&w->plan.timing.stages[i], policy_shape(&w->sched)));
            times[i] = (struct step_time_shm){.step = record->step,
                                              .end_ns = 1000000000,
                                              .lent_ns = is_lone ? 1000000000 : 0,
                                              .cpu_ns = cpu_ns,
                                              .cost_ns = is_lone ? 0 : cpu_ns};
        }
        sched_measure(&w->sched, record->step, times);
        cr_assert(sched_return(&w->sched, record->step, &result, 1));
    }
    drain(w, slot);
}

Test(sched, learns_from_measured_times_and_a_successor_knows_what_was_learned)
{
    static struct world w;
    struct plan plan = plan_with_times();
    struct shape shape = {0};
    shape_add(&shape, 20, 1, 1);
    open_world(&w, &plan);
    run_slowly(&w, 0, false);
    double predicted = timing_stage_us(&policy_timing(&w.sched)->stages[1], &shape);
    cr_expect_float_eq(predicted / timing_stage_us(&plan.timing.stages[1], &shape), 2, 0.1);
    sched_fini(&w.sched);
    sched_init(&w.sched, &w.arena, policy_find("even"));
    cr_expect_eq(timing_stage_us(&policy_timing(&w.sched)->stages[1], &shape), predicted);
    close_world(&w);
}

Test(sched, learns_nothing_from_steps_that_other_stages_helped_with)
{
    static struct world w;
    struct plan plan = plan_with_times();
    open_world(&w, &plan);
    run_slowly(&w, 0, true);
    cr_expect_arr_eq(policy_timing(&w.sched), &plan.timing, sizeof(plan.timing));
    close_world(&w);
}

Test(sched, notes_how_much_faster_steps_are_that_other_stages_helped_with)
{
    static struct world w;
    struct plan plan = plan_with_times();
    open_world(&w, &plan);
    cr_expect_eq(w.sched.lone_speed, 1);
    add(&w, 0, 10, 3);
    while (!is_done(&w, 0)) {
        const struct step_shm *record = sched_plan(&w.sched);
        const struct token_shm result = {.token = 500};
        double took_us = timing_traversal_us(&plan.timing, policy_shape(&w.sched)) / 1.5;
        struct step_time_shm times[2] = {{.step = record->step, .cpu_ns = 9, .lent_ns = 9},
                                         {.step = record->step, .cpu_ns = 9, .lent_ns = 9}};
        times[1].end_ns = record->planned_us * 1000 + (uint64_t)(1000 * took_us);
        sched_measure(&w.sched, record->step, times);
        cr_expect_float_eq(w.sched.lone_speed, 1.5, 0.01);
        cr_assert(sched_return(&w.sched, record->step, &result, 1));
    }
    drain(&w, 0);
    close_world(&w);
}

Test(sched, a_frozen_model_stays_as_it_is)
{
    static struct world w;
    struct plan plan = plan_with_times();
    plan.freeze_timing = 1;
    open_world(&w, &plan);
    run_slowly(&w, 0, false);
    cr_expect_arr_eq(policy_timing(&w.sched), &plan.timing, sizeof(plan.timing));
    close_world(&w);
}

Test(sched, measured_times_of_a_step_that_is_not_in_flight_change_nothing)
{
    static struct world w;
    struct plan plan = plan_with_times();
    open_world(&w, &plan);
    const struct step_time_shm times[2] = {{.step = 3, .end_ns = 9, .cpu_ns = 9},
                                           {.step = 3, .end_ns = 9, .cpu_ns = 9}};
    sched_measure(&w.sched, 3, times);
    cr_expect_arr_eq(policy_timing(&w.sched), &plan.timing, sizeof(plan.timing));
    close_world(&w);
}
