#include "engine/api.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_arena.h"
#include "ipc/journal.h"

/* Values of a body: an array of ids costs 32 bytes an element and its table, twice over while it grows; other bodies some
 * multiple of their own size. What does not fit is refused. */
#define VALUES_BASE      ((size_t)4 << 20)
#define VALUES_PER_TOKEN 64u
#define VALUES_PER_BYTE  8u

size_t api_text_bytes(const struct plan *plan)
{
    /* a turn adds fewer characters around its content than the body has around it in JSON; then a template's own words */
    return 2 * (size_t)plan->body_bytes_max + 65536;
}

int api_open(struct api *api, const struct plan *plan, const struct tok *tok, struct err *err)
{
    uint64_t kv_tokens = (uint64_t)plan->num_blocks * plan->block_size;
    *api = (struct api){.plan = plan, .tok = tok, .tokens_max = (uint32_t)min_u64(plan->max_model_len, kv_tokens)};
    api->tokens = base_alloc(((size_t)api->tokens_max + 2) * sizeof(*api->tokens));
    api->biases = base_alloc(2 * LOGIT_BIAS_MAX * sizeof(*api->biases));
    api->text_bytes = api_text_bytes(plan);
    api->text = base_reserve(64, api->text_bytes); /* a template's output: few are as long */
    grammar_open(&api->grammar, tok);
    json_arena_open(VALUES_BASE + (size_t)VALUES_PER_TOKEN * api->tokens_max +
                    (size_t)VALUES_PER_BYTE * plan->body_bytes_max);
    return chat_template_open(&api->chat, tok, plan->body_bytes_max, err);
}

/* ---- errors ---- */

int api_fail(struct api_error *error, int status, const char *param, const char *code, const char *format, ...)
{
    error->status = status;
    error->type = status >= 500 ? "server_error" : status == 429 ? "rate_limit_error" : "invalid_request_error";
    error->code = code;
    snprintf(error->param, sizeof(error->param), "%s", param);
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof(error->message), format, args);
    va_end(args);
    return -1;
}

void api_write_error(struct json_writer *writer, const struct api_error *error)
{
    char valid[3 * sizeof(error->message)]; /* the text may quote the client's, cut anywhere */
    json_text(writer, "{\"error\":{\"message\":");
    json_quoted(writer, valid, json_valid_utf8(valid, (const uint8_t *)error->message, strlen(error->message)));
    json_text(writer, ",\"type\":");
    json_quoted(writer, error->type, strlen(error->type));
    json_text(writer, ",\"param\":");
    if (error->param[0] != '\0')
        json_quoted(writer, valid, json_valid_utf8(valid, (const uint8_t *)error->param, strlen(error->param)));
    else
        json_text(writer, "null");
    json_text(writer, ",\"code\":");
    if (error->code != NULL)
        json_quoted(writer, error->code, strlen(error->code));
    else
        json_text(writer, "null");
    json_text(writer, "}}");
}

/* ---- fields ---- */

struct body {
    struct api *api;
    json_t *root;
    uint64_t names; /* a bit of each field's name: see bit_of() */
    struct api_error *error;
};

/* Most of the fields that are asked for are not there, which one bit tells without a look-up: of the first three letters,
 * with weights that set the names of common fields apart. */
static uint64_t bit_of(const char *name)
{
    uint32_t sum = (unsigned char)name[0] * 5u;
    if (sum > 0 && name[1] != '\0')
        sum += (unsigned char)name[1] * 8u + (unsigned char)name[2];
    return 1ull << sum % 64;
}

static struct body body_of(struct api *api, json_t *root, struct api_error *error)
{
    struct body b = {.api = api, .root = root, .error = error};
    const char *name;
    json_t *value;
    json_object_foreach(root, name, value)
        b.names |= bit_of(name);
    return b;
}

static int load_body(struct body *b, struct api *api, const char *text, size_t size, struct api_error *error)
{
    json_arena_reset();
    *b = (struct body){.api = api, .error = error};
    json_error_t problem;
    if (size == 0)
        return api_fail(error, 400, "", "invalid_json", "the body is empty; it must be a JSON object");
    b->root = json_loadb(text, size, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &problem);
    /* jansson says nothing when its memory runs out */
    if (b->root == NULL && (problem.text[0] == '\0' || json_error_code(&problem) == json_error_out_of_memory))
        return api_fail(error, 413, "", "body_too_large", "the body holds more values than this server has memory for");
    if (b->root == NULL)
        return api_fail(error, 400, "", "invalid_json", "the body is not valid JSON: line %d, column %d: %s",
                        problem.line, problem.column, problem.text);
    if (!json_is_object(b->root))
        return api_fail(error, 400, "", "invalid_json", "the body must be a JSON object");
    *b = body_of(api, b->root, error);
    return 0;
}

