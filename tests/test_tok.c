#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/tok.h"
#include "engine/unicode.h"
#include "ipc/clock.h"
#include "stages/gguf.h"
#include "tests/engine.h"
#include "tools/vocab.h"

#define TEXT_MAX (2u << 20)

static struct tok tok;
static void *blob;
static size_t blob_bytes;

static void open_vocabulary(void)
{
    struct gguf *gguf;
    struct err err;
    cr_assert_eq(gguf_open(&gguf, engine_model_path(), &err), 0, "%s", err.text);
    cr_assert_eq(vocab_from_gguf(gguf, NULL, &blob, &blob_bytes, &err), 0, "%s", err.text);
    gguf_close(gguf);
    cr_assert_eq(tok_attach(&tok, blob, blob_bytes, TEXT_MAX, &err), 0, "%s", err.text);
}

TestSuite(tok, .init = open_vocabulary, .timeout = 60);

static uint32_t ids[TEXT_MAX];

static uint32_t encode(const char *text, size_t size)
{
    return tok_encode(&tok, text, size, NULL, 0, ids, ARRAY_COUNT(ids));
}

/* Bytes of a case: its text, or what its hexadecimal bytes become when they are made valid. */
static size_t case_bytes(json_t *line, uint8_t *bytes)
{
    json_t *text = json_object_get(line, "text");
    if (text != NULL) {
        memcpy(bytes, json_string_value(text), json_string_length(text));
        return json_string_length(text);
    }
    const char *hex = json_string_value(json_object_get(line, "bytes_hex"));
    uint8_t raw[256];
    size_t size = strlen(hex) / 2;
    for (size_t i = 0; i < size; i++) {
        unsigned byte;
        cr_assert_eq(sscanf(hex + 2 * i, "%2x", &byte), 1);
        raw[i] = (uint8_t)byte;
    }
    return unicode_repair(bytes, raw, size);
}

Test(tok, gives_the_ids_that_an_independent_implementation_gives)
{
    FILE *file = fopen("tests/data/tokenizer_cases.jsonl", "re");
    cr_assert_not_null(file);
    char *text = NULL;
    size_t room = 0, cases = 0;
    while (getline(&text, &room, file) > 0) {
        json_t *line = json_loads(text, JSON_ALLOW_NUL, NULL);
        cr_assert_not_null(line, "%s", text);
        uint8_t bytes[4096];
        size_t size = case_bytes(line, bytes);
        uint32_t count = encode((const char *)bytes, size);
        json_t *expected = json_object_get(line, "ids");
        bool is_equal = count == json_array_size(expected);
        for (uint32_t i = 0; i < count && is_equal; i++)
            is_equal = ids[i] == (uint32_t)json_integer_value(json_array_get(expected, i));
        cr_expect(is_equal, "%s", text);
        json_decref(line);
        cases++;
    }
    fclose(file);
    free(text);
    cr_assert_geq(cases, 300);
}

/* Ids of a line's field, and back: the text, as its bytes are. False when the line has no such field. */
static bool expect_ids(const struct tok *by, json_t *line, const char *field, bool special)
{
    json_t *expected = json_object_get(line, field), *text = json_object_get(line, "text");
    if (expected == NULL)
        return false;
    size_t size = json_string_length(text);
    const struct tok_range all = {0, size};
    uint32_t count = tok_encode(by, json_string_value(text), size, &all, special, ids, ARRAY_COUNT(ids));
    bool is_equal = count == json_array_size(expected);
    for (uint32_t i = 0; i < count && is_equal; i++)
        is_equal = ids[i] == (uint32_t)json_integer_value(json_array_get(expected, i));
    cr_expect(is_equal, "%s: %s", field, json_string_value(text));
    if (special)
        return true;
    struct tok_decoder decoder = {.is_text_start = true};
    static char back[65536];
    size_t back_size = 0;
    for (uint32_t i = 0; i < count; i++)
        back_size += tok_decoder_push(&decoder, by, ids[i], back + back_size);
    back_size += tok_decoder_end(&decoder, back + back_size);
    /* SentencePiece's U+2581: comes back as a space */
    bool has_other_space = memmem(json_string_value(text), size, "\xe2\x96\x81", 3) != NULL;
    cr_expect((back_size == size && memcmp(back, json_string_value(text), size) == 0) || has_other_space, "%s: back",
              json_string_value(text));
    return true;
}

