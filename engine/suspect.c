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

/* The row's sequence waits or runs. */
static bool is_alive(const struct sched *sched, const struct row_shm *row)
{
    return arena_sequence(sched->arena, row->sequence)->generation == row->sequence_generation &&
           seq_is_live(&sched->table, row->sequence);
}

static void mark(struct sched *sched, const struct flight *flight)
{
    for (uint32_t i = 0; i < flight->row_count; i++) {
        uint32_t sequence = flight->rows[i].sequence;
        struct mark_shm *mark = arena_mark(sched->arena, sequence);
        if (!is_alive(sched, &flight->rows[i]) || mark->until != 0)
            continue;
        mark->from = (uint32_t)sched->next_step;
        journal_order();
        mark->until = sched->table.seqs[sequence].known;
        sched->suspects.count++;
    }
}

/* Of a sequence that was a suspect when it was planned, and of nothing else. */
static bool is_alone(const struct sched *sched, const struct flight *flight)
{
    const struct mark_shm *mark = arena_mark(sched->arena, flight->rows[0].sequence);
    return flight->row_count == 1 && is_alive(sched, &flight->rows[0]) && mark->until != 0 &&
           (int32_t)((uint32_t)flight->step - mark->from) >= 0;
}

void suspect_step(struct sched *sched, uint64_t step)
{
    const struct flight *flight = &sched->flights[step % sched->plan->window];
    if (step < sched->next_step - sched->in_flight || step >= sched->next_step)
        return;
    check(flight->step == step);
    if (is_alone(sched, flight)) {
        uint32_t sequence = flight->rows[0].sequence;
        log_warn("request %u alone makes a stage fail; it is ended with an error",
                 arena_sequence(sched->arena, sequence)->request);
        sched_finish(sched, sequence, FINISH_ERROR);
    } else {
        mark(sched, flight);
        sched->suspects.is_on = true;
        log_warn("step %llu made a stage fail: its %u sequences run one by one", (unsigned long long)step,
                 sched->suspects.count);
    }
    journal_order(); /* who is to blame, before its step is one of which nothing follows */
    suspect_start_over(sched);
}

void suspect_recover(struct sched *sched, uint32_t sequence)
{
    sched->suspects.count += suspect_is(sched, sequence);
    sched->suspects.is_on = sched->suspects.count > 0;
}

bool suspect_is(const struct sched *sched, uint32_t sequence)
{
    return arena_mark(sched->arena, sequence)->until != 0;
}

void suspect_forget(struct sched *sched, uint32_t sequence)
{
    struct mark_shm *mark = arena_mark(sched->arena, sequence);
    sched->suspects.count -= mark->until != 0;
    mark->until = 0;
}

/* The next suspect: the one that runs, else the first that waits. SEQ_NONE: there is none. */
static uint32_t next_suspect(struct sched *sched)
{
    const struct seq_list *lists[] = {&sched->table.running, &sched->table.waiting};
    for (size_t list = 0; list < ARRAY_COUNT(lists); list++)
        for (uint32_t s = lists[list]->first; s != SEQ_NONE; s = sched->table.seqs[s].next)
            if (suspect_is(sched, s)) {
                if (sched->table.seqs[s].computed < arena_mark(sched->arena, s)->until)
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
