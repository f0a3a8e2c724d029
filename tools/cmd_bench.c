/* cmd_bench.c - evenflow bench: load on a running engine, and what its clients see.
 *
 * Names, definitions and the table are those of `vllm bench serve`, so that figures can be laid side by side:
 *   TTFT  from sending a request to its first token        TPOT  (last token - first token) / (tokens - 1) of a request
 *   ITL   between two tokens of a request, each pair       E2EL  from sending a request to its last token
 * A token's time is when the bytes of its event arrived. Without --dataset prompts are random token ids and answers are as
 * long as asked for (ignore_eos). One thread, epoll; what it costs itself is part of the result.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/config.h"
#include "ipc/clock.h"
#include "tools/bodies.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/processes.h"
#include "tools/progress.h"
#include "tools/random.h"
#include "tools/samples.h"

#define FAILURES_SHOWN 5u

struct values {
    char socket[OPTION_TEXT_MAX];
    char dataset[OPTION_TEXT_MAX];
    uint64_t num_prompts, input_len, output_len, max_concurrency, seed;
    double request_rate, burstiness;
    bool json, save_detailed;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"num-prompts", NULL, 0, OPTION_NUMBER, AT(num_prompts), "0", 0, 1e7, "N",
     "Requests; 0: 64, or as many as the dataset has"},
    {"input-len", NULL, 0, OPTION_NUMBER, AT(input_len), "128", 1, 1 << 20, "N", "Tokens of each prompt"},
    {"output-len", NULL, 0, OPTION_NUMBER, AT(output_len), "128", 1, 1 << 20, "N", "Tokens of each answer"},
    {"dataset", NULL, 0, OPTION_TEXT, AT(dataset), NULL, 0, 0, "FILE",
     "Requests from JSON lines, each a body as for complete --jsonl; \"arrival_s\" says when it is sent, where no "
     "--request-rate is given"},
    {"max-concurrency", NULL, 0, OPTION_NUMBER, AT(max_concurrency), "0", 0, 65536, "N",
     "Requests at once at most; 0: no limit"},
    {"request-rate", NULL, 0, OPTION_DECIMAL, AT(request_rate), "inf", 1e-6, INFINITY, "X",
     "Requests a second on average; inf: all at once"},
    {"burstiness", NULL, 0, OPTION_DECIMAL, AT(burstiness), "1", 1e-3, 1e6, "X",
     "Shape of the gamma distribution of the times between requests: 1 is a Poisson process, below it comes in bursts, "
     "above it is more even"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "0", 0, 9e15, "N",
     "Of prompts and arrivals. The same prompts again are found in the engine's prefix cache"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "One JSON object for programs instead of the table"},
    {"save-detailed", NULL, 0, OPTION_FLAG, AT(save_detailed), NULL, 0, 0, "",
     "With --json: lengths, times and errors of every request too"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

struct request {
    struct client_call call;
    struct bench *bench;
    size_t index; /* in the order of the dataset */
    double due_s; /* since the start */
    uint64_t tokens, first_ns, last_ns;
    struct samples itl_ms;
    uint64_t prompt_tokens, completion_tokens, cached_tokens; /* as the engine says */
    char failure[ERR_TEXT_MAX];                               /* "": none */
};

struct bench {
    const struct values *values;
    const char *socket;
    char model[256];
    struct bodies bodies;
    struct request *requests;
    size_t count, done, failed;
    bool has_schedule; /* requests have their times */
    struct progress progress;
    uint64_t start_ns, end_ns;
    uint64_t tokens;
    size_t concurrency_peak;
    struct samples tokens_by_second;
    struct samples ttft_ms, tpot_ms, itl_ms, e2el_ms;
    double late_ms; /* the latest that a request was sent behind its time */
    double client_cpu_us;
    struct engine_processes before, after;
};

/* ---- what comes back ---- */