/* NULL when absent or null. */
static json_t *field(const struct body *b, const char *name)
{
    json_t *value = b->names & bit_of(name) ? json_object_get(b->root, name) : NULL;
    return json_is_null(value) ? NULL : value;
}

#define FAIL(b, param, ...) api_fail((b)->error, 400, param, "invalid_value", __VA_ARGS__)

static int get_bool(const struct body *b, const char *name, bool *value)
{
    json_t *json = field(b, name);
    if (json == NULL)
        return 0;
    if (!json_is_boolean(json))
        return FAIL(b, name, "%s must be true or false", name);
    *value = json_is_true(json);
    return 0;
}

static int get_integer(const struct body *b, const char *name, int64_t min, int64_t max, int64_t *value)
{
    json_t *json = field(b, name);
    if (json == NULL)
        return 0;
    if (!json_is_integer(json))
        return FAIL(b, name, "%s must be an integer from %lld to %lld", name, (long long)min, (long long)max);
    *value = json_integer_value(json);
    if (*value < min || *value > max)
        return FAIL(b, name, "%s is %lld; it must be from %lld to %lld", name, (long long)*value, (long long)min,
                    (long long)max);
    return 0;
}

static int get_float(const struct body *b, const char *name, double min, double max, float *value)
{
    json_t *json = field(b, name);
    if (json == NULL)
        return 0;
    if (!json_is_number(json))
        return FAIL(b, name, "%s must be a number from %g to %g", name, min, max);
    double given = json_number_value(json);
    if (!(given >= min && given <= max))
        return FAIL(b, name, "%s is %g; it must be from %g to %g", name, given, min, max);
    *value = (float)given;
    return 0;
}

/* More than 0. */
static int get_positive(const struct body *b, const char *name, double max, float *value)
{
    json_t *json = field(b, name);
    if (json == NULL)
        return 0;
    double given = json_number_value(json);
    if (!json_is_number(json) || !(given > 0 && given <= max))
        return FAIL(b, name, "%s must be a number more than 0 and at most %g", name, max);
    *value = (float)given;
    return 0;
}

/* Known to others, not honoured here: only a value that asks for nothing is let pass. */
static const struct {
    const char *name;
    double neutral;
} unsupported_numbers[] = {{"best_of", 1}, {"prompt_logprobs", 0}, {"length_penalty", 1}};
static const struct {
    const char *name;
    bool neutral;
} unsupported_switches[] = {
    {"include_stop_str_in_output", false}, {"use_beam_search", false}, {"skip_special_tokens", true}};
static const char *const unsupported_others[] = {"suffix",
                                                 "functions",
                                                 "audio",
                                                 "guided_grammar",
                                                 "bad_words",
                                                 "allowed_token_ids",
                                                 "logits_processors",
                                                 "truncate_prompt_tokens"};

static int refuse(const struct body *b, const char *name, const char *instead)
{
    return api_fail(b->error, 400, name, "unsupported_parameter", "%s is not supported by this server; leave it out%s",
                    name, instead);
}

/* The best of n answers, of which n are returned: that is all of them. */
static bool is_best_of_all(const struct body *b, const char *name, json_t *value)
{
    return strcmp(name, "best_of") == 0 && json_is_integer(value) && json_equal(value, field(b, "n"));
}

static bool is_empty(const json_t *value)
{
    return (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

static int refuse_unsupported(const struct body *b)
{
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_numbers); i++) {
        const char *name = unsupported_numbers[i].name;
        double neutral = unsupported_numbers[i].neutral;
        json_t *value = field(b, name);
        bool asks_nothing = json_is_number(value) && json_number_value(value) == neutral;
        if (value != NULL && !asks_nothing && !is_best_of_all(b, name, value)) {
            char instead[32];
            snprintf(instead, sizeof(instead), " or give %g", neutral);
            return refuse(b, name, instead);
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_switches); i++) {
        bool neutral = unsupported_switches[i].neutral, value = neutral;
        if (get_bool(b, unsupported_switches[i].name, &value) != 0)
            return -1;
        if (value != neutral)
            return refuse(b, unsupported_switches[i].name, neutral ? " or give true" : " or give false");
    }
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_others); i++) {
        json_t *value = field(b, unsupported_others[i]);
        if (value != NULL && !is_empty(value))
            return refuse(b, unsupported_others[i], "");
    }
    return 0;
}

static bool is_unsupported(const char *key)
{
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_numbers); i++)
        if (strcmp(key, unsupported_numbers[i].name) == 0)
            return true;
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_switches); i++)
        if (strcmp(key, unsupported_switches[i].name) == 0)
            return true;
    for (size_t i = 0; i < ARRAY_COUNT(unsupported_others); i++)
        if (strcmp(key, unsupported_others[i]) == 0)
            return true;
    return false;
}

