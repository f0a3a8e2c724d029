#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/tok.h"
#include "stages/gguf.h"
#include "tools/vocab.h"

/* A model file of metadata only, under construction. */
struct file {
    uint8_t bytes[8192];
    size_t size, count_at;
    uint64_t entries;
};

static struct file file;

static void put(const void *bytes, size_t size)
{
    cr_assert_leq(file.size + size, sizeof(file.bytes));
    memcpy(file.bytes + file.size, bytes, size);
    file.size += size;
}

static void put_number(uint64_t value, size_t bytes)
{
    put(&value, bytes);
}

static void put_string(const char *text)
{
    put_number(strlen(text), 8);
    put(text, strlen(text));
}

static void put_key(const char *name, uint32_t type)
{
    put_string(name);
    put_number(type, 4);
    file.entries++;
    memcpy(file.bytes + file.count_at, &file.entries, sizeof(file.entries));
}

static void put_text_key(const char *name, const char *text)
{
    put_key(name, 8);
    put_string(text);
}

static void put_strings_key(const char *name, const char *const *texts, uint64_t count)
{
    put_key(name, 9);
    put_number(8, 4);
    put_number(count, 8);
    for (uint64_t i = 0; i < count; i++)
        put_string(texts[i]);
}

static const char *const tokens[] = {"<end>", "a", "b", "ab", "Ġ", "Ġab", "<begin>", "<turn>", "c"};
static const char *const merges[] = {"a b", "Ġ ab"};

/* What varies between files; a NULL text leaves the key out. */
struct variant {
    const char *model, *pre, *chat_template;
    const char *left_out; /* a key that is not there */
    uint32_t type_of_types;
    double types[ARRAY_COUNT(tokens)];
    uint64_t bos, eos;
};

static const struct variant sound = {.model = "gpt2",
                                     .pre = "gpt-2",
                                     .chat_template = "{{ messages }}",
                                     .type_of_types = 5,
                                     .types = {3, 1, 1, 1, 1, 1, 3, 3, 4},
                                     .bos = 6,
                                     .eos = 0};

static bool is_wanted(const struct variant *variant, const char *key)
{
    return variant->left_out == NULL || strcmp(variant->left_out, key) != 0;
}

static void put_types(const struct variant *variant)
{
    put_key("tokenizer.ggml.token_type", 9);
    put_number(variant->type_of_types, 4);
    put_number(ARRAY_COUNT(tokens), 8);
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) {
        float real = (float)variant->types[i];
        if (variant->type_of_types == 6)
            put(&real, sizeof(real));
        else
            put_number((uint64_t)(int64_t)variant->types[i], variant->type_of_types == 11 ? 8 : 4);
    }
}

static void put_file(const struct variant *variant)
{
    file = (struct file){0};
    put("GGUF", 4);
    put_number(3, 4);
    put_number(0, 8);
    file.count_at = file.size;
    put_number(0, 8);
    put_text_key("tokenizer.ggml.model", variant->model);
    if (is_wanted(variant, "tokenizer.ggml.pre"))
        put_text_key("tokenizer.ggml.pre", variant->pre);
    if (is_wanted(variant, "tokenizer.ggml.tokens"))
        put_strings_key("tokenizer.ggml.tokens", tokens, ARRAY_COUNT(tokens));
    if (is_wanted(variant, "tokenizer.ggml.token_type"))
        put_types(variant);
    if (is_wanted(variant, "tokenizer.ggml.merges"))
        put_strings_key("tokenizer.ggml.merges", merges, ARRAY_COUNT(merges));
    put_key("tokenizer.ggml.bos_token_id", 4);
    put_number(variant->bos, 4);
    put_key("tokenizer.ggml.eos_token_id", 10); /* integers of another width are as good */
    put_number(variant->eos, 8);
    put_key("tokenizer.ggml.eot_token_id", 4);
    put_number(7, 4);
    put_key("tokenizer.ggml.add_bos_token", 7);
    put_number(1, 1);
    if (is_wanted(variant, "tokenizer.chat_template"))
        put_text_key("tokenizer.chat_template", variant->chat_template);
}