static void take_token(struct request *request)
{
    struct bench *bench = request->bench;
    uint64_t now_ns = request->call.last_event_ns;
    if (request->tokens++ == 0)
        request->first_ns = now_ns;
    else
        samples_add(&request->itl_ms, (double)(now_ns - request->last_ns) / 1e6);
    request->last_ns = now_ns;
    bench->tokens++;
    size_t second = (size_t)((now_ns - bench->start_ns) / 1000000000u);
    while (bench->tokens_by_second.count <= second)
        samples_add(&bench->tokens_by_second, 0);
    bench->tokens_by_second.values[second]++;
}

static void take_answer(struct request *request, json_t *answer)
{
    json_t *usage = json_object_get(answer, "usage");
    json_t *error = json_object_get(answer, "error");
    if (json_is_object(usage)) {
        request->prompt_tokens = (uint64_t)json_integer_value(json_object_get(usage, "prompt_tokens"));
        request->completion_tokens = (uint64_t)json_integer_value(json_object_get(usage, "completion_tokens"));
        json_t *details = json_object_get(usage, "prompt_tokens_details");
        request->cached_tokens = (uint64_t)json_integer_value(json_object_get(details, "cached_tokens"));
    }
    const char *message = json_string_value(json_object_get(error, "message"));
    if (error != NULL)
        snprintf(request->failure, sizeof(request->failure), "%s", message != NULL ? message : "an error");
}

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct request *request = context;
    static const char usage[] = "\"usage\":{", error[] = "{\"error\":";
    if (client_event_has_token(data, size)) {
        take_token(request);
    } else if (memmem(data, size, usage, sizeof(usage) - 1) != NULL || strncmp(data, error, sizeof(error) - 1) == 0) {
        json_t *answer = json_loadb(data, size, 0, NULL);
        take_answer(request, answer);
        json_decref(answer);
    }
}

static void on_done(struct client_call *call, void *context)
{
    struct request *request = context;
    struct bench *bench = request->bench;
    if (call->status == 0)
        snprintf(request->failure, sizeof(request->failure), "%s", call->err.text);
    if (call->answer != NULL) {
        json_t *answer = json_loadb(call->answer, call->answer_size, 0, NULL);
        take_answer(request, answer);
        json_decref(answer);
    }
    if (request->failure[0] == '\0' && call->status != 200)
        snprintf(request->failure, sizeof(request->failure), "status %d", call->status);
    if (request->failure[0] == '\0' && call->event_count > 0 && request->tokens != request->completion_tokens)
        snprintf(request->failure, sizeof(request->failure), "%llu events with a token, but %llu tokens in its usage",
                 (unsigned long long)request->tokens, (unsigned long long)request->completion_tokens);
    if (request->failure[0] != '\0' && bench->failed++ < FAILURES_SHOWN) {
        progress_end(&bench->progress);
        fprintf(stderr, "evenflow bench: request %zu: %s\n", request->index, request->failure);
    }
    bench->done++;
    client_call_free(call);
}

/* ---- the work ---- */

static struct body random_body(const struct values *values, uint64_t *state)
{
    size_t room = 8 * values->input_len + 256, used;
    char *text = base_alloc(room);
    used = (size_t)snprintf(text, room,
                            "{\"max_tokens\":%llu,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
                            "\"ignore_eos\":true,\"temperature\":0,\"prompt\":[",
                            (unsigned long long)values->output_len);
    for (uint64_t i = 0; i < values->input_len; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%llu", i ? "," : "",
                                 (unsigned long long)(100 + random_next(state) % 20000));
    used += (size_t)snprintf(text + used, room - used, "]}");
    return (struct body){.path = "/v1/completions", .text = text, .size = used, .arrival_s = -1};
}

