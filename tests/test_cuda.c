/* test_cuda.c - the CUDA kernels against the plain path, and what is said of devices that are not as they should be. On what
 * stands in for the driver (driver/libcuda.c), or on a real one that EVENFLOW_LIBCUDA names. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/birth.h"
#include "kernels/cuda.h"
#include "stages/sample.h"
#include "tests/fake_cuda.h"
#include "tests/random_tensors.h"

static struct cuda cuda;

static void open_device(void)
{
    fake_cuda_use();
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
}

static void *on_device(const void *from, size_t bytes)
{
    cuda_address at = cuda_alloc(&cuda, bytes);
    if (from != NULL)
        cuda_upload(&cuda, at, from, bytes);
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
    return (void *)(uintptr_t)at;
}

static void fetch(void *to, const void *from, size_t bytes)
{
    cuda_download(&cuda, to, (cuda_address)(uintptr_t)from, bytes);
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
}

static struct matrix matrix_on_device(const struct matrix *w)
{
    struct matrix moved = *w;
    moved.panels = on_device(w->panels, matrix_bytes(w->form, w->n, w->k));
    return moved;
}

/* (rows, k) as halves, readable up to whole tiles. */
static void *halves_on_device(const float *x, uint32_t rows, uint32_t k)
{
    size_t count = align_up_u64(rows, CUDA_ROWS) * (size_t)k;
    uint16_t *halves = base_alloc(count * sizeof(*halves));
    for (size_t i = 0; i < (size_t)rows * k; i++)
        halves[i] = f32_to_f16(x[i]);
    void *at = on_device(halves, count * sizeof(*halves));
    free(halves);
    return at;
}

static void fetch_halves(float *to, const void *from, size_t count)
{
    uint16_t *halves = base_alloc(count * sizeof(*halves));
    fetch(halves, from, count * sizeof(*halves));
    for (size_t i = 0; i < count; i++)
        to[i] = f16_to_f32(halves[i]);
    free(halves);
}

/* ---- products ---- */

static const enum gguf_type types[] = {GGUF_TYPE_Q4_0, GGUF_TYPE_Q4_1, GGUF_TYPE_Q5_0,   GGUF_TYPE_Q5_1,
                                       GGUF_TYPE_Q8_0, GGUF_TYPE_Q4_K, GGUF_TYPE_Q5_K,   GGUF_TYPE_Q6_K,
                                       GGUF_TYPE_F16,  GGUF_TYPE_BF16, GGUF_TYPE_IQ4_NL, GGUF_TYPE_F32};

static void multiply(float *out, const struct matrix *on, const void *x, uint32_t rows)
{
    const struct cuda_gemm_args args = {.w = cuda_matrix_of(on), .out = out, .x = x, .rows = rows, .out_stride = on->n};
    cuda_launch(&cuda, CUDA_KERNEL_gemm, (uint32_t)div_up_u64(on->n, KERNEL_PANEL),
                (uint32_t)div_up_u64(rows, CUDA_ROWS), 1, &args);
}

/* Weights and activations are rounded to halves, 2^-11 of each at most, so a product of them by 2^-10, and sums of floats by
 * much less: 1.2e-3 of the sum of what is added, signs aside. */
Test(cuda, products_are_those_of_the_weights_for_every_type, .timeout = 60)
{
    open_device();
    const uint32_t n = 72, rows = 70; /* neither of them whole panels or tiles */
    for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
        uint32_t k = whole_blocks(types[t], 288);
        uint8_t *source;
        struct matrix w = make_matrix(types[t], n, k, &source), on = matrix_on_device(&w);
        float *x = floats(rows * k), *out = floats(rows * n), *weights = floats(k);
        fill(x, rows * k, 1);
        float *out_on = on_device(NULL, rows * n * sizeof(float));
        multiply(out_on, &on, halves_on_device(x, rows, k), rows);
        fetch(out, out_on, rows * n * sizeof(float));
        for (uint32_t i = 0; i < n; i++) {
            gguf_dequantize_row(weights, types[t], source + i * gguf_row_bytes(types[t], k), k);
            for (uint32_t r = 0; r < rows; r++) {
                double sum = 0, size = 0;
                for (uint32_t j = 0; j < k; j++) {
                    sum += (double)weights[j] * x[r * k + j];
                    size += fabs((double)weights[j] * x[r * k + j]);
                }
                cr_assert(fabs(out[r * n + i] - sum) < 1.2e-3 * size, "type %d, row %u, output %u: %g, not %g",
                          types[t], r, i, (double)out[r * n + i], sum);
            }
        }
        free(x), free(out), free(weights), free(source), free((void *)(uintptr_t)w.panels);
    }
}

