/* measure.h - products and attention as benchmarks run them: with made-up numbers, since their time does not depend on them.
 *
 * Used by: bench-kernels, bench-limits.   Owns: the memory of what it makes.   Never blocks.
 */
#ifndef EVENFLOW_MEASURE_H
#define EVENFLOW_MEASURE_H

#include "kernels/kernels.h"

/* Numbers between -1 and 1, no two neighbours alike. */
float *measure_floats(size_t n);

/* Room for rows of activations over x; gives back all but x. */
struct activations measure_activations(const float *x, uint32_t rows, uint32_t k);
void measure_activations_free(struct activations *a);

/* rows of activations times `copies` matrices in turn: enough of them, and each comes from memory. */
struct measure_product {
    struct matrix w;
    uint32_t copies, next; /* next: the matrix whose turn it is */
    uint8_t *panels;
    struct activations a;
    float *out;
};

void measure_product_make(struct measure_product *product, enum matrix_form form, uint32_t n, uint32_t k, uint32_t rows,
                          uint32_t copies);
void measure_product_free(struct measure_product *product);
/* So many products, the quantisation of the activations included. */
void measure_product_run(struct measure_product *product, const struct kernels *path, uint32_t times);
double measure_product_operations(const struct measure_product *product); /* of one: a multiply-add is two */

/* The last `rows` positions of a context: nine query heads of 64 floats on three KV heads, blocks of 16, their table in no
 * order that a processor could foresee. */
#define MEASURE_KV_HEADS 3u
void measure_attention_make(struct attention *a, enum kv_type type, uint32_t context, uint32_t rows);
void measure_attention_free(struct attention *a);
double measure_attention_pairs(const struct attention *a); /* (row, position it attends to) */

#endif
