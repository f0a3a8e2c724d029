/* policy_decode_cap.c - vLLM's pull request 57433: as default, but a step has at most max_num_seqs / stages sequences that
 * decode. Sequences that once shared a step do not stay together for life; prompts are not held back. A fixed number: with
 * fewer sequences than that it never binds. */
#include "engine/policy_rules.h"

static void plan(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    uint32_t limit = rules_prefill_limit(sched), decoding = 0;
    uint32_t most = (uint32_t)div_up_u64(sched->plan->max_num_seqs, rules_depth(sched));
    for (uint32_t s = table->running.first, next; s != SEQ_NONE && policy_budget(sched) > 0; s = next) {
        next = table->seqs[s].next;
        bool is_decoding = rules_is_decoding(sched, s);
        uint32_t tokens = policy_schedulable(sched, s);
        tokens = (uint32_t)min_u64(min_u64(tokens, limit), policy_budget(sched));
        if (tokens == 0 || (is_decoding && decoding == most))
            continue;
        uint32_t rows = sched->record->row_count;
        if (!rules_add_or_preempt(sched, s, tokens))
            return;
        decoding += is_decoding;
        if (sched->record->row_count <= rows) /* by priority a row was undone: its place is free again */
            decoding -= decoding > 0;
        next = table->seqs[s].next;
    }
    rules_admit_waiting(sched, limit, UINT32_MAX);
}

const struct policy policy_decode_cap = {.name = "decode-cap", .source = "vLLM pull request 57433", .plan = plan};
