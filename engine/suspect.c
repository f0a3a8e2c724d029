#include "engine/suspect.h"

#include "engine/policy.h"
#include "engine/recover.h"
#include "ipc/journal.h"
#include "ipc/log.h"

void suspect_start_over(struct sched *sched)
{
    const uint64_t first = sched->next_step - sched->in_flight;
    for (uint64_t step = first; step < sched->next_step; step++) { /* before anything else: a successor goes by it */
        step_cancel(arena_step(sched->arena, step));
        sched->flights[step % sched->plan->window].is_cancelled = true;
    }
    journal_order();
    while (sched->table.running.count > 0)
        sched_take_back(sched, sched->table.running.last);
    kv_unpublish_all(&sched->kv);
}

static void mark(struct sched *sched, const struct flight *flight)
{
    for (uint32_t i = 0; i < flight->row_count; i++) {
        uint32_t sequence = flight->rows[i].sequence;
        const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
        bool is_alive =
            shm->generation == flight->rows[i].sequence_generation && journal_sequence_state(shm) == SEQUENCE_WAITING;
        if (!is_alive || sched->suspects.until[sequence] != 0)
            continue;
        sched->suspects.until[sequence] = sched->table.seqs[sequence].known;
        sched->suspects.count++;
    }
}

void suspect_step(struct sched *sched, uint64_t step)
{
    const struct flight *flight = &sched->flights[step % sched->plan->window];
    if (step < sched->next_step - sched->in_flight || step >= sched->next_step || flight->is_cancelled)
        return;
    check(flight->step == step);
    uint32_t sequence = flight->rows[0].sequence;
    bool was_alone = sched->suspects.is_on && flight->row_count == 1 && sched->suspects.until[sequence] != 0 &&
                     arena_sequence(sched->arena, sequence)->generation == flight->rows[0].sequence_generation;
    suspect_start_over(sched);
    if (was_alone) {
        log_warn("request %u alone makes a stage fail; it is ended with an error",
                 arena_sequence(sched->arena, sequence)->request);
        sched_finish(sched, sequence, FINISH_ERROR);
        return;
    }
    mark(sched, flight);
    sched->suspects.is_on = true;
    log_warn("step %llu made a stage fail: its %u sequences run one by one", (unsigned long long)step,
             sched->suspects.count);
}

void suspect_forget(struct sched *sched, uint32_t sequence)
{
    sched->suspects.count -= sched->suspects.until[sequence] != 0;
    sched->suspects.until[sequence] = 0;
}

/* The next suspect: the one that runs, else the first that waits. SEQ_NONE: there is none. */
static uint32_t next_suspect(struct sched *sched)
{
    const struct seq_list *lists[] = {&sched->table.running, &sched->table.waiting};
    for (size_t list = 0; list < ARRAY_COUNT(lists); list++)
        for (uint32_t s = lists[list]->first; s != SEQ_NONE; s = sched->table.seqs[s].next)
            if (sched->suspects.until[s] != 0) {
                if (sched->table.seqs[s].computed < sched->suspects.until[s])
                    return s;
                suspect_forget(sched, s); /* nothing is in flight, and it is past where it was */
            }
    return SEQ_NONE;
}

void suspect_plan(struct sched *sched)
{
    check(sched->in_flight == 0);
    uint32_t sequence = next_suspect(sched);
    if (sequence == SEQ_NONE) {
        sched->suspects.is_on = false;
        log_info("no suspect is left");
        return;
    }
    uint32_t tokens = (uint32_t)min_u64(policy_schedulable(sched, sequence), policy_budget(sched));
    const struct policy_hit nothing = {0};
    bool is_running = journal_sequence_state(arena_sequence(sched->arena, sequence)) == SEQUENCE_RUNNING;
    while (!(is_running ? policy_add_row(sched, sequence, tokens) : policy_admit(sched, sequence, &nothing, tokens))) {
        uint32_t other = sched->table.running.last; /* cleared ones may hold all that there is */
        if (other == sequence)
            other = sched->table.seqs[other].previous;
        check(other != SEQ_NONE);
        sched_take_back(sched, other);
    }
}