/* What the functions below and chat.c look at. */
static bool is_supported(const char *key, enum api_endpoint endpoint)
{
    static const char *const common[] = {"model",
                                         "max_tokens",
                                         "max_completion_tokens",
                                         "min_tokens",
                                         "temperature",
                                         "top_p",
                                         "top_k",
                                         "min_p",
                                         "seed",
                                         "n",
                                         "stop",
                                         "stop_token_ids",
                                         "ignore_eos",
                                         "stream",
                                         "stream_options",
                                         "priority",
                                         "user",
                                         "return_token_ids",
                                         "return_logits_hash",
                                         "logprobs",
                                         "presence_penalty",
                                         "frequency_penalty",
                                         "repetition_penalty",
                                         "logit_bias",
                                         "tools",
                                         "guided_json",
                                         "guided_regex",
                                         "guided_choice",
                                         "structured_outputs",
                                         "response_format"};
    static const char *const special[2][8] = {
        [API_COMPLETIONS] = {"prompt", "echo", "parse_special", "add_special_tokens"},
        [API_CHAT_COMPLETIONS] = {"messages", "top_logprobs", "tool_choice", "chat_template_kwargs",
                                  "add_generation_prompt", "documents", "parallel_tool_calls"}};
    for (size_t i = 0; i < ARRAY_COUNT(special[endpoint]) && special[endpoint][i] != NULL; i++)
        if (strcmp(key, special[endpoint][i]) == 0)
            return true;
    for (size_t i = 0; i < ARRAY_COUNT(common); i++)
        if (key[0] == common[i][0] && strcmp(key, common[i]) == 0)
            return true;
    return false;
}

static uint32_t count_unknown(const struct body *b, enum api_endpoint endpoint)
{
    uint32_t unknown = 0;
    const char *key;
    json_t *value;
    json_object_foreach(b->root, key, value)
        unknown += !is_supported(key, endpoint) && !is_unsupported(key);
    return unknown;
}

static int get_model(const struct body *b)
{
    json_t *model = field(b, "model");
    if (model == NULL)
        return 0;
    if (!json_is_string(model))
        return FAIL(b, "model", "model must be a string");
    if (strcmp(json_string_value(model), b->api->plan->served_model_name) != 0)
        return api_fail(b->error, 404, "model", "model_not_found",
                        "the model '%.100s' does not exist here; '%.100s' does", json_string_value(model),
                        b->api->plan->served_model_name);
    return 0;
}

/* Fields that change nothing here, but must be what they are said to be. */
static int get_others(const struct body *b, enum api_endpoint endpoint)
{
    json_t *user = field(b, "user");
    bool parallel = true;
    if (user != NULL && !json_is_string(user))
        return FAIL(b, "user", "user must be a string");
    return endpoint == API_CHAT_COMPLETIONS ? get_bool(b, "parallel_tool_calls", &parallel) : 0;
}

static int get_stops(const struct body *b, struct answer_format *format)
{
    json_t *stop = field(b, "stop");
    if (stop == NULL)
        return 0;
    if (!json_is_string(stop) && !json_is_array(stop))
        return FAIL(b, "stop", "stop must be a string or a list of at most %u strings", STOP_STRINGS_MAX);
    size_t count = json_is_array(stop) ? json_array_size(stop) : 1, used = 0;
    if (count > STOP_STRINGS_MAX)
        return FAIL(b, "stop", "stop holds %zu strings; at most %u are allowed", count, STOP_STRINGS_MAX);
    for (size_t i = 0; i < count; i++) {
        json_t *one = json_is_array(stop) ? json_array_get(stop, i) : stop;
        size_t size = json_string_length(one);
        if (!json_is_string(one) || size == 0 || size > STOP_BYTES_MAX)
            return FAIL(b, "stop", "stop: each must be a string of 1 to %u bytes", STOP_BYTES_MAX);
        if (size > STOP_ALL_MAX - used)
            return FAIL(b, "stop", "stop: all together may have %u bytes", STOP_ALL_MAX);
        memcpy(format->stops + used, json_string_value(one), size);
        used += size;
        format->stop_size[format->stop_count++] = (uint32_t)size;
    }
    return 0;
}

static bool is_token(const struct body *b, json_t *json)
{
    return json_is_integer(json) && json_integer_value(json) >= 0 &&
           json_integer_value(json) < (json_int_t)b->api->plan->vocab_size;
}

