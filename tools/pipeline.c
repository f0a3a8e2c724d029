#include "tools/pipeline.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/bound.h"

/* ---- reading ---- */

struct field {
    const char *name;
    size_t offset;
};

/* Numbers of an object; unknown keys are refused, missing ones are 0. */
static int read_fields(void *object, json_t *json, const struct field *fields, size_t count, struct err *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(json))
        return err_set(err, -EINVAL, "must be an object");
    json_object_foreach(json, key, value) {
        size_t i = 0;
        while (i < count && strcmp(fields[i].name, key) != 0)
            i++;
        if (i == count)
            return err_set(err, -EINVAL, "%s: is not a field of it", key);
        if (!json_is_number(value))
            return err_set(err, -EINVAL, "%s: must be a number of microseconds", key);
        double number = json_number_value(value);
        memcpy((char *)object + fields[i].offset, &number, sizeof(number));
    }
    return 0;
}

static int read_servers(struct timing *timing, json_t *stages, json_t *links, struct err *err)
{
    static const struct field stage_fields[] = {{"base_us", offsetof(struct timing_stage, base_us)},
                                                {"row_us", offsetof(struct timing_stage, row_us)},
                                                {"weights_us", offsetof(struct timing_stage, weights_us)},
                                                {"token_us", offsetof(struct timing_stage, token_us)},
                                                {"context_us", offsetof(struct timing_stage, context_us)},
                                                {"pair_us", offsetof(struct timing_stage, pair_us)}};
    static const struct field link_fields[] = {{"latency_us", offsetof(struct timing_link, latency_us)},
                                               {"token_us", offsetof(struct timing_link, token_us)}};
    size_t count = json_array_size(stages);
    if (!json_is_array(stages) || count < 1 || count > TIMING_STAGES_MAX)
        return err_set(err, -EINVAL, "stages: must be a list of 1 to %u stages", TIMING_STAGES_MAX);
    if (json_array_size(links) != count - 1 || (links != NULL && !json_is_array(links)))
        return err_set(err, -EINVAL, "links: must be a list of %zu, one fewer than stages; there are %zu", count - 1,
                       json_array_size(links));
    timing->stage_count = count;
    for (size_t i = 0; i < count; i++) {
        int ret =
            read_fields(&timing->stages[i], json_array_get(stages, i), stage_fields, ARRAY_COUNT(stage_fields), err);
        if (ret != 0)
            return err_prefix(err, ret, "stages[%zu]", i);
        ret = i + 1 < count
                  ? read_fields(&timing->links[i], json_array_get(links, i), link_fields, ARRAY_COUNT(link_fields), err)
                  : 0;
        if (ret != 0)
            return err_prefix(err, ret, "links[%zu]", i);
    }
    return 0;
}

/* Four equal stages but for the output head of the last one. */
struct machine {
    const char *name;
    struct timing_stage stage;
    double last_base_us, last_weights_us;
    struct timing_link link;
    double return_us, plan_us;
};

static const struct machine machines[] = {
    {.name = "13b",
     .stage = {.row_us = 150, .weights_us = 13791, .token_us = 141, .context_us = 0.4452, .pair_us = 0.004551},
     .last_base_us = 0,
     .last_weights_us = 14504,
     .link = {.latency_us = 300, .token_us = 182.86},
     .return_us = 1000,
     .plan_us = 1000},
    {.name = "32b",
     .stage = {.base_us = 1000,
               .row_us = 20,
               .weights_us = 12311,
               .token_us = 86.63,
               .context_us = 0.04965,
               .pair_us = 0.001752},
     .last_base_us = 2500,
     .last_weights_us = 12311,
     .link = {.latency_us = 100, .token_us = 18.62},
     .return_us = 300,
     .plan_us = 200},
};

static bool find_machine(struct timing *timing, const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(machines); i++) {
        const struct machine *machine = &machines[i];
        if (strcmp(machine->name, name) != 0)
            continue;
        *timing = (struct timing){.stage_count = 4, .return_us = machine->return_us, .plan_us = machine->plan_us};
        for (uint32_t s = 0; s < 4; s++)
            timing->stages[s] = machine->stage;
        for (uint32_t s = 0; s < 3; s++)
            timing->links[s] = machine->link;
        timing->stages[3].base_us = machine->last_base_us;
        timing->stages[3].weights_us = machine->last_weights_us;
        return true;
    }
    return false;
}

int pipeline_read(struct timing *timing, const char *path, struct err *err)
{
    if (find_machine(timing, path))
        return 0;
    json_t *root = scenario_load(path, err);
    *timing = (struct timing){0};
    if (root == NULL)
        return -EBADMSG;
    json_t *back = json_object_get(root, "return_us"), *plan = json_object_get(root, "plan_us");
    int ret = 0;
    if ((back != NULL && !json_is_number(back)) || (plan != NULL && !json_is_number(plan)))
        ret = err_set(err, -EINVAL, "return_us and plan_us: must be numbers of microseconds");
    timing->return_us = json_number_value(back);
    timing->plan_us = json_number_value(plan);
    ret = ret ? ret : read_servers(timing, json_object_get(root, "stages"), json_object_get(root, "links"), err);
    ret = ret ? ret : timing_validate(timing, err);
    json_decref(root);
    return ret ? err_prefix(err, -EBADMSG, "%s", path) : 0;
}

