/* test_even.c - policy even and the simulator on a pipeline's clock: what docs/scheduling.md says, recomputed from the steps.
 *
 * Times, makespan and lower bound are computed here once more, from the step lines and the machine's numbers alone. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pipeline.h"
#include "tools/sim.h"
#include "tools/workload.h"

static struct timing machine(const char *name)
{
    struct timing timing;
    cr_assert_eq(pipeline_read(&timing, name, NULL), 0);
    return timing;
}

/* So many requests of one shape at once. */
static json_t *batch_of(uint32_t count, uint32_t prompt, uint32_t output, uint32_t blocks, uint32_t budget)
{
    json_t *requests = json_array();
    for (uint32_t i = 0; i < count; i++) {
        char id[16];
        snprintf(id, sizeof(id), "r%u", i);
        json_array_append_new(requests, json_pack("{s:s, s:[[i, i]], s:i}", "id", id, "prompt", (int)i * 200,
                                                  (int)prompt, "max_tokens", (int)output));
    }
    return json_pack("{s:{s:i, s:i, s:b, s:i}, s:o}", "config", "num_blocks", (int)blocks, "max_num_batched_tokens",
                     (int)budget, "enable_prefix_caching", 0, "max_num_seqs", 256, "requests", requests);
}

/* Runs a scenario and gives it up; the caller closes the run. */
static void run(struct sim *sim, json_t *root, const char *policy, const struct timing *timing)
{
    struct err err;
    sim->keeps_spans = true;
    cr_assert_eq(sim_open(sim, root, policy_find(policy), timing, &err), 0, "%s", err.text);
    sim_run_clock(sim);
    json_decref(root);
}

static double number(const struct sim *sim, const char *group, const char *key)
{
    json_t *summary = sim_summary(sim), *object = group != NULL ? json_object_get(summary, group) : summary;
    double value = json_number_value(json_object_get(object, key));
    json_decref(summary);
    return value;
}

static double measure(json_t *root, const char *policy, const struct timing *timing, const char *group, const char *key)
{
    struct sim sim = {0};
    run(&sim, root, policy, timing);
    double value = number(&sim, group, key);
    sim_close(&sim);
    return value;
}

/* ---- the judge: nothing of the simulator's is believed ---- */

struct judge {
    const struct timing *timing;
    uint32_t count, prompt, output, blocks; /* of requests of one shape, all at once */
    double stage_free[8], link_free[8];
    uint32_t *computed, *tokens; /* by request */
    double *back_s;              /* when its last row returned */
    double last_planned_s, makespan_s;
    uint32_t preemptions, steps;
};

static uint32_t blocks_held(const struct judge *judge)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < judge->count; i++)
        held += (judge->computed[i] + 15) / 16;
    return held;
}

/* Sequences that have had their last token by this time hold nothing any more. */
static void let_go(struct judge *judge, double now_s)
{
    for (uint32_t i = 0; i < judge->count; i++)
        if (judge->tokens[i] == judge->output && judge->back_s[i] <= now_s)
            judge->computed[i] = 0;
}

static double expect_at(double expected_s, json_t *got, const char *what, uint32_t step)
{
    cr_assert_float_eq(json_number_value(got), expected_s, 2e-9 * fmax(1, expected_s) + 2e-9,
                       "step %u: %s: %.9f, not %.9f", step, what, json_number_value(got), expected_s);
    return expected_s;
}