static int get_stop_tokens(const struct body *b, struct api_request *request)
{
    json_t *stops = field(b, "stop_token_ids");
    if (stops == NULL)
        return 0;
    if (!json_is_array(stops) || json_array_size(stops) > STOP_TOKENS_MAX)
        return FAIL(b, "stop_token_ids", "stop_token_ids must be a list of at most %u token ids", STOP_TOKENS_MAX);
    for (size_t i = 0; i < json_array_size(stops); i++) {
        json_t *id = json_array_get(stops, i);
        if (!is_token(b, id))
            return FAIL(b, "stop_token_ids", "stop_token_ids: each must be an integer from 0 to %u",
                        b->api->plan->vocab_size - 1);
        request->stop_tokens[request->stop_token_count++] = (uint32_t)json_integer_value(id);
    }
    return 0;
}

static int get_stream(const struct body *b, struct answer_format *format)
{
    bool is_stream = false, includes_usage = false;
    if (get_bool(b, "stream", &is_stream) != 0)
        return -1;
    json_t *options = field(b, "stream_options");
    if (options != NULL && !json_is_object(options))
        return FAIL(b, "stream_options", "stream_options must be an object");
    if (options != NULL && !is_stream)
        return FAIL(b, "stream_options", "stream_options is allowed only when stream is true");
    json_t *usage = json_object_get(options, "include_usage");
    if (usage != NULL && !json_is_null(usage) && !json_is_boolean(usage))
        return FAIL(b, "stream_options.include_usage", "stream_options.include_usage must be true or false");
    includes_usage = json_is_true(usage);
    format->is_stream = is_stream;
    format->includes_usage = includes_usage;
    return 0;
}

/* {"token id": bias}. Ids are strings, as JSON has it. */
static int get_biases(const struct body *b, struct api_request *request)
{
    json_t *biases = field(b, "logit_bias"), *value;
    const char *key;
    if (biases == NULL)
        return 0;
    if (!json_is_object(biases) || json_object_size(biases) > LOGIT_BIAS_MAX)
        return FAIL(b, "logit_bias", "logit_bias must be an object of at most %u token ids and numbers",
                    LOGIT_BIAS_MAX);
    request->biases = b->api->biases;
    json_object_foreach(biases, key, value) {
        char *end;
        unsigned long token = strtoul(key, &end, 10);
        bool is_id = key[0] >= '0' && key[0] <= '9' && *end == '\0' && token < b->api->plan->vocab_size &&
                     (key[0] != '0' || end == key + 1); /* each token has one name */
        if (!is_id)
            return FAIL(b, "logit_bias", "logit_bias: '%.40s' is not a token id from 0 to %u", key,
                        b->api->plan->vocab_size - 1);
        double given = json_number_value(value);
        if (!json_is_number(value) || !(given >= -100 && given <= 100))
            return FAIL(b, "logit_bias", "logit_bias: the bias of token %lu must be a number from -100 to 100", token);
        float bias = (float)given;
        uint32_t *pair = b->api->biases + 2 * (size_t)request->bias_count++;
        pair[0] = (uint32_t)token;
        memcpy(&pair[1], &bias, sizeof(bias));
    }
    return 0;
}

static int get_penalties(const struct body *b, struct api_request *request)
{
    if (get_float(b, "presence_penalty", -2, 2, &request->presence_penalty) != 0 ||
        get_float(b, "frequency_penalty", -2, 2, &request->frequency_penalty) != 0 ||
        get_positive(b, "repetition_penalty", 100, &request->repetition_penalty) != 0)
        return -1;
    return get_biases(b, request);
}

static int get_sampling(const struct body *b, struct api_request *request)
{
    int64_t seed = 0, top_k = 0, priority = 0, choices = 1;
    bool ignores_eos = false;
    if (get_float(b, "temperature", 0, 100, &request->temperature) != 0 ||
        get_positive(b, "top_p", 1, &request->top_p) != 0 || get_float(b, "min_p", 0, 1, &request->min_p) != 0 ||
        get_integer(b, "top_k", -1, INT32_MAX, &top_k) != 0 ||
        get_integer(b, "seed", INT64_MIN, INT64_MAX, &seed) != 0 ||
        get_integer(b, "priority", INT32_MIN, INT32_MAX, &priority) != 0 ||
        get_integer(b, "n", 1, CHOICES_MAX, &choices) != 0 || get_bool(b, "ignore_eos", &ignores_eos) != 0)
        return -1;
    request->top_k = top_k < 0 || top_k >= (int64_t)b->api->plan->vocab_size ? 0 : (uint32_t)top_k;
    request->has_seed = field(b, "seed") != NULL;
    request->seed = (uint64_t)seed;
    request->priority = (int32_t)priority;
    request->choices = (uint32_t)choices;
    request->flags |= ignores_eos ? REQUEST_IGNORE_EOS : 0;
    return 0;
}

