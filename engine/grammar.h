/* grammar.h - what a client wants an answer to keep to, as the automaton that the journal holds.
 *
 * Used by: api.c.   Owns: the memory that it is made in and GRAMMAR_OBJECT's, taken in grammar_open().
 * Never blocks, never allocates after that.
 *
 * Bytes that no token is by itself are left out, with the characters that need them: so there is a token for every way on.
 */
#ifndef EVENFLOW_GRAMMAR_H
#define EVENFLOW_GRAMMAR_H

#include <jansson.h>
#include <stdint.h>

#include "engine/tok.h"
#include "ipc/base.h"

enum grammar_kind {
    GRAMMAR_OBJECT, /* any JSON object; no value */
    GRAMMAR_SCHEMA, /* a JSON schema, or its text */
    GRAMMAR_REGEX,  /* a string: a regular expression of the whole answer */
    GRAMMAR_CHOICE, /* a list of strings */
};

struct grammar {
    const struct tok *tok;
    uint8_t *memory;
    const uint32_t *words; /* of the last one, until the next */
    uint32_t word_count;
    uint32_t *object_words;     /* of GRAMMAR_OBJECT */
    uint32_t object_word_count; /* 0: nobody has asked for it yet */
};

void grammar_open(struct grammar *grammar, const struct tok *tok);

/* 0; -EINVAL or -ENOTSUP with err, which says what is wrong and where. */
int grammar_make(struct grammar *grammar, enum grammar_kind kind, json_t *value, struct err *err);

#endif
