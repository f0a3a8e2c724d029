/* cmd_sim.c - evenflow sim: the scheduler on a virtual clock, with a model that is a formula.
 *
 * The scheduler is the engine's own (engine/sched.c and its policies, in plain memory). Without --pipeline time is counted in
 * engine steps, as vLLM's loop does; with it, time is the described pipeline's. Formats: docs/simulator.md.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/gantt.h"
#include "tools/pipeline.h"
#include "tools/replay.h"
#include "tools/sim.h"
#include "tools/workload.h"

#define POLICIES_MAX 8u

struct values {
    char policy[OPTION_TEXT_MAX];
    char pipeline[OPTION_TEXT_MAX];
    char workload[OPTION_TEXT_MAX], trace[OPTION_TEXT_MAX], rate[OPTION_TEXT_MAX], write_scenario[OPTION_TEXT_MAX];
    char svg[OPTION_TEXT_MAX];
    double svg_from, svg_to;
    uint64_t seed, num_prompts;
    bool list_workloads;
    char steps[OPTION_TEXT_MAX];
    char replay[OPTION_TEXT_MAX];
    bool json;

    /* in place of what the scenario's config says */
    char window[OPTION_TEXT_MAX], max_num_batched_tokens[OPTION_TEXT_MAX], max_num_seqs[OPTION_TEXT_MAX];
    char block_size[OPTION_TEXT_MAX], num_blocks[OPTION_TEXT_MAX], max_model_len[OPTION_TEXT_MAX];
    char long_prefill[OPTION_TEXT_MAX], watermark[OPTION_TEXT_MAX], scheduling_policy[OPTION_TEXT_MAX];
    char itl_slo[OPTION_TEXT_MAX], ttft_slo[OPTION_TEXT_MAX];
    bool no_prefix_caching, no_chunked_prefill, no_reserve_full_isl, adaptive_threshold, use_batch_scheduler;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"policy", NULL, 0, OPTION_TEXT, AT(policy), "even", 0, 0, "NAME[,NAME]",
     "Scheduling policy: " POLICY_NAMES_SIMULATED "; several are run one after the other"},
    {"pipeline", NULL, 0, OPTION_TEXT, AT(pipeline), NULL, 0, 0, "FILE|NAME",
     "Time is this described pipeline's, or " PIPELINE_NAMES "'s; without it one engine step after the other"},
    {"steps", NULL, 0, OPTION_TEXT, AT(steps), NULL, 0, 0, "FILE", "Writes one line per step; - is standard output"},
    {"workload", NULL, 0, OPTION_TEXT, AT(workload), NULL, 0, 0, "NAME", "Makes the scenario up: see --list-workloads"},
    {"list-workloads", NULL, 0, OPTION_FLAG, AT(list_workloads), NULL, 0, 0, "", "Lists the workloads and stops"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "1", 0, 1e15, "N", "Of the workload: the same gives the same requests"},
    {"num-prompts", NULL, 0, OPTION_NUMBER, AT(num_prompts), "0", 0, 100000, "N",
     "Requests of the workload; 0: as many as it has of itself"},
    {"rate", NULL, 0, OPTION_TEXT, AT(rate), NULL, 0, 0, "R|inf",
     "Requests a second of the workload or trace, instead of its own; inf: all at once"},
    {"trace", NULL, 0, OPTION_TEXT, AT(trace), NULL, 0, 0, "FILE",
     "Makes the scenario from a CSV file: arrival_s,prompt_tokens,output_tokens"},
    {"write-scenario", NULL, 0, OPTION_TEXT, AT(write_scenario), NULL, 0, 0, "FILE", "Keeps the scenario that was run"},
    {"svg", NULL, 0, OPTION_TEXT, AT(svg), NULL, 0, 0, "FILE",
     "Draws stages over time, the policies one under the other; needs --pipeline"},
    {"svg-from", NULL, 0, OPTION_DECIMAL, AT(svg_from), "0", 0, 1e9, "S", "From this second on"},
    {"svg-to", NULL, 0, OPTION_DECIMAL, AT(svg_to), "0", 0, 1e9, "S", "Up to this second; 0: to the end"},
    {"replay", NULL, 0, OPTION_TEXT, AT(replay), NULL, 0, 0, "FILE",
     "Plans again from what serve --record wrote, and says whether every step is the same"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "Prints the summary as JSON"},
    {"window", NULL, 0, OPTION_TEXT, AT(window), NULL, 0, 0, "N", "Steps in flight at most, instead of the scenario's"},
    {"max-num-batched-tokens", NULL, 0, OPTION_TEXT, AT(max_num_batched_tokens), NULL, 0, 0, "N",
     "Tokens of one step at most, instead of the scenario's"},
    {"max-num-seqs", NULL, 0, OPTION_TEXT, AT(max_num_seqs), NULL, 0, 0, "N", "Sequences running at once, likewise"},
    {"block-size", NULL, 0, OPTION_TEXT, AT(block_size), NULL, 0, 0, "N", "Positions in a KV block, likewise"},
    {"num-blocks", NULL, 0, OPTION_TEXT, AT(num_blocks), NULL, 0, 0, "N", "KV blocks, likewise"},
    {"max-model-len", NULL, 0, OPTION_TEXT, AT(max_model_len), NULL, 0, 0, "N", "Tokens of a sequence, likewise"},
    {"long-prefill-token-threshold", NULL, 0, OPTION_TEXT, AT(long_prefill), NULL, 0, 0, "N",
     "Tokens of one prompt in one step, likewise"},
    {"watermark", NULL, 0, OPTION_TEXT, AT(watermark), NULL, 0, 0, "X", "Share of KV blocks kept free, likewise"},
    {"scheduling-policy", NULL, 0, OPTION_TEXT, AT(scheduling_policy), NULL, 0, 0, "NAME",
     "fcfs or priority, likewise"},
    {"itl-slo", NULL, 0, OPTION_TEXT, AT(itl_slo), NULL, 0, 0, "MS", "Time between tokens that even aims at"},
    {"ttft-slo", NULL, 0, OPTION_TEXT, AT(ttft_slo), NULL, 0, 0, "MS", "Time to the first token that even aims at"},
    {"no-enable-prefix-caching", NULL, 0, OPTION_FLAG, AT(no_prefix_caching), NULL, 0, 0, "", "As serve has it"},
    {"no-enable-chunked-prefill", NULL, 0, OPTION_FLAG, AT(no_chunked_prefill), NULL, 0, 0, "", "As serve has it"},
    {"no-scheduler-reserve-full-isl", NULL, 0, OPTION_FLAG, AT(no_reserve_full_isl), NULL, 0, 0, "", "As serve has it"},
    {"long-prefill-token-threshold-adaptive", NULL, 0, OPTION_FLAG, AT(adaptive_threshold), NULL, 0, 0, "",
     "As serve has it"},
    {"use-batch-scheduler", NULL, 0, OPTION_FLAG, AT(use_batch_scheduler), NULL, 0, 0, "",
     "The same as --policy batch"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* ---- options in place of the scenario's config ---- */

static int override_number(json_t *config, const char *key, const char *option, const char *text)
{
    char *end;
    double number = strtod(text, &end);
    char message[128];
    if (text[0] == '\0')
        return 0;
    if (end == text || *end != '\0') {
        snprintf(message, sizeof(message), "--%s: \"%.40s\" is not a number", option, text);
        return command_fail(2, "sim", message);
    }
    bool is_whole = number == (double)(json_int_t)number;
    json_object_set_new(config, key, is_whole ? json_integer((json_int_t)number) : json_real(number));
    return 0;
}

static int override_config(json_t *root, const struct values *v)
{
    const struct {
        const char *key, *option, *text;
    } numbers[] = {
        {v->pipeline[0] != '\0' ? "window" : "pipeline_depth", "window",
         strcmp(v->window, "auto") == 0 ? "" : v->window},
        {"max_num_batched_tokens", "max-num-batched-tokens", v->max_num_batched_tokens},
        {"max_num_seqs", "max-num-seqs", v->max_num_seqs},
        {"block_size", "block-size", v->block_size},
        {"num_blocks", "num-blocks", v->num_blocks},
        {"max_model_len", "max-model-len", v->max_model_len},
        {"long_prefill_token_threshold", "long-prefill-token-threshold", v->long_prefill},
        {"watermark", "watermark", v->watermark},
        {"itl_slo", "itl-slo", v->itl_slo},
        {"ttft_slo", "ttft-slo", v->ttft_slo},
    };
    const struct {
        const char *key;
        bool is_given, value;
    } flags[] = {{"enable_prefix_caching", v->no_prefix_caching, false},
                 {"enable_chunked_prefill", v->no_chunked_prefill, false},
                 {"scheduler_reserve_full_isl", v->no_reserve_full_isl, false},
                 {"long_prefill_token_threshold_adaptive", v->adaptive_threshold, true}};
    if (!json_is_object(root))
        return 0; /* the scenario is refused anyway */
    if (json_object_get(root, "config") == NULL)
        json_object_set_new(root, "config", json_object());
    json_t *config = json_object_get(root, "config");
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        if (override_number(config, numbers[i].key, numbers[i].option, numbers[i].text) != 0)
            return 2;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++)
        if (flags[i].is_given)
            json_object_set_new(config, flags[i].key, json_boolean(flags[i].value));
    if (v->scheduling_policy[0] != '\0')
        json_object_set_new(config, "policy", json_string(v->scheduling_policy));
    return 0;
}