static int get_returns(const struct body *b, enum api_endpoint endpoint, struct api_request *request)
{
    bool token_ids = false, hash = false, wants = false;
    int64_t count = -1;
    if (get_bool(b, "return_token_ids", &token_ids) != 0 || get_bool(b, "return_logits_hash", &hash) != 0)
        return -1;
    if (endpoint == API_CHAT_COMPLETIONS) {
        if (get_bool(b, "logprobs", &wants) != 0 || get_integer(b, "top_logprobs", 0, LOGPROBS_MAX, &count) != 0)
            return -1;
        if (count > 0 && !wants)
            return FAIL(b, "top_logprobs", "top_logprobs is allowed only when logprobs is true");
    } else {
        if (get_integer(b, "logprobs", 0, LOGPROBS_MAX, &count) != 0)
            return -1;
        wants = count >= 0;
    }
    request->top_logprobs = count > 0 ? (uint32_t)count : 0;
    request->format.returns_token_ids = token_ids;
    request->format.returns_logits_hash = hash;
    request->format.returns_logprobs = wants;
    request->flags |= (hash ? REQUEST_LOGITS_HASH : 0) | (wants ? REQUEST_LOGPROB : 0);
    return 0;
}

/* ---- structured output ---- */

/* What a field asks for; NULL in `name`: nothing so far. */
struct wanted_grammar {
    const char *name;
    enum grammar_kind kind;
    json_t *value;
};

static int want(const struct body *b, struct wanted_grammar *wanted, const char *name, enum grammar_kind kind,
                json_t *value)
{
    if (wanted->name != NULL)
        return FAIL(b, name, "%s and %s: an answer can keep to one of them only", wanted->name, name);
    *wanted = (struct wanted_grammar){name, kind, value};
    return 0;
}

/* {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}} */
static int want_format(const struct body *b, struct wanted_grammar *wanted)
{
    static const char name[] = "response_format";
    json_t *format = field(b, name);
    if (format == NULL)
        return 0;
    const char *type = json_string_value(json_object_get(format, "type"));
    if (type != NULL && strcmp(type, "text") == 0)
        return 0;
    if (type != NULL && strcmp(type, "json_object") == 0)
        return want(b, wanted, name, GRAMMAR_OBJECT, NULL);
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return FAIL(b, name, "%s: type must be text, json_object or json_schema", name);
    json_t *schema = json_object_get(json_object_get(format, "json_schema"), "schema");
    if (!json_is_object(schema))
        return FAIL(b, name, "%s: json_schema must be an object with a schema", name);
    return want(b, wanted, name, GRAMMAR_SCHEMA, schema);
}

/* vLLM's fields, and the object that newer versions of it take them in. */
static int want_guided(const struct body *b, struct wanted_grammar *wanted)
{
    static const struct {
        const char *name, *key;
        enum grammar_kind kind;
    } fields[] = {{"guided_json", "json", GRAMMAR_SCHEMA},
                  {"guided_regex", "regex", GRAMMAR_REGEX},
                  {"guided_choice", "choice", GRAMMAR_CHOICE}};
    static const char name[] = "structured_outputs";
    json_t *object = field(b, name), *value;
    const char *key;
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++)
        if ((value = field(b, fields[i].name)) != NULL && want(b, wanted, fields[i].name, fields[i].kind, value) != 0)
            return -1;
    if (object != NULL && !json_is_object(object))
        return FAIL(b, name, "%s must be an object", name);
    json_object_foreach(object, key, value) {
        size_t i = 0;
        while (i < ARRAY_COUNT(fields) && strcmp(fields[i].key, key) != 0)
            i++;
        bool is_object = strcmp(key, "json_object") == 0;
        if (i == ARRAY_COUNT(fields) && !is_object && !json_is_null(value))
            return api_fail(b->error, 400, name, "unsupported_parameter", "%s: '%.40s' is not supported by this server",
                            name, key);
        if (json_is_null(value) || (is_object && json_is_false(value)))
            continue;
        if (want(b, wanted, name, is_object ? GRAMMAR_OBJECT : fields[i].kind, value) != 0)
            return -1;
    }
    return 0;
}

static int get_grammar(const struct body *b, struct api_request *request)
{
    struct grammar *grammar = &b->api->grammar;
    struct wanted_grammar wanted = {0};
    struct err err = {0};
    bool ignores_eos = request->flags & REQUEST_IGNORE_EOS;
    if (want_format(b, &wanted) != 0 || want_guided(b, &wanted) != 0)
        return -1;
    if (wanted.name == NULL)
        return 0;
    if (b->api->plan->backend == BACKEND_TIMED)
        return api_fail(b->error, 400, wanted.name, "unsupported_parameter",
                        "%s: the stages of this server take a described time and compute nothing", wanted.name);
    int64_t min_tokens = 0;
    if (get_integer(b, "min_tokens", 0, INT64_MAX, &min_tokens) != 0)
        return -1;
    if (ignores_eos || min_tokens > 0)
        return FAIL(b, wanted.name, "%s: the answer ends where what it keeps to ends; leave out %s", wanted.name,
                    ignores_eos ? "ignore_eos" : "min_tokens");
    if (grammar_make(grammar, wanted.kind, wanted.value, &err) != 0)
        return FAIL(b, wanted.name, "%s: %s", wanted.name, err.text);
    request->grammar = grammar->words;
    request->grammar_words = grammar->word_count;
    return 0;
}

