/* cmd_complete.c - evenflow complete: request bodies in, one line per answer out, in the order of the input.
 *
 * Every request is sent as a stream, so that the time of the first token can be told, and put together again here.
 * A body that scores its prompt (echo, max_tokens 0) has no stream and goes as it is.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "tools/client.h"
#include "tools/commands.h"

struct values {
    char socket[OPTION_TEXT_MAX];
    char jsonl[OPTION_TEXT_MAX];
    uint64_t concurrency;
    uint64_t max_tokens;
    double temperature;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"jsonl", NULL, 0, OPTION_TEXT, AT(jsonl), NULL, 0, 0, "FILE",
     "Request bodies, one a line; - is standard input. With \"messages\" a chat, with \"prompt\" a completion"},
    {"concurrency", NULL, 0, OPTION_NUMBER, AT(concurrency), "1", 1, 65536, "N", "Requests at once at most"},
    {"max-tokens", NULL, 0, OPTION_NUMBER, AT(max_tokens), "128", 1, 1 << 22, "N",
     "Tokens of the answer at most (with PROMPT)"},
    {"temperature", NULL, 0, OPTION_DECIMAL, AT(temperature), "0", 0, 100, "X", "0 is greedy (with PROMPT)"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* One line of the input, and its answer as it comes together. */
struct job {
    char *body;
    const char *path;
    json_t *choices; /* array by index of {finish_reason, text, token_ids, logits_hash, logprobs} */
    json_t *usage;
    json_t *error;
    char *line;                 /* the output, once complete */
    char failure[ERR_TEXT_MAX]; /* "": none */
};

struct jobs {
    struct job *jobs;
    size_t count, printed;
    bool has_failed;
};

static void extend_array(json_t *target, const char *key, json_t *more)
{
    if (!json_is_array(more))
        return;
    json_t *array = json_object_get(target, key);
    if (array == NULL)
        json_object_set_new(target, key, json_deep_copy(more));
    else
        json_array_extend(array, more);
}

/* Logprobs of a completion are an object of arrays; of a chat an object with the array "content". */
static void extend_logprobs(json_t *choice, json_t *more)
{
    if (!json_is_object(more))
        return;
    json_t *logprobs = json_object_get(choice, "logprobs");
    if (logprobs == NULL) {
        logprobs = json_object();
        json_object_set_new(choice, "logprobs", logprobs);
    }
    const char *key;
    json_t *value;
    json_object_foreach(more, key, value)
        extend_array(logprobs, key, value);
}

static void append_text(json_t *choice, const char *text)
{
    const char *before = json_string_value(json_object_get(choice, "text"));
    size_t size = strlen(before ? before : "") + strlen(text) + 1;
    char *joined = base_alloc(size);
    snprintf(joined, size, "%s%s", before ? before : "", text);
    json_object_set_new(choice, "text", json_string(joined));
    free(joined);
}

static void take_choice(struct job *job, json_t *choice)
{
    size_t index = (size_t)json_integer_value(json_object_get(choice, "index"));
    while (json_array_size(job->choices) <= index)
        json_array_append_new(job->choices, json_pack("{s:n, s:s}", "finish_reason", "text", ""));
    json_t *target = json_array_get(job->choices, index);
    json_t *message = json_object_get(choice, "delta");
    if (message == NULL)
        message = json_object_get(choice, "message");
    json_t *text = json_object_get(choice, "text");
    if (text == NULL)
        text = json_object_get(message, "content");
    if (json_is_string(text))
        append_text(target, json_string_value(text));
    extend_array(target, "token_ids", json_object_get(choice, "token_ids"));
    extend_array(target, "logits_hash", json_object_get(choice, "logits_hash"));
    extend_logprobs(target, json_object_get(choice, "logprobs"));
    json_t *reason = json_object_get(choice, "finish_reason");
    if (json_is_string(reason))
        json_object_set(target, "finish_reason", reason);
}

static void take_answer(struct job *job, json_t *answer)
{
    json_t *error = json_object_get(answer, "error");
    if (error != NULL)
        job->error = json_incref(error);
    json_t *usage = json_object_get(answer, "usage");
    if (json_is_object(usage))
        job->usage = json_incref(usage);
    size_t i;
    json_t *choice;
    json_array_foreach(json_object_get(answer, "choices"), i, choice)
        take_choice(job, choice);
}

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct job *job = context;
    if (strcmp(data, "[DONE]") == 0)
        return;
    json_error_t json_error;
    json_t *event = json_loadb(data, size, 0, &json_error);
    if (event == NULL) {
        snprintf(job->failure, sizeof(job->failure), "an event is not JSON: %s", json_error.text);
        return;
    }
    take_answer(job, event);
    json_decref(event);
}

static char *format_line(struct job *job, const struct client_call *call, size_t index)
{
    json_t *line = json_pack("{s:I, s:i}", "index", (json_int_t)index, "status", call->status);
    if (job->error != NULL || call->status != 200) {
        if (job->error == NULL)
            job->error = json_pack("{s:s}", "message", job->failure[0] ? job->failure : "no answer");
        json_object_set(line, "error", job->error);
    } else {
        json_object_update(line, json_array_get(job->choices, 0));
        if (json_array_size(job->choices) > 1)
            json_object_set(line, "choices", job->choices);
        if (job->usage != NULL)
            json_object_set(line, "usage", job->usage);
        uint64_t first_ns = call->first_event_ns ? call->first_event_ns : call->end_ns;
        json_object_set_new(line, "ttft_ms", json_real((double)(first_ns - call->start_ns) / 1e6));
        json_object_set_new(line, "latency_ms", json_real((double)(call->end_ns - call->start_ns) / 1e6));
    }
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    return text;
}

