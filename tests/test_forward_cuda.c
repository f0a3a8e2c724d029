/* test_forward_cuda.c - the forward pass on a device against transformers and against the processor, and that its bits do not
 * depend on how work was cut. On what stands in for the driver, or on a real one that EVENFLOW_LIBCUDA names. */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fake_cuda.h"
#include "tests/runner.h"
#include "tests/tiny_model.h"

#define REQUESTS 7u
#define GENERATE 12u

static struct cuda cuda;

static void open_device(void)
{
    fake_cuda_use();
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
}

/* ---- against transformers ---- */

/* Of every token's row of logits but the last, the largest relative difference by the Euclidean norm. */
static double worst_row(const float *logits, uint32_t vocab_size, const json_t *expected)
{
    const json_t *rows = json_object_get(expected, "half_logits");
    double worst = 0;
    for (uint32_t i = 0; i + 1 < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        double difference = 0, size = 0;
        for (uint32_t j = 0; j < vocab_size; j++) {
            double value = json_number_value(json_array_get(row, j));
            difference += pow((double)logits[(size_t)i * vocab_size + j] - value, 2);
            size += value * value;
        }
        worst = fmax(worst, sqrt(difference / size));
    }
    return worst;
}

/* Activations and weights are rounded to halves, each by up to 2^-11, 2.8e-4 on average: a sum of products of some thirty
 * such is off by about that, and one behind another in a layer are five. Two or three layers of them gave 1.0e-3 to 2.0e-3. */
Test(forward_cuda, logits_are_those_of_transformers, .timeout = 60)
{
    static const char *const names[] = {"llama", "llama3", "llama-linear", "mistral", "qwen2", "qwen3", "gemma3"};
    open_device();
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char path[128];
        struct err err = {0};
        struct gguf *gguf;
        json_error_t problem;
        snprintf(path, sizeof(path), "tests/data/archs/%s.gguf", names[i]);
        cr_assert_eq(gguf_open(&gguf, path, &err), 0, "%s", err.text);
        snprintf(path, sizeof(path), "tests/data/archs/%s.json", names[i]);
        json_t *expected = json_load_file(path, 0, &problem), *tokens = json_object_get(expected, "tokens");
        cr_assert_not_null(tokens, "%s: %s", path, problem.text);
        struct runner *runner = calloc(1, sizeof(*runner));
        struct runner_request *request = calloc(1, sizeof(*request));
        runner_open_cuda(runner, gguf, &cuda, 2, 16);
        request->is_score = true;
        request->prompt_count = (uint32_t)json_array_size(tokens);
        cr_assert(request->prompt_count > 16 && request->prompt_count <= CUDA_ROWS);
        for (uint32_t t = 0; t < request->prompt_count; t++)
            request->tokens[t] = (uint32_t)json_integer_value(json_array_get(tokens, t));
        runner_run(runner, request, 1, request->prompt_count, 0);
        double worst = worst_row(runner->on_device[1].host_logits, runner->desc.vocab_size, expected);
        printf("%s: worst relative difference of a row of logits %.1e\n", names[i], worst);
        cr_expect_lt(worst, 3e-3, "%s: %g", names[i], worst);
        runner_close(runner);
        free(runner);
        free(request);
        json_decref(expected);
        gguf_close(gguf);
    }
}

/* ---- against the processor, and against itself ---- */

static struct runner_request *make_requests(const struct tiny_model *tiny)
{
    struct runner_request *requests = calloc(REQUESTS, sizeof(*requests));
    cr_assert_not_null(requests);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        requests[i].prompt_count = 31 + 13 * i;
        requests[i].generate = GENERATE;
        requests[i].params = (struct sample_params){.temperature = i % 2 ? 0.8f : 0, .top_p = 1, .seed = i};
        for (uint32_t j = 0; j < requests[i].prompt_count; j++)
            requests[i].tokens[j] = (i * 31 + j * j * 17 + 5 * j) % tiny->vocab_size;
    }
    return requests;
}

static struct tiny_model variant(uint32_t number)
{
    struct tiny_model tiny = tiny_model();
    static const uint32_t mixed[] = {GGUF_TYPE_Q4_0, GGUF_TYPE_F16,  GGUF_TYPE_Q8_0, GGUF_TYPE_F32, GGUF_TYPE_Q5_0,
                                     GGUF_TYPE_Q4_1, GGUF_TYPE_Q5_1, GGUF_TYPE_BF16, GGUF_TYPE_Q4_0};
    if (number == 1) { /* no two neighbours alike, a head of its own */
        memcpy(tiny.types, mixed, sizeof(mixed));
        tiny.tied = false;
    }
    if (number == 2) { /* floats; three query heads for each of KV */
        for (int i = 0; i < 9; i++)
            tiny.types[i] = GGUF_TYPE_F32;
        tiny.heads = 6;
        tiny.vocab_size = 163;
    }
    return tiny;
}

