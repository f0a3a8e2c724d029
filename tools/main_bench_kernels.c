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
#include "tools/measure.h"

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

static double product_gops(const struct kernels *path, const struct shape *shape, uint32_t rows)
{
    struct measure_product product;
    measure_product_make(&product, shape->form, shape->n, shape->k, rows, shape->copies);
    double operations = measure_product_operations(&product), gops[RUNS];
    uint32_t repeats = (uint32_t)(1e8 / operations) + 1;
    repeats = (repeats + shape->copies - 1) / shape->copies * shape->copies;
    for (int run = 0; run < RUNS; run++) {
        uint64_t start_ns = clock_ns();
        measure_product_run(&product, path, repeats);
        gops[run] = operations * repeats / (double)(clock_ns() - start_ns);
    }
    measure_product_free(&product);
    return median(gops);
}

/* Nanoseconds per (position attended to, KV head); three query heads share a KV head. */
static double attention_ns(const struct kernels *path, enum kv_type type, uint32_t context, uint32_t rows)
{
    struct attention a;
    double ns[RUNS];
    measure_attention_make(&a, type, context, rows);
    for (int run = 0; run < RUNS; run++) {
        uint64_t start_ns = clock_ns();
        path->attention(&a);
        ns[run] = (double)(clock_ns() - start_ns) / measure_attention_pairs(&a) / MEASURE_KV_HEADS;
    }
    measure_attention_free(&a);
    return median(ns);
}

/* Microseconds of what is neither: 16 rows of one layer, and one row of logits. */
static void print_rest(const struct kernels *path)
{
    enum { ROWS = 16, WIDTH = 576, INNER = 1536, HEADS = 12, DIM = 64, VOCAB = 49152, BLOCK = 16, KINDS = 7 };
    static const char *const kinds[KINDS] = {"rms_norm", "quantize", "swiglu", "rope", "kv_store", "argmax", "sum_exp"};
    const uint32_t blocks[1] = {0};
    float *x = measure_floats((size_t)ROWS * 2 * INNER), *out = measure_floats((size_t)ROWS * INNER),
          *logits = measure_floats(VOCAB);
    struct attention cache = {.rows = ROWS, .kv_heads = 3, .head_dim = DIM, .blocks = blocks, .block_size = BLOCK};
    cache.kv = base_alloc(kv_block_bytes(KV_F16, 3, DIM, BLOCK));
    struct activations a = measure_activations(x, ROWS, WIDTH);
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
    measure_activations_free(&a);
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
        for (enum kv_type type = KV_F16; type < KV_TYPES; type++)
            printf("attention, %s, ns per position and KV head: decode at 256 %.1f, at 2048 %.1f; prompt of 256 %.1f\n",
                   kv_type_name(type), attention_ns(path, type, 256, 1), attention_ns(path, type, 2048, 1),
                   attention_ns(path, type, 256, 256));
        print_rest(path);
        putchar('\n');
    }
    return 0;
}
