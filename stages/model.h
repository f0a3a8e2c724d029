/* model.h - what a model file describes, and a slice of its layers as the kernels take them.
 *
 * Used by: stages (their slice), the launcher (sizes, split), tests and tools.
 * Owns: a slice owns its table of layers (taken at start, for the life of the process); packed weights lie in memory
 * that the caller gives, for a stage its weights region.   Blocks: model_load(), on page faults of the file.
 *
 * Architectures: arch.h. Anything the forward pass would not compute exactly as the file means it is refused by name:
 * other architectures, experts, soft caps, ways to scale positions, tensors or types that are not known here.
 *
 * Where a weight lies follows from the description alone, so a successor binds to memory that its predecessor packed:
 *
 *   [embedding, where the slice holds layer 0] layer: attn_norm | Q,K,V | q_norm, k_norm | out | attn_post_norm |
 *                                                     ffn_norm | gate,up | down | ffn_post_norm            ...
 *   [output_norm | head, where it holds the last layer; a tied head is the embedding if that is there already]
 */
#ifndef EVENFLOW_MODEL_H
#define EVENFLOW_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/team.h"
#include "kernels/kernels.h"
#include "stages/gguf.h"

#define MODEL_LAYERS_MAX     512u
#define MODEL_ROPE_PAIRS_MAX 128u /* head_dim / 2 */

/* The matrices of a layer, in the order in which their outputs stand side by side in the fused products. */
enum model_matrix {
    MODEL_Q,
    MODEL_K,
    MODEL_V,
    MODEL_OUT,
    MODEL_GATE,
    MODEL_UP,
    MODEL_DOWN,
    MODEL_MATRIX_COUNT,
};

/* What the gate of the feed-forward goes through. */
enum model_gate { MODEL_SILU, MODEL_GELU };

#define MODEL_NO_WINDOW UINT32_MAX

/* Rotary positions: the angle of pair i at position p is p * frequency[i]; cosines and sines are times magnitude. */
struct model_rope {
    double frequency[MODEL_ROPE_PAIRS_MAX];
    double magnitude;
};

struct model_layer_desc {
    enum matrix_form forms[MODEL_MATRIX_COUNT];
    uint32_t biases; /* bit `which`: the matrix has one */
    uint32_t window; /* positions that a token attends to; MODEL_NO_WINDOW: all */
    uint32_t rope;   /* index in ropes */
};

/* Plain data, from the file's header alone. */
struct model_desc {
    uint32_t layers;
    uint32_t width; /* floats of a row of activations */
    uint32_t heads; /* a multiple of kv_heads */
    uint32_t kv_heads;
    uint32_t head_dim;     /* a multiple of 16 */
    uint32_t feed_forward; /* floats between up and down */
    uint32_t vocab_size;
    uint32_t context_length;
    float norm_eps;
    float embedding_scale; /* an embedding is times this */
    float score_scale;     /* an attention score is times this */
    enum model_gate gate;
    bool has_interleaved_pairs;
    bool has_qk_norm;
    bool has_post_norms;
    bool tied; /* the head is the embedding */
    enum matrix_form embedding_form;
    enum matrix_form head_form;
    struct model_rope ropes[2]; /* the second only where layers with a window have positions of their own */
    struct model_layer_desc layer[MODEL_LAYERS_MAX];
};

/* One product of the forward pass: up to three matrices that read the same activations. Where their forms are equal
 * they are one matrix; parts hold the rest. Outputs of part i start at column[i]. */
struct model_product {
    uint32_t part_count;
    uint32_t columns;  /* outputs of all parts */
    bool quantized;    /* some part reads int8 activations */
    const float *bias; /* (columns); NULL: none */
    uint32_t column[3];
    struct matrix parts[3];
};

struct model_layer {
    const float *attn_norm;       /* (width) */
    struct model_product qkv;     /* (heads + 2 * kv_heads) * head_dim outputs from width; Q and K rows are in the order
                                   * that makes their rotary pairs (i, i + head_dim / 2) */
    const float *q_norm, *k_norm; /* (head_dim); NULL: none */
    struct model_product out;     /* width from heads * head_dim */
    const float *attn_post_norm;  /* (width); NULL: none */
    const float *ffn_norm;        /* (width) */
    struct model_product gate_up; /* 2 * feed_forward from width */
    struct model_product down;    /* width from feed_forward */
    const float *ffn_post_norm;   /* (width); NULL: none */
};

struct model_slice {
    uint32_t first_layer;
    uint32_t layer_count;
    bool is_first;              /* holds layer 0 and the embedding */
    bool is_last;               /* holds the last layer, the final norm and the head */
    struct matrix embedding;    /* vocab_size rows of width */
    struct model_layer *layers; /* (layer_count) */
    const float *output_norm;   /* (width) */
    struct matrix head;         /* vocab_size from width */
};

/* Reads and checks the description: every parameter, and name, type and shape of every tensor.
 * -ENOTSUP: a valid file that this build does not compute; -EINVAL: a file that contradicts itself. err names it. */
int model_describe(struct model_desc *desc, const struct gguf *gguf, struct err *err);

/* Bytes of the packed weights of layers first..first + count - 1, embedding or head included. */
size_t model_slice_bytes(const struct model_desc *desc, uint32_t first, uint32_t count);

/* Points a slice into memory of model_slice_bytes(), aligned to KERNEL_ALIGN, whether it is packed yet or not. */
void model_bind(struct model_slice *slice, const struct model_desc *desc, uint32_t first, uint32_t count,
                const void *memory);

/* Which bytes of the whole model's layout (a slice of all layers) a slice's is made of, in its order. */
#define MODEL_RANGES_MAX 4u
struct model_range {
    size_t from, bytes;
};
uint32_t model_slice_ranges(const struct model_desc *desc, uint32_t first, uint32_t count,
                            struct model_range ranges[MODEL_RANGES_MAX]);

/* Binds, then packs the file's weights into memory, which must be all zero. */
int model_load(struct model_slice *slice, const struct model_desc *desc, uint32_t first, uint32_t count, void *memory,
               const struct gguf *gguf, struct err *err);

/* Who looks on while much is packed or read: member 0, the caller, tells how much of all of it is done. */
struct onlooker {
    void (*tell)(void *context, uint64_t done, uint64_t total);
    void *context;
};

/* One team member's share of packing a bound slice, whose memory is all zero. The description is the file's. onlooker:
 * NULL for none. */
void model_pack(const struct model_slice *slice, const struct model_desc *desc, const struct gguf *gguf,
                const struct team *team, uint32_t part, const struct onlooker *onlooker);

/* Gives back the table of layers; the weights are the caller's. For tests and tools. */
void model_unbind(struct model_slice *slice);

/* Parts of model_load(), for measurements: one layer of the file into a bound one, and the first w->n rows of a tensor
 * whose form is w->form. Memory as above. */
void model_pack_layer(const struct model_layer *layer, const struct model_desc *desc, uint32_t number,
                      const struct gguf *gguf);
void model_pack_matrix(const struct matrix *w, const struct gguf_tensor *tensor);

/* Positions as they are, from a base: frequency i is base^(-2i / head_dim). */
void model_rope_plain(struct model_rope *rope, double base, uint32_t head_dim);

/* Fills cos_sin (count, 2, head_dim / 2): cosines, then sines, of the angles of each position from the first one on. */
void model_rope_angles(const struct model_rope *rope, uint32_t head_dim, float *cos_sin, uint32_t first,
                       uint32_t count);

#endif
