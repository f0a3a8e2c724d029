#include "tests/random_tensors.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"

static uint64_t random_state = 1;

uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* About normal: a sum of uniform ones. */
float next_float(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += (float)(next_random() >> 40) * 0x1p-24f - 0.5f;
    return sum;
}

void fill(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * next_float();
}

float *floats(size_t n)
{
    return base_alloc(n * sizeof(float));
}

/* k, or the next number of columns that is whole blocks of the type. */
uint32_t whole_blocks(enum gguf_type type, uint32_t k)
{
    while (gguf_row_bytes(type, k) == 0)
        k += KERNEL_GROUP;
    return k;
}

/* A random matrix as a GGUF file holds it; source gets its rows. */
struct matrix make_matrix(enum gguf_type type, uint32_t n, uint32_t k, uint8_t **source)
{
    struct matrix w = {.n = n, .k = k};
    cr_assert(matrix_form_of(type, &w.form));
    w.panels = base_alloc(matrix_bytes(w.form, n, k));
    size_t row_bytes = gguf_row_bytes(type, k);
    *source = base_alloc(n * row_bytes);
    for (uint32_t row = 0; row < n; row++) {
        uint8_t *at = *source + row * row_bytes;
        if (type == GGUF_TYPE_F32) {
            float values[4096];
            fill(values, k, 0.1f);
            memcpy(at, values, row_bytes);
        } else if (type == GGUF_TYPE_F16 || type == GGUF_TYPE_BF16) {
            for (uint32_t i = 0; i < k; i++) {
                float value = 0.1f * next_float();
                uint32_t bits;
                memcpy(&bits, &value, 4);
                uint16_t half = type == GGUF_TYPE_F16 ? f32_to_f16(value) : (uint16_t)(bits >> 16);
                memcpy(at + 2 * i, &half, 2);
            }
        } else {
            size_t block = gguf_row_bytes(type, whole_blocks(type, 32)), d_at = type == GGUF_TYPE_Q6_K ? 208 : 0;
            bool has_k_scales = type == GGUF_TYPE_Q4_K || type == GGUF_TYPE_Q5_K || type == GGUF_TYPE_Q6_K;
            for (size_t i = 0; i < row_bytes; i++)
                at[i] = (uint8_t)next_random();
            for (size_t first = 0; first < row_bytes; first += block) {
                float scale = has_k_scales ? 0.0005f : 0.01f; /* of which a K block takes up to 63 or 127 times */
                uint16_t d = f32_to_f16(scale + scale * fabsf(next_float())),
                         m = f32_to_f16(has_k_scales ? scale * next_float() : -0.1f + 0.02f * next_float());
                memcpy(at + first + d_at, &d, 2);
                if (type == GGUF_TYPE_Q4_1 || type == GGUF_TYPE_Q5_1 || type == GGUF_TYPE_Q4_K ||
                    type == GGUF_TYPE_Q5_K)
                    memcpy(at + first + 2, &m, 2);
            }
        }
        matrix_pack_row(&w, row, type, at);
    }
    return w;
}
