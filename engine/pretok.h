/* pretok.h - cuts text into the pieces that byte pairs are merged in: the pre-tokenizers of published vocabularies.
 *
 * Used by: tok.c.   Owns: nothing.   Never blocks.
 *
 * Each is a regular expression in the model's files; here a scanner for each, linear in the text. Bytes that are no UTF-8
 * are of no class of characters: like punctuation.
 */
#ifndef EVENFLOW_PRETOK_H
#define EVENFLOW_PRETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pretok {
    PRETOK_GPT2,   /* GPT-2's pattern */
    PRETOK_SMOLLM, /* every number character alone, then GPT-2's pattern on what lies between */
    PRETOK_LLAMA3, /* Llama 3's: numbers in threes, line breaks with what they follow */
    PRETOK_QWEN2,  /* the same with every number character alone */
};

/* By the name in the model's file. */
bool pretok_find(const char *name, size_t size, enum pretok *pre);

/* Bytes of the first piece of a text that is not empty. */
size_t pretok_piece(enum pretok pre, const uint8_t *text, size_t size);

#endif
