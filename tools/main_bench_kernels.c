/* main_bench_kernels.c - speed of the kernels on every path that this processor runs: make bench-kernels.
 *
 * Products: GOPS (two operations a multiply-add), median of several runs, the quantisation of the activations included.
 * "streamed" goes through as many matrices as a stage of fifteen layers holds, from beyond the caches: what decoding sees.
 * Attention: nanoseconds per position of context and KV head, for one query row and for a prompt. The rest: microseconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "kernels/kernels.h"

#define RUNS 9

struct shape {
    const char *name;
    enum matrix_form form;
    uint32_t n, k, copies; /* copies: matrices used in turn */
};

/* Of SmolLM2-135M: Q, K and V; gate and up; down; the head. */
static const struct shape shapes[] = {{"qkv", MATRIX_Q4, 960, 576, 1},          {"gate_up", MATRIX_Q4, 3072, 576, 1},
                                      {"  streamed", MATRIX_Q4, 3072, 576, 30}, {"down", MATRIX_Q4, 576, 1536, 1},
                                      {"head", MATRIX_Q8, 49152, 576, 1},       {"qkv f16", MATRIX_F16, 960, 576, 1}};
static const uint32_t row_counts[] = {1, 2, 4, 8, 16, 32, 128};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, RUNS, sizeof(values[0]), compare);
    return values[RUNS / 2];
}

static float *floats(size_t n)
{
    float *x = base_alloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2001) / 1000 - 1;
    return x;
}

static double product_gops(const struct kernels *path, const struct shape *shape, uint32_t rows)
{
    struct matrix w = {.form = shape->form, .n = shape->n, .k = shape->k};
    size_t bytes = matrix_bytes(w.form, w.n, w.k);
    uint8_t *panels = base_alloc(bytes * shape->copies);
    for (size_t i = 0; i < bytes * shape->copies; i++)
        panels[i] = (uint8_t)(i * 97 % 61); /* scales come out as small positive numbers */
    size_t groups = (size_t)rows * w.k / KERNEL_GROUP;
    float *out = base_alloc((size_t)rows * w.n * sizeof(float));
    struct activations a = {.rows = rows,
                            .k = w.k,
                            .f32 = floats((size_t)rows * w.k),
                            .q = base_alloc((size_t)rows * w.k),
                            .scale = base_alloc(groups * sizeof(float)),
                            .offset = base_alloc(groups * sizeof(float)),
                            .total = base_alloc(groups * sizeof(float)),
                            .start = base_alloc(groups * sizeof(int32_t)),
                            .half = base_alloc(groups * sizeof(int32_t))};
    double operations = 2.0 * rows * w.n * w.k, gops[RUNS];
    uint32_t repeats = (uint32_t)(1e8 / operations) + 1;
    repeats = (repeats + shape->copies - 1) / shape->copies * shape->copies;
    for (int run = 0; run < RUNS; run++) {
        uint64_t start_ns = clock_ns();
        for (uint32_t i = 0; i < repeats; i++) {
            w.panels = panels + i % shape->copies * bytes;
            path->quantize(&a);
            path->matmul(out, w.n, &w, &a);
        }
        gops[run] = operations * repeats / (double)(clock_ns() - start_ns);
    }
    free(panels);
    free(out);
    free((void *)(uintptr_t)a.f32);
    free(a.q);
    free(a.scale);
    free(a.offset);
    free(a.total);
    free(a.start);
    free(a.half);
    return median(gops);
}

/* Nanoseconds per (position attended to, KV head); three query heads share a KV head. */
static double attention_ns(const struct kernels *path, uint32_t context, uint32_t rows)
{
    enum { HEADS = 9, KV_HEADS = 3, DIM = 64, BLOCK = 16 };
    uint32_t blocks = (context + BLOCK - 1) / BLOCK;
    size_t stride = kv_block_bytes(KV_HEADS, DIM, BLOCK);
    uint32_t *table = base_alloc(blocks * sizeof(*table));
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = blocks - 1 - i;
    struct attention a = {.out = floats((size_t)rows * HEADS * DIM),
                          .q = floats((size_t)rows * HEADS * DIM),
                          .q_stride = HEADS * DIM,
                          .rows = rows,
                          .heads = HEADS,
                          .kv_heads = KV_HEADS,
                          .head_dim = DIM,
                          .first_pos = context - rows,
                          .window = UINT32_MAX,
                          .scale = 0.125f,
                          .blocks = table,
                          .block_size = BLOCK,
                          .kv = base_alloc(blocks * stride),
                          .block_stride = stride,
                          .scratch = floats(attention_scratch_floats(context, HEADS))};
    double pairs = 0, ns[RUNS];
    for (uint32_t r = 0; r < rows; r++)
        pairs += a.first_pos + r + 1;
    for (int run = 0; run < RUNS; run++) {
        uint64_t start_ns = clock_ns();
        path->attention(&a);
        ns[run] = (double)(clock_ns() - start_ns) / pairs / KV_HEADS;
    }
    free(table);
    free(a.out);
    free((void *)(uintptr_t)a.q);
    free(a.kv);
    free(a.scratch);
    return median(ns);
}

