/* cmd_complete.c - evenflow complete: request bodies in, one line per answer out, in the order of the input.
 *
 * Every request is sent as a stream, so that the time of the first token can be told, and put together again here.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "tools/bodies.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/live.h"
#include "tools/progress.h"

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

/* One choice of an answer as it comes together. */
struct choice {
    char *text;
    size_t size, room;
    json_t *fields; /* finish_reason, logprobs, token_ids, ... */
};

/* One line of the input, and its answer. */
struct job {
    struct client_call call;
    struct jobs *jobs;
    size_t index;
    struct choice *choices;
    size_t choice_count;
    json_t *usage, *error;
    char failure[ERR_TEXT_MAX]; /* why there is no answer; "": there is one */
    char *line;                 /* of the output, once the answer is complete */
};

struct jobs {
    struct job *list;
    size_t count, done, printed;
    uint64_t events;
    bool has_failed;
};

/* ---- putting an answer together ---- */

static struct choice *choice_of(struct job *job, json_t *from)
{
    json_int_t index = json_integer_value(json_object_get(from, "index"));
    size_t wanted = index > 0 && index < 65536 ? (size_t)index : 0;
    if (wanted >= job->choice_count) {
        job->choices = realloc(job->choices, (wanted + 1) * sizeof(*job->choices));
        check(job->choices != NULL);
        for (; job->choice_count <= wanted; job->choice_count++)
            job->choices[job->choice_count] = (struct choice){.fields = json_pack("{s:n}", "finish_reason")};
    }
    return &job->choices[wanted];
}

static void append_text(struct choice *choice, json_t *text)
{
    size_t more = json_string_length(text);
    if (more == 0)
        return;
    if (choice->size + more > choice->room) {
        choice->room = 2 * (choice->size + more) + 256;
        choice->text = realloc(choice->text, choice->room);
        check(choice->text != NULL);
    }
    memcpy(choice->text + choice->size, json_string_value(text), more);
    choice->size += more;
}

/* Arrays of an answer's events follow one another, objects of arrays (logprobs) likewise; other values replace. */
static void merge(json_t *target, const char *key, json_t *more)
{
    json_t *before = json_object_get(target, key);
    const char *inner_key;
    json_t *inner;
    if (json_is_null(more) && before != NULL)
        return;
    if (json_is_array(more) && json_is_array(before)) {
        json_array_extend(before, more);
    } else if (json_is_object(more) && json_is_object(before)) {
        json_object_foreach(more, inner_key, inner)
            merge(before, inner_key, inner);
    } else {
        json_object_set_new(target, key, json_deep_copy(more));
    }
}

static void take_choice(struct job *job, json_t *from)
{
    struct choice *choice = choice_of(job, from);
    json_t *message = json_object_get(from, "delta");
    if (message == NULL)
        message = json_object_get(from, "message");
    append_text(choice, json_object_get(from, "text"));
    append_text(choice, json_object_get(message, "content"));
    static const char *const apart[] = {"index", "text", "delta", "message"};
    const char *key;
    json_t *value;
    json_object_foreach(from, key, value) {
        bool is_apart = json_is_null(value) && strcmp(key, "finish_reason") != 0;
        for (size_t i = 0; i < ARRAY_COUNT(apart); i++)
            is_apart = is_apart || strcmp(key, apart[i]) == 0;
        if (!is_apart)
            merge(choice->fields, key, value);
    }
}

static void take_answer(struct job *job, const char *data, size_t size)
{
    json_error_t problem;
    json_t *answer = json_loadb(data, size, JSON_ALLOW_NUL, &problem);
    if (answer == NULL)
        snprintf(job->failure, sizeof(job->failure), "the answer is not JSON: %s: %.200s", problem.text, data);
    json_t *error = json_object_get(answer, "error"), *usage = json_object_get(answer, "usage");
    if (error != NULL && job->error == NULL)
        job->error = json_incref(error);
    if (json_is_object(usage) && job->usage == NULL)
        job->usage = json_incref(usage);
    size_t i;
    json_t *choice;
    json_array_foreach(json_object_get(answer, "choices"), i, choice)
        take_choice(job, choice);
    json_decref(answer);
}

/* The choice's fields with its text. */
static json_t *finish_choice(const struct choice *choice)
{
    json_object_set_new(choice->fields, "text",
                        json_stringn_nocheck(choice->text != NULL ? choice->text : "", choice->size));
    return choice->fields;
}

