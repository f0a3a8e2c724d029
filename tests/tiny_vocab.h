/* tiny_vocab.h - a vocabulary small enough to know by heart: three control tokens, one token per byte, a few words. */
#ifndef EVENFLOW_TESTS_TINY_VOCAB_H
#define EVENFLOW_TESTS_TINY_VOCAB_H

#include "engine/tok.h"
#include "ipc/plan.h"

enum {
    TINY_END = 0,        /* <|endoftext|> */
    TINY_IM_START = 1,   /* <|im_start|> */
    TINY_IM_END = 2,     /* <|im_end|>: ends an answer */
    TINY_BYTE_FIRST = 3, /* + byte */
    TINY_HE = TINY_BYTE_FIRST + 256,
    TINY_LL,
    TINY_LLO,
    TINY_HELLO,
    TINY_EURO, /* the three bytes of U+20AC */
    TINY_COUNT,
};

const struct tok_source *tiny_vocab_source(void);

/* The blob, from malloc(). */
void *tiny_vocab_build(size_t *bytes);

/* Makes the plan one of a model with this vocabulary. */
void tiny_vocab_plan(struct plan *plan, size_t vocab_bytes);

/* Ids of the bytes of a text, no merges. Returns how many. */
uint32_t tiny_vocab_bytes(const char *text, uint32_t *ids);

#endif
