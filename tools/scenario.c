#include "tools/scenario.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/layout.h"

#define VOCAB_SIZE  50100u
#define TOKENS_MAX  (1u << 22) /* of one prompt */
#define REQUEST_MAX 100000u

json_t *scenario_load(const char *path, struct err *err)
{
    json_error_t problem;
    FILE *file = fopen(path, "re");
    json_t *root = file != NULL ? json_loadf(file, 0, &problem) : NULL;
    if (file == NULL)
        err_set(err, -errno, "%s: cannot open it: %s", path, strerror(errno));
    else if (root == NULL)
        err_set(err, -EBADMSG, "%s: line %d: %s", path, problem.line, problem.text);
    if (file != NULL)
        fclose(file);
    return root;
}

/* "key: 7.5 must be ..." */
static void refuse_value(struct err *err, const char *key, json_t *value, const char *wanted)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    err_set(err, -EINVAL, "%s: %.80s must be %s", key, text != NULL ? text : "?", wanted);
    free(text);
}

static uint64_t number_of(json_t *object, const char *key, uint64_t standard, uint64_t min, uint64_t max,
                          struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (value == NULL)
        return standard;
    if (!json_is_integer(value) || json_integer_value(value) < (json_int_t)min ||
        json_integer_value(value) > (json_int_t)max) {
        char wanted[96];
        snprintf(wanted, sizeof(wanted), "a whole number from %llu to %llu", (unsigned long long)min,
                 (unsigned long long)max);
        refuse_value(err, key, value, wanted);
    }
    return (uint64_t)json_integer_value(value);
}

static bool flag_of(json_t *object, const char *key, bool standard, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (value == NULL)
        return standard;
    if (!json_is_boolean(value))
        refuse_value(err, key, value, "true or false");
    return json_is_true(value);
}

static int read_prompt(struct sim_request *request, json_t *prompt, struct err *err)
{
    size_t i;
    json_t *segment;
    uint64_t tokens = 0;
    if (!json_is_array(prompt))
        return err_set(err, -EINVAL, "prompt: must be a list of [start, length]");
    json_array_foreach(prompt, i, segment) {
        json_t *start = json_array_get(segment, 0), *length = json_array_get(segment, 1);
        if (!json_is_integer(start) || !json_is_integer(length) || json_integer_value(start) < 0 ||
            json_integer_value(length) < 0 || json_integer_value(length) > TOKENS_MAX)
            return err_set(err, -EINVAL, "prompt: segment %zu must be [start, length], two numbers of at least 0", i);
        tokens += (uint64_t)json_integer_value(length);
    }
    if (tokens == 0 || tokens > TOKENS_MAX)
        return err_set(err, -EINVAL, "prompt: has %llu tokens; 1 to %u are possible", (unsigned long long)tokens,
                       TOKENS_MAX);
    request->prompt = prompt;
    request->prompt_tokens = (uint32_t)tokens;
    return 0;
}

/* Seconds, as microseconds. */
static double seconds_of(json_t *object, const char *key, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (value != NULL && (!json_is_number(value) || json_number_value(value) < 0 || json_number_value(value) > 1e9))
        refuse_value(err, key, value, "a number of seconds of at least 0");
    return json_number_value(value) * 1e6;
}

static int read_request(struct sim_request *request, json_t *object, bool has_clock, struct err *err)
{
    *request = (struct sim_request){.admitted_step = -1, .first_token_step = -1, .end_step = -1, .hit_tokens = -1};
    request->id = json_string_value(json_object_get(object, "id"));
    if (request->id == NULL)
        return err_set(err, -EINVAL, "id: must be a text");
    request->arrival_us = seconds_of(object, "arrival_s", err);
    request->arrival_step = number_of(object, "arrival_step", 0, 0, INT64_MAX, err);
    request->max_tokens = (uint32_t)number_of(object, "max_tokens", 16, 1, TOKENS_MAX, err);
    request->eos_after = (uint32_t)number_of(object, "eos_after", 0, 1, TOKENS_MAX, err);
    json_t *priority = json_object_get(object, "priority");
    if (priority != NULL && !json_is_integer(priority))
        err_set(err, -EINVAL, "priority: must be a whole number");
    request->priority = (int32_t)json_integer_value(priority);
    request->has_abort = json_object_get(object, has_clock ? "abort_s" : "abort_at_step") != NULL;
    request->abort_us = seconds_of(object, "abort_s", err);
    request->abort_step = number_of(object, "abort_at_step", 0, 0, INT64_MAX, err);
    json_t *phase = json_object_get(object, "abort_phase");
    const char *name = phase != NULL ? json_string_value(phase) : "input";
    if (name == NULL || (strcmp(name, "input") != 0 && strcmp(name, "output") != 0))
        return err_set(err, -EINVAL, "abort_phase: \"%.80s\" must be input or output", name != NULL ? name : "?");
    request->aborts_before_update = strcmp(name, "output") == 0;
    return err->text[0] != '\0' ? -EINVAL : read_prompt(request, json_object_get(object, "prompt"), err);
}

