/* policy_default.c - what vLLM's V1 scheduler does (vllm/v1/core/sched/scheduler.py, version 0.32): running sequences in
 * the order of their admission, then waiting ones in the order of arrival, under one budget of tokens; a running sequence
 * without blocks preempts from the end of the list; a waiting one is admitted only if all it knows fits. */
#include "engine/policy_rules.h"

static void plan_running(struct sched *sched, uint32_t limit)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->running.first; sequence != SEQ_NONE && policy_budget(sched) > 0;) {
        uint32_t next = table->seqs[sequence].next;
        uint32_t tokens = policy_schedulable(sched, sequence);
        tokens = (uint32_t)min_u64(min_u64(tokens, limit), policy_budget(sched));
        if (tokens > 0) {
            if (!rules_add_or_preempt(sched, sequence, tokens))
                return;
            next = table->seqs[sequence].next; /* those behind it may have gone */
        }
        sequence = next;
    }
}

static void plan(struct sched *sched)
{
    uint32_t limit = rules_prefill_limit(sched);
    plan_running(sched, limit);
    rules_admit_waiting(sched, limit, UINT32_MAX);
}

const struct policy policy_default = {.name = "default", .source = "vLLM V1", .plan = plan};
