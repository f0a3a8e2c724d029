#include "engine/recover.h"

#include <stdlib.h>

#include "engine/suspect.h"
#include "ipc/journal.h"
#include "ipc/log.h"

/* ---- steps ---- */

/* The last one published; 0: none was. */
static uint64_t last_published(const struct arena *arena)
{
    uint64_t last = 0;
    for (uint32_t slot = 0; slot < arena->layout.step_slots; slot++) {
        uint64_t step = arena_step(arena, slot)->step;
        if ((step & (arena->layout.step_slots - 1)) == slot && step > last && step_is_published(arena, step))
            last = step;
    }
    return last;
}

/* True: some are cancelled, so what they were to compute is not there. */
static bool recover_flights(struct sched *sched, uint64_t returned)
{
    bool is_cancelled = false;
    for (uint64_t step = returned + 1; step < sched->next_step; step++) {
        check(step_is_published(sched->arena, step));
        sched->record = arena_step(sched->arena, step);
        sched->shape = (struct shape){0};
        const struct row_shm *rows = arena_step_rows(sched->arena, sched->record);
        for (uint32_t i = 0; i < sched->record->row_count; i++)
            step_shape_add(&sched->shape, &rows[i]);
        sched_note_flight(sched);
        is_cancelled = is_cancelled || step_is_cancelled(sched->record);
    }
    return is_cancelled;
}

/* ---- sequences ---- */

static bool is_named(const struct arena *arena, uint32_t sequence)
{
    const struct sequence_shm *shm = arena_sequence(arena, sequence);
    if (shm->request >= arena->plan->requests_max)
        return false;
    const struct answer_shm *answer = arena_answer(arena, shm->request);
    return journal_answer_generation(answer) == shm->request_generation && shm->choice < answer->sequence_count &&
           answer->sequences[shm->choice] == sequence;
}

/* Takes back what the step did that was not published. */
static void take_back(struct sched *sched, struct sequence_shm *shm)
{
    if (shm->planned_step == (uint32_t)sched->next_step)
        shm->computed = shm->computed_before;
    bool has_blocks = shm->block_count > 0 && shm->computed <= (uint64_t)shm->block_count * sched->plan->block_size;
    if (journal_sequence_state(shm) == SEQUENCE_RUNNING && has_blocks &&
        shm->admitted_step != (uint32_t)sched->next_step)
        return;
    shm->block_count = shm->computed = 0;
    journal_order();
    journal_sequence_set_state(shm, SEQUENCE_WAITING);
}

struct live {
    uint32_t sequence, choice;
    uint64_t order;
};

static int compare_live(const void *a, const void *b)
{
    const struct live *x = a, *y = b;
    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    return (x->choice > y->choice) - (x->choice < y->choice);
}

/* Those that wait or run, in the order in which their requests were accepted. Their log pages, and those of sequences that are
 * done, are taken; the others are free. */
static uint32_t find_sequences(struct sched *sched, struct live *live)
{
    const struct arena *arena = sched->arena;
    bool *is_taken = base_alloc(sched->plan->log_pages * sizeof(*is_taken));
    uint32_t count = 0;
    for (uint32_t s = 0; s < sched->plan->sequences_max; s++) {
        struct sequence_shm *shm = arena_sequence(arena, s);
        if (journal_sequence_state(shm) == SEQUENCE_FREE)
            continue;
        if (!is_named(arena, s)) {
            shm->log_page_count = shm->block_count = 0;
            journal_sequence_set_state(shm, SEQUENCE_FREE);
            continue;
        }
        seq_list_remove(&sched->table, s);
        for (uint32_t page = 0; page < shm->log_page_count; page++)
            is_taken[arena_log_list(arena, s)[page]] = true;
        if (journal_sequence_state(shm) != SEQUENCE_DONE)
            live[count++] = (struct live){s, shm->choice, arena_request(arena, shm->request)->order};
    }
    sched->free_log_page_count = 0;
    for (uint32_t page = sched->plan->log_pages; page-- > 0;)
        if (!is_taken[page])
            sched->free_log_pages[sched->free_log_page_count++] = page;
    free(is_taken);
    qsort(live, count, sizeof(*live), compare_live);
    return count;
}

static void recover_sequence(struct sched *sched, uint32_t sequence)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    take_back(sched, shm);
    sched_describe(sched, sequence);
    sched_extend_hashes(sched, sequence);
    suspect_recover(sched, sequence);
    bool is_running = journal_sequence_state(shm) == SEQUENCE_RUNNING;
    for (uint32_t i = 0; i < shm->block_count; i++)
        kv_hold(&sched->kv, arena_block_table(sched->arena, sequence)[i]);
    sched_publish_blocks(sched, sequence);
    struct seq_list *list = is_running ? &sched->table.running : &sched->table.waiting;
    if (sched->plan->uses_priority && !is_running)
        seq_list_insert(&sched->table, list, sequence);
    else
        seq_list_append(&sched->table, list, sequence);
}

/* ---- requests ---- */

/* Those that were taken in. Front is told to look at every one that is not free: it may have missed what was new. */
static void recover_requests(struct sched *sched)
{
    for (uint32_t slot = 0; slot < sched->plan->requests_max; slot++) {
        sched->requests[slot].generation = journal_answer_generation(arena_answer(sched->arena, slot));
        if (journal_request_state(arena_request(sched->arena, slot)) != REQUEST_FREE)
            sched_add_news(sched, slot);
    }
}

void sched_recover(struct sched *sched, uint64_t returned)
{
    struct live *live = base_alloc(sched->plan->sequences_max * sizeof(*live));
    sched->next_step = max_u64(last_published(sched->arena), returned) + 1;
    check(sched->next_step - 1 - returned <= sched->plan->window);
    uint32_t count = find_sequences(sched, live);
    for (uint32_t i = 0; i < count; i++)
        recover_sequence(sched, live[i].sequence);
    if (recover_flights(sched, returned))
        suspect_start_over(sched);
    recover_requests(sched);
    for (uint32_t i = 0; i < count; i++)
        sched_finish_if_ended(sched, live[i].sequence);
    if (returned > 0 || count > 0)
        log_info("went on at step %llu: %u steps in flight, %u sequences running, %u waiting",
                 (unsigned long long)sched->next_step, sched->in_flight, sched->table.running.count,
                 sched->table.waiting.count);
    free(live);
}