static int read_requests(struct scenario *scenario, json_t *requests, bool has_clock, struct err *err)
{
    size_t i;
    json_t *object;
    if (!json_is_array(requests) || json_array_size(requests) == 0 || json_array_size(requests) > REQUEST_MAX)
        return err_set(err, -EINVAL, "requests: must be a list of 1 to %u", REQUEST_MAX);
    scenario->requests = base_alloc(json_array_size(requests) * sizeof(*scenario->requests));
    json_array_foreach(requests, i, object) {
        int ret = read_request(&scenario->requests[i], object, has_clock, err);
        if (ret != 0)
            return err_prefix(err, ret, "requests[%zu]", i);
        scenario->request_count++;
    }
    return 0;
}

/* Knobs that would change decisions and are not there. */
static int refuse_unknown(json_t *config, struct err *err)
{
    static const char *const known[] = {"max_num_batched_tokens",
                                        "max_num_seqs",
                                        "block_size",
                                        "num_blocks",
                                        "enable_chunked_prefill",
                                        "long_prefill_token_threshold",
                                        "long_prefill_token_threshold_adaptive",
                                        "policy",
                                        "enable_prefix_caching",
                                        "pipeline_depth",
                                        "max_model_len",
                                        "watermark",
                                        "scheduler_reserve_full_isl",
                                        "async_scheduling",
                                        "window",
                                        "itl_slo",
                                        "ttft_slo"};
    const char *key;
    json_t *value;
    json_object_foreach(config, key, value) {
        bool is_known = false;
        for (size_t i = 0; i < ARRAY_COUNT(known); i++)
            is_known = is_known || strcmp(known[i], key) == 0;
        if (!is_known)
            return err_set(err, -EINVAL, "config: %s is not supported", key);
    }
    if (json_is_true(json_object_get(config, "async_scheduling")))
        return err_set(err, -EINVAL, "config: async_scheduling is not supported");
    return 0;
}

