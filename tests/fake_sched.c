#include "tests/fake_sched.h"

#include "ipc/journal.h"

void fake_sched_plan(struct plan *plan)
{
    plan->sequences_max = plan->requests_max * CHOICES_MAX;
    struct layout layout;
    layout_compute(&layout, plan);
    plan->log_pages = plan->sequences_max * layout.log_pages_per_sequence;
}

static uint32_t sequence_number(uint32_t slot, uint32_t choice)
{
    return slot * CHOICES_MAX + choice;
}

void fake_sched_take(const struct arena *arena, uint32_t slot)
{
    const struct request_shm *request = arena_request(arena, slot);
    struct answer_shm *answer = arena_answer(arena, slot);
    answer->sequence_count = request->choices;
    for (uint32_t c = 0; c < request->choices; c++) {
        uint32_t number = sequence_number(slot, c);
        struct sequence_shm *sequence = arena_sequence(arena, number);
        for (uint32_t p = 0; p < arena->layout.log_pages_per_sequence; p++)
            arena_log_list(arena, number)[p] = number * arena->layout.log_pages_per_sequence + p;
        atomic_store_explicit(&sequence->committed, 0, memory_order_relaxed);
        sequence->request = slot;
        sequence->request_generation = request->generation;
        sequence->choice = c;
        sequence->finish_reason = FINISH_NONE;
        sequence->cached_tokens = 0;
        journal_sequence_set_state(sequence, SEQUENCE_RUNNING);
        answer->sequences[c] = number;
    }
    journal_answer_set(answer, request->generation);
}

void fake_sched_commit(const struct arena *arena, uint32_t slot, uint32_t choice, const struct token_shm *token)
{
    journal_log_append(arena, sequence_number(slot, choice), token, NULL);
}

void fake_sched_end(const struct arena *arena, uint32_t slot, uint32_t choice, enum finish_reason reason)
{
    struct sequence_shm *sequence = arena_sequence(arena, sequence_number(slot, choice));
    sequence->finish_reason = reason;
    journal_sequence_set_state(sequence, SEQUENCE_DONE);
}

void fake_sched_forget(const struct arena *arena, uint32_t slot)
{
    struct answer_shm *answer = arena_answer(arena, slot);
    for (uint32_t c = 0; c < answer->sequence_count; c++)
        journal_sequence_set_state(arena_sequence(arena, answer->sequences[c]), SEQUENCE_FREE);
    journal_answer_set(answer, 0);
}