static int make_bodies(struct bench *bench, struct err *err)
{
    const struct values *values = bench->values;
    bench->count = values->num_prompts;
    if (values->dataset[0] != '\0') {
        int ret = bodies_read(&bench->bodies, values->dataset, err);
        if (ret != 0)
            return ret;
        if (bench->count == 0)
            bench->count = bench->bodies.count;
        if (bench->bodies.count == 0 || bench->count > bench->bodies.count)
            return err_set(err, -1, "--dataset %.300s has %zu requests; --num-prompts asks for %zu", values->dataset,
                           bench->bodies.count, max_u64(bench->count, 1));
        return 0;
    }
    if (bench->count == 0)
        bench->count = 64;
    uint64_t state = values->seed;
    bench->bodies.list = base_alloc(bench->count * sizeof(*bench->bodies.list));
    for (; bench->bodies.count < bench->count; bench->bodies.count++)
        bench->bodies.list[bench->bodies.count] = random_body(values, &state);
    return 0;
}

/* When each request is due: by the rate, or as the dataset says, or at once. */
static void make_schedule(struct bench *bench)
{
    const struct values *values = bench->values;
    uint64_t state = values->seed ^ 0x5eed;
    double at_s = 0;
    bench->has_schedule = isfinite(values->request_rate);
    for (size_t i = 0; i < bench->count; i++) {
        double arrival_s = bench->bodies.list[i].arrival_s;
        if (isfinite(values->request_rate)) {
            at_s += random_gamma(&state, values->burstiness) / (values->burstiness * values->request_rate);
            bench->requests[i].due_s = at_s;
        } else if (arrival_s >= 0) {
            bench->requests[i].due_s = arrival_s;
            bench->has_schedule = true;
        }
    }
    /* as vLLM does it: the last one comes when the rate says so, whatever was drawn */
    double scale = isfinite(values->request_rate) ? (double)bench->count / values->request_rate / at_s : 1;
    for (size_t i = 0; i < bench->count; i++)
        bench->requests[i].due_s *= scale;
}

static int compare_due(const void *a, const void *b)
{
    const struct request *x = a, *y = b;
    if (x->due_s != y->due_s)
        return x->due_s > y->due_s ? 1 : -1;
    return x->index > y->index ? 1 : -1;
}

static int make_requests(struct bench *bench, struct err *err)
{
    if (make_bodies(bench, err) != 0)
        return -1;
    bench->requests = base_alloc(bench->count * sizeof(*bench->requests));
    for (size_t i = 0; i < bench->count; i++)
        bench->requests[i].index = i;
    make_schedule(bench);
    qsort(bench->requests, bench->count, sizeof(*bench->requests), compare_due);
    for (size_t i = 0; i < bench->count; i++) {
        struct request *request = &bench->requests[i];
        const struct body *body = &bench->bodies.list[request->index];
        request->bench = bench;
        request->call = (struct client_call){.method = "POST",
                                             .path = body->path,
                                             .body = body->text,
                                             .body_size = body->size,
                                             .on_event = on_event,
                                             .on_done = on_done,
                                             .context = request};
    }
    return 0;
}

/* ---- the run ---- */

