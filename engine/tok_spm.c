/* tok_spm.c - SentencePiece's way of byte pairs: the text's characters, then of all neighbours that are a token together
 * those with the best score become one, the leftmost among equals, again and again (Kudo and Richardson 2018). What is no
 * token in the end becomes its bytes' tokens.
 *
 * A symbol lives at the offset of its first byte; the next one begins where it ends. */
#include <assert.h>
#include <string.h>

#include "engine/tok_tables.h"
#include "engine/unicode.h"

/* A candidate: rank of the token, offset of the left symbol, bytes of both; the smallest is next. Texts are shorter than
 * 2^31 bytes, tokens than 2^9, vocabularies than 2^24. */
#define SIZE_BITS  9
#define START_BITS 31
static_assert(TOK_PIECE_MAX < 1 << SIZE_BITS, "bits of a candidate");

/* Spaces as the vocabulary means them: U+2581 is one too, and there is one in front where it says so. */
static size_t copy_text(const struct tok *tok, const uint8_t *text, size_t size)
{
    size_t out = 0;
    if (tok->blob->adds_space)
        tok->copy[out++] = ' ';
    for (size_t i = 0; i < size;) {
        bool is_space = size - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
        tok->copy[out++] = is_space ? ' ' : text[i];
        i += is_space ? 3 : 1;
    }
    return out;
}

static uint32_t end_of(const struct tok *tok, uint32_t at, uint32_t size)
{
    return tok->symbols[at].next != TOK_NONE ? tok->symbols[at].next : size;
}

static void push_candidate(const struct tok *tok, uint32_t *count, uint32_t left, uint32_t size)
{
    uint32_t right = tok->symbols[left].next;
    if (right == TOK_NONE || end_of(tok, right, size) - left > tok->blob->longest)
        return;
    uint32_t both = end_of(tok, right, size) - left, id = tok_find_text(tok->blob, tok->copy + left, both);
    if (id == TOK_NONE)
        return;
    uint64_t rank = ((const uint32_t *)tok_at(tok->blob, tok->blob->ranks))[id];
    tok_heap_push(tok->heap, count, (rank << START_BITS | left) << SIZE_BITS | both);
}

/* Ids of symbols say only that they live (0) or not (TOK_NONE). */
static void split_characters(const struct tok *tok, uint32_t size)
{
    for (uint32_t at = 0, previous = TOK_NONE; at < size;) {
        uint32_t code, length = unicode_decode(tok->copy + at, size - at, &code, NULL);
        length = length > 0 ? length : 1;
        uint32_t next = at + length < size ? at + length : TOK_NONE;
        tok->symbols[at] = (struct tok_symbol){.id = 0, .previous = previous, .next = next};
        previous = at;
        at += length;
    }
}

void tok_spm_encode(struct encoder *e, const uint8_t *text, size_t text_size)
{
    const struct tok *tok = e->tok;
    struct tok_symbol *symbols = tok->symbols;
    check(text_size <= tok->text_bytes_max && text_size < 1u << START_BITS);
    uint32_t size = (uint32_t)copy_text(tok, text, text_size), candidates = 0;
    split_characters(tok, size);
    for (uint32_t at = 0; at != TOK_NONE; at = symbols[at].next)
        push_candidate(tok, &candidates, at, size);
    while (candidates > 0) {
        uint64_t best = tok_heap_pop(tok->heap, &candidates);
        uint32_t both = best & ((1u << SIZE_BITS) - 1), at = (uint32_t)(best >> SIZE_BITS & ((1u << START_BITS) - 1));
        uint32_t gone = symbols[at].id != TOK_NONE ? symbols[at].next : TOK_NONE;
        if (gone == TOK_NONE || end_of(tok, gone, size) - at != both)
            continue; /* one of the two has been merged already */
        symbols[at].next = symbols[gone].next;
        symbols[gone].id = TOK_NONE;
        if (symbols[at].next != TOK_NONE)
            symbols[symbols[at].next].previous = at;
        push_candidate(tok, &candidates, at, size);
        if (symbols[at].previous != TOK_NONE)
            push_candidate(tok, &candidates, symbols[at].previous, size);
    }
    for (uint32_t at = 0; at != TOK_NONE && e->count < e->ids_max; at = symbols[at].next) {
        uint32_t end = end_of(tok, at, size), id = tok_find_text(tok->blob, tok->copy + at, end - at);
        tok_put(e, id);
        for (uint32_t i = at; i < end && id == TOK_NONE; i++)
            tok_put(e, tok->blob->byte_tokens[tok->copy[i]]);
    }
}
