/* main_bench_decode.c - what a whole decode step takes on a device, beside what reading its weights and KV takes at the rate
 * of a copy there: make bench-decode.
 *
 * Models of well-known shapes, of one stage; their weights are whatever bits the memory has, which changes no time. From the
 * step's record on the host to its tokens there, kernels launched one by one and replayed. On what stands in for a driver the
 * shapes are small and the times mean nothing.
 *
 *   bench-decode [DEVICE] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "stages/forward_cuda.h"

#define CONTEXT    512u /* positions that each row attends to */
#define BLOCK_SIZE 16u
#define ROWS_MAX   64u
#define STEPS      20u

static const struct size {
    const char *name;
    uint32_t layers, width, heads, kv_heads, head_dim, feed_forward, vocab_size;
    enum matrix_form form;
} shapes[] =
    {
        {"7B f16", 32, 4096, 32, 32, 128, 11008, 32000, MATRIX_F16},
        {"13B f16", 40, 5120, 40, 40, 128, 13824, 32000, MATRIX_F16},
        {"8B Q4_1", 32, 4096, 32, 8, 128, 14336, 128256, MATRIX_Q4},
        {"135M f16", 30, 576, 9, 3, 64, 1536, 49152, MATRIX_F16},
},
  small = {"small f16", 2, 64, 4, 2, 16, 96, 512, MATRIX_F16};

static struct cuda cuda;
static struct model_desc desc;
static struct model_slice slice;
static struct forward_cuda forward;

static void describe(const struct size *shape)
{
    desc = (struct model_desc){.layers = shape->layers,
                               .width = shape->width,
                               .heads = shape->heads,
                               .kv_heads = shape->kv_heads,
                               .head_dim = shape->head_dim,
                               .feed_forward = shape->feed_forward,
                               .vocab_size = shape->vocab_size,
                               .context_length = 2 * CONTEXT,
                               .norm_eps = 1e-5f,
                               .embedding_scale = 1,
                               .score_scale = 0.1f,
                               .embedding_form = shape->form,
                               .head_form = shape->form};
    model_rope_plain(&desc.ropes[0], 10000, shape->head_dim);
    for (uint32_t i = 0; i < shape->layers; i++) {
        desc.layer[i].window = MODEL_NO_WINDOW;
        for (uint32_t m = 0; m < MODEL_MATRIX_COUNT; m++)
            desc.layer[i].forms[m] = shape->form;
    }
}

/* Bytes read and written in a second by a copy on the device. */
static double copy_rate(bool is_stand_in)
{
    const size_t bytes = is_stand_in ? 1u << 20 : 1u << 30;
    cuda_address from = cuda_alloc(&cuda, bytes), to = cuda_alloc(&cuda, bytes);
    uint64_t begin_ns = 0;
    for (int i = 0; i <= 10; i++) {
        if (i == 1) {
            cuda_wait(&cuda);
            begin_ns = clock_ns();
        }
        cuda_copy(&cuda, to, from, bytes);
    }
    cuda_wait(&cuda);
    return 20.0 * (double)bytes / ((double)(clock_ns() - begin_ns) / 1e9);
}

static int compare(const void *a, const void *b)
{
    const double *left = a, *right = b;
    return (*left > *right) - (*left < *right);
}

/* Seconds of a step in which so many rows each go one position on: the median. */
static double step_seconds(uint32_t row_count)
{
    static struct row_shm rows[ROWS_MAX];
    static uint32_t tokens[ROWS_MAX], blocks[ROWS_MAX * CONTEXT / BLOCK_SIZE];
    static struct token_shm results[ROWS_MAX];
    static struct top_shm tops[ROWS_MAX * LOGPROBS_MAX];
    const uint32_t per_row = CONTEXT / BLOCK_SIZE;
    double seconds[STEPS];
    for (uint32_t i = 0; i < row_count * per_row; i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < row_count; i++)
        rows[i] = (struct row_shm){.first_pos = CONTEXT - 1,
                                   .token_count = 1,
                                   .token_first = i,
                                   .block_first = i * per_row,
                                   .block_count = per_row,
                                   .flags = ROW_SAMPLE,
                                   .result_first = i,
                                   .result_count = 1,
                                   .temperature = 0.8f,
                                   .top_p = 0.95f};
    const struct forward_step step = {
        .rows = rows, .row_count = row_count, .tokens = tokens, .token_count = row_count, .blocks = blocks};
    for (uint32_t i = 0; i < STEPS + 2; i++) { /* two to warm up */
        uint64_t begin_ns = clock_ns();
        forward_cuda_begin(&forward, &step, NULL, NULL);
        if (forward_cuda_finish(&forward, results, tops) != 0)
            break;
        if (i >= 2)
            seconds[i - 2] = (double)(clock_ns() - begin_ns) / 1e9;
    }
    if (cuda.failed != 0) {
        fprintf(stderr, "bench-decode: %s\n", cuda.error);
        exit(1);
    }
    qsort(seconds, STEPS, sizeof(seconds[0]), compare);
    return seconds[STEPS / 2];
}

