#include "tests/tiny_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char chatml[] = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                             "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
                             "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
                             "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/* GPT-2's printable character for a byte: itself where it is printable Latin-1, else the next one from U+0100 on. */
static size_t printable(uint8_t byte, char *text)
{
    uint32_t character = byte, spare = 0x100;
    for (uint32_t b = 0; b < 256; b++) {
        bool is_printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (!is_printable && b == byte)
            character = spare;
        spare += !is_printable;
    }
    if (character < 0x80) {
        text[0] = (char)character;
        return 1;
    }
    text[0] = (char)(0xc0 | character >> 6);
    text[1] = (char)(0x80 | (character & 0x3f));
    return 2;
}

/* Room for the texts of the source, used once and for all. */
static char *take(size_t size)
{
    static char storage[4096];
    static size_t used;
    char *text = storage + used;
    used += size;
    check(used <= sizeof(storage));
    return text;
}

static struct tok_text spell(const char *bytes)
{
    char *text = take(2 * strlen(bytes) + 1);
    size_t size = 0;
    for (const char *at = bytes; *at != '\0'; at++)
        size += printable((uint8_t)*at, text + size);
    return (struct tok_text){text, size};
}

static struct tok_text merge(const char *left, const char *right)
{
    struct tok_text a = spell(left), b = spell(right);
    char *text = take(a.size + b.size + 1);
    memcpy(text, a.data, a.size);
    text[a.size] = ' ';
    memcpy(text + a.size + 1, b.data, b.size);
    return (struct tok_text){text, a.size + b.size + 1};
}

const struct tok_source *tiny_vocab_source(void)
{
    static struct tok_source source;
    static struct tok_text tokens[TINY_COUNT], merges[4];
    static uint8_t types[TINY_COUNT];
    static const char *const controls[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    static const char *const words[] = {"he", "ll", "llo", "hello", "\xe2\x82\xac"};
    if (source.token_count > 0)
        return &source;
    for (uint32_t i = 0; i < 3; i++) {
        tokens[i] = (struct tok_text){controls[i], strlen(controls[i])};
        types[i] = PIECE_CONTROL;
    }
    for (uint32_t b = 0; b < 256; b++) {
        char *text = take(2);
        tokens[TINY_BYTE_FIRST + b] = (struct tok_text){text, printable((uint8_t)b, text)};
        types[TINY_BYTE_FIRST + b] = PIECE_NORMAL;
    }
    for (uint32_t i = 0; i < ARRAY_COUNT(words); i++) {
        tokens[TINY_HE + i] = spell(words[i]);
        types[TINY_HE + i] = PIECE_NORMAL;
    }
    merges[0] = merge("h", "e");
    merges[1] = merge("l", "l");
    merges[2] = merge("ll", "o");
    merges[3] = merge("he", "llo");
    source = (struct tok_source){.token_count = TINY_COUNT,
                                 .tokens = tokens,
                                 .types = types,
                                 .merge_count = ARRAY_COUNT(merges),
                                 .merges = merges,
                                 .pre = {"gpt-2", 5},
                                 .bos = TOK_NONE,
                                 .eos = TINY_IM_END,
                                 .chat_template = {chatml, sizeof(chatml) - 1}};
    return &source;
}

void *tiny_vocab_build(size_t *bytes)
{
    void *blob;
    struct err err = {0};
    if (tok_build(tiny_vocab_source(), &blob, bytes, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return blob;
}

void tiny_vocab_plan(struct plan *plan, size_t vocab_bytes)
{
    plan->vocab_size = TINY_COUNT;
    plan->vocab_bytes = vocab_bytes;
    plan->end_token_count = 1;
    plan->end_tokens[0] = TINY_IM_END;
}

uint32_t tiny_vocab_bytes(const char *text, uint32_t *ids)
{
    uint32_t count = 0;
    for (; text[count] != '\0'; count++)
        ids[count] = TINY_BYTE_FIRST + (uint8_t)text[count];
    return count;
}
