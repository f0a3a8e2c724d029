/* test_timed.c - timed stages: by hand, and a pipeline of a 13B model over Ethernet as a real engine beside the simulator. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/policy.h"
#include "ipc/clock.h"
#include "ipc/stats.h"
#include "stages/timed.h"
#include "tests/engine.h"
#include "tests/plans.h"
#include "tools/launch.h"
#include "tools/pipeline.h"
#include "tools/sim.h"

#define PIPELINE "tests/data/13b_ethernet.pipeline.json"

/* ---- by hand ---- */

/* Two stages of 100 us a row and a link of 300 us a token; milliseconds would do as well. */
static struct plan two_stages(void)
{
    struct plan plan = plan_for_tests();
    plan.backend = BACKEND_TIMED;
    plan.timing = (struct timing){.stage_count = 2,
                                  .stages = {{.row_us = 100}, {.row_us = 200}},
                                  .links = {{.latency_us = 50, .token_us = 300}},
                                  .return_us = 1000,
                                  .plan_us = 10};
    return plan;
}

static const struct row_shm one_row = {.first_pos = 7, .token_count = 1, .flags = ROW_SAMPLE, .result_count = 1};

static void expect_span(struct timed_span span, uint64_t begin_us, uint64_t end_us, uint64_t sent_us)
{
    cr_expect_eq(span.begin_ns, begin_us * 1000, "begins at %llu", (unsigned long long)span.begin_ns);
    cr_expect_eq(span.end_ns, end_us * 1000, "ends at %llu", (unsigned long long)span.end_ns);
    cr_expect_eq(span.sent_ns, sent_us * 1000, "is sent at %llu", (unsigned long long)span.sent_ns);
}

Test(timed, a_link_carries_one_step_while_the_stage_computes_the_next)
{
    struct plan plan = two_stages();
    struct timed timed;
    uint32_t token = 5;
    const struct forward_step step = {.rows = &one_row, .row_count = 1, .tokens = &token, .token_count = 1};
    timed_init(&timed, &plan, 0);
    expect_span(timed_step(&timed, &step, 0), 10, 110, 460);
    expect_span(timed_step(&timed, &step, 0), 110, 210, 810); /* planned at 20; computed meanwhile, sent afterwards */
    expect_span(timed_step(&timed, &step, 2000000), 2010, 2110, 2460);
}

Test(timed, plans_come_one_after_the_other_and_results_return_later)
{
    struct plan plan = two_stages();
    struct timed first, last;
    uint32_t token = 5;
    const struct forward_step step = {.rows = &one_row, .row_count = 1, .tokens = &token, .token_count = 1};
    timed_init(&first, &plan, 0);
    cr_expect_eq(timed_step(&first, &step, 1000).input_ns, 11000);
    cr_expect_eq(timed_step(&first, &step, 1000).input_ns, 21000);
    timed_init(&last, &plan, 1);
    expect_span(timed_step(&last, &step, 0), 0, 200, 1200);
    expect_span(timed_step(&last, &step, 0), 200, 400, 1400); /* nothing is in the way on the way back */
}

