/* test_kernels.c - every path that this processor runs against the plain one, and the promise that a row's bits depend
 * on nothing but the row. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "kernels/kernels.h"

static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* About normal: a sum of uniform ones. */
static float next_float(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += (float)(next_random() >> 40) * 0x1p-24f - 0.5f;
    return sum;
}

static void fill(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * next_float();
}

static float *floats(size_t n)
{
    return base_alloc(n * sizeof(float));
}

static struct activations make_activations(const float *x, uint32_t rows, uint32_t k)
{
    size_t groups = (size_t)rows * (k / KERNEL_GROUP) + 1;
    return (struct activations){.rows = rows,
                                .k = k,
                                .f32 = x,
                                .q = base_alloc((size_t)rows * k),
                                .scale = floats(groups),
                                .offset = floats(groups),
                                .total = floats(groups),
                                .start = base_alloc(groups * sizeof(int32_t))};
}

/* A random matrix as a GGUF file holds it; source gets its rows. */
static struct matrix make_matrix(enum gguf_type type, uint32_t n, uint32_t k, uint8_t **source)
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
        } else if (type == GGUF_TYPE_F16) {
            for (uint32_t i = 0; i < k; i++) {
                uint16_t half = f32_to_f16(0.1f * next_float());
                memcpy(at + 2 * i, &half, 2);
            }
        } else {
            size_t block = row_bytes / (k / KERNEL_GROUP);
            for (size_t i = 0; i < row_bytes; i++)
                at[i] = (uint8_t)next_random();
            for (uint32_t g = 0; g < k / KERNEL_GROUP; g++) {
                uint16_t d = f32_to_f16(0.01f + 0.01f * fabsf(next_float())),
                         m = f32_to_f16(-0.1f + 0.02f * next_float());
                memcpy(at + g * block, &d, 2);
                if (type == GGUF_TYPE_Q4_1)
                    memcpy(at + g * block + 2, &m, 2);
            }
        }
        matrix_pack_row(&w, row, type, at);
    }
    return w;
}

static const enum gguf_type types[] = {GGUF_TYPE_Q4_0, GGUF_TYPE_Q4_1, GGUF_TYPE_Q8_0, GGUF_TYPE_F16, GGUF_TYPE_F32};

Test(kernels, there_is_always_the_plain_path_and_the_best_one_is_first)
{
    const char *const *names = kernels_names();
    cr_assert_str_eq(kernels_pick(NULL)->name, names[0]);
    cr_assert_str_eq(kernels_pick("ref")->name, "ref");
    cr_assert_null(kernels_pick("quantum"));
    for (; *names != NULL; names++)
        fprintf(stderr, "kernels: this processor runs %s\n", *names);
}

Test(kernels, half_floats_convert_as_ieee_says)
{
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float x = f16_to_f32((uint16_t)bits);
        _Float16 expected;
        uint16_t half = (uint16_t)bits;
        memcpy(&expected, &half, 2);
        if (isnan((float)expected))
            cr_assert(isnan(x));
        else
            cr_assert_eq(x, (float)expected, "%04x", bits);
        cr_assert(isnan(x) || f32_to_f16(x) == bits, "%04x", bits);
    }
    for (int i = 0; i < 2000000; i++) {
        uint32_t bits = (uint32_t)next_random();
        float x;
        memcpy(&x, &bits, 4);
        if (isnan(x))
            continue;
        _Float16 expected = (_Float16)x;
        uint16_t half;
        memcpy(&half, &expected, 2);
        cr_assert_eq(f32_to_f16(x), half, "%08x", bits);
    }
}

Test(kernels, packing_loses_nothing)
{
    for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
        uint8_t *source;
        const uint32_t n = 37, k = 96;
        struct matrix w = make_matrix(types[t], n, k, &source);
        float expected[96], unpacked[96];
        for (uint32_t row = 0; row < n; row++) {
            gguf_dequantize_row(expected, types[t], source + row * gguf_row_bytes(types[t], k), k);
            matrix_unpack_row(unpacked, &w, row);
            for (uint32_t i = 0; i < k; i++)
                cr_assert_eq(expected[i], unpacked[i], "type %d row %u column %u", types[t], row, i);
        }
    }
}

