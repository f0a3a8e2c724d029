/* random_tensors.h - numbers for tests of kernels, the same ones in every run of a test. */
#ifndef EVENFLOW_TESTS_RANDOM_TENSORS_H
#define EVENFLOW_TESTS_RANDOM_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

uint64_t next_random(void);
float next_float(void); /* about normal */
void fill(float *x, size_t n, float scale);
float *floats(size_t n);

/* k, or the next number of columns that is whole blocks of the type. */
uint32_t whole_blocks(enum gguf_type type, uint32_t k);

/* A random matrix as a GGUF file holds it; source gets its rows. */
struct matrix make_matrix(enum gguf_type type, uint32_t n, uint32_t k, uint8_t **source);

#endif