/* ---- output ---- */

static void print_value(const char *key, json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    fprintf(stderr, "%-24s %s\n", key, text != NULL ? text : "?");
    free(text);
}

static void print_summary(json_t *summary)
{
    const char *key;
    json_t *value;
    json_object_foreach(summary, key, value)
        print_value(key, value);
}

static json_t *summary_of_ticks(const struct sim *sim)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "policy", sim->sched.policy->name, "steps",
                     (json_int_t)sim->steps_run, "preemptions", (json_int_t)sim->sched.preemptions, "prompt_tokens",
                     (json_int_t)sim->sched.prompt_tokens, "cached_tokens", (json_int_t)sim->sched.cached_tokens,
                     "generated_tokens", (json_int_t)sim->sched.generated_tokens);
}

static int run_replay(const char *path, bool is_json)
{
    struct replay_result result;
    struct err err;
    if (replay_file(&result, path, &err) != 0)
        return command_fail(1, "sim", err.text);
    if (is_json)
        printf("{\"requests\":%llu,\"steps\":%llu,\"tokens\":%llu,\"first_difference\":%llu}\n",
               (unsigned long long)result.requests, (unsigned long long)result.steps, (unsigned long long)result.tokens,
               (unsigned long long)result.first_difference);
    if (result.first_difference != 0)
        return command_fail(1, "sim", result.err.text);
    fprintf(stderr, "%llu steps of %llu requests, %llu tokens: the same\n", (unsigned long long)result.steps,
            (unsigned long long)result.requests, (unsigned long long)result.tokens);
    for (uint32_t stage = 0; stage < result.stages; stage++)
        fprintf(stderr,
                "stage %u: predicted times are off by %.1f %% on average; %llu steps differ from one before them that "
                "did the "
                "same by %.1f %%\n",
                stage, 100 * result.prediction_errors[stage], (unsigned long long)result.repeated_steps[stage],
                100 * result.repeat_errors[stage]);
    return 0;
}