static void judge_step(struct judge *judge, json_t *line)
{
    const struct timing *t = judge->timing;
    json_t *rows = json_object_get(line, "scheduled"), *row, *stages = json_object_get(line, "stages");
    double planned_s = json_number_value(json_object_get(line, "planned_s"));
    double returned_s = json_number_value(json_object_get(line, "returned_s"));
    double count = (double)json_array_size(rows), tokens = 0, context = 0, pairs = 0, at = planned_s + t->plan_us / 1e6;
    size_t i;
    cr_assert_gt(count, 0); /* no empty microbatch takes a slot */
    cr_assert(judge->steps == 0 || planned_s >= judge->last_planned_s + t->plan_us / 1e6 - 1e-9);
    judge->last_planned_s = planned_s;
    let_go(judge, planned_s + 1e-9);
    json_array_foreach(json_object_get(line, "preempted"), i, row) {
        judge->computed[atoi(json_string_value(row) + 1)] = 0;
        judge->preemptions++;
    }
    json_array_foreach(rows, i, row) {
        uint32_t request = (uint32_t)atoi(json_string_value(json_array_get(row, 0)) + 1);
        uint32_t chunk = (uint32_t)json_integer_value(json_array_get(row, 1));
        uint32_t past = (uint32_t)json_integer_value(json_array_get(row, 2));
        cr_assert_eq(past, judge->computed[request], "step %u: r%u", judge->steps, request);
        if (past >= judge->prompt + judge->tokens[request] - 1 && judge->tokens[request] > 0)
            cr_assert_leq(judge->back_s[request], planned_s + 1e-9, "step %u: r%u before its token is back",
                          judge->steps, request);
        judge->computed[request] += chunk;
        tokens += chunk;
        context += past + chunk;
        pairs += chunk > 1 ? chunk * (past + chunk / 2.0) : 0;
        if (judge->computed[request] == judge->prompt + judge->tokens[request]) {
            judge->tokens[request]++;
            judge->back_s[request] = returned_s;
        }
        cr_assert_leq(judge->computed[request], judge->prompt + judge->tokens[request]);
    }
    cr_assert_leq(blocks_held(judge), judge->blocks, "step %u", judge->steps);
    for (uint32_t s = 0; s < t->stage_count; s++) {
        const struct timing_stage *stage = &t->stages[s];
        json_t *pair = json_array_get(stages, s);
        double busy = stage->base_us + stage->row_us * count + fmax(stage->weights_us, stage->token_us * tokens) +
                      stage->context_us * context + stage->pair_us * pairs;
        at = expect_at(fmax(at, judge->stage_free[s]), json_array_get(pair, 0), "start", judge->steps);
        at = judge->stage_free[s] = expect_at(at + busy / 1e6, json_array_get(pair, 1), "end", judge->steps);
        if (s + 1 < t->stage_count)
            at = judge->link_free[s] =
                fmax(at, judge->link_free[s]) + (t->links[s].latency_us + t->links[s].token_us * tokens) / 1e6;
    }
    expect_at(at + t->return_us / 1e6, json_object_get(line, "returned_s"), "returned", judge->steps);
    judge->makespan_s = fmax(judge->makespan_s, returned_s);
    judge->steps++;
}

/* Runs the batch and recomputes everything from its step lines. */
static struct judge judge_batch(const struct timing *timing, const char *policy, uint32_t count, uint32_t prompt,
                                uint32_t output, uint32_t blocks, uint32_t budget)
{
    struct judge judge = {.timing = timing, .count = count, .prompt = prompt, .output = output, .blocks = blocks};
    struct sim sim = {.out = tmpfile()};
    char *text = NULL;
    size_t room = 0;
    judge.computed = calloc(count, sizeof(*judge.computed));
    judge.tokens = calloc(count, sizeof(*judge.tokens));
    judge.back_s = calloc(count, sizeof(*judge.back_s));
    FILE *lines = sim.out;
    run(&sim, batch_of(count, prompt, output, blocks, budget), policy, timing);
    rewind(lines);
    while (getline(&text, &room, lines) > 0) {
        json_t *line = json_loads(text, 0, NULL);
        cr_assert_not_null(line);
        if (json_object_get(line, "end") == NULL)
            judge_step(&judge, line);
        json_decref(line);
    }
    for (uint32_t i = 0; i < count; i++)
        cr_assert_eq(judge.tokens[i], output, "r%u has %u tokens", i, judge.tokens[i]);
    cr_assert_float_eq(number(&sim, NULL, "makespan_s"), judge.makespan_s, 1e-6);
    free(text);
    fclose(lines);
    free(judge.computed);
    free(judge.tokens);
    free(judge.back_s);
    judge.computed = judge.tokens = NULL;
    judge.back_s = NULL;
    sim_close(&sim);
    return judge;
}

