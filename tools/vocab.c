#include "tools/vocab.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/tok.h"

static int read_strings(const struct gguf *gguf, const char *key, struct tok_text **texts, uint32_t *count,
                        struct err *err)
{
    struct gguf_array array;
    if (!gguf_get_array(gguf, key, &array) || array.element_type != GGUF_STRING || array.count > 1u << 24)
        return err_set(err, -ENOTSUP, "the model file has no usable %s", key);
    *count = (uint32_t)array.count;
    *texts = base_alloc(array.count * sizeof(**texts));
    uint64_t cursor = 0;
    struct gguf_string string;
    for (uint32_t i = 0; gguf_array_next_string(&array, &cursor, &string); i++)
        (*texts)[i] = (struct tok_text){string.data, string.size};
    return 0;
}

static int read_scores(const struct gguf *gguf, uint32_t token_count, float **scores, struct err *err)
{
    struct gguf_array array;
    if (!gguf_get_array(gguf, "tokenizer.ggml.scores", &array) || array.element_type == GGUF_STRING ||
        array.count != token_count)
        return err_set(err, -ENOTSUP, "the model file has no usable tokenizer.ggml.scores");
    *scores = base_alloc(token_count * sizeof(**scores));
    for (uint32_t i = 0; i < token_count; i++) {
        (*scores)[i] = (float)gguf_array_f64(&array, i);
        if (isnan((*scores)[i]))
            return err_set(err, -EBADMSG, "tokenizer.ggml.scores: entry %u is not a number", i);
    }
    return 0;
}

/* Types that do not exist count as normal tokens; if their text is none, tok_build() says so. */
static uint8_t *read_types(const struct gguf *gguf, uint32_t token_count)
{
    uint8_t *types = base_alloc(token_count);
    struct gguf_array array;
    bool has_types = gguf_get_array(gguf, "tokenizer.ggml.token_type", &array) && array.count == token_count &&
                     array.element_type != GGUF_STRING;
    for (uint32_t i = 0; i < token_count; i++) {
        double type = has_types ? gguf_array_f64(&array, i) : PIECE_NORMAL;
        types[i] = type >= PIECE_NORMAL && type <= PIECE_BYTE ? (uint8_t)type : PIECE_NORMAL;
    }
    return types;
}

static uint32_t token_id(const struct gguf *gguf, const char *key)
{
    uint64_t id;
    return gguf_get_u64(gguf, key, &id) && id < UINT32_MAX ? (uint32_t)id : TOK_NONE;
}

static struct tok_text text_at(const struct gguf *gguf, const char *key)
{
    struct gguf_string string;
    return gguf_get_string(gguf, key, &string) ? (struct tok_text){string.data, string.size} : (struct tok_text){"", 0};
}

/* All of a template's file; the caller frees it. */
static int read_template(const char *path, char **data, struct tok_text *text, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return err_set(err, -errno, "--chat-template %s: cannot open it: %s", path, strerror(errno));
    *data = base_alloc(JINJA_SOURCE_MAX + 1);
    size_t size = fread(*data, 1, JINJA_SOURCE_MAX + 1, file); /* one byte too many is seen by who parses it */
    bool is_whole = !ferror(file);
    fclose(file);
    *text = (struct tok_text){*data, size};
    return is_whole ? 0 : err_set(err, -EIO, "--chat-template %s: cannot read it", path);
}

int vocab_check_template(const void *blob, size_t blob_bytes, const char *path, struct err *err)
{
    struct tok tok;
    struct chat_template chat;
    int ret = tok_attach(&tok, blob, blob_bytes, 0, err);
    if (ret != 0)
        return ret;
    ret = chat_template_open(&chat, &tok, 0, err);
    chat_template_close(&chat);
    tok_detach(&tok);
    if (ret == 0)
        return 0;
    struct err problem = *err;
    if (path[0] != '\0')
        return err_set(err, -EBADMSG, "--chat-template %s: %s", path, problem.text);
    return err_set(err, -EBADMSG, "%s; --chat-template FILE gives another one, an empty file none", problem.text);
}

static int find_kind(const struct gguf *gguf, enum tok_kind *kind, struct err *err)
{
    struct tok_text model = text_at(gguf, "tokenizer.ggml.model");
    bool is_bpe = model.size == 4 && memcmp(model.data, "gpt2", 4) == 0;
    bool is_spm = model.size == 5 && memcmp(model.data, "llama", 5) == 0;
    if (!is_bpe && !is_spm)
        return err_set(err, -ENOTSUP, "vocabulary: tokenizer \"%.*s\" is not supported; this build has gpt2 and llama",
                       (int)min_u64(model.size, 64), model.data);
    *kind = is_bpe ? TOK_BPE : TOK_SPM;
    return 0;
}

int vocab_from_gguf(const struct gguf *gguf, const char *template_path, void **blob, size_t *blob_bytes,
                    struct err *err)
{
    const char *path = template_path != NULL ? template_path : "";
    char *template = NULL;
    struct tok_text *tokens = NULL, *merges = NULL;
    float *scores = NULL;
    uint8_t *types = NULL;
    struct tok_source source = {.pre = text_at(gguf, "tokenizer.ggml.pre"),
                                .bos = token_id(gguf, "tokenizer.ggml.bos_token_id"),
                                .eos = token_id(gguf, "tokenizer.ggml.eos_token_id"),
                                .adds_space = true, /* where the file does not say */
                                .chat_template = text_at(gguf, "tokenizer.chat_template")};
    static const char *const end_keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < ARRAY_COUNT(end_keys); i++) {
        uint32_t id = token_id(gguf, end_keys[i]);
        if (id != TOK_NONE)
            source.ends[source.end_count++] = id;
    }
    bool adds_bos;
    if (gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &adds_bos))
        source.bos_rule = adds_bos ? TOK_BOS_FIRST : TOK_BOS_NEVER;
    gguf_get_bool(gguf, "tokenizer.ggml.add_space_prefix", &source.adds_space);
    int ret = path[0] != '\0' ? read_template(path, &template, &source.chat_template, err) : 0;
    ret = ret ? ret : find_kind(gguf, &source.kind, err);
    ret = ret ? ret : read_strings(gguf, "tokenizer.ggml.tokens", &tokens, &source.token_count, err);
    if (ret == 0 && source.kind == TOK_BPE)
        ret = read_strings(gguf, "tokenizer.ggml.merges", &merges, &source.merge_count, err);
    if (ret == 0 && source.kind == TOK_SPM)
        ret = read_scores(gguf, source.token_count, &scores, err);
    if (ret == 0) {
        types = read_types(gguf, source.token_count);
        source.tokens = tokens;
        source.merges = merges;
        source.scores = scores;
        source.types = types;
        ret = tok_build(&source, blob, blob_bytes, err);
    }
    free(types);
    free(scores);
    free(tokens);
    free(merges);
    free(template);
    return ret;
}

uint32_t vocab_end_tokens(const void *blob, size_t blob_bytes, uint32_t *ids, uint32_t ids_max)
{
    struct tok tok;
    struct err err;
    uint32_t ends[TOK_END_TOKENS_MAX];
    check(tok_attach(&tok, blob, blob_bytes, 0, &err) == 0);
    uint32_t count = (uint32_t)min_u64(tok_end_tokens(&tok, ends), ids_max);
    memcpy(ids, ends, count * sizeof(*ids));
    tok_detach(&tok);
    return count;
}