static char *format_line(struct job *job)
{
    const struct client_call *call = &job->call;
    json_t *line = json_pack("{s:I, s:i}", "index", (json_int_t)job->index, "status", call->status);
    if (job->error == NULL && (call->status != 200 || job->failure[0] != '\0'))
        job->error = json_pack("{s:s}", "message", job->failure[0] != '\0' ? job->failure : "no answer");
    if (job->error != NULL) {
        json_object_set(line, "error", job->error);
    } else {
        json_t *choices = json_array();
        for (size_t i = 0; i < job->choice_count; i++)
            json_array_append(choices, finish_choice(&job->choices[i]));
        json_object_update(line, json_array_get(choices, 0));
        if (job->choice_count > 1)
            json_object_set(line, "choices", choices);
        json_decref(choices);
        if (job->usage != NULL)
            json_object_set(line, "usage", job->usage);
        uint64_t first_ns = call->first_event_ns != 0 ? call->first_event_ns : call->end_ns;
        json_object_set_new(line, "ttft_ms", json_real((double)(first_ns - call->start_ns) / 1e6));
        json_object_set_new(line, "latency_ms", json_real((double)(call->end_ns - call->start_ns) / 1e6));
    }
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    check(text != NULL);
    json_decref(line);
    return text;
}

static void free_answer(struct job *job)
{
    for (size_t i = 0; i < job->choice_count; i++) {
        free(job->choices[i].text);
        json_decref(job->choices[i].fields);
    }
    free(job->choices);
    json_decref(job->usage);
    json_decref(job->error);
    client_call_free(&job->call);
}

/* ---- many requests ---- */

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct job *job = context;
    job->jobs->events++;
    if (strcmp(data, "[DONE]") != 0)
        take_answer(job, data, size);
}

static void on_done(struct client_call *call, void *context)
{
    struct job *job = context;
    struct jobs *jobs = job->jobs;
    if (call->status == 0)
        snprintf(job->failure, sizeof(job->failure), "%s", call->err.text);
    if (call->answer != NULL)
        take_answer(job, call->answer, call->answer_size);
    if (job->failure[0] != '\0') {
        fprintf(stderr, "evenflow complete: request %zu: %s\n", job->index, job->failure);
        jobs->has_failed = true;
    }
    job->line = format_line(job);
    free_answer(job);
    jobs->done++;
    for (; jobs->printed < jobs->count && jobs->list[jobs->printed].line != NULL; jobs->printed++) {
        puts(jobs->list[jobs->printed].line);
        free(jobs->list[jobs->printed].line);
    }
    fflush(stdout);
}

static int complete_jsonl(const struct values *values, const char *socket)
{
    struct bodies bodies;
    struct err err;
    if (bodies_read(&bodies, values->jsonl, &err) != 0)
        return command_fail(1, "complete", err.text);
    struct client *client = client_open(socket, true, &err);
    if (client == NULL)
        return command_fail(1, "complete", err.text);
    struct jobs jobs = {.list = base_alloc((bodies.count + 1) * sizeof(struct job)), .count = bodies.count};
    struct progress progress;
    progress_begin(&progress, "requests", jobs.count, "tok/s");
    for (size_t next = 0; jobs.done < jobs.count;) {
        for (; next < jobs.count && client_active(client) < values->concurrency; next++) {
            const struct body *body = &bodies.list[next];
            struct job *job = &jobs.list[next];
            *job = (struct job){.jobs = &jobs, .index = next};
            job->call = (struct client_call){.method = "POST",
                                             .path = body->path,
                                             .body = body->text,
                                             .body_size = body->size,
                                             .on_event = on_event,
                                             .on_done = on_done,
                                             .context = job};
            client_start(client, &job->call);
        }
        client_turn(client, progress.next_ns);
        progress_show(&progress, jobs.done, jobs.events);
    }
    progress_end(&progress);
    client_close(client);
    bodies_free(&bodies);
    free(jobs.list);
    return jobs.has_failed ? 1 : 0;
}

/* ---- one prompt ---- */

static int complete_prompt(const struct values *values, const char *socket, const char *prompt)
{
    json_t *body = json_pack("{s:s, s:I, s:f}", "prompt", prompt, "max_tokens", (json_int_t)values->max_tokens,
                             "temperature", values->temperature);
    if (body == NULL)
        return command_fail(2, "complete", "the prompt is not valid UTF-8");
    struct live_answer answer;
    enum live_result result = live_ask(&answer, socket, "/v1/completions", body);
    live_print_rate(&answer, result);
    if (result >= LIVE_REFUSED)
        command_fail(1, "complete", answer.err.text);
    live_free(&answer);
    json_decref(body);
    return live_exit_status(result);
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
