/* policy_example.c - the example of docs/policies.md: the shortest prompt first. A test, not a recommendation: long prompts
 * starve while short ones come. */
#include "engine/policy.h"

/* Running sequences in their order; one without blocks waits for somebody to finish. */
static void plan_running(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t s = table->running.first; s != SEQ_NONE && policy_budget(sched) > 0; s = table->seqs[s].next) {
        uint32_t tokens = (uint32_t)min_u64(policy_schedulable(sched, s), policy_budget(sched));
        if (tokens > 0)
            policy_add_row(sched, s, tokens);
    }
}

static uint32_t shortest_waiting(const struct seq_table *table)
{
    uint32_t best = SEQ_NONE;
    for (uint32_t s = table->waiting.first; s != SEQ_NONE; s = table->seqs[s].next)
        if (best == SEQ_NONE || table->seqs[s].known < table->seqs[best].known)
            best = s;
    return best;
}

static void plan_waiting(struct sched *sched)
{
    uint32_t s;
    while (policy_budget(sched) > 0 && (s = shortest_waiting(&sched->table)) != SEQ_NONE) {
        const struct request_shm *request = policy_request(sched, s);
        struct policy_hit hit = policy_find_prefix(sched, s);
        uint32_t tokens = (uint32_t)min_u64(sched->table.seqs[s].known - hit.tokens, policy_budget(sched));
        /* blocks for all that it may ever need, and for all that the others may: nothing is ever preempted */
        uint32_t needed = policy_blocks_for(sched, s, request->prompt_tokens + request->max_tokens);
        for (uint32_t r = sched->table.running.first; r != SEQ_NONE; r = sched->table.seqs[r].next) {
            const struct request_shm *other = policy_request(sched, r);
            needed += policy_blocks_for(sched, r, other->prompt_tokens + other->max_tokens);
        }
        if (needed > policy_free_blocks(sched) || !policy_admit(sched, s, &hit, tokens))
            return;
    }
}

static void plan(struct sched *sched)
{
    plan_running(sched);
    plan_waiting(sched);
}

const struct policy policy_example = {.name = "shortest-first", .source = "docs/policies.md", .plan = plan};