Test(cuda, a_rows_product_has_the_same_bits_beside_up_to_255_others, .timeout = 120)
{
    open_device();
    const uint32_t n = 48, rows = 256;
    static const enum gguf_type swept[] = {GGUF_TYPE_Q4_1, GGUF_TYPE_Q6_K, GGUF_TYPE_F16};
    for (size_t t = 0; t < ARRAY_COUNT(swept); t++) {
        uint32_t k = whole_blocks(swept[t], 288);
        uint8_t *source;
        struct matrix w = make_matrix(swept[t], n, k, &source), on = matrix_on_device(&w);
        float *x = floats(rows * k), *expected = floats(rows * n), *out = floats(rows * n);
        fill(x, rows * k, 1);
        void *x_on = halves_on_device(x, rows, k);
        float *out_on = on_device(NULL, rows * n * sizeof(float));
        for (uint32_t r = 0; r < rows; r++) { /* each alone */
            multiply(out_on, &on, (uint16_t *)x_on + (size_t)r * k, 1);
            cuda_download(&cuda, expected + r * n, (cuda_address)(uintptr_t)out_on, n * sizeof(float));
        }
        for (uint32_t count = 2; count <= rows; count++) {
            multiply(out_on, &on, x_on, count);
            fetch(out, out_on, count * n * sizeof(float));
            cr_assert_eq(memcmp(out, expected, count * n * sizeof(float)), 0, "type %d, %u rows", swept[t], count);
        }
        /* what shows that this could fail */
        multiply(out_on, &on, (uint16_t *)x_on + k, 1);
        fetch(out, out_on, n * sizeof(float));
        cr_assert_neq(memcmp(out, expected, n * sizeof(float)), 0);
        free(x), free(out), free(expected), free(source), free((void *)(uintptr_t)w.panels);
    }
}

Test(cuda, an_embedding_is_its_row_to_the_bit)
{
    open_device();
    const uint32_t tokens[] = {3, 71, 0, 40};
    for (size_t t = 0; t < ARRAY_COUNT(types); t++) {
        uint32_t k = whole_blocks(types[t], 288);
        uint8_t *source;
        struct matrix w = make_matrix(types[t], 72, k, &source), on = matrix_on_device(&w);
        float *x = floats(4 * k), *expected = floats(k), *x_on = on_device(NULL, 4 * k * sizeof(float));
        const struct cuda_embed_args args = {
            .embedding = cuda_matrix_of(&on), .x = x_on, .tokens = on_device(tokens, sizeof(tokens)), .scale = 1};
        cuda_launch(&cuda, CUDA_KERNEL_embed, 4, 1, 1, &args);
        fetch(x, x_on, 4 * k * sizeof(float));
        for (uint32_t r = 0; r < 4; r++) {
            matrix_unpack_row(expected, &w, tokens[r]);
            for (uint32_t i = 0; i < k; i++) /* d * u + m, where one of us rounds once and the other twice */
                cr_assert(fabsf(x[r * k + i] - expected[i]) <= 1e-6f * fabsf(expected[i]) + 1e-7f, "type %d", types[t]);
        }
        free(x), free(expected), free(source), free((void *)(uintptr_t)w.panels);
    }
}

/* ---- rows ---- */

/* A half keeps 2^-11 of a value; sums of floats here are good for 1e-5. */
static void expect_halves(const float *seen, const float *expected, size_t count, const char *what)
{
    for (size_t i = 0; i < count; i++)
        cr_assert(fabsf(seen[i] - expected[i]) <= 6e-4f * fabsf(expected[i]) + 1e-5f, "%s, %zu: %g, not %g", what, i,
                  (double)seen[i], (double)expected[i]);
}

