#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/runner.h"
#include "tests/tiny_model.h"

/* ---- tiny models: every form, quickly ---- */

#define TINY_REQUESTS 9u
#define TINY_PROMPT   41u
#define TINY_GENERATE 20u

/* Requests that differ in length, so that rows of a step stand at many positions. */
static struct runner_request *tiny_requests(const struct tiny_model *tiny)
{
    struct runner_request *requests = calloc(TINY_REQUESTS, sizeof(*requests));
    cr_assert_not_null(requests);
    for (uint32_t i = 0; i < TINY_REQUESTS; i++) {
        requests[i].prompt_count = TINY_PROMPT + 7 * i;
        requests[i].generate = TINY_GENERATE;
        requests[i].params = (struct sample_params){.temperature = i % 2 ? 0.8f : 0, .top_p = 1, .seed = i};
        for (uint32_t j = 0; j < requests[i].prompt_count; j++)
            requests[i].tokens[j] = (i * 31 + j * j * 17 + 5 * j) % tiny->vocab_size;
    }
    return requests;
}

static uint32_t differing(const struct runner_request *a, const struct runner_request *b, uint32_t count)
{
    uint32_t differ = 0;
    for (uint32_t i = 0; i < count; i++) {
        cr_assert_eq(a[i].result_count, b[i].result_count);
        for (uint32_t j = 0; j < a[i].result_count; j++)
            differ += memcmp(&a[i].results[j], &b[i].results[j], sizeof(a[i].results[j])) != 0;
    }
    return differ;
}

static struct runner_request *tiny_run(const struct tiny_model *tiny, enum kv_type kv_type, uint32_t stages,
                                       uint32_t block_size, uint32_t chunk, uint32_t stagger, uint32_t threads,
                                       uint32_t lone_threads)
{
    struct gguf *gguf = tiny_model_open(tiny);
    struct runner *runner = calloc(1, sizeof(*runner));
    runner_open(runner, gguf, NULL, stages, block_size, kv_type, threads);
    if (lone_threads > 0)
        runner_lend(runner, lone_threads);
    struct runner_request *requests = tiny_requests(tiny);
    runner_run(runner, requests, TINY_REQUESTS, chunk, stagger);
    runner_close(runner);
    free(runner);
    gguf_close(gguf);
    return requests;
}

Test(forward, bits_do_not_depend_on_chunks_company_slices_blocks_or_threads)
{
    static const struct {
        uint32_t stages, block_size, chunk, stagger, threads, lone_threads;
    } cases[] = {{1, 16, 1, 0, 1, 0},     {1, 16, 7, 1, 1, 0},     {1, 16, 32, 5, 2, 0},
                 {2, 16, 200, 0, 1, 0},   {3, 16, 7, 0, 3, 0},     {3, 8, 13, 2, 1, 0},
                 {1, 32, 64, 1, 4, 0},    {2, 64, 200, 0, 2, 0},   {1, 16, 200, 100, 1, 0}, /* one after the other */
                 {1, 16, 200, 100, 2, 0}, {1, 16, 200, 100, 1, 3}, {2, 16, 150, 3, 2, 4}};
    for (uint32_t run = 0; run < TINY_MODEL_VARIANTS * KV_TYPES; run++) {
        uint32_t variant = run / KV_TYPES;
        enum kv_type kv_type = run % KV_TYPES;
        struct tiny_model tiny = tiny_model_variant(variant);
        struct runner_request *expected = tiny_run(&tiny, kv_type, 1, 16, 200, 0, 1, 0);
        for (uint32_t i = 0; i < TINY_REQUESTS; i++)
            cr_assert_eq(expected[i].result_count, TINY_GENERATE);
        for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
            struct runner_request *got = tiny_run(&tiny, kv_type, cases[i].stages, cases[i].block_size, cases[i].chunk,
                                                  cases[i].stagger, cases[i].threads, cases[i].lone_threads);
            cr_expect_eq(differing(expected, got, TINY_REQUESTS), 0, "variant %u, %s, case %zu", variant,
                         kv_type_name(kv_type), i);
            free(got);
        }
        free(expected);
    }
}

