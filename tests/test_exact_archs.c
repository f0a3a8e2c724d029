/* test_exact_archs.c - the same bits for every architecture and every type of tensor: tiny models, through real processes,
 * whatever the batch, the chunks, the stages, the blocks, after a preemption and after the death of any process. A third of
 * the answers keep to a grammar. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/engine.h"
#include "tests/tiny_model.h"
#include "tests/tiny_vocab.h"

#define REQUESTS 12u
#define TOKENS   40u
#define ALL      "--no-weights-cache --max-num-seqs 16 "

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];

/* Prompts of 3 to 91 tokens, half with a common beginning; greedy and drawn answers. No grammar lets an answer end here. */
static char *make_body(uint32_t index)
{
    uint32_t count = 3 + 8 * index;
    json_t *prompt = json_array();
    for (uint32_t j = 0; j < count; j++) {
        uint32_t other = index % 2 != 0 && j < 48 ? 1 : index;
        json_array_append_new(prompt, json_integer((other * 31 + j * j * 17 + 5 * j) % TINY_COUNT));
    }
    json_t *body =
        json_pack("{s:o, s:i, s:f, s:i, s:b, s:b}", "prompt", prompt, "max_tokens", (int)TOKENS, "temperature",
                  index % 4 < 2 ? 0.0 : 0.9, "seed", (int)index, "return_token_ids", 1, "return_logits_hash", 1);
    if (index % 6 == 1)
        json_object_set_new(body, "guided_regex", json_string("([a-h ]|hello|\xe2\x82\xac){250}"));
    else if (index % 6 == 4)
        json_object_set_new(body, "guided_json", json_pack("{s:s, s:i}", "type", "string", "minLength", 250));
    else
        json_object_set_new(body, "ignore_eos", json_true());
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static void compare(uint32_t variant, const char *what)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        cr_assert_eq(seen[i].count, TOKENS, "variant %u, %s: request %u has %u tokens", variant, what, i,
                     seen[i].count);
        cr_expect_arr_eq(seen[i].tokens, truth[i].tokens, TOKENS * sizeof(uint32_t), "variant %u, %s: request %u",
                         variant, what, i);
        cr_expect_arr_eq(seen[i].hashes, truth[i].hashes, TOKENS * sizeof(uint64_t), "variant %u, %s: request %u",
                         variant, what, i);
    }
}

static void run_all(const char *path, const char *options, size_t concurrency, const char *must_count,
                    struct completion *completions)
{
    struct own_engine engine;
    engine_start_model(&engine, options, path);
    engine_complete(&engine, bodies, REQUESTS, concurrency, completions);
    if (must_count != NULL)
        cr_expect_gt(engine_metric(&engine, must_count), 0, "%s: no %s, so nothing was shown", options, must_count);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

static void kill_victim(struct client_call *call, void *victim, const char *data, size_t size)
{
    (void)data;
    (void)size;
    if (call->event_count == 8 && *(pid_t *)victim > 0)
        cr_expect_eq(kill(*(pid_t *)victim, SIGKILL), 0);
}

/* All together, and a stream beside them: once some of that has come, all are amid their answers, and the victim (0: none)
 * is killed. */
static void run_beside(struct client *client, pid_t victim)
{
    static const char stream[] = "{\"prompt\":[7,8,9],\"max_tokens\":120,\"ignore_eos\":true,\"stream\":true}";
    struct client_call call = {.method = "POST",
                               .path = "/v1/completions",
                               .body = stream,
                               .body_size = sizeof(stream) - 1,
                               .on_event = kill_victim,
                               .context = &victim};
    client_start(client, &call);
    engine_complete_with(client, bodies, REQUESTS, REQUESTS + 1, seen); /* ends when the stream has ended too */
    cr_expect(call.status == 200 && call.event_count > 120, "%d: %s", call.status, call.err.text);
    client_call_free(&call);
}

static void run_with_deaths(const char *path, uint32_t variant)
{
    static const struct {
        const char *role;
        int index;
    } victims[] = {{"stage", 0}, {"stage", 1}, {"sched", 0}, {"front", 0}};
    struct own_engine engine;
    struct err err;
    engine_start_model(&engine, ALL "-p 2 --num-blocks 128 --log-level error", path);
    /* connections that were open before: one that is not yet in the supervisor's keeping may be closed with the front */
    struct client *client = client_open(engine.socket, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    run_beside(client, 0);
    compare(variant, "all together");
    for (size_t i = 0; i < ARRAY_COUNT(victims); i++) {
        pid_t victim = engine_pid(&engine, victims[i].role, victims[i].index);
        run_beside(client, victim);
        compare(variant, victims[i].role);
        cr_expect_neq(engine_pid(&engine, victims[i].role, victims[i].index), victim);
    }
    client_close(client);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(exact_archs, same_bits_for_every_architecture_and_type, .timeout = 600)
{
    for (uint32_t i = 0; i < REQUESTS; i++)
        bodies[i] = make_body(i);
    for (uint32_t variant = 0; variant < TINY_MODEL_VARIANTS; variant++) {
        char path[] = "/tmp/evenflow-tiny-XXXXXX";
        struct tiny_model tiny = tiny_model_variant(variant);
        tiny.vocab_size = TINY_COUNT;
        tiny.has_tokenizer = true;
        close(mkstemp(path));
        tiny_model_write(&tiny, path);
        /* each alone, nothing cached */
        run_all(path, ALL "-p 1 --num-blocks 64 --no-enable-prefix-caching", 1, NULL, truth);
        run_all(path, ALL "-p 2 --num-blocks 128 --max-num-batched-tokens 16", REQUESTS, "evenflow_cached_tokens_total",
                seen);
        compare(variant, "chunks of 16");
        run_all(path, ALL "-p 3 --policy default --block-size 8 --num-blocks 48 --threads-per-stage 2", REQUESTS,
                "evenflow_preemptions_total", seen);
        compare(variant, "preempted");
        run_with_deaths(path, variant);
        unlink(path);
    }
}
