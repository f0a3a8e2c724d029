/* cmd_perplexity.c - evenflow perplexity: how well a model predicts a text, scored through a real pipeline.
 *
 * The text goes through an engine of its own as a completion with echo and max_tokens 0: every token is scored given all
 * before it, and nothing is sampled.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tok.h"
#include "stages/gguf.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/own_engine.h"
#include "tools/progress.h"
#include "tools/vocab.h"

/* One of its own, and those of serve. */
struct values {
    struct config config;
    bool json;
};

static const struct option_spec specs[] = {
    {"json", NULL, 0, OPTION_FLAG, offsetof(struct values, json), NULL, 0, 0, "",
     "Prints {\"tokens\",\"mean_nll\",\"nll\",\"top1\"}; nats, nll[i] and top1[i] are of token i + 1"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs), .also = &config_table};

/* NULL with err. */
static char *read_file(const char *path, size_t *size, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        err_set(err, -errno, "text %s: cannot open it: %s", path, strerror(errno));
        return NULL;
    }
    long end = ftell(file);
    rewind(file);
    char *text = base_alloc((size_t)end + 1);
    *size = fread(text, 1, (size_t)end, file);
    if (*size != (size_t)end)
        err_set(err, -EIO, "text %s: cannot read it: %s", path, strerror(errno));
    fclose(file);
    return *size == (size_t)end ? text : NULL;
}

/* The body of the request: the text's ids, to be scored, and how many they are. NULL with err. */
static char *make_body(const char *model_path, const char *text, size_t size, uint32_t *count, struct err *err)
{
    struct gguf *gguf;
    struct tok tok;
    void *blob;
    size_t bytes;
    if (gguf_open(&gguf, model_path, err) != 0)
        return NULL;
    int ret = vocab_from_gguf(gguf, NULL, &blob, &bytes, err);
    gguf_close(gguf);
    if (ret != 0 || tok_attach(&tok, blob, bytes, size, err) != 0)
        return NULL;
    uint32_t *ids = base_alloc((size + 3) * sizeof(*ids));
    *count = tok_encode(&tok, text, size, NULL, 0, ids, (uint32_t)size + 3);
    tok_detach(&tok);
    free(blob);
    json_t *body = json_pack("{s:[], s:i, s:b, s:i}", "prompt", "max_tokens", 0, "echo", 1, "logprobs", 1);
    for (uint32_t i = 0; i < *count; i++)
        json_array_append_new(json_object_get(body, "prompt"), json_integer(ids[i]));
    char *dump = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    free(ids);
    return dump;
}

/* Tokens of the prompt that have been through the pipeline: what the engine says of the only request that it has. */
static uint64_t tokens_done(const char *socket)
{
    struct err err;
    json_t *status = command_get(socket, "/status", &err);
    uint64_t done = (uint64_t)json_integer_value(json_object_get(json_object_get(status, "tokens"), "prompt"));
    json_decref(status);
    return done;
}

/* Asks, and shows how far the engine is. */
static void score(const char *socket, struct client_call *call, uint32_t count)
{
    struct err err;
    struct progress progress;
    struct client *client = client_open(socket, false, &err);
    if (client == NULL) {
        call->err = err;
        return;
    }
    progress_begin(&progress, "scoring", count, "tok/s");
    for (client_start(client, call); client_active(client) > 0; client_turn(client, progress.next_ns))
        if (progress_is_due(&progress)) {
            uint64_t done = tokens_done(socket);
            progress_show(&progress, done, done);
        }
    progress_end(&progress);
    client_close(client);
}

static int print_scores(const char *answer_text, size_t size, bool is_json)
{
    json_t *answer = json_loadb(answer_text, size, 0, NULL);
    json_t *logprobs = json_object_get(json_array_get(json_object_get(answer, "choices"), 0), "logprobs");
    json_t *scores = json_object_get(logprobs, "token_logprobs"), *tops = json_object_get(logprobs, "top_token_ids");
    size_t tokens = json_array_size(scores);
    if (tokens < 2)
        return command_fail(1, "perplexity", "the engine's answer holds no scores");
    json_t *nll = json_array(), *top1 = json_array();
    double sum = 0;
    for (size_t i = 1; i < tokens; i++) {
        double loss = -json_number_value(json_array_get(scores, i));
        sum += loss;
        json_array_append_new(nll, json_real(loss));
        json_array_append(top1, json_array_get(tops, i));
    }
    double mean = sum / (double)(tokens - 1);
    if (is_json) {
        json_t *out =
            json_pack("{s:I, s:f, s:o, s:o}", "tokens", (json_int_t)tokens, "mean_nll", mean, "nll", nll, "top1", top1);
        json_dumpf(out, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12)); /* floats come back whole from nine */
        putchar('\n');
        json_decref(out);
    } else {
        printf("%zu tokens, mean loss %.4f nats, perplexity %.3f\n", tokens, mean, exp(mean));
    }
    json_decref(answer);
    return 0;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    const struct values *values = pointer;
    struct config config = values->config;
    struct err err;
    size_t size;
    uint32_t count;
    char *text = read_file(positional[1], &size, &err);
    if (text == NULL)
        return command_fail(1, "perplexity", err.text);
    char *body = make_body(positional[0], text, size, &count, &err);
    struct own_engine engine;
    if (values->json || strcmp(config.log_level, "info") == 0)
        strcpy(config.log_level, "warn"); /* the figures are what is wanted here */
    int ret = body != NULL ? own_engine_start(&engine, &config, positional[0], &err) : -EBADMSG;
    if (ret != 0)
        return command_fail_for(ret, "perplexity", &err);
    struct client_call call = {.method = "POST", .path = "/v1/completions", .body = body, .body_size = strlen(body)};
    score(engine.socket, &call, count);
    int status = own_engine_stop(&engine);
    if (call.status != 200) {
        command_describe_failure(&call, &err);
        status = command_fail(1, "perplexity", err.text);
    } else if (status == 0) {
        status = print_scores(call.answer, call.answer_size, values->json);
    }
    client_call_free(&call);
    free(body);
    free(text);
    return status;
}

const struct subcommand command_perplexity = {.name = "perplexity",
                                              .usage = "[OPTIONS] MODEL.gguf TEXTFILE",
                                              .help = "Scores a text, token by token, through a pipeline of its own",
                                              .options = &table,
                                              .values_bytes = sizeof(struct values),
                                              .positional_min = 2,
                                              .positional_max = 2,
                                              .run = run};
