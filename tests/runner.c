#include "tests/runner.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void start_thread(void *context, uint32_t part)
{
    (void)context;
    (void)part;
    kernels_thread_init();
}

static struct forward_limits runner_limits(const struct runner *runner)
{
    return (struct forward_limits){
        .positions_max = RUNNER_TOKENS_MAX, .block_size = runner->block_size, .kv_type = runner->kv_type};
}

/* Weights and KV on the processor, and what computes with them. */
static void open_stage(struct runner *runner, uint32_t i, uint32_t first, uint32_t count, size_t kv_bytes)
{
    const struct forward_limits limits = runner_limits(runner);
    /* not touched here: what no sequence uses costs nothing */
    runner->kv[i] = aligned_alloc(4096, align_up_u64(kv_bytes, 4096));
    cr_assert_not_null(runner->kv[i]);
    model_bind(&runner->slices[i], &runner->desc, first, count, runner->weights[i]);
    forward_init(&runner->stages[i], runner->kernels, runner->team, &runner->desc, &runner->slices[i], &limits,
                 runner->kv[i]);
}

bool runner_records = true;

/* The same on a device. */
static void open_stage_cuda(struct runner *runner, uint32_t i, uint32_t first, uint32_t count, size_t kv_bytes)
{
    struct err err = {0};
    const struct forward_cuda_limits limits = {.common = runner_limits(runner),
                                               .step_tokens_max = RUNNER_STEP_MAX,
                                               .step_blocks_max = RUNNER_REQUESTS_MAX * runner->blocks_per_sequence};
    size_t bytes = model_slice_bytes(&runner->desc, first, count);
    cuda_address weights = cuda_alloc(runner->cuda, bytes), kv = cuda_alloc(runner->cuda, kv_bytes);
    cuda_upload(runner->cuda, weights, runner->weights[i], bytes);
    cr_assert_eq(cuda_wait(runner->cuda), 0, "%s", runner->cuda->error);
    model_bind(&runner->slices[i], &runner->desc, first, count, (const void *)(uintptr_t)weights);
    cr_assert_eq(forward_cuda_init(&runner->on_device[i], runner->cuda, runner->kernels, &runner->desc,
                                   &runner->slices[i], &limits, kv, &err),
                 0, "%s", err.text);
    if (runner_records)
        forward_cuda_record(&runner->on_device[i]);
}

static void open_runner(struct runner *runner, const struct gguf *gguf)
{
    struct err err = {0};
    kernels_thread_init();
    cr_assert_eq(model_describe(&runner->desc, gguf, &err), 0, "%s", err.text);
    runner->blocks_per_sequence = RUNNER_TOKENS_MAX / runner->block_size;
    uint32_t layers = runner->desc.layers, stage_count = runner->stage_count, first = 0;
    cr_assert(stage_count <= layers && stage_count <= RUNNER_STAGES_MAX);
    for (uint32_t i = 0; i < stage_count; i++) {
        uint32_t count = layers / stage_count + (i < layers % stage_count);
        size_t blocks = (size_t)RUNNER_REQUESTS_MAX * runner->blocks_per_sequence;
        const struct forward_limits limits = runner_limits(runner);
        size_t kv_bytes = blocks * forward_block_stride(&runner->desc, count, &limits);
        runner->weights[i] = base_alloc(model_slice_bytes(&runner->desc, first, count));
        cr_assert_eq(model_load(&runner->slices[i], &runner->desc, first, count, runner->weights[i], gguf, &err), 0,
                     "%s", err.text);
        model_unbind(&runner->slices[i]);
        runner->activations[i] = base_alloc(RUNNER_STEP_MAX * runner->desc.width * sizeof(float));
        (runner->cuda != NULL ? open_stage_cuda : open_stage)(runner, i, first, count, kv_bytes);
        first += count;
    }
    runner->results = base_alloc(RUNNER_STEP_MAX * sizeof(*runner->results));
    runner->tops = base_alloc(RUNNER_STEP_MAX * LOGPROBS_MAX * sizeof(*runner->tops));
    runner->blocks = base_alloc(RUNNER_REQUESTS_MAX * runner->blocks_per_sequence * sizeof(uint32_t));
    /* Blocks of a sequence are scattered: 7 shares no divisor with a power of two. */
    uint32_t total = RUNNER_REQUESTS_MAX * runner->blocks_per_sequence;
    for (uint32_t i = 0; i < total; i++)
        runner->blocks[i] = i * 7 % total;
}

