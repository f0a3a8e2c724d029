#include "stages/cost.h"

#include <stdlib.h>
#include <string.h>

#include "ipc/clock.h"
#include "stages/forward.h"

#define CONTEXT       128u /* positions that each of the measured sequences attends to */
#define BLOCK_SIZE    32u
#define HEAD_ROWS_MAX 8192u     /* outputs of the head that are measured */
#define LAYER_TIME_NS 60000000u /* for runs of the layer */
#define HEAD_TIME_NS  40000000u
#define RUNS_MIN      3u
#define RUNS_MAX      200u

/* All memory of a measurement, given back together: it is not needed once the engine serves. */
struct bench {
    void *taken[32];
    uint32_t taken_count;
};

static void *take(struct bench *bench, size_t bytes)
{
    check(bench->taken_count < ARRAY_COUNT(bench->taken));
    size_t size = align_up_u64(max_u64(bytes, 1), KERNEL_ALIGN);
    void *memory = aligned_alloc(KERNEL_ALIGN, size);
    check(memory != NULL);
    memset(memory, 0, size);
    bench->taken[bench->taken_count++] = memory;
    return memory;
}

static void give_back(struct bench *bench)
{
    while (bench->taken_count > 0)
        free(bench->taken[--bench->taken_count]);
}

/* Shortest of the runs that fit the time. */
#define MEASURE(shortest, limit_ns, work)                                                                              \
    do {                                                                                                               \
        uint64_t begin_ = clock_ns();                                                                                  \
        (shortest) = UINT64_MAX;                                                                                       \
        for (uint32_t run_ = 0; run_ < RUNS_MAX; run_++) {                                                             \
            uint64_t from_ = clock_ns();                                                                               \
            work;                                                                                                      \
            uint64_t to_ = clock_ns();                                                                                 \
            (shortest) = min_u64((shortest), to_ - from_);                                                             \
            if (run_ + 1 >= RUNS_MIN && to_ - begin_ > (limit_ns))                                                     \
                break;                                                                                                 \
        }                                                                                                              \
    } while (0)

