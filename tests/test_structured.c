/* test_structured.c - answers that keep to a grammar, on the real model through real processes. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/engine.h"
#include "tests/schemas.h"

TestSuite(structured, .timeout = 600);

static struct own_engine engine;

/* The only choice's text; finish reason in *reason. */
static const char *ask(json_t *body, const char **reason)
{
    static json_t *answer;
    int status;
    json_decref(answer);
    char *text = json_dumps(body, 0);
    bool is_chat = json_object_get(body, "messages") != NULL;
    answer = engine_post(&engine, is_chat ? "/v1/chat/completions" : "/v1/completions", text, &status);
    cr_assert_eq(status, 200, "%s gives %s", text, json_dumps(answer, 0));
    free(text);
    json_decref(body);
    json_t *choice = json_array_get(json_object_get(answer, "choices"), 0);
    *reason = json_string_value(json_object_get(choice, "finish_reason"));
    return json_string_value(is_chat ? json_object_get(json_object_get(choice, "message"), "content")
                                     : json_object_get(choice, "text"));
}

Test(structured, an_answer_is_one_of_the_choices_or_matches_and_ends_by_itself)
{
    const char *reason, *text;
    regex_t pattern;
    engine_start(&engine, "-p 2");
    text = ask(json_pack("{s:s, s:i, s:[s,s,s]}", "prompt", "The capital of France is", "temperature", 0,
                         "guided_choice", "London", "Paris", "Rome"),
               &reason);
    cr_expect_str_eq(text, "Paris");
    cr_expect_str_eq(reason, "stop");
    /* where it may go on, the model says whether it does */
    text = ask(json_pack("{s:s, s:i, s:s, s:i}", "prompt", "One, two, three,", "temperature", 0, "guided_regex",
                         "( [a-z]+,?)+", "max_tokens", 40),
               &reason);
    cr_assert_eq(regcomp(&pattern, "^( [a-z]+,?)+$", REG_EXTENDED), 0);
    cr_expect(regexec(&pattern, text, 0, NULL, 0) == 0 || strcmp(reason, "length") == 0, "%s", text);
    for (int seed = 0; seed < 20; seed++) {
        text =
            ask(json_pack("{s:s, s:f, s:i, s:s, s:i}", "prompt", "Once", "temperature", 1.5, "seed", seed,
                          "guided_regex", "[A-Z][a-z]{2,9} \xe2\x82\xac[0-9]{1,3}\xf0\x9f\x99\x82", "max_tokens", 60),
                &reason);
        cr_expect_eq(regcomp(&pattern, "^[A-Z][a-z]{2,9} \xe2\x82\xac[0-9]{1,3}\xf0\x9f\x99\x82$", REG_EXTENDED), 0);
        cr_expect_eq(regexec(&pattern, text, 0, NULL, 0), 0, "%s", text);
        cr_expect_str_eq(reason, "stop");
        regfree(&pattern);
    }
    /* what max_tokens cuts is the beginning of something, and says so */
    text = ask(json_pack("{s:[{s:s, s:s}], s:{s:s}, s:i, s:i}", "messages", "role", "user", "content",
                         "Describe a person as JSON.", "response_format", "type", "json_object", "max_tokens", 3,
                         "temperature", 0),
               &reason);
    cr_expect_str_eq(reason, "length");
    cr_expect_eq(text[0], '{');
    cr_expect_null(json_loads(text, 0, NULL));
    cr_expect_eq(own_engine_stop(&engine), 0);
}

#define ANSWERS 12u

static const char *const roles[] = {"front", "stage", "sched"};
static pid_t victims[ARRAY_COUNT(roles)];

/* One after the other, while answers are on their way. */
static void *kill_all(void *unused)
{
    for (size_t i = 0; i < ARRAY_COUNT(victims); i++) {
        nanosleep(&(struct timespec){.tv_nsec = 250000000}, NULL);
        cr_expect_eq(kill(victims[i], SIGKILL), 0);
    }
    return unused;
}