/* Rows that carry guesses, most of them right: every token that is taken over has the bits that it has alone. */
Test(forward, bits_do_not_depend_on_drafts)
{
    for (uint32_t run = 0; run < TINY_MODEL_VARIANTS * KV_TYPES; run++) {
        struct tiny_model tiny = tiny_model_variant(run / KV_TYPES);
        enum kv_type kv_type = run % KV_TYPES;
        struct runner_request *expected = tiny_run(&tiny, kv_type, 1, 16, 200, 0, 1, 0);
        struct gguf *gguf = tiny_model_open(&tiny);
        struct runner *runner = calloc(1, sizeof(*runner));
        runner_open(runner, gguf, NULL, 1 + run % 3, run % 2 ? 8 : 16, kv_type, 1 + run % 2);
        struct runner_request *requests = tiny_requests(&tiny);
        uint32_t drafted = 0, accepted = 0;
        for (uint32_t i = 0; i < TINY_REQUESTS; i++) {
            requests[i].guesses = expected[i].results;
            requests[i].drafts_max = i;
        }
        runner_run(runner, requests, TINY_REQUESTS, 32, run % 3);
        cr_expect_eq(differing(expected, requests, TINY_REQUESTS), 0, "variant %u, %s", run / KV_TYPES,
                     kv_type_name(kv_type));
        for (uint32_t i = 0; i < TINY_REQUESTS; i++) {
            drafted += requests[i].drafted;
            accepted += requests[i].accepted;
        }
        cr_expect(accepted > 0 && accepted < drafted, "%u of %u", accepted, drafted);
        runner_close(runner);
        free(runner);
        gguf_close(gguf);
        free(requests);
        free(expected);
    }
}

Test(forward, what_a_helped_step_costs_is_known_from_its_layers_without_help)
{
    struct forward forward = {.help = {.alone_ns = 900, .alone_work = 30}};
    cr_expect_eq(forward_cost_ns(&forward, 1000), 1000, "nobody helped");
    forward.help.lent_ns = 100;
    forward.help.lent_work = 10;
    cr_expect_eq(forward_cost_ns(&forward, 1100), 1000 + 300, "100 besides the layers, 30 a token and layer");
    forward.help.is_head_lent = true;
    cr_expect_eq(forward_cost_ns(&forward, 1100), 0);
    forward.help = (struct forward_help){.alone_ns = 300, .alone_work = 10, .lent_ns = 100, .lent_work = 11};
    cr_expect_eq(forward_cost_ns(&forward, 400), 0, "less than half is too little");
}

Test(forward, a_flipped_weight_bit_changes_every_hash)
{
    struct tiny_model tiny = tiny_model();
    struct runner_request *expected = tiny_run(&tiny, KV_F16, 1, 16, 32, 0, 1, 0);
    tiny.flipped_tensor = "blk.0.attn_v.weight";
    struct runner_request *got = tiny_run(&tiny, KV_F16, 1, 16, 32, 0, 1, 0);
    for (uint32_t i = 0; i < TINY_REQUESTS; i++)
        for (uint32_t j = 0; j < TINY_GENERATE; j++)
            cr_expect_neq(expected[i].results[j].logits_hash, got[i].results[j].logits_hash);
    free(expected);
    free(got);
}

/* ---- the forward pass again, from its definition: doubles, the file's own order of rows, no cache ---- */

struct plain {
    const struct gguf *gguf;
    const struct tiny_model *tiny;
    uint32_t count;
};

static double *plain_weights(const struct plain *plain, const char *name)
{
    const struct gguf_tensor *tensor = gguf_tensor_find(plain->gguf, name);
    cr_assert_not_null(tensor, "%s", name);
    uint32_t k = (uint32_t)tensor->ne[0];
    size_t row_bytes = gguf_row_bytes((enum gguf_type)tensor->type, k);
    double *all = malloc(tensor->ne[0] * tensor->ne[1] * sizeof(double));
    float *row = malloc(k * sizeof(float));
    for (uint64_t i = 0; i < tensor->ne[1]; i++) {
        gguf_dequantize_row(row, (enum gguf_type)tensor->type, (const uint8_t *)tensor->data + i * row_bytes, k);
        for (uint32_t j = 0; j < k; j++)
            all[i * k + j] = (double)row[j];
    }
    free(row);
    return all;
}