Test(cuda, norms_and_gates_agree_with_the_plain_path)
{
    open_device();
    const struct kernels *plain = kernels_pick("ref");
    const uint32_t rows = 5, width = 576;
    float *x = floats(rows * width), *branch = floats(rows * width), *gain = floats(width), *out = floats(rows * width);
    float *expected = floats(rows * width), *gate_up = floats(2 * rows * width);
    fill(x, rows * width, 2), fill(branch, rows * width, 1), fill(gain, width, 1), fill(gate_up, 2 * rows * width, 3);
    const uint32_t index[] = {4, 2};
    float *x_on = on_device(x, rows * width * sizeof(float));
    void *out_on = on_device(NULL, rows * width * sizeof(uint16_t));
    struct cuda_norm_args norm = {.out = out_on,
                                  .x = x_on,
                                  .branch = on_device(branch, rows * width * sizeof(float)),
                                  .gain = on_device(gain, width * sizeof(float)),
                                  .width = width,
                                  .eps = 1e-5f};
    cuda_launch(&cuda, CUDA_KERNEL_norm, rows, 1, 1, &norm);
    fetch_halves(out, out_on, rows * width);
    plain->add(x, branch, rows * width);
    plain->rms_norm(expected, x, gain, rows, width, 1e-5f);
    expect_halves(out, expected, rows * width, "norm of a sum");
    float *sum = floats(rows * width);
    fetch(sum, x_on, rows * width * sizeof(float));
    cr_assert_eq(memcmp(sum, x, rows * width * sizeof(float)), 0);

    norm.branch = NULL;
    norm.index = on_device(index, sizeof(index));
    cuda_launch(&cuda, CUDA_KERNEL_norm, 2, 1, 1, &norm);
    fetch_halves(out, out_on, 2 * width);
    expect_halves(out, expected + 4 * width, width, "norm of row 4");
    expect_halves(out + width, expected + 2 * width, width, "norm of row 2");

    struct cuda_gate_args gate = {
        .out = out_on, .in = on_device(gate_up, 2 * rows * width * sizeof(float)), .width = width};
    cuda_launch(&cuda, CUDA_KERNEL_gate, rows, 1, 1, &gate);
    fetch_halves(out, out_on, rows * width);
    plain->swiglu(expected, gate_up, rows, width);
    expect_halves(out, expected, rows * width, "silu");
    gate.is_gelu = 1;
    cuda_launch(&cuda, CUDA_KERNEL_gate, rows, 1, 1, &gate);
    fetch_halves(out, out_on, rows * width);
    plain->geglu(expected, gate_up, rows, width);
    expect_halves(out, expected, rows * width, "gelu");

    /* two heads of 64 in the middle of each row */
    const struct cuda_renorm_args renorm = {
        .x = x_on + 128, .gain = norm.gain, .width = 64, .stride = width, .eps = 1e-5f};
    cuda_launch(&cuda, CUDA_KERNEL_renorm, rows, 2, 1, &renorm);
    fetch(sum, x_on, rows * width * sizeof(float));
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t head = 0; head < 2; head++)
            plain->rms_norm(x + r * width + 128 + 64 * head, x + r * width + 128 + 64 * head, gain, 1, 64, 1e-5f);
    for (uint32_t i = 0; i < rows * width; i++)
        cr_assert(fabsf(sum[i] - x[i]) <= 1e-5f * fabsf(x[i]) + 1e-6f, "%u: %g, not %g", i, (double)sum[i],
                  (double)x[i]);
}

/* ---- attention ---- */

#define CONTEXT 700u /* three parts, the last one not whole */
#define HEADS   6u
#define KV      2u
#define DIM     64u
#define STRIDE  ((HEADS + 2 * KV) * DIM)

struct device_cache {
    struct cuda_kv kv;
    size_t bytes;
};

static struct device_cache make_cache(uint32_t block_size, uint32_t *blocks)
{
    uint32_t count = CONTEXT / block_size + 1;
    size_t block_bytes = kv_block_bytes(KV_F16, KV, DIM, block_size), bytes = count * block_bytes;
    uint8_t *nothing = base_alloc(bytes);
    memset(nothing, 0xff, bytes);
    for (uint32_t i = 0; i < count; i++)
        blocks[i] = count - 1 - i;
    struct device_cache cache = {.kv = {.layer = on_device(nothing, bytes),
                                        .blocks = on_device(blocks, count * sizeof(uint32_t)),
                                        .block_stride = block_bytes,
                                        .block_size = block_size,
                                        .heads = HEADS,
                                        .kv_heads = KV,
                                        .head_dim = DIM},
                                 .bytes = bytes};
    free(nothing);
    return cache;
}