/* Returns how many lines of data/llamacpp_cases.jsonl have the field. */
static uint32_t expect_all_ids(const struct tok *by, const char *field, bool special)
{
    FILE *file = fopen("tests/data/llamacpp_cases.jsonl", "re");
    cr_assert_not_null(file);
    char *text = NULL;
    size_t room = 0;
    uint32_t cases = 0;
    while (getline(&text, &room, file) > 0) {
        json_t *line = json_loads(text, JSON_ALLOW_NUL, NULL);
        cr_assert_not_null(line, "%s", text);
        cases += expect_ids(by, line, field, special);
        json_decref(line);
    }
    fclose(file);
    free(text);
    return cases;
}

Test(tok, gives_the_ids_that_llama_cpp_gives)
{
    cr_assert_geq(expect_all_ids(&tok, "smollm", false), 700);
}

#define GEMMA "models/gemma-3-270m-q4_k_m.gguf"

static bool open_gemma(struct tok *gemma, void **gemma_blob)
{
    struct gguf *gguf;
    struct err err;
    size_t bytes;
    if (access(GEMMA, R_OK) != 0) {
        fprintf(stderr, "skipped: %s is not there; make model-gemma gets it\n", GEMMA);
        return false;
    }
    cr_assert_eq(gguf_open(&gguf, GEMMA, &err), 0, "%s", err.text);
    cr_assert_eq(vocab_from_gguf(gguf, NULL, gemma_blob, &bytes, &err), 0, "%s", err.text);
    gguf_close(gguf);
    cr_assert_eq(tok_attach(gemma, *gemma_blob, bytes, TEXT_MAX, &err), 0, "%s", err.text);
    return true;
}

Test(tok, gives_the_ids_that_llama_cpp_gives_for_gemma)
{
    struct tok gemma;
    void *gemma_blob;
    if (!open_gemma(&gemma, &gemma_blob))
        return;
    cr_expect_geq(expect_all_ids(&gemma, "gemma", false), 700);
    cr_expect_geq(expect_all_ids(&gemma, "gemma_special", true), 10);
    /* as many bytes as a prompt may have, of the sorts that make merges work hardest; seconds of this process */
    static char text[1 << 20];
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int sort = 0; sort < 3; sort++) {
        uint64_t random = 1;
        for (size_t i = 0; i < sizeof(text); i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            text[i] = (char)(sort == 0 ? ' ' : sort == 1 ? 'a' : digits[random >> 58]);
        }
        uint64_t begin_ns = clock_cpu_ns();
        cr_assert_gt(tok_encode(&gemma, text, sizeof(text), NULL, 0, ids, ARRAY_COUNT(ids)), 1000);
        double seconds = (double)(clock_cpu_ns() - begin_ns) / 1e9;
        cr_expect_lt(seconds, 3, "sort %d: %.2f s", sort, seconds);
        printf("gemma: 1 MiB of sort %d in %.2f s\n", sort, seconds);
    }
    tok_detach(&gemma);
    free(gemma_blob);
}

Test(tok, special_tokens_are_special_only_where_they_are_trusted)
{
    static const char text[] = "<|im_start|>user<|im_end|>";
    const size_t size = sizeof(text) - 1;
    const struct tok_range all = {0, size}, first = {0, 12}, too_short = {0, 11}, shifted = {1, 25};
    uint32_t count = tok_encode(&tok, text, size, &all, 1, ids, 64);
    cr_assert_eq(count, 3);
    cr_assert_eq(ids[0], 1);
    cr_assert_eq(ids[2], 2);
    count = tok_encode(&tok, text, size, &first, 1, ids, 64);
    cr_assert_eq(ids[0], 1);
    for (uint32_t i = 1; i < count; i++)
        cr_assert_not(tok_is_control(&tok, ids[i]));
    count = tok_encode(&tok, text, size, &too_short, 1, ids, 64);
    for (uint32_t i = 0; i < count; i++)
        cr_assert_not(tok_is_control(&tok, ids[i]));
    count = tok_encode(&tok, text, size, &shifted, 1, ids, 64);
    cr_assert_not(tok_is_control(&tok, ids[0]));
    cr_assert_eq(ids[count - 1], 2);
    count = encode(text, size);
    for (uint32_t i = 0; i < count; i++)
        cr_assert_not(tok_is_control(&tok, ids[i]));
}

