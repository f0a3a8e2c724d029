/* policy_chunked.c - stall-free batches with chunked prefills (Sarathi-Serve, OSDI 2024, arXiv 2403.02310): every decoding
 * sequence that is ready, then prompts up to a fixed number of tokens, --max-num-batched-tokens. Even in tokens, as far as
 * there are prompts; nothing spreads the decoding ones over the steps. */
#include "engine/policy_rules.h"

/* Running sequences in order of admission: those that decode, or those with prompt left. */
static bool plan_running(struct sched *sched, uint32_t limit, bool are_decoding)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t s = table->running.first, next; s != SEQ_NONE && policy_budget(sched) > 0; s = next) {
        next = table->seqs[s].next;
        uint32_t tokens = policy_schedulable(sched, s);
        tokens = (uint32_t)min_u64(min_u64(tokens, limit), policy_budget(sched));
        if (tokens == 0 || rules_is_decoding(sched, s) != are_decoding || policy_has_row(sched, s))
            continue;
        if (!rules_add_or_preempt(sched, s, tokens))
            return false;
        next = table->seqs[s].next; /* those behind it may have gone */
    }
    return true;
}

static void plan(struct sched *sched)
{
    uint32_t limit = rules_prefill_limit(sched);
    if (plan_running(sched, limit, true) && plan_running(sched, limit, false))
        rules_admit_waiting(sched, limit, UINT32_MAX);
}

const struct policy policy_chunked = {.name = "chunked", .source = "Sarathi-Serve, OSDI 2024", .plan = plan};