Test(structured, an_answer_goes_on_exactly_when_any_process_dies)
{
    static struct completion truth[ANSWERS], seen[ANSWERS];
    char *bodies[ANSWERS];
    struct err err;
    pthread_t thread;
    for (unsigned i = 0; i < ANSWERS; i++) {
        const char *grammar =
            i % 2 ? "\"guided_regex\":\"([^@]*@ ?){250}\""
                  : "\"guided_json\":{\"type\":\"array\",\"items\":{\"type\":\"string\"},\"minItems\":50}";
        bodies[i] = malloc(512);
        snprintf(bodies[i], 512,
                 "{\"prompt\":\"List number %u:\\n\",\"max_tokens\":120,\"temperature\":%s,\"seed\":%u,%s,"
                 "\"return_token_ids\":true,\"return_logits_hash\":true}",
                 i, i % 3 ? "0.8" : "0", i, grammar);
    }
    engine_start(&engine, "-p 2");
    struct client *client = client_open(engine.socket, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    engine_complete_with(client, bodies, ANSWERS, ANSWERS, truth);
    for (size_t i = 0; i < ARRAY_COUNT(roles); i++)
        victims[i] = engine_pid(&engine, roles[i], strcmp(roles[i], "stage") == 0);
    cr_assert_eq(pthread_create(&thread, NULL, kill_all, NULL), 0);
    engine_complete_with(client, bodies, ANSWERS, ANSWERS, seen);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < ANSWERS; i++) {
        cr_expect_gt(truth[i].count, 20);
        cr_expect_eq(seen[i].count, truth[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0, "%s", bodies[i]);
        cr_expect_eq(memcmp(seen[i].hashes, truth[i].hashes, truth[i].count * sizeof(uint64_t)), 0, "%s", bodies[i]);
        cr_expect_str_eq(seen[i].text, truth[i].text);
        cr_expect_str_eq(seen[i].finish_reason, truth[i].finish_reason);
        free(bodies[i]);
    }
    client_close(client);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* Answers to so many random schemas, greedy and drawn ones, 16 at once. All that are not cut validate. */
static void check_schemas(uint32_t count, const char *options)
{
    json_t **schemas = calloc(count, sizeof(*schemas));
    char **bodies = calloc(count, sizeof(*bodies));
    struct completion *answers = calloc(count, sizeof(*answers));
    uint32_t cut = 0, tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        schemas[i] = schemas_make(3);
        json_t *body =
            json_pack("{s:o, s:i, s:f, s:i, s:O, s:b}", "prompt",
                      json_sprintf("JSON document number %u, short and simple:\n", i), "max_tokens", 300, "temperature",
                      i % 4 ? 1.0 : 0.0, "seed", (int)i, "guided_json", schemas[i], "return_token_ids", 1);
        bodies[i] = json_dumps(body, 0);
        json_decref(body);
    }
    engine_start(&engine, options);
    engine_complete(&engine, bodies, count, 16, answers);
    cr_expect_eq(own_engine_stop(&engine), 0);
    for (uint32_t i = 0; i < count; i++) {
        json_error_t problem;
        json_t *value = json_loads(answers[i].text, JSON_DECODE_ANY, &problem);
        tokens += answers[i].count;
        if (strcmp(answers[i].finish_reason, "length") == 0) {
            cut++;
            continue;
        }
        cr_expect_str_eq(answers[i].finish_reason, "stop");
        cr_expect_not_null(value, "%s gives %s: %s", bodies[i], answers[i].text, problem.text);
        cr_expect(value == NULL || schemas_validates(schemas[i], schemas[i], value), "%s gives %s", bodies[i],
                  answers[i].text);
        json_decref(value);
    }
    fprintf(stderr, "structured: %u schemas, %u tokens, %u answers cut by max_tokens\n", count, tokens, cut);
    cr_expect_leq(cut, count / 10);
}

Test(structured, every_answer_parses_and_validates)
{
    const char *count = getenv("EVENFLOW_SCHEMAS");
    check_schemas(count != NULL ? (uint32_t)atoi(count) : 60, "-p 2");
}