static int make_plan(struct scenario *scenario, struct plan *plan, json_t *config, const struct timing *timing,
                     bool chooses_window, struct err *err)
{
    uint64_t longest = 0, prompt_tokens = 0, log_tokens = 0;
    for (uint32_t i = 0; i < scenario->request_count; i++) {
        const struct sim_request *request = &scenario->requests[i];
        longest = max_u64(longest, (uint64_t)request->prompt_tokens + request->max_tokens);
        prompt_tokens += align_up_u64(request->prompt_tokens, PAGE_TOKENS);
        log_tokens += align_up_u64(request->max_tokens, LOG_PAGE_TOKENS);
    }
    int ret = refuse_unknown(config, err);
    if (ret != 0)
        return ret;
    *plan = (struct plan){.magic = PLAN_MAGIC,
                          .layout_hash = LAYOUT_HASH,
                          .layers = 1,
                          .width = 1,
                          .heads = 1,
                          .kv_heads = 1,
                          .head_dim = 1,
                          .vocab_size = VOCAB_SIZE,
                          .end_token_count = 1,
                          .end_tokens = {SCENARIO_END_TOKEN},
                          .stage_count = 1,
                          .threads_per_stage = 1,
                          .lone_threads = 1,
                          .slices = {{.layer_count = 1}},
                          .connections_max = 1,
                          .body_bytes_max = 1024};
    plan->max_num_batched_tokens = (uint32_t)number_of(config, "max_num_batched_tokens", 2048, 1, 1 << 18, err);
    plan->max_num_seqs = (uint32_t)number_of(config, "max_num_seqs", 256, 1, 4096, err);
    plan->block_size = (uint32_t)number_of(config, "block_size", 16, 1, 1024, err);
    plan->num_blocks = (uint32_t)number_of(config, "num_blocks", 1000, 1, 1 << 28, err);
    plan->enable_chunked_prefill = flag_of(config, "enable_chunked_prefill", true, err);
    plan->long_prefill_token_threshold =
        (uint32_t)number_of(config, "long_prefill_token_threshold", 0, 0, 1 << 20, err);
    plan->long_prefill_token_threshold_adaptive = flag_of(config, "long_prefill_token_threshold_adaptive", false, err);
    plan->enable_prefix_caching = flag_of(config, "enable_prefix_caching", true, err);
    plan->reserve_full_isl = flag_of(config, "scheduler_reserve_full_isl", true, err);
    double watermark = json_number_value(json_object_get(config, "watermark"));
    plan->watermark_blocks = (uint32_t)(watermark * (double)(plan->num_blocks + 1));
    const char *order = json_string_value(json_object_get(config, "policy"));
    plan->uses_priority = order != NULL && strcmp(order, "priority") == 0;
    if (order != NULL && !plan->uses_priority && strcmp(order, "fcfs") != 0)
        err_set(err, -EINVAL, "policy: \"%.80s\" must be fcfs or priority", order);
    scenario->depth = (uint32_t)number_of(config, "pipeline_depth", 1, 1, 4 * STAGES_MAX, err);
    plan->window = scenario->depth;
    plan->itl_slo_ms = (uint32_t)number_of(config, "itl_slo", 0, 0, 1 << 20, err);
    plan->ttft_slo_ms = (uint32_t)number_of(config, "ttft_slo", 0, 0, 1 << 30, err);
    if (timing != NULL) {
        plan->timing = *timing;
        plan->stage_count = (uint32_t)timing->stage_count;
        plan->layers = plan->stage_count;
        for (uint32_t i = 0; i < plan->stage_count; i++)
            plan->slices[i] = (struct plan_slice){.first_layer = i, .layer_count = 1};
        bool has_depth = json_object_get(config, "pipeline_depth") != NULL && !chooses_window;
        uint32_t standard_window = chooses_window ? 2 * plan->stage_count : plan->stage_count;
        plan->window = (uint32_t)number_of(config, "window", has_depth ? scenario->depth : standard_window, 1, 64, err);
        scenario->depth = plan->window;
    }
    uint64_t standard = max_u64(longest + 1, 64);
    if (!plan->enable_chunked_prefill)
        standard = min_u64(standard, plan->max_num_batched_tokens);
    plan->max_model_len = (uint32_t)number_of(config, "max_model_len", standard, 1, 1 << 22, err);
    if (err->text[0] != '\0')
        return err_prefix(err, -EINVAL, "config");
    uint64_t capacity = min_u64(plan->max_model_len, (uint64_t)plan->num_blocks * plan->block_size);
    for (uint32_t i = 0; i < scenario->request_count; i++) {
        struct sim_request *request = &scenario->requests[i];
        uint32_t output =
            request->eos_after ? (uint32_t)min_u64(request->eos_after, request->max_tokens) : request->max_tokens;
        if ((uint64_t)request->prompt_tokens + output > capacity)
            return err_set(err, -EINVAL, "requests[%u]: %u + %u tokens can never run: at most %llu fit", i,
                           request->prompt_tokens, output, (unsigned long long)capacity);
        /* a limit beyond what can be, which the end token comes before */
        request->max_tokens = (uint32_t)min_u64(request->max_tokens, capacity - request->prompt_tokens);
    }
    plan->requests_max = plan->sequences_max = scenario->request_count;
    plan->prompt_pages = (uint32_t)(prompt_tokens / PAGE_TOKENS);
    plan->log_pages = (uint32_t)(log_tokens / LOG_PAGE_TOKENS);
    return plan_validate(plan, err);
}

int scenario_read(struct scenario *scenario, struct plan *plan, json_t *root, const struct timing *timing,
                  bool chooses_window, struct err *err)
{
    *scenario = (struct scenario){0};
    err->text[0] = '\0';
    json_t *config = json_object_get(root, "config");
    if (!json_is_object(root) || (config != NULL && !json_is_object(config)))
        return err_set(err, -EINVAL, "must be an object with \"config\" and \"requests\"");
    int ret = read_requests(scenario, json_object_get(root, "requests"), timing != NULL, err);
    return ret ? ret : make_plan(scenario, plan, config, timing, chooses_window, err);
}

void scenario_free(struct scenario *scenario)
{
    free(scenario->requests);
    *scenario = (struct scenario){0};
}

uint32_t scenario_output_tokens(const struct sim_request *request)
{
    return request->eos_after != 0 ? (uint32_t)min_u64(request->eos_after, request->max_tokens) : request->max_tokens;
}

uint32_t scenario_token_at(const struct scenario *scenario, uint32_t index, uint32_t position)
{
    const struct sim_request *request = &scenario->requests[index];
    if (request->eos_after != 0 && position - request->prompt_tokens + 1 == request->eos_after)
        return SCENARIO_END_TOKEN;
    return (uint32_t)(((uint64_t)index * 7919 + position) % 50000 + 100);
}
