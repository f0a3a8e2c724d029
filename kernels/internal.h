/* internal.h - what the paths share and nobody else sees. */
#ifndef EVENFLOW_KERNELS_INTERNAL_H
#define EVENFLOW_KERNELS_INTERNAL_H

#include "kernels/kernels.h"

/* One group of a panel, layout in pack.c: bytes of integers, then of scales. */
#define NIBBLE_BYTES          256u /* the low four bits of 16 outputs */
#define HIGH_BYTES            64u  /* the fifth bits */
#define Q6_HIGH_BYTES         128u /* bits five and six */
#define Q8_BYTES              512u
#define ATTENTION_QUERIES_MAX 12u /* rows of scores in the scratch of attention() */

extern const struct kernels kernels_ref, kernels_avx2, kernels_avx512;

/* Bytes of a group's record; 0 for the float forms. Its integers come first, its scales from scales_offset() on. */
static inline size_t scales_offset(enum matrix_form form)
{
    switch (form) {
    case MATRIX_Q4:
    case MATRIX_Q4K:
        return NIBBLE_BYTES;
    case MATRIX_Q5:
    case MATRIX_Q5K:
        return NIBBLE_BYTES + HIGH_BYTES;
    case MATRIX_Q6K:
        return NIBBLE_BYTES + Q6_HIGH_BYTES;
    case MATRIX_Q8:
        return Q8_BYTES;
    default:
        return 0;
    }
}

static inline size_t record_bytes_of(enum matrix_form form)
{
    switch (form) {
    case MATRIX_Q4:
    case MATRIX_Q5:
        return scales_offset(form) + 64;
    case MATRIX_Q4K:
    case MATRIX_Q5K:
        return scales_offset(form) + 96;
    case MATRIX_Q6K:
        return scales_offset(form) + 64;
    case MATRIX_Q8:
        return scales_offset(form) + 32;
    default:
        return 0;
    }
}

size_t panel_bytes(enum matrix_form form, uint32_t k);

/* One KV head's part of a block: K, V, and behind bytes the scales of each. */
static inline size_t kv_head_bytes(enum kv_type type, uint32_t head_dim, uint32_t block_size)
{
    size_t elements = 2 * (size_t)head_dim * block_size;
    return type == KV_Q8 ? elements + 2 * block_size * sizeof(float) : elements * sizeof(uint16_t);
}

/* One integer weight u, and D and M (0 where there is none) of input i, of output `lane` of a panel. Slow and plain. */
int matrix_element(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i);
void matrix_scales(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i, float *d, float *m);
/* The same for the float forms. */
float matrix_float(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i);

#endif
