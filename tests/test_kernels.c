/* test_kernels.c - every path that this processor runs against the plain one, and the promise that a row's bits depend
 * on nothing but the row. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "kernels/draw.h"
#include "kernels/kernels.h"
#include "tests/random_tensors.h"

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
                                .start = base_alloc(groups * sizeof(int32_t)),
                                .half = base_alloc(groups * sizeof(int32_t))};
}

static void free_activations(struct activations *a)
{
    free(a->q);
    free(a->scale);
    free(a->offset);
    free(a->total);
    free(a->start);
    free(a->half);
}

static const enum gguf_type types[] = {GGUF_TYPE_Q4_0, GGUF_TYPE_Q4_1, GGUF_TYPE_Q5_0,   GGUF_TYPE_Q5_1,
                                       GGUF_TYPE_Q8_0, GGUF_TYPE_Q4_K, GGUF_TYPE_Q5_K,   GGUF_TYPE_Q6_K,
                                       GGUF_TYPE_F16,  GGUF_TYPE_BF16, GGUF_TYPE_IQ4_NL, GGUF_TYPE_F32};

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
        const uint32_t n = 37, k = whole_blocks(types[t], 96);
        struct matrix w = make_matrix(types[t], n, k, &source);
        float expected[256], unpacked[256];
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
    const uint32_t rows = 11;
    const uint32_t sizes[] = {16, 48, 37};
    const struct kernels *plain = kernels_pick("ref");
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(types); t++)
            for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
                const struct kernels *path = kernels_pick(*name);
                uint32_t n = sizes[s], k = whole_blocks(types[t], 192);
                uint8_t *source;
                struct matrix w = make_matrix(types[t], n, k, &source);
                float *x = floats(rows * k), *out = floats(rows * n), *expected = floats(rows * n), row_of_w[256];
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

/* The promise itself: a row alone and the same row among any number of others, at any place. Nothing is written between
 * rows. */
Test(kernels, a_rows_product_has_the_same_bits_whatever_is_beside_it)
{
    const uint32_t rows_max = 40, n = 53, stride = 59;
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
            const struct kernels *path = kernels_pick(*name);
            const uint32_t k = whole_blocks(types[t], 160);
            uint8_t *source;
            struct matrix w = make_matrix(types[t], n, k, &source);
            float *x = floats(rows_max * k), *alone = floats(rows_max * stride), *out = floats(rows_max * stride);
            fill(x, rows_max * k, 1);
            memset(alone, 0xff, rows_max * stride * sizeof(float));
            for (uint32_t r = 0; r < rows_max; r++) {
                struct activations a = make_activations(x + r * k, 1, k);
                path->quantize(&a);
                path->matmul(alone + r * stride, stride, &w, &a);
                free_activations(&a);
            }
            for (uint32_t rows = 2; rows <= rows_max; rows++)
                for (uint32_t first = 0; first + rows <= rows_max; first += 7) {
                    struct activations a = make_activations(x + first * k, rows, k);
                    path->quantize(&a);
                    memset(out, 0xff, rows_max * stride * sizeof(float));
                    path->matmul(out, stride, &w, &a);
                    cr_assert_eq(memcmp(out, alone + first * stride, rows * stride * sizeof(float)), 0,
                                 "%s type %d: %u rows at %u", *name, types[t], rows, first);
                    free_activations(&a);
                }
        }
}

/* The largest products of integers there are: where a path added in 16 bits, it would saturate here. The plain path adds
 * in 32, so the paths agree as closely as anywhere. */
