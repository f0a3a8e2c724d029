/* cmd_inspect.c - evenflow inspect: what is in a model file, and how it would be split. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "stages/cost.h"
#include "stages/gguf.h"
#include "stages/model.h"
#include "tools/commands.h"
#include "tools/devices.h"

struct values {
    uint64_t stages;
    char devices[OPTION_TEXT_MAX];
    bool tensors;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"pipeline-parallel-size", "stages", 'p', OPTION_NUMBER, AT(stages), "2", 1, 32, "N",
     "Stages of the proposed split"},
    {"devices", NULL, 0, OPTION_TEXT, AT(devices), NULL, 0, 0, "A,B,...", "What each would compute on, as for serve"},
    {"tensors", NULL, 0, OPTION_FLAG, AT(tensors), NULL, 0, 0, "", "Lists every tensor and metadata key too"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

static void list_everything(const struct gguf *gguf)
{
    struct gguf_string key;
    uint32_t type;
    for (uint64_t i = 0; gguf_metadata(gguf, i, &key, &type); i++)
        printf("  %.*s (value type %u)\n", (int)key.size, key.data, type);
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        printf("  %-32.*s %-6s %8" PRIu64 " x %-8" PRIu64 " %10" PRIu64 " bytes\n", (int)tensor->name.size,
               tensor->name.data, gguf_type_name(tensor->type), tensor->ne[0], tensor->ne[1], tensor->bytes);
    }
}

static void print_stage(const struct cost *cost, const struct model_desc *desc, uint32_t stage, uint32_t stages,
                        uint32_t first, uint32_t count, uint32_t device)
{
    char name[16];
    const struct timing_stage t = cost_stage(cost, count, stage == 0, stage + 1 == stages);
    printf("stage %u: %u layers on %s, %.1f MiB of weights, %.3f ms: base %.0f + %.1f a row + the longer of %.0f and "
           "%.1f a "
           "token "
           "+ %.4f a position of context + %.5f a pair of a prompt's, microseconds\n",
           stage, count, plan_device_name(device, name), (double)model_slice_bytes(desc, first, count) / (1 << 20),
           cost_usual_us(&t) / 1e3, t.base_us, t.row_us, t.weights_us, t.token_us, t.context_us, t.pair_us);
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    const struct values *values = pointer;
    struct gguf *gguf;
    struct err err;
    if (gguf_open(&gguf, positional[0], &err) != 0)
        return command_fail(1, "inspect", err.text);
    if (values->tensors)
        list_everything(gguf);
    struct model_desc *desc = base_alloc(sizeof(*desc));
    struct cost cost;
    const struct kernels *kernels = kernels_pick(NULL);
    if (model_describe(desc, gguf, &err) != 0 || cost_measure(&cost, gguf, desc, kernels, &err) != 0)
        return command_fail(1, "inspect", err.text);
    printf("layers %u, width %u, heads %u of %u floats, KV heads %u, feed forward %u, vocabulary %u, context %u\n",
           desc->layers, desc->width, desc->heads, desc->head_dim, desc->kv_heads, desc->feed_forward, desc->vocab_size,
           desc->context_length);
    printf("a step of 16 sequences on this machine (%s): layer %.3f ms, head %.3f ms, embedding %.3f ms\n",
           kernels->name, cost_usual_us(&cost.layer) / 1e3, cost_usual_us(&cost.head) / 1e3,
           cost_usual_us(&cost.embedding) / 1e3);
    if (values->stages > desc->layers)
        return command_fail(1, "inspect", "more stages than layers");
    uint32_t counts[STAGES_MAX], devices[STAGES_MAX], first = 0;
    if (devices_parse(values->devices, (uint32_t)values->stages, devices, &err) != 0)
        return command_fail(2, "inspect", err.text);
    cost_split(&cost, desc->layers, (uint32_t)values->stages, counts);
    for (uint32_t stage = 0; stage < values->stages; first += counts[stage++])
        print_stage(&cost, desc, stage, (uint32_t)values->stages, first, counts[stage], devices[stage]);
    free(desc);
    gguf_close(gguf);
    return 0;
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