static uint64_t measure_layer(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                              const struct kernels *kernels, uint32_t rows)
{
    /* The first layer as the middle one of three: a slice without embedding and without head. */
    struct model_desc *three = take(bench, sizeof(*three));
    *three = *desc;
    three->layers = 3;
    memcpy(three->forms[1], desc->forms[0], sizeof(three->forms[1]));
    struct model_slice slice;
    model_bind(&slice, three, 1, 1, take(bench, model_slice_bytes(three, 1, 1)));
    model_pack_layer(&slice.layers[0], desc, 0, gguf);

    const uint32_t blocks_per_row = CONTEXT / BLOCK_SIZE;
    uint8_t *kv = take(bench, rows * blocks_per_row * forward_block_stride(three, 1, BLOCK_SIZE));
    struct forward forward;
    forward_init(&forward, kernels, three, &slice, &(struct forward_limits){CONTEXT, BLOCK_SIZE}, kv);
    struct row_shm *row = take(bench, rows * sizeof(*row));
    uint32_t *blocks = take(bench, rows * blocks_per_row * sizeof(*blocks));
    for (uint32_t i = 0; i < rows * blocks_per_row; i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < rows; i++)
        row[i] = (struct row_shm){.first_pos = CONTEXT - 1,
                                  .token_count = 1,
                                  .token_first = i,
                                  .block_first = i * blocks_per_row,
                                  .block_count = blocks_per_row};
    size_t floats = (size_t)rows * desc->width;
    float *in = take(bench, floats * sizeof(float)), *out = take(bench, floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        in[i] = (float)((int)(i * 37 % 255) - 127) / 127.0f; /* any numbers: the time does not depend on them */
    const struct forward_step step = {.rows = row, .row_count = rows, .token_count = rows, .blocks = blocks};
    uint64_t shortest;
    MEASURE(shortest, LAYER_TIME_NS, forward_run(&forward, &step, in, out, NULL));
    forward_free(&forward);
    model_unbind(&slice);
    return shortest;
}

static uint64_t measure_head(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                             const struct kernels *kernels, uint32_t rows)
{
    struct model_desc *part = take(bench, sizeof(*part));
    *part = *desc;
    part->vocab_size = (uint32_t)min_u64(desc->vocab_size, HEAD_ROWS_MAX);
    struct matrix head = {.form = desc->head_form, .n = part->vocab_size, .k = desc->width};
    head.panels = take(bench, matrix_bytes(head.form, head.n, head.k));
    model_pack_matrix(&head, gguf_tensor_find(gguf, desc->tied ? "token_embd.weight" : "output.weight"));
    float *gain = take(bench, desc->width * sizeof(float));
    size_t floats = (size_t)rows * desc->width;
    float *residual = take(bench, floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        residual[i] = (float)((int)(i * 37 % 255) - 127) / 127.0f;
    for (uint32_t i = 0; i < desc->width; i++)
        gain[i] = 1;
    const struct model_slice slice = {.is_last = true, .output_norm = gain, .head = head};
    struct forward forward;
    forward_init(&forward, kernels, part, &slice, &(struct forward_limits){1, BLOCK_SIZE}, NULL);
    uint64_t shortest;
    volatile uint32_t token;
    MEASURE(shortest, HEAD_TIME_NS, {
        const float *logits = forward_logits(&forward, residual, rows);
        for (uint32_t i = 0; i < rows; i++)
            token = sampler_greedy(&forward.sampler, logits + (size_t)i * part->vocab_size);
    });
    (void)token;
    forward_free(&forward);
    return (uint64_t)((double)shortest * desc->vocab_size / part->vocab_size);
}

static uint64_t measure_embedding(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                                  uint32_t rows)
{
    struct matrix embedding = {.form = desc->embedding_form, .n = KERNEL_PANEL, .k = desc->width};
    if (desc->vocab_size < KERNEL_PANEL)
        return 0;
    embedding.panels = take(bench, matrix_bytes(embedding.form, embedding.n, embedding.k));
    model_pack_matrix(&embedding, gguf_tensor_find(gguf, "token_embd.weight"));
    float *out = take(bench, desc->width * sizeof(float));
    uint64_t shortest;
    MEASURE(shortest, 1000000, {
        for (uint32_t i = 0; i < rows; i++)
            matrix_unpack_row(out, &embedding, i % KERNEL_PANEL);
    });
    return shortest;
}

int cost_measure(struct cost *cost, const struct gguf *gguf, const struct model_desc *desc,
                 const struct kernels *kernels, uint32_t rows, struct err *err)
{
    (void)err;
    check(rows >= 1 && rows <= FORWARD_HEAD_ROWS);
    struct bench bench = {.taken_count = 0};
    cost->layer_ns = measure_layer(&bench, gguf, desc, kernels, rows);
    cost->head_ns = measure_head(&bench, gguf, desc, kernels, rows);
    cost->embed_ns = measure_embedding(&bench, gguf, desc, rows);
    give_back(&bench);
    return 0;
}

void cost_split(const struct cost *cost, uint32_t layers, uint32_t stage_count, uint32_t counts[])
{
    check(stage_count >= 1 && stage_count <= layers);
    for (uint32_t stage = 0; stage < stage_count; stage++)
        counts[stage] = 1;
    /* Layers are alike, so handing each one to the stage that is cheapest with it is optimal. */
    for (uint32_t left = layers - stage_count; left > 0; left--) {
        uint32_t best = 0;
        uint64_t best_ns = UINT64_MAX;
        for (uint32_t stage = 0; stage < stage_count; stage++) {
            uint64_t ns = (counts[stage] + 1) * cost->layer_ns + (stage == 0 ? cost->embed_ns : 0) +
                          (stage + 1 == stage_count ? cost->head_ns : 0);
            if (ns < best_ns) {
                best = stage;
                best_ns = ns;
            }
        }
        counts[best]++;
    }
}
