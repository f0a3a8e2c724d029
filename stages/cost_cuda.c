/* cost_cuda.c - cost.h on a device: steps of slices without embedding, of one layer and of several, and of one with the head.
 * What a layer costs is by how much more of them take longer; the rest is a step's own: launches, copies, waiting for the
 * device. */
#include <stdlib.h>
#include <string.h>

#include "ipc/clock.h"
#include "stages/cost_inside.h"
#include "stages/forward_cuda.h"

#define BLOCK_SIZE   32u
#define ROUNDS       8u
#define LAYERS_BYTES (512ull << 20) /* so much do several layers read: more than a device's caches hold */
#define LAYERS_MAX   32u
#define STEP_NS      20000000u /* about so long is each step repeated, and takes the longest one */

/* A slice on the device, whose weights are whatever bits its memory has: they change no time. */
struct bench {
    struct model_desc desc;
    struct model_slice slice;
    struct forward_cuda forward;
    struct forward_cuda_place in, out;
};

static uint64_t blocks_needed(void)
{
    return COST_ROWS * div_up_u64(COST_LONG_PAST + 1, BLOCK_SIZE);
}

static int open_bench(struct bench *bench, struct cuda *cuda, const struct model_desc *desc,
                      const struct kernels *kernels, uint32_t layers, bool is_last, struct err *err)
{
    const struct forward_cuda_limits limits = {
        .common = {.positions_max = COST_LONG_PAST + 1, .block_size = BLOCK_SIZE},
        .step_tokens_max = COST_CHUNK,
        .step_blocks_max = (uint32_t)blocks_needed()};
    const size_t floats = (size_t)COST_CHUNK * desc->width;
    bench->desc = *desc;
    bench->desc.layers = layers + 1 + !is_last;
    for (uint32_t i = 0; i < bench->desc.layers; i++)
        bench->desc.layer[i] = desc->layer[0];
    size_t bytes = model_slice_bytes(&bench->desc, 1, layers);
    size_t kv_bytes = blocks_needed() * forward_block_stride(&bench->desc, layers, &limits.common);
    cuda_address weights = cuda_alloc(cuda, bytes), kv = cuda_alloc(cuda, kv_bytes);
    bench->in = (struct forward_cuda_place){.floats = cuda_alloc(cuda, floats * sizeof(float)),
                                            .word = cuda_alloc(cuda, sizeof(uint32_t))};
    bench->out = (struct forward_cuda_place){.floats = cuda_alloc(cuda, floats * sizeof(float))};
    const uint32_t nothing = 0;
    cuda_upload(cuda, bench->in.word, &nothing, sizeof(nothing));
    if (cuda_wait(cuda) != 0)
        return err_set(err, cuda->failed, "%s", cuda->error);
    model_bind(&bench->slice, &bench->desc, 1, layers, (const void *)(uintptr_t)weights);
    int ret = forward_cuda_init(&bench->forward, cuda, kernels, &bench->desc, &bench->slice, &limits, kv, err);
    if (ret == 0)
        forward_cuda_record(&bench->forward);
    return ret;
}

/* Microseconds of such a step, the shortest of several. */
static double step_us(struct bench *bench, const struct cost_step *kind)
{
    const uint32_t row_count = kind->rows, past = kind->past, tokens = kind->tokens;
    const uint32_t per_row = (uint32_t)div_up_u64(past + tokens, BLOCK_SIZE);
    const bool is_last = bench->slice.is_last;
    struct row_shm rows[COST_ROWS];
    struct token_shm results[COST_ROWS];
    struct top_shm tops[COST_ROWS * LOGPROBS_MAX];
    uint32_t *blocks = base_alloc(blocks_needed() * sizeof(*blocks)), ids[COST_CHUNK] = {0};
    uint64_t shortest_ns = UINT64_MAX, all_ns = 0;
    for (uint32_t i = 0; i < blocks_needed(); i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < row_count; i++)
        rows[i] = (struct row_shm){.first_pos = past,
                                   .token_count = tokens,
                                   .token_first = i * tokens,
                                   .block_first = i * per_row,
                                   .block_count = per_row,
                                   .flags = is_last ? ROW_SAMPLE : 0,
                                   .result_first = i,
                                   .result_count = is_last,
                                   .temperature = 1,
                                   .top_p = 1};
    const struct forward_step step = {
        .rows = rows, .row_count = row_count, .tokens = ids, .token_count = row_count * tokens, .blocks = blocks};
    for (uint32_t round = 0; round < ROUNDS && (round < 2 || all_ns < STEP_NS); round++) { /* the first one warms up */
        uint64_t begin_ns = clock_ns();
        forward_cuda_begin(&bench->forward, &step, &bench->in, is_last ? NULL : &bench->out);
        if (forward_cuda_finish(&bench->forward, results, tops) != 0)
            break;
        uint64_t took_ns = clock_ns() - begin_ns;
        shortest_ns = min_u64(shortest_ns, took_ns);
        all_ns += took_ns;
    }
    free(blocks);
    return (double)shortest_ns / 1000;
}

int cost_measure_cuda(struct cost *cost, struct cuda *cuda, const struct model_desc *desc,
                      const struct kernels *kernels, struct err *err)
{
    static struct bench one, several, last;
    one.desc = *desc;
    one.desc.layers = 3;
    const size_t layer_bytes = model_slice_bytes(&one.desc, 1, 1);
    double us[COST_STEPS], one_us[COST_STEPS];
    int ret = open_bench(&one, cuda, desc, kernels, 1, false, err);
    for (uint32_t i = 0; i < COST_STEPS && ret == 0; i++)
        one_us[i] = step_us(&one, &cost_steps[i]);
    if (ret != 0)
        return ret;
    const uint64_t most = min_u64(max_u64(LAYERS_BYTES / layer_bytes, 2), LAYERS_MAX);
    const uint32_t layers = (uint32_t)min_u64(most, max_u64((uint64_t)(STEP_NS / 1000 / one_us[COST_PROMPT_PAST]), 2));
    ret = open_bench(&several, cuda, desc, kernels, layers, false, err);
    ret = ret ? ret : open_bench(&last, cuda, desc, kernels, 1, true, err);
    if (ret != 0)
        return ret;
    for (uint32_t i = 0; i < COST_STEPS; i++) {
        us[i] = (step_us(&several, &cost_steps[i]) - one_us[i]) / (layers - 1);
        us[i] = us[i] > 0 ? us[i] : 0;
    }
    double alone_us = step_us(&last, &cost_steps[COST_ALONE]) - one_us[COST_ALONE];
    double rows_us = step_us(&last, &cost_steps[COST_MANY]) - one_us[COST_MANY];
    double base_us = one_us[COST_ALONE] - us[COST_ALONE];
    *cost = (struct cost){.layer = cost_layer(us)};
    cost->stage.base_us = base_us > 0 ? base_us : 0;
    cost->head = cost_head(alone_us, rows_us);
    return cuda->failed == 0 ? 0 : err_set(err, cuda->failed, "%s", cuda->error);
}