/* ---- bounds ---- */

static void add_request(struct bound_load *load, const struct sim_request *request, uint32_t block_size)
{
    double prompt = request->prompt_tokens, output = scenario_output_tokens(request);
    load->decode_rows += output - 1;
    load->tokens += prompt + output - 1;
    load->rows += output;
    load->results += output;
    load->context += prompt + (output - 1) * (prompt + 0.5 * output); /* sum of prompt + 1 .. prompt + output - 1 */
    load->pairs += prompt * prompt / 2;
    load->longest = fmax(load->longest, output - 1);
    load->requests++;
    for (uint32_t k = 1; k < (uint32_t)output; k++)
        load->block_sum += (double)div_up_u64(request->prompt_tokens + k, block_size);
    load->block_min = fmin(load->block_min, (double)div_up_u64(request->prompt_tokens + 1, block_size));
    load->context_min = fmin(load->context_min, prompt + 1);
}

/* One request alone: a traversal for each of its tokens. */
static double chain_us(const struct bound_load *load, const struct sim_request *request)
{
    const struct timing *t = load->timing;
    double prompt = request->prompt_tokens, output = scenario_output_tokens(request);
    const struct shape only_result = {.results = 1};
    double sum = output * (timing_traversal_us(t, &only_result) - t->plan_us);
    for (uint64_t i = 0; i < t->stage_count; i++)
        sum += (output - 1) * t->stages[i].row_us + t->stages[i].context_us * (output - 1) * (prompt + 0.5 * output) +
               (i + 1 < t->stage_count ? t->links[i].token_us * (output - 1) : 0);
    return sum;
}

static const struct scenario *sorted_scenario; /* for by_arrival() alone */

static int by_arrival(const void *a, const void *b)
{
    uint32_t first = *(const uint32_t *)a, second = *(const uint32_t *)b;
    double x = sorted_scenario->requests[first].arrival_us, y = sorted_scenario->requests[second].arrival_us;
    return x < y ? -1 : x > y ? 1 : first < second ? -1 : first > second;
}

/* As if order[0..count - 1] were all there at time 0. */
static struct pipeline_bounds bound_at_once(const struct timing *timing, const struct scenario *scenario,
                                            const struct plan *plan, const uint32_t *order, uint32_t count)
{
    struct bound_load load = {.timing = timing,
                              .kv_blocks = plan->num_blocks,
                              .block_min = INFINITY,
                              .context_min = INFINITY,
                              .is_whole = true};
    double chain = 0, link = 0;
    for (uint32_t i = 0; i < count; i++)
        add_request(&load, &scenario->requests[order[i]], plan->block_size);
    for (uint32_t i = 0; i < count; i++)
        chain = fmax(chain, chain_us(&load, &scenario->requests[order[i]]));
    for (uint64_t i = 0; i + 1 < timing->stage_count; i++)
        link = fmax(link, load.tokens * timing->links[i].token_us + timing->links[i].latency_us);
    double strict = bound_strict_us(&load), mean = bound_mean_field_us(&load);
    struct pipeline_bounds bounds = {
        .strict_us = strict, .mean_field_us = fmax(fmax(mean, chain), link), .reason = "work and latency"};
    if (chain > bounds.strict_us)
        bounds = (struct pipeline_bounds){chain, bounds.mean_field_us, "longest request"};
    if (link > bounds.strict_us)
        bounds = (struct pipeline_bounds){link, bounds.mean_field_us, "busiest link"};
    return bounds;
}

struct pipeline_bounds pipeline_bounds(const struct timing *timing, const struct scenario *scenario,
                                       const struct plan *plan)
{
    uint32_t count = scenario->request_count, *order = base_alloc(count * sizeof(*order));
    uint32_t step = count / 16 > 0 ? count / 16 : 1;
    struct pipeline_bounds best = {.reason = "nothing to do"};
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    sorted_scenario = scenario;
    qsort(order, count, sizeof(*order), by_arrival);
    /* what arrives from some moment on cannot end before that moment and its own bound */
    for (uint32_t i = 0; i < count; i += step) {
        double start = scenario->requests[order[i]].arrival_us;
        struct pipeline_bounds bounds = bound_at_once(timing, scenario, plan, order + i, count - i);
        best.mean_field_us = fmax(best.mean_field_us, start + bounds.mean_field_us);
        if (start + bounds.strict_us > best.strict_us) {
            best.strict_us = start + bounds.strict_us;
            best.reason = bounds.reason;
        }
    }
    free(order);
    return best;
}
