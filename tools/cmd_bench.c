/* cmd_bench.c - evenflow bench: load on a running engine, and what its clients see.
 *
 * Prompts are random token ids, answers are as long as asked for (ignore_eos), every token is an event of a stream.
 * Names and definitions are those of `vllm bench serve`: TTFT is the time of the first token, TPOT the mean time of the
 * others of one request, ITL the time between two events.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "ipc/clock.h"
#include "tools/client.h"
#include "tools/commands.h"

struct values {
    char socket[OPTION_TEXT_MAX];
    uint64_t num_prompts, input_len, output_len, max_concurrency, seed;
    bool json;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"num-prompts", NULL, 0, OPTION_NUMBER, AT(num_prompts), "64", 1, 1e6, "N", "Requests"},
    {"input-len", NULL, 0, OPTION_NUMBER, AT(input_len), "128", 1, 1 << 20, "N", "Tokens of each prompt"},
    {"output-len", NULL, 0, OPTION_NUMBER, AT(output_len), "128", 1, 1 << 20, "N", "Tokens of each answer"},
    {"max-concurrency", NULL, 0, OPTION_NUMBER, AT(max_concurrency), "32", 1, 65536, "N", "Requests at once at most"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "0", 0, 9e15, "N", "Of the prompts"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "For programs"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* What one request saw. */
struct timeline {
    uint64_t first_ns, last_ns;
    uint64_t tokens;
    struct samples *gaps; /* of all requests together */
};

struct samples {
    double *values; /* milliseconds */
    size_t count, room;
};

static void add_sample(struct samples *samples, double value)
{
    if (samples->count == samples->room) {
        samples->room = 2 * samples->room + 1024;
        samples->values = realloc(samples->values, samples->room * sizeof(double));
        check(samples->values != NULL);
    }
    samples->values[samples->count++] = value;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct samples *samples, double p)
{
    if (samples->count == 0)
        return 0;
    double at = p / 100 * (double)(samples->count - 1);
    size_t low = (size_t)at, high = low + 1 < samples->count ? low + 1 : low;
    return samples->values[low] + (at - (double)low) * (samples->values[high] - samples->values[low]);
}

static double mean(const struct samples *samples)
{
    double sum = 0;
    for (size_t i = 0; i < samples->count; i++)
        sum += samples->values[i];
    return samples->count > 0 ? sum / (double)samples->count : 0;
}

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct timeline *timeline = context;
    if (size == 6 && memcmp(data, "[DONE]", 6) == 0)
        return;
    uint64_t now_ns = clock_ns();
    if (timeline->tokens > 0)
        add_sample(timeline->gaps, (double)(now_ns - timeline->last_ns) / 1e6);
    else
        timeline->first_ns = now_ns;
    timeline->last_ns = now_ns;
    timeline->tokens++;
}

static char *make_body(const struct values *values, uint64_t *state)
{
    size_t room = 8 * values->input_len + 128, used;
    char *body = base_alloc(room);
    used = (size_t)snprintf(body, room,
                            "{\"max_tokens\":%llu,\"stream\":true,\"ignore_eos\":true,\"temperature\":0,\"prompt\":[",
                            (unsigned long long)values->output_len);
    for (uint64_t i = 0; i < values->input_len; i++) {
        *state = *state * 6364136223846793005ull + 1442695040888963407ull; /* Knuth's MMIX */
        used += (size_t)snprintf(body + used, room - used, "%s%llu", i ? "," : "",
                                 (unsigned long long)(100 + (*state >> 33) % 20000));
    }
    snprintf(body + used, room - used, "]}");
    return body;
}

static void report(json_t *out, const char *name, struct samples *samples)
{
    static const double wanted[] = {50, 90, 99};
    char key[64];
    qsort(samples->values, samples->count, sizeof(double), compare_doubles);
    snprintf(key, sizeof(key), "mean_%s_ms", name);
    json_object_set_new(out, key, json_real(mean(samples)));
    for (size_t i = 0; i < ARRAY_COUNT(wanted); i++) {
        snprintf(key, sizeof(key), "p%.0f_%s_ms", wanted[i], name);
        json_object_set_new(out, key, json_real(percentile(samples, wanted[i])));
    }
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional;
    (void)positional_count;
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    config_socket_path(socket, sizeof(socket), values->socket);
    struct client_call *calls = base_alloc(values->num_prompts * sizeof(*calls));
    struct timeline *timelines = base_alloc(values->num_prompts * sizeof(*timelines));
    struct samples gaps = {0}, ttft = {0}, tpot = {0};
    uint64_t state = values->seed * 2 + 1;
    for (uint64_t i = 0; i < values->num_prompts; i++) {
        timelines[i].gaps = &gaps;
        char *body = make_body(values, &state);
        calls[i] = (struct client_call){.method = "POST",
                                        .path = "/v1/completions",
                                        .body = body,
                                        .body_size = strlen(body),
                                        .on_event = on_event,
                                        .context = &timelines[i]};
    }
    uint64_t start_ns = clock_ns();
    client_run(socket, calls, values->num_prompts, values->max_concurrency);
    double seconds = (double)(clock_ns() - start_ns) / 1e9;

    uint64_t completed = 0, tokens = 0;
    for (uint64_t i = 0; i < values->num_prompts; i++) {
        if (calls[i].status != 200) {
            fprintf(stderr, "evenflow bench: request %llu: %s\n", (unsigned long long)i,
                    calls[i].status == 0 ? calls[i].err.text : calls[i].answer);
            continue;
        }
        completed++;
        tokens += timelines[i].tokens;
        add_sample(&ttft, (double)(timelines[i].first_ns - calls[i].start_ns) / 1e6);
        if (timelines[i].tokens > 1)
            add_sample(&tpot, (double)(timelines[i].last_ns - timelines[i].first_ns) / 1e6 /
                                  (double)(timelines[i].tokens - 1));
    }
    json_t *out = json_pack("{s:I, s:f, s:I, s:I, s:f, s:f, s:f}", "completed", (json_int_t)completed, "duration",
                            seconds, "total_input_tokens", (json_int_t)(completed * values->input_len),
                            "total_output_tokens", (json_int_t)tokens, "request_throughput",
                            (double)completed / seconds, "output_throughput", (double)tokens / seconds,
                            "total_token_throughput", (double)(tokens + completed * values->input_len) / seconds);
    report(out, "ttft", &ttft);
    report(out, "tpot", &tpot);
    report(out, "itl", &gaps);
    if (values->json) {
        json_dumpf(out, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else {
        const char *key;
        json_t *value;
        json_object_foreach(out, key, value)
            printf("%-26s %14.2f\n", key, json_number_value(value));
    }
    return completed == values->num_prompts ? 0 : 1;
}

const struct subcommand command_bench = {.name = "bench",
                                         .usage = "[OPTIONS]",
                                         .help = "Puts load on a running engine and says what its clients see",
                                         .options = &table,
                                         .values_bytes = sizeof(struct values),
                                         .run = run};