void runner_open(struct runner *runner, const struct gguf *gguf, const char *isa, uint32_t stage_count,
                 uint32_t block_size, enum kv_type kv_type, uint32_t threads)
{
    struct err err = {0};
    *runner = (struct runner){
        .kernels = kernels_pick(isa), .stage_count = stage_count, .block_size = block_size, .kv_type = kv_type};
    cr_assert_eq(team_open(&runner->team, threads, start_thread, NULL, &err), 0, "%s", err.text);
    cr_assert_not_null(runner->kernels);
    open_runner(runner, gguf);
}

void runner_lend(struct runner *runner, uint32_t threads)
{
    struct err err = {0};
    cr_assert_eq(team_open(&runner->lone_team, threads, start_thread, NULL, &err), 0, "%s", err.text);
    for (uint32_t i = 0; i < runner->stage_count; i++)
        forward_lend(&runner->stages[i], runner->lone_team);
}

void runner_open_cuda(struct runner *runner, const struct gguf *gguf, struct cuda *cuda, uint32_t stage_count,
                      uint32_t block_size)
{
    *runner = (struct runner){
        .kernels = kernels_pick("ref"), .cuda = cuda, .stage_count = stage_count, .block_size = block_size};
    open_runner(runner, gguf);
}

void runner_close(struct runner *runner)
{
    for (uint32_t i = 0; i < runner->stage_count; i++) {
        if (runner->cuda != NULL)
            forward_cuda_free(&runner->on_device[i]);
        else
            forward_free(&runner->stages[i]);
        model_unbind(&runner->slices[i]);
        free(runner->weights[i]);
        free(runner->kv[i]);
        free(runner->activations[i]);
    }
    if (runner->cuda == NULL)
        team_close(runner->team);
    team_close(runner->lone_team);
    free(runner->results);
    free(runner->tops);
    free(runner->blocks);
}

/* Puts guesses behind what is known; how many. */
static uint32_t add_drafts(struct runner_request *request, uint32_t known)
{
    uint32_t count = (uint32_t)min_u64(request->drafts_max, request->generate - request->result_count - 1);
    for (uint32_t i = 0; i < count; i++)
        request->tokens[known + i] = request->guesses[request->result_count + i].token ^ ((known + i) % 7 == 0);
    request->drafted += count;
    return count;
}

/* The request's row of the next step; false when it is finished. */
static bool plan_row(const struct runner *runner, struct runner_request *request, uint32_t index, uint32_t computed,
                     uint32_t chunk, struct row_shm *row)
{
    /* nothing follows a scored prompt's last token */
    uint32_t prompt = request->prompt_count - request->is_score;
    uint32_t known = prompt + (request->is_score ? 0 : request->result_count);
    if (computed == known || (!request->is_score && request->result_count == request->generate))
        return false;
    uint32_t count = computed < prompt ? (uint32_t)min_u64(chunk, prompt - computed) : 1;
    bool is_sampled = computed + count == known;
    uint32_t drafts = is_sampled && count == 1 && request->guesses != NULL ? add_drafts(request, known) : 0;
    count += drafts;
    *row = (struct row_shm){
        .first_pos = computed,
        .token_count = count,
        .block_first = index * runner->blocks_per_sequence,
        .block_count = (uint32_t)div_up_u64(computed + count, runner->block_size),
        .seed = request->params.seed,
        .choice = request->params.choice,
        .temperature = request->params.temperature,
        .top_k = request->params.top_k,
        .top_p = request->params.top_p,
        .min_p = request->params.min_p,
    };
    if (request->is_score) {
        row->flags = ROW_SCORE | ROW_LOGITS_HASH;
        row->result_count = count;
        row->score_next = request->tokens[computed + count];
    } else if (is_sampled) {
        row->flags = ROW_SAMPLE | (request->is_bare ? 0 : ROW_LOGITS_HASH | ROW_LOGPROB);
        row->result_count = 1 + drafts;
    }
    return true;
}

