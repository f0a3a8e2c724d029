#include "stages/cost.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/clock.h"
#include "stages/cost_inside.h"
#include "stages/forward.h"

#define BLOCK_SIZE    32u
#define HEAD_ROWS_MAX 4096u /* outputs of the head that are measured */
#define ROUNDS_MAX    6u
#define TIME_NS       200000000u /* no further round after so long */

static_assert(COST_CHUNK == FORWARD_TILE, "a chunk is a tile");

/* All memory of a measurement, given back together: it is not needed once the engine serves. */
struct bench {
    void *taken[48];
    size_t taken_bytes[48];
    uint32_t taken_count;
};

static void *take(struct bench *bench, size_t bytes)
{
    check(bench->taken_count < ARRAY_COUNT(bench->taken));
    size_t size = align_up_u64(max_u64(bytes, 1), KERNEL_ALIGN);
    void *memory = aligned_alloc(KERNEL_ALIGN, size);
    check(memory != NULL);
    memset(memory, 0, size);
    bench->taken_bytes[bench->taken_count] = size;
    bench->taken[bench->taken_count++] = memory;
    return memory;
}

static void give_back(struct bench *bench)
{
    while (bench->taken_count > 0)
        free(bench->taken[--bench->taken_count]);
}

/* Something whose time counts. */
struct part {
    void (*run)(void *work);
    void *work;
    bool waits_for_memory; /* so caches are emptied before */
    uint64_t shortest_ns;
};

/* While the engine serves, a layer's weights come from memory every time, because those of all the other layers were
 * read since; a part measured out of a cache would look cheaper the smaller it is. */
static void forget(const struct bench *bench)
{
    for (uint32_t i = 0; i < bench->taken_count; i++)
        kernels_forget(bench->taken[i], bench->taken_bytes[i]);
}

/* All parts in turn, again and again, so that a while in which the machine is slower does not fall on one of them alone; of
 * each the shortest time on a processor, because what disturbs a run only makes it longer. */
static void measure_parts(struct part *parts, uint32_t count, const struct bench *bench)
{
    uint64_t start_ns = clock_ns();
    for (uint32_t i = 0; i < count; i++)
        parts[i].shortest_ns = UINT64_MAX;
    for (uint32_t round = 0; round < ROUNDS_MAX && (round == 0 || clock_ns() - start_ns < TIME_NS); round++) {
        for (uint32_t i = 0; i < count; i++) {
            if (parts[i].waits_for_memory)
                forget(bench);
            uint64_t from_ns = clock_cpu_ns();
            parts[i].run(parts[i].work);
            parts[i].shortest_ns = min_u64(parts[i].shortest_ns, clock_cpu_ns() - from_ns);
        }
    }
}

/* ---- a layer ---- */

struct layer_work {
    struct forward *forward;
    struct forward_step step;
    const float *in;
    float *out;
};

static void run_layer(void *context)
{
    struct layer_work *work = context;
    forward_run(work->forward, &work->step, work->in, work->out, NULL, NULL);
}

/* A layer of the model, in memory of the bench. */
struct layer {
    struct model_slice slice;
    struct forward forward;
    float *in, *out;
    uint32_t *blocks;
};

