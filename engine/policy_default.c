/* policy_default.c - what vLLM's V1 scheduler does (vllm/v1/core/sched/scheduler.py, version 0.32): running sequences in
 * the order of their admission, then waiting ones in the order of arrival, under one budget of tokens; a running sequence
 * without blocks preempts from the end of the list; a waiting one is admitted only if all it knows fits. */
#include <string.h>

#include "engine/policy.h"

static uint32_t limited(const struct sched *sched, uint32_t tokens, bool is_alone)
{
    uint32_t threshold = sched->plan->long_prefill_token_threshold;
    if (threshold > 0 && !is_alone && tokens > threshold)
        tokens = threshold;
    return tokens;
}

/* Blocks for the row, preempting from the end of the list. False: the sequence itself had to go. */
static bool add_or_preempt(struct sched *sched, uint32_t sequence, uint32_t tokens, bool *has_preempted)
{
    while (!policy_add_row(sched, sequence, tokens)) {
        uint32_t victim = sched->table.running.last;
        policy_preempt(sched, victim);
        *has_preempted = true;
        if (victim == sequence)
            return false;
    }
    return true;
}

static void plan_running(struct sched *sched, bool is_alone, bool *has_preempted)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->running.first; sequence != SEQ_NONE && policy_budget(sched) > 0;) {
        uint32_t next = table->seqs[sequence].next;
        uint32_t tokens = limited(sched, policy_schedulable(sched, sequence), is_alone);
        if (tokens > policy_budget(sched))
            tokens = policy_budget(sched);
        if (tokens > 0) {
            if (!add_or_preempt(sched, sequence, tokens, has_preempted))
                return;
            next = table->seqs[sequence].next; /* those behind it may have gone */
        }
        sequence = next;
    }
}

static void plan_waiting(struct sched *sched, bool is_alone)
{
    const struct seq_table *table = &sched->table;
    for (uint32_t sequence = table->waiting.first; sequence != SEQ_NONE && policy_budget(sched) > 0;) {
        uint32_t next = table->seqs[sequence].next;
        uint32_t known = table->seqs[sequence].known;
        /* Preempted with a token in flight: its turn comes when the token is back; those behind it need not wait. */
        if (table->seqs[sequence].in_flight == 0) {
            uint32_t tokens = limited(sched, known, is_alone);
            if (!sched->plan->enable_chunked_prefill && tokens > policy_budget(sched))
                return;
            if (tokens > policy_budget(sched))
                tokens = policy_budget(sched);
            if (policy_blocks_for(sched, sequence, known) > policy_free_blocks(sched))
                return;
            if (!policy_admit(sched, sequence, tokens))
                return;
        }
        sequence = next;
    }
}

static void plan(struct sched *sched)
{
    bool is_alone = sched->table.running.count + sched->table.waiting.count <= 1, has_preempted = false;
    plan_running(sched, is_alone, &has_preempted);
    if (!has_preempted)
        plan_waiting(sched, is_alone);
}

const struct policy policy_default = {.name = "default", .source = "vLLM V1", .plan = plan};

const struct policy *policy_find(const char *name)
{
    static const struct policy *const policies[] = {&policy_default};
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}