/* (count, n) = x (count, k) times the tensor's rows. */
static double *plain_product(const struct plain *plain, const char *name, const double *x, uint32_t n, uint32_t k)
{
    double *w = plain_weights(plain, name), *out = calloc((size_t)plain->count * n, sizeof(double));
    for (uint32_t row = 0; row < plain->count; row++)
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < k; j++)
                out[row * n + i] += x[row * k + j] * w[i * k + j];
    free(w);
    return out;
}

/* Adds the tensor to every row of x (count, n), if it is there. */
static void plain_bias(const struct plain *plain, const char *name, double *x, uint32_t n)
{
    if (gguf_tensor_find(plain->gguf, name) == NULL)
        return;
    double *bias = plain_weights(plain, name);
    for (uint32_t row = 0; row < plain->count; row++)
        for (uint32_t i = 0; i < n; i++)
            x[row * n + i] += bias[i];
    free(bias);
}

/* `rows` rows. */
static double *plain_norm(const struct plain *plain, const char *name, const double *x, uint32_t rows, uint32_t width)
{
    double *gain = plain_weights(plain, name), *out = calloc((size_t)rows * width, sizeof(double));
    for (uint32_t row = 0; row < rows; row++) {
        double sum = 0;
        for (uint32_t i = 0; i < width; i++)
            sum += x[row * width + i] * x[row * width + i];
        for (uint32_t i = 0; i < width; i++)
            out[row * width + i] = x[row * width + i] / sqrt(sum / width + 1e-5) * gain[i];
    }
    free(gain);
    return out;
}

/* The frequency of pair i, and what cosines and sines are times. */
static double plain_frequency(const struct tiny_model *t, double base, uint32_t i, double *magnitude)
{
    double plain = pow(base, -2.0 * i / t->head_dim);
    *magnitude = 1;
    if (t->scaling_type == NULL)
        return plain;
    cr_assert_str_eq(t->scaling_type, "yarn"); /* by 4, from 64 positions */
    *magnitude = 0.1 * log(4) + 1;
    double low = fmax(0, floor(t->head_dim * log(64 / (32 * 2 * M_PI)) / (2 * log(base))));
    double high = fmin(t->head_dim - 1, ceil(t->head_dim * log(64 / (2 * M_PI)) / (2 * log(base))));
    double slowed = fmin(1, fmax(0, (i - low) / (high - low)));
    return plain * (1 - slowed) + plain / 4 * slowed;
}

static void plain_rope(const struct plain *plain, double *x, uint32_t heads, const double *factors, double base)
{
    uint32_t head_dim = plain->tiny->head_dim;
    bool is_interleaved = strcmp(plain->tiny->architecture, "llama") == 0;
    for (uint32_t row = 0; row < plain->count; row++) {
        for (uint32_t head = 0; head < heads; head++) {
            for (uint32_t i = 0; i < head_dim / 2; i++) {
                double *one = x + (row * heads + head) * head_dim + (is_interleaved ? 2 * i : i);
                double *other = one + (is_interleaved ? 1 : head_dim / 2), magnitude;
                double angle = row * plain_frequency(plain->tiny, base, i, &magnitude) / factors[i];
                double even = *one * magnitude, odd = *other * magnitude;
                *one = even * cos(angle) - odd * sin(angle);
                *other = even * sin(angle) + odd * cos(angle);
            }
        }
    }
}

static const char *bias_name(uint32_t layer, const char *name)
{
    static char text[64];
    snprintf(text, sizeof(text), "blk.%u.%s.bias", layer, name);
    return text;
}

static const char *layer_name(uint32_t layer, const char *name)
{
    static char text[64];
    snprintf(text, sizeof(text), "blk.%u.%s.weight", layer, name);
    return text;
}

/* x += the branch, normed first where the model does so. */
static void plain_add(const struct plain *plain, double *x, const double *branch, uint32_t layer, const char *norm)
{
    uint32_t width = plain->tiny->width;
    double *normed = tiny_model_has_post_norms(plain->tiny)
                         ? plain_norm(plain, layer_name(layer, norm), branch, plain->count, width)
                         : NULL;
    for (size_t i = 0; i < (size_t)plain->count * width; i++)
        x[i] += normed != NULL ? normed[i] : branch[i];
    free(normed);
}

