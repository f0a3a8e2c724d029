/* test_cmd_bench.c - evenflow bench and complete beside a real engine on timed stages: what they count, and in which order. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "ipc/base.h"
#include "tests/command.h"
#include "tests/engine.h"

static struct own_engine engine;
static struct outcome outcome;

static void set_up(void)
{
    engine_start(&engine,
                 "-p 2 --backend timed --cost tests/data/quick.pipeline.json --num-blocks 1000 --max-model-len 512");
}

static void tear_down(void)
{
    own_engine_stop(&engine);
}

static int run(const char *arguments, const char *input)
{
    char text[512];
    snprintf(text, sizeof(text), "%s --socket %s", arguments, engine.socket);
    return command_run(&outcome, text, input);
}

static json_t *bench(const char *arguments, const char *input, int status)
{
    char text[256];
    snprintf(text, sizeof(text), "bench --json %s", arguments);
    cr_assert_eq(run(text, input), status, "%s", outcome.err);
    json_t *result = json_loads(outcome.out, 0, NULL);
    cr_assert_not_null(result, "%s", outcome.out);
    return result;
}

static double number(json_t *result, const char *key)
{
    cr_assert(json_is_number(json_object_get(result, key)), "there is no %s", key);
    return json_number_value(json_object_get(result, key));
}

Test(cmd_bench, counts_tokens_and_not_events, .init = set_up, .fini = tear_down)
{
    json_t *result =
        bench("--num-prompts 12 --max-concurrency 4 --input-len 9 --output-len 20 --save-detailed", NULL, 0);
    cr_expect_eq(number(result, "completed"), 12);
    cr_expect_eq(number(result, "failed"), 0);
    cr_expect_eq(number(result, "total_input_tokens"), 12 * 9);
    cr_expect_eq(number(result, "total_output_tokens"), 12 * 20);
    cr_expect_eq(number(result, "max_concurrent_requests"), 4);
    cr_expect_gt(number(result, "mean_ttft_ms"), 0);
    cr_expect_gt(number(result, "p99_e2el_ms"), number(result, "median_ttft_ms"));
    cr_expect_eq(json_array_size(json_object_get(result, "itls")), 12);
    json_t *itls = json_array_get(json_object_get(result, "itls"), 3);
    cr_expect_eq(json_array_size(itls), 19, "so many gaps are between 20 tokens");
    json_t *cpu = json_object_get(result, "cpu_us_per_token");
    cr_expect_gt(number(cpu, "client"), 0);
    cr_expect_gt(number(cpu, "front"), 0);
    json_decref(result);
}

Test(cmd_bench, sends_at_the_rate_that_is_asked_for, .init = set_up, .fini = tear_down)
{
    static const char *const shapes[] = {"0.2", "1", "50"};
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        char arguments[128];
        snprintf(arguments, sizeof(arguments),
                 "--num-prompts 20 --request-rate 40 --burstiness %s --input-len 4 --output-len 2 --save-detailed",
                 shapes[i]);
        json_t *result = bench(arguments, NULL, 0);
        json_t *starts = json_object_get(result, "start_times");
        /* the last one is due after 20 requests at 40 a second; how late it was is told */
        double due_s = json_number_value(json_array_get(starts, 19)) - number(result, "max_late_ms") / 1e3;
        cr_expect(due_s <= 0.5001 && json_number_value(json_array_get(starts, 19)) >= 0.4999, "%f", due_s);
        json_decref(result);
    }
}

Test(cmd_bench, sends_a_dataset_at_its_times, .init = set_up, .fini = tear_down)
{
    json_t *result =
        bench("--dataset - --save-detailed",
              "{\"prompt\":[5,6],\"max_tokens\":3,\"ignore_eos\":true,\"arrival_s\":0.3}\n"
              "{\"prompt\":[5,6,7],\"max_tokens\":2,\"ignore_eos\":true,\"n\":2}\n"
              "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":5,\"ignore_eos\":true}\n",
              0);
    json_t *starts = json_object_get(result, "start_times"), *lengths = json_object_get(result, "output_lens");
    cr_expect_geq(json_number_value(json_array_get(starts, 0)), 0.3);
    cr_expect_lt(json_number_value(json_array_get(starts, 1)), 0.3);
    cr_expect_eq(json_integer_value(json_array_get(lengths, 0)), 3);
    cr_expect_eq(json_integer_value(json_array_get(lengths, 1)), 4);
    cr_expect_eq(json_integer_value(json_array_get(lengths, 2)), 5);
    json_decref(result);
}

Test(cmd_bench, fails_when_a_request_fails_and_says_why, .init = set_up, .fini = tear_down)
{
    json_t *result =
        bench("--dataset -", "{\"prompt\":[5],\"max_tokens\":1}\n{\"prompt\":[5],\"max_tokens\":100000}\n", 1);
    cr_expect_eq(number(result, "completed"), 1);
    cr_expect_eq(number(result, "failed"), 1);
    cr_expect(strstr(outcome.err, "request 1: ") != NULL && strstr(outcome.err, "100000") != NULL, "%s", outcome.err);
    json_decref(result);
}

Test(cmd_complete, answers_in_the_order_of_the_input, .init = set_up, .fini = tear_down)
{
    static char input[8192], first[sizeof(outcome.out)];
    size_t used = 0;
    for (int i = 0; i < 30; i++)
        used +=
            (size_t)snprintf(input + used, sizeof(input) - used,
                             "{\"prompt\":[%d,6],\"max_tokens\":%d,\"ignore_eos\":true,\"return_token_ids\":true}\n",
                             5 + i, i % 7 == 3 ? 100000 : 40 - i);
    cr_assert_eq(run("complete --jsonl - --concurrency 30", input), 0, "%s", outcome.err);
    snprintf(first, sizeof(first), "%s", outcome.out);
    cr_assert_eq(run("complete --jsonl -", input), 0);
    char *rest_a = first, *rest_b = outcome.out;
    for (int i = 0; i < 30; i++) {
        json_t *a = json_loads(strsep(&rest_a, "\n"), 0, NULL), *b = json_loads(strsep(&rest_b, "\n"), 0, NULL);
        cr_assert_eq(json_integer_value(json_object_get(a, "index")), i);
        cr_assert_eq(json_integer_value(json_object_get(a, "status")), i % 7 == 3 ? 400 : 200);
        if (i % 7 == 3) {
            cr_assert_not_null(json_object_get(json_object_get(a, "error"), "message"));
        } else {
            cr_assert_eq(json_array_size(json_object_get(a, "token_ids")), (size_t)(40 - i));
            cr_assert(json_equal(json_object_get(a, "token_ids"), json_object_get(b, "token_ids")), "request %d", i);
            cr_assert_str_eq(json_string_value(json_object_get(a, "finish_reason")), "length");
            cr_assert(json_number_value(json_object_get(a, "latency_ms")) >=
                      json_number_value(json_object_get(a, "ttft_ms")));
            cr_assert(json_is_object(json_object_get(a, "usage")));
        }
        json_decref(a);
        json_decref(b);
    }
}