Test(kernels, quantised_activations_are_within_half_a_step)
{
    const uint32_t rows = 5, k = 96;
    float *x = floats(rows * k);
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        fill(x, rows * k, 3);
        for (uint32_t i = 0; i < KERNEL_GROUP; i++)
            x[i] = 0; /* a group of zeros */
        for (uint32_t i = 0; i < KERNEL_GROUP; i++)
            x[KERNEL_GROUP + i] = 2.5f; /* a group without a spread */
        struct activations a = make_activations(x, rows, k);
        kernels_pick(*name)->quantize(&a);
        for (uint32_t i = 0; i < rows * k; i++) {
            uint32_t g = i / KERNEL_GROUP;
            float back = a.offset[g] + a.scale[g] * a.q[i];
            cr_assert_leq(fabsf(back - x[i]), 0.5f * a.scale[g] + 1e-6f * fabsf(x[i]), "%s: %g for %g", *name, back,
                          x[i]);
        }
        for (uint32_t g = 0; g < rows * k / KERNEL_GROUP; g++) {
            int32_t sum = 0;
            for (uint32_t i = 0; i < KERNEL_GROUP; i++)
                sum += a.q[g * KERNEL_GROUP + i];
            cr_assert_eq(a.start[g], -128 * sum);
            cr_assert_float_eq(a.total[g], a.scale[g] * sum + 32 * a.offset[g], 1e-4);
        }
    }
}

/* Paths differ in the order of float sums only: 1e-5 of the sum of the terms' sizes is some hundred roundings of f32. */
Test(kernels, products_agree_with_the_plain_path)
{
    const uint32_t rows = 11, k = 192;
    const uint32_t sizes[] = {16, 48, 37};
    const struct kernels *plain = kernels_pick("ref");
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(types); t++)
            for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
                const struct kernels *path = kernels_pick(*name);
                uint32_t n = sizes[s];
                uint8_t *source;
                struct matrix w = make_matrix(types[t], n, k, &source);
                float *x = floats(rows * k), *out = floats(rows * n), *expected = floats(rows * n), row_of_w[192];
                fill(x, rows * k, 1);
                struct activations a = make_activations(x, rows, k);
                path->quantize(&a);
                path->matmul(out, n, &w, &a);
                plain->matmul(expected, n, &w, &a);
                for (uint32_t r = 0; r < rows; r++)
                    for (uint32_t i = 0; i < n; i++) {
                        double size = 0, exact = 0, rounding = 0;
                        matrix_unpack_row(row_of_w, &w, i);
                        for (uint32_t j = 0; j < k; j++) {
                            size += fabs((double)x[r * k + j] * row_of_w[j]) + 1;
                            exact += (double)x[r * k + j] * row_of_w[j];
                            rounding += 0.5 * a.scale[(r * k + j) / KERNEL_GROUP] * fabs(row_of_w[j]);
                        }
                        cr_assert_leq(fabs(out[r * n + i] - expected[r * n + i]), 1e-5 * size, "%s type %d: %g, not %g",
                                      *name, types[t], out[r * n + i], expected[r * n + i]);
                        /* int8 activations are off by half a step at most, each */
                        cr_assert_leq(fabs(out[r * n + i] - exact), rounding + 1e-5 * size);
                    }
            }
}

/* The promise itself: a row alone and the same row among any number of others, at any place. */
Test(kernels, a_rows_product_has_the_same_bits_whatever_is_beside_it)
{
    const uint32_t rows_max = 21, n = 53, k = 160;
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
            const struct kernels *path = kernels_pick(*name);
            uint8_t *source;
            struct matrix w = make_matrix(types[t], n, k, &source);
            float *x = floats(rows_max * k), *alone = floats(rows_max * n), *out = floats(rows_max * n);
            fill(x, rows_max * k, 1);
            for (uint32_t r = 0; r < rows_max; r++) {
                struct activations a = make_activations(x + r * k, 1, k);
                path->quantize(&a);
                path->matmul(alone + r * n, n, &w, &a);
            }
            for (uint32_t rows = 2; rows <= rows_max; rows++)
                for (uint32_t first = 0; first + rows <= rows_max; first += 3) {
                    struct activations a = make_activations(x + first * k, rows, k);
                    path->quantize(&a);
                    memset(out, 0xff, rows_max * n * sizeof(float));
                    path->matmul(out, n, &w, &a);
                    cr_assert_eq(memcmp(out, alone + first * n, rows * n * sizeof(float)), 0,
                                 "%s type %d: %u rows at %u", *name, types[t], rows, first);
                }
        }
}

Test(kernels, the_fast_paths_give_equal_bits)
{
    const struct kernels *one = kernels_pick("avx512"), *other = kernels_pick("avx2");
    if (one == NULL || other == NULL)
        cr_skip_test("this processor has only one fast path");
    const uint32_t rows = 9, n = 40, k = 160;
    for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
        uint8_t *source;
        struct matrix w = make_matrix(types[t], n, k, &source);
        float *x = floats(rows * k), *a_out = floats(rows * n), *b_out = floats(rows * n);
        fill(x, rows * k, 1);
        struct activations a = make_activations(x, rows, k), b = make_activations(x, rows, k);
        one->quantize(&a);
        other->quantize(&b);
        cr_assert_eq(memcmp(a.q, b.q, rows * k), 0);
        one->matmul(a_out, n, &w, &a);
        other->matmul(b_out, n, &w, &b);
        cr_assert_eq(memcmp(a_out, b_out, rows * n * sizeof(float)), 0, "type %d", types[t]);
    }
}

