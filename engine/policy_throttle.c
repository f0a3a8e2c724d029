/* policy_throttle.c - token throttling of gLLM (SC 2025, arXiv 2504.14775, equations 1 to 4): how many prompt tokens a step has
 * follows from how many wait and from the free KV cache, how many decoding sequences from how many there are:
 *
 *   prompt tokens = max(min(waiting / 8, 2048 * (free - 0.05) / 0.95), 32), none while less than 0.05 of the cache is free
 *   decoding      = decoding sequences / stages
 *
 * The second only while something decodes and so gives blocks back. Numbers of the paper's evaluation. Rounding goes round
 * by the step, so that no sequence waits for ever. */
#include "engine/policy_rules.h"

#define STEPS_AHEAD 8
#define PROMPT_MAX  2048.0
#define PROMPT_MIN  32.0
#define FREE_MIN    0.05

static uint32_t prompt_room(const struct sched *sched, uint32_t decoding)
{
    const struct seq_table *table = &sched->table;
    double free = (double)policy_free_blocks(sched) / sched->plan->num_blocks, waiting = 0;
    for (uint32_t s = table->waiting.first; s != SEQ_NONE; s = table->seqs[s].next)
        waiting += table->seqs[s].known;
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
        if (!rules_is_decoding(sched, s))
            waiting += policy_schedulable(sched, s);
    if (free < FREE_MIN && decoding > 0) /* those give blocks back by and by */
        return 0;
    double room = PROMPT_MAX * (free - FREE_MIN) / (1 - FREE_MIN), share = waiting / STEPS_AHEAD;
    room = share < room ? share : room;
    return (uint32_t)(room > PROMPT_MIN ? room : PROMPT_MIN);
}

static void plan(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    uint32_t depth = rules_depth(sched), decoding = 0;
    bool chunks = sched->plan->enable_chunked_prefill;
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
        decoding += rules_is_decoding(sched, s);
    uint32_t room = prompt_room(sched, decoding);
    uint32_t share = (decoding + (uint32_t)(sched->next_step % depth)) / depth;
    share = share > 0 ? share : 1;
    for (uint32_t pass = 0; pass < 2; pass++) { /* decoding ones first */
        for (uint32_t s = table->running.first, next; s != SEQ_NONE && policy_budget(sched) > 0; s = next) {
            next = table->seqs[s].next;
            bool is_decoding = rules_is_decoding(sched, s);
            uint32_t tokens = policy_schedulable(sched, s), most = is_decoding ? share : room;
            if (tokens == 0 || is_decoding != (pass == 0) || most == 0 || policy_has_row(sched, s))
                continue;
            if (chunks || is_decoding)
                tokens = (uint32_t)min_u64(min_u64(tokens, most), policy_budget(sched));
            else if (tokens > policy_budget(sched))
                continue;
            if (!rules_add_or_preempt(sched, s, tokens))
                return;
            share -= is_decoding;
            room -= is_decoding ? 0 : (uint32_t)min_u64(room, tokens);
            next = table->seqs[s].next;
        }
    }
    rules_admit_waiting(sched, rules_prefill_limit(sched), chunks || room == 0 ? room : UINT32_MAX);
}

const struct policy policy_throttle = {.name = "throttle", .source = "gLLM, SC 2025", .plan = plan};