#define VARIANTS 3u

static void run_on_device(const struct tiny_model *tiny, struct runner_request *requests, uint32_t stages,
                          uint32_t block_size, uint32_t chunk, uint32_t stagger)
{
    struct gguf *gguf = tiny_model_open(tiny);
    struct runner *runner = calloc(1, sizeof(*runner));
    runner_open_cuda(runner, gguf, &cuda, stages, block_size);
    runner_run(runner, requests, REQUESTS, chunk, stagger);
    runner_close(runner);
    free(runner);
    gguf_close(gguf);
}

Test(forward_cuda, bits_do_not_depend_on_chunks_company_slices_blocks_or_graphs, .timeout = 120)
{
    static const struct {
        uint32_t stages, block_size, chunk, stagger;
    } cases[] = {{1, 16, 1, 0}, {3, 8, 13, 2}, {2, 32, 64, 1}, {1, 16, 200, 100} /* one after the other */};
    open_device();
    for (uint32_t number = 0; number < VARIANTS; number++) {
        struct tiny_model tiny = variant(number);
        struct runner_request *expected = make_requests(&tiny);
        runner_records = false; /* where all is launched one by one */
        run_on_device(&tiny, expected, 1, 16, 200, 0);
        runner_records = true;
        for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
            struct runner_request *got = make_requests(&tiny);
            run_on_device(&tiny, got, cases[c].stages, cases[c].block_size, cases[c].chunk, cases[c].stagger);
            for (uint32_t i = 0; i < REQUESTS; i++) {
                cr_assert_eq(got[i].result_count, GENERATE);
                cr_expect_eq(memcmp(got[i].results, expected[i].results, GENERATE * sizeof(got[i].results[0])), 0,
                             "variant %u, case %zu, request %u", number, c, i);
            }
            free(got);
        }
        tiny.flipped_tensor = "blk.0.attn_v.weight"; /* which shows that this could fail */
        struct runner_request *other = make_requests(&tiny);
        run_on_device(&tiny, other, 1, 16, 200, 0);
        cr_expect_neq(memcmp(other[0].results, expected[0].results, sizeof(other[0].results)), 0);
        free(other);
        free(expected);
    }
}

/* Every other request asks for its tokens alone, so those beside it are judged on the processor in the same steps; drafts among
 * them. */
Test(forward_cuda, tokens_that_the_device_draws_are_those_that_the_processor_would, .timeout = 60)
{
    open_device();
    for (uint32_t number = 0; number < VARIANTS; number++) {
        struct tiny_model tiny = variant(number);
        struct runner_request *expected = make_requests(&tiny), *got = make_requests(&tiny);
        run_on_device(&tiny, expected, 1, 16, 200, 0);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            got[i].is_bare = i % 4 < 2;
            got[i].guesses = i % 3 == 0 ? expected[i].results : NULL;
            got[i].drafts_max = 4;
        }
        run_on_device(&tiny, got, 2, 16, 64, 1);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            cr_assert_eq(got[i].result_count, GENERATE);
            for (uint32_t j = 0; j < GENERATE; j++) {
                cr_expect_eq(got[i].results[j].token, expected[i].results[j].token, "variant %u, request %u, token %u",
                             number, i, j);
                cr_expect_eq(got[i].results[j].logits_hash == 0, got[i].is_bare);
            }
        }
        free(got);
        free(expected);
    }
}

/* Losses of given tokens. With floats both read the same weights, and differ by halves; with quantised weights the processor
 * reads activations as int8, which moves a loss by some hundredths on models of this size. */
