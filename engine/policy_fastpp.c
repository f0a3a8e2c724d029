/* policy_fastpp.c - FastPP (Hwang and Ahn, "Revisiting Pipeline Parallelism for LLM Serving", OSDI 2026), for comparison in the
 * simulator: the chunk size that a latency model predicts to keep both targets, and decoding sequences spread over the steps.
 *
 *   every 2 * stages steps: the smallest chunk of 128..2048 with
 *     stages * time(chunk) <= 1.05 * TPOT target   and
 *     (chunk - decoding per step) / time(chunk) >= arriving tokens per second + late tokens / (TTFT target - mean wait)
 *   late: waiting for more than a quarter of the TTFT target; when no chunk keeps up, the largest that keeps the first
 *
 * The times are the described pipeline's own, where FastPP estimates them online. Targets: --ttft-slo, --itl-slo, or the
 * paper's 2 s and 0.2 s. */
#include "engine/policy_rules.h"

#define CHUNK_MIN     128u
#define CHUNK_MAX     2048u
#define WINDOW_US     10000000u
#define ARRIVALS_KEPT 1024u

struct fastpp {
    uint32_t chunk;
    uint64_t chosen_at;  /* step */
    uint64_t last_order; /* of the requests seen */
    uint64_t arrived_us[ARRIVALS_KEPT];
    uint32_t arrived_tokens[ARRIVALS_KEPT];
    uint32_t arrivals;
};

static size_t state_bytes(const struct plan *plan)
{
    (void)plan;
    return sizeof(struct fastpp);
}

static void note_arrivals(struct sched *sched)
{
    struct fastpp *fastpp = sched->policy_state;
    const struct seq_table *table = &sched->table;
    uint64_t newest = fastpp->last_order;
    for (uint32_t s = table->waiting.last; s != SEQ_NONE && table->seqs[s].order > fastpp->last_order;
         s = table->seqs[s].previous) {
        newest = max_u64(newest, table->seqs[s].order);
        uint32_t at = fastpp->arrivals++ % ARRIVALS_KEPT;
        fastpp->arrived_us[at] = table->seqs[s].arrived_us;
        fastpp->arrived_tokens[at] = table->seqs[s].prompt_tokens;
    }
    fastpp->last_order = newest;
}

/* Prompt tokens a microsecond that must be computed to keep the TTFT target. */
static double needed_rate(const struct sched *sched, double ttft_us)
{
    const struct fastpp *fastpp = sched->policy_state;
    const struct seq_table *table = &sched->table;
    double arrived = 0, late = 0, wait = 0, waiting = 0;
    for (uint32_t i = 0; i < fastpp->arrivals && i < ARRIVALS_KEPT; i++)
        if (fastpp->arrived_us[i] + WINDOW_US >= sched->now_us)
            arrived += fastpp->arrived_tokens[i];
    for (uint32_t s = table->waiting.first; s != SEQ_NONE; s = table->seqs[s].next) {
        double age = (double)(sched->now_us - table->seqs[s].arrived_us);
        wait += age;
        waiting++;
        if (age > 0.25 * ttft_us)
            late += table->seqs[s].known;
    }
    double left = ttft_us - (waiting > 0 ? wait / waiting : 0);
    return arrived / WINDOW_US + late / (left > 0.05 * ttft_us ? left : 0.05 * ttft_us);
}

static double predicted_us(const struct sched *sched, double decoding, double context, double chunk)
{
    double prompt = chunk > decoding ? chunk - decoding : 0;
    struct shape shape = {.rows = decoding + (prompt > 0),
                          .tokens = decoding + prompt,
                          .context = context + prompt,
                          .pairs = prompt * prompt / 2,
                          .results = decoding};
    return timing_bottleneck_us(policy_timing(sched), &shape);
}

static void choose_chunk(struct sched *sched, double decoding, double context)
{
    struct fastpp *fastpp = sched->policy_state;
    double ttft_us = (sched->plan->ttft_slo_ms > 0 ? sched->plan->ttft_slo_ms : 2000) * 1e3;
    double tpot_us = (sched->plan->itl_slo_ms > 0 ? sched->plan->itl_slo_ms : 200) * 1e3;
    double needed = needed_rate(sched, ttft_us);
    uint32_t depth = rules_depth(sched), safe = CHUNK_MIN;
    for (uint32_t chunk = CHUNK_MIN; chunk <= CHUNK_MAX; chunk += CHUNK_MIN) {
        double time = predicted_us(sched, decoding, context, chunk);
        if (depth * time > 1.05 * tpot_us)
            break;
        safe = chunk;
        if ((chunk - decoding) / time >= needed)
            break;
    }
    fastpp->chunk = safe;
    fastpp->chosen_at = sched->next_step;
}

static void plan(struct sched *sched)
{
    struct fastpp *fastpp = sched->policy_state;
    const struct seq_table *table = &sched->table;
    uint32_t depth = rules_depth(sched), decoding = 0, limit = rules_prefill_limit(sched);
    double context = 0;
    note_arrivals(sched);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
        if (rules_is_decoding(sched, s)) {
            decoding++;
            context += table->seqs[s].known;
        }
    if (fastpp->chunk == 0 || sched->next_step >= fastpp->chosen_at + 2 * depth)
        choose_chunk(sched, (double)decoding / depth, context / depth);
    uint32_t share = (uint32_t)div_up_u64(decoding, depth), taken = 0;
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t s = table->running.first, next; s != SEQ_NONE && policy_budget(sched) > 0; s = next) {
            next = table->seqs[s].next;
            bool is_decoding = rules_is_decoding(sched, s);
            uint32_t room = fastpp->chunk > taken ? fastpp->chunk - taken : 0;
            uint32_t tokens = (uint32_t)min_u64(policy_schedulable(sched, s), policy_budget(sched));
            tokens = is_decoding ? tokens : (uint32_t)min_u64(min_u64(tokens, limit), room);
            if (tokens == 0 || is_decoding != (pass == 0) || (is_decoding && share == 0) || policy_has_row(sched, s))
                continue;
            if (!rules_add_or_preempt(sched, s, tokens))
                return;
            taken += tokens;
            share -= is_decoding;
            next = table->seqs[s].next;
        }
    }
    rules_admit_waiting(sched, limit, fastpp->chunk > taken ? fastpp->chunk - taken : 0);
}

const struct policy policy_fastpp = {
    .name = "fastpp", .source = "FastPP, OSDI 2026", .plan = plan, .state_bytes = state_bytes, .only_simulated = true};
