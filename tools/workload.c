#include "tools/workload.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define REQUESTS_MAX 100000u
#define POINTS_MAX   12u

/* ---- what a workload is ---- */

/* A number of tokens: at these shares of all requests so many at most, straight lines between; or, with sigma, lognormal. */
struct lengths_of {
    double mu, sigma;
    uint32_t min, max;
    struct {
        double share, tokens;
    } points[POINTS_MAX];
};

struct workload {
    const char *name, *help;
    struct lengths_of prompt, answer;
    double rate;         /* requests a second */
    double gap_cv;       /* of gaps between arrivals, gamma distributed; 1: exponential. 0: all at once */
    double on_s, off_s;  /* arrivals only in the first, at the rate that makes `rate` the mean; 0: always */
    uint32_t requests;   /* without --num-prompts */
    uint32_t max_tokens; /* the limit that the client gives; 0: it knows the length */
    uint32_t num_blocks, max_num_batched_tokens;
};

/* KV and budget of four GPUs of 40 GB with a model of 32 billion parameters, in 16 bits. */
#define LARGE_MACHINE .num_blocks = 16250, .max_num_batched_tokens = 2048

#define CONV_PROMPTS                                                                                                   \
    {                                                                                                                  \
        .min = 1, .points = {                                                                                          \
            {0, 16},                                                                                                   \
            {.10, 207},                                                                                                \
            {.25, 396},                                                                                                \
            {.50, 1020},                                                                                               \
            {.75, 1189},                                                                                               \
            {.90, 2734},                                                                                               \
            {.95, 4083},                                                                                               \
            {.99, 4142},                                                                                               \
            {1, 4600}                                                                                                  \
        }                                                                                                              \
    }
#define CONV_ANSWERS                                                                                                   \
    {                                                                                                                  \
        .mu = 5.02, .sigma = .86, .min = 1, .max = 1000                                                                \
    }

static const struct workload workloads[] = {
    {.name = "azure-conv",
     .help = "Azure 2023 conversation: prompts of 1 k, answers of 200",
     .prompt = CONV_PROMPTS,
     .answer = CONV_ANSWERS,
     .rate = 5.53,
     .gap_cv = 1.09,
     .requests = 400,
     .max_tokens = 1024,
     LARGE_MACHINE},
    {.name = "azure-code",
     .help = "Azure 2023 code: prompts of 2 k, answers of 25, arrivals in clusters",
     .prompt = {.mu = 7.0, .sigma = 1.36, .min = 1, .max = 7437},
     .answer = {.mu = 2.79, .sigma = .85, .min = 1, .max = 1899},
     .rate = 2.57,
     .gap_cv = 4,
     .requests = 400,
     .max_tokens = 2048,
     LARGE_MACHINE},
    {.name = "mooncake-conv",
     .help = "Mooncake conversation: prompts of 12 k, cut at 32 k, answers of 340",
     .prompt = {.mu = 8.74, .sigma = 1.20, .min = 16, .max = 32768},
     .answer = {.min = 1, .points = {{0, 1}, {.10, 30}, {.50, 350}, {.90, 597}, {.99, 1119}, {1, 2000}}},
     .rate = 3.40,
     .gap_cv = 1,
     .requests = 400,
     .max_tokens = 2048,
     LARGE_MACHINE},
    {.name = "sharegpt",
     .help = "ShareGPT as benchmarks sample it: prompts and answers of 200",
     .prompt = {.mu = 4.70, .sigma = 1.25, .min = 4, .max = 1024},
     .answer = {.mu = 4.90, .sigma = .95, .min = 4, .max = 1024},
     .rate = 8,
     .gap_cv = 1,
     .requests = 400,
     .max_tokens = 1024,
     LARGE_MACHINE},
    {.name = "seed-batch",
     .help = "256 requests of 128 + 128 tokens at once, known lengths, KV of four GPUs of 12 GB",
     .prompt = {.points = {{0, 128}, {1, 128}}},
     .answer = {.points = {{0, 128}, {1, 128}}},
     .requests = 256,
     .num_blocks = 934,
     .max_num_batched_tokens = 16384},
    {.name = "p-heavy",
     .help = "prompts of 512 to 1024, answers of 32 to 64",
     .prompt = {.points = {{0, 512}, {1, 1024}}},
     .answer = {.points = {{0, 32}, {1, 64}}},
     .rate = 5,
     .gap_cv = 1,
     .requests = 400,
     .max_tokens = 1024,
     LARGE_MACHINE},
    {.name = "d-heavy",
     .help = "prompts of 32 to 64, answers of 512 to 1024",
     .prompt = {.points = {{0, 32}, {1, 64}}},
     .answer = {.points = {{0, 512}, {1, 1024}}},
     .rate = 2,
     .gap_cv = 1,
     .requests = 400,
     .max_tokens = 1024,
     LARGE_MACHINE},
    {.name = "bursts",
     .help = "lengths of azure-conv; arrivals only in 5 of 20 seconds",
     .prompt = CONV_PROMPTS,
     .answer = CONV_ANSWERS,
     .rate = 5,
     .gap_cv = 1,
     .on_s = 5,
     .off_s = 15,
     .requests = 400,
     .max_tokens = 1024,
     LARGE_MACHINE},
    {.name = "long",
     .help = "prompts of 128 k, one token of answer",
     .prompt = {.points = {{0, 131072}, {1, 131072}}},
     .answer = {.points = {{0, 1}, {1, 1}}},
     .rate = 0.02,
     .gap_cv = 1,
     .requests = 16,
     LARGE_MACHINE},
};

