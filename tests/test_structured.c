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

#define CHOICES 3u

/* A stream's choices, put together again. */
struct streamed {
    char text[CHOICES][4096];
    char reason[CHOICES][16];
    uint32_t events;
};

static void take_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct streamed *streamed = context;
    json_t *event = json_loadb(data, size, 0, NULL);
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    json_t *delta = json_object_get(choice, "delta");
    json_int_t index = json_integer_value(json_object_get(choice, "index"));
    cr_assert_lt(index, CHOICES);
    const char *text =
        json_string_value(delta != NULL ? json_object_get(delta, "content") : json_object_get(choice, "text"));
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    strncat(streamed->text[index], text != NULL ? text : "",
            sizeof(streamed->text[0]) - 1 - strlen(streamed->text[index]));
    if (reason != NULL)
        snprintf(streamed->reason[index], sizeof(streamed->reason[index]), "%s", reason);
    streamed->events++;
    json_decref(event);
}

static void stream(json_t *body, const char *path, struct streamed *streamed)
{
    *streamed = (struct streamed){.events = 0};
    json_object_set_new(body, "stream", json_true());
    char *text = json_dumps(body, 0);
    struct client_call call = {.method = "POST",
                               .path = path,
                               .body = text,
                               .body_size = strlen(text),
                               .on_event = take_event,
                               .context = streamed};
    client_run(engine.socket, &call, 1, 1);
    cr_assert_eq(call.status, 200, "%s", call.err.text);
    client_call_free(&call);
    free(text);
}

/* All choices of an answer, whole and as a stream: each keeps to the grammar, and both are the same. */
static void check_choices(json_t *body, const char *path, bool (*is_good)(const char *text))
{
    static struct streamed streamed;
    int status;
    uint32_t different = 0;
    json_object_set_new(body, "n", json_integer(CHOICES));
    char *text = json_dumps(body, 0);
    json_t *answer = engine_post(&engine, path, text, &status), *choices = json_object_get(answer, "choices");
    cr_assert_eq(status, 200, "%s gives %s", text, json_dumps(answer, 0));
    cr_assert_eq(json_array_size(choices), CHOICES);
    stream(body, path, &streamed);
    cr_expect_gt(streamed.events, 2 * CHOICES);
    for (size_t i = 0; i < CHOICES; i++) {
        json_t *choice = json_array_get(choices, i), *message = json_object_get(choice, "message");
        const char *whole =
            json_string_value(message != NULL ? json_object_get(message, "content") : json_object_get(choice, "text"));
        const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
        cr_expect_str_eq(streamed.text[i], whole);
        cr_expect_str_eq(streamed.reason[i], reason);
        cr_expect(strcmp(reason, "stop") != 0 || is_good(whole), "%s gives %s", text, whole);
        cr_expect_str_eq(reason, "stop", "%s gives %s", text, whole);
        different += i > 0 && strcmp(whole, streamed.text[0]) != 0;
    }
    cr_expect_gt(different, 0, "choices are drawn each for itself: %s", text);
    json_decref(answer);
    json_decref(body);
    free(text);
}

static bool is_a_person(const char *text)
{
    json_t *value = json_loads(text, 0, NULL);
    const char *name = json_string_value(json_object_get(value, "name"));
    bool is_good = name != NULL && json_object_size(value) == 2 && json_is_integer(json_object_get(value, "age"));
    json_decref(value);
    return is_good;
}

static bool is_a_code(const char *text)
{
    regex_t pattern;
    cr_assert_eq(regcomp(&pattern, "^[A-Z]{3}-[0-9]{2}( [a-z]+){2}$", REG_EXTENDED), 0);
    bool is_good = regexec(&pattern, text, 0, NULL, 0) == 0;
    regfree(&pattern);
    return is_good;
}

Test(structured, every_choice_of_a_stream_keeps_to_the_grammar_too)
{
    static const char person[] = "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":20},"
                                 "\"age\":{\"type\":\"integer\"}},\"required\":[\"name\",\"age\"]}";
    engine_start(&engine, "-p 2");
    for (int seed = 0; seed < 4; seed++) {
        check_choices(json_pack("{s:s, s:f, s:i, s:s, s:i}", "prompt", "A person:", "temperature", 1.0, "seed", seed,
                                "guided_json", person, "max_tokens", 120),
                      "/v1/completions", is_a_person);
        check_choices(json_pack("{s:[{s:s, s:s}], s:f, s:i, s:i, s:{s:s, s:{s:s, s:o}}}", "messages", "role", "user",
                                "content", "Invent a person.", "temperature", 1.0, "seed", seed, "max_tokens", 120,
                                "response_format", "type", "json_schema", "json_schema", "name", "person", "schema",
                                json_loads(person, 0, NULL)),
                      "/v1/chat/completions", is_a_person);
        check_choices(json_pack("{s:s, s:f, s:i, s:s, s:i}", "prompt", "Code:", "temperature", 1.2, "seed", seed,
                                "guided_regex", "[A-Z]{3}-[0-9]{2}( [a-z]{1,8}){2}", "max_tokens", 60),
                      "/v1/completions", is_a_code);
    }
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