/* ---- prompts ---- */

static int take_ids(const struct body *b, json_t *list, const char *name, struct api_request *request)
{
    size_t count = json_array_size(list);
    for (size_t i = 0; i < count; i++) {
        json_t *id = json_array_get(list, i);
        if (!is_token(b, id))
            return FAIL(b, name, "%s: element %zu must be a token id, an integer from 0 to %u", name, i,
                        b->api->plan->vocab_size - 1);
        if (i <= b->api->tokens_max)
            b->api->tokens[i] = (uint32_t)json_integer_value(id);
    }
    request->prompt_tokens = (uint32_t)min_u64(count, UINT32_MAX);
    return 0;
}

/* Ids from *ids on, at most tokens_max + 1: one more than allowed shows that there are too many. */
static uint32_t encode_text(const struct body *b, json_t *text, bool parse_special, bool add_special,
                            const uint32_t **ids)
{
    const struct api *api = b->api;
    struct tok_range whole = {0, json_string_length(text)};
    uint32_t begin = !add_special && tok_adds_begin(api->tok); /* the token that is not wanted */
    uint32_t count = tok_encode(api->tok, json_string_value(text), whole.size, &whole, parse_special, api->tokens,
                                api->tokens_max + 1 + begin);
    *ids = api->tokens + begin;
    return count - begin;
}

/* A list of prompts, as against one prompt of ids. */
static bool is_list_of_prompts(const json_t *prompt)
{
    const json_t *first = json_array_get(prompt, 0);
    return json_is_string(first) || json_is_array(first);
}

/* Prompt number prompt_index. */
static int get_prompt(const struct body *b, struct api_request *request)
{
    json_t *prompt = field(b, "prompt");
    bool parse_special = false, add_special = true;
    if (get_bool(b, "parse_special", &parse_special) != 0 || get_bool(b, "add_special_tokens", &add_special) != 0)
        return -1;
    if (prompt == NULL)
        return FAIL(b, "prompt", "prompt is missing: a string, a list of token ids, or a list of these");
    request->prompt_count = 1;
    if (is_list_of_prompts(prompt)) {
        uint32_t max = (uint32_t)min_u64(PROMPTS_MAX, b->api->plan->requests_max);
        if (json_array_size(prompt) > max)
            return FAIL(b, "prompt", "prompt holds %zu prompts; at most %u are allowed", json_array_size(prompt), max);
        request->prompt_count = (uint32_t)json_array_size(prompt);
        prompt = json_array_get(prompt, request->prompt_index);
    }
    request->prompt = b->api->tokens;
    if (json_is_array(prompt))
        return take_ids(b, prompt, "prompt", request);
    if (!json_is_string(prompt))
        return FAIL(b, "prompt", "prompt must be a string, a list of token ids, or a list of these");
    request->prompt_tokens = encode_text(b, prompt, parse_special, add_special, &request->prompt);
    return 0;
}

static int get_messages(const struct body *b, struct api_request *request)
{
    struct api *api = b->api;
    struct chat_prompt prompt;
    struct chat_error problem;
    if (!chat_render(&api->chat, b->root, api->now_s, api->text, api->text_bytes, &prompt, &problem))
        return api_fail(b->error, problem.is_too_large ? 413 : 400, problem.param,
                        problem.is_too_large        ? "body_too_large"
                        : api->chat.program == NULL ? "chat_unavailable"
                                                    : "invalid_value",
                        "%s", problem.message);
    request->format.message = prompt.message;
    request->prompt = api->tokens;
    request->prompt_tokens = tok_encode(api->tok, api->text, prompt.size, prompt.ranges, prompt.range_count,
                                        api->tokens, api->tokens_max + 1);
    /* a template that writes the begin token itself must not give it twice */
    uint32_t begin = tok_begin_token(api->tok);
    if (request->prompt_tokens > 1 && request->prompt[0] == begin && request->prompt[1] == begin) {
        request->prompt++;
        request->prompt_tokens--;
    }
    return 0;
}

/* max_tokens has two names. */
static const char *limit_name(const struct body *b)
{
    return field(b, "max_completion_tokens") != NULL ? "max_completion_tokens" : "max_tokens";
}

