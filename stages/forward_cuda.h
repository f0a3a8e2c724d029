/* forward_cuda.h - the forward pass of a slice on a CUDA device; forward.h says what a pass is.
 *
 * Used by: stages that the plan puts on a device, tests.   Owns: its scratch on the device, taken at init; the device,
 * weights and KV memory there are the caller's.   Blocks: forward_cuda_finish(), and those that say so, until the device is
 * done. Never allocates after init.
 *
 * The same rows, positions and block tables as on the processor, and KV memory of the same layout; activations come from and
 * go to host memory or slots in a device's memory. A token of which nothing else is asked is drawn on the device, the same one
 * that the processor would draw; all else is judged on the processor (judge.h), from logits that are copied there. Batch,
 * chunks, slices and block size leave no trace in any bit, as cuda_kernels.h says for each kernel; against the processor,
 * products read halves in place of int8, so last bits are others.
 */
#ifndef EVENFLOW_FORWARD_CUDA_H
#define EVENFLOW_FORWARD_CUDA_H

#include <stdint.h>

#include "kernels/cuda.h"
#include "stages/forward.h"
#include "stages/judge.h"
#include "stages/model.h"

/* Where the activations (tokens, width) of a step lie: in host memory, or in a slot of an edge, in a device's memory. */
struct forward_cuda_place {
    float *host;         /* NULL: on a device */
    cuda_address floats; /* W: the stage before, only whole and only before the word */
    cuda_address word; /* W: the stage before   R: what waits for it in a stream: reaches `value` when they are there */
    uint32_t value;    /* the step's number, its low half */
};

#define FORWARD_CUDA_GRAPHS 7u /* for steps of up to 1, 2, 4, ..., CUDA_ROWS tokens */

/* A slice of so many layers goes into a stream whose device waits: that takes about a thousand launches before it keeps who
 * calls, and a layer is some 13. */
#define FORWARD_CUDA_EARLY_LAYERS_MAX 64u

struct forward_cuda_limits {
    struct forward_limits common;
    uint32_t step_tokens_max, step_blocks_max;
};

struct forward_cuda {
    struct cuda *cuda;
    const struct model_desc *desc;
    const struct model_slice *slice; /* bound to addresses on the device */
    struct forward_cuda_limits limits;
    uint8_t *kv; /* on the device, as all that follows but where it says otherwise */
    size_t layer_block_bytes;

    /* The step at hand. */
    struct cuda_row *rows;      /* (step_tokens_max) */
    uint32_t *tokens, *blocks;  /* (step_tokens_max), (step_blocks_max) */
    struct cuda_row *host_rows; /* what is uploaded to rows */
    struct forward_cuda_sheet {
        uint32_t count;            /* tokens of the tile at hand */
        uint32_t wanted;           /* of those, whose logits are wanted: first the ones that the host judges */
        uint32_t index[CUDA_ROWS]; /* where the wanted ones are */
        struct sample_params params[CUDA_ROWS];
    } * sheet, *host_sheet;          /* what kernels read of the tile at hand; host: what is uploaded there */
    struct forward_wanted *judgings; /* host (CUDA_ROWS), likewise */
    bool is_replayed;                /* the step's kernels were put into the stream as a graph */
    uint32_t drawn_count;            /* tokens of the step that the device has drawn */

    const struct forward_step *step;
    struct forward_cuda_place in, out;
    struct cuda_graph *graphs[FORWARD_CUDA_GRAPHS]; /* of 1, 2, 4, ... tokens; NULL: kernels are launched one by one */
    struct forward_cuda_tile {
        uint32_t first, count; /* tokens of the step */
        /* For how many a kernel is launched, and where on the device it finds how many there are; NULL: all of these. */
        struct forward_cuda_span {
            uint32_t count;
            const uint32_t *there;
        } rows, heads;   /* all of them; the wanted ones */
        uint32_t parts;  /* of the longest context among them */
        uint32_t wanted; /* tokens whose logits are wanted: last stage */
        uint32_t judged; /* of those, the first ones: of which more is wanted than what the device draws */
    } tile;              /* that is in the stream */

    /* A tile of CUDA_ROWS tokens. */
    float *cos_sin[2]; /* (positions_max, head_dim), as desc->ropes; NULL: no layer uses it */
    float *x;          /* (CUDA_ROWS, width): the residual */
    void *normed;      /* half (CUDA_ROWS, width) */
    float *qkv;        /* (CUDA_ROWS, (heads + 2 * kv_heads) * head_dim) */
    float *parts;      /* (CUDA_ROWS, heads, parts of the longest context, 2 + head_dim) */
    void *mixed;       /* half (CUDA_ROWS, heads * head_dim) */
    float *gate_up;    /* (CUDA_ROWS, 2 * feed_forward) */
    void *inner;       /* half (CUDA_ROWS, feed_forward) */
    float *branch;     /* (CUDA_ROWS, width): what is added to the residual by whoever reads it next */
    float *logits;     /* (CUDA_ROWS, vocab_size): last stage */
    float *host_logits;
    uint32_t *drawn, *host_drawn; /* (CUDA_ROWS) */
    struct judge judge;
};

/* 0, or -ENOTSUP with err: what of the model the kernels for devices do not compute. */
int forward_cuda_supports(const struct model_desc *desc, struct err *err);

/* 0, or -errno with err: the device has no room for the scratch. */
int forward_cuda_init(struct forward_cuda *forward, struct cuda *cuda, const struct kernels *kernels,
                      const struct model_desc *desc, const struct model_slice *slice,
                      const struct forward_cuda_limits *limits, cuda_address kv, struct err *err);

/* Once, behind it, or not at all: records the kernels of steps of one tile, for 1, 2, 4, ... tokens, so that the processor
 * gives such a step to the device with one word. The bits are the same. false: the device records nothing, and kernels are
 * launched one by one. What goes wrong is told by the next forward_cuda_finish(). */
bool forward_cuda_record(struct forward_cuda *forward);

/* Gives back what lies in host memory; what is on the device goes with its context. For tests. */
void forward_cuda_free(struct forward_cuda *forward);

/* Puts a step into the stream as far as that needs nobody: the first tile, behind a wait for its input where that comes through
 * a device. Does not wait itself, unless out is host memory that is not pinned. in: NULL for the first stage; out: NULL for
 * the last one. The step, and input in host memory, stay as they are until forward_cuda_finish(). */
void forward_cuda_begin(struct forward_cuda *forward, const struct forward_step *step,
                        const struct forward_cuda_place *in, const struct forward_cuda_place *out);

/* The rest of it, whose input is there or on its way; results and tops: of the last stage. 0, or -errno when the device
 * failed, with its reason in cuda->error: nothing in out or results is to be used then, and no later run will succeed. */
int forward_cuda_finish(struct forward_cuda *forward, struct token_shm *results, struct top_shm *tops);

/* In place of both, or of the second, for a step that is not to be computed: whoever waits for it in out goes on, with whatever
 * lies there. Blocks as forward_cuda_finish() does. */
int forward_cuda_pass(struct forward_cuda *forward, const struct forward_cuda_place *out);

/* Nobody will write what forward_cuda_begin() waits for: lets it go, with whatever lies there. Blocks likewise. */
void forward_cuda_release(struct forward_cuda *forward);

#endif
