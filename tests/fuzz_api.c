/* fuzz_api.c - bodies of requests: each gives a request within the limits, or one error that can be sent. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api.h"
#include "tests/fuzz.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

static struct plan plan;
static struct tok tok;
static struct api api;

static void set_up(void)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err;
    plan = plan_for_tests();
    plan.body_bytes_max = 8192;
    tiny_vocab_plan(&plan, vocab_bytes);
    check(tok_attach(&tok, blob, vocab_bytes, api_text_bytes(&plan), &err) == 0);
    check(api_open(&api, &plan, &tok, &err) == 0);
}

static bool is_valid_utf8(const char *text, size_t size)
{
    char *copy = malloc(3 * size + 1);
    check(copy != NULL);
    bool is_valid = json_valid_utf8(copy, (const uint8_t *)text, size) == size && memcmp(copy, text, size) == 0;
    free(copy);
    return is_valid;
}

static void expect_error(const struct api_error *error)
{
    char json[API_ERROR_JSON_MAX];
    struct json_writer writer = {json, 0, sizeof(json)};
    check(error->status >= 400 && error->status <= 599 && error->message[0] != '\0');
    api_write_error(&writer, error);
    check(writer.size >= 2 && json[0] == '{' && json[writer.size - 1] == '}' && is_valid_utf8(json, writer.size));
}

static uint32_t control_count(const struct api_request *request)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < request->prompt_tokens; i++)
        count += tok_is_control(&tok, request->prompt[i]);
    return count;
}

/* What a client writes never becomes a control token: in a chat there are two of each turn and the one that begins the
 * assistant's unless the request wants none, with or without the model's default turn in front. */
static void expect_no_control(const char *body, size_t size, const struct api_request *request)
{
    json_t *root = json_loadb(body, size, JSON_ALLOW_NUL, NULL);
    size_t turns = json_array_size(json_object_get(root, "messages"));
    size_t begun = json_is_false(json_object_get(root, "add_generation_prompt")) ? 0 : 1;
    json_decref(root);
    check(control_count(request) == 2 * turns + begun || control_count(request) == 2 * turns + begun + 2);
}

static void expect_request(const struct api_request *request)
{
    check(request->prompt_tokens > 0 && request->prompt_tokens <= api.tokens_max);
    check(request->prompt_tokens + request->max_tokens <= api.tokens_max);
    check(request->min_tokens <= request->max_tokens);
    check(request->choices >= 1 && request->choices <= CHOICES_MAX);
    check(request->temperature >= 0 && request->top_p > 0 && request->top_p <= 1);
    check(request->min_p >= 0 && request->min_p <= 1);
    check(request->stop_token_count <= STOP_TOKENS_MAX);
    for (uint32_t i = 0; i < request->prompt_tokens; i++)
        check(request->prompt[i] < plan.vocab_size);
    for (uint32_t i = 0; i < request->stop_token_count; i++)
        check(request->stop_tokens[i] < plan.vocab_size);
    size_t used = 0;
    for (uint32_t i = 0; i < request->format.stop_count; i++) {
        check(request->format.stop_size[i] > 0 && request->format.stop_size[i] <= STOP_BYTES_MAX);
        used += request->format.stop_size[i];
    }
    check(used <= sizeof(request->format.stops) && is_valid_utf8(request->format.stops, used));
}

static void parse(enum api_endpoint endpoint, const char *body, size_t size)
{
    static struct api_request first, second;
    static struct api_error error, error_again;
    int ret = api_parse(&api, endpoint, body, size, &first, &error);
    if (ret != 0) {
        expect_error(&error);
        check(api_parse(&api, endpoint, body, size, &second, &error_again) != 0);
        check(error.status == error_again.status && strcmp(error.message, error_again.message) == 0);
        return;
    }
    expect_request(&first);
    while (first.prompt_index + 1 < first.prompt_count) {
        if (api_next_prompt(&api, &first, &error) != 0) {
            expect_error(&error);
            return;
        }
        expect_request(&first);
    }
    check(api_parse(&api, endpoint, body, size, &second, &error) == 0);
    while (second.prompt_index + 1 < second.prompt_count)
        check(api_next_prompt(&api, &second, &error) == 0);
    check(first.prompt_tokens == second.prompt_tokens && first.max_tokens == second.max_tokens &&
          first.seed == second.seed && first.flags == second.flags);
    if (endpoint == API_CHAT_COMPLETIONS)
        expect_no_control(body, size, &first);
}

static void answer_at_once(bool is_tokenize, const char *body, size_t size)
{
    static char text[65536];
    struct json_writer writer = {text, 0, sizeof(text)};
    struct api_error error;
    int ret = is_tokenize ? api_tokenize(&api, body, size, &writer, &error)
                          : api_detokenize(&api, body, size, &writer, &error);
    if (ret != 0)
        expect_error(&error);
    else
        check(writer.size >= 2 && text[0] == '{' && text[writer.size - 1] == '}' && is_valid_utf8(text, writer.size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (api.plan == NULL)
        set_up();
    struct fuzz_input input = {data, size};
    uint8_t kind = fuzz_byte(&input);
    if (input.size > plan.body_bytes_max)
        return 0;
    const char *body = (const char *)input.data;
    switch (kind) {
    case 'c':
        parse(API_CHAT_COMPLETIONS, body, input.size);
        break;
    case 't':
        answer_at_once(true, body, input.size);
        break;
    case 'd':
        answer_at_once(false, body, input.size);
        break;
    default:
        parse(API_COMPLETIONS, body, input.size);
    }
    return 0;
}
