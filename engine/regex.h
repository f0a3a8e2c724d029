/* regex.h - regular expressions to fragments of a grammar.
 *
 * Used by: schema.c.   Owns: nothing.   Never blocks.
 *
 * What Python's re and JSON Schema's patterns share and an automaton can do: characters, '.', [classes] with ranges and
 * negation, \d \D \w \W \s \S and escapes, groups, '|', '*', '+', '?', {m}, {m,}, {m,n} (lazy ones mean the same), and '^'
 * and '$' at the ends. Classes of \d \w \s are ASCII's. Anything else (references, look-around, anchors inside) is refused
 * by its place.
 */
#ifndef EVENFLOW_REGEX_H
#define EVENFLOW_REGEX_H

#include "engine/fragment.h"
#include "ipc/base.h"

/* The whole text must match; with is_search a part of it, unless '^' and '$' say otherwise. 0; -EINVAL or -ENOTSUP with err. */
int regex_build(struct fragment_builder *builder, const char *pattern, size_t size, bool is_search,
                struct fragment *fragment, struct err *err);

#endif