/* -ln p(token i + 1 | tokens 0..i) of every token but the last. */
static void plain_nll(const struct plain *plain, const uint32_t *tokens, double *nll)
{
    const struct tiny_model *t = plain->tiny;
    uint32_t n = plain->count, width = t->width, hd = t->head_dim, q_width = t->heads * hd, kv_width = t->kv_heads * hd;
    double factors[128];
    for (uint32_t i = 0; i < hd / 2; i++)
        factors[i] = 1;
    if (t->has_rope_factors) {
        double *given = plain_weights(plain, "rope_freqs.weight");
        memcpy(factors, given, hd / 2 * sizeof(double));
        free(given);
    }
    double *embedding = plain_weights(plain, "token_embd.weight");
    double *x = malloc((size_t)n * width * sizeof(double));
    for (uint32_t i = 0; i < n; i++)
        memcpy(x + i * width, embedding + tokens[i] * width, width * sizeof(double));
    free(embedding);
    bool is_gemma = strcmp(t->architecture, "gemma3") == 0;
    for (size_t i = 0; i < (size_t)n * width && is_gemma; i++)
        x[i] *= sqrt(width);
    for (uint32_t layer = 0; layer < t->layers; layer++) {
        bool has_window = is_gemma ? layer % t->window_pattern + 1 < t->window_pattern : t->window > 0;
        double base = is_gemma && has_window ? 10000 : t->rope_base;
        double *h = plain_norm(plain, layer_name(layer, "attn_norm"), x, n, width);
        double *q = plain_product(plain, layer_name(layer, "attn_q"), h, q_width, width);
        double *k = plain_product(plain, layer_name(layer, "attn_k"), h, kv_width, width);
        double *v = plain_product(plain, layer_name(layer, "attn_v"), h, kv_width, width);
        double *mixed = calloc((size_t)n * q_width, sizeof(double)), *score = malloc(n * sizeof(double));
        plain_bias(plain, bias_name(layer, "attn_q"), q, q_width);
        plain_bias(plain, bias_name(layer, "attn_k"), k, kv_width);
        plain_bias(plain, bias_name(layer, "attn_v"), v, kv_width);
        if (tiny_model_has_qk_norm(t)) {
            double *old_q = q, *old_k = k;
            q = plain_norm(plain, layer_name(layer, "attn_q_norm"), q, n * t->heads, hd);
            k = plain_norm(plain, layer_name(layer, "attn_k_norm"), k, n * t->kv_heads, hd);
            free(old_q), free(old_k);
        }
        plain_rope(plain, q, t->heads, factors, base);
        plain_rope(plain, k, t->kv_heads, factors, base);
        for (uint32_t row = 0; row < n; row++) {
            for (uint32_t head = 0; head < t->heads; head++) {
                uint32_t shared = head / (t->heads / t->kv_heads);
                double sum = 0;
                uint32_t first = has_window && row + 1 > t->window ? row + 1 - t->window : 0;
                for (uint32_t at = first; at <= row; at++) {
                    double dot = 0;
                    for (uint32_t i = 0; i < hd; i++)
                        dot += q[row * q_width + head * hd + i] * k[at * kv_width + shared * hd + i];
                    sum += score[at] = exp(dot / sqrt(hd));
                }
                for (uint32_t at = first; at <= row; at++)
                    for (uint32_t i = 0; i < hd; i++)
                        mixed[row * q_width + head * hd + i] += score[at] / sum * v[at * kv_width + shared * hd + i];
            }
        }
        double *branch = plain_product(plain, layer_name(layer, "attn_output"), mixed, width, q_width);
        plain_add(plain, x, branch, layer, "post_attention_norm");
        free(h), free(q), free(k), free(v), free(mixed), free(score), free(branch);
        h = plain_norm(plain, layer_name(layer, "ffn_norm"), x, n, width);
        double *gate = plain_product(plain, layer_name(layer, "ffn_gate"), h, t->feed_forward, width);
        double *up = plain_product(plain, layer_name(layer, "ffn_up"), h, t->feed_forward, width);
        for (size_t i = 0; i < (size_t)n * t->feed_forward; i++)
            up[i] *= is_gemma ? 0.5 * gate[i] * (1 + tanh(sqrt(2 / M_PI) * (gate[i] + 0.044715 * pow(gate[i], 3))))
                              : gate[i] / (1 + exp(-gate[i]));
        branch = plain_product(plain, layer_name(layer, "ffn_down"), up, width, t->feed_forward);
        plain_bias(plain, bias_name(layer, "ffn_down"), branch, width);
        plain_add(plain, x, branch, layer, "post_ffw_norm");
        free(h), free(gate), free(up), free(branch);
    }
    double *h = plain_norm(plain, "output_norm.weight", x, n, width);
    double *logits = plain_product(plain, t->tied ? "token_embd.weight" : "output.weight", h, t->vocab_size, width);
    for (uint32_t row = 0; row + 1 < n; row++) {
        double sum = 0;
        for (uint32_t i = 0; i < t->vocab_size; i++)
            sum += exp(logits[row * t->vocab_size + i]);
        nll[row] = log(sum) - logits[row * t->vocab_size + tokens[row + 1]];
    }
    free(h), free(logits), free(x);
}