/* All positions in chunks, rows side by side up to CUDA_ROWS; out (CONTEXT, HEADS * DIM). qkv is (CONTEXT, STRIDE). */
static void attend(float *out, const struct device_cache *cache, const float *qkv, const float *cos_sin, uint32_t chunk,
                   uint32_t window)
{
    uint32_t parts_max = (uint32_t)div_up_u64(CONTEXT, CUDA_SPLIT);
    float *cos_sin_on = on_device(cos_sin, CONTEXT * DIM * sizeof(float));
    float *parts = on_device(NULL, (size_t)CUDA_ROWS * HEADS * parts_max * (2 + DIM) * sizeof(float));
    void *out_on = on_device(NULL, CUDA_ROWS * HEADS * DIM * sizeof(uint16_t));
    float *qkv_on = on_device(NULL, CUDA_ROWS * STRIDE * sizeof(float));
    struct cuda_row *rows_on = on_device(NULL, CUDA_ROWS * sizeof(struct cuda_row));
    for (uint32_t first = 0; first < CONTEXT; first += chunk) {
        uint32_t count = (uint32_t)min_u64(chunk, CONTEXT - first);
        struct cuda_row rows[CUDA_ROWS] = {0};
        for (uint32_t i = 0; i < count; i++)
            rows[i].position = first + i;
        cuda_upload(&cuda, (cuda_address)(uintptr_t)rows_on, rows, sizeof(rows));
        cuda_upload(&cuda, (cuda_address)(uintptr_t)qkv_on, qkv + (size_t)first * STRIDE,
                    count * STRIDE * sizeof(float));
        const struct cuda_rope_args rope = {.kv = cache->kv, .qkv = qkv_on, .cos_sin = cos_sin_on, .rows = rows_on};
        const struct cuda_attend_args attend = {.kv = cache->kv,
                                                .qkv = qkv_on,
                                                .rows = rows_on,
                                                .parts = parts,
                                                .scale = 0.125f,
                                                .window = window,
                                                .parts_max = parts_max};
        const struct cuda_combine_args combine = {.out = out_on,
                                                  .rows = rows_on,
                                                  .parts = parts,
                                                  .heads = HEADS,
                                                  .head_dim = DIM,
                                                  .window = window,
                                                  .parts_max = parts_max};
        cuda_launch(&cuda, CUDA_KERNEL_rope, count, 1, 1, &rope);
        cuda_launch(&cuda, CUDA_KERNEL_attend, count, HEADS, parts_max, &attend);
        cuda_launch(&cuda, CUDA_KERNEL_combine, count, HEADS, 1, &combine);
        fetch_halves(out + (size_t)first * HEADS * DIM, out_on, count * HEADS * DIM);
    }
}