Test(forward_cuda, losses_are_those_of_the_processor, .timeout = 60)
{
    open_device();
    for (uint32_t number = 0; number < VARIANTS; number++) {
        struct tiny_model tiny = variant(number);
        struct gguf *gguf = tiny_model_open(&tiny);
        struct runner_request *expected = make_requests(&tiny), *got = make_requests(&tiny);
        struct runner *runner = calloc(1, sizeof(*runner));
        for (uint32_t i = 0; i < REQUESTS; i++) {
            expected[i].is_score = got[i].is_score = true;
            expected[i].generate = got[i].generate = 0;
        }
        runner_open(runner, gguf, "ref", 1, 16, KV_F16, 1);
        runner_run(runner, expected, REQUESTS, 200, 0);
        runner_close(runner);
        run_on_device(&tiny, got, 1, 16, 200, 0);
        double worst = 0, sum = 0;
        uint32_t count = 0;
        for (uint32_t i = 0; i < REQUESTS; i++) {
            cr_assert_eq(got[i].result_count, expected[i].result_count);
            for (uint32_t j = 0; j < got[i].result_count; j++, count++) {
                double difference = fabs((double)got[i].results[j].logprob - (double)expected[i].results[j].logprob);
                worst = fmax(worst, difference);
                sum += difference;
            }
        }
        printf("variant %u: a loss differs by %.1e at most, by %.1e on average of %u\n", number, worst, sum / count,
               count);
        cr_expect_lt(worst, number == 2 ? 0.01 : 0.2, "variant %u: %g", number, worst);
        cr_expect_lt(sum / count, number == 2 ? 0.002 : 0.03, "variant %u: %g", number, sum / count);
        free(runner);
        free(expected);
        free(got);
        gguf_close(gguf);
    }
}

/* Two stages, each with a stream of its own, and what lies between them in the second one's device. */
static struct cuda second;
static struct runner *runners[2];
static struct forward_cuda *writer, *reader;
static cuda_address theirs, ours;

#define EDGE_TOKENS_MAX 200u

static void open_two(struct gguf *gguf)
{
    open_device();
    cr_assert_eq(cuda_open(&second, 0), 0, "%s", second.error);
    for (int i = 0; i < 2; i++) {
        runners[i] = calloc(1, sizeof(*runners[i]));
        runner_open_cuda(runners[i], gguf, i == 0 ? &cuda : &second, 2, 16);
    }
    writer = &runners[0]->on_device[0];
    reader = &runners[1]->on_device[1];
    size_t bytes = align_up_u64(4096 + EDGE_TOKENS_MAX * runners[0]->desc.width * sizeof(float), cuda.granularity);
    int descriptor = cuda_create(&second, bytes, 4096);
    theirs = cuda_map(&second, descriptor, bytes);
    ours = cuda_map(&cuda, descriptor, bytes);
    close(descriptor);
    cr_assert(theirs != 0 && ours != 0);
}

static void close_two(void)
{
    for (int i = 0; i < 2; i++) {
        runner_close(runners[i]);
        free(runners[i]);
    }
}

static struct forward_cuda_place slot_of(cuda_address edge, uint32_t value)
{
    return (struct forward_cuda_place){.word = edge, .floats = edge + 4096, .value = value};
}

static void finish_writer(void)
{
    cr_assert_eq(forward_cuda_finish(writer, NULL, NULL), 0, "%s", cuda.error);
}

static struct token_shm finish_reader(void)
{
    cr_assert_eq(forward_cuda_finish(reader, runners[1]->results, runners[1]->tops), 0, "%s", second.error);
    return runners[1]->results[0];
}

/* The second one is put into the stream of its device before the first one has computed, by one and the same thread: so nothing
 * of that waits for it. Beside it the same with activations in host memory. */
Test(forward_cuda, a_stage_may_begin_before_its_input_is_there, .timeout = 60)
{
    static const uint32_t counts[] = {1, CUDA_ROWS, 2 * CUDA_ROWS + 9};
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    uint32_t tokens[EDGE_TOKENS_MAX], number = 0;
    open_two(gguf);
    for (uint32_t i = 0; i < EDGE_TOKENS_MAX; i++)
        tokens[i] = i * 7 % tiny.vocab_size;
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        const struct row_shm row = {.token_count = counts[c],
                                    .block_count = (counts[c] + 15) / 16,
                                    .flags = ROW_SAMPLE | ROW_LOGITS_HASH,
                                    .result_count = 1};
        const struct forward_step step = {
            .rows = &row, .row_count = 1, .tokens = tokens, .token_count = counts[c], .blocks = runners[0]->blocks};
        const struct forward_cuda_place in = slot_of(theirs, ++number), out = slot_of(ours, number);
        forward_cuda_begin(reader, &step, &in, NULL);
        forward_cuda_begin(writer, &step, NULL, &out);
        finish_writer();
        const struct token_shm got = finish_reader();

        const struct forward_cuda_place host = {.host = runners[0]->activations[0]};
        forward_cuda_begin(writer, &step, NULL, &host);
        finish_writer();
        forward_cuda_begin(reader, &step, &host, NULL);
        const struct token_shm expected = finish_reader();
        cr_expect_neq(got.logits_hash, 0);
        cr_expect_eq(memcmp(&got, &expected, sizeof(got)), 0, "%u tokens", counts[c]);

        /* a step that is passed over lets the next stage go on, and so does who will not be followed by anybody */
        const struct forward_cuda_place later = slot_of(theirs, ++number), passed = slot_of(ours, number);
        forward_cuda_begin(reader, &step, &later, NULL);
        cr_assert_eq(forward_cuda_pass(writer, &passed), 0, "%s", cuda.error);
        cr_assert_eq(forward_cuda_pass(reader, NULL), 0, "%s", second.error);
        const struct forward_cuda_place never = slot_of(theirs, ++number);
        forward_cuda_begin(reader, &step, &never, NULL);
        forward_cuda_release(reader);
        cr_expect_eq(second.failed, 0, "%s", second.error);
    }
    close_two();
    gguf_close(gguf);
}