static double tiny_difference(const struct tiny_model *tiny)
{
    struct gguf *gguf = tiny_model_open(tiny);
    struct runner *runner = calloc(1, sizeof(*runner));
    runner_open(runner, gguf, NULL, 2, 16, KV_F16, 1);
    struct runner_request *requests = tiny_requests(tiny);
    requests[0].is_score = true;
    requests[0].generate = 0;
    runner_run(runner, requests, 1, 9, 0);
    cr_assert_eq(requests[0].result_count, TINY_PROMPT - 1);
    const struct plain plain = {.gguf = gguf, .tiny = tiny, .count = TINY_PROMPT};
    double nll[TINY_PROMPT], worst = 0;
    plain_nll(&plain, requests[0].tokens, nll);
    for (uint32_t i = 0; i + 1 < TINY_PROMPT; i++) {
        cr_assert_eq(requests[0].results[i].token, requests[0].tokens[i + 1]);
        worst = fmax(worst, fabs(nll[i] + (double)requests[0].results[i].logprob));
    }
    runner_close(runner);
    free(runner);
    free(requests);
    gguf_close(gguf);
    return worst;
}

/* With float weights nothing is rounded but K and V, to 11 bits: what is left is far below any mistake's effect. Quantised
 * ones take int8 activations: 7 bits. */
Test(forward, equals_its_definition_in_doubles)
{
    static const bool is_float[TINY_MODEL_VARIANTS] = {[2] = true, [5] = true, [6] = true, [7] = true, [9] = true};
    for (uint32_t variant = 0; variant < TINY_MODEL_VARIANTS; variant++) {
        struct tiny_model tiny = tiny_model_variant(variant);
        double worst = tiny_difference(&tiny);
        cr_expect_lt(worst, is_float[variant] ? 2e-3 : 5e-2, "variant %u: worst difference of a token's loss: %g",
                     variant, worst);
    }
}

/* ---- the real model ---- */

static struct gguf *real_model(void)
{
    const char *path = getenv("EVENFLOW_TEST_MODEL");
    if (path == NULL)
        path = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
    struct err err = {0};
    struct gguf *gguf = NULL;
    cr_assert_eq(access(path, R_OK), 0, "%s is missing: run `make model`", path);
    cr_assert_eq(gguf_open(&gguf, path, &err), 0, "%s", err.text);
    return gguf;
}

/* Tokens of the page, and their losses in a float64 pass over the same weights (data/reference_nll.py). */
static uint32_t read_page(uint32_t *tokens, double *nll)
{
    json_error_t error;
    json_t *page = json_load_file("tests/data/page_nll.json", 0, &error);
    cr_assert_not_null(page, "tests/data/page_nll.json: %s", error.text);
    const json_t *ids = json_object_get(page, "tokens"), *losses = json_object_get(page, "nll");
    uint32_t count = (uint32_t)json_array_size(ids);
    cr_assert(count > 600 && count <= RUNNER_TOKENS_MAX && json_array_size(losses) == count - 1);
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
        if (i > 0)
            nll[i - 1] = json_number_value(json_array_get(losses, i - 1));
    }
    json_decref(page);
    return count;
}