static double cpu_us(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static int read_processes(const struct bench *bench, struct engine_processes *processes, struct err *err)
{
    json_t *status = command_get(bench->socket, "/status", err);
    if (status == NULL)
        return -1;
    engine_processes_read(processes, status);
    json_decref(status);
    return 0;
}

static void run_load(struct bench *bench, struct client *client)
{
    const struct values *values = bench->values;
    size_t limit = values->max_concurrency > 0 ? values->max_concurrency : SIZE_MAX, next = 0;
    progress_begin(&bench->progress, "requests", bench->count, "tok/s");
    double cpu_before_us = cpu_us();
    bench->start_ns = clock_ns();
    while (bench->done < bench->count) {
        uint64_t now_ns = clock_ns(), until_ns = bench->progress.next_ns;
        while (next < bench->count && client_active(client) < limit) {
            struct request *request = &bench->requests[next];
            uint64_t due_ns = bench->start_ns + (uint64_t)(request->due_s * 1e9);
            if (due_ns > now_ns) {
                until_ns = min_u64(until_ns, due_ns);
                break;
            }
            client_start(client, &request->call);
            bench->late_ms = fmax(bench->late_ms, (double)(request->call.start_ns - due_ns) / 1e6);
            next++;
        }
        bench->concurrency_peak = max_u64(bench->concurrency_peak, client_active(client));
        client_turn(client, until_ns);
        progress_show(&bench->progress, bench->done, bench->tokens);
    }
    bench->end_ns = clock_ns();
    bench->client_cpu_us = cpu_us() - cpu_before_us;
    progress_end(&bench->progress);
}

/* ---- the result ---- */

/* Sums over answers that came; TTFT and its like. */
static void collect(struct bench *bench, uint64_t *input, uint64_t *cached)
{
    *input = *cached = 0;
    bench->tokens = 0;
    for (size_t i = 0; i < bench->count; i++) {
        const struct request *request = &bench->requests[i];
        if (request->failure[0] != '\0')
            continue;
        *input += request->prompt_tokens;
        *cached += request->cached_tokens;
        bench->tokens += request->tokens;
        double sent_ns = (double)request->call.start_ns;
        if (request->tokens > 0) {
            samples_add(&bench->ttft_ms, ((double)request->first_ns - sent_ns) / 1e6);
            samples_add(&bench->e2el_ms, ((double)request->last_ns - sent_ns) / 1e6);
        }
        if (request->tokens > 1)
            samples_add(&bench->tpot_ms,
                        (double)(request->last_ns - request->first_ns) / 1e6 / (double)(request->tokens - 1));
        for (size_t k = 0; k < request->itl_ms.count; k++)
            samples_add(&bench->itl_ms, request->itl_ms.values[k]);
    }
}

static const struct {
    const char *name, *title, *heading;
    size_t offset; /* of its samples */
} metrics[] = {
    {"ttft", "TTFT", "Time to First Token", offsetof(struct bench, ttft_ms)},
    {"tpot", "TPOT", "Time per Output Token (excl. 1st token)", offsetof(struct bench, tpot_ms)},
    {"itl", "ITL", "Inter-token Latency", offsetof(struct bench, itl_ms)},
    {"e2el", "E2EL", "End-to-end Latency", offsetof(struct bench, e2el_ms)},
};

static void set_real(json_t *out, const char *key, double value)
{
    json_object_set_new(out, key, json_real(value));
}

static void set_integer(json_t *out, const char *key, uint64_t value)
{
    json_object_set_new(out, key, json_integer((json_int_t)value));
}

/* CPU time of each process per token of the answers; those that cannot be read or were started anew are left out. */
static json_t *cpu_per_token(const struct bench *bench)
{
    json_t *out = json_object();
    if (bench->tokens == 0)
        return out;
    set_real(out, "client", bench->client_cpu_us / (double)bench->tokens);
    for (uint32_t i = 0; i < bench->after.count && i < bench->before.count; i++) {
        const struct engine_process *before = &bench->before.list[i], *after = &bench->after.list[i];
        char name[64];
        snprintf(name, sizeof(name), strcmp(after->role, "stage") == 0 ? "%s %u" : "%s", after->role, after->index);
        if (before->pid == after->pid && after->cpu_ns != 0)
            set_real(out, name, (double)(after->cpu_ns - before->cpu_ns) / 1e3 / (double)bench->tokens);
    }
    return out;
}

static int compare_index(const void *a, const void *b)
{
    const struct request *x = a, *y = b;
    return x->index > y->index ? 1 : -1;
}

/* In the order of the dataset, whenever they were sent. */
static void add_details(json_t *out, struct bench *bench)
{
    qsort(bench->requests, bench->count, sizeof(*bench->requests), compare_index);
    static const char *const names[] = {"start_times", "input_lens", "output_lens", "ttfts", "itls", "errors"};
    json_t *lists[ARRAY_COUNT(names)];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        lists[i] = json_array();
        json_object_set_new(out, names[i], lists[i]);
    }
    for (size_t i = 0; i < bench->count; i++) {
        const struct request *request = &bench->requests[i];
        json_t *itls = json_array();
        for (size_t k = 0; k < request->itl_ms.count; k++)
            json_array_append_new(itls, json_real(request->itl_ms.values[k] / 1e3));
        double ttft_s = request->tokens > 0 ? (double)(request->first_ns - request->call.start_ns) / 1e9 : 0;
        json_array_append_new(lists[0], json_real((double)(request->call.start_ns - bench->start_ns) / 1e9));
        json_array_append_new(lists[1], json_integer((json_int_t)request->prompt_tokens));
        json_array_append_new(lists[2], json_integer((json_int_t)request->tokens));
        json_array_append_new(lists[3], json_real(ttft_s));
        json_array_append_new(lists[4], itls);
        json_array_append_new(lists[5], json_string(request->failure));
    }
}