Test(cuda, attention_agrees_with_the_plain_path_and_does_not_depend_on_chunks_or_blocks, .timeout = 120)
{
    open_device();
    const struct kernels *plain = kernels_pick("ref");
    float *qkv = floats(CONTEXT * STRIDE), *cos_sin = floats(CONTEXT * DIM);
    float *expected = floats(CONTEXT * HEADS * DIM), *first = floats(CONTEXT * HEADS * DIM);
    float *out = floats(CONTEXT * HEADS * DIM), *scratch = floats(attention_scratch_floats(CONTEXT, HEADS));
    fill(qkv, CONTEXT * STRIDE, 1.5f);
    for (uint32_t p = 0; p < CONTEXT; p++)
        for (uint32_t i = 0; i < DIM / 2; i++) {
            cos_sin[p * DIM + i] = cosf((float)p * 0.01f * (float)(i + 1));
            cos_sin[p * DIM + DIM / 2 + i] = sinf((float)p * 0.01f * (float)(i + 1));
        }
    static const struct {
        uint32_t block_size, chunk, window;
    } cases[] = {{16, 64, UINT32_MAX}, {16, 1, UINT32_MAX}, {32, 37, UINT32_MAX}, {16, 64, 300}, {8, 50, 300}};
    for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
        uint32_t blocks[CONTEXT];
        struct device_cache cache = make_cache(cases[c].block_size, blocks);
        bool is_first = c == 0 || c == 3;
        attend(is_first ? first : out, &cache, qkv, cos_sin, cases[c].chunk, cases[c].window);
        if (!is_first) {
            cr_assert_eq(memcmp(out, first, CONTEXT * HEADS * DIM * sizeof(float)), 0, "case %zu", c);
            continue;
        }
        float *rotated = floats(CONTEXT * STRIDE);
        uint8_t *kv = base_alloc(cache.bytes);
        memcpy(rotated, qkv, CONTEXT * STRIDE * sizeof(float));
        plain->rope(rotated, STRIDE, cos_sin, CONTEXT, HEADS + KV, DIM);
        const struct attention a = {.out = expected,
                                    .q = rotated,
                                    .q_stride = STRIDE,
                                    .rows = CONTEXT,
                                    .heads = HEADS,
                                    .kv_heads = KV,
                                    .head_dim = DIM,
                                    .window = cases[c].window,
                                    .scale = 0.125f,
                                    .blocks = blocks,
                                    .block_size = cases[c].block_size,
                                    .kv = kv,
                                    .block_stride = cache.kv.block_stride,
                                    .scratch = scratch};
        plain->kv_store(&a, rotated + HEADS * DIM, rotated + (HEADS + KV) * DIM, STRIDE);
        plain->attention(&a);
        /* a K or V that lies between two halves may fall either way: 1e-3 of one among many */
        for (size_t i = 0; i < CONTEXT * HEADS * DIM; i++)
            cr_assert(fabsf(first[i] - expected[i]) <= 2e-3f * fabsf(expected[i]) + 2e-3f, "case %zu, %zu: %g, not %g",
                      c, i, (double)first[i], (double)expected[i]);
        free(rotated), free(kv);
    }
}

/* ---- drawing ---- */

#define DRAWS 24u

/* Rows of logits of every kind: usual ones, many equals, all equal, far apart, and some that are no numbers. */
static void make_logits(float *logits, uint32_t vocab_size, uint32_t kind)
{
    fill(logits, vocab_size, kind % 6 == 3 ? 300 : 12);
    for (uint32_t i = 0; i < vocab_size; i++)
        if (kind % 6 == 1)
            logits[i] = (float)((int)logits[i] / 4);
        else if (kind % 6 == 2)
            logits[i] = i % 2 ? 0.0f : -0.0f;
    static const float odd[] = {NAN, INFINITY, -INFINITY, -NAN};
    for (uint32_t i = 0; kind % 6 == 4 && i < 1 + kind / 6 % 4; i++)
        logits[next_random() % vocab_size] = odd[(kind / 6 + i) % 4];
    for (uint32_t i = 0; kind % 6 == 5 && i < vocab_size; i++)
        logits[i] = kind / 6 % 2 ? NAN : i == kind ? -3 : -INFINITY;
}