/* ---- attention ---- */

#define CONTEXT 300u
#define HEADS   6u
#define KV      2u
#define DIM     64u

struct cache {
    uint8_t *kv;
    uint32_t blocks[CONTEXT]; /* scattered */
    uint32_t block_size;
    size_t stride;
};

static struct cache make_cache(uint32_t block_size)
{
    struct cache cache = {.block_size = block_size, .stride = 2 * kv_block_bytes(KV, DIM, block_size)};
    uint32_t count = (CONTEXT + block_size - 1) / block_size;
    cache.kv = base_alloc(count * cache.stride);
    memset(cache.kv, 0xff, count * cache.stride); /* NaN where nothing was stored */
    for (uint32_t i = 0; i < count; i++)
        cache.blocks[i] = (i * 7 + 3) % count;
    if (count % 7 == 0)
        for (uint32_t i = 0; i < count; i++)
            cache.blocks[i] = count - 1 - i;
    return cache;
}

/* Runs positions 0..CONTEXT - 1 in chunks; out (CONTEXT, HEADS * DIM). */
static void attend_in_chunks(const struct kernels *path, const struct cache *cache, const float *q, const float *k,
                             const float *v, uint32_t chunk, float *out)
{
    float *scratch = floats(attention_scratch_floats(CONTEXT, HEADS));
    for (uint32_t first = 0; first < CONTEXT; first += chunk) {
        uint32_t rows = CONTEXT - first < chunk ? CONTEXT - first : chunk;
        struct attention a = {.out = out + first * HEADS * DIM,
                              .q = q + first * HEADS * DIM,
                              .q_stride = HEADS * DIM,
                              .rows = rows,
                              .heads = HEADS,
                              .kv_heads = KV,
                              .head_dim = DIM,
                              .first_pos = first,
                              .scale = 0.125f,
                              .blocks = cache->blocks,
                              .block_size = cache->block_size,
                              .kv = cache->kv,
                              .block_stride = cache->stride,
                              .scratch = scratch};
        path->kv_store(&a, k + first * KV * DIM, v + first * KV * DIM, KV * DIM);
        path->attention(&a);
    }
    free(scratch);
}

Test(kernels, attention_has_the_same_bits_whatever_the_chunks_and_blocks)
{
    float *q = floats(CONTEXT * HEADS * DIM), *k = floats(CONTEXT * KV * DIM), *v = floats(CONTEXT * KV * DIM);
    float *expected = floats(CONTEXT * HEADS * DIM), *out = floats(CONTEXT * HEADS * DIM);
    fill(q, CONTEXT * HEADS * DIM, 2);
    fill(k, CONTEXT * KV * DIM, 2);
    fill(v, CONTEXT * KV * DIM, 1);
    const uint32_t blocks[] = {16, 8, 32, 64, 128}, chunks[] = {1, 7, 32, 100, CONTEXT};
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t b = 0; b < ARRAY_COUNT(blocks); b++)
            for (size_t c = 0; c < ARRAY_COUNT(chunks); c++) {
                struct cache cache = make_cache(blocks[b]);
                float *target = b == 0 && c == 0 ? expected : out;
                attend_in_chunks(kernels_pick(*name), &cache, q, k, v, chunks[c], target);
                cr_assert_eq(memcmp(target, expected, CONTEXT * HEADS * DIM * sizeof(float)), 0,
                             "%s: blocks of %u, chunks of %u", *name, blocks[b], chunks[c]);
                free(cache.kv);
            }
}

/* exp() of the fast paths is right to 2e-7, sums of 300 terms to some 1e-5. */
Test(kernels, attention_agrees_with_the_plain_path)
{
    float *q = floats(CONTEXT * HEADS * DIM), *k = floats(CONTEXT * KV * DIM), *v = floats(CONTEXT * KV * DIM);
    float *expected = floats(CONTEXT * HEADS * DIM), *out = floats(CONTEXT * HEADS * DIM);
    fill(q, CONTEXT * HEADS * DIM, 2);
    fill(k, CONTEXT * KV * DIM, 2);
    fill(v, CONTEXT * KV * DIM, 1);
    struct cache cache = make_cache(16);
    attend_in_chunks(kernels_pick("ref"), &cache, q, k, v, 50, expected);
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        attend_in_chunks(kernels_pick(*name), &cache, q, k, v, 50, out);
        for (uint32_t i = 0; i < CONTEXT * HEADS * DIM; i++)
            cr_assert_float_eq(out[i], expected[i], 2e-5, "%s: %g, not %g", *name, out[i], expected[i]);
    }
}