/* Nothing follows the echoed prompt: all there can be of it is its scores. */
static bool is_only_scored(const struct body *b, const struct api_request *request)
{
    json_t *limit = field(b, limit_name(b));
    return request->format.echoes && json_is_integer(limit) && json_integer_value(limit) == 0;
}

static int get_echo(const struct body *b, struct api_request *request)
{
    bool echoes = false;
    if (get_bool(b, "echo", &echoes) != 0)
        return -1;
    request->format.echoes = echoes;
    if (is_only_scored(b, request))
        request->format.returns_logprobs = 1;
    if (echoes && request->format.returns_logprobs)
        request->flags |= REQUEST_SCORE | REQUEST_LOGPROB;
    return 0;
}

/* ---- limits ---- */

static int get_lengths(const struct body *b, enum api_endpoint endpoint, struct api_request *request)
{
    const struct api *api = b->api;
    const char *prompt = endpoint == API_COMPLETIONS ? "prompt" : "messages", *name = limit_name(b);
    json_t *newer = field(b, "max_completion_tokens"), *older = field(b, "max_tokens");
    bool is_score = is_only_scored(b, request);
    if (newer != NULL && older != NULL && !json_equal(newer, older))
        return FAIL(b, "max_tokens", "max_tokens and max_completion_tokens differ; give one of them");
    if (request->prompt_tokens == 0)
        return FAIL(b, prompt, "%s is empty: at least one token is needed", prompt);
    if (is_score && request->prompt_tokens < 2)
        return FAIL(b, prompt, "%s has one token: nothing in it follows anything", prompt);
    if (request->prompt_tokens > api->tokens_max || (!is_score && request->prompt_tokens == api->tokens_max))
        return api_fail(b->error, 400, prompt, "context_length_exceeded",
                        "the prompt has %s%u tokens; prompt and answer together may have %u",
                        request->prompt_tokens > api->tokens_max ? "at least " : "", request->prompt_tokens,
                        api->tokens_max);
    uint32_t room = api->tokens_max - request->prompt_tokens;
    int64_t max_tokens = endpoint == API_COMPLETIONS ? (int64_t)min_u64(16, room) : (int64_t)room;
    int64_t min_tokens = 0;
    if (is_score) {
        max_tokens = 0;
    } else if (get_integer(b, name, 1, INT64_MAX, &max_tokens) != 0) {
        return FAIL(b, name, "%s must be an integer from 1 to %u", name, room);
    } else if (max_tokens > room) {
        return api_fail(b->error, 400, name, "context_length_exceeded",
                        "the prompt has %u tokens and %s is %lld; together they may be %u", request->prompt_tokens,
                        name, (long long)max_tokens, api->tokens_max);
    }
    if (get_integer(b, "min_tokens", 0, max_tokens, &min_tokens) != 0)
        return -1;
    request->max_tokens = (uint32_t)max_tokens;
    request->min_tokens = (uint32_t)min_tokens;
    return 0;
}

/* Prompts take pages of one pool, tokens of another; what these can never hold is not to be tried again. */
static int count_pages(const struct body *b, struct api_request *request)
{
    const struct plan *plan = b->api->plan;
    const struct request_shm words = {.prompt_tokens = request->prompt_tokens,
                                      .max_tokens = request->max_tokens,
                                      .flags = request->flags,
                                      .top_logprobs = request->top_logprobs};
    uint64_t log_pages = (uint64_t)request->choices * journal_log_pages(&words);
    if (log_pages > plan->log_pages)
        return api_fail(b->error, 400, "n", "context_length_exceeded",
                        "%u choices of %u tokens take %llu pages of the token log; this server has %u",
                        request->choices, journal_log_entries(&words), (unsigned long long)log_pages, plan->log_pages);
    request->prompt_pages +=
        div_up_u64((uint64_t)request->prompt_tokens + 2 * request->bias_count + request->grammar_words, PAGE_TOKENS);
    if (request->prompt_index > 0 && request->prompt_pages > plan->prompt_pages)
        return api_fail(b->error, 413, "prompt", "body_too_large",
                        "the prompts take %llu pages of %u tokens, as far as they were read; this server has %u",
                        (unsigned long long)request->prompt_pages, PAGE_TOKENS, plan->prompt_pages);
    return 0;
}

/* Says which one of several prompts an error is about. */
static int name_prompt(const struct api_request *request, struct api_error *error)
{
    char message[sizeof(error->message)];
    if (request->prompt_count > 1) {
        memcpy(message, error->message, sizeof(message));
        snprintf(error->message, sizeof(error->message), "prompt %u of %u: %.360s", request->prompt_index + 1,
                 request->prompt_count, message);
    }
    return -1;
}