static int build(void **blob, size_t *bytes, struct err *err)
{
    struct gguf *gguf;
    int fd = memfd_create("gguf", 0);
    cr_assert_eq(write(fd, file.bytes, file.size), (ssize_t)file.size);
    int ret = gguf_open_fd(&gguf, fd, "test", err);
    close(fd);
    if (ret != 0)
        return ret;
    ret = vocab_from_gguf(gguf, NULL, blob, bytes, err);
    gguf_close(gguf);
    return ret;
}

static void build_and_attach(const struct variant *variant, struct tok *tok, void **blob)
{
    size_t bytes;
    struct err err;
    put_file(variant);
    cr_assert_eq(build(blob, &bytes, &err), 0, "%s", err.text);
    cr_assert_eq(tok_attach(tok, *blob, bytes, 256, &err), 0, "%s", err.text);
}

static void release(struct tok *tok, void *blob)
{
    tok_detach(tok);
    free(blob);
}

Test(vocab, the_tables_hold_what_the_file_says)
{
    struct tok tok;
    void *blob;
    build_and_attach(&sound, &tok, &blob);
    uint32_t ids[16], ends[TOK_END_TOKENS_MAX];
    cr_assert_eq(tok_vocab_size(&tok), ARRAY_COUNT(tokens));
    cr_assert_eq(tok_encode(&tok, "ab ab", 5, NULL, 0, ids, 16), 3);
    cr_assert(ids[0] == 6 && ids[1] == 3 && ids[2] == 5);
    cr_assert_eq(tok_end_tokens(&tok, ends), 2);
    cr_assert(ends[0] == 0 && ends[1] == 7);
    cr_assert_eq(vocab_end_tokens(blob, tok_blob_bytes(&tok), ids, 16), 2);
    cr_assert(ids[0] == 0 && ids[1] == 7);
    struct tok_text text = tok_chat_template(&tok);
    cr_assert(text.size == 14 && memcmp(text.data, "{{ messages }}", 14) == 0);
    release(&tok, blob);
}

Test(vocab, optional_keys_may_be_absent)
{
    struct variant variant = sound;
    struct tok tok;
    void *blob;
    variant.left_out = "tokenizer.chat_template";
    build_and_attach(&variant, &tok, &blob);
    cr_assert_eq(tok_chat_template(&tok).size, 0);
    release(&tok, blob);
    variant = sound;
    variant.bos = UINT32_MAX;
    variant.eos = UINT64_MAX;
    build_and_attach(&variant, &tok, &blob);
    uint32_t ids[4];
    cr_assert_eq(tok_encode(&tok, "", 0, NULL, 0, ids, 4), 0, "no token is 2^32 - 1");
    release(&tok, blob);
}

Test(vocab, types_come_in_any_width_and_unknown_ones_are_normal)
{
    static const uint32_t type_numbers[] = {4, 5, 6, 11};
    for (size_t i = 0; i < ARRAY_COUNT(type_numbers); i++) {
        struct variant variant = sound;
        struct tok tok;
        void *blob;
        variant.type_of_types = type_numbers[i];
        variant.types[1] = 0;
        variant.types[2] = 7;
        variant.types[3] = 1 << 20;
        variant.types[4] = type_numbers[i] == 6 ? 1e30 : -1;
        build_and_attach(&variant, &tok, &blob);
        uint8_t piece[TOK_PIECE_MAX];
        cr_assert(tok_is_control(&tok, 0) && !tok_is_control(&tok, 1) && !tok_is_control(&tok, 8));
        cr_assert(tok_piece(&tok, 4, piece) == 1 && piece[0] == ' ');
        release(&tok, blob);
    }
}