/* ---- input ---- */

/* "0": the workload's own. NAN: no such number. */
static double read_rate(const char *text)
{
    char *end;
    double rate = strtod(text, &end);
    return text[0] == '\0' ? 0 : *end == '\0' && rate > 0 ? rate : NAN;
}

/* The scenario from where the user says; NULL: what was wrong is said. */
static json_t *load_scenario(const struct values *values, const char *path, int *status)
{
    double rate = read_rate(values->rate);
    struct err err;
    json_t *root;
    *status = 2;
    if (isnan(rate)) {
        command_fail(2, "sim", "--rate: must be a number above 0, or inf");
        return NULL;
    }
    if (values->workload[0] != '\0')
        root = workload_generate(values->workload, values->seed, rate, (uint32_t)values->num_prompts, &err);
    else if (values->trace[0] != '\0')
        root = workload_read_trace(values->trace, rate, &err);
    else
        root = scenario_load(path, &err);
    if (root == NULL)
        *status = command_fail(values->workload[0] != '\0' ? 2 : 1, "sim", err.text);
    else if (override_config(root, values) == 0)
        return root;
    json_decref(root);
    return NULL;
}

static int find_policies(const char *names, const struct policy **policies, uint32_t *count)
{
    char text[OPTION_TEXT_MAX], *rest = text;
    snprintf(text, sizeof(text), "%s", names);
    *count = 0;
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        const struct policy *policy = policy_find(name);
        if (policy == NULL || *count == POLICIES_MAX)
            return command_fail(2, "sim", "--policy: one or several of: " POLICY_NAMES_SIMULATED);
        policies[(*count)++] = policy;
    }
    return 0;
}

/* ---- running ---- */