const char *workload_name(size_t index)
{
    return index < ARRAY_COUNT(workloads) ? workloads[index].name : NULL;
}

void workload_print_list(FILE *out)
{
    for (size_t i = 0; i < ARRAY_COUNT(workloads); i++)
        fprintf(out, "%-14s %s\n", workloads[i].name, workloads[i].help);
}

/* ---- numbers at random ---- */

/* SplitMix64 (Steele, Lea, Flood, 2014); each use has a stream of its own, so that none shifts another. */
struct stream {
    uint64_t state;
};

static uint64_t next_bits(struct stream *stream)
{
    uint64_t z = stream->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static struct stream stream_of(uint64_t seed, uint64_t use)
{
    struct stream stream = {.state = seed * 0x9E3779B97F4A7C15u + use};
    stream.state = next_bits(&stream);
    return stream;
}

/* In (0, 1). */
static double uniform(struct stream *stream)
{
    return ((double)(next_bits(stream) >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(struct stream *stream)
{
    double radius = sqrt(-2 * log(uniform(stream)));
    return radius * cos(6.283185307179586 * uniform(stream));
}

/* Mean 1, this coefficient of variation: gamma (Marsaglia and Tsang, 2000). */
static double gap(struct stream *stream, double cv)
{
    double shape = 1 / (cv * cv), boost = 1;
    if (shape < 1)
        boost = pow(uniform(stream), 1 / shape);
    double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(stream), v = 1 + c * x;
        if (v <= 0)
            continue;
        v = v * v * v;
        if (log(uniform(stream)) < 0.5 * x * x + d - d * v + d * log(v))
            return d * v * boost / shape;
    }
}

static uint32_t draw_tokens(struct stream *stream, const struct lengths_of *lengths)
{
    double tokens = 0, share = uniform(stream);
    if (lengths->sigma > 0) {
        tokens = exp(lengths->mu + lengths->sigma * normal(stream));
        tokens = fmin(tokens, lengths->max);
    } else {
        uint32_t i = 1;
        while (i + 1 < POINTS_MAX && lengths->points[i].share < share)
            i++;
        double from = lengths->points[i - 1].share, to = lengths->points[i].share;
        double first = lengths->points[i - 1].tokens, last = lengths->points[i].tokens;
        tokens = first + (last - first) * (share - from) / (to - from);
    }
    return (uint32_t)fmax(fmax(lengths->min, 1), round(tokens));
}

/* ---- scenarios ---- */

/* A time of arrivals as it is when they come only in the first on_s of every on_s + off_s. */
static double with_pauses(const struct workload *workload, double at_s)
{
    if (workload->on_s == 0)
        return at_s;
    double period = workload->on_s + workload->off_s, busy = at_s * workload->on_s / period;
    return floor(busy / workload->on_s) * period + fmod(busy, workload->on_s);
}

static json_t *request_of(uint32_t index, uint32_t prompt_tokens, uint32_t output_tokens, uint32_t max_tokens,
                          double arrival_s)
{
    char id[16];
    snprintf(id, sizeof(id), "r%u", index);
    json_t *request = json_pack("{s:s, s:[[i, i]], s:i}", "id", id, "prompt", (int)(index * 97), (int)prompt_tokens,
                                "max_tokens", (int)(max_tokens > 0 ? max_tokens : output_tokens));
    if (max_tokens > 0)
        json_object_set_new(request, "eos_after", json_integer(output_tokens));
    if (arrival_s > 0)
        json_object_set_new(request, "arrival_s", json_real(arrival_s));
    return request;
}

static json_t *config_of(uint32_t num_blocks, uint32_t max_num_batched_tokens)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:b}", "num_blocks", (int)num_blocks, "block_size", 16,
                     "max_num_batched_tokens", (int)max_num_batched_tokens, "max_num_seqs", 256,
                     "enable_prefix_caching", 0);
}

