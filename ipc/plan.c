#include "ipc/plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ipc/layout.h"

struct limit {
    const char *name;
    uint64_t value, min, max;
};

static int check_text(const char *name, const char *text, size_t bytes, struct err *err)
{
    if (memchr(text, '\0', bytes) == NULL)
        return err_set(err, -EINVAL, "plan: %s is not terminated", name);
    return 0;
}

int plan_validate(const struct plan *plan, struct err *err)
{
    if (plan->magic != PLAN_MAGIC)
        return err_set(err, -EINVAL, "plan: magic %#llx is not %#llx; mixed builds?", (unsigned long long)plan->magic,
                       (unsigned long long)PLAN_MAGIC);
    if (plan->layout_hash != LAYOUT_HASH)
        return err_set(err, -EINVAL, "plan: layout %#llx is not %#llx; mixed builds?",
                       (unsigned long long)plan->layout_hash, (unsigned long long)LAYOUT_HASH);
    const struct limit limits[] = {
        {"layers", plan->layers, 1, 1024},
        {"width", plan->width, 1, 1u << 16},
        {"heads", plan->heads, 1, 1024},
        {"kv_heads", plan->kv_heads, 1, plan->heads},
        {"head_dim", plan->head_dim, 1, 1024},
        {"vocab_size", plan->vocab_size, 1, 1u << 24},
        {"end_token_count", plan->end_token_count, 0, END_TOKENS_MAX},
        {"backend", plan->backend, BACKEND_MODEL, BACKEND_TIMED},
        {"speculate", plan->speculate, SPECULATE_NONE, SPECULATE_NGRAM},
        {"stage_count", plan->stage_count, 1, min_u64(STAGES_MAX, plan->layers)},
        {"window", plan->window, 1, 4 * STAGES_MAX},
        {"threads_per_stage", plan->threads_per_stage, 1, 64},
        {"lone_threads", plan->lone_threads, plan->threads_per_stage, 64},
        {"max_model_len", plan->max_model_len, 1, 1u << 22},
        {"max_num_seqs", plan->max_num_seqs, 1, 4096},
        {"max_num_batched_tokens", plan->max_num_batched_tokens, 1, 1u << 18},
        {"block_size", plan->block_size, 1, 1024},
        {"num_blocks", plan->num_blocks, 1, 1u << 28},
        {"requests_max", plan->requests_max, 1, 1u << 17},
        {"sequences_max", plan->sequences_max, 1, 1u << 18},
        {"prompt_pages", plan->prompt_pages, 1, 1u << 24},
        {"log_pages", plan->log_pages, 1, 1u << 24},
        {"connections_max", plan->connections_max, 1, CONNECTIONS_MAX},
        {"spares", plan->spares, 0, 1},
        {"device_memory", plan->device_memory, DEVICE_MEMORY_VMM, DEVICE_MEMORY_IPC},
        {"cuda_graphs", plan->cuda_graphs, 0, 1},
        {"io", plan->io, IO_ANY, IO_EPOLL},
        {"body_bytes_max", plan->body_bytes_max, 1024, 1u << 28},
    };
    for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
        const struct limit *limit = &limits[i];
        if (limit->value < limit->min || limit->value > limit->max)
            return err_set(err, -EINVAL, "plan: %s is %llu; %llu to %llu are possible", limit->name,
                           (unsigned long long)limit->value, (unsigned long long)limit->min,
                           (unsigned long long)limit->max);
    }
    uint32_t layer = 0;
    for (uint32_t stage = 0; stage < plan->stage_count; stage++) {
        const struct plan_slice *slice = &plan->slices[stage];
        if (slice->first_layer != layer || slice->layer_count == 0)
            return err_set(err, -EINVAL, "plan: slice %u does not follow the one before", stage);
        layer += slice->layer_count;
        bool is_on_device = slice->device != DEVICE_CPU;
        if (slice->device > DEVICES_MAX || (is_on_device && plan->backend != BACKEND_MODEL) ||
            (is_on_device &&
             (plan->device_page_bytes < 4096 || (plan->device_page_bytes & (plan->device_page_bytes - 1)) != 0)))
            return err_set(err, -EINVAL, "plan: slice %u: device %u, memory in pages of %llu", stage, slice->device,
                           (unsigned long long)plan->device_page_bytes);
        bool joins_devices = is_on_device && stage + 1 < plan->stage_count && slice[1].device != DEVICE_CPU;
        if (slice->edge > EDGE_NCCL || (slice->edge != EDGE_HOST && !joins_devices))
            return err_set(err, -EINVAL, "plan: slice %u: edge %u", stage, slice->edge);
    }
    if (layer != plan->layers)
        return err_set(err, -EINVAL, "plan: the slices hold %u of %u layers", layer, plan->layers);
    uint64_t timed = plan->timing.stage_count;
    if (timed != plan->stage_count && (timed != 0 || plan->backend == BACKEND_TIMED))
        return err_set(err, -EINVAL, "plan: times of %llu stages for %u", (unsigned long long)timed, plan->stage_count);
    if (timed != 0 && timing_validate(&plan->timing, err) != 0)
        return err_prefix(err, -EINVAL, "plan");
    int ret = check_text("isa", plan->isa, sizeof(plan->isa), err);
    ret = ret ? ret : check_text("policy", plan->policy, sizeof(plan->policy), err);
    ret = ret ? ret : check_text("version", plan->version, sizeof(plan->version), err);
    ret = ret ? ret : check_text("fingerprint", plan->fingerprint, sizeof(plan->fingerprint), err);
    ret = ret ? ret : check_text("served_model_name", plan->served_model_name, sizeof(plan->served_model_name), err);
    ret = ret ? ret : check_text("model_path", plan->model_path, sizeof(plan->model_path), err);
    ret = ret ? ret : check_text("weights_cache", plan->weights_cache, sizeof(plan->weights_cache), err);
    ret = ret ? ret : check_text("socket_path", plan->socket_path, sizeof(plan->socket_path), err);
    return ret ? ret : check_text("program_dir", plan->program_dir, sizeof(plan->program_dir), err);
}

bool plan_begins_with_record(const struct plan *plan, uint32_t stage)
{
    return stage == 0 || plan->slices[stage - 1].edge == EDGE_DEVICE;
}

bool plan_uses_nccl(const struct plan *plan, uint32_t stage)
{
    return plan->slices[stage].edge == EDGE_NCCL || (stage > 0 && plan->slices[stage - 1].edge == EDGE_NCCL);
}

bool plan_uses_device(const struct plan *plan, uint32_t device)
{
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        if (plan->slices[stage].device == device)
            return true;
    return false;
}

bool plan_uses_devices(const struct plan *plan)
{
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        if (plan->slices[stage].device != DEVICE_CPU)
            return true;
    return false;
}

const char *plan_device_name(uint32_t device, char name[16])
{
    if (device == DEVICE_CPU)
        return "cpu";
    snprintf(name, 16, "cuda:%u", device - 1);
    return name;
}

const char *plan_edge_name(uint32_t edge)
{
    static const char *const names[] = {[EDGE_HOST] = "host", [EDGE_DEVICE] = "device", [EDGE_NCCL] = "nccl"};
    return edge < ARRAY_COUNT(names) ? names[edge] : "?";
}
