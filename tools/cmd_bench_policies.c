/* cmd_bench_policies.c - evenflow bench-policies: every policy on every workload, in the simulator, one table.
 *
 * Twice each: with all requests there at once, which says what a policy can do at most; and at a load of 0.6, with the
 * workload's own arrivals scaled to 0.6 of the requests per second that `chunked` with its best chunk gets done, which
 * says what a user sees. `chunked` is always the one with the chunk size that does most at once.
 */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/pipeline.h"
#include "tools/sim.h"
#include "tools/workload.h"

#define LOAD         0.6
#define GOOD_TTFT_MS 2000.0 /* FastPP's targets */
#define GOOD_TPOT_MS 200.0
#define SLO          "+slo"

struct values {
    char pipeline[OPTION_TEXT_MAX], workloads[OPTION_TEXT_MAX], policies[OPTION_TEXT_MAX];
    uint64_t seed, num_prompts;
    bool json;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"pipeline", NULL, 0, OPTION_TEXT, AT(pipeline), "32b", 0, 0, "FILE|NAME",
     "The machine: a file, or " PIPELINE_NAMES},
    {"workloads", NULL, 0, OPTION_TEXT, AT(workloads),
     "azure-conv,azure-code,mooncake-conv,sharegpt,p-heavy,d-heavy,bursts", 0, 0, "NAMES",
     "See evenflow sim --list-workloads"},
    {"policies", NULL, 0, OPTION_TEXT, AT(policies), "default,batch,decode-cap,throttle,chunked,fastpp,even,even+slo",
     0, 0, "NAMES", "Separated by commas; +slo: with the targets that fastpp has, 2 s and 200 ms"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "1", 0, 1e15, "N", "Of the workloads"},
    {"num-prompts", NULL, 0, OPTION_NUMBER, AT(num_prompts), "400", 1, 100000, "N", "Requests of each workload"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "Prints one JSON object per row"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

struct bench {
    const struct values *values;
    struct timing timing;
    const char *workload;
    double best_rate; /* requests per second of chunked at its best chunk */
    uint32_t best_chunk;
};

/* A policy as it takes part: its chunk size (0: the workload's budget), and whether it is told the targets. */
struct entry {
    const struct policy *policy;
    uint32_t chunk;
    bool has_targets;
};

/* The summary of one run, NULL with err. */
static json_t *simulate(const struct bench *bench, const struct entry *entry, double rate, struct err *err)
{
    static struct sim sim;
    const struct values *values = bench->values;
    json_t *root = workload_generate(bench->workload, values->seed, rate, (uint32_t)values->num_prompts, err),
           *summary = NULL;
    if (root == NULL)
        return NULL;
    json_t *config = json_object_get(root, "config");
    if (entry->chunk > 0) {
        json_object_set_new(config, "max_num_batched_tokens", json_integer(entry->chunk));
        json_object_set_new(config, "max_num_seqs", json_integer(entry->chunk < 256 ? entry->chunk : 256));
    }
    if (entry->has_targets) {
        json_object_set_new(config, "ttft_slo", json_integer((json_int_t)GOOD_TTFT_MS));
        json_object_set_new(config, "itl_slo", json_integer((json_int_t)GOOD_TPOT_MS));
    }
    sim = (struct sim){0};
    if (sim_open(&sim, root, entry->policy, &bench->timing, err) == 0) {
        sim_run_clock(&sim);
        summary = sim_summary(&sim);
        json_object_set_new(summary, "goodput", json_real(sim_goodput(&sim, GOOD_TTFT_MS, GOOD_TPOT_MS)));
        sim_close(&sim);
    }
    json_decref(root);
    return summary;
}

static double number(json_t *summary, const char *group, const char *key)
{
    json_t *object = group != NULL ? json_object_get(summary, group) : summary;
    return json_number_value(json_object_get(object, key));
}

/* What all others are measured by: chunked with the chunk that gets most done. */
static int find_best_chunk(struct bench *bench, struct err *err)
{
    double best = 0;
    for (uint32_t chunk = 128; chunk <= 8192; chunk *= 2) {
        struct entry entry = {.policy = &policy_chunked, .chunk = chunk};
        json_t *summary = simulate(bench, &entry, INFINITY, err);
        if (summary == NULL)
            return -1;
        if (number(summary, NULL, "output_tokens_per_s") > best) {
            best = number(summary, NULL, "output_tokens_per_s");
            bench->best_chunk = chunk;
            bench->best_rate = (double)bench->values->num_prompts / number(summary, NULL, "makespan_s");
        }
        json_decref(summary);
    }
    return 0;
}

static void print_row(const struct bench *bench, const char *name, json_t *full, json_t *loaded)
{
    if (bench->values->json) {
        json_t *row = json_pack("{s:s, s:s, s:O, s:O}", "workload", bench->workload, "policy", name, "at_once", full,
                                "at_load", loaded);
        json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
        json_decref(row);
        return;
    }
    printf("%-14s %-13s %9.1f %6.2f %6lld  %7.2f %7.2f  %6.0f %6.0f  %5.0f%%\n", bench->workload, name,
           number(full, NULL, "output_tokens_per_s"), number(full, NULL, "efficiency"),
           (long long)number(full, NULL, "preemptions"), number(loaded, "ttft_ms", "p50") / 1e3,
           number(loaded, "ttft_ms", "p99") / 1e3, number(loaded, "tpot_ms", "p50"), number(loaded, "tpot_ms", "p99"),
           100 * number(loaded, NULL, "goodput"));
}

static int run_entry(const struct bench *bench, const struct entry *entry, struct err *err)
{
    char name[40], size[16] = "";
    if (entry->chunk > 0)
        snprintf(size, sizeof(size), " %u", entry->chunk);
    snprintf(name, sizeof(name), "%s%s%s", entry->policy->name, size, entry->has_targets ? SLO : "");
    json_t *full = simulate(bench, entry, INFINITY, err);
    json_t *loaded = full != NULL ? simulate(bench, entry, LOAD * bench->best_rate, err) : NULL;
    if (loaded != NULL)
        print_row(bench, name, full, loaded);
    json_decref(full);
    json_decref(loaded);
    return loaded != NULL ? 0 : -1;
}

static int run_workload(struct bench *bench, struct err *err)
{
    char names[OPTION_TEXT_MAX], *rest = names;
    if (find_best_chunk(bench, err) != 0)
        return -1;
    snprintf(names, sizeof(names), "%s", bench->values->policies);
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        size_t length = strlen(name), suffix = strlen(SLO);
        struct entry entry = {.has_targets = length > suffix && strcmp(name + length - suffix, SLO) == 0};
        if (entry.has_targets)
            name[length - suffix] = '\0';
        entry.policy = policy_find(name);
        entry.chunk = entry.policy == &policy_chunked ? bench->best_chunk : 0;
        if (entry.policy == NULL)
            return err_set(err, -1, "--policies: \"%.40s\" is none of " POLICY_NAMES_SIMULATED, name);
        if (run_entry(bench, &entry, err) != 0)
            return -1;
    }
    return 0;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    const struct values *values = pointer;
    struct bench bench = {.values = values};
    struct err err;
    char names[OPTION_TEXT_MAX], *rest = names;
    (void)positional;
    (void)positional_count;
    if (pipeline_read(&bench.timing, values->pipeline, &err) != 0)
        return command_fail(1, "bench-policies", err.text);
    if (!values->json)
        printf("                             all at once:              at a load of %.1f:\n"
               "workload       policy         tokens/s   eff. preem.  TTFT s     p99  TPOT ms  p99   good\n",
               LOAD);
    snprintf(names, sizeof(names), "%s", values->workloads);
    while ((bench.workload = strsep(&rest, ",")) != NULL) {
        if (run_workload(&bench, &err) != 0)
            return command_fail(2, "bench-policies", err.text);
        fflush(stdout);
    }
    return 0;
}

const struct subcommand command_bench_policies = {.name = "bench-policies",
                                                  .usage = "[OPTIONS]",
                                                  .help =
                                                      "Compares the policies on workloads, in the simulator: one table",
                                                  .options = &table,
                                                  .values_bytes = sizeof(struct values),
                                                  .run = run};
