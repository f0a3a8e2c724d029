#include "stages/cost.h"

#include <stdlib.h>
#include <string.h>

#include "ipc/clock.h"
#include "stages/forward.h"

#define CONTEXT       128u /* positions that each of the measured sequences attends to */
#define BLOCK_SIZE    32u
#define HEAD_ROWS_MAX 4096u /* outputs of the head that are measured */
#define RUNS_MAX      6u
#define PART_TIME_NS  50000000u /* no further run of a part after so long */
#define EVICT_BYTES   (64u << 20)

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

/* Reads more than the caches hold. While the engine serves, a layer's weights come from memory every time, because those
 * of all the other layers were read since; a part measured out of a cache would look cheaper the smaller it is. */
static void evict(const uint8_t *memory)
{
    uint64_t total = 0;
    for (size_t i = 0; i < EVICT_BYTES; i += 64)
        total += memory[i];
    __asm__ volatile("" : : "r"(total)); /* the compiler must take the sum for needed */
}

/* Shortest of the runs that fit the time. */
static uint64_t shortest_run(void (*run)(void *context), void *context, const uint8_t *evicting)
{
    uint64_t begin_ns = clock_ns(), shortest = UINT64_MAX;
    run(context); /* page faults, and the first look at the code */
    for (uint32_t i = 0; i < RUNS_MAX && (i == 0 || clock_ns() - begin_ns < PART_TIME_NS); i++) {
        evict(evicting);
        uint64_t from_ns = clock_ns();
        run(context);
        shortest = min_u64(shortest, clock_ns() - from_ns);
    }
    return shortest;
}

struct layer_work {
    struct forward forward;
    struct forward_step step;
    const float *in;
    float *out;
};

static void run_layer(void *context)
{
    struct layer_work *work = context;
    forward_run(&work->forward, &work->step, work->in, work->out, NULL);
}

static uint64_t measure_layer(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                              const struct kernels *kernels, uint32_t rows, const uint8_t *evicting)
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
    struct layer_work work;
    forward_init(&work.forward, kernels, three, &slice, &(struct forward_limits){CONTEXT, BLOCK_SIZE}, kv);
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
    work.step = (struct forward_step){.rows = row, .row_count = rows, .token_count = rows, .blocks = blocks};
    work.in = in;
    work.out = out;
    uint64_t shortest = shortest_run(run_layer, &work, evicting);
    forward_free(&work.forward);
    model_unbind(&slice);
    return shortest;
}

struct head_work {
    struct forward forward;
    const float *residual;
    uint32_t rows;
    uint32_t token; /* so that the choice is not for nothing */
};

static void run_head(void *context)
{
    struct head_work *work = context;
    const float *logits = forward_logits(&work->forward, work->residual, work->rows);
    for (uint32_t i = 0; i < work->rows; i++)
        work->token += sampler_greedy(&work->forward.sampler, logits + (size_t)i * work->forward.desc->vocab_size);
}

static uint64_t measure_head(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                             const struct kernels *kernels, uint32_t rows, const uint8_t *evicting)
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
    struct head_work work = {.residual = residual, .rows = rows};
    forward_init(&work.forward, kernels, part, &slice, &(struct forward_limits){1, BLOCK_SIZE}, NULL);
    uint64_t shortest = shortest_run(run_head, &work, evicting);
    forward_free(&work.forward);
    return (uint64_t)((double)shortest * desc->vocab_size / part->vocab_size);
}

struct embedding_work {
    struct matrix embedding;
    float *out;
    uint32_t rows;
};

static void run_embedding(void *context)
{
    struct embedding_work *work = context;
    for (uint32_t i = 0; i < work->rows; i++)
        matrix_unpack_row(work->out, &work->embedding, i % work->embedding.n);
}

static uint64_t measure_embedding(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                                  uint32_t rows, const uint8_t *evicting)
{
    struct embedding_work work = {.rows = rows};
    work.embedding = (struct matrix){
        .form = desc->embedding_form, .n = (uint32_t)min_u64(desc->vocab_size, KERNEL_PANEL), .k = desc->width};
    work.embedding.panels = take(bench, matrix_bytes(work.embedding.form, work.embedding.n, work.embedding.k));
    model_pack_matrix(&work.embedding, gguf_tensor_find(gguf, "token_embd.weight"));
    work.out = take(bench, desc->width * sizeof(float));
    return shortest_run(run_embedding, &work, evicting);
}

int cost_measure(struct cost *cost, const struct gguf *gguf, const struct model_desc *desc,
                 const struct kernels *kernels, uint32_t rows, struct err *err)
{
    (void)err;
    check(rows >= 1 && rows <= FORWARD_HEAD_ROWS);
    struct bench bench = {.taken_count = 0};
    const uint8_t *evicting = take(&bench, EVICT_BYTES);
    cost->layer_ns = measure_layer(&bench, gguf, desc, kernels, rows, evicting);
    cost->head_ns = measure_head(&bench, gguf, desc, kernels, rows, evicting);
    cost->embed_ns = measure_embedding(&bench, gguf, desc, rows, evicting);
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