static void measure(const char *how, const char *name, size_t weights_bytes, size_t kv_row_bytes, double copies)
{
    static const uint32_t rows[] = {1, 8, 64};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        double seconds = step_seconds(rows[i]);
        double floor = ((double)weights_bytes + (double)rows[i] * (double)kv_row_bytes) / copies;
        printf("%-10s %-9s %3u rows %9.3f ms %9.0f tok/s  floor %8.3f ms %6.1f %%\n", name, how, rows[i], seconds * 1e3,
               rows[i] / seconds, floor * 1e3, 100 * floor / seconds);
    }
    fflush(stdout);
}

/* One shape, in a process of its own: what it has taken goes with it. */
static int run(const struct size *wanted, uint32_t ordinal)
{
    struct err err = {0};
    uint64_t begin_ns = clock_ns();
    if (cuda_open(&cuda, ordinal) != 0) {
        fprintf(stderr, "bench-decode: %s\n", cuda.error);
        return 1;
    }
    double open_ms = (double)(clock_ns() - begin_ns) / 1e6;
    const bool is_stand_in = strncmp(cuda.name, "stand-in", 8) == 0;
    const struct size *shape = is_stand_in ? &small : wanted;
    const struct forward_cuda_limits limits = {.common = {.positions_max = 2 * CONTEXT, .block_size = BLOCK_SIZE},
                                               .step_tokens_max = ROWS_MAX,
                                               .step_blocks_max = ROWS_MAX * CONTEXT / BLOCK_SIZE};
    describe(shape);
    double copies = copy_rate(is_stand_in);
    size_t bytes = model_slice_bytes(&desc, 0, desc.layers);
    size_t kv_bytes = ROWS_MAX * CONTEXT / BLOCK_SIZE * forward_block_stride(&desc, desc.layers, &limits.common);
    cuda_address weights = cuda_alloc(&cuda, bytes), kv = cuda_alloc(&cuda, kv_bytes);
    if (cuda.failed == 0)
        model_bind(&slice, &desc, 0, desc.layers, (const void *)(uintptr_t)weights);
    if (cuda.failed != 0 ||
        forward_cuda_init(&forward, &cuda, kernels_pick(NULL), &desc, &slice, &limits, kv, &err) != 0) {
        fprintf(stderr, "bench-decode: %s: %s\n", shape->name, cuda.error);
        return 1;
    }
    size_t read_bytes = bytes - matrix_bytes(shape->form, desc.vocab_size, desc.width); /* of the embedding a row is */
    printf("%s%s: %.2f GB of weights, contexts of %u; opening the device %.0f ms, a copy there %.0f GB/s\n",
           shape->name, is_stand_in ? ", stand-in, no GPU result" : "", (double)bytes / 1e9, CONTEXT, open_ms,
           copies / 1e9);
    measure("launched", shape->name, read_bytes, kv_bytes / ROWS_MAX, copies);
    begin_ns = clock_ns();
    bool is_recorded = forward_cuda_record(&forward);
    cuda_wait(&cuda);
    printf("%-10s recording its graphs: %.1f ms%s\n", shape->name, (double)(clock_ns() - begin_ns) / 1e6,
           is_recorded ? "" : ": this device records none");
    if (is_recorded)
        measure("replayed", shape->name, read_bytes, kv_bytes / ROWS_MAX, copies);
    return cuda.failed != 0;
}

int main(int argc, char **argv)
{
    uint32_t ordinal = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    int failures = 0, status;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0)
            exit(run(&shapes[i], ordinal));
        failures += child < 0 || waitpid(child, &status, 0) != child || status != 0;
    }
    return failures != 0;
}