static json_t *make_result(struct bench *bench)
{
    const struct values *values = bench->values;
    uint64_t input, cached;
    collect(bench, &input, &cached);
    double seconds = (double)(bench->end_ns - bench->start_ns) / 1e9, peak = 0;
    size_t completed = bench->count - bench->failed;
    for (size_t i = 0; i < bench->tokens_by_second.count; i++)
        peak = fmax(peak, bench->tokens_by_second.values[i]);
    json_t *out = json_object();
    json_object_set_new(out, "backend", json_string("evenflow"));
    json_object_set_new(out, "model_id", json_string(bench->model));
    set_integer(out, "num_prompts", bench->count);
    json_object_set_new(out, "request_rate",
                        isfinite(values->request_rate) ? json_real(values->request_rate) : json_string("inf"));
    set_real(out, "burstiness", values->burstiness);
    json_object_set_new(out, "max_concurrency",
                        values->max_concurrency > 0 ? json_integer((json_int_t)values->max_concurrency) : json_null());
    set_real(out, "duration", seconds);
    set_integer(out, "completed", completed);
    set_integer(out, "failed", bench->failed);
    set_integer(out, "total_input_tokens", input);
    set_integer(out, "total_cached_tokens", cached);
    set_integer(out, "total_output_tokens", bench->tokens);
    set_real(out, "request_throughput", (double)completed / seconds);
    set_real(out, "output_throughput", (double)bench->tokens / seconds);
    set_real(out, "total_token_throughput", (double)(input + bench->tokens) / seconds);
    set_real(out, "max_output_tokens_per_s", peak);
    set_integer(out, "max_concurrent_requests", bench->concurrency_peak);
    if (bench->has_schedule)
        set_real(out, "max_late_ms", bench->late_ms);
    for (size_t i = 0; i < ARRAY_COUNT(metrics); i++) {
        static const int shares[] = {90, 99};
        struct samples *samples = (struct samples *)((char *)bench + metrics[i].offset);
        char key[64];
        samples_sort(samples);
        snprintf(key, sizeof(key), "mean_%s_ms", metrics[i].name);
        set_real(out, key, samples_mean(samples));
        snprintf(key, sizeof(key), "median_%s_ms", metrics[i].name);
        set_real(out, key, samples_percentile(samples, 0.5));
        snprintf(key, sizeof(key), "std_%s_ms", metrics[i].name);
        set_real(out, key, samples_std(samples));
        for (size_t k = 0; k < ARRAY_COUNT(shares); k++) {
            snprintf(key, sizeof(key), "p%d_%s_ms", shares[k], metrics[i].name);
            set_real(out, key, samples_percentile(samples, shares[k] / 100.0));
        }
    }
    json_object_set_new(out, "cpu_us_per_token", cpu_per_token(bench));
    if (values->save_detailed)
        add_details(out, bench);
    return out;
}

/* ---- the table ---- */

#define TABLE_WIDTH 50

static void print_heading(const char *text, char fill)
{
    int size = (int)strlen(text), before = (TABLE_WIDTH - size) / 2;
    for (int i = 0; i < TABLE_WIDTH - size + 1; i++) {
        if (i == before)
            fputs(text, stdout);
        if (i < TABLE_WIDTH - size)
            putchar(fill);
    }
    putchar('\n');
}