json_t *workload_generate(const char *name, uint64_t seed, double rate, uint32_t requests, struct err *err)
{
    const struct workload *workload = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(workloads); i++)
        if (strcmp(workloads[i].name, name) == 0)
            workload = &workloads[i];
    if (workload == NULL) {
        err_set(err, -EINVAL, "--workload: there is no \"%.80s\"; see --list-workloads", name);
        return NULL;
    }
    struct stream prompts = stream_of(seed, 1), answers = stream_of(seed, 2), gaps = stream_of(seed, 3);
    json_t *list = json_array();
    double at = 0, scale = rate > 0 ? rate : workload->rate;
    requests = requests > 0 ? requests : workload->requests;
    for (uint32_t i = 0; i < requests; i++) {
        uint32_t prompt = draw_tokens(&prompts, &workload->prompt);
        uint32_t answer = draw_tokens(&answers, &workload->answer);
        double arrival_s = with_pauses(workload, isinf(scale) || scale == 0 ? 0 : at / scale);
        json_array_append_new(list, request_of(i, prompt, answer, workload->max_tokens, arrival_s));
        at += gap(&gaps, workload->gap_cv > 0 ? workload->gap_cv : 1);
    }
    return json_pack("{s:o, s:o}", "config", config_of(workload->num_blocks, workload->max_num_batched_tokens),
                     "requests", list);
}

/* ---- traces ---- */

static const char trace_header[] = "arrival_s,prompt_tokens,output_tokens";

/* The number in front of a comma or the end of the line; *text moves behind it. */
static bool read_field(char **text, double min, double max, double *number)
{
    char *end;
    *number = strtod(*text, &end);
    bool is_sound = end != *text && *number >= min && *number <= max && (*end == ',' || *end == '\0');
    *text = *end == ',' ? end + 1 : end;
    return is_sound;
}

static json_t *read_trace_line(char *text, uint32_t index, double *arrival_s, struct err *err)
{
    double prompt, output;
    const char *problem = NULL;
    if (!read_field(&text, 0, 1e9, arrival_s))
        problem = "arrival_s must be a number of seconds of at least 0";
    else if (!read_field(&text, 1, 1 << 22, &prompt) || prompt != floor(prompt))
        problem = "prompt_tokens must be a whole number of at least 1";
    else if (!read_field(&text, 1, 1 << 22, &output) || output != floor(output) || *text != '\0')
        problem = "output_tokens must be a whole number of at least 1, and the last field";
    if (problem != NULL) {
        err_set(err, -EINVAL, "line %u: %s", index + 2, problem);
        return NULL;
    }
    uint32_t limit = 1024; /* what clients commonly give: the true length is not known before */
    while (limit < output)
        limit *= 2;
    return request_of(index, (uint32_t)prompt, (uint32_t)output, limit, *arrival_s);
}

/* So that the mean rate is this one. */
static void scale_arrivals(json_t *list, double rate, double last_s)
{
    size_t i;
    json_t *request;
    if (rate <= 0 || last_s <= 0)
        return;
    double factor = isinf(rate) ? 0 : (double)json_array_size(list) / rate / last_s;
    json_array_foreach(list, i, request) {
        double arrival_s = json_number_value(json_object_get(request, "arrival_s"));
        json_object_set_new(request, "arrival_s", json_real(arrival_s * factor));
    }
}

static int read_trace(FILE *file, json_t *list, double *last_s, struct err *err)
{
    char line[256];
    for (uint32_t count = 0; fgets(line, sizeof(line), file) != NULL; count++) {
        double arrival_s;
        line[strcspn(line, "\r\n")] = '\0';
        if (count == 0 && strcmp(line, trace_header) != 0)
            return err_set(err, -EINVAL, "line 1: must be %s", trace_header);
        if (count == 0 || line[0] == '\0')
            continue;
        if (count > REQUESTS_MAX)
            return err_set(err, -EINVAL, "has more than %u requests", REQUESTS_MAX);
        json_t *request = read_trace_line(line, count - 1, &arrival_s, err);
        if (request == NULL)
            return -EINVAL;
        json_array_append_new(list, request);
        *last_s = fmax(*last_s, arrival_s);
    }
    return json_array_size(list) > 0 ? 0 : err_set(err, -EINVAL, "has no requests");
}

json_t *workload_read_trace(const char *path, double rate, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        err_set(err, -errno, "%s: %s", path, strerror(errno));
        return NULL;
    }
    json_t *list = json_array();
    double last_s = 0;
    int ret = read_trace(file, list, &last_s, err);
    fclose(file);
    if (ret != 0) {
        err_prefix(err, ret, "%s", path);
        json_decref(list);
        return NULL;
    }
    scale_arrivals(list, rate, last_s);
    return json_pack("{s:o, s:o}", "config", config_of(16250, 2048), "requests", list);
}