/* 0.045 nats: what int8 activations in groups of 32 cost elsewhere on this file (llama.cpp: 0.043 on its text). */
static void expect_losses_of_a_page(enum kv_type kv_type, double mean_max)
{
    struct gguf *gguf = real_model();
    struct runner *runner = calloc(1, sizeof(*runner));
    struct runner_request *page = calloc(1, sizeof(*page));
    static double nll[RUNNER_TOKENS_MAX];
    runner_open(runner, gguf, NULL, 1, 32, kv_type, 1);
    page->prompt_count = read_page(page->tokens, nll);
    page->is_score = true;
    runner_run(runner, page, 1, 256, 0);
    cr_assert_eq(page->result_count, page->prompt_count - 1);
    double sum = 0, bias = 0, worst = 0;
    for (uint32_t i = 0; i < page->result_count; i++) {
        double difference = -(double)page->results[i].logprob - nll[i];
        sum += fabs(difference);
        bias += difference;
        worst = fmax(worst, fabs(difference));
    }
    double mean = sum / page->result_count;
    printf("loss per token against float64: mean |difference| %.4f nats, mean difference %+.4f, worst %.3f (%s, %s)\n",
           mean, bias / page->result_count, worst, runner->kernels->name, kv_type_name(kv_type));
    cr_expect_leq(mean, mean_max);
    runner_close(runner);
    free(runner);
    free(page);
    gguf_close(gguf);
}

Test(forward, losses_of_a_page_are_those_of_a_float64_pass, .timeout = 300)
{
    expect_losses_of_a_page(KV_F16, 0.045);
}

/* Bytes instead of f16 in the cache cost 0.011 more on this page. */
Test(forward, a_cache_of_bytes_costs_little_accuracy, .timeout = 300)
{
    expect_losses_of_a_page(KV_Q8, 0.05);
}

#define REAL_REQUESTS 6u
#define REAL_PROMPT   40u
#define REAL_GENERATE 12u

static struct runner_request *real_run(const struct gguf *gguf, enum kv_type kv_type, uint32_t stages,
                                       uint32_t block_size, uint32_t chunk, uint32_t stagger, uint32_t threads,
                                       uint32_t lone_threads)
{
    static double nll[RUNNER_TOKENS_MAX];
    uint32_t page[RUNNER_TOKENS_MAX];
    read_page(page, nll);
    struct runner *runner = calloc(1, sizeof(*runner));
    struct runner_request *requests = calloc(REAL_REQUESTS, sizeof(*requests));
    runner_open(runner, gguf, NULL, stages, block_size, kv_type, threads);
    if (lone_threads > 0)
        runner_lend(runner, lone_threads);
    for (uint32_t i = 0; i < REAL_REQUESTS; i++) {
        requests[i].prompt_count = REAL_PROMPT + 5 * i;
        requests[i].generate = REAL_GENERATE;
        memcpy(requests[i].tokens, page + 90 * i, requests[i].prompt_count * sizeof(uint32_t));
    }
    runner_run(runner, requests, REAL_REQUESTS, chunk, stagger);
    runner_close(runner);
    free(runner);
    return requests;
}

Test(forward, bits_of_the_real_model_do_not_depend_on_chunks_company_slices_blocks_or_threads, .timeout = 300)
{
    static const struct {
        uint32_t stages, block_size, chunk, stagger, threads, lone_threads;
    } cases[] = {{1, 16, 1, 0, 2, 0},
                 {2, 32, 7, 1, 1, 2},
                 {3, 8, 32, 0, 3, 0},
                 {5, 64, 200, 60, 1, 0} /* one after the other */};
    struct gguf *gguf = real_model();
    for (enum kv_type kv_type = KV_F16; kv_type < KV_TYPES; kv_type++) {
        struct runner_request *expected = real_run(gguf, kv_type, 1, 32, 200, 0, 1, 0);
        for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
            struct runner_request *got = real_run(gguf, kv_type, cases[i].stages, cases[i].block_size, cases[i].chunk,
                                                  cases[i].stagger, cases[i].threads, cases[i].lone_threads);
            cr_expect_eq(differing(expected, got, REAL_REQUESTS), 0, "%s, case %zu", kv_type_name(kv_type), i);
            free(got);
        }
        free(expected);
    }
    gguf_close(gguf);
}