/* The strict lower bound for requests of one shape, all at once: every number of microbatches is tried. */
static double bound_s(const struct timing *t, uint32_t count, uint32_t prompt, uint32_t output, uint32_t blocks)
{
    double rows = (double)count * (output - 1), tokens = rows + (double)count * prompt, alpha = t->return_us, beta = 0;
    double context = 0, held = 0, best = INFINITY, least_blocks = (prompt + 1 + 15) / 16;
    for (uint32_t k = 1; k < output; k++) {
        context += count * (double)(prompt + k);
        held += count * (double)((prompt + k + 15) / 16);
    }
    context += (double)count * prompt;
    for (uint32_t s = 0; s < t->stage_count; s++) {
        alpha += t->stages[s].base_us + t->stages[s].weights_us;
        beta += t->stages[s].row_us + t->stages[s].context_us * (prompt + 1);
        if (s + 1 < t->stage_count) {
            alpha += t->links[s].latency_us;
            beta += t->links[s].token_us;
        }
    }
    for (double m = output - 1; m <= rows; m++) {
        double work = 0;
        for (uint32_t s = 0; s < t->stage_count; s++) {
            const struct timing_stage *stage = &t->stages[s];
            double fixed = stage->base_us + stage->weights_us;
            work = fmax(work, alpha - fixed + fmax(m * fixed, m * stage->base_us + tokens * stage->token_us) +
                                  (rows + count) * stage->row_us + context * stage->context_us +
                                  count * 0.5 * prompt * prompt * stage->pair_us);
        }
        double kv = (alpha * held + beta * least_blocks * rows * rows / m) / blocks;
        double each = (alpha * rows + beta * rows * rows / m) / count;
        best = fmin(best, fmax(work, fmax(kv, each)));
    }
    double chain = output * alpha;
    for (uint32_t s = 0; s < t->stage_count; s++) {
        chain += (output - 1) * t->stages[s].row_us + t->stages[s].context_us * (context / count - prompt);
        if (s + 1 < t->stage_count)
            chain += (output - 1) * t->links[s].token_us;
    }
    double link = t->stage_count > 1 ? tokens * t->links[0].token_us + t->links[0].latency_us : 0;
    return fmax(best, fmax(chain, link)) / 1e6;
}

/* ---- what is measured ---- */

Test(even, the_seeds_table_follows_from_the_steps, .timeout = 120)
{
    static const struct {
        const char *policy;
        uint32_t blocks, budget;
        double expected_s;
    } cases[] = {{"default", 934, 16384, 142.8}, {"batch-as-published", 934, 16384, 72.5}, {"batch", 934, 16384, 67.3},
                 {"default", 1386, 2048, 65.7},  {"batch-as-published", 1386, 2048, 81.2}, {"batch", 1386, 2048, 55.1}};
    struct timing timing = machine("13b");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct judge judge = judge_batch(&timing, cases[i].policy, 256, 128, 128, cases[i].blocks, cases[i].budget);
        cr_expect(fabs(judge.makespan_s / cases[i].expected_s - 1) <= 0.05, "%s, %u blocks: %.2f s, not %.1f",
                  cases[i].policy, cases[i].blocks, judge.makespan_s, cases[i].expected_s);
    }
    static const struct {
        uint32_t blocks, budget;
        double most_s, efficiency, bound_s;
    } ours[] = {{934, 16384, 56, 0.59, 33.1}, {1386, 2048, 41, 0.60, 24.9}};
    for (size_t i = 0; i < ARRAY_COUNT(ours); i++) {
        struct judge judge = judge_batch(&timing, "even", 256, 128, 128, ours[i].blocks, ours[i].budget);
        double bound = bound_s(&timing, 256, 128, 128, ours[i].blocks);
        cr_expect_float_eq(bound, ours[i].bound_s, 0.05);
        cr_expect_leq(judge.makespan_s, ours[i].most_s);
        cr_expect_geq(bound / judge.makespan_s, ours[i].efficiency);
        cr_expect_eq(judge.preemptions, 0);
        fprintf(stderr, "even: %u blocks: %.2f s, bound %.2f s\n", ours[i].blocks, judge.makespan_s, bound);
    }
}