/* Microseconds of what is neither: 16 rows of one layer, and one row of logits. */
static void print_rest(const struct kernels *path)
{
    enum { ROWS = 16, WIDTH = 576, INNER = 1536, HEADS = 12, DIM = 64, VOCAB = 49152, BLOCK = 16, KINDS = 7 };
    static const char *const kinds[KINDS] = {"rms_norm", "quantize", "swiglu", "rope", "kv_store", "argmax", "sum_exp"};
    const uint32_t blocks[1] = {0};
    float *x = floats((size_t)ROWS * 2 * INNER), *out = floats((size_t)ROWS * INNER), *logits = floats(VOCAB);
    struct attention cache = {.rows = ROWS, .kv_heads = 3, .head_dim = DIM, .blocks = blocks, .block_size = BLOCK};
    cache.kv = base_alloc(kv_block_bytes(3, DIM, BLOCK));
    size_t groups = (size_t)ROWS * WIDTH / KERNEL_GROUP;
    struct activations a = {.rows = ROWS,
                            .k = WIDTH,
                            .f32 = x,
                            .q = base_alloc((size_t)ROWS * WIDTH),
                            .scale = base_alloc(groups * sizeof(float)),
                            .offset = base_alloc(groups * sizeof(float)),
                            .total = base_alloc(groups * sizeof(float)),
                            .start = base_alloc(groups * sizeof(int32_t)),
                            .half = base_alloc(groups * sizeof(int32_t))};
    printf("microseconds for %d rows:", ROWS);
    for (int kind = 0; kind < KINDS; kind++) {
        double us[RUNS];
        for (int run = 0; run < RUNS; run++) {
            uint64_t start_ns = clock_ns();
            for (int i = 0; i < 20; i++) {
                if (kind == 0)
                    path->rms_norm(out, x, logits, ROWS, WIDTH, 1e-5f);
                else if (kind == 1)
                    path->quantize(&a);
                else if (kind == 2)
                    path->swiglu(out, x, ROWS, INNER);
                else if (kind == 3)
                    path->rope(out, (size_t)HEADS * DIM, logits, ROWS, HEADS, DIM);
                else if (kind == 4)
                    path->kv_store(&cache, x, x + 3 * DIM, INNER);
                else if (kind == 5)
                    path->argmax(logits, VOCAB);
                else
                    path->sum_exp(NULL, logits, VOCAB, 1, 1);
            }
            us[run] = (double)(clock_ns() - start_ns) / 20e3;
        }
        printf("%s%s %.1f", kind == 5 ? "; for one row of logits: " : kind == 0 ? " " : ", ", kinds[kind], median(us));
    }
    putchar('\n');
    free(x);
    free(out);
    free(logits);
    free(cache.kv);
    free(a.q);
    free(a.scale);
    free(a.offset);
    free(a.total);
    free(a.start);
    free(a.half);
}

int main(void)
{
    kernels_thread_init();
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        const struct kernels *path = kernels_pick(*name);
        if (strcmp(*name, "ref") == 0)
            continue; /* the truth is not meant to be fast */
        printf("%s: GOPS by rows\n%-12s", *name, "");
        for (size_t r = 0; r < ARRAY_COUNT(row_counts); r++)
            printf("%8u", row_counts[r]);
        putchar('\n');
        for (size_t s = 0; s < ARRAY_COUNT(shapes); s++) {
            printf("%-12s", shapes[s].name);
            for (size_t r = 0; r < ARRAY_COUNT(row_counts); r++)
                printf("%8.1f", product_gops(path, &shapes[s], row_counts[r]));
            putchar('\n');
        }
        printf("attention, ns per position and KV head: decode at 256 %.1f, at 2048 %.1f; prompt of 256 %.1f\n",
               attention_ns(path, 256, 1), attention_ns(path, 2048, 1), attention_ns(path, 256, 256));
        print_rest(path);
        putchar('\n');
    }
    return 0;
}