int api_next_prompt(struct api *api, struct api_request *request, struct api_error *error)
{
    const struct body b = body_of(api, api->root, error);
    request->prompt_index++;
    check(request->prompt_index < request->prompt_count);
    if (get_prompt(&b, request) != 0 || get_lengths(&b, API_COMPLETIONS, request) != 0 || count_pages(&b, request) != 0)
        return name_prompt(request, error);
    return 0;
}

int api_parse(struct api *api, enum api_endpoint endpoint, const char *body, size_t size, struct api_request *request,
              struct api_error *error)
{
    struct body b;
    *request = (struct api_request){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .prompt_count = 1, .created_s = api->now_s};
    request->format.kind = endpoint == API_CHAT_COMPLETIONS ? ANSWER_CHAT : ANSWER_COMPLETION;
    if (load_body(&b, api, body, size, error) != 0 || get_model(&b) != 0 || refuse_unsupported(&b) != 0 ||
        get_others(&b, endpoint) != 0 || get_stream(&b, &request->format) != 0 || get_sampling(&b, request) != 0 ||
        get_penalties(&b, request) != 0 || get_returns(&b, endpoint, request) != 0 ||
        get_stops(&b, &request->format) != 0 || get_stop_tokens(&b, request) != 0 || get_grammar(&b, request) != 0)
        return -1;
    if (endpoint == API_COMPLETIONS ? get_prompt(&b, request) != 0 || get_echo(&b, request) != 0
                                    : get_messages(&b, request) != 0)
        return -1;
    if (get_lengths(&b, endpoint, request) != 0 || count_pages(&b, request) != 0)
        return name_prompt(request, error);
    api->root = b.root;
    request->unknown_fields = count_unknown(&b, endpoint);
    return 0;
}

/* ---- /tokenize and /detokenize ---- */

int api_tokenize(struct api *api, const char *body, size_t size, struct json_writer *writer, struct api_error *error)
{
    struct body b;
    struct api_request request = {0};
    bool parse_special = false, add_special = true;
    if (load_body(&b, api, body, size, error) != 0 || get_model(&b) != 0 ||
        get_bool(&b, "parse_special", &parse_special) != 0 || get_bool(&b, "add_special_tokens", &add_special) != 0)
        return -1;
    json_t *prompt = field(&b, "prompt");
    bool is_chat = prompt == NULL && field(&b, "messages") != NULL;
    if (!is_chat && !json_is_string(prompt))
        return FAIL(&b, "prompt", "prompt must be a string, or messages those of a chat");
    if (!is_chat)
        request.prompt_tokens = encode_text(&b, prompt, parse_special, add_special, &request.prompt);
    else if (get_messages(&b, &request) != 0)
        return -1;
    const uint32_t *ids = request.prompt;
    uint32_t count = request.prompt_tokens;
    /* ten digits and a comma each; the answer goes out in one piece */
    uint32_t count_max = (uint32_t)min_u64(api->tokens_max, (writer->room - writer->size - 128) / 11);
    if (count > count_max)
        return api_fail(error, 413, is_chat ? "messages" : "prompt", "body_too_large",
                        "the text has at least %u tokens; %u fit an answer", count, count_max);
    json_format(writer, "{\"count\":%u,\"max_model_len\":%u,\"tokens\":[", count, api->plan->max_model_len);
    for (uint32_t i = 0; i < count; i++) {
        json_raw(writer, ",", i > 0);
        json_number(writer, ids[i]);
    }
    json_text(writer, "]}");
    return 0;
}

int api_detokenize(struct api *api, const char *body, size_t size, struct json_writer *writer, struct api_error *error)
{
    struct body b;
    struct api_request ids = {0};
    if (load_body(&b, api, body, size, error) != 0 || get_model(&b) != 0)
        return -1;
    json_t *tokens = field(&b, "tokens");
    if (!json_is_array(tokens))
        return FAIL(&b, "tokens", "tokens must be a list of token ids");
    if (json_array_size(tokens) > api->tokens_max)
        return FAIL(&b, "tokens", "tokens holds %zu ids; at most %u are allowed", json_array_size(tokens),
                    api->tokens_max);
    if (take_ids(&b, tokens, "tokens", &ids) != 0)
        return -1;
    json_text(writer, "{\"prompt\":\"");
    struct tok_decoder decoder = {0};
    for (uint32_t i = 0; i <= ids.prompt_tokens; i++) {
        char text[TOKEN_TEXT_MAX];
        size_t text_size = i < ids.prompt_tokens ? tok_decoder_push(&decoder, api->tok, api->tokens[i], text)
                                                 : tok_decoder_end(&decoder, text);
        if (writer->room - writer->size < text_size * JSON_ESCAPE_MAX + 3)
            return api_fail(error, 413, "tokens", "body_too_large", "the text does not fit an answer of %zu bytes",
                            writer->room);
        json_escaped(writer, text, text_size);
    }
    json_text(writer, "\"}");
    return 0;
}
