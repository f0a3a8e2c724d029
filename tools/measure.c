#include "tools/measure.h"

#include <stdlib.h>

#include "ipc/base.h"

float *measure_floats(size_t n)
{
    float *x = base_alloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2001) / 1000 - 1;
    return x;
}

struct activations measure_activations(const float *x, uint32_t rows, uint32_t k)
{
    size_t groups = (size_t)rows * (k / KERNEL_GROUP);
    return (struct activations){.rows = rows,
                                .k = k,
                                .f32 = x,
                                .q = base_alloc((size_t)rows * k),
                                .scale = base_alloc(groups * sizeof(float)),
                                .offset = base_alloc(groups * sizeof(float)),
                                .total = base_alloc(groups * sizeof(float)),
                                .start = base_alloc(groups * sizeof(int32_t)),
                                .half = base_alloc(groups * sizeof(int32_t))};
}

void measure_activations_free(struct activations *a)
{
    free(a->q);
    free(a->scale);
    free(a->offset);
    free(a->total);
    free(a->start);
    free(a->half);
}

void measure_product_make(struct measure_product *product, enum matrix_form form, uint32_t n, uint32_t k, uint32_t rows,
                          uint32_t copies)
{
    size_t bytes = matrix_bytes(form, n, k) * copies;
    uint8_t *panels = base_alloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        panels[i] = (uint8_t)(4 + i * 97 % 57); /* scales come out as small positive numbers, none denormal */
    *product = (struct measure_product){.w = {.form = form, .n = n, .k = k},
                                        .copies = copies,
                                        .panels = panels,
                                        .a = measure_activations(measure_floats((size_t)rows * k), rows, k),
                                        .out = base_alloc((size_t)rows * n * sizeof(float))};
}

void measure_product_free(struct measure_product *product)
{
    free((void *)(uintptr_t)product->a.f32);
    measure_activations_free(&product->a);
    free(product->panels);
    free(product->out);
}

void measure_product_run(struct measure_product *product, const struct kernels *path, uint32_t times)
{
    struct matrix *w = &product->w;
    for (uint32_t i = 0; i < times; i++) {
        w->panels = product->panels + product->next * matrix_bytes(w->form, w->n, w->k);
        product->next = (product->next + 1) % product->copies;
        path->quantize(&product->a);
        path->matmul(product->out, w->n, w, &product->a);
    }
}

double measure_product_operations(const struct measure_product *product)
{
    return 2.0 * product->a.rows * product->w.n * product->w.k;
}

void measure_attention_make(struct attention *a, enum kv_type type, uint32_t context, uint32_t rows)
{
    enum { DIM = 64, HEADS = 3 * MEASURE_KV_HEADS, BLOCK = 16 };
    uint32_t blocks = (context + BLOCK - 1) / BLOCK, *table = base_alloc(blocks * sizeof(*table));
    size_t stride = kv_block_bytes(type, MEASURE_KV_HEADS, DIM, BLOCK);
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = blocks - 1 - i;
    *a = (struct attention){.out = measure_floats((size_t)rows * HEADS * DIM),
                            .q = measure_floats((size_t)rows * HEADS * DIM),
                            .q_stride = HEADS * DIM,
                            .rows = rows,
                            .heads = HEADS,
                            .kv_heads = MEASURE_KV_HEADS,
                            .head_dim = DIM,
                            .first_pos = context - rows,
                            .window = UINT32_MAX,
                            .scale = 0.125f,
                            .blocks = table,
                            .block_size = BLOCK,
                            .kv_type = type,
                            .kv = base_alloc(blocks * stride),
                            .block_stride = stride,
                            .scratch = measure_floats(attention_scratch_floats(context, HEADS))};
}

void measure_attention_free(struct attention *a)
{
    free(a->out);
    free((void *)(uintptr_t)a->q);
    free((void *)(uintptr_t)a->blocks);
    free(a->kv);
    free(a->scratch);
}

double measure_attention_pairs(const struct attention *a)
{
    return a->rows * (a->first_pos + (a->rows + 1) / 2.0);
}