/* ---- the rest ---- */

Test(kernels, rows_agree_with_the_plain_path_and_do_not_see_each_other)
{
    const uint32_t rows = 5, width = 100, dim = 64;
    const struct kernels *plain = kernels_pick("ref");
    float *x = floats(rows * 2 * width), *gain = floats(width), *a = floats(rows * 2 * width),
          *b = floats(rows * 2 * width);
    fill(x, rows * 2 * width, 4);
    fill(gain, width, 1);
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        const struct kernels *path = kernels_pick(*name);
        path->rms_norm(a, x, gain, rows, width, 1e-5f);
        plain->rms_norm(b, x, gain, rows, width, 1e-5f);
        for (uint32_t i = 0; i < rows * width; i++)
            cr_assert_float_eq(a[i], b[i], 1e-5, "%s rms_norm", *name);
        path->rms_norm(b + 3 * width, x + 3 * width, gain, 1, width, 1e-5f);
        cr_assert_eq(memcmp(a + 3 * width, b + 3 * width, width * sizeof(float)), 0);

        path->swiglu(a, x, rows, width);
        plain->swiglu(b, x, rows, width);
        for (uint32_t i = 0; i < rows * width; i++)
            cr_assert_float_eq(a[i], b[i], 1e-4, "%s swiglu: %g, not %g", *name, a[i], b[i]);

        float cos_sin[5 * 64];
        for (uint32_t i = 0; i < rows * dim; i++)
            cos_sin[i] = i % dim < dim / 2 ? cosf((float)i) : sinf((float)(i - dim / 2));
        memcpy(a, x, rows * dim * sizeof(float));
        memcpy(b, x, rows * dim * sizeof(float));
        path->rope(a, dim, cos_sin, rows, 1, dim);
        plain->rope(b, dim, cos_sin, rows, 1, dim);
        for (uint32_t i = 0; i < rows * dim; i++)
            cr_assert_float_eq(a[i], b[i], 1e-5, "%s rope", *name);

        memcpy(a, x, width * sizeof(float));
        path->add(a, x + width, width);
        for (uint32_t i = 0; i < width; i++)
            cr_assert_eq(a[i], x[i] + x[width + i]);
    }
}

Test(kernels, the_greatest_logit_is_found_and_ties_go_to_the_first)
{
    float x[1000];
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        const struct kernels *path = kernels_pick(*name);
        for (uint32_t n = 1; n < 1000; n += 13) {
            fill(x, n, 1);
            uint32_t at = (uint32_t)(next_random() % n), later = at + (uint32_t)(next_random() % (n - at));
            x[at] = x[later] = 50;
            cr_assert_eq(path->argmax(x, n), at, "%s: %u of %u", *name, at, n);
        }
        for (uint32_t i = 0; i < 1000; i++)
            x[i] = NAN;
        cr_assert_lt(path->argmax(x, 1000), 1000);
        x[777] = -3;
        cr_assert_eq(path->argmax(x, 1000), 777, "%s", *name);
        fill(x, 1000, 5);
        float max = x[path->argmax(x, 1000)], expected = kernels_pick("ref")->sum_exp(NULL, x, 1000, max, 0.7f);
        float probs[1000];
        cr_assert_float_eq(path->sum_exp(probs, x, 1000, max, 0.7f), expected, 1e-5f * expected, "%s", *name);
        cr_assert_eq(path->sum_exp(NULL, x, 1000, max, 0.7f), path->sum_exp(probs, x, 1000, max, 0.7f));
    }
}

Test(kernels, a_hash_sees_every_bit_and_every_place)
{
    float x[67];
    fill(x, 67, 1);
    uint64_t hash = hash_floats(x, 67);
    for (uint32_t i = 0; i < 67; i++)
        for (uint32_t bit = 0; bit < 32; bit++) {
            uint32_t bits;
            memcpy(&bits, &x[i], 4);
            bits ^= 1u << bit;
            memcpy(&x[i], &bits, 4);
            cr_assert_neq(hash_floats(x, 67), hash);
            bits ^= 1u << bit;
            memcpy(&x[i], &bits, 4);
        }
    cr_assert_neq(hash_floats(x, 66), hash);
    float first = x[0];
    x[0] = x[8];
    x[8] = first;
    cr_assert_neq(hash_floats(x, 67), hash);
}
