/* cmd_inspect.c - evenflow inspect: what is in a model file, and how it would be split. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "stages/cost.h"
#include "stages/gguf.h"
#include "stages/model.h"
#include "tools/commands.h"
#include "tools/devices.h"
#include "tools/launch.h"
#include "tools/picture.h"
#include "tools/terminal.h"

#define KV_TOKENS         1024u /* whose KV the picture says */
#define KEY_BYTES_MAX     256u
#define VALUE_BYTES_SHOWN 60u

struct values {
    uint64_t stages;
    char split[OPTION_TEXT_MAX];
    char devices[OPTION_TEXT_MAX];
    bool tensors, costs;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"pipeline-parallel-size", "stages", 'p', OPTION_NUMBER, AT(stages), "2", 1, STAGES_MAX, "N",
     "Stages of the proposed split"},
    {"devices", NULL, 0, OPTION_TEXT, AT(devices), NULL, 0, 0, "A,B,...", "What each would compute on, as for serve"},
    {"split", NULL, 0, OPTION_TEXT, AT(split), NULL, 0, 0, "A,B,...",
     "Layers of each stage (default: so that stages take equal time)"},
    {"costs", NULL, 0, OPTION_FLAG, AT(costs), NULL, 0, 0, "", "Prints the terms of each stage's time too"},
    {"tensors", NULL, 0, OPTION_FLAG, AT(tensors), NULL, 0, 0, "", "Lists the metadata and every tensor too"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* One line of it, in quotes; what a terminal would obey is left out. */
static void print_text(const struct gguf_string *text)
{
    uint64_t shown = min_u64(text->size, VALUE_BYTES_SHOWN);
    putchar('"');
    for (uint64_t i = 0; i < shown; i++)
        putchar((unsigned char)text->data[i] < ' ' || text->data[i] == 0x7f ? ' ' : text->data[i]);
    printf(shown < text->size ? "...\" (%" PRIu64 " bytes)" : "\"", text->size);
}

static void print_metadata_value(const struct gguf *gguf, const char *key)
{
    struct gguf_string text;
    struct gguf_array array;
    uint64_t whole;
    double number;
    bool flag;
    if (gguf_get_string(gguf, key, &text))
        print_text(&text);
    else if (gguf_get_bool(gguf, key, &flag))
        printf("%s", flag ? "true" : "false");
    else if (gguf_get_u64(gguf, key, &whole))
        printf("%" PRIu64, whole);
    else if (gguf_get_f64(gguf, key, &number))
        printf("%.9g", number);
    else if (gguf_get_array(gguf, key, &array))
        printf("%" PRIu64 " %s", array.count, array.element_type == GGUF_STRING ? "texts" : "values");
    putchar('\n');
}

static void list_everything(const struct gguf *gguf)
{
    struct gguf_string key;
    uint32_t type;
    for (uint64_t i = 0; gguf_metadata(gguf, i, &key, &type); i++) {
        char name[KEY_BYTES_MAX];
        snprintf(name, sizeof(name), "%.*s", (int)min_u64(key.size, sizeof(name) - 1), key.data);
        printf("  %-40s ", name);
        print_metadata_value(gguf, name);
    }
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        printf("  %-32.*s %-6s %8" PRIu64 " x %-8" PRIu64 " %10" PRIu64 " bytes\n", (int)tensor->name.size,
               tensor->name.data, gguf_type_name(tensor->type), tensor->ne[0], tensor->ne[1], tensor->bytes);
    }
}

static void print_costs(const struct timing_stage *t, uint32_t stage)
{
    printf("stage %u, microseconds: base %.0f + %.1f a row + the longer of %.0f and %.1f a token "
           "+ %.4f a position of context + %.5f a pair of a prompt's",
           stage, t->base_us, t->row_us, t->weights_us, t->token_us, t->context_us, t->pair_us);
    if (t->head_us + t->result_us > 0)
        printf(" + %.0f where there are results + %.1f a result", t->head_us, t->result_us);
    printf("\n");
}

/* A step of 16 sequences on each device. */
static void print_devices(const struct cost *measured, const uint32_t *devices, uint32_t stages)
{
    char name[16];
    for (uint32_t device = 1; device <= DEVICES_MAX; device++)
        for (uint32_t i = 0; i < stages; i++)
            if (devices[i] == device) {
                const struct cost *cost = &measured[device - 1];
                printf("on %s: layer %.3f ms, head %.3f ms, a step itself %.3f ms\n", plan_device_name(device, name),
                       cost_usual_us(&cost->layer) / 1e3, cost_usual_us(&cost->head) / 1e3, cost->stage.base_us / 1e3);
                break;
            }
}