Test(even, steady_decode_is_near_the_bound, .timeout = 120)
{
    static const struct {
        uint32_t rows;
        double efficiency;
    } cases[] = {{1, 0.97},  {2, 0.97},  {3, 0.97},  {4, 0.97},  {8, 0.95},
                 {16, 0.93}, {32, 0.90}, {64, 0.87}, {128, 0.84}};
    struct timing timing = machine("13b");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct judge judge = judge_batch(&timing, "even", cases[i].rows, 128, 512, 6000, 2048);
        double efficiency = bound_s(&timing, cases[i].rows, 128, 512, 6000) / judge.makespan_s;
        cr_expect_geq(efficiency, cases[i].efficiency, "%u rows: %.4f", cases[i].rows, efficiency);
        cr_expect_leq(efficiency, 1);
    }
}

static json_t *workload_of(const char *name, double rate, uint32_t chunk)
{
    json_t *root = workload_generate(name, 1, rate, 400, NULL), *config = json_object_get(root, "config");
    if (chunk > 0)
        json_object_set_new(config, "max_num_batched_tokens", json_integer(chunk));
    if (chunk > 0 && chunk < 256)
        json_object_set_new(config, "max_num_seqs", json_integer(chunk));
    return root;
}

/* Against the chunk size that is best in hindsight: all at once, and at 0.6 of what that gets done. */
static void compare(const char *workload, double tpot_share)
{
    struct timing timing = machine("32b");
    double best = 0, best_makespan_s = 0;
    uint32_t best_chunk = 0;
    for (uint32_t chunk = 128; chunk <= 2048; chunk *= 2) {
        struct sim sim = {0};
        run(&sim, workload_of(workload, INFINITY, chunk), "chunked", &timing);
        if (number(&sim, NULL, "output_tokens_per_s") > best) {
            best = number(&sim, NULL, "output_tokens_per_s");
            best_makespan_s = sim.makespan_us / 1e6;
            best_chunk = chunk;
        }
        sim_close(&sim);
    }
    double ours = measure(workload_of(workload, INFINITY, 0), "even", &timing, NULL, "output_tokens_per_s");
    double theirs = measure(workload_of(workload, INFINITY, 0), "throttle", &timing, NULL, "output_tokens_per_s");
    double plain = measure(workload_of(workload, INFINITY, 0), "default", &timing, NULL, "output_tokens_per_s");
    cr_expect_geq(ours, 0.99 * best, "%s: %.1f tokens/s, chunked %u %.1f", workload, ours, best_chunk, best);
    cr_expect_geq(ours, theirs, "%s: %.1f tokens/s, throttle %.1f", workload, ours, theirs);
    cr_expect_geq(ours * 1.01, plain);
    double rate = 0.6 * 400 / best_makespan_s;
    double tpot = measure(workload_of(workload, rate, 0), "even", &timing, "tpot_ms", "p99");
    double base = measure(workload_of(workload, rate, best_chunk), "chunked", &timing, "tpot_ms", "p99");
    cr_expect_leq(tpot, tpot_share * base, "%s: 99 %% of %.1f ms, chunked %.1f", workload, tpot, base);
}

Test(even, does_at_least_what_the_best_chunk_size_does, .timeout = 120)
{
    compare("azure-conv", 0.80); /* 0.6 of its time is less than one unhindered way through the pipeline */
    compare("azure-code", 0.60);
    compare("p-heavy", 0.60);
    compare("sharegpt", 1);
    compare("d-heavy", 1);
}

Test(even, more_requests_are_in_time_than_with_fastpp_when_it_knows_the_targets, .timeout = 120)
{
    struct timing timing = machine("32b");
    for (uint32_t i = 0; i < 2; i++) {
        double good[2];
        for (uint32_t ours = 0; ours < 2; ours++) {
            json_t *root = workload_of(i == 0 ? "bursts" : "azure-code", i == 0 ? 3.3 : 2.5, 0);
            json_object_set_new(json_object_get(root, "config"), "ttft_slo", json_integer(2000));
            json_object_set_new(json_object_get(root, "config"), "itl_slo", json_integer(200));
            struct sim sim = {0};
            run(&sim, root, ours ? "even" : "fastpp", &timing);
            good[ours] = sim_goodput(&sim, 2000, 200);
            sim_close(&sim);
        }
        cr_expect_geq(good[1], good[0]);
        cr_expect_gt(good[0], 0.05);
    }
}

/* ---- what a scheduler for pipelines should be asked ---- */