Test(timed, tokens_follow_from_the_last_one_and_its_position_and_never_end_an_answer)
{
    struct plan plan = two_stages();
    cr_expect_eq(timed_token(&plan, 5, 8), (31 * 5 + 7919 * 8) % 1000);
    plan.end_token_count = 2;
    plan.end_tokens[0] = 507;
    plan.end_tokens[1] = 508;
    cr_expect_eq(timed_token(&plan, 5, 8), 509);
    uint32_t tokens[] = {5, 6, 7};
    struct row_shm rows[] = {
        {.first_pos = 7, .token_count = 1, .result_count = 1, .flags = ROW_SAMPLE},
        {.first_pos = 0,
         .token_count = 2,
         .token_first = 1,
         .result_first = 1,
         .result_count = 2,
         .flags = ROW_SCORE,
         .score_next = 9},
        {.first_pos = 0,
         .token_count = 2,
         .token_first = 1,
         .result_first = 3,
         .result_count = 2,
         .flags = ROW_SCORE | ROW_SAMPLE},
        {.first_pos = 3, .token_count = 2, .token_first = 1, .result_first = 5, .result_count = 2, .flags = ROW_SAMPLE},
    };
    const struct forward_step step = {.rows = rows, .row_count = 4, .tokens = tokens, .token_count = 3};
    struct token_shm results[7];
    timed_results(&plan, &step, results);
    cr_expect_eq(results[0].token, 509);
    cr_expect_eq(results[1].token, 7); /* what is scored is what follows */
    cr_expect_eq(results[1].top_token, timed_token(&plan, 6, 1));
    cr_expect_eq(results[2].token, 9);
    cr_expect_eq(results[3].token, 7);
    cr_expect_eq(results[4].token, timed_token(&plan, 7, 2));
    cr_expect_eq(results[5].token, timed_token(&plan, 6, 4)); /* a draft behind it or not */
    cr_expect_eq(results[6].token, timed_token(&plan, 7, 5));
}

/* ---- beside the simulator ---- */

#define CHOICES       16u
#define PROMPT_TOKENS 48u
#define OUTPUT_TOKENS 24u
#define TRIES         4 /* what disturbs a run only makes it longer */

/* CHOICES sequences that all arrive at once. */
static double simulated_s(const char *policy, uint32_t window)
{
    static struct sim sim;
    struct timing timing;
    struct err err;
    json_t *requests = json_array();
    for (uint32_t i = 0; i < CHOICES; i++)
        json_array_append_new(requests,
                              json_pack("{s:o, s:[[i,i]], s:i}", "id", json_sprintf("r%u", i), "prompt",
                                        (int)(i * 1000), (int)PROMPT_TOKENS, "max_tokens", (int)OUTPUT_TOKENS));
    json_t *root =
        json_pack("{s:{s:i, s:i, s:b, s:i, s:i}, s:o}", "config", "max_num_batched_tokens", 512, "num_blocks", 200,
                  "enable_prefix_caching", 0, "window", (int)window, "max_num_seqs", 128, "requests", requests);
    sim = (struct sim){0};
    cr_assert_eq(pipeline_read(&timing, PIPELINE, &err), 0, "%s", err.text);
    cr_assert_eq(sim_open(&sim, root, policy_find(policy), &timing, &err), 0, "%s", err.text);
    sim_run_clock(&sim);
    double seconds = sim.makespan_us / 1e6;
    sim_close(&sim);
    json_decref(root);
    return seconds;
}

/* The formula, from the prompt on. */
static void expect_formula(json_t *choice, const struct plan *plan, uint32_t last)
{
    json_t *ids = json_object_get(choice, "token_ids");
    cr_assert_eq(json_array_size(ids), OUTPUT_TOKENS);
    for (uint32_t i = 0; i < OUTPUT_TOKENS; i++) {
        last = timed_token(plan, last, PROMPT_TOKENS + i);
        cr_assert_eq((uint32_t)json_integer_value(json_array_get(ids, i)), last, "token %u", i);
    }
}

/* One request of CHOICES choices: they arrive at once. */
static double served_s(const struct own_engine *engine, const struct plan *plan)
{
    json_t *prompt = json_array();
    for (uint32_t i = 0; i < PROMPT_TOKENS; i++)
        json_array_append_new(prompt, json_integer(1000 + i));
    json_t *body = json_pack("{s:o, s:i, s:i, s:b, s:b}", "prompt", prompt, "n", (int)CHOICES, "max_tokens",
                             (int)OUTPUT_TOKENS, "ignore_eos", 1, "return_token_ids", 1);
    char *text = json_dumps(body, JSON_COMPACT);
    int status;
    uint64_t start_ns = clock_ns();
    json_t *answer = engine_post(engine, "/v1/completions", text, &status);
    double seconds = (double)(clock_ns() - start_ns) / 1e9;
    cr_assert_eq(status, 200);
    json_t *choices = json_object_get(answer, "choices");
    cr_assert_eq(json_array_size(choices), CHOICES);
    for (uint32_t i = 0; i < CHOICES; i++)
        expect_formula(json_array_get(choices, i), plan, 1000 + PROMPT_TOKENS - 1);
    json_decref(answer);
    json_decref(body);
    free(text);
    return seconds;
}