static int run_policies(struct sim *sims, json_t *root, const char *name, const struct policy *const *policies,
                        uint32_t count, const struct timing *timing, FILE *steps, bool keeps_spans)
{
    struct err err;
    for (uint32_t i = 0; i < count; i++) {
        sims[i].out = steps;
        sims[i].keeps_spans = keeps_spans;
        if (sim_open(&sims[i], root, policies[i], timing, &err) != 0) {
            err_prefix(&err, -EINVAL, "%s", name);
            return command_fail(1, "sim", err.text);
        }
        if (timing != NULL)
            sim_run_clock(&sims[i]);
        else
            sim_run_ticks(&sims[i]);
    }
    return 0;
}

static void print_summaries(const struct sim *sims, uint32_t count, bool has_clock, bool is_json)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, has_clock ? sim_summary(&sims[i]) : summary_of_ticks(&sims[i]));
    if (is_json) {
        json_dumpf(count > 1 ? list : json_array_get(list, 0), stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
    } else {
        for (uint32_t i = 0; i < count; i++)
            print_summary(json_array_get(list, i));
    }
    json_decref(list);
}

static int write_scenario(json_t *root, const char *path)
{
    if (path[0] != '\0' && json_dump_file(root, path, JSON_COMPACT) != 0)
        return command_fail(1, "sim", "--write-scenario: cannot write the file");
    return 0;
}

static int simulate(const struct values *values, json_t *root, const char *name)
{
    static struct sim sims[POLICIES_MAX];
    const struct policy *policies[POLICIES_MAX];
    bool has_clock = values->pipeline[0] != '\0', has_steps = values->steps[0] != '\0';
    struct timing timing;
    uint32_t count;
    struct err err;
    FILE *steps = NULL;
    if (find_policies(values->use_batch_scheduler ? "batch" : values->policy, policies, &count) != 0)
        return 2;
    if (has_steps && count > 1)
        return command_fail(2, "sim", "--steps: writes the steps of one policy");
    if (values->svg[0] != '\0' && !has_clock)
        return command_fail(2, "sim", "--svg: needs --pipeline, which says how long things take");
    if (values->svg_to > 0 && values->svg_to <= values->svg_from)
        return command_fail(2, "sim", "--svg-to: must be behind --svg-from");
    if (has_clock && pipeline_read(&timing, values->pipeline, &err) != 0)
        return command_fail(1, "sim", err.text);
    if (write_scenario(root, values->write_scenario) != 0)
        return 1;
    if (has_steps)
        steps = strcmp(values->steps, "-") == 0 ? stdout : fopen(values->steps, "we");
    if (has_steps && steps == NULL)
        return command_fail(1, "sim", "--steps: cannot create the file");
    int status =
        run_policies(sims, root, name, policies, count, has_clock ? &timing : NULL, steps, values->svg[0] != '\0');
    if (steps != NULL && steps != stdout && fclose(steps) != 0)
        return command_fail(1, "sim", "--steps: cannot write the file");
    if (status != 0)
        return status;
    print_summaries(sims, count, has_clock, values->json);
    if (values->svg[0] != '\0' && gantt_write(values->svg, sims, count, values->svg_from, values->svg_to, &err) != 0)
        status = command_fail(1, "sim", err.text);
    for (uint32_t i = 0; i < count; i++)
        sim_close(&sims[i]);
    return status;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    const struct values *values = pointer;
    int sources =
            positional_count + (values->workload[0] != '\0') + (values->trace[0] != '\0') + (values->replay[0] != '\0'),
        status;
    if (values->list_workloads) {
        workload_print_list(stdout);
        return 0;
    }
    if (sources != 1)
        return command_fail(2, "sim",
                            "give one of SCENARIO.json, --workload, --trace, --replay; see evenflow sim --help");
    if (values->replay[0] != '\0')
        return run_replay(values->replay, values->json);
    const char *name = positional_count == 1         ? positional[0]
                       : values->workload[0] != '\0' ? values->workload
                                                     : values->trace;
    json_t *root = load_scenario(values, name, &status);
    if (root == NULL)
        return status;
    status = simulate(values, root, name);
    json_decref(root);
    return status;
}

const struct subcommand command_sim = {.name = "sim",
                                       .usage =
                                           "[OPTIONS] SCENARIO.json | --workload NAME | --trace FILE | --replay FILE",
                                       .help = "Runs the scheduler alone on a scenario, or on a described pipeline",
                                       .options = &table,
                                       .values_bytes = sizeof(struct values),
                                       .positional_max = 1,
                                       .run = run};