Test(kernels, the_largest_integers_do_not_saturate)
{
    const uint32_t rows = 9, n = 16, k = 64;
    const enum gguf_type quantised[] = {GGUF_TYPE_Q4_1, GGUF_TYPE_Q8_0};
    const uint8_t fills[] = {0xff, 0x80, 0x7f, 0x00};
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(quantised); t++)
            for (size_t f = 0; f < ARRAY_COUNT(fills); f++) {
                uint8_t *source;
                struct matrix w = make_matrix(quantised[t], n, k, &source);
                size_t row_bytes = gguf_row_bytes(quantised[t], k), block = row_bytes / (k / KERNEL_GROUP);
                size_t head = quantised[t] == GGUF_TYPE_Q8_0 ? 2 : 4;
                for (uint32_t row = 0; row < n; row++) {
                    for (uint32_t g = 0; g < k / KERNEL_GROUP; g++)
                        memset(source + row * row_bytes + g * block + head, fills[f], block - head);
                    matrix_pack_row(&w, row, quantised[t], source + row * row_bytes);
                }
                float *x = floats(rows * k), *out = floats(rows * n), *expected = floats(rows * n);
                for (uint32_t i = 0; i < rows * k; i++) /* one of a sign in each group, or half of each */
                    x[i] = i / k % 3 == 0   ? (i % KERNEL_GROUP ? 127 : -127)
                           : i / k % 3 == 1 ? (i % KERNEL_GROUP ? -127 : 127)
                                            : (i & 1 ? 127 : -127);
                struct activations a = make_activations(x, rows, k);
                kernels_pick(*name)->quantize(&a);
                cr_assert_eq(a.q[0], -127);
                cr_assert_eq(a.q[1], 127);
                kernels_pick(*name)->matmul(out, n, &w, &a);
                kernels_pick("ref")->matmul(expected, n, &w, &a);
                for (uint32_t i = 0; i < rows * n; i++)
                    cr_assert_float_eq(out[i], expected[i], 1e-5 * 64 * 128 * 127 * 0.02,
                                       "%s type %d fill %02x: %g, not %g", *name, quantised[t], fills[f], out[i],
                                       expected[i]);
            }
}

/* k beyond what a path keeps of a panel from one tile of rows to the next. */
Test(kernels, very_long_rows_are_products_like_others)
{
    const uint32_t rows = 11, n = 16, k = 33024;
    const enum gguf_type quantised[] = {GGUF_TYPE_Q4_1, GGUF_TYPE_Q8_0};
    for (const char *const *name = kernels_names(); *name != NULL; name++)
        for (size_t t = 0; t < ARRAY_COUNT(quantised); t++) {
            const struct kernels *path = kernels_pick(*name);
            uint8_t *source;
            struct matrix w = make_matrix(quantised[t], n, k, &source);
            float *x = floats(rows * k), *out = floats(rows * n), alone[16];
            fill(x, rows * k, 1);
            struct activations all = make_activations(x, rows, k);
            path->quantize(&all);
            path->matmul(out, n, &w, &all);
            for (uint32_t r = 0; r < rows; r++) {
                struct activations one = make_activations(x + (size_t)r * k, 1, k);
                path->quantize(&one);
                path->matmul(alone, n, &w, &one);
                cr_assert_eq(memcmp(alone, out + r * n, sizeof(alone)), 0, "%s type %d row %u", *name, quantised[t], r);
            }
        }
}

/* A scale whose inverse is no number would make q anything; with and without denormals flushed. */
Test(kernels, groups_next_to_zero_become_zero)
{
    const uint32_t rows = 3, k = 64;
    for (int is_flushing = 0; is_flushing < 2; is_flushing++) {
        if (is_flushing)
            kernels_thread_init();
        for (const char *const *name = kernels_names(); *name != NULL; name++) {
            float *x = floats(rows * k), out[3 * 16];
            for (uint32_t i = 0; i < rows * k; i++)
                x[i] = (i & 1 ? 1 : -1) * (i / k == 0 ? 0x1p-149f : i / k == 1 ? 0x1p-130f : 0x1p-125f);
            struct activations a = make_activations(x, rows, k);
            uint8_t *source;
            struct matrix w = make_matrix(GGUF_TYPE_Q4_1, 16, k, &source);
            kernels_pick(*name)->quantize(&a);
            for (uint32_t i = 0; i < rows * k; i++)
                cr_assert_eq(a.q[i], 0, "%s: %d for %g", *name, a.q[i], x[i]);
            kernels_pick(*name)->matmul(out, 16, &w, &a);
            for (uint32_t i = 0; i < ARRAY_COUNT(out); i++)
                cr_assert_leq(fabsf(out[i]), 1e-30f);
        }
    }
}