static bool is_lone(void *context)
{
    struct runner *runner = context;
    return runner->asked++ % 2 == 0;
}

/* Takes over the results, up to the first that the draft behind it is not. */
static void take_results(struct runner_request *request, const struct row_shm *row, const struct token_shm *results)
{
    for (uint32_t j = 0; j < row->result_count; j++) {
        request->results[request->result_count++] = results[j];
        if (request->is_score)
            continue; /* of tokens that were there */
        uint32_t *token = &request->tokens[request->prompt_count + request->result_count - 1];
        bool is_last = j + 1 == row->result_count, is_right = is_last || *token == results[j].token;
        *token = results[j].token;
        if (!is_right)
            return;
        request->accepted += !is_last;
    }
}

static void run_stage(struct runner *runner, uint32_t i, const struct forward_step *step)
{
    bool is_last = i + 1 == runner->stage_count;
    struct token_shm *results = is_last ? runner->results : NULL;
    struct top_shm *tops = is_last ? runner->tops : NULL;
    float *in = i == 0 ? NULL : runner->activations[i - 1], *out = is_last ? NULL : runner->activations[i];
    if (runner->cuda == NULL) {
        forward_run(&runner->stages[i], step, in, out, results, tops);
        return;
    }
    const struct forward_cuda_place from = {.host = in}, to = {.host = out};
    forward_cuda_begin(&runner->on_device[i], step, i == 0 ? NULL : &from, is_last ? NULL : &to);
    cr_assert_eq(forward_cuda_finish(&runner->on_device[i], results, tops), 0, "%s", runner->cuda->error);
}

void runner_run(struct runner *runner, struct runner_request *requests, uint32_t count, uint32_t chunk,
                uint32_t stagger)
{
    uint32_t computed[RUNNER_REQUESTS_MAX] = {0};
    uint32_t *tokens = base_alloc(RUNNER_STEP_MAX * sizeof(uint32_t));
    cr_assert_leq(count, RUNNER_REQUESTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        requests[i].result_count = 0;
        cr_assert_leq(requests[i].prompt_count + requests[i].generate, RUNNER_TOKENS_MAX);
    }
    for (uint32_t number = 0;; number++) {
        struct row_shm rows[RUNNER_REQUESTS_MAX];
        uint32_t owner[RUNNER_REQUESTS_MAX];
        uint32_t row_count = 0, token_count = 0, result_count = 0;
        bool is_somebody_waiting = false;
        for (uint32_t i = 0; i < count; i++) {
            struct row_shm *row = &rows[row_count];
            if (number < i * stagger) {
                is_somebody_waiting = true;
                continue;
            }
            if (!plan_row(runner, &requests[i], i, computed[i], chunk, row))
                continue;
            cr_assert_leq(token_count + row->token_count, RUNNER_STEP_MAX);
            row->token_first = token_count;
            row->result_first = result_count;
            memcpy(tokens + token_count, requests[i].tokens + computed[i], row->token_count * sizeof(uint32_t));
            token_count += row->token_count;
            result_count += row->result_count;
            computed[i] += row->token_count;
            owner[row_count++] = i;
        }
        if (row_count == 0 && !is_somebody_waiting)
            break;
        const struct forward_step step = {.rows = rows,
                                          .row_count = row_count,
                                          .tokens = tokens,
                                          .token_count = token_count,
                                          .blocks = runner->blocks,
                                          .is_lone = is_lone,
                                          .context = runner};
        for (uint32_t i = 0; i < runner->stage_count; i++)
            run_stage(runner, i, &step);
        for (uint32_t i = 0; i < row_count; i++) {
            struct runner_request *request = &requests[owner[i]];
            take_results(request, &rows[i], runner->results + rows[i].result_first);
            if (rows[i].flags & ROW_SAMPLE) /* drafts that were wrong are not computed */
                computed[owner[i]] = request->prompt_count + request->result_count - 1;
        }
    }
    free(tokens);
}