/* A step of `count` tokens; whether it was replayed. */
static bool replays(struct runner *runner, uint32_t count)
{
    uint32_t tokens[CUDA_ROWS + 1] = {0};
    const struct row_shm row = {
        .token_count = count, .block_count = (count + 15) / 16, .flags = ROW_SAMPLE, .result_count = 1};
    const struct forward_step step = {
        .rows = &row, .row_count = 1, .tokens = tokens, .token_count = count, .blocks = runner->blocks};
    forward_cuda_begin(&runner->on_device[0], &step, NULL, NULL);
    cr_assert_eq(forward_cuda_finish(&runner->on_device[0], runner->results, runner->tops), 0, "%s", cuda.error);
    return runner->on_device[0].is_replayed;
}

static void expect_replays(bool expected)
{
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct runner *runner = calloc(1, sizeof(*runner));
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
    runner_open_cuda(runner, gguf, &cuda, 1, 16);
    cr_expect_eq(replays(runner, 1), expected);
    cr_expect_eq(replays(runner, 37), expected);
    cr_expect_eq(replays(runner, CUDA_ROWS), expected);
    cr_expect_not(replays(runner, CUDA_ROWS + 1));
    runner_close(runner);
    free(runner);
    gguf_close(gguf);
    cuda_close(&cuda);
}

Test(forward_cuda, steps_of_one_tile_are_replayed_where_a_device_records)
{
    fake_cuda_wish("");
    expect_replays(true);
    fake_cuda_wish("graphs=0");
    expect_replays(false);
}

Test(forward_cuda, a_device_that_vanishes_is_an_outcome)
{
    fake_cuda_wish("vanish=200");
    cr_assert_eq(cuda_open(&cuda, 0), 0, "%s", cuda.error);
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct runner *runner = calloc(1, sizeof(*runner));
    runner_open_cuda(runner, gguf, &cuda, 1, 16);
    const uint32_t tokens[] = {1, 2, 3};
    const struct row_shm row = {.token_count = 3, .block_count = 1, .flags = ROW_SAMPLE, .result_count = 1};
    const struct forward_step step = {
        .rows = &row, .row_count = 1, .tokens = tokens, .token_count = 3, .blocks = runner->blocks};
    int ret = 0;
    uint32_t runs = 0;
    for (; ret == 0 && runs < 100; runs++) {
        forward_cuda_begin(&runner->on_device[0], &step, NULL, NULL);
        ret = forward_cuda_finish(&runner->on_device[0], runner->results, runner->tops);
    }
    cr_expect_gt(runs, 1);
    cr_expect_eq(ret, -EIO);
    cr_expect_not_null(strstr(cuda.error, "CUDA_ERROR_DEVICE_UNAVAILABLE"), "%s", cuda.error);
    gguf_close(gguf);
}

Test(forward_cuda, what_the_kernels_do_not_compute_is_refused_by_name)
{
    struct model_desc desc = {.width = 64, .heads = 4, .head_dim = 16, .feed_forward = 96};
    struct err err = {0};
    cr_expect_eq(forward_cuda_supports(&desc, &err), 0);
    desc.feed_forward = 93;
    cr_expect_eq(forward_cuda_supports(&desc, &err), -ENOTSUP);
    cr_expect_not_null(strstr(err.text, "no multiple of 16"), "%s", err.text);
    desc.head_dim = 272;
    cr_expect_eq(forward_cuda_supports(&desc, &err), -ENOTSUP);
    cr_expect_not_null(strstr(err.text, "heads so wide"), "%s", err.text);
}
