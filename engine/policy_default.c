/* policy_default.c - what vLLM's V1 scheduler does (vllm/v1/core/sched/scheduler.py, version 0.32): running sequences in
 * the order of their admission, then waiting ones in the order of arrival, under one budget of tokens; a running sequence
 * without blocks preempts from the end of the list; a waiting one is admitted only if all it knows fits. */
#include <string.h>

#include "engine/policy.h"

/* How many tokens of one prompt a step may have; UINT32_MAX: any number. */
static uint32_t prefill_limit(const struct sched *sched)
{
    uint32_t threshold = sched->plan->long_prefill_token_threshold;
    uint32_t count = sched->table.running.count + sched->table.waiting.count;
    if (count <= 1 || threshold == 0)
        return UINT32_MAX;
    if (sched->plan->long_prefill_token_threshold_adaptive)
        threshold = (uint32_t)max_u64(threshold, sched->plan->max_num_batched_tokens / count);
    return threshold;
}

static uint32_t choose_victim(const struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    uint32_t victim = table->running.last;
    if (sched->plan->uses_priority)
        for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
            if (seq_comes_before(table, victim, s))
                victim = s;
    return victim;
}

/* Blocks for the row, preempting as long as there are too few. False: the sequence itself had to go. */
static bool add_or_preempt(struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    while (!policy_add_row(sched, sequence, tokens)) {
        uint32_t victim = choose_victim(sched);
        policy_preempt(sched, victim);
        if (victim == sequence)
            return false;
    }
    return true;
}

static void plan_running(struct sched *sched, uint32_t limit)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->running.first; sequence != SEQ_NONE && policy_budget(sched) > 0;) {
        uint32_t next = table->seqs[sequence].next;
        uint32_t tokens = policy_schedulable(sched, sequence);
        tokens = (uint32_t)min_u64(min_u64(tokens, limit), policy_budget(sched));
        if (tokens > 0) {
            if (!add_or_preempt(sched, sequence, tokens))
                return;
            next = table->seqs[sequence].next; /* those behind it may have gone */
        }
        sequence = next;
    }
}

/* False: it does not fit, and nobody overtakes it. */
static bool admit(struct sched *sched, uint32_t sequence, uint32_t limit)
{
    uint32_t known = sched->table.seqs[sequence].known, block_size = sched->plan->block_size;
    struct policy_hit hit = policy_find_prefix(sched, sequence);
    uint32_t tokens = (uint32_t)min_u64(known - hit.tokens, limit);
    if (!sched->plan->enable_chunked_prefill && tokens > policy_budget(sched))
        return false;
    tokens = (uint32_t)min_u64(tokens, policy_budget(sched));
    uint32_t reach = sched->plan->reserve_full_isl ? known : hit.tokens + tokens;
    uint32_t needed = (uint32_t)div_up_u64(reach, block_size) - hit.blocks + hit.free_blocks;
    if (needed + policy_blocks_reserved(sched) > policy_free_blocks(sched))
        return false;
    return policy_admit(sched, sequence, &hit, tokens);
}

static void plan_waiting(struct sched *sched, uint32_t limit)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->waiting.first, next; sequence != SEQ_NONE; sequence = next) {
        next = table->seqs[sequence].next;
        if (policy_budget(sched) == 0 || table->running.count == sched->plan->max_num_seqs)
            return;
        /* Preempted with a token in flight: its turn comes when the token is back; those behind it need not wait. */
        if (table->seqs[sequence].in_flight == 0 && !admit(sched, sequence, limit))
            return;
    }
}

static void plan(struct sched *sched)
{
    uint32_t limit = prefill_limit(sched);
    plan_running(sched, limit);
    if (sched->preempted_count == 0)
        plan_waiting(sched, limit);
}

const struct policy policy_default = {.name = "default", .source = "vLLM V1", .plan = plan};
