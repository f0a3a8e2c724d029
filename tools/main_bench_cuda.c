/* main_bench_cuda.c - how fast the kernels for devices are, beside what the device itself copies: make bench-cuda.
 *
 * A product of few rows reads its weights once, attention its KV: what they read in a second, as a share of what a plain
 * copy on the device reads and writes. On what stands in for a driver the times are of this program's own processor and mean
 * nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "kernels/cuda.h"

#define MEASURE_NS 100000000ull /* so long everything is repeated */

static struct cuda cuda;
static bool is_stand_in;

static void *take(size_t bytes)
{
    return (void *)(uintptr_t)cuda_alloc(&cuda, bytes);
}

static void wait_for_all(void)
{
    if (cuda_wait(&cuda) == 0)
        return;
    fprintf(stderr, "bench-cuda: %s\n", cuda.error);
    exit(1);
}

/* Seconds of one `once(context)`, as many of which are put into the stream together as take a while. */
static double seconds_of(void (*once)(const void *context), const void *context)
{
    uint32_t rounds = 1;
    for (once(context), wait_for_all();; rounds *= 2) {
        uint64_t begin_ns = clock_ns();
        for (uint32_t i = 0; i < rounds; i++)
            once(context);
        wait_for_all();
        uint64_t took_ns = clock_ns() - begin_ns;
        if (took_ns >= MEASURE_NS || is_stand_in)
            return (double)took_ns / 1e9 / rounds;
    }
}

/* ---- what the device can ---- */

struct copy {
    cuda_address from, to;
    size_t bytes;
};

static void copy_once(const void *context)
{
    const struct copy *copy = context;
    cuda_copy(&cuda, copy->to, copy->from, copy->bytes);
}

/* Bytes read and written in a second. */
static double copy_rate(void)
{
    size_t bytes = is_stand_in ? 1u << 20 : 1u << 30;
    const struct copy copy = {cuda_alloc(&cuda, bytes), cuda_alloc(&cuda, bytes), bytes};
    return 2.0 * (double)bytes / seconds_of(copy_once, &copy);
}

/* ---- one kernel behind another ---- */

#define EMPTY_KERNELS 500u

static void launch_many(const void *context)
{
    for (uint32_t i = 0; i < EMPTY_KERNELS; i++)
        cuda_launch(&cuda, CUDA_KERNEL_add, 1, 1, 1, context);
}

static struct cuda_graph *recorded;

static void replay_many(const void *nothing)
{
    (void)nothing;
    cuda_replay(&cuda, recorded);
}

/* What a kernel that computes next to nothing takes, launched and replayed. */
static void measure_boundary(void)
{
    float *x = take(16 * sizeof(float));
    const struct cuda_add_args args = {.out = x, .x = x, .branch = x, .width = 16};
    double launched = seconds_of(launch_many, &args) / EMPTY_KERNELS;
    if (cuda_record_begin(&cuda)) {
        launch_many(&args);
        recorded = cuda_record_end(&cuda);
    }
    printf("an empty kernel behind another: %.2f us launched", launched * 1e6);
    if (recorded != NULL)
        printf(", %.2f us replayed\n", seconds_of(replay_many, NULL) / EMPTY_KERNELS * 1e6);
    else
        printf("; this device records no graphs\n");
}

/* ---- products ---- */

static void multiply_once(const void *context)
{
    const struct cuda_gemm_args *args = context;
    cuda_launch(&cuda, CUDA_KERNEL_gemm, (uint32_t)div_up_u64(args->w.n, KERNEL_PANEL),
                (uint32_t)div_up_u64(args->rows, CUDA_ROWS), 1, args);
}

static void measure_product(const char *name, enum matrix_form form, uint32_t n, uint32_t k, double copies)
{
    static const uint32_t rows[] = {1, 8, 64};
    size_t bytes = matrix_bytes(form, n, k);
    const struct matrix w = {.form = form, .n = n, .k = k, .panels = take(bytes)};
    struct cuda_gemm_args args = {.w = cuda_matrix_of(&w),
                                  .out = take((size_t)CUDA_ROWS * n * sizeof(float)),
                                  .x = take((size_t)CUDA_ROWS * k * sizeof(uint16_t)),
                                  .out_stride = n};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        args.rows = rows[i];
        double seconds = seconds_of(multiply_once, &args), rate = (double)bytes / seconds;
        printf("%-22s %5u rows %10.1f us %9.1f GB/s %6.1f %%\n", name, rows[i], seconds * 1e6, rate / 1e9,
               100 * rate / copies);
    }
}