/* Whatever the processor's path: its own bits are no others. */
Test(cuda, a_device_draws_the_tokens_that_the_processor_draws, .timeout = 120)
{
    open_device();
    static const uint32_t vocab_sizes[] = {40, 1000, 20011};
    static const float temperatures[] = {0, 1, 0.7f, 1e-5f, 3, INFINITY, NAN},
                       top_ps[] = {1, 0.9f, 0.3f, 0, 0.999f, -1}, min_ps[] = {0, 0.05f, 1, 2};
    static const uint32_t top_ks[] = {0, 1, 20, 3, 39, 5000};
    for (size_t v = 0; v < ARRAY_COUNT(vocab_sizes); v++) {
        const uint32_t vocab_size = vocab_sizes[v], rounds = v == 2 ? 3 : 100;
        float *logits = floats(DRAWS * vocab_size);
        void *logits_on = on_device(NULL, DRAWS * vocab_size * sizeof(float));
        struct sample_params params[DRAWS], *params_on = on_device(NULL, sizeof(params));
        uint32_t drawn[DRAWS], *drawn_on = on_device(NULL, sizeof(drawn)), kinds_of_tokens = 0;
        for (uint32_t round = 0; round < rounds; round++) {
            for (uint32_t i = 0; i < DRAWS; i++) {
                const uint32_t n = round * DRAWS + i;
                make_logits(logits + (size_t)i * vocab_size, vocab_size, n);
                params[i] = (struct sample_params){.temperature = temperatures[n / 6 % 7],
                                                   .top_p = top_ps[next_random() % 6],
                                                   .min_p = min_ps[next_random() % 16 < 12 ? 0 : next_random() % 4],
                                                   .top_k = top_ks[next_random() % 6],
                                                   .seed = next_random() << 32 | round,
                                                   .choice = i % 3,
                                                   .position = n};
            }
            const struct cuda_draw_args args = {
                .drawn = drawn_on, .logits = logits_on, .params = params_on, .vocab_size = vocab_size};
            cuda_upload(&cuda, (cuda_address)(uintptr_t)logits_on, logits, DRAWS * vocab_size * sizeof(float));
            cuda_upload(&cuda, (cuda_address)(uintptr_t)params_on, params, sizeof(params));
            cuda_launch(&cuda, CUDA_KERNEL_draw, DRAWS, 1, 1, &args);
            fetch(drawn, drawn_on, sizeof(drawn));
            for (const char *const *name = kernels_names(); *name != NULL; name++) {
                struct sampler sampler;
                sampler_init(&sampler, kernels_pick(*name), vocab_size);
                for (uint32_t i = 0; i < DRAWS; i++) {
                    uint32_t expected = sampler_draw(&sampler, logits + (size_t)i * vocab_size, &params[i]);
                    cr_assert_eq(
                        drawn[i], expected,
                        "%s, %u logits, round %u, row %u: %u, not %u (temperature %g, top_p %g, min_p %g, top_k %u)",
                        *name, vocab_size, round, i, drawn[i], expected, (double)params[i].temperature,
                        (double)params[i].top_p, (double)params[i].min_p, params[i].top_k);
                    kinds_of_tokens += expected != sampler_greedy(&sampler, logits + (size_t)i * vocab_size);
                }
                sampler_free(&sampler);
            }
        }
        cr_expect_gt(kinds_of_tokens, rounds, "%u of them not greedy", kinds_of_tokens);
        free(logits);
    }
}

/* ---- memory ---- */

Test(cuda, memory_is_found_again_by_its_descriptor)
{
    open_device();
    size_t bytes = cuda.granularity;
    int descriptor = cuda_create(&cuda, bytes, 0);
    cr_assert_geq(descriptor, 0, "%s", cuda.error);
    uint32_t number = 77, seen = 0;
    cuda_address here = cuda_map(&cuda, descriptor, bytes);
    cuda_upload(&cuda, here + 4096, &number, sizeof(number));
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
    cuda_close(&cuda);
    open_device(); /* as a successor does */
    cuda_address there = cuda_map(&cuda, descriptor, bytes);
    close(descriptor);
    cuda_download(&cuda, &seen, there + 4096, sizeof(seen));
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
    cr_assert_eq(seen, number);
}

/* ---- words ---- */

static uint32_t number_at(struct cuda *on, cuda_address at)
{
    uint32_t number = 0;
    cuda_download(on, &number, at, sizeof(number));
    cr_assert_eq(cuda_wait(on), 0, "%s", on->error);
    return number;
}

static void put_number(struct cuda *on, cuda_address at, uint32_t number)
{
    cuda_upload(on, at, &number, sizeof(number));
    cr_assert_eq(cuda_wait(on), 0, "%s", on->error);
}

/* What stands behind a wait for `value` is done when the word goes from `before` there, and was not before. */
static void expect_wait(struct cuda *other, uint32_t before, uint32_t value)
{
    size_t bytes = cuda.granularity;
    int descriptor = cuda_create(&cuda, bytes, 0);
    cuda_address word = cuda_map(&cuda, descriptor, bytes), flag = word + 64, one = word + 128;
    cuda_address seen_word = cuda_map(other, descriptor, bytes), seen_flag = seen_word + 64;
    close(descriptor);
    put_number(&cuda, word, before);
    put_number(&cuda, flag, 0);
    put_number(&cuda, one, 1);
    cuda_wait_word(&cuda, word, value);
    cuda_copy(&cuda, flag, one, sizeof(uint32_t));
    cr_expect_eq(number_at(other, seen_flag), 0, "%#x, before %#x", before, value);
    cuda_write_word(other, seen_word, value - 1);
    cr_expect_eq(number_at(other, seen_flag), 0, "%#x, before %#x", value - 1, value);
    cuda_write_word(other, seen_word, value);
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
    cr_expect_eq(number_at(other, seen_flag), 1, "%#x", value);
    cuda_wait_word(&cuda, word, value - 3); /* which is past: nothing to wait for */
    cr_assert_eq(cuda_wait(&cuda), 0, "%s", cuda.error);
}

