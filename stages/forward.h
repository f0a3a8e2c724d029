/* forward.h - the forward pass of a slice: tokens or activations in, activations or tokens out.
 *
 * Used by: stages, tests, the measurement of cost.   Owns: scratch and RoPE tables, taken at init; KV memory and
 * weights are the caller's.   Never blocks, never allocates after init.
 *
 * A step is a pure function of (weights, record, input activations, KV below each row's first position); it writes KV at
 * the row's positions and its output, and doing it again does nothing else. The bits of a token's activations and
 * logits depend on its sequence's tokens and its position only: not on the other rows, the chunk of the prompt it came
 * in, the slices, or the block size (kernels.h says how each kernel keeps that).
 *
 * KV memory: block b of the slice starts at kv + b * forward_block_stride(); in it layer after layer, each laid out as
 * struct attention says.
 *
 * A team of threads shares a tile: rows where rows are independent, outputs in products, query heads in the attention of few
 * rows. What is to be done with a row alone between two products, all of them do. Each output is one member's alone and
 * computed as ever, so the bits are the same for a team of any size. Layer by layer it is the team of forward_init(), or a
 * larger one while no other stage has anything to do.
 */
#ifndef EVENFLOW_FORWARD_H
#define EVENFLOW_FORWARD_H

#include <stdint.h>

#include "ipc/layout.h"
#include "ipc/team.h"
#include "kernels/kernels.h"
#include "stages/judge.h"
#include "stages/model.h"

/* Tokens that go through all layers of the slice together. Small enough that what one product leaves for the next stays
 * in a core's second-level cache, large enough that reading the weights once per tile costs little. */
#define FORWARD_TILE 64u

/* Tokens whose logits are computed together: the head is read once for so many. */
#define FORWARD_HEAD_ROWS 32u

struct forward_limits {
    uint32_t positions_max; /* max_model_len */
    uint32_t block_size;
    enum kv_type kv_type;
};

/* One row's part of a tile. */
struct forward_segment {
    uint32_t row;
    uint32_t first_token; /* in the step */
    uint32_t token_count;
};

/* What rows become between two products. All members work at the first one's, each on rows of its own; with a row alone each
 * has a copy of it at its own desk, since computing it once more takes less time than waiting for who does. */
struct forward_desk {
    float *residual;      /* (1, width); not the first one's */
    float *normed;        /* (FORWARD_TILE, width); one row but for the first one's, here and below */
    float *inner;         /* (FORWARD_TILE, feed_forward) */
    int8_t *quant;        /* (FORWARD_TILE, widest input) */
    float *quant_scale;   /* (FORWARD_TILE, widest input / KERNEL_GROUP) */
    float *quant_offset;  /* likewise */
    float *quant_total;   /* likewise */
    int32_t *quant_start; /* likewise */
    int32_t *quant_half;  /* likewise */
};

/* Of a step's layers, with help and without: the thread's time, and how much was done, in tokens times layers. */
struct forward_help {
    uint64_t since_ns; /* of the thread's time: when whoever is at work began */
    uint64_t lent_ns, alone_ns;
    uint64_t lent_work, alone_work;
    bool is_head_lent;
};

struct forward {
    const struct kernels *kernels;
    struct team *team;      /* at work: one of the next two */
    struct team *own_team;  /* of forward_init() */
    struct team *lone_team; /* of forward_lend(); NULL: there is none */
    struct forward_help help;
    const struct model_desc *desc;
    const struct model_slice *slice;
    struct forward_limits limits;
    uint8_t *kv;
    size_t layer_block_bytes; /* one block of one layer */
    struct judge judge;       /* last stage */

    float *residual;                     /* (FORWARD_TILE, width): last stage; the others work in the outgoing buffer */
    float *cos_sin[2];                   /* (FORWARD_TILE, 2, head_dim / 2): by desc->ropes; NULL: no layer uses it */
    float *qkv;                          /* (FORWARD_TILE, (heads + 2 * kv_heads) * head_dim) */
    float *mixed;                        /* (FORWARD_TILE, heads * head_dim) */
    float *gate_up;                      /* (FORWARD_TILE, 2 * feed_forward) */
    float *branch;                       /* (FORWARD_TILE, width): what is added to the residual */
    float *attention_scratch[TEAM_MAX];  /* of each member */
    struct forward_desk desks[TEAM_MAX]; /* of each member */
    struct forward_segment segments[FORWARD_TILE];
    uint32_t segment_count;

    float *wanted_rows; /* (FORWARD_HEAD_ROWS, width): last stage */
    float *logits;      /* (FORWARD_HEAD_ROWS, vocab_size) */
    struct forward_wanted wanted[FORWARD_HEAD_ROWS];
    uint32_t wanted_count;
};

/* Bytes from one block of the slice to the next. */
size_t forward_block_stride(const struct model_desc *desc, uint32_t layer_count, const struct forward_limits *limits);

/* The team stays the caller's; its threads have called kernels_thread_init(). NULL: alone. */
void forward_init(struct forward *forward, const struct kernels *kernels, struct team *team,
                  const struct model_desc *desc, const struct model_slice *slice, const struct forward_limits *limits,
                  uint8_t *kv);

/* A larger team, likewise the caller's, for while step->is_lone(). Once, behind forward_init(). */
void forward_lend(struct forward *forward, struct team *team);

/* Gives the scratch back. For tests and tools. */
void forward_free(struct forward *forward);

/* in: (token_count, width) from the stage before, NULL for the first. out: (token_count, width) for the next stage,
 * NULL for the last. results: entries as the rows' result_first says, NULL but for the last; tops: (results, LOGPROBS_MAX),
 * written where a row asks for them. */
void forward_run(struct forward *forward, const struct forward_step *step, const float *in, float *out,
                 struct token_shm *results, struct top_shm *tops);

/* What the last step, which took the thread so long, would have taken without help: as long for each layer as those that had
 * none. 0: fewer than half had none, or the head had. */
uint64_t forward_cost_ns(const struct forward *forward, uint64_t cpu_ns);

/* For measurements: the logits of `count` <= FORWARD_HEAD_ROWS tokens from their residuals (count, width). */
const float *forward_logits(struct forward *forward, const float *residual, uint32_t count);

#endif
