/* policy_batch.c - the two-phase BatchScheduler of vLLM's pull request 19873.
 *
 * Phase 1 takes blocks for every sequence that could compute anything, running ones in order, then waiting ones, without a
 * budget, and puts a record of it into a queue. Phase 2 drains the queue in order up to an estimate:
 *
 *   budget = min(tokens queued and in flight / stages, max_num_batched_tokens)
 *
 * The first record is always taken; nothing is cut to fit. So a burst is spread over the stages by tokens. What was wrong
 * with it as published is not here: records of sequences that are gone leave the count and the queue at once, one that was
 * preempted and came back runs from its new record alone, a sequence has one row in a step, a prompt longer than
 * max_num_batched_tokens is cut at that number (its next part queues when this one has gone), and victims follow the
 * priorities. batch-as-published keeps the first of these defects, for comparison: a record of a sequence that is gone stays in
 * the queue until its turn comes, and in the count for ever, so that the budget grows until it spreads nothing. */
#include "engine/policy_rules.h"

struct entry {
    uint32_t sequence, generation, preemptions, tokens;
};

struct batch_state {
    uint32_t first, count; /* of the queue */
    bool is_as_published;  /* keeps what is gone, see above */
    uint64_t leaked;       /* tokens dropped, as published */
    uint32_t *queued;      /* (sequences_max): tokens of it in the queue */
    struct entry
        entries[]; /* (queue_room()): a ring; a sequence is in it once, and perhaps in records of lives before */
};

static uint32_t queue_room(const struct plan *plan)
{
    return 4 * plan->sequences_max;
}

static size_t state_bytes(const struct plan *plan)
{
    return sizeof(struct batch_state) + queue_room(plan) * sizeof(struct entry) +
           plan->sequences_max * sizeof(uint32_t);
}

static void open_batch(struct sched *sched)
{
    struct batch_state *batch = sched->policy_state;
    batch->queued = (uint32_t *)(batch->entries + queue_room(sched->plan));
}

static void open_as_published(struct sched *sched)
{
    struct batch_state *batch = sched->policy_state;
    open_batch(sched);
    batch->is_as_published = true;
}

static struct entry *entry_at(const struct sched *sched, uint32_t index)
{
    struct batch_state *batch = sched->policy_state;
    return &batch->entries[(batch->first + index) % queue_room(sched->plan)];
}

/* It still runs, in the life that it was queued in. */
static bool is_valid(const struct sched *sched, const struct entry *entry)
{
    const struct sequence_shm *shm = arena_sequence(sched->arena, entry->sequence);
    return shm->generation == entry->generation && shm->preemptions == entry->preemptions &&
           sched->table.seqs[entry->sequence].in == &sched->table.running;
}

/* Drops records of sequences that are gone, and notes who is queued. */
static void purge(struct sched *sched)
{
    struct batch_state *batch = sched->policy_state;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->count; i++)
        batch->queued[entry_at(sched, i)->sequence] = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        struct entry entry = *entry_at(sched, i);
        bool is_alive = is_valid(sched, &entry);
        if (is_alive)
            batch->queued[entry.sequence] = entry.tokens;
        if (is_alive || batch->is_as_published)
            *entry_at(sched, kept++) = entry;
    }
    batch->count = kept;
}

static void put(struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    struct batch_state *batch = sched->policy_state;
    const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    check(batch->count < queue_room(sched->plan));
    *entry_at(sched, batch->count++) = (struct entry){sequence, shm->generation, shm->preemptions, tokens};
    batch->queued[sequence] = tokens;
}

static uint32_t longest_row(const struct sched *sched, uint32_t tokens)
{
    return (uint32_t)min_u64(min_u64(tokens, rules_prefill_limit(sched)), sched->plan->max_num_batched_tokens);
}

/* Phase 1. Somebody was preempted: nobody is admitted. */
static void queue_running(struct sched *sched)
{
    const struct batch_state *batch = sched->policy_state;
    const struct seq_table *table = &sched->table;
    for (uint32_t s = table->running.first, next; s != SEQ_NONE; s = next) {
        next = table->seqs[s].next;
        uint32_t tokens = longest_row(sched, policy_schedulable(sched, s));
        if (tokens == 0 || batch->queued[s] > 0)
            continue;
        while (!policy_take_blocks(sched, s, tokens)) {
            uint32_t victim = rules_victim(sched);
            policy_preempt(sched, victim);
            if (victim == s) {
                purge(sched);
                return;
            }
        }
        put(sched, s, tokens);
        next = table->seqs[s].next;
    }
    purge(sched);
}

static void queue_waiting(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t s = table->waiting.first, next; s != SEQ_NONE && sched->preempted_count == 0; s = next) {
        struct policy_hit hit;
        next = table->seqs[s].next;
        if (table->running.count == sched->plan->max_num_seqs)
            return;
        if (table->seqs[s].in_flight > 0)
            continue;
        uint32_t tokens =
            rules_admissible(sched, s, rules_prefill_limit(sched), sched->plan->max_num_batched_tokens, &hit);
        if (tokens == 0 || !policy_admit_blocks(sched, s, &hit, tokens))
            return;
        put(sched, s, tokens);
    }
}

static uint32_t estimate_budget(const struct sched *sched)
{
    const struct batch_state *batch = sched->policy_state;
    uint64_t outstanding = batch->leaked;
    for (uint32_t i = 0; i < batch->count; i++)
        outstanding += entry_at(sched, i)->tokens;
    for (uint32_t back = 1; back <= sched->in_flight; back++)
        outstanding += (uint64_t)policy_flight(sched, back)->shape.tokens;
    return (uint32_t)min_u64(outstanding / rules_depth(sched), sched->plan->max_num_batched_tokens);
}

static void plan(struct sched *sched)
{
    struct batch_state *batch = sched->policy_state;
    purge(sched);
    queue_running(sched);
    queue_waiting(sched);
    uint32_t budget = estimate_budget(sched);
    while (batch->count > 0) {
        struct entry entry = *entry_at(sched, 0);
        if ((sched->record->row_count > 0 && budget < entry.tokens) || policy_budget(sched) < entry.tokens)
            return;
        batch->first = (batch->first + 1) % queue_room(sched->plan);
        batch->count--;
        if (!is_valid(sched, &entry)) {
            batch->leaked += entry.tokens; /* as published: purge() leaves none of them otherwise */
            continue;
        }
        batch->queued[entry.sequence] = 0;
        budget -= min_u64(budget, entry.tokens);
        check(policy_add_row(sched, entry.sequence, entry.tokens)); /* its blocks were taken when it was queued */
    }
}

const struct policy policy_batch = {
    .name = "batch", .source = "vLLM pull request 19873", .plan = plan, .state_bytes = state_bytes, .open = open_batch};
const struct policy policy_batch_as_published = {.name = "batch-as-published",
                                                 .source = "vLLM pull request 19873, its budget leak kept",
                                                 .plan = plan,
                                                 .state_bytes = state_bytes,
                                                 .open = open_as_published,
                                                 .only_simulated = true};
