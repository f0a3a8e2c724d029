/* kernels.h - the one interface to arithmetic: a table of functions per instruction path.
 *
 * Used by: stages (every product of the forward pass), tools (benchmarks, split by measured cost).
 * Owns: nothing; every buffer is the caller's.   Never blocks, never allocates.   Includes nothing of ours.
 *
 * Batch invariance (the promise all of this rests on): the bits of an output row depend on that row's
 * inputs, the weights and the absolute position only; never on how many rows are in the call, on which
 * row it is, on tile sizes, or on the block size of the KV cache. Every reduction runs in one order that
 * is written down beside the function. Two paths ("ref", "avx2", "avx512") may differ from each other in
 * the last bits; the path's name is therefore part of the engine's fingerprint.
 *
 * Tensors are row major, the last dimension contiguous: "(rows, width)" is rows * width floats.
 * Float buffers and packed matrices are aligned to KERNEL_ALIGN bytes.
 */
#ifndef EVENFLOW_KERNELS_H
#define EVENFLOW_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KERNEL_ALIGN 64
#define KERNEL_GROUP 32 /* weights and activations share scales in groups of 32 along k */
#define KERNEL_PANEL 16 /* outputs interleaved in one panel of a packed matrix */

/* Element types of GGUF tensors that matrix_pack_row() reads; numbers as in the GGUF specification. */
enum gguf_type {
    GGUF_TYPE_F32 = 0,
    GGUF_TYPE_F16 = 1,
    GGUF_TYPE_Q4_0 = 2,
    GGUF_TYPE_Q4_1 = 3,
    GGUF_TYPE_Q5_0 = 6,
    GGUF_TYPE_Q5_1 = 7,
    GGUF_TYPE_Q8_0 = 8,
    GGUF_TYPE_Q4_K = 12,
    GGUF_TYPE_Q5_K = 13,
    GGUF_TYPE_Q6_K = 14,
    GGUF_TYPE_IQ4_NL = 20,
    GGUF_TYPE_BF16 = 30,
};

/* How a matrix is held for the kernels: every type of the file as w = D * u + M per group of 32, its integers and scales
 * kept to the bit. One numeric definition of the product for each, whatever the row count. The quantised forms come first;
 * they read int8 activations, the others floats. */
enum matrix_form {
    MATRIX_Q4,   /* u in 0..15, D and M f16                                        Q4_0, Q4_1 */
    MATRIX_Q5,   /* u in 0..31, D and M f16                                        Q5_0, Q5_1 */
    MATRIX_Q4K,  /* u in 0..15, D = d * s, M = -e * t; d, e f16, s, t whole bytes  Q4_K */
    MATRIX_Q5K,  /* u in 0..31, likewise                                           Q5_K */
    MATRIX_Q6K,  /* u in -32..31, D = d * s, d f16, s a signed byte, for each 16   Q6_K */
    MATRIX_Q8,   /* u in -128..127, D f16                                          Q8_0, IQ4_NL */
    MATRIX_F16,  /* w f16 */
    MATRIX_BF16, /* w bfloat16 */
    MATRIX_F32,  /* w f32 */
};

/* A packed weight matrix: n outputs by k inputs, in panels of KERNEL_PANEL outputs (the last padded with zeros).
 * The layout is the same for every path, so one copy of the weights serves all of them (see kernels/pack.c). */
struct matrix {
    enum matrix_form form;
    uint32_t n; /* outputs: rows of the GGUF tensor (ne[1]) */
    uint32_t k; /* inputs: columns (ne[0]); a multiple of KERNEL_GROUP for the quantised forms */
    const void *panels;
};

/* Activations as a product takes them. The float forms read f32; the quantised forms read the rest.
 *
 * In a group of KERNEL_GROUP, x is about offset + scale * q, q in -127..127: offset is the middle between the group's
 * smallest and largest value, scale half their distance / 127. The offset matters: with q alone (offset 0) a token's loss
 * moves by 0.055 nats on average on SmolLM2-135M and a page of prose, with it by 0.034 (tests/data/reference_nll.py). */
