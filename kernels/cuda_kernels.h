/* cuda_kernels.h - the CUDA kernels' arguments: what their text (cuda_kernels.cu) and their callers share.
 *
 * Used by: cuda_kernels.cu, cuda.c, stages (the pass over a slice on a device).   Owns: nothing.   Includes nothing of ours but
 * kernels.h and draw.h.
 *
 * Pointers are addresses in the device's memory. Batch invariance holds as kernels.h says: a row's bits depend on its own
 * inputs, the weights and its absolute position. Every sum has one order, which is written down beside its kernel.
 *
 * Activations are rounded to f16 where a product reads them, weights where they are unpacked (exact for F16, not for nearly
 * all values of the quantised types); products are exact, sums f32.
 */
#ifndef EVENFLOW_KERNELS_CUDA_KERNELS_H
#define EVENFLOW_KERNELS_CUDA_KERNELS_H

#include <stdint.h>

#include "kernels/draw.h"
#include "kernels/kernels.h"

#define CUDA_ROWS            64u  /* rows that go through a kernel together at most */
#define CUDA_GEMM_WARPS      8u   /* parts into which the sum over k is cut, whatever k is */
#define CUDA_THREADS         256u /* of a block */
#define CUDA_SPLIT           256u /* positions of one part of an attention, by absolute position */
#define CUDA_HEAD_FLOATS_MAX 256u
#define CUDA_ATTEND_BLOCKS   1024u /* that a device has room for, about: no use in cutting a step's attention into more */

/* Launches that are recorded for so many rows (cuda.h) find at `count`, in memory, how many there are this time: fewer, or as
 * many; NULL where all are. It changes nothing in what is computed of a row. */

/* struct matrix, with what a kernel would otherwise look up. */
struct cuda_matrix {
    const uint8_t *panels;
    uint32_t form, n, k;
    uint32_t record_bytes, scales; /* of a group's record; where in it the scales are */
    uint32_t float_bytes;          /* of a weight, in the float forms */
};

/* out(rows, width) = x / sqrt(mean(x^2) + eps) * gain as f16, where x has got x += branch before, if there is one. The sum of
 * squares: thread t of 256 takes t, t + 256, ...; then a tree. Row r reads and writes row index[r] of x, where there is
 * one. */
struct cuda_norm_args {
    void *out; // half (rows, width)
    float *x;
    const float *branch, *gain;
    const uint32_t *index;
    uint32_t width;
    float eps;
    const uint32_t *count;
};

/* x(rows, heads, width) = x / sqrt(mean(x^2) + eps) * gain, in place; rows are stride floats apart. Sums as in norm. Grid:
 * rows, heads. */
struct cuda_renorm_args {
    float *x;
    const float *gain;
    uint32_t width, stride;
    float eps;
    const uint32_t *count;
};

/* x(rows, width) = rows of the embedding, times scale. Grid: rows. */
struct cuda_embed_args {
    struct cuda_matrix embedding;
    float *x;
    const uint32_t *tokens;
    float scale;
    const uint32_t *count;
};

/* out(row, i) = sum over k, a multiple of 16, of x(row, k) * w(i, k): groups of 32 along k go to warp g % 8, each a chain in
 * the order of its groups; then the eight sums in order; then the bias, where there is one. Grid: panels of w, 64 rows. */
struct cuda_gemm_args {
    struct cuda_matrix w;
    float *out;        // row r at out + r * out_stride
    const void *x;     // half (rows, k), readable up to a multiple of 16 rows
    const float *bias; // (n)
    uint32_t rows, out_stride;
    const uint32_t *count;
};

/* One token's place. */
struct cuda_row {
    uint32_t position;
    uint32_t block_first; /* of its sequence's blocks, in blocks */
};

/* A layer's KV, laid out as struct attention says. */
struct cuda_kv {
    uint8_t *layer; /* of block 0 */
    const uint32_t *blocks;
    uint64_t block_stride; /* bytes */
    uint32_t block_size;
    uint32_t heads, kv_heads, head_dim;
};

/* Rotates Q (in place) and K by their rows' positions; stores K and V. Grid: rows. */
struct cuda_rope_args {
    struct cuda_kv kv;
    float *qkv;           // (rows, (heads + 2 * kv_heads) * head_dim)
    const float *cos_sin; // (positions, 2, head_dim / 2)
    const struct cuda_row *rows;
    const uint32_t *count;
};

/* One part of the attention of one row and head: its maximum, its sum of exponentials, its values, unnormalised. A score is one
 * chain over head_dim; the sum a tree over positions modulo 256; values one chain in the order of positions. Grid: rows, heads,
 * z: block z takes parts z, z + grid z, ...; parts behind a row's position leave nothing. */
struct cuda_attend_args {
    struct cuda_kv kv;
    const float *qkv;
    const struct cuda_row *rows;
    float *parts; // (rows, heads, parts_max, 2 + head_dim)
    float scale;
    uint32_t window; /* positions that a row attends to, its own among them */
    uint32_t parts_max;
    const uint32_t *count;
};

/* Puts the parts together, in order. Grid: rows, heads. */
struct cuda_combine_args {
    void *out; // half (rows, heads * head_dim)
    const struct cuda_row *rows;
    const float *parts;
    uint32_t heads, head_dim, window, parts_max;
    const uint32_t *count;
};

/* out(rows, width) = f(gate) * up as f16, f silu or kernels.h's gelu; gate at in + row * 2 * width, up width floats behind.
 * Grid: rows. */
struct cuda_gate_args {
    void *out;
    const float *in;
    uint32_t width, is_gelu;
    const uint32_t *count;
};

/* drawn[i] = what sampler_draw() (stages/sample.h) draws from row i of the logits: the same token, since shares come from one
 * exponential and sums are of whole numbers. Grid: rows. */
struct cuda_draw_args {
    uint32_t *drawn;
    const float *logits;                // (rows, vocab_size)
    const struct sample_params *params; // (rows)
    uint32_t vocab_size;
    const uint32_t *count;
};

/* out = x + branch, as the norm has it where nothing is normed behind it. Grid: rows. */
struct cuda_add_args {
    float *out; // (rows, width): perhaps in another device's memory, and only written
    const float *x, *branch;
    uint32_t width;
};

#endif