static void on_done(struct client_call *call, size_t index, void *context)
{
    struct jobs *jobs = context;
    struct job *job = &jobs->jobs[index];
    if (call->status == 0 && job->failure[0] == '\0')
        snprintf(job->failure, sizeof(job->failure), "%s", call->err.text);
    if (call->answer != NULL) {
        json_t *answer = json_loadb(call->answer, call->answer_size, 0, NULL);
        if (answer != NULL)
            take_answer(job, answer);
        else
            snprintf(job->failure, sizeof(job->failure), "the answer is not JSON: %.200s", call->answer);
        json_decref(answer);
    }
    if (job->failure[0] != '\0') {
        fprintf(stderr, "evenflow complete: request %zu: %s\n", index, job->failure);
        jobs->has_failed = true;
    }
    job->line = format_line(job, call, index);
    client_call_free(call);
    while (jobs->printed < jobs->count && jobs->jobs[jobs->printed].line != NULL) {
        puts(jobs->jobs[jobs->printed].line);
        free(jobs->jobs[jobs->printed].line);
        jobs->jobs[jobs->printed++].line = "";
        if (jobs->jobs[jobs->printed - 1].choices != NULL)
            json_decref(jobs->jobs[jobs->printed - 1].choices);
    }
    fflush(stdout);
}

/* Decides where the body goes and makes a stream of it. */
static void prepare_job(struct job *job, const char *line)
{
    job->choices = json_array();
    job->path = strstr(line, "\"messages\"") != NULL ? "/v1/chat/completions" : "/v1/completions";
    json_t *body = json_loads(line, 0, NULL);
    if (json_is_object(body)) {
        job->path = json_object_get(body, "messages") != NULL ? "/v1/chat/completions" : "/v1/completions";
        bool is_scoring = json_is_true(json_object_get(body, "echo"));
        if (!is_scoring && json_object_get(body, "stream") == NULL) {
            json_object_set_new(body, "stream", json_true());
            json_object_set_new(body, "stream_options", json_pack("{s:b}", "include_usage", 1));
        }
        job->body = json_dumps(body, JSON_COMPACT);
    } else {
        job->body = strdup(line); /* the engine says what is wrong with it */
    }
    json_decref(body);
}

static int read_jobs(const char *path, struct jobs *jobs, struct err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL)
        return err_set(err, -errno, "--jsonl %s: cannot open it: %s", path, strerror(errno));
    char *line = NULL;
    size_t room = 0, jobs_room = 0;
    for (ssize_t size; (size = getline(&line, &room, file)) > 0;) {
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] == '\0')
            continue;
        if (jobs->count == jobs_room) {
            jobs_room = 2 * jobs_room + 64;
            jobs->jobs = realloc(jobs->jobs, jobs_room * sizeof(*jobs->jobs));
            check(jobs->jobs != NULL);
        }
        memset(&jobs->jobs[jobs->count], 0, sizeof(*jobs->jobs));
        prepare_job(&jobs->jobs[jobs->count++], line);
    }
    free(line);
    if (file != stdin)
        fclose(file);
    return 0;
}

static int complete_jsonl(const struct values *values, const char *socket)
{
    struct jobs jobs = {0};
    struct err err;
    if (read_jobs(values->jsonl, &jobs, &err) != 0)
        return command_fail(1, "complete", err.text);
    struct client_call *calls = base_alloc(jobs.count * sizeof(*calls));
    for (size_t i = 0; i < jobs.count; i++)
        calls[i] = (struct client_call){.method = "POST",
                                        .path = jobs.jobs[i].path,
                                        .body = jobs.jobs[i].body,
                                        .body_size = strlen(jobs.jobs[i].body),
                                        .on_event = on_event,
                                        .context = &jobs.jobs[i]};
    client_run_each(socket, calls, jobs.count, values->concurrency, on_done, &jobs);
    return jobs.has_failed ? 1 : 0;
}

static void print_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    (void)context;
    json_t *event = json_loadb(data, size, 0, NULL);
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const char *text = json_string_value(json_object_get(choice, "text"));
    if (text != NULL) {
        fputs(text, stdout);
        fflush(stdout);
    }
    json_decref(event);
}

static int complete_prompt(const struct values *values, const char *socket, const char *prompt)
{
    json_t *body = json_pack("{s:s, s:I, s:f, s:b}", "prompt", prompt, "max_tokens", (json_int_t)values->max_tokens,
                             "temperature", values->temperature, "stream", 1);
    if (body == NULL)
        return command_fail(2, "complete", "the prompt is not valid UTF-8");
    char *text = json_dumps(body, JSON_COMPACT);
    struct client_call call = {
        .method = "POST", .path = "/v1/completions", .body = text, .body_size = strlen(text), .on_event = print_event};
    client_run(socket, &call, 1, 1);
    free(text);
    json_decref(body);
    if (call.status == 200) {
        putchar('\n');
        return 0;
    }
    int status = command_fail(1, "complete", call.status == 0 ? call.err.text : call.answer);
    client_call_free(&call);
    return status;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    config_socket_path(socket, sizeof(socket), values->socket);
    if ((values->jsonl[0] != '\0') == (positional_count == 1))
        return command_fail(2, "complete", "give either PROMPT or --jsonl FILE; see evenflow complete --help");
    if (values->jsonl[0] != '\0')
        return complete_jsonl(values, socket);
    return complete_prompt(values, socket, positional[0]);
}

const struct subcommand command_complete = {.name = "complete",
                                            .usage = "[OPTIONS] PROMPT | --jsonl FILE",
                                            .help = "Sends requests to a running engine and prints the answers",
                                            .options = &table,
                                            .values_bytes = sizeof(struct values),
                                            .positional_max = 1,
                                            .run = run};