Test(even, a_burst_that_fits_one_step_is_spread_over_the_stages)
{
    struct timing timing = machine("13b");
    struct sim sim = {0};
    run(&sim, batch_of(64, 16, 200, 6000, 16384), "even", &timing);
    uint32_t prefilled = 0, most = 0;
    for (size_t i = 0; i < sim.span_count; i++) {
        prefilled += sim.spans[i].prefill_tokens;
        if (prefilled == 64 * 16 && i > 64 && sim.spans[i].rows > most)
            most = sim.spans[i].rows;
    }
    cr_expect_eq(prefilled, 64 * 16);
    cr_expect_leq(most, 17);
    cr_expect_geq(most, 16);
    sim_close(&sim);
}

Test(even, cohorts_are_evened_out_after_sequences_have_ended)
{
    struct timing timing = machine("13b");
    json_t *root = batch_of(64, 64, 400, 6000, 2048), *request;
    size_t i;
    json_array_foreach(json_object_get(root, "requests"), i, request)
        json_object_set_new(request, "eos_after", json_integer((json_int_t)(40 + i * 37 % 350)));
    struct sim sim = {0};
    run(&sim, root, "even", &timing);
    uint32_t uneven = 0, windows = 0;
    for (i = 400; i + 4 < sim.span_count; i++) {
        uint32_t least = UINT32_MAX, most = 0;
        for (size_t k = i; k < i + 4; k++) {
            least = (uint32_t)min_u64(least, sim.spans[k].rows);
            most = (uint32_t)max_u64(most, sim.spans[k].rows);
        }
        windows++;
        uneven += most - least > 2;
    }
    cr_expect_gt(windows, 500);
    cr_expect_lt(uneven, windows / 10, "%u of %u", uneven, windows);
    sim_close(&sim);
}

/* A hundred rows in five slots: one slot or another always has one too many. If that were the same row each time, it would
 * go on alone when the others have ended. */
Test(even, rows_are_passed_over_in_turn)
{
    struct timing timing = machine("13b");
    struct sim sim = {0};
    run(&sim, batch_of(103, 128, 512, 6000, 2048), "even", &timing);
    uint32_t lonely = 0;
    for (size_t i = sim.span_count - 200; i < sim.span_count; i++)
        lonely += sim.spans[i].rows == 1;
    cr_expect_leq(lonely, 20, "%u steps", lonely);
    sim_close(&sim);
}

/* Young rows cost less than old ones: if the old were passed over and counted, slots would be too small for ever. */
Test(even, hardly_a_row_is_passed_over_in_steady_load, .timeout = 60)
{
    struct timing timing = machine("32b");
    struct sim sim = {0};
    run(&sim, workload_generate("d-heavy", 3, 2.04, 400, NULL), "even", &timing);
    double half_us = 1e3 * number(&sim, "itl_ms", "p50");
    size_t late = 0;
    for (size_t i = 0; i < sim.itl_count; i++)
        late += sim.itl_us[i] > 1.15 * half_us;
    cr_expect_leq(late, sim.itl_count / 200, "%zu of %zu", late, sim.itl_count);
    sim_close(&sim);
}

Test(even, a_crowd_of_prompts_is_done_at_one_speed_to_its_end)
{
    struct timing timing = machine("13b");
    struct sim sim = {0};
    run(&sim, batch_of(128, 128, 256, 6000, 2048), "even", &timing);
    double half = number(&sim, "ttft_ms", "p50"), last = number(&sim, "ttft_ms", "p99");
    cr_expect_leq(last, 2.1 * half, "%.0f ms, half of them %.0f ms", last, half);
    sim_close(&sim);
}

Test(even, few_rows_take_no_more_microbatches_than_there_are_stages)
{
    struct timing timing = machine("13b");
    for (uint32_t rows = 1; rows <= 5; rows++) {
        struct sim sim = {0};
        run(&sim, batch_of(rows, 32, 300, 6000, 2048), "even", &timing);
        uint32_t slots = rows < 4 ? rows : 4;
        cr_expect_leq(sim.span_count, 300 * slots + 4 * rows, "%u rows: %zu steps", rows, sim.span_count);
        sim_close(&sim);
    }
}

