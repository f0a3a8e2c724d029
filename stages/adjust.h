/* adjust.h - what changes logits before a token is drawn: logit_bias, the penalties, and tokens that must not come.
 *
 * Used by: the last stage.   Owns: its scratch, taken at init.   Never blocks, never allocates after init.
 *
 * In this order, which is vLLM's, on a copy of the row (hashes and log-probabilities are of the row itself):
 *
 *   bias         logit += bias of the token
 *   repetition   of every token that stands in the prompt or was generated: logit > 0 ? logit / r : logit * r
 *                (Keskar et al., arXiv 1909.05858)
 *   frequency    of every generated token: logit -= frequency * how often it was generated
 *   presence     of every generated token: logit -= presence
 *   no end       of every token that would end the answer, until min_tokens are there: minus infinity
 *   grammar      of every token that the answer's grammar does not let come next: minus infinity (mask.h)
 *
 * The result is a pure function of the row, the tokens before it and the parameters: nothing is remembered from one token to
 * the next, so a step may run twice, or in another process.
 */
#ifndef EVENFLOW_ADJUST_H
#define EVENFLOW_ADJUST_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/layout.h"

struct adjust_bias {
    uint32_t token; /* one beyond the vocabulary changes nothing */
    float value;
};

/* Tokens before the one that is drawn, and the biases. Parameters stand in the row. */
struct adjust_history {
    const uint32_t *tokens; /* (token_count): prompt, then what was generated */
    uint32_t prompt_tokens;
    uint32_t token_count;
    const struct adjust_bias *biases; /* (bias_count) */
    uint32_t bias_count;
    const uint32_t *ends; /* (end_count): tokens that must not be drawn */
    uint32_t end_count;
};

struct adjuster {
    uint32_t vocab_size;
    float *logits;    /* (vocab_size): the copy */
    uint32_t *counts; /* (vocab_size): zero between two calls */
};

void adjust_init(struct adjuster *adjuster, uint32_t vocab_size);
void adjust_free(struct adjuster *adjuster); /* for tests and tools */

/* The row asks for any of it. */
bool adjust_is_wanted(const struct row_shm *row);

/* (vocab_size), until the next call. */
const float *adjust_logits(struct adjuster *adjuster, const float *logits, const struct row_shm *row,
                           const struct adjust_history *history);

/* (vocab_size), until the next call: those without their bit are out. logits: a row, or what adjust_logits() gave. */
const float *adjust_allowed(struct adjuster *adjuster, const float *logits, const uint64_t *bits);

#endif