Test(cuda, a_stream_waits_for_a_word_that_another_one_writes_and_numbers_wrap, .timeout = 30)
{
    static struct cuda other;
    open_device();
    cr_assert_eq(cuda_open(&other, 0), 0, "%s", other.error);
    expect_wait(&other, 0, 7);
    expect_wait(&other, 0x7ffffffe, 0x80000001);
    expect_wait(&other, 0xfffffffe, 1);
}

Test(cuda, a_wait_is_let_go_beside_its_own_stream, .timeout = 30)
{
    open_device();
    cuda_address word = cuda_alloc(&cuda, 256);
    put_number(&cuda, word, 0);
    cuda_wait_word(&cuda, word, 9);
    cuda_copy(&cuda, word + 64, word, sizeof(uint32_t));
    cuda_write_word_aside(&cuda, word, 9);
    cr_expect_eq(number_at(&cuda, word + 64), 9);
}

#define WRITTEN_BYTES (4u << 20)

/* Takes memory, and copies ones and twos over it for ever. */
_Noreturn static void write_without_end(int socket)
{
    struct birth birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    struct err err;
    if (cuda_open(&cuda, 0) != 0)
        _exit(1);
    int descriptor = cuda_create(&cuda, WRITTEN_BYTES, 0);
    cuda_address memory = cuda_map(&cuda, descriptor, WRITTEN_BYTES), sources[2];
    uint8_t *pattern = base_alloc(WRITTEN_BYTES);
    for (int i = 0; i < 2; i++) {
        memset(pattern, 1 + i, WRITTEN_BYTES);
        sources[i] = cuda_alloc(&cuda, WRITTEN_BYTES);
        cuda_upload(&cuda, sources[i], pattern, WRITTEN_BYTES);
        cuda_wait(&cuda);
    }
    birth_add(&birth, fds, BIRTH_DEVICE, 0, descriptor);
    if (birth_send(socket, &birth, fds, &err) != 0)
        _exit(1);
    for (uint32_t i = 0; cuda.failed == 0; i++)
        cuda_copy(&cuda, memory, sources[i % 2], WRITTEN_BYTES);
    _exit(1);
}

enum found { FOUND_WHOLE, FOUND_TORN, FOUND_CHANGING, FOUND_NOTHING };

/* Says over the socket when it has seen somebody write there; is told when nobody is left who could; looks again and again. */
_Noreturn static void read_what_is_left(int socket, int descriptor)
{
    uint8_t *first = base_alloc(WRITTEN_BYTES), *again = base_alloc(WRITTEN_BYTES), seen = 0, byte = 0;
    if (cuda_open(&cuda, 0) != 0)
        _exit(FOUND_NOTHING);
    cuda_address memory = cuda_map(&cuda, descriptor, WRITTEN_BYTES);
    while ((seen & 3) != 3) {
        cuda_download(&cuda, &byte, memory, 1);
        if (cuda_wait(&cuda) != 0)
            _exit(FOUND_NOTHING);
        seen |= byte;
    }
    if (write(socket, &byte, 1) != 1 || read(socket, &byte, 1) != 1)
        _exit(FOUND_NOTHING);
    cuda_download(&cuda, first, memory, WRITTEN_BYTES);
    for (int look = 0; look < 16; look++) {
        cuda_download(&cuda, again, memory, WRITTEN_BYTES);
        if (cuda_wait(&cuda) != 0 || memcmp(first, again, WRITTEN_BYTES) != 0)
            _exit(FOUND_CHANGING);
    }
    _exit(memcmp(first, first + 1, WRITTEN_BYTES - 1) == 0 ? FOUND_WHOLE : FOUND_TORN);
}

