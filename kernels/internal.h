/* internal.h - what the paths share and nobody else sees. */
#ifndef EVENFLOW_KERNELS_INTERNAL_H
#define EVENFLOW_KERNELS_INTERNAL_H

#include "kernels/kernels.h"

#define Q4_RECORD_BYTES       320u /* one group of a panel; layout in pack.c */
#define Q8_RECORD_BYTES       544u
#define ATTENTION_QUERIES_MAX 12u /* rows of scores in the scratch of attention() */

extern const struct kernels kernels_ref, kernels_avx2, kernels_avx512;

size_t panel_bytes(enum matrix_form form, uint32_t k);

/* One integer weight, and a group's scale and minimum (0 for Q8), of output `lane` of a panel. Slow and plain. */
int matrix_element(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i);
void matrix_scales(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t g, float *d, float *m);

#endif
