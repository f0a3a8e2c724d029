/* test_exact.c - the second promise: the same bits, whatever shares a step, however prompts are cut, whatever the
 * number of stages, threads and the block size, after a preemption too. On the real model, through real processes. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stages/gguf.h"
#include "tests/engine.h"

#define REQUESTS_MAX 64u

/* make test takes the small form; make exact (EVENFLOW_EXACT=full) the other, which takes minutes. */
static struct size {
    uint32_t requests, tokens;
} size = {40, 56};
static const struct size full = {REQUESTS_MAX, 96};

static void set_up(void)
{
    const char *wanted = getenv("EVENFLOW_EXACT");
    if (wanted != NULL && strcmp(wanted, "full") == 0)
        size = full;
}

TestSuite(exact, .init = set_up);

static struct completion truth[REQUESTS_MAX], seen[REQUESTS_MAX];

/* Prompts of 3 to about 200 tokens, no two alike, half with a common beginning; greedy and sampled ones, with and without what
 * else changes a choice or is shown of it; one in four answers keeps to a grammar, which lets none end here. */
static char *make_body(uint32_t index)
{
    static const char *const topics[] = {
        "the sea",           "a clock that runs backwards", "bread", "the history of bridges", "prime numbers",
        "an old lighthouse", "rain in the mountains",       "chess"};
    static const char *const frames[] = {"Write a short story about %s.", "Explain %s to a child, step by step:",
                                         "The most surprising fact about %s is that", "Q: What do you know of %s?\nA:"};
    static const char common[] =
        "You are a careful writer who knows the world and says only what is true. Keep to plain words, be "
        "brief where you can and exact where you must, and never begin with an apology.\n\n";
    char prompt[4096];
    int used = snprintf(prompt, sizeof(prompt), "%s", index % 2 ? common : "");
    used += snprintf(prompt + used, sizeof(prompt) - (size_t)used, frames[index % 4], topics[(index / 4) % 8]);
    for (uint32_t i = 0; i < (index * 7) % 29; i++)
        used +=
            snprintf(prompt + used, sizeof(prompt) - (size_t)used, " Note %u: it was %u years ago.", i, index * i + 3);
    double temperature = index % 3 == 2 ? 0.8 : 0;
    json_t *body = json_pack("{s:s, s:i, s:f, s:i, s:b, s:b, s:b}", "prompt", prompt, "max_tokens", (int)size.tokens,
                             "temperature", temperature, "seed", (int)(1000 + index), "ignore_eos", 1,
                             "return_token_ids", 1, "return_logits_hash", 1);
    char members[256];
    snprintf(members, sizeof(members), "{\"top_p\":0.95%s}", engine_parameters(index));
    json_t *parameters = json_loads(members, 0, NULL);
    json_object_update(body, parameters);
    json_decref(parameters);
    if (index % 4 == 2) {
        json_object_del(body, "ignore_eos");
        json_object_set_new(body, "guided_regex", json_string("([^@]*@ ?){250}"));
    }
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

struct counts {
    uint64_t preemptions, cached_tokens, accepted_drafts;
};

static struct counts run_all(const char *options, size_t concurrency, struct completion *completions)
{
    char *bodies[REQUESTS_MAX];
    for (uint32_t i = 0; i < size.requests; i++)
        bodies[i] = make_body(i);
    struct own_engine engine;
    engine_start(&engine, options);
    engine_complete(&engine, bodies, size.requests, concurrency, completions);
    struct counts counts = {engine_metric(&engine, "evenflow_preemptions_total"),
                            engine_metric(&engine, "evenflow_cached_tokens_total"),
                            engine_metric(&engine, "evenflow_draft_tokens_accepted_total")};
    cr_assert_eq(own_engine_stop(&engine), 0);
    for (uint32_t i = 0; i < size.requests; i++)
        free(bodies[i]);
    return counts;
}

static void compare(const char *what)
{
    uint64_t differing = 0, differing_choices = 0, tokens = 0;
    for (uint32_t i = 0; i < size.requests; i++) {
        cr_assert_eq(seen[i].count, truth[i].count, "%s: request %u has %u tokens", what, i, seen[i].count);
        for (uint32_t t = 0; t < truth[i].count; t++)
            differing += truth[i].tokens[t] != seen[i].tokens[t] || truth[i].hashes[t] != seen[i].hashes[t];
        tokens += truth[i].count;
        differing_choices += truth[i].choices != seen[i].choices;
    }
    fprintf(stderr, "exact: %-66s %llu of %llu tokens differ\n", what, (unsigned long long)differing,
            (unsigned long long)tokens);
    cr_expect_eq(differing, 0, "%s: %llu tokens differ", what, (unsigned long long)differing);
    cr_expect_eq(differing_choices, 0, "%s: %llu answers differ in something", what,
                 (unsigned long long)differing_choices);
}

struct run {
    const char *options;
    size_t concurrency;
    bool must_preempt, must_hit, must_guess;
};

/* first: nothing cached: what the others are held against. */
static void expect_same_bits(const struct run *first, const struct run *runs, size_t count)
{
    struct counts counts = run_all(first->options, first->concurrency, truth);
    cr_assert_eq(counts.cached_tokens, 0);
    for (uint32_t i = 0; i < size.requests; i++)
        cr_assert(truth[i].count >= size.tokens, "%u tokens", truth[i].count); /* more with those of a scored prompt */
    for (size_t i = 0; i < count; i++) {
        counts = run_all(runs[i].options, runs[i].concurrency, seen);
        compare(runs[i].options);
        fprintf(stderr, "exact:    with %llu preemptions, %llu prompt tokens from the cache and %llu right drafts\n",
                (unsigned long long)counts.preemptions, (unsigned long long)counts.cached_tokens,
                (unsigned long long)counts.accepted_drafts);
        if (runs[i].must_preempt)
            cr_expect_gt(counts.preemptions, 0, "%s: nothing was preempted, so nothing was shown", runs[i].options);
        if (runs[i].must_hit)
            cr_expect_gt(counts.cached_tokens, 100, "%s: nothing was cached, so nothing was shown", runs[i].options);
        if (runs[i].must_guess)
            cr_expect_gt(counts.accepted_drafts, 20, "%s: nothing was guessed, so nothing was shown", runs[i].options);
    }
}

Test(exact, same_bits_whatever_the_batch_the_chunks_the_stages_and_the_blocks, .timeout = 1200)
{
    static const struct run runs[] = {
        {"-p 2", 32, false, true, false},
        {"-p 2 --split 7,23 --max-num-batched-tokens 16 --max-num-seqs 16", 32, false, true, false},
        {"-p 1 --threads-per-stage 2 --max-num-batched-tokens 8192 --no-enable-chunked-prefill "
         "--no-enable-prefix-caching",
         64, false, false, false},
        {"-p 2 --policy default --num-blocks 96 --max-num-seqs 32", 32, true, true, false},
        {"-p 3 --policy throttle --block-size 8 --max-num-batched-tokens 37 --max-num-seqs 32", 20, false, true, false},
        {"-p 5 --policy default --block-size 64 --num-blocks 40 --window 7 --no-enable-prefix-caching", 32, true, false,
         false},
        {"-p 3 --speculate ngram --num-blocks 48 --policy default", 4, true, true, true},
    };
    const struct run alone = {"-p 1 --no-enable-prefix-caching", 1, false, false, false};
    expect_same_bits(&alone, runs, ARRAY_COUNT(runs));
}

Test(exact, the_same_with_a_cache_of_bytes, .timeout = 600)
{
    static const struct run runs[] = {
        {"--kv-type q8 --block-size 8 -p 2 --policy default --num-blocks 96 --max-num-seqs 32 --threads-per-stage 2",
         32, true, true, false},
    };
    const struct run few = {"--kv-type q8 -p 1 --no-enable-prefix-caching", 8, false, false, false};
    expect_same_bits(&few, runs, ARRAY_COUNT(runs));
}

/* What shows that the test above could fail: one bit of one weight is enough to change every hash. */
Test(exact, one_flipped_bit_of_one_weight_changes_every_hash, .timeout = 300)
{
    char path[] = "/tmp/evenflow-flipped-XXXXXX";
    int copy = mkstemp(path);
    int source = open(engine_model_path(), O_RDONLY);
    struct stat stat;
    cr_assert_eq(fstat(source, &stat), 0);
    cr_assert_eq(ftruncate(copy, stat.st_size), 0);
    uint8_t *from = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, source, 0);
    uint8_t *to = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, copy, 0);
    memcpy(to, from, (size_t)stat.st_size);
    struct gguf *gguf;
    struct err err;
    cr_assert_eq(gguf_open(&gguf, engine_model_path(), &err), 0, "%s", err.text);
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, "blk.0.attn_v.weight");
    cr_assert_eq(tensor->type, 3, "a Q4_1 tensor");
    /* a nibble of the first block: behind its scale and minimum, two bytes each */
    struct gguf_tensor where = *tensor;
    size_t offset = SIZE_MAX;
    for (size_t at = 0; at + 64 < (size_t)stat.st_size && offset == SIZE_MAX; at += 32)
        if (memcmp(from + at, where.data, 64) == 0)
            offset = at;
    cr_assert_neq(offset, SIZE_MAX);
    to[offset + 4] ^= 1;
    gguf_close(gguf);
    munmap(to, (size_t)stat.st_size);
    close(copy);

    char *body = make_body(0);
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    engine_complete(&engine, &body, 1, 1, truth);
    cr_assert_eq(own_engine_stop(&engine), 0);
    engine_start_model(&engine, "-p 2", path);
    engine_complete(&engine, &body, 1, 1, seen);
    cr_assert_eq(own_engine_stop(&engine), 0);
    unlink(path);
    free(body);

    uint32_t different_hashes = 0;
    for (uint32_t t = 0; t < size.tokens; t++) {
        cr_expect_neq(truth[0].hashes[t], seen[0].hashes[t], "token %u", t);
        bool is_new = true;
        for (uint32_t earlier = 0; earlier < t; earlier++)
            is_new = is_new && truth[0].hashes[earlier] != truth[0].hashes[t];
        different_hashes += is_new;
    }
    cr_expect_geq(different_hashes, size.tokens - 6);
}
