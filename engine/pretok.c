#include "engine/pretok.h"

#include <string.h>

#include "engine/unicode.h"

bool pretok_find(const char *name, size_t size, enum pretok *pre)
{
    static const struct {
        const char *name;
        enum pretok pre;
    } known[] = {
        {"smollm", PRETOK_SMOLLM},    {"starcoder", PRETOK_SMOLLM}, {"refact", PRETOK_SMOLLM},
        {"command-r", PRETOK_SMOLLM}, {"gpt-2", PRETOK_GPT2},       {"gpt2", PRETOK_GPT2},
        {"phi-2", PRETOK_GPT2},       {"llama-bpe", PRETOK_LLAMA3}, {"llama3", PRETOK_LLAMA3},
        {"llama-v3", PRETOK_LLAMA3},  {"qwen2", PRETOK_QWEN2},      {"deepseek-r1-qwen", PRETOK_QWEN2},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strlen(known[i].name) == size && memcmp(known[i].name, name, size) == 0) {
            *pre = known[i].pre;
            return true;
        }
    return false;
}

/* The character at text and its class; bytes that are no character have none. */
static uint32_t next_character(const uint8_t *text, size_t size, enum unicode_class *kind)
{
    uint32_t code, length = unicode_decode(text, size, &code, NULL);
    *kind = length > 0 ? unicode_class_of(code) : UNICODE_OTHER;
    return length > 0 ? length : 1;
}

/* Bytes of the run of characters of a class that begins at text. */
static size_t run_of(const uint8_t *text, size_t size, enum unicode_class wanted, size_t *last_start)
{
    size_t at = 0;
    while (at < size) {
        enum unicode_class kind;
        uint32_t length = next_character(text + at, size - at, &kind);
        if (kind != wanted)
            break;
        *last_start = at;
        at += length;
    }
    return at;
}

/* Bytes of 's, 't, 're, 've, 'm, 'll or 'd; 0 when none is there. */
static size_t contraction(const uint8_t *text, size_t size, bool in_any_case)
{
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        size_t length = strlen(endings[i]), same = 0;
        if (size <= length)
            continue;
        for (; same < length; same++) {
            uint8_t c = text[1 + same];
            if (c != endings[i][same] && !(in_any_case && c >= 'A' && c <= 'Z' && c + 32 == endings[i][same]))
                break;
        }
        if (same == length)
            return 1 + length;
    }
    return 0;
}

/* Bytes of at most `most` number characters. */
static size_t numbers(const uint8_t *text, size_t size, uint32_t most)
{
    size_t at = 0;
    for (uint32_t i = 0; i < most && at < size; i++) {
        enum unicode_class kind;
        uint32_t length = next_character(text + at, size - at, &kind);
        if (kind != UNICODE_NUMBER)
            break;
        at += length;
    }
    return at;
}

/* GPT-2's pattern at the beginning of a non-empty text:
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * numbers_are_alone: the text has been cut before and behind every number character. */
static size_t gpt2_piece(const uint8_t *text, size_t size, bool numbers_are_alone)
{
    enum unicode_class kind;
    size_t last_start = 0, length = text[0] == '\'' ? contraction(text, size, false) : 0;
    if (length > 0)
        return length;
    size_t space = text[0] == ' ' && size > 1;
    next_character(text + space, size - space, &kind);
    if (kind == UNICODE_NUMBER && numbers_are_alone)
        return space > 0 ? space : numbers(text, size, 1);
    if (kind != UNICODE_SPACE)
        return space + run_of(text + space, size - space, kind, &last_start);
    /* White space before something leaves its last character to it, unless it is the only one. */
    size_t run = run_of(text, size, UNICODE_SPACE, &last_start);
    if (run == size || last_start == 0)
        return run;
    next_character(text + run, size - run, &kind);
    return kind == UNICODE_NUMBER && numbers_are_alone ? run : last_start;
}

static bool is_line_break(uint8_t c)
{
    return c == '\r' || c == '\n';
}

/* White space: up to its last line break if it has one, else as GPT-2 cuts it. */
static size_t space_piece(const uint8_t *text, size_t size)
{
    size_t last_start = 0, run = run_of(text, size, UNICODE_SPACE, &last_start), breaks = run;
    while (breaks > 0 && !is_line_break(text[breaks - 1]))
        breaks--;
    if (breaks > 0)
        return breaks;
    return run == size || last_start == 0 ? run : last_start;
}

/* Llama 3's pattern at the beginning of a non-empty text; Qwen 2's has one number at a time:
 * (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t llama3_piece(const uint8_t *text, size_t size, uint32_t numbers_max)
{
    enum unicode_class kind, next_kind = UNICODE_SPACE;
    size_t last_start, length = text[0] == '\'' ? contraction(text, size, true) : 0;
    if (length > 0)
        return length;
    length = next_character(text, size, &kind);
    if (kind == UNICODE_LETTER)
        return run_of(text, size, UNICODE_LETTER, &last_start);
    if (kind == UNICODE_NUMBER)
        return numbers(text, size, numbers_max);
    if (length < size)
        next_character(text + length, size - length, &next_kind);
    if (next_kind == UNICODE_LETTER && !is_line_break(text[0]))
        return length + run_of(text + length, size - length, UNICODE_LETTER, &last_start);
    size_t space = text[0] == ' ' && next_kind == UNICODE_OTHER;
    if (kind == UNICODE_SPACE && !space)
        return space_piece(text, size);
    size_t end = space + run_of(text + space, size - space, UNICODE_OTHER, &last_start);
    while (end < size && is_line_break(text[end]))
        end++;
    return end;
}

size_t pretok_piece(enum pretok pre, const uint8_t *text, size_t size)
{
    switch (pre) {
    case PRETOK_LLAMA3:
        return llama3_piece(text, size, 3);
    case PRETOK_QWEN2:
        return llama3_piece(text, size, 1);
    case PRETOK_SMOLLM:
        return gpt2_piece(text, size, true);
    case PRETOK_GPT2:
        break;
    }
    return gpt2_piece(text, size, false);
}
