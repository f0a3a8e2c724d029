#include "tests/engine.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *engine_model_path(void)
{
    const char *given = getenv("EVENFLOW_TEST_MODEL");
    const char *path = given != NULL ? given : "models/SmolLM2-135M-Instruct.Q4_1.gguf";
    cr_assert_eq(access(path, R_OK), 0, "%s is not there; run: make model", path);
    return path;
}

int engine_try(struct own_engine *engine, const char *options, const char *model_path, struct err *err)
{
    const char *build = getenv("EVENFLOW_BUILD");
    char directory[512], program_dir[600];
    cr_assert_not_null(getcwd(directory, sizeof(directory)));
    snprintf(program_dir, sizeof(program_dir), "%s/%s/bin", directory, build != NULL ? build : "build");
    char cache[600];
    snprintf(cache, sizeof(cache), "%s/%s/cache", directory, build != NULL ? build : "build");
    setenv("XDG_CACHE_HOME", cache, 0);
    const char *other = getenv("EVENFLOW_TEST_PROGRAMS");
    setenv("EVENFLOW_PROGRAM_DIR", other != NULL ? other : program_dir, 1);

    char text[1024], *argv[64], *positional[64];
    int argc = 0, positional_count;
    snprintf(text, sizeof(text), "--log-level warn %s", options);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " "))
        argv[argc++] = word;
    struct config config;
    int ret = options_parse(&config_table, &config, argc, argv, positional, &positional_count, err);
    cr_assert_eq(ret, 0, "%s", err->text);
    return own_engine_start(engine, &config, model_path, err);
}

void engine_start_model(struct own_engine *engine, const char *options, const char *model_path)
{
    struct err err;
    cr_assert_eq(engine_try(engine, options, model_path, &err), 0, "%s", err.text);
}

void engine_start(struct own_engine *engine, const char *options)
{
    engine_start_model(engine, options, engine_model_path());
}

static json_t *call_engine(const struct own_engine *engine, struct client_call *call, int *status)
{
    client_run(engine->socket, call, 1, 1);
    if (status != NULL)
        *status = call->status;
    json_t *answer = call->answer != NULL ? json_loadb(call->answer, call->answer_size, 0, NULL) : NULL;
    client_call_free(call);
    return answer;
}

json_t *engine_get(const struct own_engine *engine, const char *path, int *status)
{
    struct client_call call = {.method = "GET", .path = path};
    return call_engine(engine, &call, status);
}

json_t *engine_post(const struct own_engine *engine, const char *path, const char *body, int *status)
{
    struct client_call call = {.method = "POST", .path = path, .body = body, .body_size = strlen(body)};
    return call_engine(engine, &call, status);
}

