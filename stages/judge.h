/* judge.h - from a token's logits to its result: the next token, log-probabilities, the hash of the logits.
 *
 * Used by: the last stage, whatever computed the logits (forward.h, forward_cuda.h).   Owns: scratch, taken at init.
 * Never blocks, never allocates after init.
 */
#ifndef EVENFLOW_JUDGE_H
#define EVENFLOW_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/layout.h"
#include "stages/adjust.h"
#include "stages/mask.h"
#include "stages/sample.h"

/* A step as the pass takes it; everything has been validated (stage.c). */
struct forward_step {
    const struct row_shm *rows; /* their tokens follow one another without gaps */
    uint32_t row_count;
    const uint32_t *tokens; /* (token_count) */
    uint32_t token_count;
    const uint32_t *blocks; /* block tables of the rows */
    /* Last stage: the tokens before a row's next one, where adjust_is_wanted(). May be NULL when it never is. */
    void (*history)(void *context, const struct row_shm *row, struct adjust_history *history);
    /* Likewise where its answer keeps to a grammar; NULL: what was read is none, so nobody has a use for the row's result. */
    struct mask_place *(*place)(void *context, const struct row_shm *row);
    struct masker *masker;          /* whose places these are */
    bool (*is_lone)(void *context); /* no other stage has anything to do at the moment; NULL: as if they had */
    void *context;                  /* of history(), place() and is_lone() */
};

/* A token whose logits are wanted. */
struct forward_wanted {
    uint32_t row;
    uint32_t token;  /* index in the step */
    uint32_t result; /* index in the step's results */
};

struct judge {
    uint32_t vocab_size;
    struct sampler sampler;
    struct adjuster adjuster;
};

void judge_init(struct judge *judge, const struct kernels *kernels, uint32_t vocab_size);
void judge_free(struct judge *judge); /* for tests and tools */

/* The first of a row's tokens whose logits are wanted: its last result_count ones. */
static inline uint32_t judge_first(const struct row_shm *row)
{
    return row->token_first + row->token_count - row->result_count;
}

/* What follows a row's token `index` is drawn, not given: the last one, and drafts and the one before them. */
static inline bool judge_draws(const struct row_shm *row, uint32_t index)
{
    return row->flags & ROW_SAMPLE && (index + 1 == row->token_count || !(row->flags & ROW_SCORE));
}

/* How what follows a row's token `index` is drawn. */
struct sample_params judge_params(const struct row_shm *row, uint32_t index);

/* Its token is all that is asked for, drawn from the logits as they are: whoever has these may draw it (kernels/draw.h). */
bool judge_only_draws(const struct row_shm *row, uint32_t index);

/* The result then. */
static inline struct token_shm judge_drawn(uint32_t token)
{
    return (struct token_shm){.token = token, .top_token = token};
}

/* One entry of the results from one row of logits, and its list of most probable tokens where it is asked for. */
struct token_shm judge_token(struct judge *judge, const struct forward_step *step, const struct forward_wanted *wanted,
                             const float *logits, struct top_shm *tops);

#endif
