/* sample.h - from a row of logits to a token.
 *
 * Used by: the last stage.   Owns: its scratch, taken at init.   Never blocks, never allocates after init.
 *
 * The token is a pure function of (logits, parameters, seed, choice, position): the random number is computed from
 * these, there is no generator state, and sums are of whole numbers (draw.h). So a step that runs again
 * gives the same token, and so does a device that draws by itself (cuda_kernels.h).
 *
 * Order of the filters: temperature, then min_p, then top_k, then top_p over what top_k left, then one draw. All are
 * cuts of one order of candidates: logit descending, among equals id ascending. Nothing is ever sorted: the cut is found
 * by selecting on the bits of the logits, and the draw walks the survivors in the order of their ids.
 */
#ifndef EVENFLOW_SAMPLE_H
#define EVENFLOW_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/layout.h"
#include "kernels/draw.h"
#include "kernels/kernels.h"

struct sampler {
    const struct kernels *kernels;
    uint32_t vocab_size;
    float *probs;           /* (vocab_size): shares of the most probable one's */
    struct candidate *kept; /* (vocab_size) survivors so far, ids ascending */
    uint32_t *selected;     /* (vocab_size) indices into kept while a cut is searched */
    struct digit *digits;   /* histogram of one digit of the selection */
};

void sampler_init(struct sampler *sampler, const struct kernels *kernels, uint32_t vocab_size);
void sampler_free(struct sampler *sampler); /* for tests and tools */

/* The token. Rows with NaN or without a finite maximum give the largest logit that is a number, else id 0. */
uint32_t sampler_draw(struct sampler *sampler, const float *logits, const struct sample_params *params);

/* Id of the largest logit that is a number, the smallest id among equals; 0 when there is none. */
uint32_t sampler_greedy(const struct sampler *sampler, const float *logits);

/* Natural log of the softmax at temperature 1. log_sum comes from sampler_log_sum() for the same row. */
double sampler_log_sum(const struct sampler *sampler, const float *logits);
float sampler_logprob(const float *logits, double log_sum, uint32_t token);
/* The `count` most probable tokens, the first one first, among equals the smaller id; 1..LOGPROBS_MAX. */
void sampler_tops(struct sampler *sampler, const float *logits, double log_sum, uint32_t count, struct top_shm *tops);

#endif