static pid_t fork_with_socket(int *socket, int *theirs)
{
    int sockets[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    *socket = sockets[0];
    *theirs = sockets[1];
    return fork(); /* before this process knows of any device, as the driver wants it */
}

/* What all of recovery stands on: when a process is gone for the kernel, its device writes nothing for it any more, and what it
 * has written lives on in who holds the descriptor. */
Test(cuda, nothing_is_written_for_a_process_that_is_gone, .timeout = 60)
{
    enum { ROUNDS = 5 };
    uint32_t torn = 0;
    fake_cuda_use();
    for (int round = 0; round < ROUNDS; round++) {
        struct birth birth;
        int fds[BIRTH_ITEMS_MAX], to_writer, to_reader, theirs, status = 0;
        struct err err = {0};
        char byte = 0;
        pid_t writer = fork_with_socket(&to_writer, &theirs);
        if (writer == 0)
            write_without_end(theirs);
        close(theirs);
        cr_assert_eq(birth_receive(to_writer, &birth, fds, &err), 0, "%s", err.text);
        pid_t reader = fork_with_socket(&to_reader, &theirs);
        if (reader == 0)
            read_what_is_left(theirs, fds[0]);
        close(theirs);
        close(fds[0]);
        cr_expect_eq(read(to_reader, &byte, 1), 1);
        kill(writer, SIGKILL);
        cr_assert_eq(waitpid(writer, NULL, 0), writer);
        cr_expect_eq(write(to_reader, &byte, 1), 1);
        cr_assert_eq(waitpid(reader, &status, 0), reader);
        cr_expect(WIFEXITED(status) && WEXITSTATUS(status) <= FOUND_TORN, "round %d: status %#x", round,
                  (unsigned)status);
        torn += status != 0;
        close(to_writer);
        close(to_reader);
    }
    printf("killed in the middle of a copy: %u of %d\n", torn, ROUNDS);
}

/* ---- devices that are not as they should be ---- */

static void expect_refusal(const char *wish, uint32_t ordinal, int code, const char *words)
{
    fake_cuda_wish(wish);
    int ret = cuda_open(&cuda, ordinal);
    cr_expect_eq(ret, code, "%s: %d, %s", wish, ret, cuda.error);
    cr_expect_not_null(strstr(cuda.error, words), "%s: %s", wish, cuda.error);
    cuda_close(&cuda);
}

Test(cuda, what_cannot_be_used_is_refused_and_says_why)
{
    expect_refusal("devices=0", 0, -ENODEV, "finds no device");
    expect_refusal("devices=1", 1, -ENODEV, "there is no device cuda:1");
    expect_refusal("driver=11080", 0, -ENOTSUP, "is of CUDA 11.8: 12.0 or later is needed");
    setenv("EVENFLOW_LIBCUDA", "/nowhere/libcuda.so.1", 1);
    cr_expect_eq(cuda_open(&cuda, 0), -ENOENT);
    cr_expect_not_null(strstr(cuda.error, "no CUDA driver"), "%s", cuda.error);
}

Test(cuda, memory_that_is_not_there_is_an_error_that_says_so)
{
    fake_cuda_wish("memory=4194304");
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
    int descriptor = cuda_create(&cuda, 2 * cuda.granularity, 0);
    cr_assert_geq(descriptor, 0);
    cr_assert_eq(cuda_create(&cuda, cuda.granularity, 0), -ENOMEM);
    cr_assert_not_null(strstr(cuda.error, "CUDA_ERROR_OUT_OF_MEMORY"), "%s", cuda.error);
}

Test(cuda, a_device_that_vanishes_fails_the_wait_behind_it)
{
    fake_cuda_wish("vanish=2");
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
    float *x = (float *)(uintptr_t)cuda_alloc(&cuda, 64);
    const struct cuda_add_args args = {.out = x, .x = x, .branch = x, .width = 16};
    cuda_launch(&cuda, CUDA_KERNEL_add, 1, 1, 1, &args);
    cr_assert_eq(cuda_wait(&cuda), 0);
    for (int i = 0; i < 2; i++)
        cuda_launch(&cuda, CUDA_KERNEL_add, 1, 1, 1, &args);
    cr_assert_eq(cuda_wait(&cuda), -EIO);
    cr_assert_not_null(strstr(cuda.error, "CUDA_ERROR_DEVICE_UNAVAILABLE"), "%s", cuda.error);
}
