/* test_archs.c - every architecture against transformers: tiny random models and its logits (data/make_archs.py). */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/runner.h"

static const char *const names[] = {"llama", "llama3", "llama-linear", "mistral", "qwen2", "qwen3", "gemma3"};

/* Of every token's row of logits but the last, the largest relative difference by the Euclidean norm: to `which` of what was
 * expected. */
static double worst_row(const struct forward *forward, const json_t *expected, const char *which)
{
    const json_t *rows = json_object_get(expected, which);
    uint32_t vocab_size = forward->desc->vocab_size;
    double worst = 0;
    for (uint32_t i = 0; i + 1 < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        double difference = 0, size = 0;
        cr_assert_eq(json_array_size(row), vocab_size);
        for (uint32_t j = 0; j < vocab_size; j++) {
            double value = json_number_value(json_array_get(row, j));
            difference += pow((double)forward->logits[(size_t)i * vocab_size + j] - value, 2);
            size += value * value;
        }
        worst = fmax(worst, sqrt(difference / size));
    }
    return worst;
}

static void compare(const char *name, const char *isa)
{
    char path[128];
    struct err err = {0};
    struct gguf *gguf;
    json_error_t problem;
    snprintf(path, sizeof(path), "tests/data/archs/%s.gguf", name);
    cr_assert_eq(gguf_open(&gguf, path, &err), 0, "%s", err.text);
    snprintf(path, sizeof(path), "tests/data/archs/%s.json", name);
    json_t *expected = json_load_file(path, 0, &problem);
    cr_assert_not_null(expected, "%s: %s", path, problem.text);
    json_t *tokens = json_object_get(expected, "tokens");

    struct runner *runner = calloc(1, sizeof(*runner));
    struct runner_request *request = calloc(1, sizeof(*request));
    runner_open(runner, gguf, isa, 2, 16, KV_F16, 1);
    request->is_score = true;
    request->prompt_count = (uint32_t)json_array_size(tokens);
    cr_assert(request->prompt_count > 16 && request->prompt_count <= FORWARD_HEAD_ROWS);
    for (uint32_t i = 0; i < request->prompt_count; i++)
        request->tokens[i] = (uint32_t)json_integer_value(json_array_get(tokens, i));
    runner_run(runner, request, 1, request->prompt_count, 0);
    cr_assert_eq(request->result_count, request->prompt_count - 1);
    const struct forward *last = &runner->stages[1]; /* whose logits are still those of this one step */
    double worst = worst_row(last, expected, "logits"), worst_half = worst_row(last, expected, "half_logits");
    printf("%s, %s: worst relative difference of a row of logits %.1e, K and V rounded alike %.1e\n", name, isa, worst,
           worst_half);
    cr_expect_lt(worst, 1e-3, "%s on %s: %g", name, isa, worst);
    /* a K or V that lies between two halves may fall either way: 1e-3 of one number among many */
    cr_expect_lt(worst_half, 1e-4, "%s on %s: %g", name, isa, worst_half);
    runner_close(runner);
    free(runner);
    free(request);
    json_decref(expected);
    gguf_close(gguf);
}

Test(archs, logits_are_those_of_transformers)
{
    for (const char *const *isa = kernels_names(); *isa != NULL; isa++)
        for (size_t i = 0; i < ARRAY_COUNT(names); i++)
            compare(names[i], *isa);
}
