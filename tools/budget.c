#include "tools/budget.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>

#include "ipc/layout.h"
#include "ipc/log.h"
#include "kernels/kernels.h"

#define PAGE_BYTES        4096u
#define FILES_BASE        128u /* poll() asks for 109 of the supervisor's loop, open or not */
#define FILES_PER_PROCESS 14u  /* regions, bells, pidfds, spares */

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

uint64_t budget_available_bytes(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    unsigned long long available_kb = 0;
    char line[128];
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &available_kb) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return available_kb * 1024;
}

/* What an engine takes, in bytes. */
struct budget {
    uint64_t weights, kv, activations, tables, vocabulary, all, connections;
    uint64_t on_devices, activations_on_devices;
};

static struct budget budget_of(const struct plan *plan)
{
    struct layout layout;
    layout_compute(&layout, plan);
    const uint64_t *bytes = layout.region_bytes;
    struct budget budget = {.tables = bytes[REGION_FRONT] + bytes[REGION_SCHED],
                            .vocabulary = bytes[REGION_VOCAB] + bytes[REGION_SUP] + PAGE_BYTES,
                            .connections = bytes[REGION_CONNS]};
    for (uint32_t stage = 0; stage < plan->stage_count; stage++) {
        uint64_t weights = bytes[REGION_WEIGHTS + stage], kv = bytes[REGION_KV + stage];
        bool is_on_device = plan->slices[stage].device != DEVICE_CPU;
        budget.weights += is_on_device ? 0 : weights;
        budget.kv += is_on_device ? 0 : kv;
        budget.on_devices += is_on_device ? weights + kv : 0;
        uint64_t ends = plan->slices[stage].edge == EDGE_NCCL ? 2 : 1;
        budget.activations_on_devices += ends * bytes[REGION_EDGE + stage];
        budget.activations += bytes[REGION_STAGE + stage];
    }
    budget.on_devices += budget.activations_on_devices;
    budget.all = budget.weights + budget.kv + budget.activations + budget.tables + budget.vocabulary;
    return budget;
}

static void print_model(const struct plan *plan, bool uses_devices)
{
    char name[16];
    fprintf(stderr, "model        %s, %u layers over %u stages (", plan->served_model_name, plan->layers,
            plan->stage_count);
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        fprintf(stderr, "%s%u%s%s", stage ? "," : "", plan->slices[stage].layer_count, uses_devices ? " on " : "",
                uses_devices ? plan_device_name(plan->slices[stage].device, name) : "");
    for (uint32_t stage = 0; uses_devices && stage + 1 < plan->stage_count; stage++)
        fprintf(stderr, "%s%s", stage ? "," : "; handed on by ", plan_edge_name(plan->slices[stage].edge));
    fprintf(stderr, ")\nfingerprint  %s\n", plan->fingerprint);
}

static void print_budget(const struct plan *plan, const struct budget *budget)
{
    fprintf(stderr, "budget       weights      %9.1f MiB\n", mib(budget->weights));
    fprintf(stderr, "             KV cache     %9.1f MiB  %u blocks of %u positions, %s\n", mib(budget->kv),
            plan->num_blocks, plan->block_size, kv_type_name(plan->kv_type));
    fprintf(stderr, "             activations  %9.1f MiB  steps of up to %u tokens, %u in flight; with results\n",
            mib(budget->activations), plan->max_num_batched_tokens, plan->window);
    fprintf(stderr, "             tables       %9.1f MiB  %u requests, %u sequences, rings, token logs\n",
            mib(budget->tables), plan->requests_max, plan->sequences_max);
    fprintf(stderr, "             vocabulary   %9.1f MiB\n", mib(budget->vocabulary));
    fprintf(stderr, "             all          %9.1f MiB  and up to %.1f MiB for %u connections as they come\n",
            mib(budget->all), mib(budget->connections), plan->connections_max);
    if (budget->on_devices > 0)
        fprintf(stderr,
                "             on devices   %9.1f MiB  weights and KV cache of the stages, %.1f MiB of it for\n"
                "                                        activations between them\n",
                mib(budget->on_devices), mib(budget->activations_on_devices));
}

static int check_limits(const struct plan *plan, const struct budget *budget, struct err *err)
{
    struct rlimit files;
    uint64_t files_needed = FILES_BASE + FILES_PER_PROCESS * (uint64_t)(ROLE_STAGE + plan->stage_count);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_max < files_needed)
        return err_set(err, -EMFILE,
                       "a process may have %llu files open and the supervisor of %u stages needs %llu, besides one for "
                       "each connection: raise the limit (ulimit -n)",
                       (unsigned long long)files.rlim_max, plan->stage_count, (unsigned long long)files_needed);
    uint64_t available = budget_available_bytes();
    if (available != 0 && budget->all > available)
        return err_set(err, -ENOMEM,
                       "%.1f MiB are needed and %.1f MiB are free: %.1f MiB are missing; lower --kv-memory",
                       mib(budget->all), mib(available), mib(budget->all) - mib(available));
    return 0;
}

int budget_say(const struct plan *plan, struct err *err)
{
    const struct budget budget = budget_of(plan);
    if (plan->log_level >= LOG_INFO) {
        print_model(plan, budget.on_devices > 0);
        print_budget(plan, &budget);
    }
    return check_limits(plan, &budget, err);
}