static void print_row(json_t *result, const char *title, const char *key)
{
    json_t *value = json_object_get(result, key);
    if (json_is_integer(value))
        printf("%-40s %-10lld\n", title, (long long)json_integer_value(value));
    else if (json_is_real(value))
        printf("%-40s %-10.2f\n", title, json_real_value(value));
}

static void print_table(json_t *result)
{
    static const struct {
        const char *title, *key;
    } rows[] = {{"Successful requests:", "completed"},
                {"Failed requests:", "failed"},
                {"Maximum request concurrency:", "max_concurrency"},
                {"Request rate configured (RPS):", "request_rate"},
                {"Benchmark duration (s):", "duration"},
                {"Total input tokens:", "total_input_tokens"},
                {"  of which found in the prefix cache:", "total_cached_tokens"},
                {"Total generated tokens:", "total_output_tokens"},
                {"Request throughput (req/s):", "request_throughput"},
                {"Output token throughput (tok/s):", "output_throughput"},
                {"Peak output token throughput (tok/s):", "max_output_tokens_per_s"},
                {"Peak concurrent requests:", "max_concurrent_requests"},
                {"Total token throughput (tok/s):", "total_token_throughput"},
                {"Latest request behind its time (ms):", "max_late_ms"}};
    print_heading(" Serving Benchmark Result ", '=');
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        print_row(result, rows[i].title, rows[i].key);
    for (size_t i = 0; i < ARRAY_COUNT(metrics); i++) {
        static const char *const kinds[][2] = {{"Mean", "mean"}, {"Median", "median"}, {"P99", "p99"}};
        print_heading(metrics[i].heading, '-');
        for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
            char title[64], key[64];
            snprintf(title, sizeof(title), "%s %s (ms):", kinds[k][0], metrics[i].title);
            snprintf(key, sizeof(key), "%s_%s_ms", kinds[k][1], metrics[i].name);
            print_row(result, title, key);
        }
    }
    json_t *cpu = json_object_get(result, "cpu_us_per_token");
    if (json_object_size(cpu) > 0)
        print_heading("CPU Time per Generated Token", '-');
    const char *name;
    json_t *value;
    json_object_foreach(cpu, name, value) {
        char title[64];
        snprintf(title, sizeof(title), "%c%s (us):", name[0] - 32, name + 1);
        print_row(cpu, title, name);
    }
    print_heading("", '=');
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional;
    (void)positional_count;
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    config_socket_path(socket, sizeof(socket), values->socket);
    struct bench bench = {.values = values, .socket = socket};
    struct err err;
    json_t *models = command_get(socket, "/v1/models", &err);
    if (models == NULL)
        return command_fail(1, "bench", err.text);
    const char *model = json_string_value(json_object_get(json_array_get(json_object_get(models, "data"), 0), "id"));
    snprintf(bench.model, sizeof(bench.model), "%s", model != NULL ? model : "");
    struct client *client = client_open(socket, true, &err);
    if (client == NULL || make_requests(&bench, &err) != 0 || read_processes(&bench, &bench.before, &err) != 0)
        return command_fail(1, "bench", err.text);
    run_load(&bench, client);
    client_close(client);
    if (read_processes(&bench, &bench.after, &err) != 0)
        command_fail(1, "bench", err.text);
    if (bench.failed > FAILURES_SHOWN)
        fprintf(stderr, "evenflow bench: and %zu more failed\n", bench.failed - FAILURES_SHOWN);
    json_t *result = make_result(&bench);
    if (values->json) {
        json_dumpf(result, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
    } else {
        print_table(result);
    }
    json_decref(result);
    json_decref(models);
    return bench.failed == 0 ? 0 : 1;
}

const struct subcommand command_bench = {.name = "bench",
                                         .usage = "[OPTIONS]",
                                         .help = "Puts load on a running engine and says what its clients see",
                                         .options = &table,
                                         .values_bytes = sizeof(struct values),
                                         .run = run};
