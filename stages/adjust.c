#include "stages/adjust.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "stages/mask.h"

#define IN_PROMPT 0x80000000u /* beside the number of times a token was generated */

void adjust_init(struct adjuster *adjuster, uint32_t vocab_size)
{
    *adjuster = (struct adjuster){.vocab_size = vocab_size,
                                  .logits = base_alloc(vocab_size * sizeof(float)),
                                  .counts = base_alloc(vocab_size * sizeof(uint32_t))};
}

void adjust_free(struct adjuster *adjuster)
{
    free(adjuster->logits);
    free(adjuster->counts);
    *adjuster = (struct adjuster){0};
}

static bool repeats_cost(const struct row_shm *row)
{
    return row->repetition_penalty > 0 && row->repetition_penalty != 1;
}

bool adjust_is_wanted(const struct row_shm *row)
{
    return row->flags & ROW_SAMPLE && (row->flags & ROW_NO_END || row->bias_count > 0 || row->presence_penalty != 0 ||
                                       row->frequency_penalty != 0 || repeats_cost(row));
}

static float penalised(float logit, uint32_t count, const struct row_shm *row)
{
    uint32_t generated = count & ~IN_PROMPT;
    if (repeats_cost(row))
        logit = logit > 0 ? logit / row->repetition_penalty : logit * row->repetition_penalty;
    if (generated > 0)
        logit = logit - row->frequency_penalty * (float)generated - row->presence_penalty;
    return logit;
}

const float *adjust_logits(struct adjuster *adjuster, const float *logits, const struct row_shm *row,
                           const struct adjust_history *history)
{
    memcpy(adjuster->logits, logits, adjuster->vocab_size * sizeof(float));
    for (uint32_t i = 0; i < history->bias_count; i++)
        if (history->biases[i].token < adjuster->vocab_size)
            adjuster->logits[history->biases[i].token] += history->biases[i].value;
    for (uint32_t i = 0; i < history->token_count; i++) {
        uint32_t token = history->tokens[i];
        if (token >= adjuster->vocab_size)
            continue;
        if (i < history->prompt_tokens)
            adjuster->counts[token] |= IN_PROMPT;
        else
            adjuster->counts[token]++;
    }
    for (uint32_t i = 0; i < history->token_count; i++) {
        uint32_t token = history->tokens[i];
        if (token >= adjuster->vocab_size || adjuster->counts[token] == 0)
            continue; /* a token that stood there already was done with its first */
        adjuster->logits[token] = penalised(adjuster->logits[token], adjuster->counts[token], row);
        adjuster->counts[token] = 0;
    }
    for (uint32_t i = 0; i < history->end_count; i++)
        if (history->ends[i] < adjuster->vocab_size)
            adjuster->logits[history->ends[i]] = -INFINITY;
    return adjuster->logits;
}

const float *adjust_allowed(struct adjuster *adjuster, const float *logits, const uint64_t *bits)
{
    if (logits != adjuster->logits)
        memcpy(adjuster->logits, logits, adjuster->vocab_size * sizeof(float));
    for (uint32_t token = 0; token < adjuster->vocab_size; token++)
        if (!mask_has(bits, token))
            adjuster->logits[token] = -INFINITY;
    return adjuster->logits;
}