struct activations {
    uint32_t rows;
    uint32_t k;
    const float *f32; /* (rows, k) */
    int8_t *q;        /* (rows, k) */
    float *scale;     /* (rows, k / KERNEL_GROUP) */
    float *offset;    /* (rows, k / KERNEL_GROUP) */
    float *total; /* (rows, k / KERNEL_GROUP): sum of x over the group as approximated, scale * sum(q) + 32 * offset */
    int32_t *start; /* (rows, k / KERNEL_GROUP): -128 * sum(q), where a sum with weights stored as q + 128 starts */
    int32_t *half;  /* (rows, k / KERNEL_GROUP): sum(q) of the group's first 16, for weights with a scale for each 16 */
};

/* How K and V are kept. What is kept is all that attention sees, also of the tokens of its own step. */
enum kv_type {
    KV_F16, /* rounded to f16 */
    KV_Q8,  /* signed bytes times a scale, an f32 for each position, head, and K or V: the greatest of them is 127 */
    KV_TYPES,
};

/* One sequence's rows against its paged KV cache, in one layer. Row r stands at absolute position first_pos + r and
 * attends to the last `window` positions up to its own, whose K and V are all stored already (kv_store comes first).
 *
 * A block holds, for this layer, kv_heads times { K (head_dim, block_size) | V (block_size, head_dim) }, f16 or bytes; behind
 * bytes { scales of K (block_size) f32 | of V likewise }. K is transposed so that a vector of positions is contiguous. block b
 * of this layer starts at kv + b * block_stride. */
struct attention {
    float *out;      /* (rows, heads * head_dim) */
    const float *q;  /* (rows, heads * head_dim), rotated; row r starts at q + r * q_stride */
    size_t q_stride; /* floats */
    uint32_t rows;
    uint32_t heads; /* a multiple of kv_heads: query head h reads KV head h / (heads / kv_heads) */
    uint32_t kv_heads;
    uint32_t head_dim; /* a multiple of 16 */
    uint32_t first_pos;
    uint32_t window;        /* positions a row attends to, its own among them; UINT32_MAX: all */
    float scale;            /* 1 / sqrt(head_dim) for the Llama family */
    const uint32_t *blocks; /* block table: position p is in block blocks[p / block_size] */
    uint32_t block_size;    /* positions in a block: 8 times a power of two */
    enum kv_type kv_type;
    uint8_t *kv;
    size_t block_stride; /* bytes */
    float *scratch;      /* kernels->attention_scratch_floats() floats */
};

struct kernels {
    const char *name; /* "ref", "avx2", "avx512": part of the fingerprint, and what --isa takes */

    /* out(rows, width) = x / sqrt(mean(x^2) + eps) * gain.  out may be x. Rows are width apart in both. */
    void (*rms_norm)(float *out, const float *x, const float *gain, uint32_t rows, uint32_t width, float eps);

    /* Fills q, scale, offset, total, start and half from f32: offset = (max + min) / 2, scale = (max - min) / 254 per group,
     * q = round-to-even((x - offset) / scale). A scale below the smallest normal float is 0, and so is q then. */
    void (*quantize)(struct activations *a);

    /* out[r * out_stride + i] = sum over k of x(r, k) * w(i, k), for i in 0..n-1.
     *
     * Quantised forms, group by group in order (Q6K: the group's two halves in order), with I = sum(u * q) and
     * U = sum(u) as exact integers, D and M in f32 (exact too), one chain per output:
     *     t = fma(scale, (float)I, offset * (float)U);   acc = fma(D, t, acc);   with an M: acc = fma(M, total, acc)
     * Float forms: one chain acc = fma(w, x, acc) over k in order, in f32 ("ref": in double). */
    void (*matmul)(float *out, size_t out_stride, const struct matrix *w, const struct activations *a);

    /* x += y, n floats. */
    void (*add)(float *x, const float *y, size_t n);

    /* out(rows, width) = silu(gate) * up; gate at in + r * 2 * width, up width floats behind it. */
    void (*swiglu)(float *out, const float *in, uint32_t rows, uint32_t width);
    /* Likewise gelu(gate) * up, gelu(x) = x / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x^3))): the form with tanh. */
    void (*geglu)(float *out, const float *in, uint32_t rows, uint32_t width);

    /* Rotates in place pairs (i, i + head_dim / 2) of every head; cos_sin is (rows, 2, head_dim / 2) for these rows'
     * positions; row r of x starts at x + r * stride and holds heads * head_dim floats. */
    void (*rope)(float *x, size_t stride, const float *cos_sin, uint32_t rows, uint32_t heads, uint32_t head_dim);