/* ---- attention of rows that each have a context of their own ---- */

static void attend_once(const void *context)
{
    const struct cuda_attend_args *args = context;
    const uint32_t rows = 8;
    const struct cuda_combine_args combine = {.out = (void *)(uintptr_t)args->qkv, /* of which nothing is read again */
                                              .rows = args->rows,
                                              .parts = args->parts,
                                              .heads = args->kv.heads,
                                              .head_dim = args->kv.head_dim,
                                              .window = args->window,
                                              .parts_max = args->parts_max};
    cuda_launch(&cuda, CUDA_KERNEL_attend, rows, args->kv.heads, args->parts_max, args);
    cuda_launch(&cuda, CUDA_KERNEL_combine, rows, args->kv.heads, 1, &combine);
}

static void measure_attention(uint32_t heads, uint32_t kv_heads, uint32_t context, double copies)
{
    enum { ROWS = 8, BLOCK = 16, DIM = 128 };
    uint32_t per_row = (uint32_t)div_up_u64(context, BLOCK), parts = (uint32_t)div_up_u64(context, CUDA_SPLIT);
    size_t block_bytes = kv_block_bytes(KV_F16, kv_heads, DIM, BLOCK), bytes = (size_t)ROWS * per_row * block_bytes;
    uint32_t *blocks = base_alloc(ROWS * per_row * sizeof(*blocks));
    struct cuda_row rows[ROWS];
    for (uint32_t i = 0; i < ROWS * per_row; i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < ROWS; i++)
        rows[i] = (struct cuda_row){.position = context - 1, .block_first = i * per_row};
    const struct cuda_attend_args args = {.kv = {.layer = take(bytes),
                                                 .blocks = take(ROWS * per_row * sizeof(*blocks)),
                                                 .block_stride = block_bytes,
                                                 .block_size = BLOCK,
                                                 .heads = heads,
                                                 .kv_heads = kv_heads,
                                                 .head_dim = DIM},
                                          .qkv = take((size_t)ROWS * (heads + 2 * kv_heads) * DIM * sizeof(float)),
                                          .rows = take(sizeof(rows)),
                                          .parts = take((size_t)ROWS * heads * parts * (2 + DIM) * sizeof(float)),
                                          .scale = 0.088f,
                                          .window = UINT32_MAX,
                                          .parts_max = parts};
    cuda_upload(&cuda, (cuda_address)(uintptr_t)args.kv.blocks, blocks, ROWS * per_row * sizeof(*blocks));
    cuda_upload(&cuda, (cuda_address)(uintptr_t)args.rows, rows, sizeof(rows));
    double seconds = seconds_of(attend_once, &args), rate = (double)bytes / seconds;
    char name[64];
    snprintf(name, sizeof(name), "attention %u/%u, %u", heads, kv_heads, context);
    printf("%-22s %5u rows %10.1f us %9.1f GB/s %6.1f %%\n", name, (unsigned)ROWS, seconds * 1e6, rate / 1e9,
           100 * rate / copies);
    free(blocks);
}

int main(int argc, char **argv)
{
    uint32_t ordinal = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    if (cuda_open(&cuda, ordinal) != 0) {
        fprintf(stderr, "bench-cuda: %s\n", cuda.error);
        return 1;
    }
    is_stand_in = strncmp(cuda.name, "stand-in", 8) == 0;
    double copies = copy_rate();
    printf("cuda:%u, %s, compute capability %d.%d%s\n", ordinal, cuda.name, cuda.capability / 10, cuda.capability % 10,
           is_stand_in ? ": stand-in, no GPU result" : "");
    printf("a copy on the device reads and writes %.1f GB/s\n", copies / 1e9);
    measure_boundary();
    uint32_t width = is_stand_in ? 256 : 4096, wide = is_stand_in ? 512 : 11008;
    measure_product("product f16", MATRIX_F16, width, width, copies);
    measure_product("product f16, wide", MATRIX_F16, 2 * wide, width, copies);
    measure_product("product f16, deep", MATRIX_F16, width, wide - wide % KERNEL_GROUP, copies);
    measure_product("product Q4_1, wide", MATRIX_Q4, 2 * wide, width, copies);
    measure_product("product Q8_0, wide", MATRIX_Q8, 2 * wide, width, copies);
    measure_attention(32, 32, is_stand_in ? 64 : 4096, copies);
    measure_attention(32, 8, is_stand_in ? 64 : 4096, copies);
    wait_for_all();
    return 0;
}