Test(tok, stops_at_the_room_it_is_given)
{
    static const char text[] = "one two three four five six seven";
    uint32_t all = encode(text, sizeof(text) - 1), some[64];
    for (uint32_t room = 0; room <= all; room++) {
        memset(some, 0xff, sizeof(some));
        cr_assert_eq(tok_encode(&tok, text, sizeof(text) - 1, NULL, 0, some, room), room);
        cr_assert_eq(memcmp(some, ids, room * sizeof(uint32_t)), 0);
        cr_assert_eq(some[room], UINT32_MAX);
    }
}

static size_t decode(const uint32_t *tokens, uint32_t count, char *text)
{
    struct tok_decoder decoder = {0};
    size_t size = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t more = tok_decoder_push(&decoder, &tok, tokens[i], text + size);
        for (size_t at = 0; at < more;) { /* never half a character */
            uint32_t code, length = unicode_decode((uint8_t *)text + size + at, more - at, &code, NULL);
            cr_assert_gt(length, 0);
            at += length;
        }
        size += more;
    }
    return size + tok_decoder_end(&decoder, text + size);
}

Test(tok, text_comes_back_as_it_went_in)
{
    static const char *const texts[] = {
        "Hello, world!",   "naïve café — “quotes”", "你好，世界 🙂👨‍👩‍👧‍👦",
        "שלום مرحبا नमस्ते", "a\n\n  b\tc   ",        "<|im_end|> is text here"};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        char text[4096];
        uint32_t count = encode(texts[i], strlen(texts[i]));
        size_t size = decode(ids, count, text);
        cr_expect_eq(size, strlen(texts[i]));
        cr_expect_eq(memcmp(text, texts[i], size), 0, "%s: %.*s", texts[i], (int)size, text);
    }
}

Test(tok, what_can_be_no_character_becomes_the_replacement)
{
    /* ids of single bytes are looked up by their pieces */
    uint32_t byte_ids[256];
    memset(byte_ids, 0xff, sizeof(byte_ids));
    for (uint32_t id = 0; id < tok_vocab_size(&tok); id++) {
        uint8_t piece[TOK_PIECE_MAX];
        if (!tok_is_control(&tok, id) && tok_piece(&tok, id, piece) == 1)
            byte_ids[piece[0]] = id;
    }
    char text[64];
    const uint32_t cut[] = {byte_ids[0xe2], byte_ids[0x82]}, broken[] = {byte_ids[0xe2], byte_ids['a']};
    const uint32_t whole[] = {byte_ids[0xe2], byte_ids[0x82], byte_ids[0xac]};
    cr_assert_eq(decode(whole, 3, text), 3);
    cr_assert_eq(memcmp(text, "€", 3), 0);
    cr_assert_eq(decode(cut, 2, text), 3);
    cr_assert_eq(memcmp(text, "\xef\xbf\xbd", 3), 0);
    cr_assert_eq(decode(broken, 2, text), 4);
    cr_assert_eq(memcmp(text,
                        "\xef\xbf\xbd"
                        "a",
                        4),
                 0);
    /* a part of a character that goes on wrongly is one replacement, as it is when the text ends there */
    const uint32_t part[] = {byte_ids[0xe2], byte_ids[0x82], byte_ids['a']};
    cr_assert_eq(decode(part, 3, text), 4);
    cr_assert_eq(memcmp(text, "\xef\xbf\xbd\x61", 4), 0);
}