    /* Stores K and V of rows at first_pos.. into their blocks; only the fields that describe the cache and the positions are
     * read from a. k and v rows are stride floats apart. f16: to nearest even. Bytes: scale = greatest size / 127, below the
     * smallest normal float 0; round-to-even(x / scale). */
    void (*kv_store)(const struct attention *a, const float *k, const float *v, size_t stride);

    /* Softmax attention. Score of a position: one chain of fused multiply-adds over head_dim, then times K's scale where it has
     * one, then times a->scale; a value is rounded to f32 after its scale. Maximum over all positions;
     * the denominator in 16 lanes by absolute position modulo 16, folded in a fixed tree; the values in one chain in the
     * order of positions. Nothing depends on block_size or on the number of rows. */
    void (*attention)(const struct attention *a);

    /* Index of the largest logit; the smallest index wins a tie. */
    uint32_t (*argmax)(const float *logits, uint32_t n);

    /* sum over i of draw.h's draw_exp((logits[i] - max) * inv_temperature), in one fixed order; when probs is not NULL, the
     * terms too, which are the same bits on every path, but for those below the smallest normal float. */
    float (*sum_exp)(float *probs, const float *logits, uint32_t n, float max, float inv_temperature);
};

/* The best path that this processor runs, or the one called name ("ref", "avx2", "avx512"); NULL when the name is
 * unknown or the processor lacks it. kernels_names() lists what it has, best first, NULL at the end. */
const struct kernels *kernels_pick(const char *name);
const char *const *kernels_names(void);

/* Flushes denormals to zero (FTZ, DAZ) for the calling thread; every thread that calls kernels does this first. */
void kernels_thread_init(void);

/* Puts memory out of all caches, so that who reads it next waits for it. For measurements. */
void kernels_forget(const void *memory, size_t bytes);

/* Floats of scratch that attention() needs for contexts up to positions_max with this many query heads. */
size_t attention_scratch_floats(uint32_t positions_max, uint32_t heads);

/* Bytes of one block of one layer. */
size_t kv_block_bytes(enum kv_type type, uint32_t kv_heads, uint32_t head_dim, uint32_t block_size);

/* "f16", "q8": part of the fingerprint, and what --kv-type takes. */
const char *kv_type_name(enum kv_type type);
bool kv_type_of(const char *name, enum kv_type *type);

/* The form that a GGUF type is packed to; false when kernels cannot take the type. */
bool matrix_form_of(enum gguf_type type, enum matrix_form *form);

/* Whether a product with the form reads int8 activations (quantize() comes first) or floats. */
static inline bool matrix_is_quantized(enum matrix_form form)
{
    return form < MATRIX_F16;
}

/* Bytes of the packed panels, a multiple of KERNEL_ALIGN. */
size_t matrix_bytes(enum matrix_form form, uint32_t n, uint32_t k);

/* Writes row `row` of a packed matrix from one row of a GGUF tensor (k elements of `type`, whose form is w->form).
 * Rows may come in any order and from several tensors: this is how Q, K, V become one matrix. Panels start zeroed. */
void matrix_pack_row(const struct matrix *w, uint32_t row, enum gguf_type type, const void *src);

/* Outputs first..first + count - 1 of a packed matrix, as a matrix. first is a multiple of KERNEL_PANEL. */
struct matrix matrix_part(const struct matrix *w, uint32_t first, uint32_t count);

/* dst = the row's weights as floats: the embedding look-up, and what tests compare products with. */
void matrix_unpack_row(float *dst, const struct matrix *w, uint32_t row);

/* k elements of a GGUF row as floats. src need not be aligned. */
void gguf_dequantize_row(float *dst, enum gguf_type type, const void *src, uint32_t k);

/* Bytes of a GGUF row of k elements; 0 when the type is unknown or k is not a multiple of its block. */
size_t gguf_row_bytes(enum gguf_type type, uint32_t k);

/* 64-bit hash of the exact bits of n floats: what return_logits_hash gives. The same on every path and machine. */
uint64_t hash_floats(const float *x, size_t n);

float bf16_to_f32(uint16_t bits);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float x); /* to nearest even */

#endif