/* Everything that a launcher does before the start. */
static int prepare(struct launch *launch, const char *options, struct err *err)
{
    char text[512], *argv[32], *positional[32];
    int argc = 0, positional_count;
    struct config config;
    snprintf(text, sizeof(text), "--log-level warn %s", options);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " "))
        argv[argc++] = word;
    cr_assert_eq(options_parse(&config_table, &config, argc, argv, positional, &positional_count, err), 0, "%s",
                 err->text);
    return launch_prepare(launch, &config, engine_model_path(), err);
}

static void expect_as_simulated(const char *policy, uint32_t window)
{
    struct own_engine engine;
    struct launch launch; /* for the vocabulary of its plan */
    struct err err;
    char options[512];
    snprintf(options, sizeof(options),
             "--backend timed --cost " PIPELINE " --policy %s --window %u --freeze-model --num-blocks "
             "200 --no-enable-prefix-caching",
             policy, window);
    cr_assert_eq(prepare(&launch, options, &err), 0, "%s", err.text);
    engine_start(&engine, options);
    double expected = simulated_s(policy, window), best = INFINITY;
    for (int i = 0; i < TRIES && fabs(best / expected - 1) > 0.05; i++)
        best = fmin(best, served_s(&engine, &launch.plan));
    cr_expect_lt(fabs(best / expected - 1), 0.05, "%s: %.3f s, simulated %.3f s", policy, best, expected);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(timed, an_engine_takes_as_long_as_the_simulator_says_with_default, .timeout = 60)
{
    expect_as_simulated("default", 4);
}

Test(timed, an_engine_takes_as_long_as_the_simulator_says_with_batch, .timeout = 60)
{
    expect_as_simulated("batch", 4);
}

Test(timed, an_engine_takes_as_long_as_the_simulator_says_with_even, .timeout = 60)
{
    expect_as_simulated("even", 8);
}

Test(timed, an_engine_predicts_described_times_and_knows_where_all_time_went, .timeout = 60)
{
    struct own_engine engine;
    struct launch launch;
    struct err err;
    const char *options = "--backend timed --cost " PIPELINE " --policy even --window 8 --num-blocks 200";
    cr_assert_eq(prepare(&launch, options, &err), 0, "%s", err.text);
    engine_start(&engine, options);
    served_s(&engine, &launch.plan);
    json_t *status = engine_get(&engine, "/status", NULL), *stage;
    size_t i;
    json_array_foreach(json_object_get(status, "stages"), i, stage) {
        double sum = 0;
        for (uint32_t cause = 0; cause < STAGE_TIME_COUNT; cause++)
            sum += json_number_value(json_object_get(stage, stage_time_labels[cause]));
        cr_expect_float_eq(sum, 1, 0.001);
        cr_expect_gt(json_number_value(json_object_get(stage, "busy")), 0.5);
        cr_expect_eq(json_number_value(json_object_get(stage, "waiting_for_cpu")), 0); /* it needs none */
        cr_expect_lt(json_number_value(json_object_get(stage, "prediction_error")), 0.001);
    }
    cr_expect_eq(i, 4);
    json_t *pipeline = json_object_get(status, "pipeline");
    cr_expect_gt(json_number_value(json_object_get(pipeline, "depth")), 2);
    cr_expect_eq(engine_metric(&engine, "evenflow_stage_predicted_steps_total"),
                 4 * engine_metric(&engine, "evenflow_steps_total"));
    json_decref(status);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(timed, an_engine_stops_in_the_middle_of_a_step, .timeout = 60)
{
    struct own_engine engine;
    engine_start(&engine, "--backend timed --cost " PIPELINE " --drain-timeout 1 --max-num-batched-tokens 16384");
    char body[65536];
    size_t used = (size_t)snprintf(body, sizeof(body), "{\"max_tokens\":1,\"stream\":true,\"prompt\":[7");
    for (uint32_t i = 1; i < 8000; i++) /* 1.1 s on each stage, 1.5 s on each link */
        used += (size_t)snprintf(body + used, sizeof(body) - used, ",7");
    snprintf(body + used, sizeof(body) - used, "]}");
    pid_t client = fork();
    if (client == 0) {
        engine_post(&engine, "/v1/completions", body, NULL);
        _exit(0);
    }
    while (engine_metric(&engine, "evenflow_steps_in_flight") == 0) {
    }
    uint64_t start_ns = clock_ns();
    cr_expect_eq(own_engine_stop(&engine), 1); /* its request was cut off */
    cr_expect_lt(clock_ns() - start_ns, 3000000000ull);
    cr_assert_eq(waitpid(client, NULL, 0), client);
}

Test(timed, a_stage_whose_link_takes_long_does_not_hang, .timeout = 60)
{
    static const char slow[] = "{\"stages\":[{\"base_us\":1},{\"base_us\":1}],\"links\":[{\"latency_us\":2600000}]}";
    char path[] = "/tmp/evenflow-pipeline-XXXXXX", options[256];
    int fd = mkstemp(path), status;
    cr_assert_eq(write(fd, slow, strlen(slow)), (ssize_t)strlen(slow));
    close(fd);
    snprintf(options, sizeof(options), "--backend timed -p 2 --cost %s", path);
    struct own_engine engine;
    engine_start(&engine, options);
    uint64_t start_ns = clock_ns();
    pid_t stage = engine_pid(&engine, "stage", 0);
    json_decref(engine_post(&engine, "/v1/completions", "{\"max_tokens\":1,\"prompt\":[7]}", &status));
    cr_expect_eq(status, 200);
    cr_expect_gt(clock_ns() - start_ns, 2500000000ull);
    cr_expect_eq(engine_pid(&engine, "stage", 0), stage);
    cr_assert_eq(own_engine_stop(&engine), 0);
    unlink(path);
}

/* ---- what is refused ---- */

static void expect_refused(const char *options, const char *part)
{
    struct launch launch;
    struct err err = {0};
    cr_expect_neq(prepare(&launch, options, &err), 0, "%s", options);
    cr_expect(strstr(err.text, part) != NULL, "%s: \"%s\" does not say \"%s\"", options, err.text, part);
}

static void expect_bad_pipeline(const char *content, const char *part)
{
    char path[] = "/tmp/evenflow-pipeline-XXXXXX", options[256];
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, content, strlen(content)), (ssize_t)strlen(content));
    close(fd);
    snprintf(options, sizeof(options), "--backend timed --cost %s", path);
    expect_refused(options, part);
    expect_refused(options, path);
    unlink(path);
}

Test(timed, a_description_that_cannot_be_is_refused_by_file_and_field)
{
    expect_refused("--backend timed", "--cost");
    expect_refused("--cost " PIPELINE, "--backend timed");
    expect_refused("--backend slow", "--backend slow");
    expect_refused("--backend timed --cost /nowhere.json", "/nowhere.json");
    expect_bad_pipeline("{\"stages\":[{\"base_us\":1},{\"base_us\":1,\"token_us\":-1}],\"links\":[{}]}",
                        "stages[1].token_us");
    expect_bad_pipeline("{\"stages\":[],\"links\":[]}", "stages");
    expect_bad_pipeline("{\"stages\":[{\"base_us\":1}],\"links\":[{}]}", "links");
}
