/* unicode.h - classes of characters, and UTF-8.
 *
 * Used by: tok.c.   Owns: nothing.   Never blocks.
 */
#ifndef EVENFLOW_UNICODE_H
#define EVENFLOW_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

struct unicode_range {
    uint32_t first, last;
    enum unicode_class kind;
};

extern const struct unicode_range unicode_ranges[]; /* in order */
extern const uint32_t unicode_range_count;

enum unicode_class unicode_class_of(uint32_t code);

/* Size of the character at text (1..4) and its code; 0 when the bytes there are no character. needs_more (may be NULL)
 * tells that they may be the beginning of one that was cut off. Strict: no overlong forms, no surrogates. */
uint32_t unicode_decode(const uint8_t *text, size_t size, uint32_t *code, int *needs_more);

/* Where unicode_decode() gives 0: how many bytes at text begin a character that is not there as a whole; at least 1. */
size_t unicode_cut_off_size(const uint8_t *text, size_t size);

/* Copies text; what is no UTF-8 becomes U+FFFD, one for each maximal part of a character that was cut off, else for each
 * byte (Unicode 16, section 3.9). target has room for 3 * size bytes. Returns the size. */
size_t unicode_repair(uint8_t *target, const uint8_t *text, size_t size);

#endif