static void expect_refusal(const struct variant *variant, const char *what)
{
    void *blob;
    size_t bytes;
    struct err err = {.text = ""};
    put_file(variant);
    cr_expect_lt(build(&blob, &bytes, &err), 0, "accepted, but: %s", what);
    cr_expect(strstr(err.text, what) != NULL, "\"%s\" does not say: %s", err.text, what);
}

Test(vocab, what_cannot_be_used_is_refused_by_name)
{
    struct variant variant = sound;
    variant.model = "bert";
    expect_refusal(&variant, "\"bert\"");
    variant.model = "llama"; /* SentencePiece's, which needs scores */
    expect_refusal(&variant, "tokenizer.ggml.scores");
    variant = sound;
    variant.pre = "chatglm-bpe";
    expect_refusal(&variant, "\"chatglm-bpe\"");
    variant = sound;
    variant.left_out = "tokenizer.ggml.pre";
    expect_refusal(&variant, "pre-tokenizer");
    variant = sound;
    variant.left_out = "tokenizer.ggml.tokens";
    expect_refusal(&variant, "tokenizer.ggml.tokens");
    variant = sound;
    variant.left_out = "tokenizer.ggml.merges";
    expect_refusal(&variant, "tokenizer.ggml.merges");
    variant = sound;
    variant.eos = 9;
    expect_refusal(&variant, "end with 9");
}

Test(vocab, a_chat_template_that_cannot_be_run_is_named_with_its_line_and_leaves_the_rest_usable)
{
    struct variant variant = sound;
    struct tok tok;
    variant.chat_template = "a\n{% nosuch %}";
    void *blob;
    struct err err = {.text = ""};
    build_and_attach(&variant, &tok, &blob);
    cr_assert_lt(vocab_check_template(blob, tok_blob_bytes(&tok), "", &err), 0);
    cr_expect(strstr(err.text, "line 2") != NULL && strstr(err.text, "--chat-template FILE") != NULL, "%s", err.text);
    cr_assert_lt(vocab_check_template(blob, tok_blob_bytes(&tok), "x.jinja", &err), 0);
    cr_expect(strstr(err.text, "--chat-template x.jinja: ") != NULL, "%s", err.text);
    release(&tok, blob);
}

/* Any one byte changed: an error with a text, or tables that work. */
Test(vocab, damaged_files_give_errors_or_tables_that_work, .timeout = 120)
{
    static const uint8_t changes[] = {0x01, 0x02, 0x20, 0x80, 0xff};
    static const char text[] = "ab ab <end><turn>c \xff\xc4\xa0 abc";
    const struct tok_range all = {0, sizeof(text) - 1};
    uint64_t built = 0, refused = 0;
    put_file(&sound);
    const struct file whole = file;
    for (size_t at = 0; at < whole.size; at++)
        for (size_t i = 0; i < sizeof(changes); i++) {
            void *blob;
            size_t bytes;
            struct err err = {.text = ""};
            struct tok tok;
            uint32_t ids[64];
            file = whole;
            file.bytes[at] ^= changes[i];
            if (build(&blob, &bytes, &err) != 0) {
                cr_expect_gt(strlen(err.text), 10, "byte %zu", at);
                refused++;
                continue;
            }
            cr_assert_eq(tok_attach(&tok, blob, bytes, 256, &err), 0, "%s", err.text);
            uint32_t count = tok_encode(&tok, text, all.size, &all, 1, ids, 64);
            struct tok_decoder decoder = {0};
            char out[3 * (TOK_PIECE_MAX + 4)];
            for (uint32_t k = 0; k < count; k++) {
                cr_assert_lt(ids[k], tok_vocab_size(&tok));
                tok_decoder_push(&decoder, &tok, ids[k], out);
            }
            release(&tok, blob);
            built++;
        }
    cr_assert(built > 100 && refused > 100, "%llu built, %llu refused", (unsigned long long)built,
              (unsigned long long)refused);
}