/* As the engine runs them, with denormals flushed: every kernel of the two paths, bit for bit. */
Test(kernels, the_fast_paths_give_equal_bits)
{
    const struct kernels *one = kernels_pick("avx512"), *other = kernels_pick("avx2");
    if (one == NULL || other == NULL)
        cr_skip_test("this processor has only one fast path");
    kernels_thread_init();
    const uint32_t rows = 9, n = 40, k = 256;
    float *x = floats(2 * rows * k), *a_out = floats(rows * k), *b_out = floats(rows * k);
    for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
        uint8_t *source;
        struct matrix w = make_matrix(types[t], n, k, &source);
        fill(x, rows * k, 1);
        struct activations a = make_activations(x, rows, k), b = make_activations(x, rows, k);
        one->quantize(&a);
        other->quantize(&b);
        cr_assert_eq(memcmp(a.q, b.q, rows * k), 0);
        cr_assert_eq(memcmp(a.total, b.total, rows * k / KERNEL_GROUP * sizeof(float)), 0);
        one->matmul(a_out, n, &w, &a);
        other->matmul(b_out, n, &w, &b);
        cr_assert_eq(memcmp(a_out, b_out, rows * n * sizeof(float)), 0, "type %d", types[t]);
    }
    fill(x, 2 * rows * k, 8);
    one->rms_norm(a_out, x, x + k, rows, k - 3, 1e-5f);
    other->rms_norm(b_out, x, x + k, rows, k - 3, 1e-5f);
    cr_assert_eq(memcmp(a_out, b_out, rows * (k - 3) * sizeof(float)), 0, "rms_norm");
    one->swiglu(a_out, x, rows, k - 3);
    other->swiglu(b_out, x, rows, k - 3);
    cr_assert_eq(memcmp(a_out, b_out, rows * (k - 3) * sizeof(float)), 0, "swiglu");
    one->geglu(a_out, x, rows, k - 3);
    other->geglu(b_out, x, rows, k - 3);
    cr_assert_eq(memcmp(a_out, b_out, rows * (k - 3) * sizeof(float)), 0, "geglu");
    memcpy(a_out, x, rows * k * sizeof(float));
    memcpy(b_out, x, rows * k * sizeof(float));
    one->rope(a_out, k, x + 7, rows, 2, 48);
    other->rope(b_out, k, x + 7, rows, 2, 48);
    one->add(a_out, x + 5, rows * k - 1);
    other->add(b_out, x + 5, rows * k - 1);
    cr_assert_eq(memcmp(a_out, b_out, rows * k * sizeof(float)), 0, "rope, add");
    float sum = one->sum_exp(a_out, x, rows * k - 1, 30, 0.7f),
          other_sum = other->sum_exp(b_out, x, rows * k - 1, 30, 0.7f);
    cr_assert_eq(sum, other_sum);
    cr_assert_eq(memcmp(a_out, b_out, (rows * k - 1) * sizeof(float)), 0, "sum_exp");
    cr_assert_eq(one->argmax(x, rows * k - 1), other->argmax(x, rows * k - 1));
}

/* ---- attention ---- */

#define CONTEXT 300u
#define HEADS   6u
#define KV      2u
#define DIM     64u

struct cache {
    enum kv_type type;
    uint8_t *kv;
    uint32_t blocks[CONTEXT]; /* scattered */
    uint32_t block_size;
    size_t stride;
};

