/* fuzz_tok.c - text to ids and back: every byte comes back, text stays UTF-8, and nothing a client writes is special. */
#include <stdlib.h>
#include <string.h>

#include "engine/tok.h"
#include "engine/unicode.h"
#include "tests/fuzz.h"
#include "tests/tiny_vocab.h"

#define TEXT_MAX 8192u

static struct tok tok;

static void set_up(void)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err;
    check(tok_attach(&tok, blob, vocab_bytes, TEXT_MAX, &err) == 0);
}

static void text_comes_back(const uint8_t *text, size_t size)
{
    static uint32_t ids[TEXT_MAX + 1];
    static uint8_t back[TOK_PIECE_MAX + TEXT_MAX];
    uint32_t count = tok_encode(&tok, (const char *)text, size, NULL, 0, ids, TEXT_MAX + 1);
    size_t back_size = 0;
    check(count <= size);
    for (uint32_t i = 0; i < count; i++) {
        check(ids[i] < tok_vocab_size(&tok) && !tok_is_control(&tok, ids[i]));
        back_size += tok_piece(&tok, ids[i], back + back_size);
        check(back_size <= size);
    }
    check(back_size == size && memcmp(back, text, size) == 0);
    if (count > 1) { /* a limit cuts the list and changes nothing before it */
        static uint32_t cut[TEXT_MAX + 1];
        check(tok_encode(&tok, (const char *)text, size, NULL, 0, cut, count / 2) == count / 2);
        check(memcmp(cut, ids, count / 2 * sizeof(*ids)) == 0);
    }
}

/* Any ids, token by token: what their bytes are as UTF-8, all at once. */
static void ids_give_utf8(const uint8_t *data, size_t size)
{
    static uint8_t bytes[TEXT_MAX * TOK_PIECE_MAX], wanted[3 * sizeof(bytes)];
    static char text[3 * sizeof(bytes) + 16];
    struct tok_decoder decoder = {0};
    size_t bytes_size = 0, text_size = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t id = data[i] < TINY_COUNT - TINY_HE ? TINY_HE + data[i] : TINY_BYTE_FIRST + data[i];
        bytes_size += tok_piece(&tok, id, bytes + bytes_size);
        text_size += tok_decoder_push(&decoder, &tok, id, text + text_size);
    }
    text_size += tok_decoder_end(&decoder, text + text_size);
    size_t wanted_size = unicode_repair(wanted, bytes, bytes_size);
    check(text_size == wanted_size && memcmp(text, wanted, wanted_size) == 0);
}

/* Trusted ranges: special tokens are found there and nowhere else. */
static void special_only_where_trusted(struct fuzz_input *input)
{
    static uint32_t ids[TEXT_MAX + 1];
    struct tok_range range = {fuzz_number(input, 255), fuzz_number(input, 255)};
    range.first = min_u64(range.first, input->size);
    range.size = min_u64(range.size, input->size - range.first);
    uint32_t count = tok_encode(&tok, (const char *)input->data, input->size, &range, 1, ids, TEXT_MAX + 1);
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t piece[TOK_PIECE_MAX];
        size_t size = tok_piece(&tok, ids[i], piece);
        check(at + size <= input->size && memcmp(piece, input->data + at, size) == 0);
        if (tok_is_control(&tok, ids[i]))
            check(at >= range.first && at + size <= range.first + range.size);
        at += size;
    }
    check(at == input->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (tok.blob == NULL)
        set_up();
    if (size > TEXT_MAX)
        return 0;
    text_comes_back(data, size);
    ids_give_utf8(data, size);
    struct fuzz_input input = {data, size};
    special_only_where_trusted(&input);
    return 0;
}
