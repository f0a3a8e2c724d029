#include "engine/policy_rules.h"

uint32_t rules_prefill_limit(const struct sched *sched)
{
    uint32_t threshold = sched->plan->long_prefill_token_threshold;
    uint32_t count = sched->table.running.count + sched->table.waiting.count;
    if (count <= 1 || threshold == 0)
        return UINT32_MAX;
    if (sched->plan->long_prefill_token_threshold_adaptive)
        threshold = (uint32_t)max_u64(threshold, sched->plan->max_num_batched_tokens / count);
    return threshold;
}

uint32_t rules_victim(const struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    uint32_t victim = table->running.last;
    if (sched->plan->uses_priority)
        for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
            if (seq_comes_before(table, victim, s))
                victim = s;
    return victim;
}

bool rules_add_or_preempt(struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    while (!policy_add_row(sched, sequence, tokens)) {
        uint32_t victim = rules_victim(sched);
        policy_preempt(sched, victim);
        if (victim == sequence)
            return false;
    }
    return true;
}

bool rules_is_decoding(const struct sched *sched, uint32_t sequence)
{
    const struct seq *seq = &sched->table.seqs[sequence];
    return seq->computed >= seq->prompt_tokens && policy_schedulable(sched, sequence) <= 1;
}

uint32_t rules_depth(const struct sched *sched)
{
    return sched->plan->stage_count > 1 ? sched->plan->stage_count : sched->plan->window;
}

uint32_t rules_admissible(const struct sched *sched, uint32_t sequence, uint32_t limit, uint32_t room,
                          struct policy_hit *hit)
{
    uint32_t known = sched->table.seqs[sequence].known, block_size = sched->plan->block_size;
    *hit = policy_find_prefix(sched, sequence);
    uint32_t tokens = (uint32_t)min_u64(known - hit->tokens, limit);
    if (!sched->plan->enable_chunked_prefill && tokens > room)
        return 0;
    tokens = (uint32_t)min_u64(tokens, room);
    uint32_t reach = sched->plan->reserve_full_isl ? known : hit->tokens + tokens;
    uint32_t needed = (uint32_t)div_up_u64(reach, block_size) - hit->blocks + hit->free_blocks;
    return needed + policy_blocks_reserved(sched) <= policy_free_blocks(sched) ? tokens : 0;
}

void rules_admit_waiting(struct sched *sched, uint32_t limit, uint32_t room)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->waiting.first, next; sequence != SEQ_NONE && sched->preempted_count == 0;
         sequence = next) {
        struct policy_hit hit;
        next = table->seqs[sequence].next;
        room = (uint32_t)min_u64(room, policy_budget(sched));
        if (room == 0 || table->running.count == sched->plan->max_num_seqs)
            return;
        if (table->seqs[sequence].in_flight > 0)
            continue; /* preempted with a token in flight: its turn comes when the token is back; others need not wait */
        uint32_t tokens = rules_admissible(sched, sequence, limit, room, &hit);
        if (tokens == 0 || !policy_admit(sched, sequence, &hit, tokens))
            return;
        room -= tokens;
    }
}