Test(tok, an_answer_ends_at_the_models_end_tokens)
{
    uint32_t ends[TOK_END_TOKENS_MAX], count = tok_end_tokens(&tok, ends);
    bool has_turn_end = false, has_text_end = false;
    for (uint32_t i = 0; i < count; i++) {
        has_turn_end |= ends[i] == 2;
        has_text_end |= ends[i] == 0;
    }
    cr_assert(has_turn_end);
    cr_assert(has_text_end);
}

/* Quadratic time would take minutes; the bound is generous because machines are shared. */
Test(tok, a_megabyte_of_anything_takes_no_time_to_speak_of)
{
    static const char *const units[] = {" ", "a", "0", "é", "🙂", "\n", "ab", "The ", "'"};
    static char text[1 << 20];
    for (size_t i = 0; i <= ARRAY_COUNT(units); i++) {
        uint64_t state = 1;
        if (i < ARRAY_COUNT(units))
            for (size_t at = 0, unit = strlen(units[i]); at + unit <= sizeof(text); at += unit)
                memcpy(text + at, units[i], unit);
        else
            for (size_t at = 0; at < sizeof(text); at++) { /* base64 */
                state = state * 6364136223846793005ull + 1442695040888963407ull;
                text[at] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[state >> 58];
            }
        size_t size = i < ARRAY_COUNT(units) ? sizeof(text) / strlen(units[i]) * strlen(units[i]) : sizeof(text);
        uint64_t start_ns = clock_cpu_ns();
        uint32_t count = encode(text, size);
        double seconds = (double)(clock_cpu_ns() - start_ns) / 1e9;
        cr_expect_lt(seconds, 10, "1 MB of \"%s\" took %.2f s", i < ARRAY_COUNT(units) ? units[i] : "base64", seconds);
        cr_expect_gt(count, 0);
    }
}

Test(tok, damaged_tables_are_refused)
{
    struct tok other;
    struct err err;
    uint8_t *copy = base_alloc(blob_bytes);
    for (size_t byte = 0; byte < 8; byte++) { /* the magic */
        memcpy(copy, blob, blob_bytes);
        copy[byte] ^= 1;
        cr_assert_lt(tok_attach(&other, copy, blob_bytes, 64, &err), 0);
    }
    for (size_t size = 0; size < blob_bytes; size += blob_bytes / 97 + 1)
        cr_assert_lt(tok_attach(&other, blob, size, 64, &err), 0, "%zu of %zu bytes", size, blob_bytes);
    cr_assert(strstr(err.text, "mixed builds"));
    struct pieces_shm *pieces = (void *)copy;
    for (uint32_t what = 0; what < 4; what++) { /* the order of the tokens leads out of them */
        memcpy(copy, blob, blob_bytes);
        cr_assert(pieces_are_sound(pieces, blob_bytes));
        uint32_t *order = (uint32_t *)(void *)(copy + pieces->order), size;
        uint16_t *shared = (uint16_t *)(void *)(copy + pieces->shared);
        piece_bytes(pieces, order[7], &size);
        if (what == 0)
            order[7] = pieces->count;
        else if (what == 1)
            shared[7] = (uint16_t)(size + 1);
        else if (what == 2)
            shared[0] = 1;
        else
            pieces->order_count = pieces->count + 1;
        cr_expect_not(pieces_are_sound(pieces, blob_bytes), "%u", what);
    }
    free(copy);
}

/* So that no process has to sort them when it starts. */
Test(tok, the_tables_hold_all_tokens_with_text_in_the_order_of_their_bytes)
{
    const struct pieces_shm *pieces = blob;
    uint32_t text_count = 0;
    for (uint32_t id = 0; id < pieces->count; id++)
        text_count += piece_is_text(pieces, id);
    cr_assert_gt(text_count, 40000);
    cr_assert_eq(pieces->order_count, text_count);
    for (uint32_t i = 0; i < text_count; i++) {
        uint32_t id = pieces_order(pieces)[i], size, before_size = 0, shared = 0;
        const uint8_t *bytes = piece_bytes(pieces, id, &size);
        const uint8_t *before = i > 0 ? piece_bytes(pieces, pieces_order(pieces)[i - 1], &before_size) : NULL;
        cr_assert(piece_is_text(pieces, id));
        while (shared < size && shared < before_size && bytes[shared] == before[shared])
            shared++;
        cr_assert_eq(pieces_shared(pieces)[i], shared);
        bool is_behind = i == 0 || (shared < size && (shared == before_size || bytes[shared] > before[shared])) ||
                         (size == before_size && shared == size && id > pieces_order(pieces)[i - 1]);
        cr_assert(is_behind, "token %u", id);
    }
}

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((random_state >> 33) % limit);
}