Test(even, a_long_prompt_does_not_stop_those_who_decode)
{
    struct timing timing = machine("32b");
    json_t *root = batch_of(31, 64, 400, 16250, 8192);
    json_t *late = json_array_get(json_object_get(root, "requests"), 30);
    json_object_set_new(late, "prompt", json_pack("[[i, i]]", 0, 32000));
    json_object_set_new(late, "arrival_s", json_real(5));
    json_object_set_new(json_object_get(root, "config"), "itl_slo", json_integer(150));
    struct sim sim = {0};
    run(&sim, root, "even", &timing);
    double most_us = 0;
    for (size_t i = 0; i < sim.itl_count; i++)
        most_us = fmax(most_us, sim.itl_us[i]);
    cr_expect_leq(most_us / 1e3, 2 * 150.0, "%.1f ms", most_us / 1e3); /* a row is passed over once at most */
    cr_expect_lt(number(&sim, "itl_ms", "p99"), 150.0);
    sim_close(&sim);
}

Test(even, microbatches_of_a_full_pipeline_take_the_same_time)
{
    struct timing timing = machine("32b");
    cr_expect_lt(measure(workload_of("azure-conv", INFINITY, 0), "even", &timing, NULL, "slot_cv"), 0.1);
    cr_expect_gt(measure(workload_of("azure-conv", INFINITY, 0), "default", &timing, NULL, "slot_cv"), 0.1);
}

/* ---- what it must not depend on ---- */

static void expect_all_done(json_t *root, uint32_t stages)
{
    struct timing timing = machine("32b");
    struct sim sim = {0};
    timing.stage_count = stages;
    run(&sim, root, "even", &timing); /* checks that every request gets to its end */
    cr_expect_gt(sim.span_count, 0);
    sim_close(&sim);
}

Test(even, works_with_one_stage_without_chunks_with_priorities_and_aborts)
{
    json_t *request, *root = workload_of("sharegpt", 20, 0);
    size_t i;
    expect_all_done(workload_of("sharegpt", 20, 0), 1);
    json_object_set_new(json_object_get(root, "config"), "enable_chunked_prefill", json_false());
    json_object_set_new(json_object_get(root, "config"), "policy", json_string("priority"));
    json_object_set_new(json_object_get(root, "config"), "num_blocks", json_integer(700));
    json_array_foreach(json_object_get(root, "requests"), i, request) {
        json_object_set_new(request, "priority", json_integer((json_int_t)(i % 3)));
        if (i % 7 == 0)
            json_object_set_new(request, "abort_s", json_real((double)i / 20 + 0.7));
    }
    expect_all_done(root, 4);
}

/* ---- what the simulator is given ---- */

Test(workload, the_same_seed_gives_the_same_requests_and_another_rate_only_moves_them)
{
    for (size_t i = 0; workload_name(i) != NULL; i++) {
        json_t *a = workload_generate(workload_name(i), 7, 0, 50, NULL);
        json_t *b = workload_generate(workload_name(i), 7, 0, 50, NULL);
        json_t *c = workload_generate(workload_name(i), 8, 0, 50, NULL);
        json_t *d = workload_generate(workload_name(i), 7, INFINITY, 50, NULL), *request;
        cr_expect(json_equal(a, b), "%s", workload_name(i));
        bool has_lengths = strcmp(workload_name(i), "seed-batch") != 0;
        cr_expect_eq(json_equal(a, c), !has_lengths, "%s", workload_name(i));
        size_t k;
        json_array_foreach(json_object_get(a, "requests"), k, request)
            json_object_del(request, "arrival_s");
        cr_expect(json_equal(a, d), "%s", workload_name(i));
        json_decref(a);
        json_decref(b);
        json_decref(c);
        json_decref(d);
    }
    struct err err;
    cr_expect_null(workload_generate("no-such", 1, 0, 1, &err));
    cr_expect(strstr(err.text, "no-such") != NULL);
}

