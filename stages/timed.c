#include "stages/timed.h"

#include <math.h>

#include "ipc/steps.h"

void timed_init(struct timed *timed, const struct plan *plan, uint32_t index)
{
    *timed = (struct timed){.plan = plan, .index = index};
}

static uint64_t ns(double us)
{
    return (uint64_t)llround(us * 1000);
}

struct timed_span timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns)
{
    const struct timing *timing = &timed->plan->timing;
    bool is_last = timed->index + 1 == timing->stage_count;
    struct shape shape = {0};
    for (uint32_t i = 0; i < step->row_count; i++)
        step_shape_add(&shape, &step->rows[i]);
    struct timed_span span = {.input_ns = input_ns};
    if (timed->index == 0)
        span.input_ns = timed->planned_ns = max_u64(input_ns, timed->planned_ns) + ns(timing->plan_us);
    span.begin_ns = max_u64(span.input_ns, timed->ended_ns);
    span.end_ns = timed->ended_ns = span.begin_ns + ns(timing_stage_us(&timing->stages[timed->index], &shape));
    if (is_last)
        span.sent_ns = span.end_ns + ns(timing->return_us);
    else
        span.sent_ns = max_u64(span.end_ns, timed->sent_ns) + ns(timing_link_us(&timing->links[timed->index], &shape));
    timed->sent_ns = span.sent_ns;
    return span;
}

static bool is_end(const struct plan *plan, uint32_t token)
{
    for (uint32_t i = 0; i < plan->end_token_count; i++)
        if (plan->end_tokens[i] == token)
            return true;
    return false;
}

uint32_t timed_token(const struct plan *plan, uint32_t token, uint32_t position)
{
    uint32_t next = (uint32_t)((31ull * token + 7919ull * position) % plan->vocab_size);
    for (uint32_t tries = 0; tries < END_TOKENS_MAX && is_end(plan, next); tries++)
        next = (next + 1) % plan->vocab_size;
    return next;
}

void timed_results(const struct plan *plan, const struct forward_step *step, struct token_shm *results)
{
    for (uint32_t i = 0; i < step->row_count; i++) {
        const struct row_shm *row = &step->rows[i];
        uint32_t first = row->token_count - row->result_count;
        for (uint32_t j = 0; j < row->result_count; j++) {
            uint32_t at = first + j, position = row->first_pos + at + 1;
            uint32_t token = timed_token(plan, step->tokens[row->token_first + at], position);
            struct token_shm result = {.token = token, .top_token = token};
            if (!judge_draws(row, at))
                result.token = at + 1 == row->token_count ? row->score_next : step->tokens[row->token_first + at + 1];
            if (row->flags & ROW_LOGITS_HASH)
                result.logits_hash = ((uint64_t)token << 32 | position) * 0x9E3779B97F4A7C15ull;
            results[row->result_first + j] = result;
        }
    }
}