static struct cache make_cache(enum kv_type type, uint32_t block_size)
{
    struct cache cache = {
        .type = type, .block_size = block_size, .stride = 2 * kv_block_bytes(type, KV, DIM, block_size)};
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
    size_t scratch_count = attention_scratch_floats(CONTEXT, HEADS);
    float *scratch = floats(scratch_count + 16);
    memset(scratch, 0xff, (scratch_count + 16) * sizeof(float));
    for (uint32_t first = 0; first < CONTEXT; first += chunk) {
        uint32_t rows = CONTEXT - first < chunk ? CONTEXT - first : chunk;
        struct attention a = {.out = out + first * HEADS * DIM,
                              .q = q + first * HEADS * DIM,
                              .q_stride = HEADS * DIM,
                              .rows = rows,
                              .heads = HEADS,
                              .kv_heads = KV,
                              .head_dim = DIM,
                              .window = UINT32_MAX,
                              .first_pos = first,
                              .scale = 0.125f,
                              .blocks = cache->blocks,
                              .block_size = cache->block_size,
                              .kv_type = cache->type,
                              .kv = cache->kv,
                              .block_stride = cache->stride,
                              .scratch = scratch};
        path->kv_store(&a, k + first * KV * DIM, v + first * KV * DIM, KV * DIM);
        path->attention(&a);
    }
    for (size_t i = 0; i < 16; i++)
        cr_assert(isnan(scratch[scratch_count + i]), "%s: more scratch than was asked for", path->name);
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
        for (size_t i = 0; i < KV_TYPES * ARRAY_COUNT(blocks) * ARRAY_COUNT(chunks); i++) {
            enum kv_type type = i / (ARRAY_COUNT(blocks) * ARRAY_COUNT(chunks));
            uint32_t block_size = blocks[i / ARRAY_COUNT(chunks) % ARRAY_COUNT(blocks)];
            uint32_t chunk = chunks[i % ARRAY_COUNT(chunks)];
            struct cache cache = make_cache(type, block_size);
            float *target = i % (ARRAY_COUNT(blocks) * ARRAY_COUNT(chunks)) == 0 ? expected : out;
            attend_in_chunks(kernels_pick(*name), &cache, q, k, v, chunk, target);
            cr_assert_eq(memcmp(target, expected, CONTEXT * HEADS * DIM * sizeof(float)), 0,
                         "%s, %s: blocks of %u, chunks of %u", *name, kv_type_name(type), block_size, chunk);
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
    for (enum kv_type type = KV_F16; type < KV_TYPES; type++) {
        struct cache cache = make_cache(type, 16);
        attend_in_chunks(kernels_pick("ref"), &cache, q, k, v, 50, expected);
        for (const char *const *name = kernels_names(); *name != NULL; name++) {
            attend_in_chunks(kernels_pick(*name), &cache, q, k, v, 50, out);
            for (uint32_t i = 0; i < CONTEXT * HEADS * DIM; i++)
                cr_assert_float_eq(out[i], expected[i], 2e-5, "%s, %s: %g, not %g", *name, kv_type_name(type), out[i],
                                   expected[i]);
        }
    }
}

/* The greatest of a head's floats at a position becomes 127; what stands there is within half a step of what was given, on
 * every path the same bytes. */
Test(kernels, a_cache_of_bytes_holds_what_was_stored_within_half_a_step)
{
    enum { ROWS = 5, FIRST = 9, BLOCK = 8 };
    const uint32_t blocks[] = {1, 2, 0};
    float k[ROWS * KV * DIM], v[ROWS * KV * DIM];
    size_t head_bytes = kv_block_bytes(KV_Q8, 1, DIM, BLOCK), stride = KV * head_bytes;
    uint8_t *kv[2] = {base_alloc(3 * stride), base_alloc(3 * stride)};
    cr_assert_eq(head_bytes, 2 * BLOCK * (DIM + sizeof(float)));
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        fill(k, ROWS * KV * DIM, 3);
        fill(v, ROWS * KV * DIM, 1e-3f);
        memset(v + DIM, 0, DIM * sizeof(float)); /* a head of zeros */
        for (int i = 0; i < 2; i++) {
            const struct attention a = {.rows = ROWS,
                                        .kv_heads = KV,
                                        .head_dim = DIM,
                                        .first_pos = FIRST,
                                        .blocks = blocks,
                                        .block_size = BLOCK,
                                        .kv_type = KV_Q8,
                                        .kv = kv[i],
                                        .block_stride = stride};
            kernels_pick(i == 0 ? "ref" : *name)->kv_store(&a, k, v, KV * DIM);
        }
        cr_assert_eq(memcmp(kv[0], kv[1], 3 * stride), 0, "%s", *name);
        for (uint32_t i = 0; i < ROWS * KV * DIM; i++) {
            uint32_t position = FIRST + i / (KV * DIM), in_block = position % BLOCK, d = i % DIM;
            const uint8_t *head = kv[1] + blocks[position / BLOCK] * stride + i / DIM % KV * head_bytes;
            const int8_t *keys = (const int8_t *)head, *values = keys + DIM * BLOCK;
            const float *scales = (const float *)(const void *)(head + 2 * DIM * BLOCK);
            float key_scale = scales[in_block], value_scale = scales[BLOCK + in_block];
            cr_assert_leq(fabsf(keys[d * BLOCK + in_block] * key_scale - k[i]), 0.501f * key_scale, "%s", *name);
            cr_assert_leq(fabsf(values[in_block * DIM + d] * value_scale - v[i]), 0.501f * value_scale, "%s", *name);
        }
    }
    free(kv[0]);
    free(kv[1]);
}