Test(workload, lengths_and_arrivals_are_those_of_the_trace)
{
    json_t *root = workload_generate("azure-conv", 3, 0, 5000, NULL), *request;
    double prompt = 0, answer = 0, last = 0;
    size_t i;
    json_array_foreach(json_object_get(root, "requests"), i, request) {
        prompt += json_number_value(json_array_get(json_array_get(json_object_get(request, "prompt"), 0), 1));
        answer += json_number_value(json_object_get(request, "eos_after"));
        last = json_number_value(json_object_get(request, "arrival_s"));
    }
    cr_expect_float_eq(prompt / 5000, 1155, 0.1 * 1155);
    cr_expect_float_eq(answer / 5000, 211, 0.1 * 211);
    cr_expect_float_eq(5000 / last, 5.53, 0.1 * 5.53);
    json_decref(root);
}

static void write_text(char *path, const char *text)
{
    strcpy(path, "/tmp/evenflow-input-XXXXXX");
    FILE *file = fdopen(mkstemp(path), "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

Test(workload, a_trace_is_read_and_a_broken_one_refused_with_line_and_field)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", "no requests"},
        {"a,b,c\n1,2,3\n", "line 1: must be arrival_s"},
        {"arrival_s,prompt_tokens,output_tokens\n", "no requests"},
        {"arrival_s,prompt_tokens,output_tokens\n-1,2,3\n", "line 2: arrival_s"},
        {"arrival_s,prompt_tokens,output_tokens\n1,2,3\n1,0,3\n", "line 3: prompt_tokens"},
        {"arrival_s,prompt_tokens,output_tokens\n1,2.5,3\n", "line 2: prompt_tokens"},
        {"arrival_s,prompt_tokens,output_tokens\n1,2\n", "line 2: output_tokens"},
        {"arrival_s,prompt_tokens,output_tokens\n1,2,3,4\n", "line 2: output_tokens"},
    };
    char path[64];
    struct err err;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text(path, cases[i].text);
        cr_expect_null(workload_read_trace(path, 0, &err));
        cr_expect(strstr(err.text, cases[i].expected) != NULL && strstr(err.text, path) != NULL, "%s", err.text);
        remove(path);
    }
    write_text(path, "arrival_s,prompt_tokens,output_tokens\n0.5,20,3\n1.5,30,2000\n");
    json_t *root = workload_read_trace(path, 0, &err), *second = json_array_get(json_object_get(root, "requests"), 1);
    cr_expect_eq(json_integer_value(json_object_get(second, "eos_after")), 2000);
    cr_expect_eq(json_integer_value(json_object_get(second, "max_tokens")), 2048);
    cr_expect_float_eq(json_number_value(json_object_get(second, "arrival_s")), 1.5, 1e-12);
    json_decref(root);
    root = workload_read_trace(path, 4, &err); /* two requests in half a second */
    second = json_array_get(json_object_get(root, "requests"), 1);
    cr_expect_float_eq(json_number_value(json_object_get(second, "arrival_s")), 0.5, 1e-12);
    json_decref(root);
    remove(path);
}

Test(pipeline, a_broken_description_is_refused_with_file_and_field)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"{", "line 1"},
        {"{}", "stages"},
        {"{\"stages\":[],\"links\":[]}", "stages: must be a list of 1"},
        {"{\"stages\":[{\"weights_us\":-5}],\"links\":[]}", "stages[0]"},
        {"{\"stages\":[{\"weights_us\":\"x\"}],\"links\":[]}", "stages[0]: weights_us"},
        {"{\"stages\":[{\"colour\":1}],\"links\":[]}", "stages[0]: colour"},
        {"{\"stages\":[{\"weights_us\":5},{\"weights_us\":5}],\"links\":[]}", "links"},
        {"{\"stages\":[{\"weights_us\":5}],\"links\":[{}]}", "links"},
        {"{\"stages\":[{\"weights_us\":5},{\"weights_us\":5}],\"links\":[{\"token_us\":-1}]}", "links[0]"},
        {"{\"stages\":[{\"weights_us\":5}],\"return_us\":-1}", "return_us"},
        {"{\"stages\":[{}],\"links\":[]}", "stages[0]"},
    };
    char path[64];
    struct timing timing;
    struct err err;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text(path, cases[i].text);
        cr_expect_neq(pipeline_read(&timing, path, &err), 0, "%s", cases[i].text);
        cr_expect(strstr(err.text, cases[i].expected) != NULL && strstr(err.text, path) != NULL, "%s: %s",
                  cases[i].text, err.text);
        remove(path);
    }
}
