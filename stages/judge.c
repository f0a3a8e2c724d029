#include "stages/judge.h"

void judge_init(struct judge *judge, const struct kernels *kernels, uint32_t vocab_size)
{
    judge->vocab_size = vocab_size;
    sampler_init(&judge->sampler, kernels, vocab_size);
    adjust_init(&judge->adjuster, vocab_size);
}

void judge_free(struct judge *judge)
{
    sampler_free(&judge->sampler);
    adjust_free(&judge->adjuster);
}

struct sample_params judge_params(const struct row_shm *row, uint32_t index)
{
    return (struct sample_params){
        .temperature = row->temperature,
        .top_p = row->top_p,
        .min_p = row->min_p,
        .top_k = row->top_k,
        .seed = row->seed,
        .choice = row->choice,
        .position = row->first_pos + index + 1,
    };
}

bool judge_only_draws(const struct row_shm *row, uint32_t index)
{
    return judge_draws(row, index) && !(row->flags & (ROW_SCORE | ROW_LOGPROB | ROW_LOGITS_HASH)) &&
           row->grammar_words == 0 && !adjust_is_wanted(row);
}

/* A token that the grammar lets come next. The most probable one, where it is wanted, mostly is one: then no mask is needed. */
static uint32_t draw_allowed(struct judge *judge, const struct forward_step *step, const struct mask_place *place,
                             const float *logits, const struct sample_params *params)
{
    if (draw_is_greedy(params)) {
        uint32_t best = sampler_greedy(&judge->sampler, logits);
        if (mask_allows(step->masker, place, best))
            return best;
    }
    logits = adjust_allowed(&judge->adjuster, logits, mask_bits(step->masker, place));
    return sampler_draw(&judge->sampler, logits, params);
}

/* The token that follows token `index` of the row, into result. */
static void draw(struct judge *judge, const struct forward_step *step, const struct row_shm *row, uint32_t index,
                 const float *logits, struct token_shm *result)
{
    const struct sample_params params = judge_params(row, index);
    if (adjust_is_wanted(row)) {
        struct adjust_history history;
        step->history(step->context, row, &history);
        logits = adjust_logits(&judge->adjuster, logits, row, &history);
    }
    const struct mask_place *place = row->grammar_words > 0 ? step->place(step->context, row) : NULL;
    if (place == NULL) {
        result->token = sampler_draw(&judge->sampler, logits, &params);
        return;
    }
    result->token = draw_allowed(judge, step, place, logits, &params);
    struct mask_place behind = *place;
    mask_take(step->masker, &behind, result->token);
    if (mask_is_final(step->masker, &behind))
        result->flags |= TOKEN_LAST;
}

struct token_shm judge_token(struct judge *judge, const struct forward_step *step, const struct forward_wanted *wanted,
                             const float *logits, struct top_shm *tops)
{
    const struct row_shm *row = &step->rows[wanted->row];
    struct token_shm result = {0};
    uint32_t index = wanted->token - row->token_first;
    if (judge_draws(row, index))
        draw(judge, step, row, index, logits, &result);
    else
        result.token = index + 1 == row->token_count ? row->score_next : step->tokens[wanted->token + 1];
    result.top_token = result.token;
    if (row->flags & (ROW_SCORE | ROW_LOGPROB)) {
        result.top_token = sampler_greedy(&judge->sampler, logits);
        double log_sum = sampler_log_sum(&judge->sampler, logits);
        result.logprob = sampler_logprob(logits, log_sum, result.token);
        result.top_logprob = sampler_logprob(logits, log_sum, result.top_token);
        if (row->top_logprobs > 0)
            sampler_tops(&judge->sampler, logits, log_sum, row->top_logprobs, tops);
    }
    if (row->flags & ROW_LOGITS_HASH)
        result.logits_hash = hash_floats(logits, judge->vocab_size);
    return result;
}