/* Bytes of any kind, valid UTF-8 or not: the tokens' bytes are the text's, but for bytes the vocabulary has no token for,
 * and no token is a control token. Decoded token by token they are what repairing all of them at once gives. */
Test(tok, bytes_of_any_kind_come_back)
{
    static const char *const units[] = {"a",    " ",    "é",    "中",   "🙂",     "1",          "\n",   "'s",
                                        "\xff", "\x80", "\xe2", "\xf0", "\xf0\x9f", "<|im_end|>", "the ", "\xc3"};
    bool has_token[256] = {false};
    for (uint32_t id = 0; id < tok_vocab_size(&tok); id++) {
        uint8_t piece[TOK_PIECE_MAX];
        if (!tok_is_control(&tok, id) && tok_piece(&tok, id, piece) == 1)
            has_token[piece[0]] = true;
    }
    for (int round = 0; round < 3000; round++) {
        char text[512];
        size_t size = 0, units_count = random_below(40);
        for (size_t i = 0; i < units_count; i++) {
            const char *unit = units[random_below(ARRAY_COUNT(units))];
            char any = (char)random_below(256);
            bool is_any = round % 2 == 0 && random_below(2) == 0;
            size_t unit_size = is_any ? 1 : strlen(unit);
            memcpy(text + size, is_any ? &any : unit, unit_size);
            size += unit_size;
        }
        uint8_t expected[512], bytes[512], repaired[1536];
        size_t expected_size = 0, bytes_size = 0;
        for (size_t i = 0; i < size; i++)
            if (has_token[(uint8_t)text[i]])
                expected[expected_size++] = (uint8_t)text[i];
        uint32_t count = encode(text, size);
        for (uint32_t i = 0; i < count; i++) {
            cr_assert_not(tok_is_control(&tok, ids[i]));
            bytes_size += tok_piece(&tok, ids[i], bytes + bytes_size);
        }
        cr_assert_eq(bytes_size, expected_size, "round %d", round);
        cr_assert_eq(memcmp(bytes, expected, expected_size), 0, "round %d", round);
        char decoded[1536 + 16];
        size_t decoded_size = decode(ids, count, decoded);
        cr_assert_eq(decoded_size, unicode_repair(repaired, expected, expected_size), "round %d", round);
        cr_assert_eq(memcmp(decoded, repaired, decoded_size), 0, "round %d", round);
    }
}

/* ---- building from what files may hold ---- */

#define TEXT(s) ((struct tok_text){s, sizeof(s) - 1})

static int build(struct tok_source *source, struct err *err)
{
    void *built;
    size_t bytes;
    int ret = tok_build(source, &built, &bytes, err);
    if (ret == 0)
        free(built);
    return ret;
}