uint64_t engine_metric(const struct own_engine *engine, const char *name)
{
    struct client_call call = {.method = "GET", .path = "/metrics"};
    client_run(engine->socket, &call, 1, 1);
    cr_assert_eq(call.status, 200, "%s", call.err.text);
    uint64_t sum = 0;
    bool is_there = false;
    for (char *line = strtok(call.answer, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        size_t length = strcspn(line, "{ ");
        if (length == strlen(name) && strncmp(line, name, length) == 0) {
            sum += strtoull(strrchr(line, ' '), NULL, 10);
            is_there = true;
        }
    }
    cr_assert(is_there, "/metrics has no %s", name);
    client_call_free(&call);
    return sum;
}

const char *engine_parameters(uint32_t index)
{
    static const char *const mixtures[] = {
        "",
        ",\"presence_penalty\":0.7,\"frequency_penalty\":0.4",
        ",\"repetition_penalty\":1.3,\"logprobs\":3",
        ",\"echo\":true,\"logprobs\":2,\"repetition_penalty\":1.2",
        ",\"top_k\":20,\"min_p\":0.05",
        ",\"n\":2,\"logit_bias\":{\"28\":5,\"253\":-100,\"30\":2.5}",
        "",
        ",\"frequency_penalty\":-0.3,\"presence_penalty\":-1,\"min_p\":0.02,\"logprobs\":5",
        ",\"logit_bias\":{\"198\":-100},\"repetition_penalty\":1.1,\"top_k\":7",
        ",\"echo\":true,\"n\":2",
        ",\"n\":3,\"logprobs\":1,\"presence_penalty\":1.5,\"repetition_penalty\":0.9,\"top_k\":40",
    };
    return mixtures[index % ARRAY_COUNT(mixtures)];
}

/* FNV-1a, of the value's text. */
static uint64_t hash_json(const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
    uint64_t hash = 0xcbf29ce484222325;
    for (const char *c = text; *c != '\0'; c++)
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
    free(text);
    return hash;
}

static void take_completion(struct completion *completion, const struct client_call *call, size_t index)
{
    cr_assert_eq(call->status, 200, "request %zu: %s %s", index, call->err.text, call->answer ? call->answer : "");
    json_t *answer = json_loadb(call->answer, call->answer_size, JSON_ALLOW_NUL, NULL);
    json_t *choice = json_array_get(json_object_get(answer, "choices"), 0);
    json_t *tokens = json_object_get(choice, "token_ids");
    completion->choices = hash_json(json_object_get(answer, "choices"));
    json_t *hashes = json_object_get(choice, "logits_hash");
    cr_assert(json_is_array(tokens), "%s", call->answer);
    completion->count = (uint32_t)json_array_size(tokens);
    cr_assert_leq(completion->count, ARRAY_COUNT(completion->tokens));
    for (uint32_t i = 0; i < completion->count; i++) {
        completion->tokens[i] = (uint32_t)json_integer_value(json_array_get(tokens, i));
        const char *hash = json_string_value(json_array_get(hashes, i));
        completion->hashes[i] = hash != NULL ? strtoull(hash, NULL, 16) : 0; /* a scored prompt's first */
    }
    const char *text = json_string_value(json_object_get(choice, "text"));
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    snprintf(completion->text, sizeof(completion->text), "%s", text ? text : "");
    snprintf(completion->finish_reason, sizeof(completion->finish_reason), "%s", reason ? reason : "");
    json_decref(answer);
}

void engine_complete_with(struct client *client, char **bodies, size_t count, size_t concurrency,
                          struct completion *completions)
{
    struct client_call *calls = base_alloc(count * sizeof(*calls));
    for (size_t i = 0; i < count; i++)
        calls[i] = (struct client_call){
            .method = "POST", .path = "/v1/completions", .body = bodies[i], .body_size = strlen(bodies[i])};
    client_run_with(client, calls, count, concurrency);
    for (size_t i = 0; i < count; i++) {
        take_completion(&completions[i], &calls[i], i);
        client_call_free(&calls[i]);
    }
    free(calls);
}

void engine_complete(const struct own_engine *engine, char **bodies, size_t count, size_t concurrency,
                     struct completion *completions)
{
    struct err err;
    struct client *client = client_open(engine->socket, false, &err);
    cr_assert_not_null(client, "%s", err.text);
    engine_complete_with(client, bodies, count, concurrency, completions);
    client_close(client);
}

bool engine_is_ready(const struct own_engine *engine, const char *role, int index)
{
    json_t *answer = engine_get(engine, "/status", NULL), *process;
    size_t i;
    bool is_ready = false;
    json_array_foreach(json_object_get(answer, "processes"), i, process)
        if (strcmp(json_string_value(json_object_get(process, "role")), role) == 0 &&
            json_integer_value(json_object_get(process, "index")) == index)
            is_ready = strcmp(json_string_value(json_object_get(process, "state")), "ready") == 0;
    json_decref(answer);
    return is_ready;
}

json_t *engine_status(const struct own_engine *engine)
{
    for (int tries = 0; tries < 4000; tries++, wait_ms(5)) {
        int status;
        json_t *answer = engine_get(engine, "/status", &status);
        if (status == 200)
            return answer;
        json_decref(answer);
    }
    cr_assert(false, "no answer from /status");
    return NULL;
}

bool engine_process_is_gone(pid_t pid)
{
    char path[32], state = 'Z';
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return true;
    bool is_read = fscanf(file, "%*d (%*[^)]) %c", &state) == 1;
    fclose(file);
    return !is_read || state == 'Z' || state == 'X';
}

void wait_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

pid_t engine_pid(const struct own_engine *engine, const char *role, int index)
{
    int status;
    json_t *answer = engine_get(engine, "/status", &status);
    cr_assert_eq(status, 200);
    size_t i;
    json_t *process;
    pid_t pid = 0;
    json_array_foreach(json_object_get(answer, "processes"), i, process)
        if (strcmp(json_string_value(json_object_get(process, "role")), role) == 0 &&
            json_integer_value(json_object_get(process, "index")) == index)
            pid = (pid_t)json_integer_value(json_object_get(process, "pid"));
    json_decref(answer);
    cr_assert_gt(pid, 0, "/status names no process %s %d", role, index);
    return pid;
}