/* The picture of a split, and how even it is. */
static void print_split(const struct cost *const *costs, const struct model_desc *desc, const struct values *values,
                        const uint32_t *counts, const uint32_t *devices)
{
    struct picture_stage stages[STAGES_MAX];
    uint32_t count = (uint32_t)values->stages;
    double sum_us = 0, longest_us = 0;
    char name[16];
    for (uint32_t i = 0, first = 0; i < count; first += counts[i++]) {
        const struct timing_stage timing = cost_stage(costs[i], counts[i], i == 0, i + 1 == count);
        stages[i] = (struct picture_stage){
            .first_layer = first,
            .layer_count = counts[i],
            .weights_bytes = model_slice_bytes(desc, first, counts[i]),
            .kv_bytes = counts[i] * kv_block_bytes(KV_F16, desc->kv_heads, desc->head_dim, KV_TOKENS),
            .step_us = cost_usual_us(&timing)};
        sum_us += stages[i].step_us;
        longest_us = fmax(longest_us, stages[i].step_us);
        if (values->costs)
            print_costs(&timing, i);
        if (values->devices[0] != '\0')
            printf("stage %u on %s\n", i, plan_device_name(devices[i], name));
    }
    printf("\nsplit over %u stage%s:\n", count, count > 1 ? "s" : "");
    picture_split(stdout, stages, count, desc->layers, terminal_columns(STDOUT_FILENO));
    printf("\nKV: of %u tokens; step: 16 sequences.\nBusy while the slowest works: %.0f %%\n", KV_TOKENS,
           100 * sum_us / count / longest_us);
}

static int split(const struct cost *const *costs, const struct model_desc *desc, const struct values *values,
                 uint32_t *counts, struct err *err)
{
    uint32_t stages = (uint32_t)values->stages;
    if (stages > desc->layers)
        return err_set(err, -EINVAL, "%u stages: the model has %u layers", stages, desc->layers);
    if (values->split[0] != '\0')
        return launch_parse_split(values->split, desc->layers, stages, counts, err);
    cost_split(costs, desc->layers, stages, counts);
    return 0;
}

static int inspect(const struct gguf *gguf, const struct values *values, struct err *err)
{
    static struct model_desc desc;
    static struct cost measured[DEVICES_MAX];
    const struct kernels *kernels = kernels_pick(NULL);
    const struct cost *costs[STAGES_MAX];
    struct cost cost;
    uint32_t counts[STAGES_MAX], devices[STAGES_MAX], stages = (uint32_t)values->stages;
    if (values->tensors)
        list_everything(gguf);
    int ret = model_describe(&desc, gguf, err);
    ret = ret ? ret : devices_parse(values->devices, stages, devices, err);
    ret = ret ? ret : cost_measure(&cost, gguf, &desc, kernels, KV_F16, err);
    if (ret != 0)
        return ret;
    printf("layers %u, width %u, heads %u of %u floats, KV heads %u, feed forward %u, vocabulary %u, context %u\n",
           desc.layers, desc.width, desc.heads, desc.head_dim, desc.kv_heads, desc.feed_forward, desc.vocab_size,
           desc.context_length);
    printf("a step of 16 sequences on this machine (%s): layer %.3f ms, head %.3f ms, embedding %.3f ms\n",
           kernels->name, cost_usual_us(&cost.layer) / 1e3, cost_usual_us(&cost.head) / 1e3,
           cost_usual_us(&cost.embedding) / 1e3);
    ret = devices_measure(devices, stages, &desc, kernels, &cost, measured, costs, err);
    ret = ret ? ret : split(costs, &desc, values, counts, err);
    if (ret != 0)
        return ret;
    print_devices(measured, devices, stages);
    print_split(costs, &desc, values, counts, devices);
    return 0;
}

static int run(const void *values, char **positional, int positional_count)
{
    (void)positional_count;
    struct gguf *gguf;
    struct err err;
    int ret = gguf_open(&gguf, positional[0], &err);
    if (ret == 0) {
        ret = inspect(gguf, values, &err);
        gguf_close(gguf);
    }
    return ret != 0 ? command_fail_for(ret, "inspect", &err) : 0;
}

const struct subcommand command_inspect = {.name = "inspect",
                                           .usage = "[OPTIONS] MODEL.gguf",
                                           .help =
                                               "Shows what a model file holds, what it costs, how it would be split",
                                           .options = &table,
                                           .values_bytes = sizeof(struct values),
                                           .positional_min = 1,
                                           .positional_max = 1,
                                           .run = run};