Test(tok, sources_that_cannot_be_are_refused_by_name)
{
    const struct tok_text tokens[] = {TEXT("a"), TEXT("b"), TEXT("ab"), TEXT("<end>")};
    const uint8_t types[] = {PIECE_NORMAL, PIECE_NORMAL, PIECE_NORMAL, PIECE_CONTROL};
    const struct tok_text good[] = {TEXT("a b")}, unknown[] = {TEXT("a c")}, single[] = {TEXT("ab")},
                          empty[] = {TEXT("")};
    struct tok_source source = {.token_count = 4,
                                .tokens = tokens,
                                .types = types,
                                .merge_count = 1,
                                .merges = good,
                                .pre = TEXT("gpt-2"),
                                .bos = TOK_NONE,
                                .eos = 3};
    struct err err;
    cr_assert_eq(build(&source, &err), 0, "%s", err.text);
    source.merges = unknown;
    cr_assert_lt(build(&source, &err), 0);
    cr_assert(strstr(err.text, "merge 0"));
    source.merges = single;
    cr_assert_lt(build(&source, &err), 0);
    source.merges = empty;
    cr_assert_lt(build(&source, &err), 0);
    source.merges = good;
    source.pre = TEXT("whatever");
    cr_assert_lt(build(&source, &err), 0);
    cr_assert(strstr(err.text, "whatever"));
    source.pre = TEXT("smollm");
    source.bos = 4;
    cr_assert_lt(build(&source, &err), 0);
    cr_assert(strstr(err.text, "begin with token 4"));
    source.bos = TOK_NONE;
    source.eos = 4;
    cr_assert_lt(build(&source, &err), 0);
    cr_assert(strstr(err.text, "end with 4"));
    source.eos = TOK_NONE;
    cr_assert_eq(build(&source, &err), 0, "%s", err.text);
    static char big[2 * TOK_PIECE_MAX];
    memset(big, 'a', sizeof(big));
    const struct tok_text long_tokens[] = {TEXT("a"), TEXT("b"), {big, sizeof(big)}, TEXT("<end>")};
    source.tokens = long_tokens;
    cr_assert_lt(build(&source, &err), 0);
    cr_assert(strstr(err.text, "token 2"));
}

/* A vocabulary of the 256 bytes, then the tokens given. */
static void build_small(struct tok *small, void **tables, const struct tok_text *more, const uint8_t *more_types,
                        uint32_t more_count, bool adds_bos)
{
    struct tok_text *tokens = base_alloc((256 + more_count) * sizeof(*tokens));
    uint8_t *types = base_alloc(256 + more_count);
    char *spelled = base_alloc(256 * 4);
    uint32_t shifted = 256;
    for (uint32_t byte = 0; byte < 256; byte++) { /* GPT-2's printable characters */
        bool is_itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        uint32_t code = is_itself ? byte : shifted++;
        char *text = spelled + 4 * byte;
        tokens[byte] = (struct tok_text){text, code < 0x80 ? 1 : 2};
        text[0] = (char)(code < 0x80 ? code : 0xc0 | code >> 6);
        text[1] = (char)(0x80 | (code & 0x3f));
        types[byte] = PIECE_NORMAL;
    }
    memcpy(tokens + 256, more, more_count * sizeof(*more));
    memcpy(types + 256, more_types, more_count);
    struct tok_source source = {.token_count = 256 + more_count,
                                .tokens = tokens,
                                .types = types,
                                .pre = TEXT("gpt-2"),
                                .bos = 256,
                                .eos = TOK_NONE,
                                .bos_rule = adds_bos ? TOK_BOS_FIRST : TOK_BOS_NEVER};
    size_t bytes;
    struct err err;
    cr_assert_eq(tok_build(&source, tables, &bytes, &err), 0, "%s", err.text);
    cr_assert_eq(tok_attach(small, *tables, bytes, TEXT_MAX, &err), 0, "%s", err.text);
    free(tokens);
    free(types);
    free(spelled);
}