/* Other models' shapes and windows: one head for all queries or one each, groups that fill no tile, heads shorter than a
 * vector pair and longer than what is gathered at a time. For each: right, and the same bits whatever the blocks, the
 * chunks, the fast path. */
Test(kernels, attention_of_any_shape_is_right_and_does_not_depend_on_blocks_or_chunks)
{
    const struct {
        uint32_t heads, kv_heads, dim, window;
    } shapes[] = {{1, 1, 16, UINT32_MAX},
                  {5, 1, 64, UINT32_MAX},
                  {8, 2, 48, UINT32_MAX},
                  {7, 7, 80, UINT32_MAX},
                  {14, 2, 128, UINT32_MAX},
                  {32, 2, 16, UINT32_MAX},
                  {3, 1, 144, UINT32_MAX},
                  {2, 1, 256, UINT32_MAX},
                  {4, 1, 256, 32},
                  {6, 2, 64, 16},
                  {3, 1, 48, 5},
                  {2, 2, 32, 1},
                  {4, 2, 64, 61}};
    const uint32_t positions = 83, blocks[] = {8, 16, 64}, chunks[] = {83, 1, 5, 34};
    kernels_thread_init();
    for (size_t run = 0; run < KV_TYPES * ARRAY_COUNT(shapes); run++) {
        const size_t s = run / KV_TYPES;
        uint32_t heads = shapes[s].heads, kv_heads = shapes[s].kv_heads, dim = shapes[s].dim;
        const enum kv_type type = run % KV_TYPES;
        uint32_t q_width = heads * dim, kv_width = kv_heads * dim;
        size_t outs = (size_t)positions * q_width;
        float *q = floats(outs), *k = floats(positions * kv_width), *v = floats(positions * kv_width);
        float *plain = floats(outs), *fast = floats(outs), *out = floats(outs);
        float *scratch = floats(attention_scratch_floats(positions, heads));
        bool have_fast = false;
        fill(q, outs, 2);
        fill(k, positions * kv_width, 2);
        fill(v, positions * kv_width, 1);
        const char *const order[] = {"ref", "avx512", "avx2"};
        for (size_t o = 0; o < ARRAY_COUNT(order); o++) {
            const struct kernels *path = kernels_pick(order[o]);
            for (size_t i = 0; path != NULL && i < ARRAY_COUNT(blocks) * ARRAY_COUNT(chunks); i++) {
                uint32_t block_size = blocks[i / ARRAY_COUNT(chunks)], chunk = chunks[i % ARRAY_COUNT(chunks)];
                uint32_t count = (positions + block_size - 1) / block_size, table[16];
                size_t stride = kv_block_bytes(type, kv_heads, dim, block_size);
                uint8_t *kv = base_alloc(count * stride);
                memset(kv, 0xff, count * stride);
                for (uint32_t b = 0; b < count; b++)
                    table[b] = count - 1 - b;
                for (uint32_t first = 0; first < positions; first += chunk) {
                    struct attention a = {.out = out + (size_t)first * q_width,
                                          .q = q + (size_t)first * q_width,
                                          .q_stride = q_width,
                                          .rows = positions - first < chunk ? positions - first : chunk,
                                          .heads = heads,
                                          .kv_heads = kv_heads,
                                          .head_dim = dim,
                                          .window = shapes[s].window,
                                          .first_pos = first,
                                          .scale = 0.125f,
                                          .blocks = table,
                                          .block_size = block_size,
                                          .kv_type = type,
                                          .kv = kv,
                                          .block_stride = stride,
                                          .scratch = scratch};
                    path->kv_store(&a, k + (size_t)first * kv_width, v + (size_t)first * kv_width, kv_width);
                    path->attention(&a);
                }
                free(kv);
                bool is_plain = o == 0, is_first = is_plain ? i == 0 : !have_fast;
                float *expected = is_plain ? plain : fast;
                have_fast = have_fast || !is_plain;
                if (is_first)
                    memcpy(expected, out, outs * sizeof(float));
                cr_assert_eq(memcmp(out, expected, outs * sizeof(float)), 0,
                             "%s, %s: %u heads on %u of %u, blocks of %u, chunks of %u", order[o], kv_type_name(type),
                             heads, kv_heads, dim, block_size, chunk);
                for (size_t j = 0; is_first && j < outs; j++) /* as above: some hundred roundings of f32 */
                    cr_assert_float_eq(out[j], plain[j], 2e-5, "%s: %u heads on %u of %u: %g, not %g", order[o], heads,
                                       kv_heads, dim, out[j], plain[j]);
            }
        }
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
        path->geglu(a, x, rows, width);
        plain->geglu(b, x, rows, width);
        for (uint32_t i = 0; i < rows * width; i++)
            cr_assert_float_eq(a[i], b[i], 1e-4, "%s geglu: %g, not %g", *name, a[i], b[i]);

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

/* Degree 6 is off by 1.2e-7 at most in -ln2/2..ln2/2; some roundings of f32 come on top. */
Test(kernels, exponentials_are_right_to_four_ulps_vanish_below_minus_87_and_are_the_same_bits_on_every_path)
{
    float x[4001], probs[4001];
    for (uint32_t i = 0; i <= 4000; i++)
        x[i] = -86.9f * (float)i / 4000;
    for (const char *const *name = kernels_names(); *name != NULL; name++) {
        kernels_pick(*name)->sum_exp(probs, x, 4001, 0, 1);
        for (uint32_t i = 0; i <= 4000; i++)
            cr_assert_leq(fabs(probs[i] - exp(x[i])), 4.8e-7 * exp(x[i]), "%s: exp(%g) is not %g", *name, x[i],
                          probs[i]);
        for (uint32_t i = 0; i <= 4000; i++)
            cr_assert_eq(probs[i], draw_exp(x[i]), "%s: exp(%g) has bits of its own", *name, x[i]);
        float far[3] = {0, -1e4f, -INFINITY};
        cr_assert_eq(kernels_pick(*name)->sum_exp(probs, far, 3, 0, 1), 1, "%s", *name);
        cr_assert_eq(probs[0], 1);
        cr_assert_eq(probs[1], 0);
        cr_assert_eq(probs[2], 0);
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