/* The first layer as the middle one of three: a slice without embedding and without head. */
static void load_layer(struct layer *layer, struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                       const struct kernels *kernels, enum kv_type kv_type)
{
    const uint32_t blocks = COST_ROWS * (uint32_t)div_up_u64(COST_LONG_PAST + 1, BLOCK_SIZE);
    const size_t floats = (size_t)FORWARD_TILE * desc->width;
    struct model_desc *three = take(bench, sizeof(*three));
    *three = *desc;
    three->layers = 3;
    three->layer[1] = desc->layer[0];
    model_bind(&layer->slice, three, 1, 1, take(bench, model_slice_bytes(three, 1, 1)));
    model_pack_layer(&layer->slice.layers[0], desc, 0, gguf);
    const struct forward_limits limits = {COST_LONG_PAST + 1, BLOCK_SIZE, kv_type};
    forward_init(&layer->forward, kernels, NULL, three, &layer->slice, &limits,
                 take(bench, blocks * forward_block_stride(three, 1, &limits)));
    layer->blocks = take(bench, blocks * sizeof(*layer->blocks));
    for (uint32_t i = 0; i < blocks; i++)
        layer->blocks[i] = i;
    layer->in = take(bench, floats * sizeof(float));
    layer->out = take(bench, floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        layer->in[i] = (float)((int)(i * 37 % 255) - 127) / 127.0f; /* any numbers: the time does not depend on them */
}

static struct part layer_part(struct layer *layer, struct bench *bench, const struct cost_step *step)
{
    const uint32_t rows = step->rows, past = step->past, tokens = step->tokens;
    struct layer_work *work = take(bench, sizeof(*work));
    struct row_shm *row = take(bench, rows * sizeof(*row));
    uint32_t blocks = (uint32_t)div_up_u64(past + tokens, BLOCK_SIZE);
    for (uint32_t i = 0; i < rows; i++)
        row[i] = (struct row_shm){.first_pos = past,
                                  .token_count = tokens,
                                  .token_first = i * tokens,
                                  .block_first = i * blocks,
                                  .block_count = blocks};
    *work = (struct layer_work){
        .forward = &layer->forward,
        .step = {.rows = row, .row_count = rows, .token_count = rows * tokens, .blocks = layer->blocks},
        .in = layer->in,
        .out = layer->out};
    return (struct part){.run = run_layer, .work = work, .waits_for_memory = tokens == 1};
}

/* ---- head and embedding ---- */

struct head_work {
    struct forward *forward;
    const float *residual;
    uint32_t rows;
    uint32_t token; /* so that the choice is not for nothing */
};

static void run_head(void *context)
{
    struct head_work *work = context;
    const float *logits = forward_logits(work->forward, work->residual, work->rows);
    for (uint32_t i = 0; i < work->rows; i++)
        work->token +=
            sampler_greedy(&work->forward->judge.sampler, logits + (size_t)i * work->forward->desc->vocab_size);
}

/* Some outputs of the head. */
struct head {
    struct model_slice slice;
    struct forward forward;
    float *residual;
    double share; /* of all outputs */
};

static void load_head(struct head *head, struct bench *bench, const struct gguf *gguf, const struct model_desc *desc,
                      const struct kernels *kernels)
{
    struct model_desc *part = take(bench, sizeof(*part));
    *part = *desc;
    part->vocab_size = (uint32_t)min_u64(desc->vocab_size, HEAD_ROWS_MAX);
    struct matrix matrix = {.form = desc->head_form, .n = part->vocab_size, .k = desc->width};
    matrix.panels = take(bench, matrix_bytes(matrix.form, matrix.n, matrix.k));
    model_pack_matrix(&matrix, gguf_tensor_find(gguf, desc->tied ? "token_embd.weight" : "output.weight"));
    float *gain = take(bench, desc->width * sizeof(float));
    for (uint32_t i = 0; i < desc->width; i++)
        gain[i] = 1;
    size_t floats = (size_t)COST_ROWS * desc->width;
    head->residual = take(bench, floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        head->residual[i] = (float)((int)(i * 37 % 255) - 127) / 127.0f;
    head->share = (double)part->vocab_size / desc->vocab_size;
    head->slice = (struct model_slice){.is_last = true, .output_norm = gain, .head = matrix};
    forward_init(&head->forward, kernels, NULL, part, &head->slice, &(struct forward_limits){1, BLOCK_SIZE, KV_F16},
                 NULL);
}

static struct part head_part(struct head *head, struct bench *bench, uint32_t rows)
{
    struct head_work *work = take(bench, sizeof(*work));
    *work = (struct head_work){.forward = &head->forward, .residual = head->residual, .rows = rows};
    return (struct part){.run = run_head, .work = work, .waits_for_memory = true};
}

struct embedding_work {
    struct matrix embedding;
    float *out;
};

static void run_embedding(void *context)
{
    struct embedding_work *work = context;
    for (uint32_t i = 0; i < COST_ROWS; i++)
        matrix_unpack_row(work->out, &work->embedding, i % work->embedding.n);
}

static struct part embedding_part(struct bench *bench, const struct gguf *gguf, const struct model_desc *desc)
{
    struct embedding_work *work = take(bench, sizeof(*work));
    work->embedding = (struct matrix){
        .form = desc->embedding_form, .n = (uint32_t)min_u64(desc->vocab_size, KERNEL_PANEL), .k = desc->width};
    work->embedding.panels = take(bench, matrix_bytes(work->embedding.form, work->embedding.n, work->embedding.k));
    model_pack_matrix(&work->embedding, gguf_tensor_find(gguf, "token_embd.weight"));
    work->out = take(bench, desc->width * sizeof(float));
    return (struct part){.run = run_embedding, .work = work, .waits_for_memory = true};
}

/* ---- the table ---- */

enum { HEAD_ALONE = COST_STEPS, HEAD_ROWS, EMBEDDING, PARTS }; /* behind those of a layer */

static double positive(double value)
{
    return value > 0 ? value : 0;
}

/* A row alone waits for the weights; a chunk computes. */
struct timing_stage cost_layer(const double us[COST_STEPS])
{
    struct timing_stage t = {0};
    t.context_us = positive((us[COST_CONTEXT] - us[COST_MANY]) / (COST_ROWS * (COST_LONG_PAST - COST_SHORT_PAST)));
    t.pair_us = positive((us[COST_PROMPT_PAST] - us[COST_PROMPT] - t.context_us * COST_CHUNK_PAST) /
                         (COST_CHUNK * COST_CHUNK_PAST));
    t.token_us = (us[COST_PROMPT] - t.context_us * COST_CHUNK - t.pair_us * COST_CHUNK * COST_CHUNK / 2) / COST_CHUNK;
    t.token_us = t.token_us > 0 ? t.token_us : us[COST_PROMPT] / COST_CHUNK;
    double alone = us[COST_ALONE] - t.context_us * (COST_SHORT_PAST + 1);
    double rows = us[COST_MANY] - t.context_us * COST_ROWS * (COST_SHORT_PAST + 1);
    bool computes = COST_ROWS * t.token_us >= alone;
    t.row_us = positive(computes ? rows / COST_ROWS - t.token_us : (rows - alone) / (COST_ROWS - 1));
    t.weights_us = positive(alone - t.row_us);
    return t;
}

struct timing_stage cost_head(double alone_us, double rows_us)
{
    struct timing_stage t = {.result_us = positive(rows_us - alone_us) / (COST_ROWS - 1)};
    t.head_us = positive(alone_us - t.result_us);
    return t;
}

int cost_measure(struct cost *cost, const struct gguf *gguf, const struct model_desc *desc,
                 const struct kernels *kernels, enum kv_type kv_type, struct err *err)
{
    (void)err;
    struct bench bench = {.taken_count = 0};
    struct layer layer;
    struct head head;
    load_layer(&layer, &bench, gguf, desc, kernels, kv_type);
    load_head(&head, &bench, gguf, desc, kernels);
    struct part parts[PARTS] = {
        [HEAD_ALONE] = head_part(&head, &bench, 1),
        [HEAD_ROWS] = head_part(&head, &bench, COST_ROWS),
        [EMBEDDING] = embedding_part(&bench, gguf, desc),
    };
    for (uint32_t i = 0; i < COST_STEPS; i++)
        parts[i] = layer_part(&layer, &bench, &cost_steps[i]);
    measure_parts(parts, PARTS, &bench);
    double us[PARTS];
    for (uint32_t i = 0; i < PARTS; i++)
        us[i] = (double)parts[i].shortest_ns / 1000;
    *cost = (struct cost){.layer = cost_layer(us),
                          .head = cost_head(us[HEAD_ALONE] / head.share, us[HEAD_ROWS] / head.share),
                          .embedding = {.token_us = us[EMBEDDING] / COST_ROWS}};
    forward_free(&layer.forward);
    model_unbind(&layer.slice);
    forward_free(&head.forward);
    give_back(&bench);
    return 0;
}

static void add(struct timing_stage *sum, const struct timing_stage *part, double times)
{
    sum->base_us += times * part->base_us;
    sum->row_us += times * part->row_us;
    sum->weights_us += times * part->weights_us;
    sum->token_us += times * part->token_us;
    sum->context_us += times * part->context_us;
    sum->pair_us += times * part->pair_us;
    sum->head_us += times * part->head_us;
    sum->result_us += times * part->result_us;
}

struct timing_stage cost_stage(const struct cost *cost, uint32_t layers, bool is_first, bool is_last)
{
    struct timing_stage stage = {0};
    add(&stage, &cost->stage, 1);
    add(&stage, &cost->layer, layers);
    add(&stage, &cost->embedding, is_first);
    add(&stage, &cost->head, is_last);
    return stage;
}

double cost_usual_us(const struct timing_stage *stage)
{
    const struct shape usual = {
        .rows = COST_ROWS, .tokens = COST_ROWS, .context = COST_ROWS * (COST_SHORT_PAST + 1), .results = COST_ROWS};
    return timing_stage_us(stage, &usual);
}

void cost_split(const struct cost *const costs[], uint32_t layers, uint32_t stage_count, uint32_t counts[])
{
    check(stage_count >= 1 && stage_count <= layers);
    for (uint32_t stage = 0; stage < stage_count; stage++)
        counts[stage] = 1;
    /* Layers are alike, so handing each one to the stage that is cheapest with it is optimal. */
    for (uint32_t left = layers - stage_count; left > 0; left--) {
        uint32_t best = 0;
        double best_us = INFINITY;
        for (uint32_t stage = 0; stage < stage_count; stage++) {
            struct timing_stage more =
                cost_stage(costs[stage], counts[stage] + 1, stage == 0, stage + 1 == stage_count);
            double us = cost_usual_us(&more);
            if (us < best_us) {
                best = stage;
                best_us = us;
            }
        }
        counts[best]++;
    }
}