Test(tok, the_longest_special_token_that_may_be_one_is_taken)
{
    static const struct tok_text more[] = {TEXT("<a>"),     TEXT("<a><b>"), TEXT("<a><b><c>"), TEXT("<u>"),
                                           TEXT("<u>more"), TEXT("<a>"),    TEXT("\xff\xff"),  TEXT("<")};
    static const uint8_t types[] = {PIECE_CONTROL,      PIECE_CONTROL, PIECE_USER_DEFINED, PIECE_USER_DEFINED,
                                    PIECE_USER_DEFINED, PIECE_CONTROL, PIECE_CONTROL,      PIECE_USER_DEFINED};
    struct tok small;
    void *tables;
    build_small(&small, &tables, more, types, ARRAY_COUNT(more), false);
    static const struct {
        struct tok_text text;
        struct tok_range trusted; /* size 0: none */
        uint32_t count, ids[8];
    } cases[] = {
        {TEXT("<a><b>"), {0, 6}, 1, {257}},
        {TEXT("<a><b>"), {0, 5}, 4, {256, 263, 'b', '>'}},
        {TEXT("<a><b>"), {0, 2}, 6, {263, 'a', '>', 263, 'b', '>'}},
        {TEXT("<a><b><c>"), {0, 0}, 1, {258}}, /* the vocabulary's text, not a command to the model */
        {TEXT("<a><b><c"), {0, 8}, 3, {257, 263, 'c'}},
        {TEXT("<u>mor"), {0, 0}, 4, {259, 'm', 'o', 'r'}},
        {TEXT("<u>more"), {0, 0}, 1, {260}},
        {TEXT("x\xff\xff\xff"), {1, 3}, 3, {'x', 262, 0xff}},
        {TEXT("\xff\xff"), {0, 0}, 2, {0xff, 0xff}},
        {TEXT("<<"), {0, 0}, 2, {263, 263}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        uint32_t count = tok_encode(&small, cases[i].text.data, cases[i].text.size, &cases[i].trusted,
                                    cases[i].trusted.size > 0, ids, 16);
        cr_expect_eq(count, cases[i].count, "case %zu: %u ids", i, count);
        cr_expect_eq(memcmp(ids, cases[i].ids, cases[i].count * sizeof(*ids)), 0, "case %zu", i);
    }
    tok_detach(&small);
    free(tables);
}

Test(tok, the_begin_token_is_there_only_where_the_vocabulary_says_so)
{
    static const struct tok_text more[] = {TEXT("<begin>")};
    static const uint8_t types[] = {PIECE_CONTROL};
    for (int adds = 0; adds < 2; adds++) {
        struct tok small;
        void *tables;
        build_small(&small, &tables, more, types, 1, adds);
        cr_expect_eq(tok_encode(&small, "", 0, NULL, 0, ids, 8), adds);
        cr_expect_eq(tok_encode(&small, "x", 1, NULL, 0, ids, 8), 1 + adds);
        cr_expect_eq(ids[0], adds ? 256 : 'x');
        cr_expect_eq(tok_encode(&small, "x", 1, NULL, 0, ids, 0), 0);
        tok_detach(&small);
        free(tables);
    }
}

/* Looking at each special token at each byte would take minutes. */
Test(tok, many_special_tokens_cost_little)
{
    enum { COUNT = 20000 };
    static char names[COUNT][32], text[1 << 20];
    static struct tok_text more[COUNT];
    static uint8_t types[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        more[i] = (struct tok_text){names[i], (size_t)snprintf(names[i], sizeof(names[i]), "<|reserved_%05u|>", i)};
        types[i] = i % 2 == 0 ? PIECE_CONTROL : PIECE_USER_DEFINED;
    }
    for (size_t i = 0; i + 17 <= sizeof(text); i += 17)
        memcpy(text + i, "<|reserved_12345|", 17); /* almost one */
    struct tok small;
    void *tables;
    build_small(&small, &tables, more, types, COUNT, false);
    const struct tok_range all = {0, sizeof(text)};
    uint64_t start_ns = clock_cpu_ns();
    cr_expect_eq(tok_encode(&small, text, sizeof(text), &all, 1, ids, ARRAY_COUNT(ids)), sizeof(text));
    double seconds = (double)(clock_cpu_ns() - start_ns) / 1e9;
    cr_expect_lt(seconds, 10, "%.2f s", seconds);
    tok_detach(&small);
    free(tables);
}

Test(tok, invalid_text_is_repaired_by_whole_sequences)
{
    static const struct {
        const char *raw, *expected;
    } cases[] = {{"abc", "abc"},
                 {"\xff", "\xef\xbf\xbd"},
                 {"\xe2\x82", "\xef\xbf\xbd"},
                 {"\xf0\x9f\x98x", "\xef\xbf\xbdx"},
                 {"\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xc3(", "\xef\xbf\xbd("}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        uint8_t out[64];
        size_t size = unicode_repair(out, (const uint8_t *)cases[i].raw, strlen(cases[i].raw));
        cr_expect_eq(size, strlen(cases[i].expected), "case %zu: %zu", i, size);
        cr_expect_eq(memcmp(out, cases[i].expected, size), 0, "case %zu", i);
    }
}
